"""The scan: every image is decoded once before training, so that none can stop it later.

What a scan finds is remembered below `files.home()/scan`, so that the next one over the same
files only has to ask for their size and time of change.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

import numpy as np
import PIL

from .. import files
from ..errors import DataError
from . import decode
from .records import Blob, Problem, Record, Source, stamp_of

Progress = Callable[[int, int], None]
_VERSION = f"1 pillow {PIL.__version__}"  # another decoder may judge otherwise

# a remembered verdict: stamp, sha256, width, height, format, reason ("" for a good image)
_Verdict = tuple[str, str, int, int, str, str]


def scan(
    source: Source,
    *,
    on_bad_image: str = "skip",
    max_pixels: int = decode.MAX_PIXELS,
    max_bad: float = 0.05,
    progress: Progress | None = None,
) -> None:
    """Decode all images of a source; good records get their hash and size, bad ones go.

    Args:
        source: changed in place: `records` keeps the readable ones, `problems` grows.
        on_bad_image: `skip` or `fail` (raise on the first bad one).
        max_pixels: larger images count as bad.
        max_bad: the share of bad images above which the data is refused.
        progress: called with (images done, images in all).

    Raises:
        DataError: `data.unreadable` or `data.image-too-large` with `on_bad_image="fail"`;
            `data.too-many-bad`.
    """
    memory = _Memory(source)
    kept: list[Record] = []
    bad: list[Problem] = []
    total = len(source.records)
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        verdicts = pool.map(lambda record: _judge(record, memory, max_pixels), source.records)
        try:
            for done, (record, (id, reason)) in enumerate(
                zip(source.records, verdicts, strict=True), start=1
            ):
                if progress is not None:
                    progress(done, total)
                if id == "ignored":
                    source.problems.append(Problem(record.key, reason, "ignored"))
                elif id:
                    if on_bad_image == "fail":
                        raise DataError(id, reason, where=record.key, fix="repair or remove it")
                    bad.append(Problem(record.key, reason, "skipped"))
                else:
                    kept.append(record)
                    if reason:
                        source.problems.append(Problem(record.key, reason, "kept"))
        finally:
            pool.shutdown(cancel_futures=True)
    memory.save()
    images = len(kept) + len(bad)
    source.problems += bad
    source.records = kept
    if bad and len(bad) > max_bad * images:
        shown = "; ".join(f"{problem.path}: {problem.reason}" for problem in bad[:5])
        raise DataError(
            "data.too-many-bad",
            f"{len(bad)} of {images} images ({len(bad) / images:.0%}) cannot be used, more than "
            f"{max_bad:.0%}: {shown}",
            where=source.root or source.name,
            fix="repair or remove them; `dlzoo data check --report FILE` lists all of them",
        )


def _judge(record: Record, memory: _Memory, max_pixels: int) -> tuple[str, str]:
    """Fill in a record's hash and size; return (id, reason).

    `("", "")` is a good image, `("", reason)` one with a remark, `("ignored", reason)` a file
    that does not even claim to be an image; else the id of an error.
    """
    image = record.image
    if isinstance(image, np.ndarray):
        _fill(record, files.sha256(f"{image.shape}".encode() + image.tobytes()), image.shape)
        return "", ""
    if isinstance(image, Blob):
        data = image.bytes()
        stamp = sha = files.sha256(data)
        if image.shape is not None:
            sha = files.sha256(f"{image.shape}".encode() + data)
            _fill(record, sha, image.shape)
            return "", ""
    else:
        try:
            stamp, data, sha = stamp_of(image), None, ""
            record.stamp = stamp
        except OSError as error:
            return "data.unreadable", f"cannot be read: {error.strerror}"
        except ValueError as error:  # such as a NUL in its name
            return "data.unreadable", f"cannot be read: {error}"
    verdict = memory.get(record.key, stamp)
    if verdict is None or verdict[2] * verdict[3] > max_pixels:
        if isinstance(image, Path):
            if not decode.claims_image(image):
                return "ignored", f"not an image ({image.suffix or 'no extension'})"
            try:
                data = image.read_bytes()
            except OSError as error:
                return "data.unreadable", f"cannot be read: {error.strerror}"
            sha = files.sha256(data)
        assert data is not None
        try:
            found = decode.probe(data, max_pixels=max_pixels)
            verdict = (stamp, sha, *found, "")
        except DataError as error:
            if error.id == "data.image-too-large":
                return error.id, error.message
            verdict = (stamp, sha, 0, 0, "", error.message)
        memory.put(record.key, verdict)
    _, sha, width, height, kind, reason = verdict
    if reason:
        return "data.unreadable", reason
    _fill(record, sha, (height, width))
    suffix = PurePath(record.key).suffix.lower()
    if isinstance(image, Path) and suffix not in decode.EXTENSIONS.get(kind, (suffix,)):
        return "", f"wrong extension: {kind} content in a {suffix or 'nameless'} file"
    return "", ""


def _fill(record: Record, sha: str, shape: tuple[int, ...]) -> None:
    record.sha256, record.height, record.width = sha, shape[0], shape[1]


class _Memory:
    """Verdicts of earlier scans of the same place. A damaged file is as good as none."""

    def __init__(self, source: Source):
        place = str(source.root.resolve()) if source.root else source.name
        name = files.sha256(place.encode("utf-8", "surrogateescape"))[:32]
        self._path = files.home() / "scan" / f"{name}.json"
        self._known: dict[str, list] = {}
        self._new: dict[str, _Verdict] = {}
        self._changed = False
        try:
            stored = json.loads(self._path.read_text("utf-8"))
            if stored["version"] == _VERSION:
                self._known = dict(stored["verdicts"])
        except (OSError, ValueError, TypeError, KeyError):
            pass

    def get(self, key: str, stamp: str) -> _Verdict | None:
        entry = self._known.get(key)
        if isinstance(entry, list) and list(map(type, entry)) == [str, str, int, int, str, str]:
            verdict = tuple(entry)
            if verdict[0] == stamp and (verdict[5] or (verdict[1] and verdict[2] * verdict[3])):
                self._new[key] = verdict
                return verdict
        return None

    def put(self, key: str, verdict: _Verdict) -> None:
        self._new[key] = verdict
        self._changed = True

    def save(self) -> None:
        """Keep what this scan saw, and nothing of files that are gone."""
        if not self._changed:
            return
        try:
            self._path.parent.mkdir(exist_ok=True)
            with files.replacing(self._path) as file:
                json.dump({"version": _VERSION, "verdicts": self._new}, file)
        except OSError:  # a full disk costs speed only
            pass
