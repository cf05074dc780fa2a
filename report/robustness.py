"""Does the answer stay the same when the photo is a little worse?"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .metrics import columns, taken, wilson

if TYPE_CHECKING:
    from ..data import Data
    from ..transfer.classifier import Classifier

PHOTOS = 200  # at most
CONVERTS = 10.0  # seconds below which a conversion for the fast engine would take most of them
_BATCH = 8  # photos between two looks at the clock


def _blurred(image: np.ndarray) -> np.ndarray:
    from PIL import Image, ImageFilter

    radius = image.shape[0] / 112  # 2 pixels at 224
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def _jpeg(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    Image.fromarray(image).save(buffer := io.BytesIO(), "jpeg", quality=30)
    return np.asarray(Image.open(buffer))


def _brightness(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: np.clip(image * factor, 0, 255).astype("uint8")


# name -> what happens to an image (size, size, 3), uint8, as the model is given it
CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored": lambda image: image[:, ::-1],
    "blurred": _blurred,
    "JPEG quality 30": _jpeg,
    "30 % darker": _brightness(0.7),
    "30 % brighter": _brightness(1.3),
}


def measure(
    classifier: Classifier, data: Data, split: str, answers: np.ndarray, seconds: float
) -> dict[str, Any]:
    """Ask again about photos that were changed.

    Args:
        answers: the probabilities `(n, classes)` for the photos of the split as they are.
        seconds: after which no more photos are taken; there are at most 200, and at least 8.

    Returns:
        n; accuracy of the n photos as they are; rows of change, accuracy with its 95 % interval
        `ci`, and `same`, the share of photos whose answer is what it was. Mirroring is left out
        where it makes no sense.
    """
    from ..data.pipeline import load_image

    began, records, task = time.perf_counter(), data.records(split), classifier.task
    # any first part of them is a fair sample
    order = np.random.default_rng(0).permutation(len(records))[:PHOTOS]
    changes = {name: change for name, change in CHANGES.items() if data.flip or name != "mirrored"}
    found: dict[str, list[np.ndarray]] = {name: [] for name in changes}
    ask, done = _asking(classifier, len(order) * len(changes), seconds), 0
    while done < len(order) and (not done or time.perf_counter() - began < seconds):
        chosen = order[done : done + _BATCH]
        pixels = (records[i].pixels(data.max_pixels) for i in chosen)
        photos = [load_image(p, classifier.preprocess).astype("uint8") for p in pixels]
        for name, change in changes.items():
            changed = np.stack([change(photo) for photo in photos])
            found[name].append(ask(changed))
        done += len(chosen)
    order = order[:done]
    true = taken(columns(data.labels(split), task)[order], task)
    before = taken(answers[order], task)
    after = {name: taken(np.concatenate(parts), task) for name, parts in found.items()}
    return {
        "n": done,
        "accuracy": _share(before, true),
        "rows": [
            {
                "change": name,
                "accuracy": _share(now, true),
                "ci": wilson(_share(now, true) * done, done),
                "same": _share(now, before),
            }
            for name, now in after.items()
        ],
    }


def _asking(
    classifier: Classifier, images: int, seconds: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Return what gives the probabilities of photos, on the fast engine if there is the time."""
    from ..transfer import engine
    from ..transfer.classifier import to_probabilities
    from ..zoo import graph

    if seconds < CONVERTS:
        return classifier.probabilities
    run = engine.frozen(classifier.model, work=graph.gmacs(classifier.model) * images)
    return lambda photos: to_probabilities(run(photos)[0], classifier.task)


def _share(one: np.ndarray, other: np.ndarray) -> float:
    return float((one == other).all(1).mean())
