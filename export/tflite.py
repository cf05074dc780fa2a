"""LiteRT (TensorFlow Lite): one file for phones and small computers.

Takes RGB images `(n, size, size, 3)` in 0..255, float32, or uint8 if quantized to int8: the
pixels of a camera as they are. Gives probabilities in float32. Needs builtin operations only,
unless Flex is allowed. The description and labels.txt are in a zip archive at the file's end,
where TensorFlow Lite's metadata puts associated files: any zip reader finds them.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from ..errors import ExportError, UsageError
from . import parity
from .artefact import INSIDE, Format, Options, answering
from .snippets import snippet

if TYPE_CHECKING:
    from ..data import Data
    from ..transfer.classifier import Classifier
    from ..zoo.spec import Preprocess

_NEEDS_FLEX = 1  # ConverterErrorData.ERROR_NEEDS_FLEX_OPS
CALIBRATION = 200  # images the ranges of int8 are taken from


def _write(classifier: Classifier, path: Path, about: dict[str, Any], options: Options) -> None:
    import tensorflow as tf

    model, size = answering(classifier), classifier.preprocess.size
    spec = tf.TensorSpec((options.batch, size, size, 3), tf.float32, "image")
    forward = tf.function(lambda image: model(image, training=False), autograph=False)
    # Without the model as second argument: with it, the converter leaves out Keras' weights.
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [forward.get_concrete_function(spec)]
    )
    builtin = tf.lite.OpsSet.TFLITE_BUILTINS
    if options.quantize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if options.quantize == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    if options.quantize == "int8":
        builtin = tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        images = _calibration(options.data, classifier.preprocess)
        converter.representative_dataset = lambda: (
            [part] for part in _parts(images, options.batch or 1)
        )
        converter.inference_input_type = tf.uint8
    flex = [tf.lite.OpsSet.SELECT_TF_OPS] if options.allow_flex else []
    converter.target_spec.supported_ops = [builtin, *flex]
    path.write_bytes(_converted(converter))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(INSIDE, json.dumps(about, indent=2, ensure_ascii=False))
        archive.writestr("labels.txt", files.lines_of(about["classes"]))


def _converted(converter: Any) -> bytes:
    """Convert; raises ExportError `export.flex` naming the operations, or `export.failed`."""
    try:
        with files.stderr_away():  # the converter logs there
            return converter.convert()
    except Exception as error:
        found = {
            (data.operator.name.removeprefix("tf."), data.error_code == _NEEDS_FLEX)
            for data in getattr(error, "errors", ())
        }
        names = ", ".join(sorted(name for name, _ in found))
        if found and all(flex for _, flex in found):
            raise ExportError(
                "export.flex",
                f"LiteRT has no operation for {names}",
                fix="--allow-flex, for programs that link LiteRT's Flex delegate",
            ) from error
        why = f"no operation for {names}" if names else str(error).strip().splitlines()[0]
        raise ExportError("export.failed", f"LiteRT's converter: {why}") from error


def _calibration(data: Data | None, rule: Preprocess) -> np.ndarray:
    """Return images of the training split, spread over it, as evaluation sees them."""
    from ..data.pipeline import load_image

    if data is None or not data.splits["train"] or not data.splits["val"]:
        raise UsageError(
            "export.no-calibration",
            "int8 takes its ranges from training photos and is measured on validation photos",
            fix="give data with both splits, or --quantize fp16",
        )
    records = data.records("train")
    chosen = np.unique(np.linspace(0, len(records) - 1, CALIBRATION).astype(int))
    images = np.stack([load_image(records[i].encoded(), rule) for i in chosen])
    # So that the input's range is all of 0..255 and its scale 1: uint8 pixels go in unchanged.
    images[0, 0, 0], images[0, 0, 1] = 0, 255
    return images


def _parts(images: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    """Yield `(batch, ...)` after `(batch, ...)`; what is left over is not used."""
    for start in range(0, max(1, len(images) - batch + 1), batch):
        yield np.resize(images[start : start + batch], (batch, *images.shape[1:]))


def ask(path: Path) -> parity.Ask:
    """Open a file; the function returned takes any number of images if the file does."""
    from ..transfer.engine import open_litert

    with _flex_told():
        interpreter = open_litert(path.read_bytes())
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    as_uint8 = source["dtype"] == np.uint8
    if as_uint8 and not np.allclose(source["quantization"], (1, 0)):
        raise ExportError("export.failed", f"the input is scaled by {source['quantization']}")
    shape = [tuple(source["shape"])]

    def run(images: np.ndarray) -> np.ndarray:
        if images.shape != shape[0]:
            interpreter.resize_tensor_input(source["index"], images.shape)
            with _flex_told():
                interpreter.allocate_tensors()
            shape[0] = images.shape
        pixels = np.rint(images) if as_uint8 else images
        interpreter.set_tensor(source["index"], pixels.astype(source["dtype"]))
        with _flex_told():
            interpreter.invoke()
        return interpreter.get_tensor(target["index"])

    return run


@contextmanager
def _flex_told() -> Iterator[None]:
    """Turn the interpreter's complaint about Flex into `export.flex`."""
    try:
        yield
    except RuntimeError as error:
        if "Flex" not in str(error):
            raise
        raise ExportError(
            "export.flex",
            "it needs TensorFlow operations that this machine's interpreter cannot run, so it "
            "could not be checked",
            fix="check it where the Flex delegate is linked, before you rely on it",
        ) from error


