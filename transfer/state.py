"""Checkpoints of a run in training: everything needed to go on as if nothing had happened.

A checkpoint is a directory `step-00000012/` that is renamed into place when it is whole, with
the hashes of its files in `manifest.json`. The newest two are kept.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from .. import files
from ..callbacks import Resumable
from ..errors import ResumeError

KEEP = 2


def save(
    folder: Path,
    step: int,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer | None,
    callbacks: Iterable[Resumable],
    cursor: dict[str, Any],
    best: Sequence[np.ndarray] | None = None,
) -> Path:
    """Write a checkpoint: every variable (seeds too), optimizer slots, callbacks and cursor.

    Args:
        folder: where the checkpoints of the run are. step: orders them.
        cursor: where training stands, plain values.
        best: the model's weights at its best, if they are not its present ones.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.{os.getpid()}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _write_arrays(temporary / "model.npz", [np.asarray(v) for v in model.variables])
    slots = optimizer.variables if optimizer else []
    _write_arrays(temporary / "optimizer.npz", [np.asarray(v) for v in slots])
    _write_arrays(temporary / "best.npz", best or [])
    files.write_json(temporary / "cursor.json", cursor)
    states = {type(c).__name__: c.state_dict() for c in callbacks}
    files.write_json(temporary / "callbacks.json", states)
    hashes = {path.name: files.sha256(path) for path in sorted(temporary.iterdir())}
    files.write_json(temporary / "manifest.json", {"step": step, "sha256": hashes})
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    _sync(folder)
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint whose files are whole, or None if there never was one.

    Raises:
        ResumeError: `resume.no-valid-checkpoint`; nothing is deleted.
    """
    found = sorted(folder.glob("step-*"), reverse=True)
    for path in found:
        if _whole(path):
            return path
    if found:
        raise ResumeError(
            "resume.no-valid-checkpoint",
            f"none of {len(found)} checkpoints is whole",
            where=folder,
            fix="start a new run; this one is left as it is",
        )
    return None


def cursor(path: Path) -> dict[str, Any]:
    """Return where training stood when the checkpoint was written."""
    return json.loads((path / "cursor.json").read_text("utf-8"))


def restore_variables(file: Path, variables: Sequence) -> None:
    """Put back the variables of a model or a built optimizer.

    Raises:
        ResumeError: `resume.config-changed` if they are not those that were saved.
    """
    stored = read_arrays(file)
    if [a.shape for a in stored] != [tuple(v.shape) for v in variables]:
        raise ResumeError(
            "resume.config-changed",
            "the checkpoint belongs to another network or optimizer",
            where=file,
            fix="resume with the settings the run was started with",
        )
    for array, variable in zip(stored, variables, strict=True):
        variable.assign(array)


def read_arrays(file: Path) -> list[np.ndarray]:
    """Return the arrays of a checkpoint file, in order."""
    with np.load(file, allow_pickle=False) as stored:
        return [stored[key] for key in sorted(stored.files)]


def restore_callbacks(path: Path, callbacks: Iterable[Resumable]) -> None:
    """Put back the state of the callbacks."""
    states = json.loads((path / "callbacks.json").read_text("utf-8"))
    for callback in callbacks:
        if type(callback).__name__ in states:
            callback.load_state_dict(states[type(callback).__name__])


def _whole(path: Path) -> bool:
    try:
        manifest = json.loads((path / "manifest.json").read_text("utf-8"))
        return all(files.sha256(path / n) == h for n, h in manifest["sha256"].items())
    except (OSError, ValueError, KeyError):
        return False


def _write_arrays(path: Path, arrays: Sequence[np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **{f"{i:05d}": a for i, a in enumerate(arrays)})  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the renames in a folder last through a power cut (not possible on Windows)."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
