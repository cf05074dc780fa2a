"""Shipping a classifier: one writer a format, each checked against the Keras model.

A format is one file here with a function `writer(classifier, path, *, images, tolerance) ->
parity figures`, and one row in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError, nearest
from .savedmodel import savedmodel

if TYPE_CHECKING:
    from ..transfer.classifier import Classifier

__all__ = ["FORMATS", "export", "savedmodel", "writer"]

FORMATS: dict[str, Callable[..., dict]] = {"savedmodel": savedmodel}
_PLANNED = ("keras", "onnx", "tflite")


def writer(format: str) -> Callable[..., dict]:
    """Return the function that writes a format: ask before training, not two hours later.

    Raises:
        UsageError: `export.format` for a format that is unknown or not available yet.
    """
    if format in FORMATS:
        return FORMATS[format]
    if format in _PLANNED:
        message = f"this version of dlzoo does not write {format} yet"
    else:
        message = f"unknown export format {format!r}{nearest(format, FORMATS)}"
    raise UsageError("export.format", message, fix=f"available: {', '.join(FORMATS)}")


def export(
    classifier: Classifier,
    path: Path | str,
    format: str = "savedmodel",
    *,
    images: Sequence[bytes],
    tolerance: float = 1e-3,
) -> dict:
    """Write the classifier in one format and check it on real images.

    Args:
        classifier: what is exported.
        path: of the file or directory to write; it must not exist.
        format: one of `FORMATS`.
        images: contents of image files (JPEG, PNG, ...) that both models are asked about.
        tolerance: largest difference of a probability that is accepted.

    Returns:
        The parity figures, see `parity.compare`.

    Raises:
        UsageError: `export.format`, `export.exists`, `export.no-images`.
        ExportError: `export.parity`; what was written is kept as `<path>.rejected`.
    """
    return writer(format)(classifier, path, images=images, tolerance=tolerance)