def _answers(path: Path, options: Options) -> dict[str, parity.Answer]:
    return parity.by_pixels(ask(path), options.batch)


def _measure(path: Path, classifier: Classifier, options: Options) -> dict[str, Any]:
    """Return the accuracy of the classifier and of int8 on the validation photos."""
    from ..data.pipeline import batches, surfacing
    from ..report import metrics

    data = options.data
    if options.quantize != "int8" or data is None:
        return {}
    run, n, pairs = ask(path), options.batch or 8, []
    with surfacing(data):
        for images, *_ in batches(data, "val", classifier.preprocess, batch=32):
            pixels = images.numpy()
            answers = np.concatenate(list(parity.in_batches(run, pixels, n)))
            pairs.append((classifier.probabilities(pixels), answers))
    labels = data.labels("val")
    before, after = (
        metrics.evaluate(labels, np.concatenate(part), classifier.classes, classifier.task)
        for part in zip(*pairs, strict=True)
    )
    drop = 100 * (before["accuracy"] - after["accuracy"])
    accuracy = {
        "float": before["accuracy"],
        "quantized": after["accuracy"],
        "drop": drop,
        "max_drop": options.max_drop,
        "n": len(labels),
        "passed": drop <= options.max_drop + 1e-9,
    }
    return {"accuracy": accuracy, "passed": accuracy["passed"]}


_SNIPPET = snippet(
    file="model.tflite",
    packages="ai-edge-litert pillow",
    more="""
Android: implementation("com.google.ai.edge.litert:litert:1.+"), put the file in assets/, then
    Interpreter(loadedFile).run(input, Array(1) { FloatArray(classes) })
    where input is a ByteBuffer of size * size * 3 RGB pixels: float32 0..255, or uint8 for a
    file quantized to int8. Normalisation is inside. labels.txt and dlzoo.json are in the zip at
    the end of the file: `unzip -p model.tflite labels.txt`.
JavaScript: use onnx. TF Serving: savedmodel.
""",
    imports="""
import zipfile

import numpy as np
from ai_edge_litert.interpreter import Interpreter
""",
    load=f"""
        self.about = json.loads(zipfile.ZipFile(path).read("{INSIDE}"))
        self.model = Interpreter(path)
        self.source = self.model.get_input_details()[0]
        self.target = self.model.get_output_details()[0]
""",
    ask="""
        self.model.resize_tensor_input(self.source["index"], pixels.shape)
        self.model.allocate_tensors()
        if self.source["dtype"] == np.uint8:
            pixels = np.rint(pixels)
        self.model.set_tensor(self.source["index"], pixels.astype(self.source["dtype"]))
        self.model.invoke()
        return self.model.get_tensor(self.target["index"])
""",
)

FORMAT = Format(
    stem="model",
    suffix=".tflite",
    write=_write,
    answers=_answers,
    snippet=_SNIPPET,
    measure=_measure,
    quantize=("fp16", "int8"),
)
