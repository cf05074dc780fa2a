"""Does what was exported answer as the model did? Asked with real images, for any format."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ExportError, UsageError

if TYPE_CHECKING:
    from ..transfer.classifier import Classifier


@dataclass(frozen=True)
class Photos:
    """What an export is asked about, and the right answers.

    Attributes:
        files: contents of image files.
        prepared: the same as the model takes them, float32 `(n, size, size, 3)` in 0..255.
        expected: the classifier's probabilities `(n, classes)`.
    """

    files: Sequence[bytes]
    prepared: np.ndarray
    expected: np.ndarray

    @classmethod
    def of(cls, classifier: Classifier, images: Sequence[bytes | Path]) -> Photos:
        """Ask the classifier about contents of image files, or files.

        Raises:
            UsageError: `export.no-images`. DataError: as `decode` does, naming the file.
        """
        from ..data.pipeline import load_image

        if not images:
            raise UsageError(
                "export.no-images",
                "an export is checked on real images, and none were given",
                fix="give some test images",
            )
        prepared = np.stack([load_image(image, classifier.preprocess) for image in images])
        files = [image if isinstance(image, bytes) else image.read_bytes() for image in images]
        return cls(files, prepared, classifier.probabilities(prepared))


# Yields probabilities `(k, classes)` of the next k images, None for one that it cannot read.
Answer = Callable[[Photos], Iterator[np.ndarray | None]]
# From pixels `(n, size, size, 3)` to probabilities `(n, classes)`.
Ask = Callable[[np.ndarray], np.ndarray]


def in_batches(ask: Ask, images: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """Ask about `batch` images at a time; the last ones are filled up by repetition."""
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        yield ask(np.resize(part, (batch, *part.shape[1:])))[: len(part)]


def by_pixels(ask: Ask, batch: int | None) -> dict[str, Answer]:
    """Return the ways of asking a model of prepared images: by its batch, or by 1 and by 3."""

    def by(n: int) -> Answer:
        return lambda photos: in_batches(ask, photos.prepared, n)

    return {f"batch {n}": by(n) for n in ([batch] if batch else [1, 3])}


def check(
    photos: Photos, answers: Mapping[str, Answer], task: str, tolerance: float | None
) -> dict[str, Any]:
    """Compare every way of asking an exported model with what was expected.

    Args:
        photos: the images, with the right answers.
        answers: the ways, such as `{"bytes": ask_with_the_file, "pixels": ask_with_pixels}`.
        task, tolerance: see `compare`.

    Returns:
        `{"passed", "tolerance", "n", "max_difference", "top1_agreement", "latency_ms", "ways":
        {way: figures of `compare` and latency_ms}, "unreadable": {way: number of images that
        it refused}}`; a latency is the median, ms an image, the first way's for the whole.

    Raises:
        ExportError: `export.parity` if no image was read.
    """
    ways: dict[str, dict[str, Any]] = {}
    unreadable = {}
    for way, answer in answers.items():
        next(answer(photos))  # what is done once, as tracing, is not timed
        rows: list[np.ndarray | None] = []
        seconds = []
        clock = time.perf_counter()
        for part in answer(photos):
            found = [None] if part is None else list(part)
            seconds.append((time.perf_counter() - clock) / len(found))
            rows += found
            clock = time.perf_counter()
        read = [i for i, row in enumerate(rows) if row is not None]
        unreadable[way] = len(rows) - len(read)
        if read:
            got = np.stack([row for row in rows if row is not None])
            ways[way] = compare(photos.expected[read], got, task, tolerance)
            ways[way]["latency_ms"] = round(1e3 * float(np.median(seconds)), 3)
    if not ways:
        raise ExportError("export.parity", f"it could read none of the {len(photos.files)} images")
    return {
        "passed": all(figures["passed"] for figures in ways.values()),
        "tolerance": tolerance,
        "n": len(photos.files),
        "max_difference": max(figures["max_difference"] for figures in ways.values()),
        "top1_agreement": min(figures["top1_agreement"] for figures in ways.values()),
        "latency_ms": next(iter(ways.values()))["latency_ms"],
        "ways": ways,
        "unreadable": unreadable,
    }


def compare(
    expected: np.ndarray, found: np.ndarray, task: str, tolerance: float | None
) -> dict[str, Any]:
    """Compare two sets of probabilities `(n, classes)`.

    Passed means: no probability differs by more than `tolerance`, and no decision differs but
    those that were a tie within it. The decision is the likeliest class, or for a multilabel
    task each class above 0.5. Without a tolerance (None) any numbers pass, NaN never.

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
    if tolerance is None:
        passed = bool(np.isfinite(largest))
    else:
        passed = largest <= tolerance and not (~same & (margin > tolerance)).any()
    return {
        "passed": bool(passed),
        "n": len(expected),
        "max_difference": largest,
        "top1_agreement": float(same.mean()),
    }


def rejected(figures: Mapping[str, Any], where: object) -> ExportError:
    """Return the error for figures that did not pass."""
    lost = figures.get("accuracy")
    if lost and not lost["passed"]:
        return ExportError(
            "export.accuracy",
            f"{figures['quantize']} loses {lost['drop']:.1f} points of accuracy on {lost['n']} "
            f"validation photos ({lost['float']:.1%} -> {lost['quantized']:.1%}), more than "
            f"{lost['max_drop']:g}",
            where=where,
            fix="--quantize fp16, or raise --max-drop if you can live with that",
        )
    agree, n = figures["top1_agreement"], figures["n"]
    limit = "any number" if figures["tolerance"] is None else f"{figures['tolerance']:.0e}"
    return ExportError(
        "export.parity",
        f"{figures['max_difference']:.1e} > {limit}, the largest difference of "
        f"a probability on {n} images ({agree:.1%} same answer)",
        where=where,
        fix="use the Keras model, or raise --tolerance if you can live with that",
    )
