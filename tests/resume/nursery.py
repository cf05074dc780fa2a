"""Runs of dlzoo in processes of their own, which are killed for real.

Importing TensorFlow takes longer than such a run, so a fork server imports it once; nothing of
it has been used when the processes are forked. Each child is told where to die: it sends itself
SIGKILL, so nothing of it, no `finally` and no buffer, gets a chance.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import gc
import hashlib
import io
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import numpy as np

IMAGES, SIZE, CLASSES = 64, 32, 4
STAGES = "head:2,C4:2,all:2"
EVERY = 3
SETTINGS = {
    "backbone": "tiny", "weights": "none", "stages": STAGES, "batch": 8, "augment": "medium",
    "dropout": 0.3, "size": SIZE, "lr": 0.02, "optimizer": "adam", "taps": ["C4"], "seed": 3,
    "train_bn": True, "deterministic": True, "patience": 2, "save_every": EVERY, "quiet": True,
    "cache": "on", "report": False, "name": "run",
}  # fmt: skip
SHARES = {"val_split": 0.2, "test_split": 0.2}


def photos():
    """Return images in classes that differ a little in colour, so that training takes a while."""
    rng = np.random.default_rng(0)
    labels = np.arange(IMAGES) % CLASSES
    images = rng.integers(0, 200, (IMAGES, SIZE, SIZE, 3)).astype("uint8")
    images[..., 0] += (labels * 9).astype("uint8")[:, None, None]
    return images, labels


def body(x, drop=0.1):
    """A network with everything that keeps state: convolutions, BatchNorm, dropout."""
    from dlzoo.zoo.blocks import L, conv

    taps = {}
    for i, width in enumerate((8, 12), start=3):
        # LiteRT answers zeros for 3 x 3 at stride 4, which is noticed: Keras computes
        x = conv(x, width, 3, 4, name=f"conv{i}")
        if not drop:  # of the kind that a tail computes in another way
            x = conv(x, width, 1, name=f"point{i}")
        x = L.BatchNormalization(momentum=0.8, name=f"norm{i}")(x)
        x = L.Activation("relu", name=f"act{i}")(x)
        x = taps[f"C{i}"] = L.Dropout(drop, name=f"drop{i}")(x)
    return taps


@functools.cache
def register() -> None:
    """Put the network into the zoo, for this process, and one that draws no random numbers."""
    from dlzoo.zoo import registry

    for name, drop in (("tiny", 0.1), ("steady", 0.0)):
        made = functools.partial(body, drop=drop)
        add = registry.family(name, made, paper="arXiv:1502.03167", year=2015)
        add(name, params=0, gmacs=0.0, size=SIZE, min_size=8, taps={"C3": 8, "C4": 12})


def finetune(out: Path, data=None, **settings):
    """Run the whole job, or go on with it; by default with photos that no file holds."""
    import dlzoo

    register()
    data = data or dlzoo.load_data(photos(), **SHARES, seed=3)
    shares = SHARES if isinstance(data, str) else {}
    settings = {**SETTINGS, **shares, **settings}
    return dlzoo.finetune(data=data, out=str(out), resume="auto", **settings)


def resume(out: Path, **settings):
    """Go on with the run by its path alone."""
    import dlzoo

    register()
    return dlzoo.resume(out / "run", **settings)


def command(out: Path, **settings):
    """Go on by the command."""
    from dlzoo.cli import main

    register()
    main(["resume", str(out / "run"), *(f"--{key}={value}" for key, value in settings.items())])


# -- dying


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def nth_call(owner: object, name: str, n: int, act=die, after: bool = False) -> None:
    """Let the n-th call of a function die (or do something else) before or after its work."""
    real, calls = getattr(owner, name), []

    @functools.wraps(real)
    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == n and not after:
            act(*args)
        found = real(*args, **kwargs)
        if len(calls) == n and after:
            act(*args)
        return found

    setattr(owner, name, counted)


def at_step(n: int, act=die) -> None:
    """Die after the n-th training step of this process, before anything is saved of it."""
    from dlzoo.callbacks import StopOnDivergence

    nth_call(StopOnDivergence, "on_train_batch_end", n, act)


# -- processes


def _child(out: Path, job, prepare, settings: dict, home: Path, env: dict) -> None:
    os.environ |= {"DLZOO_HOME": str(home), **env}
    gc.freeze()  # what was imported before the fork is never garbage
    with (out / "child.txt").open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(os.dup(fd), "wb")) for fd in (1, 2))
    code = 0
    try:
        for plan in prepare:
            plan()
        job(out, **settings)
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException as error:
        print(error if hasattr(error, "exit_code") else traceback.format_exc())
        code = getattr(error, "exit_code", 99)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@functools.cache
def server():
    """Return a fork server that has imported everything and used nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nursery", "dlzoo.training", "dlzoo.transfer.fit",
                                    "dlzoo.report.plots", "dlzoo.transfer.classifier"])  # fmt: skip
    return context


