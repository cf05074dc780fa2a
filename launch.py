"""Several processes of one job on this machine, to try out what a cluster would do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO

from . import console
from .errors import INTERRUPTED, UsageError
from .guard import QUIET
from .machine import cores
from .signals import listen

GRACE = 60.0  # seconds in which the others notice by themselves that a process has gone
LAST = 10.0  # seconds between being asked to stop and being killed


def launch(command: Sequence[str], workers: int) -> int:
    """Run a command of dlzoo as the processes of one job; return the exit code of all.

    Each gets its share of the processors and GPUs. What the first one says is shown; what
    another one says, if it fails in a way of its own. Signals are handed on to all.

    Args:
        command: such as `["finetune", "--data", "flowers"]`. workers: how many processes.
    """
    if not command or command[0] not in ("finetune", "resume"):
        raise UsageError(
            "usage",
            "launch runs finetune or resume",
            fix="dlzoo launch --workers 2 -- finetune --data DIR",
        )
    with ExitStack() as held:
        said = [held.enter_context(tempfile.TemporaryFile()) for _ in range(workers)]
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "dlzoo", *command],
                env=_environment(rank, addresses),
                stdout=None if rank == 0 else subprocess.DEVNULL,
                stderr=None if rank == 0 else said[rank],
                start_new_session=True,  # signals reach each of them once: from here
            )
            for addresses in [free_addresses(workers)]
            for rank in range(workers)
        ]
        _share_processors(running)

        def hand_on(number: int, frame: object) -> None:
            for process in running:
                if process.poll() is None:
                    process.send_signal(number)

        held.callback(listen(("SIGINT", "SIGTERM", "SIGHUP"), hand_on))
        codes = _wait(running)
        _tell(codes, said)
    return _verdict(codes)


def free_addresses(workers: int) -> list[str]:
    """Return that many addresses of this machine that nobody uses just now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(workers)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [f"localhost:{each.getsockname()[1]}" for each in sockets]


def _environment(rank: int, addresses: list[str]) -> dict[str, str]:
    task = {"type": "worker", "index": rank}
    inherited = dict(os.environ)
    if inherited.get("TF_CPP_MIN_LOG_LEVEL") == QUIET:  # set by this process for itself
        del inherited["TF_CPP_MIN_LOG_LEVEL"]
    return inherited | {
        "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task}),
        "DLZOO_BESIDE": f"{rank}/{len(addresses)}",
    }


def _share_processors(running: list[subprocess.Popen]) -> None:
    """Give each process its own processors, if there are enough; threads count by them."""
    if not hasattr(os, "sched_setaffinity") or cores() < len(running):
        return
    here = sorted(os.sched_getaffinity(0))
    for rank, process in enumerate(running):
        try:
            os.sched_setaffinity(process.pid, here[rank :: len(running)])
        except OSError:  # it has ended already
            continue


def _wait(running: list[subprocess.Popen]) -> list[int]:
    """Wait for all to end; those that do not notice that one has gone are stopped."""
    limit, how = None, signal.SIGTERM
    while any(process.poll() is None for process in running):
        time.sleep(0.1)
        now = time.monotonic()
        if limit is None and any(process.poll() for process in running):
            limit = now + GRACE
        if limit is not None and now > limit:
            for process in running:
                if process.poll() is None:
                    process.send_signal(how)
            limit, how = now + LAST, signal.SIGKILL
    return [process.returncode for process in running]


def _tell(codes: list[int], said: Sequence[IO[bytes]]) -> None:
    """Show what the others said that failed in another way than the first one."""
    for rank, (code, file) in enumerate(zip(codes, said, strict=True)):
        if not rank or code in (0, codes[0]):
            continue
        file.seek(0)
        lines = file.read().decode("utf-8", "replace").splitlines()
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        for line in [*lines, ended]:
            console.say(f"[rank {rank}] {line}")


def _verdict(codes: list[int]) -> int:
    """Return the code of the one that failed for a reason of its own, if there is one."""
    own = [code for code in codes if code > 0 and code != INTERRUPTED]
    return own[0] if own else INTERRUPTED if any(codes) else 0
