"""Run a frozen network as fast as this machine can.

On a CPU, LiteRT with XNNPACK computes a convolutional network several times faster than the
training framework does (benchmarks/RESULTS.md), and it comes with TensorFlow; ONNX Runtime is
faster still on networks of few large convolutions, where its extra is installed. Whatever is
used is compared with Keras on the first batch; if it differs, Keras computes.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from queue import SimpleQueue
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
LANES = 2 << 30  # bytes that the lanes of a CPU may take together
PER_PIXEL = 64 * 4 * 2  # bytes that a lane takes for a pixel: two maps of VGG's, the widest
OPSET = 17  # of ONNX
LARGE = 20_000.0  # GMACs of work from which it pays to convert for two engines and compare

Compute = Callable[[np.ndarray], list[np.ndarray]]  # of exactly one batch


@dataclass
class Way:
    """A way to compute.

    Attributes:
        compute: what computes a batch; called from several threads where there are lanes.
        lanes: how many batches are computed at a time, each on a thread of its own.
    """

    compute: Compute
    lanes: int = 1

    def each(self, batches: Iterable[np.ndarray]) -> list[list[np.ndarray]]:
        """Compute some batches."""
        return list((self._pool.map if self.lanes > 1 else map)(self.compute, batches))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.lanes, "dlzoo-lane")


class Engine:
    """A frozen network on its fastest engine: `engine(images)`, any number of them.

    Attributes:
        name: `keras`, `litert` or `onnx`; before the first batch, what will be tried.
        seconds: for each engine whose time on a batch was taken: how long it took.
    """

    def __init__(self, batch: int, plain: Way, others: dict[str, Way], label: str):
        self.batch, self.seconds = batch, dict[str, float]()
        self._plain, self._others, self._label = plain, others, label
        self._chosen: Way | None = None if others else plain
        self.name = " or ".join(others) or "keras"

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for images.

        Args:
            images: `(n, height, width, channels)` in 0..255.

        Returns:
            One float32 `(n, ...)` for each output of the network.
        """
        if not len(images):
            return []
        way = self._chosen or self._choose(self._filled(images[: self.batch]))
        starts = range(0, len(images), self.batch)
        parts = way.each(self._filled(images[start : start + self.batch]) for start in starts)
        whole = (np.concatenate(outputs, dtype="float32") for outputs in zip(*parts, strict=True))
        return [outputs[: len(images)] for outputs in whole]

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

    def _choose(self, images: np.ndarray) -> Way:
        """Take the fastest engine that agrees with Keras on a batch, for good."""
        expected = self._timed("keras", self._plain, images)
        self._chosen, self.name, best = self._plain, "keras", float("inf")
        for name, way in self._others.items():
            found = self._timed(name, way, images)
            off = max(_difference(a, b) for a, b in zip(expected, found, strict=True))
            if not off <= TOLERANCE:  # also true of NaN
                warnings.warn(
                    f"{name} differs from Keras by {off:.1e} on {self._label}; it is not used",
                    stacklevel=4,
                )
            elif self.seconds[name] < best:
                self._chosen, self.name, best = way, name, self.seconds[name]
                log.debug("%s agrees with Keras on %s to %.1e", name, self._label, off)
        return self._chosen

    def _timed(self, name: str, way: Way, images: np.ndarray) -> list[np.ndarray]:
        every = [images] * way.lanes
        way.each(every)  # the first calls prepare this and that: they do not count
        began = time.perf_counter()
        answers, *_ = way.each(every)
        self.seconds[name] = (time.perf_counter() - began) / way.lanes
        return answers