def run(out: Path, *prepare, wait: float = 120, **how) -> int:
    """Run a child; return its exit code, or minus the signal that ended it.

    Args:
        out: its folder of runs. prepare: called in the child first; they say where it dies.
        how: `home`, of its cache, by default one of its own in `out`; `job`, what is done, by
            default `finetune`; and the settings of that.
    """
    process = start(out, *prepare, **how)
    process.join(wait)
    if process.is_alive():
        process.kill()
        raise TimeoutError(said(out))
    return process.exitcode


def start(
    out: Path, *prepare, job=finetune, home: Path | None = None, env: dict | None = None, **settings
):
    """Start a child and return its process."""
    out.mkdir(parents=True, exist_ok=True)
    arguments = (out, job, prepare, settings, home or out / "home", env or {})
    process = server().Process(target=_child, args=arguments)
    process.start()
    return process


def together(out: Path, count: int, prepare: dict | None = None, wait: float = 180, **settings):
    """Run children as the workers of one job; return their exit codes by rank.

    Args:
        prepare: what is called first, by rank.
    """
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    children = []
    for rank in range(count):
        task = {"type": "worker", "index": rank}
        env = {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task})}
        children.append(start(out, *(prepare or {}).get(rank, ()), env=env, **settings))
    until = time.monotonic() + wait
    for child in children:
        child.join(max(0.0, until - time.monotonic()))
    if any(child.is_alive() for child in children):
        for child in children:
            child.kill()
        raise TimeoutError(said(out))
    return [child.exitcode for child in children]


def said(out: Path) -> str:
    """Return what the children of a folder printed."""
    with contextlib.suppress(FileNotFoundError):
        return (out / "child.txt").read_text()
    return ""


