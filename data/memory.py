"""Sources from Python: the embedded digits, NumPy arrays and tf.data datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DataError
from .records import SPLITS, Blob, Record, Source, Spill, as_pixels, split_name, to_uint8

DIGITS_SIZE, DIGITS_BORDER = 28, 2


def read_digits() -> Source:
    """Return scikit-learn's 1,797 handwritten digits (8 x 8, 0..16) as 32 x 32 RGB.

    They are enlarged to 28 x 28 with bicubic interpolation and get a black border of 2 pixels,
    so that the usual centre crop of 0.875 cuts nothing off. They are not to be mirrored.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    records = []
    for i, (image, target) in enumerate(zip(digits.images, digits.target, strict=True)):
        small = Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8))
        large = small.resize((DIGITS_SIZE, DIGITS_SIZE), Image.Resampling.BICUBIC)
        pixels = as_pixels(np.pad(np.asarray(large), DIGITS_BORDER), "digits")
        records.append(Record(f"digits/{i:04d}", (str(target),), pixels))
    return Source("digits", records, flip=False)


def read_python(data: Any, classes: Sequence[str] | None) -> Source:
    """Return the catalogue of `(images, labels)`, a tf.data.Dataset, or a dict of splits.

    Args:
        data: `(x, y)` with x (n, h, w), (n, h, w, 1), (n, h, w, 3) or a list of images of any
            sizes, in 0..255; y integers, names, one-hot (n, k) or multi-hot (n, k). Or a
            dataset of (image, label), batched or not. Or `{"train": ..., "val": ...}`.
        classes: names of the classes, by index.

    Raises:
        DataError: `data.shape`, `data.range`, `data.labels`, `data.source`.
    """
    parts = dict(data) if isinstance(data, Mapping) else {None: data}
    records: list[Record] = []
    labels: list[np.ndarray] = []
    for name, part in parts.items():
        split = None if name is None else split_name(str(name))
        if name is not None and split is None:
            raise DataError(
                "data.split", f"{name!r} is no split", fix=f"use the names {', '.join(SPLITS)}"
            )
        read = _arrays if isinstance(part, tuple | list) else _dataset
        images, y = read(part)
        prefix = split or "image"
        records += [Record(f"{prefix}/{i:06d}", (), x, split) for i, x in enumerate(images)]
        labels.append(y)
    if not records:
        raise DataError("data.no-classes", "there are no images")
    if len({y.shape[1:] for y in labels}) > 1:
        raise DataError("data.labels", "the splits have labels of different shapes")
    names, found, multilabel = _names(np.concatenate(labels), classes)
    for record, label in zip(records, found, strict=True):
        record.labels = label
    return Source("arrays", records, classes=names, multilabel=multilabel)


def _arrays(part: Any) -> tuple[Sequence[np.ndarray | Blob], np.ndarray]:
    if len(part) != 2:
        raise DataError("data.source", f"(images, labels) is needed, not {len(part)} things")
    images, labels = part[0], _labels(part[1])
    if len(images) != len(labels):
        raise DataError("data.labels", f"{len(images)} images but {len(labels)} labels")
    if isinstance(images, np.ndarray) and images.dtype != object and images.size:
        images = to_uint8(images, "images")
        if images.max() == 1:
            raise DataError(
                "data.range",
                "all pixels are 0 or 1; raw RGB in 0..255 is needed",
                where="images",
                fix="multiply the images by 255",
            )
    return [as_pixels(image, f"image {i}") for i, image in enumerate(images)], labels


def _dataset(part: Any) -> tuple[Sequence[np.ndarray | Blob], np.ndarray]:
    """Read a dataset once; the images are set aside on disk."""
    import tensorflow as tf

    spec = getattr(part, "element_spec", None)
    if not (isinstance(spec, tuple) and all(isinstance(each, tf.TensorSpec) for each in spec)):
        raise DataError(
            "data.source",
            f"cannot read data from {type(part).__name__}"
            + (f" of {spec}"[:200] if spec is not None else ""),
            fix="give a path, (images, labels), a tf.data.Dataset of (image, label), or a dict",
        )
    if len(spec) != 2:
        raise DataError(
            "data.source",
            f"(image, label) is needed, not {len(spec)} things",
            fix="weights of images are not taken; class_weight balances classes",
        )
    if spec[0].shape.rank == 4:
        part = part.unbatch()
    if part.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise DataError("data.source", "the dataset never ends", fix="give it without repeat()")
    spill, images, labels = Spill(), list[Blob](), list[Any]()
    try:
        for image, label in part.as_numpy_iterator():
            images.append(spill.add(as_pixels(image, f"image {len(images)}")))
            labels.append(label)
    except tf.errors.OpError as error:
        raise DataError(
            "data.source",
            f"image {len(images)} of the dataset cannot be computed: {error.message[:200]}",
        ) from error
    return images, _labels(labels)


def _labels(given: Any) -> np.ndarray:
    """Return labels as an array; those of bytes are names in UTF-8, and none may be missing."""
    if isinstance(given, np.ndarray) and given.dtype.kind not in "SO":
        return given
    labels = [each.decode() if isinstance(each, bytes) else each for each in given]
    # what tables hold where a cell is empty
    missing = [i for i, each in enumerate(labels)
               if type(each).__name__ in ("NoneType", "NAType", "NaTType")
               or (isinstance(each, float | np.floating) and np.isnan(each))]  # fmt: skip
    if missing:
        raise DataError(
            "data.labels",
            f"{len(missing)} images have no label, such as image {missing[0]}",
            fix="leave them out",
        )
    try:
        return np.asarray(labels)
    except ValueError:
        raise DataError(
            "data.labels",
            "labels are names, class numbers, or rows of zeros and ones of one length",
            fix="for several names an image: rows (n, classes) and classes=, or a CSV with a|b",
        ) from None


def _names(
    y: np.ndarray, classes: Sequence[str] | None
) -> tuple[tuple[str, ...], list[tuple[str, ...]], bool]:
    """Return the class names, the labels of each image, and whether there may be many."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2:
        if not np.isin(y, (0, 1)).all():
            raise DataError("data.labels", "labels (n, classes) must hold zeros and ones only")
        names = _checked(classes, y.shape[1])
        multilabel = not (y.sum(1) == 1).all()
        return names, [tuple(names[k] for k in np.flatnonzero(row)) for row in y], multilabel
    if y.ndim != 1:
        raise DataError("data.labels", f"labels have shape {y.shape}; (n,) or (n, classes) needed")
    if y.dtype.kind in "USO":
        values = [str(label) for label in y]
        names = tuple(classes) if classes else tuple(sorted(set(values)))
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise DataError("data.labels", f"the label {unknown[0]!r} is not one of the classes")
        return names, [(value,) for value in values], False
    if not np.array_equal(y, np.rint(y)) or y.min() < 0:
        raise DataError("data.labels", "labels must be class numbers from 0 on, or names")
    y = y.astype(int)
    if classes is None:  # only numbers that occur are classes
        return tuple(map(str, sorted(set(y.tolist())))), [(str(k),) for k in y], False
    names = _checked(classes, max(len(classes), int(y.max()) + 1))
    return names, [(names[k],) for k in y], False


def _checked(classes: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if classes is None:
        return tuple(map(str, range(count)))
    if len(classes) != count:
        raise DataError("data.labels", f"{len(classes)} class names for {count} classes")
    return tuple(map(str, classes))
