"""One catalogue for every source: records (an image, its labels), problems, and a spill file."""

from __future__ import annotations

import io
import os
import stat
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import files
from ..errors import DataError
from . import decode

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Problem:
    """Something odd about the data.

    Attributes:
        path: the file or record, relative to the data's root.
        reason: what is odd about it.
        action: `skipped` (an image that is not used), `ignored` (not part of the data) or
            `kept` (used; a warning).
    """

    path: str
    reason: str
    action: str


@dataclass(frozen=True)
class Blob:
    """Some bytes in a :class:`Spill`: an encoded image, or raw uint8 pixels if `shape` is set."""

    spill: Spill
    offset: int
    length: int
    shape: tuple[int, ...] | None = None

    def bytes(self) -> bytes:
        return self.spill.read(self.offset, self.length)


class Spill:
    """An unnamed temporary file below `files.home()` that images are put into and read from.

    Sources that give images one after the other (TFDS, tf.data) are kept here and not in
    memory, however large they are. It goes away with the process.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(dir=files.home())  # noqa: SIM115  (lives as long as self)
        self._lock = threading.Lock()
        self._end = 0

    def add(self, image: bytes | np.ndarray) -> Blob:
        """Append an encoded image, or the uint8 pixels of one."""
        data, shape = (image, None) if isinstance(image, bytes) else (image.tobytes(), image.shape)
        with self._lock:
            self._file.seek(self._end)
            self._file.write(data)
            blob = Blob(self, self._end, len(data), shape)
            self._end += len(data)
        return blob

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on."""
        with self._lock:
            self._file.seek(offset)
            return self._file.read(length)


@dataclass(slots=True)
class Record:
    """One image and what is known of it.

    Attributes:
        key: names it within the data: a path relative to the root with '/', or
            `name/000012`. Unique.
        labels: names of its classes; one, unless the task is multilabel.
        image: where its pixels are: a file, bytes set aside, or uint8 (height, width, 3).
        split: `train`, `val`, `test`, or None until the split is made.
        sha256: of the file's content (of shape and pixels, for arrays); empty until scanned.
        width, height: in pixels, as in the header; 0 until scanned.
        stamp: of the file as it was scanned, see `stamp_of`; empty for what is no file.
    """

    key: str
    labels: tuple[str, ...]
    image: Path | Blob | np.ndarray
    split: str | None = None
    sha256: str = ""
    width: int = 0
    height: int = 0
    stamp: str = ""

    def pixels(self, max_pixels: int = decode.MAX_PIXELS) -> np.ndarray:
        """Return the image as uint8 (height, width, 3); raises DataError as `decode` does.

        So it does if the file's content is another than was scanned: under its hash features are
        kept, and its label may not be right any more.
        """
        if isinstance(self.image, np.ndarray):
            return self.image
        if isinstance(self.image, Path):
            if self._is_another(self.image):
                raise DataError(
                    "data.vanished",
                    "its content has changed since it was scanned",
                    where=self.image,
                    fix="bring the file back, or begin anew",
                )
            return decode.decode(self.image, max_pixels=max_pixels)
        data = self.image.bytes()
        if self.image.shape is None:
            return decode.decode(data, max_pixels=max_pixels)
        return np.frombuffer(data, np.uint8).reshape(self.image.shape)

    def _is_another(self, path: Path) -> bool:
        with suppress(OSError, ValueError):  # the decoder says what is wrong
            stamp = stamp_of(path)
            if stamp == self.stamp or not self.stamp:
                return False
            if files.sha256(path) != self.sha256:
                return True
            self.stamp = stamp  # touched only: it need not be read as a whole each time
        return False

    def encoded(self) -> bytes:
        """Return the image as the content of an image file: as it is stored, else as PNG."""
        if isinstance(self.image, Path):
            return self.image.read_bytes()
        if isinstance(self.image, Blob) and self.image.shape is None:
            return self.image.bytes()
        buffer = io.BytesIO()
        Image.fromarray(self.pixels()).save(buffer, "png")
        return buffer.getvalue()


@dataclass
class Source:
    """What a source gives before it is scanned.

    Attributes:
        name: short, for run directories.
        records: all images, in a stable order.
        root: the folder keys are relative to, or None.
        classes: their names in the order wanted, or None for sorted.
        expected: classes that must have images even if no record shows them (empty folders).
        multilabel: an image may have none or several labels.
        flip: mirror images make sense (not so for digits or text).
        problems: what was ignored.
    """

    name: str
    records: list[Record]
    root: Path | None = None
    classes: tuple[str, ...] | None = None
    expected: tuple[str, ...] = ()
    multilabel: bool = False
    flip: bool = True
    problems: list[Problem] = field(default_factory=list)


def stamp_of(path: Path) -> str:
    """Return what a file that is changed does not keep; raises OSError if it is no regular file."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would block whoever opens it
        raise OSError(0, "not a regular file")
    return f"{status.st_size} {status.st_mtime_ns}"


def split_name(text: str) -> str | None:
    """Return `train`, `val` or `test` for the usual spellings of them, else None."""
    return _SPLIT_NAMES.get(text.strip().casefold())


def as_pixels(image: Any, where: str) -> np.ndarray:
    """Return an image array as uint8 RGB (height, width, 3).

    Args:
        image: (h, w), (h, w, 1), (h, w, 3) or (h, w, 4); integers or floats in 0..255. Or an image
            of Pillow, of any mode.
        where: named in the error.

    Raises:
        DataError: `data.shape` or `data.range`; floats that never exceed 1 are taken for
            already scaled images and refused. `data.unreadable` of Pillow's.
    """
    if isinstance(image, Image.Image):  # as an array a palette's would be its indices
        return decode.of_pillow(image, where)
    if isinstance(image, str | bytes | os.PathLike):
        raise DataError(
            "data.shape",
            "a file where pixels are needed",
            where=where,
            fix="give a CSV file of path and label, or read it: PIL.Image.open(path)",
        )
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise DataError(
            "data.shape",
            f"an image has shape {image.shape}; (height, width), or (height, width, channels) "
            "with 1, 3 or 4 channels, is needed",
            where=where,
            fix="put the channels last, as numpy.moveaxis(image, 0, -1) does"
            if image.ndim == 3 and image.shape[0] in (1, 3, 4)
            else None,
        )
    image = to_uint8(image, where)
    if image.shape[2] == 4:  # over white, as the decoder does it
        alpha = image[..., 3:].astype(np.uint16)
        image = ((image[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image


def to_uint8(image: np.ndarray, where: str) -> np.ndarray:
    """Return one image or many as uint8; raises DataError `data.range` as `as_pixels` does."""
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind not in "uifb":
        raise DataError("data.range", f"images of type {image.dtype} are not numbers", where=where)
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 255):  # also true of NaN
        raise DataError(
            "data.range",
            f"pixels lie in {low:g}..{high:g}; raw RGB in 0..255 is needed",
            where=where,
            fix="give the images as they were before any preprocessing",
        )
    if np.issubdtype(image.dtype, np.floating) and 0 < high <= 1:
        raise DataError(
            "data.range",
            "pixels lie in 0..1: the images are already scaled; raw RGB in 0..255 is needed",
            where=where,
            fix="multiply the images by 255, or give them as uint8",
        )
    return np.rint(image).astype(np.uint8) if image.dtype != bool else image * np.uint8(255)
