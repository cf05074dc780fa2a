"""Where activations lie on disk: shelves of one kind, and in them shards that are whole or absent.

A *shelf* is a folder below `files.home()/activations`, named by a hash of all that its values
depend on but the image. A *shard* holds the rows of many images: `NAME.npy`, memory-mapped by
readers, and `NAME.ids`, which is written last and holds a checksum. A process that is killed
loses the shard it was filling; two that want to fill the same shelf wait for one another. The
shelves not used for longest go when all together grow over `limit()`.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from .. import files
from ..errors import ResourceError, UsageError
from ..units import parse_bytes

FLOAT16 = (-65504.0, 65504.0)
SHARD = 64 << 20  # bytes; what a kill can lose, and what is held in memory
SHARE = 0.25  # of the disk that is free but for the cache: the most it takes by default
LIMIT = "DLZOO_CACHE_LIMIT"
SPARE = 512 << 20  # bytes that stay free on the disk
Located = tuple[list[np.ndarray], np.ndarray]  # shards, and for each id (shard, row)


class Shelf:
    """The activations of one place and view, by image.

    Args:
        folder: of the shelf; made when something is written. shape: of one activation.
        about: what it holds, for people.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], about: dict[str, Any] | None = None):
        self.folder, self.shape, self.about = folder, tuple(shape), about or {}
        self._known: dict[str, np.ndarray] = {}  # shard name to the ids in it

    def _ids(self) -> dict[str, np.ndarray]:
        """Return shard names and the ids of their rows, reading those that are new."""
        names = {path.name[: -len(".ids")] for path in self.folder.glob("*.ids")}
        for name in names - set(self._known):
            try:
                stored = np.fromfile(self.folder / f"{name}.ids", "<u8")
                rows, crc = stored[:-1], stored[-1]
                values = np.load(self.folder / f"{name}.npy", mmap_mode="r")
                whole = values.shape == (len(rows), *self.shape) and _crc(values) == int(crc)
            except (OSError, ValueError, IndexError):
                whole = False
            if not whole:  # a damaged shard is as good as none
                for ending in ("ids", "npy"):
                    (self.folder / f"{name}.{ending}").unlink(missing_ok=True)
                continue
            self._known[name] = rows
        for name in set(self._known) - names:
            del self._known[name]
        return self._known

    def holds(self, ids: np.ndarray) -> np.ndarray:
        """Return for each id whether its activation is here."""
        known = self._ids()
        return np.isin(ids, np.concatenate([*known.values(), np.empty(0, np.uint64)]))

    def locate(self, ids: np.ndarray) -> Located | None:
        """Return the shards (memory-mapped) and, for each id, int64 (shard, row).

        None: some are not here. What is mapped can be read also when its files have gone.
        """
        known = self._ids()
        names = sorted(known)
        try:
            shards = [np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in names]
        except FileNotFoundError:  # cleared just now
            return None
        every = np.concatenate([*(known[name] for name in names), np.empty(0, np.uint64)])
        if not np.isin(ids, every).all():
            return None
        shard = np.repeat(np.arange(len(names)), [len(known[name]) for name in names])
        row = np.concatenate([np.arange(len(known[name])) for name in names])
        order = np.argsort(every, kind="stable")
        at = order[np.searchsorted(every, ids, sorter=order)]
        return shards, np.stack([shard[at], row[at]], axis=1)

    @contextmanager
    def writing(
        self, waiting: Callable[[], None], leave: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Hold the lock of the shelf.

        Args:
            waiting: called if another process has it. leave: called then every second; may raise
                to give up.
        """
        root().mkdir(parents=True, exist_ok=True)
        lock = _lock(self.folder)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            waiting()
            while not lock.is_locked:
                leave()
                with suppress(filelock.Timeout):
                    lock.acquire(timeout=1)
        try:
            self.folder.mkdir(exist_ok=True)  # now that no other process can be clearing it
            for stale in self.folder.glob(".*.part"):  # of a writer that was killed
                stale.unlink(missing_ok=True)
            if not (self.folder / "about.json").exists():
                files.write_json(self.folder / "about.json", self.about)
            yield
        finally:
            lock.release()

    def writer(self) -> _Writer:
        """Return what collects activations into shards."""
        return _Writer(self)

    def touch(self) -> None:
        """Say that the shelf is in use: the one not used for longest goes first."""
        with suppress(FileNotFoundError):
            os.utime(self.folder / "about.json")


def let_go(shards: Iterable[np.ndarray]) -> None:
    """Unmap what was read of shards; the system has it in its cache still, and maps it again."""
    if hasattr(mmap, "MADV_DONTNEED"):
        for shard in shards:
            shard.base.madvise(mmap.MADV_DONTNEED)  # type: ignore[union-attr]


class _Writer:
    """Collects rows, and writes them as a shard whenever there are enough."""

    def __init__(self, shelf: Shelf):
        self.shelf = shelf
        rows = max(1, SHARD // max(2 * math.prod(shelf.shape), 1))
        self._rows, self._ids, self._values, self._full = rows, [], [], 0  # type: ignore[var-annotated]

    def add(self, ids: np.ndarray, values: np.ndarray) -> None:
        self._ids.append(ids)
        self._values.append(np.clip(values, *FLOAT16).astype("float16"))
        self._full += len(ids)
        if self._full >= self._rows:
            self.close()

    def close(self) -> None:
        """Write what there is. The ids come last: without them a shard does not count."""
        if not self._full:
            return
        ids, values = np.concatenate(self._ids), np.concatenate(self._values)
        self._ids, self._values, self._full = [], [], 0
        path = self.shelf.folder / uuid.uuid4().hex
        try:
            files.write_array(path.with_suffix(".npy"), values)
            with files.replacing(path.with_suffix(".ids"), "wb") as file:
                file.write(np.append(ids, np.uint64(_crc(values))).astype("<u8").tobytes())
            self.shelf._known[path.name] = ids
        except OSError as error:
            path.with_suffix(".npy").unlink(missing_ok=True)
            raise ResourceError(
                "resource.disk",
                f"cannot write activations: {error.strerror}",
                where=self.shelf.folder,
                fix="make room, `dlzoo cache clear`, or --cache off",
            ) from error


def root() -> Path:
    """Return the folder of all shelves."""
    return files.home() / "activations"


def entries() -> list[dict[str, Any]]:
    """Return every shelf: path, bytes, images, when it was last used (seconds), what it holds."""
    found = []
    for folder in root().glob("*"):
        with suppress(FileNotFoundError):  # cleared just now
            if folder.is_dir():
                found.append(_entry(folder))
    return sorted(found, key=lambda entry: entry["used"])


def _entry(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / "about.json").read_text("utf-8"))
        used = (folder / "about.json").stat().st_mtime
    except (OSError, ValueError):
        about, used = {}, folder.stat().st_mtime
    sizes = {path: path.stat().st_size for path in folder.glob("*") if path.is_file()}
    images = sum(size // 8 - 1 for path, size in sizes.items() if path.suffix == ".ids")
    return {"path": folder, "bytes": sum(sizes.values()), "images": images, "used": used, **about}


def wanted_limit() -> int | None:
    """Return how many bytes the user lets all shelves take, by `DLZOO_CACHE_LIMIT`, or None.

    Raises:
        UsageError: `usage.size`: the variable holds no size.
    """
    wanted = os.environ.get(LIMIT)
    try:
        return parse_bytes(wanted) if wanted else None
    except ValueError as error:
        raise UsageError("usage.size", str(error), where=LIMIT, fix=f"{LIMIT}=20G") from None


def limit() -> int:
    """Return how many bytes all shelves may take: as the user wants, else a share of the disk."""
    if (wanted := wanted_limit()) is not None:
        return wanted
    used = sum(entry["bytes"] for entry in entries())
    return int(SHARE * (shutil.disk_usage(files.home()).free + used))


def clear(down_to: int = 0, keep: Iterable[Path] = ()) -> int:
    """Remove the shelves not used for longest until at most `down_to` bytes are left.

    Shelves that a process is writing to, and those in `keep`, stay. Returns the bytes freed.
    """
    freed, _ = _clear(down_to, keep)
    return freed


def _clear(down_to: int, keep: Iterable[Path]) -> tuple[int, int]:
    """Do so, and return the bytes freed and those that are left."""
    every, freed = entries(), 0
    left = sum(entry["bytes"] for entry in every)
    spared = set(keep)
    for entry in every:
        if left <= down_to:
            break
        if entry["path"] in spared:
            continue
        lock = _lock(entry["path"])
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            continue
        try:
            shutil.rmtree(entry["path"], ignore_errors=True)
        finally:
            # while it is held: whoever waits for it would else hold a file that others do not see
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
        left, freed = left - entry["bytes"], freed + entry["bytes"]
    return freed, left


def make_room(wanted: int, keep: Iterable[Path] = ()) -> bool:
    """Remove old shelves so that `wanted` bytes more can be kept; say whether they can."""
    most = limit()
    if wanted > most:
        return False
    _, left = _clear(most - wanted, keep)
    if left + wanted > most:  # what is kept or in use takes too much
        return False
    return shutil.disk_usage(files.home()).free - SPARE > wanted


def _lock(folder: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(folder.with_suffix(".lock"))


def _crc(values: np.ndarray) -> int:
    """Return a checksum of an array, some megabytes at a time."""
    crc, flat = 0, values.reshape(len(values), -1).view(np.uint16)
    rows = max(1, (4 << 20) // max(2 * flat.shape[1], 1))
    for start in range(0, len(flat), rows):
        crc = zlib.crc32(np.ascontiguousarray(flat[start : start + rows]).data, crc)
    return crc