def result(out: Path) -> dict[str, str]:
    """Return everything a finished run came to, as hashes and text, without times."""
    folder = out / "run"
    weights = sorted((folder / "model").glob("*.h5"))
    assert weights, said(out)
    import h5py

    digest = hashlib.sha256()
    with h5py.File(weights[0]) as file:
        names: list[str] = []
        file.visit(names.append)
        for name in sorted(names):
            if isinstance(file[name], h5py.Dataset):
                digest.update(name.encode() + np.asarray(file[name]).tobytes())
    with (folder / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    return {
        "weights": digest.hexdigest(),
        "file": hashlib.sha256(weights[0].read_bytes()).hexdigest(),
        "metrics": repr(rows),
        "predictions": (folder / "predictions_test.csv").read_text(),
    }


# -- where a child dies, or what it forgets: names for the tables of the tests


def in_validation(n: int, act=die) -> None:
    from dlzoo.callbacks import StopOnSignal

    nth_call(StopOnSignal, "on_test_batch_end", n, act)


def before_stage(n: int) -> None:
    from dlzoo.transfer.fit import _Training

    nth_call(_Training, "stage", n)


def after_epoch(n: int) -> None:
    """Die when early stopping has counted and nothing is saved of it."""
    from dlzoo.callbacks import EarlyStopping

    nth_call(EarlyStopping, "epoch_done", n, after=True)


def in_save(n: int, operation: int) -> None:
    """Die in the n-th checkpoint before its so-manyth fsync, link or rename."""
    from dlzoo.callbacks.checkpoint import Checkpoints

    real, saves = Checkpoints.save, []

    def save(self, *args):
        saves.append(1)
        if len(saves) != n:
            return real(self, *args)
        done = []
        for name in ("fsync", "replace", "link"):
            kept = getattr(os, name)

            def counted(*args, kept=kept):
                done.append(1)
                if len(done) == operation:
                    die()
                return kept(*args)

            setattr(os, name, counted)
        real(self, *args)
        raise AssertionError(f"a checkpoint has but {len(done)} operations")

    Checkpoints.save = save


def in_cache(method: str, n: int) -> None:
    from dlzoo.transfer import shelf

    nth_call(shelf._Writer, method, n)


def in_finish(where: str, n: int = 1, after: bool = False) -> None:
    """Die in what comes before training or after it."""
    from dlzoo import export, training
    from dlzoo.report import metrics, plots, predictions
    from dlzoo.rundir import RunDir
    from dlzoo.transfer import combine, distil
    from dlzoo.transfer.classifier import Classifier

    owner, name = {
        "teacher": (distil, "softened"),
        "members": (combine, "together"),
        "save": (Classifier, "save"),
        "metrics": (metrics, "evaluate"),
        "predictions": (predictions, "write"),
        "plots": (plots, "curves"),
        "export": (export, "export"),
        "report": (training, "_report"),
        "finished": (RunDir, "__exit__"),
    }[where]
    nth_call(owner, name, n, after=after)


def forget(what: str) -> None:
    """Leave one thing out when going on: the negative controls."""
    from dlzoo.callbacks import checkpoint, resume

    real_assign, real_read = resume.assign, checkpoint.Checkpoints._read

    left_out = {
        "slots": lambda v, file: file == "optimizer" and "learning_rate" not in v.path,
        "sums": lambda v, file: file == "metrics",
        "seeds": lambda v, file: "seed" in v.path,
        "norm": lambda v, file: "moving_" in v.path,
        "weights": lambda v, file: file == "model" and "kernel" in v.path,
    }.get(what, lambda v, file: False)

    def assign(variables, arrays, where):
        pairs = zip(variables, arrays, strict=True)
        kept = [pair for pair in pairs if not left_out(pair[0], where.stem)]
        if kept:
            real_assign(*map(list, zip(*kept, strict=True)), where)

    def read(self, step):
        found = real_read(self, step)
        if what in CALLBACKS:
            del found.state["callbacks"][what]
        if what == "cursor":
            found.state["batch"] -= 1
        return found

    resume.assign, checkpoint.Checkpoints._read = assign, read


CALLBACKS = ("WarmupCosine", "BestModel", "History")


def parallel_calls(n: int) -> None:
    import tensorflow as tf

    tf.data.AUTOTUNE = n


def signalled(number: int, n: int, times: int = 1) -> None:
    """Get a signal in the n-th training step."""

    def send(*_):
        for _ in range(times):
            os.kill(os.getpid(), number)

    at_step(n, send)


def small_files(limit: int) -> None:
    """Let no file grow beyond a size, as a full disk would, from the second checkpoint on."""
    import resource

    from dlzoo.callbacks.checkpoint import Checkpoints

    nth_call(
        Checkpoints, "save", 2,
        lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip


def out_of_memory(n: int, limit: int) -> None:
    """Let memory run out in the n-th training step of all, where its batch is above a limit."""
    import tensorflow as tf
    from dlzoo.callbacks import StopOnDivergence
    from dlzoo.transfer.fit import _Training

    real_fit, real_end, size = _Training.fit, StopOnDivergence.on_train_batch_end, []

    def fit(self, stage, split, batch):
        size[:] = [batch]
        return real_fit(self, stage, split, batch)

    def end(self, batch, logs=None):
        real_end(self, batch, logs)
        if logs and self.step >= n and size[0] > limit:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    _Training.fit, StopOnDivergence.on_train_batch_end = fit, end


def two_replicas() -> None:
    """Split the processor into two devices."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def term_in_validation(n: int) -> None:
    """Get a signal in the n-th batch of validation."""
    in_validation(n, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def figures(out: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.csv as numbers, without times."""
    with (out / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v) for k, v in row.items() if k not in ("seconds", "stage")} for row in rows]
