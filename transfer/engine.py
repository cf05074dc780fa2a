"""Run a frozen network as fast as this machine can.

On a CPU, LiteRT with XNNPACK computes a convolutional network several times faster than the
training framework does (benchmarks/RESULTS.md), and it comes with TensorFlow. It is checked
against Keras on the first batch; where it cannot be used, a compiled tf.function serves.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from .. import files

log = logging.getLogger("dlzoo")
TOLERANCE = 1e-2  # relative to the largest value of the batch; observed: below 1e-5
CONVERSION = 200.0  # GMACs of work below which converting takes longer than it saves

Run = Callable[[np.ndarray], np.ndarray]


def frozen(model: keras.Model, *, batch: int = 32, work: float | None = None) -> Run:
    """Return a function that computes `model` in inference mode.

    Args:
        model: one image input of known size, one output.
        batch: images computed at a time; any number may be given to the function.
        work: GMACs to be computed in all, if known: little work is not worth converting.

    Returns:
        `run(images)`: float32 `(n, height, width, channels)` to float32 `(n, ...)`.
    """
    import tensorflow as tf

    plain = _keras(model)
    if tf.config.list_physical_devices("GPU") or (work is not None and work < CONVERSION):
        return plain
    try:
        fast = _litert(model, batch)
    except Exception as error:
        warnings.warn(f"LiteRT cannot run {model.name} ({error}); Keras does", stacklevel=2)
        return plain
    return _checked(fast, plain, model.name)


def _checked(fast: Run, plain: Run, name: str) -> Run:
    """Compare on the first batch, then stay with the fast one, or fall back for good."""
    chosen: list[Run] = []

    def run(images: np.ndarray) -> np.ndarray:
        if chosen:
            return chosen[0](images)
        few = images[:4]
        expected, found = plain(few), fast(few)
        off = float(np.abs(expected - found).max() / max(np.abs(expected).max(), 1e-6))
        if off <= TOLERANCE:  # NaN is not
            log.debug("LiteRT agrees with Keras on %s to %.1e", name, off)
            chosen.append(fast)
        else:
            warnings.warn(
                f"LiteRT differs from Keras by {off:.1e} on {name}; Keras is used", stacklevel=3
            )
            chosen.append(plain)
        return chosen[0](images)

    return run


def _keras(model: keras.Model) -> Run:
    import tensorflow as tf

    # Not model.predict: it would compile with XLA, which is slow for convolutions on a CPU.
    forward = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
    return lambda images: forward(tf.constant(images, "float32")).numpy().astype("float32")


def _litert(model: keras.Model, batch: int) -> Run:
    import tensorflow as tf

    shape = (batch, *model.inputs[0].shape[1:])
    forward = tf.function(lambda x: model(x, training=False), autograph=False)
    concrete = forward.get_concrete_function(tf.TensorSpec(shape, tf.float32))
    # Without the model as second argument: with it, the converter leaves out Keras' weights.
    content = tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert()
    interpreter = _interpreter(content)
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]

    def run(images: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(images), batch):
            part = np.asarray(images[start : start + batch], "float32")
            missing = batch - len(part)
            if missing:
                part = np.concatenate([part, np.zeros((missing, *part.shape[1:]), "float32")])
            interpreter.set_tensor(source, part)
            interpreter.invoke()
            parts.append(interpreter.get_tensor(target)[: batch - missing].copy())
        return np.concatenate(parts)

    return run


def _interpreter(content: bytes) -> Any:
    """Return LiteRT's interpreter, from its own package if installed, else TensorFlow's."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        import tensorflow as tf

        Interpreter = tf.lite.Interpreter
    with warnings.catch_warnings(), files.stderr_away():  # it logs its delegate there
        warnings.simplefilter("ignore")  # TensorFlow's word on where the class will move
        interpreter = Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    return interpreter
