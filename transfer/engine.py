"""Run a frozen network as fast as this machine can.

On a CPU, LiteRT with XNNPACK computes a convolutional network several times faster than the
training framework does (benchmarks/RESULTS.md), and it comes with TensorFlow; ONNX Runtime is
faster still on some networks, and is tried where its extra is installed. Whatever is used is
compared with Keras on the first batch; if it differs, Keras computes.
"""

from __future__ import annotations

import importlib.util
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from .. import files
from ..machine import cores
from .distribute import in_float32
from .memory import collected_often

log = logging.getLogger("dlzoo")
TOLERANCE = 1e-2  # relative to the largest value of the batch; observed: below 1e-5
CONVERSION = 200.0  # GMACs of work below which converting takes longer than it saves
CHUNK = 4  # images that an engine of a CPU computes at a time: their maps stay in its caches
OPSET = 17  # of ONNX
LARGE = 20_000.0  # GMACs of work from which it pays to convert for two engines and compare

Compute = Callable[[np.ndarray], list[np.ndarray]]  # of exactly one batch


class Engine:
    """A frozen network on its fastest engine: `engine(images)`, any number of them.

    Attributes:
        name: `keras`, `litert` or `onnx`; before the first batch, what will be tried.
        seconds: for each engine whose time on a batch was taken: how long it took.
    """

    def __init__(self, batch: int, plain: Compute, others: dict[str, Compute], label: str):
        self.batch, self.seconds = batch, dict[str, float]()
        self._plain, self._others, self._label = plain, others, label
        self._chosen: Compute | None = None if others else plain
        self.name = " or ".join(others) or "keras"

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for images.

        Args:
            images: `(n, height, width, channels)` in 0..255.

        Returns:
            One float32 `(n, ...)` for each output of the network.
        """
        parts = []
        for start in range(0, len(images), self.batch):
            some = images[start : start + self.batch]
            whole = self._filled(some)
            compute = self._chosen or self._choose(whole)
            parts.append([np.array(out[: len(some)], "float32") for out in compute(whole)])
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def measure(self, images: np.ndarray) -> dict[str, float]:
        """Return `seconds`, of a batch made of these images if none has been measured yet."""
        if not self.seconds:
            self._choose(self._filled(images[: self.batch]))
        return self.seconds

    def _filled(self, images: np.ndarray) -> np.ndarray:
        """Return a whole batch: images, and the last one again and again."""
        part = np.asarray(images, "float32")
        if len(part) == self.batch:
            return part
        return np.concatenate([part, np.repeat(part[-1:], self.batch - len(part), axis=0)])

    def _choose(self, images: np.ndarray) -> Compute:
        """Take the fastest engine that agrees with Keras on a batch, for good."""
        expected = self._timed("keras", self._plain, images)
        self._chosen, self.name, best = self._plain, "keras", float("inf")
        for name, compute in self._others.items():
            found = self._timed(name, compute, images)
            off = max(_difference(a, b) for a, b in zip(expected, found, strict=True))
            if not off <= TOLERANCE:  # also true of NaN
                warnings.warn(
                    f"{name} differs from Keras by {off:.1e} on {self._label}; it is not used",
                    stacklevel=4,
                )
            elif self.seconds[name] < best:
                self._chosen, self.name, best = compute, name, self.seconds[name]
                log.debug("%s agrees with Keras on %s to %.1e", name, self._label, off)
        return self._chosen

    def _timed(self, name: str, compute: Compute, images: np.ndarray) -> list[np.ndarray]:
        compute(images)  # the first call prepares this and that: it does not count
        began = time.perf_counter()
        answers = [np.array(out) for out in compute(images)]
        self.seconds[name] = time.perf_counter() - began
        return answers


def frozen(
    model: keras.Model,
    *,
    batch: int = 32,
    chunk: int | None = None,
    work: float | None = None,
    steady: bool = False,
) -> Engine:
    """Return what computes `model` in inference mode.

    Args:
        model: one image input of known size, one or several outputs.
        batch: images that Keras computes at a time; any number may be given to the engine.
        chunk: images that an engine of a CPU computes at a time, and no fewer; default: `CHUNK`.
        work: GMACs to be computed in all, if known: little work is not worth converting.
        steady: choose by what is installed, not by what a measurement says.
    """
    import tensorflow as tf

    convert = not on_gpu() and (work is None or work >= CONVERSION)
    batch = (chunk or CHUNK) if convert else batch
    shape = (batch, *model.inputs[0].shape[1:])
    # Not model.predict: it would compile with XLA, which is slow for convolutions on a CPU.
    forward = tf.function(
        lambda x: keras.tree.flatten(model(x, training=False)), autograph=False
    ).get_concrete_function(tf.TensorSpec(shape, tf.float32))

    def plain(images: np.ndarray) -> list[np.ndarray]:
        with in_float32():
            return [out.numpy() for out in forward(tf.constant(images))]

    others: dict[str, Compute] = {}
    if convert:
        makers: dict[str, Callable[[], Compute]] = {"litert": lambda: _litert(forward)}
        if not steady and (work or 0) >= LARGE and _installed("onnxruntime", "tf2onnx"):
            makers["onnx"] = lambda: _onnx(model, shape)
        for name, make in makers.items():
            try:
                others[name] = make()
            except Exception as error:
                reason = str(error).strip().partition("\n")[0][:200]  # a whole graph may follow
                warnings.warn(f"{name} cannot run {model.name}: {reason}", stacklevel=2)
    return Engine(batch, plain, others, model.name)


def on_gpu() -> bool:
    """Say whether TensorFlow computes on a GPU."""
    import tensorflow as tf

    return bool(tf.config.get_visible_devices("GPU"))


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.abs(expected - found).max() / max(np.abs(expected).max(), 1e-6))


def _installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


def _litert(forward: Any) -> Compute:
    import tensorflow as tf

    # Without the model as second argument: with it, the converter leaves out Keras' weights.
    content = tf.lite.TFLiteConverter.from_concrete_functions([forward]).convert()
    interpreter = open_litert(content)
    source = interpreter.get_input_details()[0]["index"]
    targets = _in_order(interpreter.get_output_details())

    def compute(images: np.ndarray) -> list[np.ndarray]:
        interpreter.set_tensor(source, images)
        interpreter.invoke()
        return [interpreter.get_tensor(target) for target in targets]

    return compute


def _in_order(details: Sequence[dict[str, Any]]) -> list[int]:
    """Return the tensors of the outputs in the order of the function: Identity, Identity_1, ..."""

    def number(detail: dict[str, Any]) -> int:
        digits = detail["name"].partition(":")[0].rpartition("_")[2]
        return int(digits) if digits.isdigit() else 0

    return [detail["index"] for detail in sorted(details, key=number)]


def _onnx(model: keras.Model, shape: tuple[int, ...]) -> Compute:
    import onnxruntime
    import tensorflow as tf

    forward = tf.function(lambda x: keras.tree.flatten(model(x, training=False)), autograph=False)
    content = as_onnx(forward, tf.TensorSpec(shape, tf.float32, name="images"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    session = onnxruntime.InferenceSession(
        content.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(None, {"images": images})


def as_onnx(function: Any, spec: Any) -> Any:
    """Return a `tf.function` of one tensor as an ONNX model; raises what tf2onnx raises."""
    import tf2onnx

    # tf2onnx 1.17 lacks it, and TensorFlow's exact GELU is made of it
    handlers: dict[str, tuple] = {"Erfc": (_erfc, [])}
    with collected_often():  # before each of dozens of passes it copies the graph and all weights
        content, _ = tf2onnx.convert.from_function(
            function, [spec], opset=OPSET, custom_op_handlers=handlers
        )
    return content


def _erfc(graph: Any, node: Any, name: str, args: Any) -> None:
    """Make of a node erfc(x), in tf2onnx's graph, 1 - erf(x)."""
    from tf2onnx import utils

    node.type, (out,) = "Erf", node.output
    kind = utils.map_onnx_to_numpy_type(graph.get_dtype(out))
    (one,) = graph.make_const(utils.make_name(name), np.array(1, kind)).output
    last = graph.insert_new_node_on_output(
        "Sub", out, inputs=[one, out], name=utils.make_name(name)
    )
    graph.copy_dtype(out, last.output[0])
    graph.copy_shape(out, last.output[0])


def open_litert(content: bytes) -> Any:
    """Return LiteRT's interpreter, from its own package if installed, else TensorFlow's."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        import tensorflow as tf

        Interpreter = tf.lite.Interpreter
    with warnings.catch_warnings(), files.stderr_away():  # it logs its delegate there
        warnings.simplefilter("ignore")  # TensorFlow's word on where the class will move
        interpreter = Interpreter(model_content=content, num_threads=cores())
        interpreter.allocate_tensors()
    return interpreter
