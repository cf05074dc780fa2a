"""The graph that is shipped: decoding, resizing, the network and its answer in one tf.Module."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from ..data.resize import resize_rule
from .decode import decode

if TYPE_CHECKING:
    from ..transfer.classifier import Classifier


def inputs(batch: int | None) -> dict[str, tf.TensorSpec]:
    """Return what each signature takes; None: any number of images."""
    images = (batch, None, None, 3)
    return {
        "serving_default": tf.TensorSpec(images, tf.float32, "images"),
        "serving_uint8": tf.TensorSpec(images, tf.uint8, "images"),
        "bytes": tf.TensorSpec((batch,), tf.string, "image_bytes"),
    }


class Serving(tf.Module):
    """A classifier that needs nothing but TensorFlow once it is saved.

    Args:
        classifier: float32 throughout; its variables are shared, not copied.
        batch: images a call takes; None: any number.
    """

    def __init__(self, classifier: Classifier, batch: int | None = None):
        super().__init__("dlzoo")
        self._inputs = inputs(batch)
        self._task, self._rule = classifier.task, classifier.preprocess
        self._names = tf.constant(classifier.classes)
        # The variables alone: the Keras model as an attribute would drag its Python side along.
        self._weights = [variable.value for variable in classifier.model.variables]
        model = classifier.model
        self._one = tf.TensorSpec((self._rule.size, self._rule.size, 3), tf.float32)
        # Functions of their own, so that the large graphs are stored once, not for each input.
        self._network: Callable[..., Any] = tf.function(
            lambda images: model(images, training=False),
            input_signature=[tf.TensorSpec((None, *self._one.shape), tf.float32)],
            autograph=False,
        )
        self._read: Callable[..., Any] = tf.function(
            lambda data: resize_rule(decode(data), self._rule),
            input_signature=[tf.TensorSpec((), tf.string)],
            autograph=False,
        )

    @tf.function(autograph=False)
    def __call__(self, batch):
        """Return the probabilities (n, classes) of images or image files.

        Args:
            batch: RGB images (n, height, width, 3) in 0..255, float32 or uint8; or a 1-D
                string tensor of the contents of image files. Numbers that were scaled before
                are an error.
        """
        if batch.dtype == tf.float32:
            _check_raw(batch)
        prepared = tf.map_fn(self._prepare, batch, fn_output_signature=self._one)
        logits = self._network(prepared)
        if self._task == "multiclass":
            return tf.nn.softmax(logits)
        if self._task == "binary":
            logits = tf.concat([-logits, logits], 1)
        return tf.sigmoid(logits)

    def _prepare(self, image):
        return self._read(image) if image.dtype == tf.string else resize_rule(image, self._rule)

    @tf.function(input_signature=[], autograph=False)
    def class_names(self):
        """Return the names (classes,) in the order of the probabilities."""
        return self._names

    def signatures(self) -> dict[str, Any]:
        """Return what TensorFlow Serving offers: the functions above, with named outputs.

        Besides `probabilities` they give the likeliest class as `index` and `label`, but for
        a multilabel task, which has no likeliest one.
        """

        def answer(batch):
            result = {"probabilities": self(batch)}
            if self._task != "multilabel":
                result["index"] = tf.argmax(result["probabilities"], axis=1)
                result["label"] = tf.gather(self._names, result["index"])
            return result

        named = {
            name: tf.function(answer, input_signature=[spec], autograph=False)
            for name, spec in self._inputs.items()
        }
        named["class_names"] = tf.function(
            lambda: {"class_names": self._names}, input_signature=[], autograph=False
        )
        return named


def _check_raw(images: tf.Tensor) -> None:
    """Let the graph fail on pixels that are normalised already, as `serve.tfserving` refuses them.

    Those of 0..1 look like a black image with a broken number in it.
    """
    low, high = tf.reduce_min(images), tf.reduce_max(images)
    broken = tf.reduce_any(images != tf.floor(images))
    raw = (low >= 0) & (high <= 255) & ((high > 1) | ~broken)  # all false for NaN
    empty = tf.equal(tf.size(images), 0)
    tf.debugging.Assert(
        raw | empty, ["pixels lie in", low, "..", high, "; raw RGB in 0..255 is needed"]
    )
