"""Where a network looked: Grad-CAM (arXiv:1610.02391) from a tap of its flat graph."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import files
from ..errors import UsageError, nearest
from ..zoo import graph

if TYPE_CHECKING:
    from ..transfer.classifier import Classifier

_BATCH = 9  # the gradient holds every map of a batch
_STRENGTH = 0.6  # how much of the photo the hottest place hides


@dataclass(frozen=True)
class Explanation:
    """Why a photo got an answer.

    Attributes:
        label: the class that is explained. probability: what the classifier gave it.
        image: the photo as the model saw it, uint8 `(size, size, 3)`.
        heat: what spoke for the class and where, float32 `(size, size)`; 1 is the most, and 0
            everywhere if nothing did.
    """

    label: str
    probability: float
    image: np.ndarray
    heat: np.ndarray

    def overlay(self) -> np.ndarray:
        """Return the photo with the heat laid over it, uint8 `(size, size, 3)`."""
        from matplotlib import colormaps

        share = _STRENGTH * self.heat[..., None]
        colours = 255 * colormaps["turbo"](0.9 * self.heat)[..., :3]
        return np.rint((1 - share) * self.image + share * colours).astype("uint8")

    def save(self, path: Path | str) -> None:
        """Write the overlay as a PNG file."""
        with files.replacing(path, "wb") as file:
            file.write(self._repr_png_())

    def _repr_png_(self) -> bytes:  # how a notebook shows it
        from PIL import Image

        Image.fromarray(self.overlay()).save(buffer := io.BytesIO(), "png")
        return buffer.getvalue()


def explain(
    classifier: Classifier,
    images: np.ndarray,
    labels: Sequence[str] | None = None,
    tap: str | None = None,
) -> list[Explanation]:
    """Show what spoke for a class in images, and where.

    The channels of a feature map are weighted by how the logit of the class grows with them on
    average, summed up, and what speaks against the class is left out. A head that pools several
    taps is explained by one of them; an ensemble by the mean over its members.

    Args:
        images: as the model takes them, `(n, size, size, 3)` in 0..255.
        labels: the class of each that is explained; default: the one it is taken for.
        tap: whose map is used; default: the last one.

    Raises:
        UsageError: `explain.label`, `explain.tap`, or `explain.no-map` for a network that has
            no feature maps.
    """
    from ..transfer.classifier import to_probabilities

    classes = classifier.classes
    for label in labels or ():
        if label not in classes:
            raise UsageError("explain.label", f"no class {label!r}{nearest(label, classes)}")
    maps, logits, found = _model(classifier, tap), [], []
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH].astype("float32")
        asked = labels[start : start + _BATCH] if labels else None
        chosen = None if asked is None else np.array([classes.index(label) for label in asked])
        each = _heat(maps, part, chosen, classifier.task)
        logits.append(each[0])
        found += each[1]
    if not len(images):
        return []
    probabilities = to_probabilities(np.concatenate(logits), classifier.task)
    places = [classes.index(x) for x in labels] if labels else probabilities.argmax(1)
    return [
        Explanation(classes[at], float(row[at]), np.clip(image, 0, 255).astype("uint8"), heat)
        for at, row, image, heat in zip(places, probabilities, images, found, strict=True)
    ]


def _model(classifier: Classifier, tap: str | None):
    """Return the model that gives a tap's map and the logits."""
    import keras

    model = classifier.model
    taps = {name: t for name, t in graph.taps(model).items() if len(t.shape) == 4}
    if not taps:
        raise UsageError("explain.no-map", f"{model.name} has no feature maps to look at")
    if tap is not None and tap not in taps:
        raise UsageError("explain.tap", f"no tap {tap!r}{nearest(tap, taps)}", fix=", ".join(taps))
    # of an ensemble the last tap of each member: m1.C5, m2.C5, ...
    last = {name.rpartition(".")[0]: name for name in taps}
    chosen = [tap] if tap else list(last.values())
    return keras.Model(model.input, [[taps[name] for name in chosen], model.output])


def _heat(model, images: np.ndarray, chosen: np.ndarray | None, task: str):
    """Return the logits `(n, k)` of some images, and for each the heat of one class."""
    import tensorflow as tf
    from PIL import Image

    # Not traced: a few photos are explained in less time than a graph takes to make.
    with tf.GradientTape() as tape:
        tape.watch(x := tf.constant(images))
        maps, logits = model(x, training=False)
        if chosen is None:
            chosen = logits.numpy().argmax(1) if task != "binary" else logits.numpy()[:, 0] > 0
        if task == "binary":  # one logit, which speaks for the second class
            score = tf.where(tf.constant(chosen > 0), logits[:, 0], -logits[:, 0])
        else:
            score = tf.gather(logits, chosen, batch_dims=1)
    size = images.shape[2], images.shape[1]
    found = np.zeros(images.shape[:3], "float32")
    for each, slopes in zip(maps, tape.gradient(score, maps), strict=True):
        # the rows behind those of the images are of their mirror images
        slope = tf.cast(slopes, tf.float32).numpy()[: len(images)].mean((1, 2), keepdims=True)
        heat = np.maximum((slope * each.numpy()[: len(images)].astype("float32")).sum(-1), 0)
        heat /= np.maximum(heat.max((1, 2), keepdims=True), 1e-12)
        found += [
            np.asarray(Image.fromarray(h).resize(size, Image.Resampling.BICUBIC)) for h in heat
        ]
    return logits.numpy(), list(np.clip(found / len(maps), 0, 1))
