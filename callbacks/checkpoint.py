"""Checkpoints on disk: each is a directory that is whole or not there.

A checkpoint `step-00000120/` holds groups of arrays (`model.npz`, ...), `state.json` with plain
values, and `manifest.json` with the hash of every file. It is written beside its place, synced
and renamed into it. The order of the names is the order of the checkpoints: there is no pointer
file that could be torn or point to nothing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import files
from ..errors import DISK_IS_FULL, ResourceError, ResumeError

KEEP = 2
FORMAT = 1
DAMAGED = ".damaged"  # ending of what was found not to be whole, and is kept to be looked at

Arrays = Callable[[], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Group:
    """Arrays that are written as one file.

    Attributes:
        arrays: gives them, in an order that stays.
        version: two groups of one name and version hold the same values, so that the second is
            a link to the first; None: they are always written.
    """

    arrays: Arrays
    version: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole, or has just been written."""

    path: Path
    step: int
    state: dict[str, Any]
    manifest: dict[str, Any] = field(repr=False)

    def arrays(self, group: str) -> list[np.ndarray]:
        """Return the arrays of a group, in order; none if it has no such group."""
        file = self.path / f"{group}.npz"
        if file.name not in self.manifest["sha256"]:
            return []
        with np.load(file, allow_pickle=False) as stored:
            return [stored[key] for key in sorted(stored.files)]

    def version(self, group: str) -> str | None:
        """Return the version that a group was written with."""
        return self.manifest["versions"].get(group)


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: made when something is written.
        keep: how many of the newest stay.
        say: told of a damaged checkpoint that is passed over.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        keep: int = KEEP,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.folder, self.keep, self.say = Path(folder), keep, say
        self.last: Checkpoint | None = None  # written or read by this object

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints there are, whole or not, the newest last."""
        names = (path.name for path in self.folder.glob("step-*") if path.is_dir())
        return sorted(int(name[5:]) for name in names if name[5:].isdigit())

    def save(self, step: int, groups: Mapping[str, Group], state: Mapping[str, Any]) -> Checkpoint:
        """Write a checkpoint, then remove those that are too many.

        Args:
            step: gives its name; one of the same step is replaced.
            groups: what arrays it holds. state: plain values.

        Raises:
            ResourceError: `resume.disk`, `resume.permission`; those before it stay as they are.
        """
        final = self.folder / _name(step)
        temporary = self.folder / f".{final.name}.{os.getpid()}.part"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            hashes = {f"{n}.npz": self._write(temporary, n, group) for n, group in groups.items()}
            files.write_json(temporary / "state.json", state)
            hashes["state.json"] = files.sha256(temporary / "state.json")
            versions = {name: group.version for name, group in groups.items() if group.version}
            manifest = {"format": FORMAT, "step": step, "sha256": hashes, "versions": versions}
            files.write_json(temporary / "manifest.json", manifest)
            _sync(temporary)
            if final.exists():  # of the same step, such as before and after a validation
                os.replace(final, replaced := temporary.with_suffix(".old.part"))
                os.replace(temporary, final)
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                os.replace(temporary, final)
            _sync(self.folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise self._full(error, groups) from error
        self.last = Checkpoint(final, step, dict(state), manifest)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.folder / _name(old), ignore_errors=True)
        return self.last

    def _write(self, folder: Path, name: str, group: Group) -> str:
        """Write a group or link it to the file that holds it already; return its hash."""
        path, last = folder / f"{name}.npz", self.last
        if last and group.version and last.version(name) == group.version:
            try:
                os.link(last.path / path.name, path)
            except OSError:  # a file system without links
                shutil.copyfile(last.path / path.name, path)
                _sync_file(path)
            return last.manifest["sha256"][path.name]
        with path.open("wb") as file:
            named = {f"{i:05d}": np.asarray(a) for i, a in enumerate(group.arrays())}
            np.savez(file, **named)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        return files.sha256(path)

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose files are whole, or None if there never was one.

        What a killed writer left is removed. A newer checkpoint that is damaged is told of and
        gets a name of its own, so that the next of its step can be written.

        Raises:
            ResumeError: `resume.no-valid-checkpoint`; nothing is touched then.
        """
        steps = self.steps()
        found = next((c for c in map(self._read, reversed(steps)) if c), None)
        if steps and not found:
            raise ResumeError(
                "resume.no-valid-checkpoint",
                f"none of {len(steps)} checkpoints is whole",
                where=self.folder,
                fix="start a new run; this one is left as it is",
            )
        for stale in self.folder.glob(".step-*.part"):
            shutil.rmtree(stale, ignore_errors=True)
        if found:
            for step in (s for s in steps if s > found.step):
                path = self.folder / _name(step)
                self.say(f"resume.fallback step {found.step}: {path.name} is damaged")
                shutil.rmtree(aside := path.with_name(path.name + DAMAGED), ignore_errors=True)
                os.replace(path, aside)
        self.last = found
        return found

    def _read(self, step: int) -> Checkpoint | None:
        path = self.folder / _name(step)
        try:
            manifest = json.loads((path / "manifest.json").read_text("utf-8"))
            if any(files.sha256(path / n) != h for n, h in manifest["sha256"].items()):
                return None
            state = json.loads((path / "state.json").read_text("utf-8"))
            if manifest["format"] != FORMAT or "versions" not in manifest:
                return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return Checkpoint(path, step, state, manifest)

    def check_room(self, groups: Mapping[str, Group]) -> None:
        """Find out before training whether the disk has room for the checkpoints of a run.

        Raises:
            ResourceError: `resume.disk`, `resume.permission`.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise self._full(error, groups) from error
        if free < (need := (self.keep + 1) * _size(groups)):
            raise self._no_room(need, free)

    def _full(self, error: OSError, groups: Mapping[str, Group]) -> ResourceError:
        """Return what a failed write is told as."""
        if error.errno in DISK_IS_FULL:
            base = next(p for p in (self.folder, *self.folder.parents) if p.exists())
            free = shutil.disk_usage(base).free
            return self._no_room(_size(groups), free, f": {error.strerror}")
        return ResourceError(
            "resume.permission",
            f"a checkpoint cannot be written: {error.strerror or error}",
            where=self.folder,
            fix="make the folder writable and resume the run, or put runs elsewhere with --out DIR",
        )

    def _no_room(self, need: int, free: int, why: str = "") -> ResourceError:
        return ResourceError(
            "resume.disk",
            f"need {need / 1e6:,.0f} MB, free {free / 1e6:,.0f} MB{why}",
            where=self.folder,
            fix="free some space and resume the run; the checkpoints before are kept",
        )


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _size(groups: Mapping[str, Group]) -> int:
    return sum(np.asarray(a).nbytes for group in groups.values() for a in group.arrays())


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the names in a folder last through a power cut (not possible on Windows)."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
