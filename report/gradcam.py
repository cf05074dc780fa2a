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
TAKEN_FOR = -1  # stands for the class that an image is taken for
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
    return Explainer(classifier, tap)(images, labels)


class Explainer:
    """What `explain` does, for one classifier and many calls.

    Args:
        traced: make a graph of it, which takes some seconds and is several times faster than
            operation after operation: for more than a few photos.
    """

    def __init__(self, classifier: Classifier, tap: str | None = None, traced: bool = False):
        import tensorflow as tf

        self.classifier = classifier
        self._gradient = _gradient(_model(classifier, tap), classifier.task)
        if traced:
            size = classifier.preprocess.size
            shapes = (tf.TensorSpec((None, size, size, 3)), tf.TensorSpec((None,), tf.int32))
            traced_ = tf.function(self._gradient, input_signature=shapes, autograph=False)
            self._gradient = traced_.get_concrete_function()

    def __call__(
        self, images: np.ndarray, labels: Sequence[str] | None = None
    ) -> list[Explanation]:
        """Return the explanations of images; see `explain`."""
        from ..transfer.classifier import to_probabilities

        classes, task, found = self.classifier.classes, self.classifier.task, []
        for label in labels or ():
            if label not in classes:
                raise UsageError("explain.label", f"no class {label!r}{nearest(label, classes)}")
        asked = [classes.index(x) for x in labels] if labels else [TAKEN_FOR] * len(images)
        for start in range(0, len(images), _BATCH):
            part = images[start : start + _BATCH].astype("float32")
            logits, heats = self._heat(part, np.array(asked[start : start + _BATCH], "int32"))
            probabilities = to_probabilities(logits, task)
            for i, heat in enumerate(heats):
                at = probabilities[i].argmax() if asked[start + i] < 0 else asked[start + i]
                image = np.clip(part[i], 0, 255).astype("uint8")
                found.append(Explanation(classes[at], float(probabilities[i][at]), image, heat))
        return found

    def _heat(self, images: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the logits `(n, k)` of some images, and for each the heat of one class."""
        import tensorflow as tf
        from PIL import Image

        logits, *found = self._gradient(tf.constant(images), tf.constant(chosen))
        size, way = (images.shape[2], images.shape[1]), Image.Resampling.BICUBIC
        whole = np.zeros(images.shape[:3], "float32")
        for each in zip(*found, strict=True):
            # the rows behind those of the images are of their mirror images
            a_map, slope = (part.numpy()[: len(images)].astype("float32") for part in each)
            heat = np.maximum((slope.mean((1, 2), keepdims=True) * a_map).sum(-1), 0)
            heat /= np.maximum(heat.max((1, 2), keepdims=True), 1e-12)
            whole += [np.asarray(Image.fromarray(h).resize(size, way)) for h in heat]
        return logits.numpy(), list(np.clip(whole / len(found[0]), 0, 1))


def _model(classifier: Classifier, tap: str | None):
    """Return the model that gives the maps that are looked at, as a list, and the logits."""
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


def _gradient(model, task: str):
    """Return what gives logits, maps, and how the logit of a class grows with these.

    It takes images and the number of a class of each, or TAKEN_FOR; maps are a list.
    """
    import tensorflow as tf

    def gradient(images, chosen):
        with tf.GradientTape() as tape:
            tape.watch(images)
            maps, logits = model(images, training=False)
            if task == "binary":  # one logit, which speaks for the second class
                taken = tf.cast(logits[:, 0] > 0, tf.int32)
            else:
                taken = tf.argmax(logits, axis=1, output_type=tf.int32)
            chosen = tf.where(chosen < 0, taken, chosen)
            if task == "binary":
                score = tf.where(chosen > 0, logits[:, 0], -logits[:, 0])
            else:
                score = tf.gather(logits, chosen, batch_dims=1)
        return logits, maps, tape.gradient(score, maps)

    return gradient
