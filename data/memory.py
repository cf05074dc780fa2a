"""Sources from Python: the embedded digits, NumPy arrays and tf.data datasets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DataError
from .records import SPLITS, Blob, Record, Source, Spill, as_pixels, split_name, to_uint8

DIGITS_SIZE, DIGITS_BORDER = 28, 2
_NUMBERS = "biuf"  # kinds of NumPy's types


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
            sizes, in 0..255, or of Pillow's; y integers, names, one-hot (n, k) or multi-hot (n, k).
            Or a dataset of (image, label), batched or not. Or `{"train": ..., "val": ...}`.
        classes: names of the classes, by index. None: the `class_names` of the datasets, if any.

    Raises:
        DataError: `data.shape`, `data.range`, `data.labels`, `data.source`.
    """
    parts = dict(data) if isinstance(data, Mapping) else {None: data}
    classes = _class_names(parts.values()) if classes is None else tuple(map(str, classes))
    if len(set(classes or ())) < len(classes or ()):
        raise DataError("data.labels", f"two classes have one name: {', '.join(classes or ())}")
    records: list[Record] = []
    labels: list[np.ndarray] = []
    splits: dict[str | None, Any] = {}
    for name, part in parts.items():
        split = None if name is None else split_name(str(name))
        if name is not None and split is None:
            raise DataError(
                "data.split", f"{name!r} is no split", fix=f"use the names {', '.join(SPLITS)}"
            )
        if splits.setdefault(split, name) != name:
            raise DataError("data.split", f"{splits[split]!r} and {name!r} stand for one split")
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
    try:
        count = len(images)
    except TypeError:
        raise DataError(
            "data.source",
            f"images are an array or a list, not {type(images).__name__}",
            fix="make a list of what comes one after the other, or a tf.data.Dataset",
        ) from None
    if count != len(labels):
        raise DataError("data.labels", f"{count} images but {len(labels)} labels")
    if isinstance(images, np.ndarray) and images.dtype != object and images.size:
        images = to_uint8(images, "images")
    return list(_pixels(images)), labels


def _pixels(images: Iterable[Any]) -> Iterator[np.ndarray]:
    """Yield images as pixels; raises DataError `data.range` if they are all of 0 and 1."""
    top = 0
    for i, image in enumerate(images):
        pixels = as_pixels(image, f"image {i}")
        top = max(top, int(pixels.max()))
        yield pixels
    if top == 1:
        raise DataError(
            "data.range",
            "all pixels are 0 or 1; raw RGB in 0..255 is needed",
            where="images",
            fix="multiply the images by 255",
        )


def _dataset(part: Any) -> tuple[Sequence[np.ndarray | Blob], np.ndarray]:
    """Read a dataset once; the images are set aside on disk."""
    import tensorflow as tf

    from .pipeline import untuned

    spec = getattr(part, "element_spec", None)
    if not (
        isinstance(part, tf.data.Dataset)
        and isinstance(spec, tuple)
        and all(isinstance(each, tf.TensorSpec) for each in spec)
    ):
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

    def pictures() -> Iterator[np.ndarray]:
        for image, label in untuned(part).as_numpy_iterator():
            labels.append(label)
            yield image

    try:
        for pixels in _pixels(pictures()):
            images.append(spill.add(pixels))
    except tf.errors.OpError as error:
        raise DataError(
            "data.source",
            f"image {len(images)} of the dataset cannot be computed: {error.message[:200]}",
        ) from error
    return images, _labels(labels)


def _class_names(parts: Iterable[Any]) -> tuple[str, ...] | None:
    """Return the `class_names` that all datasets have (Keras gives them), or None."""
    found = {tuple(map(str, getattr(part, "class_names", None) or ())) for part in parts}
    if len(found - {()}) > 1:
        raise DataError(
            "data.labels",
            "the datasets have different class_names: " + " and ".join(map(str, found - {()})),
            fix="make each with the same class_names=, or else a number means another class",
        )
    return None if () in found or not found else found.pop()


def _labels(given: Any) -> np.ndarray:
    """Return labels as an array; those of bytes are names in UTF-8, and none may be missing."""
    if callable(getattr(given, "numpy", None)):  # a tensor
        given = given.numpy()
    if isinstance(given, np.ndarray) and given.dtype.kind in _NUMBERS and given.ndim:
        return given
    try:
        labels = [each.decode("utf-8", "surrogateescape") if isinstance(each, bytes) else each
                  for each in given]  # fmt: skip
    except TypeError:
        raise _no_labels() from None
    # what tables hold where a cell is empty
    missing = [i for i, each in enumerate(labels)
               if type(each).__name__ in ("NoneType", "NAType", "NaTType")
               or (isinstance(each, float | np.floating) and np.isnan(each))
               or (isinstance(each, str) and not each.strip())]  # fmt: skip
    if missing:
        raise DataError(
            "data.labels",
            f"{len(missing)} images have no label, such as image {missing[0]}",
            fix="leave them out",
        )
    try:
        found = np.asarray(labels)
    except ValueError:
        raise _no_labels() from None
    if found.dtype.kind == "O" and not all(isinstance(each, str | Number) for each in found):
        raise _no_labels()
    return found


def _no_labels() -> DataError:
    return DataError(
        "data.labels",
        "labels are names, class numbers, or rows of zeros and ones of one length",
        fix="for several names an image: rows (n, classes) and classes=, or a CSV with a|b",
    )


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
        names = tuple(classes or sorted(set(values)))
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise DataError("data.labels", f"the label {unknown[0]!r} is not one of the classes")
        return names, [(value,) for value in values], False
    if y.dtype.kind not in _NUMBERS:
        raise _no_labels()
    if not np.array_equal(y, np.rint(y)) or not 0 <= y.min() <= y.max() < 2**31:
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
    return tuple(classes)
