"""Images and labels in the IDX format of MNIST, such as those of Fashion-MNIST.

A file is two zero bytes, the type of its numbers, the number of its axes, the length of each axis
as a big-endian 32-bit number, then the numbers (http://yann.lecun.com/exdb/mnist). Four files,
packed with gzip, are a data set.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from ..errors import DataError
from .memory import DIGITS_BORDER
from .records import Record, Source, as_pixels

FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
MOST = 2**28  # bytes that come out of one file; the largest of Fashion-MNIST has 2**25.5
_UINT8 = 8


def fashion_folder() -> Path | None:
    """Return where Fashion-MNIST lies on this machine, or None.

    Looked for where `keras.datasets.fashion_mnist.load_data()` keeps it, and where Debian's package
    `dataset-fashion-mnist` puts it.
    """
    keras = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    places = (keras / "datasets" / "fashion-mnist", Path("/usr/share/datasets/fashion-mnist"))
    return next((p for p in places if (p / _file("train", "images")).is_file()), None)


def read_idx(folder: Path, name: str, classes: tuple[str, ...]) -> Source:
    """Return the catalogue of a folder of IDX files; its own training and test parts are kept.

    Images of 28 pixels get a black border of 2, as the digits do, so that the usual centre crop of
    0.875 cuts nothing off.

    Raises:
        DataError: `data.idx`, a file is missing, damaged, or of another shape than its fellow.
    """
    records = []
    for part, split in (("train", "train"), ("t10k", "test")):
        images = _read(folder / _file(part, "images"), 3)
        labels = _read(folder / _file(part, "labels"), 1)
        if len(images) != len(labels) or labels.max(initial=0) >= len(classes):
            raise DataError(
                "data.idx",
                f"{len(images)} images and {len(labels)} labels from 0 to {labels.max(initial=0)} "
                f"of {len(classes)} classes do not fit",
                where=folder,
            )
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            pixels = as_pixels(np.pad(image, DIGITS_BORDER), name)
            records.append(Record(f"{name}/{split}/{i:06d}", (classes[label],), pixels, split))
    return Source(name, records, classes=classes)


def _file(part: str, kind: str) -> str:
    return f"{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte.gz"


def _read(path: Path, axes: int) -> np.ndarray:
    """Return the numbers of a file, uint8 with so many axes."""
    try:
        with gzip.open(path) as file:
            head = file.read(4 + 4 * axes)
            shape = tuple(np.frombuffer(head[4:], ">u4").tolist())
            if head[:4] != bytes([0, 0, _UINT8, axes]) or len(shape) != axes:
                raise ValueError("it does not begin as an IDX file of bytes does")
            if (size := math.prod(shape)) > MOST:
                raise ValueError(f"{size:,} numbers are more than {MOST:,}")
            data = file.read(size + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            "data.idx", f"it cannot be read: {error}", where=path, fix="fetch the file again"
        ) from error
    if len(data) != size:
        kind = "more" if len(data) > size else "fewer"
        raise DataError("data.idx", f"{kind} numbers than it says", where=path)
    return np.frombuffer(data, np.uint8).reshape(shape)
