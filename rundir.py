"""A run's directory: made once, never overwritten, locked while it is written to."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from . import __version__, files
from .errors import (
    BUG,
    CTRL_C,
    INTERRUPTED,
    DlzooError,
    ResourceError,
    UsageError,
    nearest,
    of_the_machine,
)

# Room that must be free before a run starts: its model, predictions and plots.
NEED = 200_000_000


class RunDir:
    """The files of one run, and its `run.json`.

    Used as a context manager it holds the run's lock, and `run.json` tells how the block
    ended: `finished`, `failed` (with `crash.txt` for what is not a :class:`DlzooError`) or
    `interrupted`. One that is finished is not begun again: `run.finished`.

    Attributes:
        path: the directory; the others are the files and folders inside it.
    """

    def __init__(self, path: Path | str):
        self.path = path = Path(path)
        self.json = path / "run.json"  # status, versions, argv, exit
        self.config = path / "config.toml"  # resolved; goes back in by --config
        self.plan = path / "plan.toml"  # the stages
        self.manifest = path / "data_manifest.csv"  # path, sha256, label, split
        self.data_report = path / "data_report.csv"  # every skipped or odd file
        self.history = path / "metrics.csv"  # a row an epoch
        self.metrics = path / "metrics.json"  # final
        self.predictions = path / "predictions_test.csv"
        self.labels = path / "labels.txt"
        self.log = path / "log.txt"
        self.plots = path / "plots"
        self.model = path / "model"
        self.checkpoints = path / "ckpt"  # of a run in training; gone when it has finished
        self.export = path / "export"
        self.members = path / "members"  # the runs that an ensemble trained
        self._lock: Any = None

    @staticmethod
    def check(out: Path | str, name: str | None = None, *, need: int = NEED) -> None:
        """Find out whether a run can be made, and make nothing.

        Args:
            out: the folder of all runs, which need not exist.
            name: of the new run, if the user chose one.
            need: bytes that must be free.

        Raises:
            ResourceError: `run.exists`, `resource.permission` or `resource.disk`.
        """
        out = Path(out)
        if name and os.path.lexists(out / name):
            raise ResourceError(
                "run.exists",
                f"there is a run called {name!r} already",
                where=out / name,
                fix="choose another --name, or go on with it by --resume",
            )
        base = files.standing(out)
        if not files.takes_files(base):
            raise _no_permission(out, "not writable" if base.is_dir() else f"{base} is no folder")
        free = shutil.disk_usage(base).free
        if free < need:
            raise ResourceError(
                "resource.disk",
                f"need {_megabytes(need)}, free {_megabytes(free)}",
                where=out,
                fix="free some space, or put runs elsewhere with --out DIR",
            )

    @classmethod
    def create(
        cls,
        out: Path | str,
        name: str | None,
        stem: str,
        *,
        argv: Sequence[str] | None = None,
        need: int = NEED,
    ) -> RunDir:
        """Make a new directory with a `run.json` of status `created`.

        Args:
            out: the folder of all runs; made if missing.
            name: of the directory. None: `stem` and the next free number.
            stem: `<backbone>-<data>`; what a file name should not hold is replaced.
            argv: the command, for `run.json`. None: this process' own.
            need: bytes that must be free.

        Raises:
            ResourceError: as in `check`.
        """
        cls.check(out, name, need=need)
        try:
            Path(out).mkdir(parents=True, exist_ok=True)
            path = Path(out) / name if name else _numbered(Path(out), stem)
            if name:
                path.mkdir()
        except FileExistsError:  # taken since the check
            cls.check(out, name, need=need)
            raise
        except OSError as error:
            raise _no_permission(out, error.strerror or str(error)) from None
        run = cls(path)
        files.write_json(
            run.json,
            {
                "status": "created",
                "created": now(),
                "argv": list(sys.argv if argv is None else argv),
                "versions": versions(),
            },
        )
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """Return an existing run.

        Raises:
            UsageError: `run.not-found`, with the nearest sibling.
        """
        run = cls(path)
        if not run.json.is_file():
            siblings = sorted(p.parent.name for p in run.path.parent.glob("*/run.json"))
            raise UsageError(
                "run.not-found",
                f"no run here{nearest(run.path.name, siblings)}",
                where=path,
                fix="give the path that `dlzoo finetune` printed, such as runs/NAME",
            )
        return run

    @property
    def begun(self) -> bool:
        """Whether all that a run starts from has been written, so that it can be resumed."""
        return self.config.is_file()

    def read(self) -> dict[str, Any]:
        """Return what `run.json` says."""
        return read_values(self.json)

    def record(self, **fields: Any) -> None:
        """Set fields of `run.json`; the file is replaced as a whole."""
        files.write_json(self.json, {**self.read(), **fields})

    def let_checkpoints_go(self) -> None:
        """Remove the checkpoints, of a run that is finished."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def __enter__(self) -> RunDir:
        import filelock

        lock = filelock.FileLock(str(self.path / ".lock"))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise ResourceError(
                "resource.locked",
                f"locked by pid {self.read().get('pid', 'unknown')}",
                where=self.path,
                fix="wait for that process, or end it",
            ) from None
        except OSError as error:
            raise _no_permission(self.path, error.strerror or str(error)) from None
        if self.read()["status"] == "finished":
            lock.release()
            raise ResourceError(
                "run.finished",
                "another process has finished it since this one looked",
                where=self.path,
                fix="nothing is left to do",
            )
        self._lock = lock
        for stale in [p for p in self.path.rglob(".*") if ".part" in p.name]:  # of one killed
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
        self.record(status="running", started=now(), pid=os.getpid(), ended=None, exit=None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            code = 0 if error is None else exit_code(error)
            if error is not None and code == BUG:
                write_crash(error, self.path)
            interrupted = code in (INTERRUPTED, CTRL_C)
            status = "interrupted" if interrupted else "failed" if code else "finished"
            self.record(status=status, ended=now(), exit=code)
        except OSError:  # a full disk must not hide what happened before
            if error is None:
                raise
        finally:
            self._lock.release()


class _Values(dict[str, Any]):
    """What a file of a run holds; a value that it lacks is told with the file."""

    def __init__(self, path: Path, found: dict[str, Any]):
        super().__init__(found)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise _damaged(self.path, f"says no {key!r}")


def read_values(path: Path) -> dict[str, Any]:
    """Return what a JSON or TOML file of a run holds.

    Raises:
        UsageError: `run.damaged`: it is not there, or not what dlzoo wrote; also when a value is
            taken that is not in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("no table of values")
        return _Values(path, found)
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise _damaged(path, f"cannot be read: {why}") from None


def _damaged(path: Path, what: str) -> UsageError:
    return UsageError(
        "run.damaged",
        f"{path.name} {what}",
        where=path,
        fix="restore the file from a copy; a run that was never finished has no metrics.json",
    )


def exit_code(error: BaseException) -> int:
    """Return what the command line exits with after `error`."""
    if told := error if isinstance(error, DlzooError) else of_the_machine(error):
        return told.exit_code
    return CTRL_C if isinstance(error, KeyboardInterrupt) else BUG


def write_crash(error: BaseException, folder: Path | None = None) -> Path:
    """Write the traceback of a bug to `crash.txt`, once; return where it is.

    Args:
        folder: the run's directory. None: a new temporary file.
    """
    written = getattr(error, "crash_file", None)
    if written:
        return written
    if folder is None:
        handle, name = tempfile.mkstemp(prefix="dlzoo-crash-", suffix=".txt")
        os.close(handle)
        path = Path(name)
    else:
        path = folder / "crash.txt"
    about = "".join(f"{key} {value}\n" for key, value in versions().items())
    path.write_text(
        f"{about}{' '.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}",
        encoding="utf-8",
        errors="backslashreplace",
    )
    error.crash_file = path  # type: ignore[attr-defined]
    return path


def versions() -> dict[str, str]:
    """Return the versions of what a run's result depends on; loads none of it."""
    found = {"dlzoo": __version__, "python": sys.version.split()[0], "platform": sys.platform}
    for package in ("keras", "tensorflow", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def file_stem(text: str) -> str:
    """Return `text` as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", text)[:100].strip("._-") or "run"


def _numbered(out: Path, stem: str) -> Path:
    """Make and return `out/stem-N` for the first N above all there are."""
    stem = file_stem(stem)
    taken = (re.fullmatch(rf"{re.escape(stem)}-(\d+)", entry) for entry in os.listdir(out))
    number = max((int(match[1]) for match in taken if match), default=0)
    while True:
        number += 1
        try:
            (path := out / f"{stem}-{number}").mkdir()
            return path
        except FileExistsError:  # another process was faster
            continue


def _no_permission(out: Path | str, why: str) -> ResourceError:
    return ResourceError(
        "resource.permission",
        f"no run can be written: {why}",
        where=out,
        fix="choose a folder of yours with --out DIR",
    )


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def now() -> str:
    """Return the time as it is written in run.json."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
