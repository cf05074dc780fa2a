"""Does what was exported answer as the model did? Asked with real images, for any format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ExportError, UsageError

if TYPE_CHECKING:
    from ..transfer.classifier import Classifier

# Returns probabilities `(1, classes)` of one image, None if it cannot read that kind of file.
Answer = Callable[[bytes], np.ndarray | None]


def reference(classifier: Classifier, images: Sequence[bytes]) -> np.ndarray:
    """Return the classifier's probabilities `(n, classes)` of the contents of image files.

    Raises:
        UsageError: `export.no-images`.
    """
    from ..data.pipeline import load_image

    if not images:
        raise UsageError(
            "export.no-images",
            "an export is checked on real images, and none were given",
            fix="give some test images",
        )
    prepared = np.stack([load_image(image, classifier.preprocess) for image in images])
    return classifier.probabilities(prepared)


def check(
    expected: np.ndarray,
    answers: Mapping[str, Answer],
    images: Sequence[bytes],
    task: str,
    tolerance: float,
) -> dict:
    """Compare every way of asking an exported model with what was expected.

    Args:
        expected: from `reference`.
        answers: the ways, such as `{"bytes": ask_with_the_file, "pixels": ask_with_pixels}`.
        images: contents of image files.
        task, tolerance: see `compare`.

    Returns:
        `{"passed", "tolerance", "n", "max_difference", "top1_agreement", "ways": {way: figures
        of `compare`}, "unreadable": {way: number of images that it refused}}`.

    Raises:
        ExportError: `export.parity` if no image was read.
    """
    ways, unreadable = {}, {}
    for way, answer in answers.items():
        found = [answer(image) for image in images]
        read = [i for i, row in enumerate(found) if row is not None]
        unreadable[way] = len(images) - len(read)
        if read:
            rows = np.concatenate([row for row in found if row is not None])
            ways[way] = compare(expected[read], rows, task, tolerance)
    if not ways:
        raise ExportError("export.parity", f"it could read none of the {len(images)} images")
    return {
        "passed": all(figures["passed"] for figures in ways.values()),
        "tolerance": tolerance,
        "n": len(images),
        "max_difference": max(figures["max_difference"] for figures in ways.values()),
        "top1_agreement": min(figures["top1_agreement"] for figures in ways.values()),
        "ways": ways,
        "unreadable": unreadable,
    }


def compare(expected: np.ndarray, found: np.ndarray, task: str, tolerance: float) -> dict:
    """Compare two sets of probabilities `(n, classes)`.

    Passed means: no probability differs by more than `tolerance`, and no decision differs but
    those that were a tie within it. The decision is the likeliest class, or for a multilabel
    task each class above 0.5. NaN never passes.

    Returns:
        `{"passed", "n", "max_difference", "top1_agreement"}`; the agreement counts ties as
        disagreement, as a user would see them.
    """
    differ = np.abs(expected.astype("float64") - found)
    largest = float(np.where(np.isfinite(differ), differ, np.inf).max())
    if task == "multilabel":
        same = (expected > 0.5) == (found > 0.5)
        margin = np.abs(expected - 0.5)
    else:
        rows, now = np.arange(len(expected)), found.argmax(1)
        same = expected.argmax(1) == now
        margin = expected.max(1) - expected[rows, now]
    flipped = bool((~same & (margin > tolerance)).any())
    return {
        "passed": largest <= tolerance and not flipped,
        "n": len(expected),
        "max_difference": largest,
        "top1_agreement": float(same.mean()),
    }


def rejected(figures: Mapping, where: object) -> ExportError:
    """Return the error for figures that did not pass."""
    agree, n = figures["top1_agreement"], figures["n"]
    return ExportError(
        "export.parity",
        f"{figures['max_difference']:.1e} > {figures['tolerance']:.0e}, the largest difference of "
        f"a probability on {n} images ({agree:.1%} same answer)",
        where=where,
        fix="use the Keras model, or raise --tolerance if you can live with that",
    )
