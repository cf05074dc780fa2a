"""Keras' own file: opens with `keras.saving.load_model` where dlzoo is not installed.

It holds built-in layers only (no Lambda, no custom object, safe mode stays on), takes RGB images
`(n, size, size, 3)` in 0..255 and gives probabilities. The description is in the archive.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ExportError
from . import parity
from .artefact import INSIDE, Format, Options, answering
from .snippets import snippet

if TYPE_CHECKING:
    from ..transfer.classifier import Classifier


def _write(classifier: Classifier, path: Path, about: dict[str, Any], options: Options) -> None:
    import keras

    model = answering(classifier)
    if options.batch:
        image = keras.Input(batch_shape=(options.batch, *model.input_shape[1:]), name="image")
        weights = model.get_weights()
        model = keras.models.clone_model(model, input_tensors=image)
        model.set_weights(weights)
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        strange = sorted(set(_strange(json.loads(archive.read("config.json")))))
        if strange:
            raise ExportError(
                "export.custom-object",
                f"plain Keras could not open it: {', '.join(strange)} is no layer of Keras",
                fix="export savedmodel, tflite or onnx",
            )
        archive.writestr(INSIDE, json.dumps(about, indent=2, ensure_ascii=False))


def _strange(config: Any) -> Iterator[str]:
    """Yield the classes in a saved configuration that Keras does not bring or does not trust."""
    if isinstance(config, list):
        config = dict(enumerate(config))
    if not isinstance(config, dict):
        return
    name, module = config.get("class_name"), config.get("module")
    if isinstance(name, str) and "config" in config:
        foreign = module and module.split(".")[0] not in ("keras", "builtins")
        if foreign or name in ("Lambda", "__lambda__", "TFSMLayer"):
            yield f"{module or ''}.{name}"
    for value in config.values():
        yield from _strange(value)


def _answers(path: Path, options: Options) -> dict[str, parity.Answer]:
    import keras
    import tensorflow as tf

    model = keras.saving.load_model(path, compile=False)
    forward = tf.function(lambda images: model(images, training=False), reduce_retracing=True)
    return parity.by_pixels(
        lambda images: np.asarray(forward(images.astype("float32"))), options.batch
    )


_SNIPPET = snippet(
    file="model.keras",
    packages="tensorflow pillow",
    more="""
It is a plain keras.Model: get_layer, summary, and training further work as usual.

Android: use the tflite format. JavaScript: use onnx. TF Serving: use savedmodel.
""",
    imports="""
import zipfile

import keras
import numpy as np
""",
    load=f"""
        self.about = json.loads(zipfile.ZipFile(path).read("{INSIDE}"))
        self.model = keras.saving.load_model(path)
""",
    ask='return np.asarray(self.model(pixels.astype("float32"), training=False))',
)

FORMAT = Format("model", ".keras", _write, _answers, _SNIPPET)