def frozen(
    model: keras.Model,
    *,
    batch: int = 32,
    work: float | None = None,
    steady: bool = False,
    soon: bool = False,
) -> Engine:
    """Return what computes `model` in inference mode.

    Args:
        model: one image input of known size, one or several outputs.
        batch: images that Keras computes at a time; any number may be given to the engine.
        work: GMACs to be computed in all, if known: little work is not worth converting.
        steady: choose by what is installed, not by what a measurement says.
        soon: one image is to be answered as soon as possible, by all cores of a CPU; else many
            images in the least time: each core computes `CHUNK` of them on its own.
    """
    import tensorflow as tf

    convert = not on_gpu() and (work is None or work >= CONVERSION)
    if convert:
        batch = 1 if soon else CHUNK
    shape = (batch, *model.inputs[0].shape[1:])
    # Not model.predict: it would compile with XLA, which is slow for convolutions on a CPU.
    forward = tf.function(
        lambda x: keras.tree.flatten(model(x, training=False)), autograph=False
    ).get_concrete_function(tf.TensorSpec(shape, tf.float32))

    def plain(images: np.ndarray) -> list[np.ndarray]:
        with in_float32():
            return [out.numpy() for out in forward(tf.constant(images))]

    others: dict[str, Way] = {}
    if convert:
        lanes = 1 if soon else _lanes(model, shape)
        makers: dict[str, Callable[[], Way]] = {"litert": lambda: _litert(forward, lanes)}
        if not steady and (work or 0) >= LARGE and _installed("onnxruntime", "tf2onnx"):
            makers["onnx"] = lambda: _onnx(model, shape)
        for name, make in makers.items():
            try:
                others[name] = make()
            except Exception as error:
                warnings.warn(f"{name} cannot run {model.name}: {error}", stacklevel=2)
    return Engine(batch, Way(plain), others, model.name)


def on_gpu() -> bool:
    """Say whether TensorFlow computes on a GPU."""
    import tensorflow as tf

    return bool(tf.config.get_visible_devices("GPU"))


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.abs(expected - found).max() / max(np.abs(expected).max(), 1e-6))


def _installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


def _lanes(model: keras.Model, shape: tuple[int, ...]) -> int:
    """Return how many copies of a network may compute side by side on a CPU: one a core, if they
    do not take too much memory. Cores that compute one batch together wait for one another after
    each layer, the more so where some are busy with the next images.
    """
    size = 4 * model.count_params() + PER_PIXEL * math.prod(shape[:-1])
    return max(1, min(cores(), LANES // size))


def _litert(forward: Any, lanes: int) -> Way:
    import tensorflow as tf

    # Without the model as second argument: with it, the converter leaves out Keras' weights.
    content = tf.lite.TFLiteConverter.from_concrete_functions([forward]).convert()
    every = [open_litert(content, threads=-(-cores() // lanes)) for _ in range(lanes)]
    source = every[0].get_input_details()[0]["index"]
    targets = _in_order(every[0].get_output_details())
    free: SimpleQueue[Any] = SimpleQueue()
    for interpreter in every:
        free.put(interpreter)

    def compute(images: np.ndarray) -> list[np.ndarray]:
        interpreter = free.get()
        try:
            interpreter.set_tensor(source, images)
            interpreter.invoke()
            return [interpreter.get_tensor(target) for target in targets]
        finally:
            free.put(interpreter)

    return Way(compute, lanes)


def _in_order(details: Sequence[dict[str, Any]]) -> list[int]:
    """Return the tensors of the outputs in the order of the function: Identity, Identity_1, ..."""

    def number(detail: dict[str, Any]) -> int:
        digits = detail["name"].partition(":")[0].rpartition("_")[2]
        return int(digits) if digits.isdigit() else 0

    return [detail["index"] for detail in sorted(details, key=number)]


def _onnx(model: keras.Model, shape: tuple[int, ...]) -> Way:
    import onnxruntime
    import tensorflow as tf

    forward = tf.function(lambda x: keras.tree.flatten(model(x, training=False)), autograph=False)
    content = as_onnx(forward, tf.TensorSpec(shape, tf.float32, name="images"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    session = onnxruntime.InferenceSession(
        content.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return Way(lambda images: session.run(None, {"images": images}))


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


def open_litert(content: bytes, threads: int | None = None) -> Any:
    """Return LiteRT's interpreter, from its own package if installed, else TensorFlow's.

    Args:
        threads: that compute together; default: one a core.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        import tensorflow as tf

        Interpreter = tf.lite.Interpreter
    with warnings.catch_warnings(), files.stderr_away():  # it logs its delegate there
        warnings.simplefilter("ignore")  # TensorFlow's word on where the class will move
        interpreter = Interpreter(model_content=content, num_threads=threads or cores())
        interpreter.allocate_tensors()
    return interpreter
