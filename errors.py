"""The one exception users see, and how it is told to them.

Every error dlzoo raises on purpose is a :class:`DlzooError`: a stable id for programs, a
sentence for people, where it happened, and what to do. The command line and Python show the
same text.
"""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Sequence
from typing import Any

# Exit codes of the command line; the errors below carry theirs.
OK, BUG, USAGE, DATA, MODEL, RESOURCE, DIVERGED, RESUME, EXPORT, GATE = range(10)
INTERRUPTED, CTRL_C = 75, 130

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # or may hold no more of ours
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)

# What TensorFlow says where cuDNN or CUDA cannot be set up for want of memory.
_GPU_IS_FULL = (
    "No DNN in stream executor",
    "DNN library initialization failed",
    "CUDA_ERROR_OUT_OF_MEMORY",
)


class DlzooError(Exception):
    """An error with an id, a place and a remedy.

    Attributes:
        id: stable dotted name, such as `data.no-classes`.
        message: what happened, one sentence.
        where: the file, layer or setting concerned, or None.
        hint: what the user can do about it, or None.
        exit_code: what the command line exits with.
    """

    exit_code = BUG

    def __init__(
        self,
        id: str,
        message: str,
        *,
        where: object = None,
        fix: str | None = None,
        exit_code: int | None = None,
    ):
        self.id = id
        self.message = message
        self.where = None if where is None else str(where)
        self.hint = fix
        if exit_code is not None:
            self.exit_code = exit_code
        super().__init__(self.render())

    def render(self) -> str:
        """Return the text shown to people: `error[id]: message`, then where and fix."""
        lines = [f"error[{self.id}]: {self.message}"]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  fix:   {self.hint}")
        return "\n".join(lines)

    def __reduce__(self):  # survives a process boundary
        return _rebuild, (type(self), self.id, self.message, self.where, self.hint, self.exit_code)


def _rebuild(cls, id, message, where, hint, exit_code):
    return cls(id, message, where=where, fix=hint, exit_code=exit_code)


class UsageError(DlzooError):
    """A wrong flag, name, size or configuration (exit 2)."""

    exit_code = USAGE


class DataError(DlzooError):
    """The data cannot be used as given (exit 3).

    Attributes:
        problems: what else was found odd about it, as in `Data.problems`.
    """

    exit_code = DATA
    problems: Sequence[Any] = ()


class ModelError(DlzooError):
    """A model or its weights cannot be had or do not fit (exit 4)."""

    exit_code = MODEL


class ResourceError(DlzooError):
    """Memory, disk, permissions or a lock (exit 5)."""

    exit_code = RESOURCE


class DivergedError(DlzooError):
    """Training went to NaN, or never left chance (exit 6)."""

    exit_code = DIVERGED


class ResumeError(DlzooError):
    """A checkpoint cannot be continued as asked (exit 7)."""

    exit_code = RESUME


class ExportError(DlzooError):
    """An export failed or does not answer as the model does (exit 8)."""

    exit_code = EXPORT


class GateError(DlzooError):
    """A quality gate (`--fail-under`) was missed (exit 9)."""

    exit_code = GATE


class Interrupted(DlzooError):
    """Stopped by a signal after saving; run again to go on (exit 75)."""

    exit_code = INTERRUPTED


def out_of_memory(error: BaseException) -> ResourceError | None:
    """Return what to tell of too little memory, in Python's words or TensorFlow's; else None."""
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        where, fix = "out of memory", "try a smaller --size or --batch, or end other programs"
    elif any(words in text for words in _GPU_IS_FULL):
        where = "a GPU has no memory left for this process"
        fix = (
            "end the programs that hold it (`nvidia-smi` lists them; TensorFlow takes all of a "
            "GPU, unless TF_FORCE_GPU_ALLOW_GROWTH=true is set for it), or --device cpu"
        )
    else:
        return None
    first = text.strip().partition("\n")[0][:200]
    return ResourceError("resource.oom", f"{where}: {first}" if first else where, fix=fix)


def of_the_machine(error: BaseException) -> ResourceError | None:
    """Return what to tell where memory, a disk or permissions end a command; else None."""
    if isinstance(error, OSError):
        if error.errno in DISK_IS_FULL:
            id, fix = "resource.disk", "free some space, or choose a folder on another disk"
        elif error.errno in _FORBIDDEN:
            id, fix = "resource.permission", "choose a folder of yours, or change who may use it"
        else:
            return None
        where = None if error.filename is None else os.fsdecode(error.filename)
        return ResourceError(id, str(error.strerror), where=where, fix=fix)
    return out_of_memory(error)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the known name closest to `name`, or ""."""
    found = difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.5)
    # Of the close names, one with the same letters is meant: vgg61 is vgg16 and not vgg19.
    found.sort(key=lambda other: sorted(other) != sorted(str(name)))
    return f"; did you mean {found[0]!r}?" if found else ""
