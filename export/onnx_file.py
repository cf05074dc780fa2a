"""ONNX: one file for onnxruntime in every language, and in the browser (the extra `onnx`).

Takes float32 RGB images `(n, size, size, 3)` in 0..255, as every other format, and gives
probabilities. The description is in the model's metadata, under `dlzoo.json`.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ExportError
from . import parity
from .artefact import INSIDE, Format, Options, answering
from .snippets import snippet

if TYPE_CHECKING:
    from ..transfer.classifier import Classifier


def _write(classifier: Classifier, path: Path, about: dict[str, Any], options: Options) -> None:
    import onnx
    import tensorflow as tf

    from ..transfer.engine import as_onnx

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    model, size = answering(classifier), classifier.preprocess.size
    spec = tf.TensorSpec((options.batch, size, size, 3), tf.float32, "image")
    forward = tf.function(
        lambda image: tf.identity(model(image, training=False), "probabilities"),
        autograph=False,
    )
    try:
        proto = as_onnx(forward, spec)
        onnx.checker.check_model(proto)  # tf2onnx keeps operations that it does not know
    except Exception as error:
        why = str(error).strip().partition("\n")[0]
        raise ExportError("export.failed", f"tf2onnx: {type(error).__name__}: {why}") from error
    for value in (*proto.graph.input, *proto.graph.output):
        if options.batch is None:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    entry = proto.metadata_props.add()
    entry.key, entry.value = INSIDE, json.dumps(about, ensure_ascii=False)
    onnx.save(proto, path)


def _answers(path: Path, options: Options) -> dict[str, parity.Answer]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    return parity.by_pixels(
        lambda images: session.run(None, {source.name: images.astype("float32")})[0],
        options.batch,
    )


_SNIPPET = snippet(
    file="model.onnx",
    packages="onnxruntime pillow",
    more="""
JavaScript: npm install onnxruntime-web (or onnxruntime-node), then
    const session = await ort.InferenceSession.create("model.onnx");
    const image = new ort.Tensor("float32", pixels, [1, size, size, 3]);  // RGB, 0..255
    const { [session.outputNames[0]]: p } = await session.run({ [session.inputNames[0]]: image });
Android: com.microsoft.onnxruntime:onnxruntime-android, the same input; or use tflite.
TF Serving: use savedmodel.
""",
    imports="""

import numpy as np
import onnxruntime
""",
    load=f"""
        self.model = onnxruntime.InferenceSession(path)
        self.about = json.loads(self.model.get_modelmeta().custom_metadata_map["{INSIDE}"])
""",
    ask="""
        name = self.model.get_inputs()[0].name
        return self.model.run(None, {name: pixels.astype("float32")})[0]
""",
)

FORMAT = Format(
    stem="model",
    suffix=".onnx",
    write=_write,
    answers=_answers,
    snippet=_SNIPPET,
    needs=("tf2onnx", "onnx", "onnxruntime"),
    extra="onnx",
)
