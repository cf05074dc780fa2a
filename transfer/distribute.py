"""Where the computing happens: device, precision, strategy and determinism, decided once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ResourceError
from ..machine import cores

AUTO = "auto"


@dataclass(frozen=True)
class Machine:
    """What a run computes on.

    Attributes:
        device: in words, such as `2x CPU`. precision: `fp32` or `mixed`.
        strategy: the tf.distribute strategy whose scope models are built in.
        replicas: how many copies of the model compute a batch.
    """

    device: str
    precision: str
    strategy: Any
    replicas: int = 1


def prepare(
    *,
    device: str = AUTO,
    strategy: str = AUTO,
    precision: str = AUTO,
    seed: int = 0,
    deterministic: bool = False,
) -> Machine:
    """Choose devices and set the process up for them; call before any model is built.

    Args:
        device: `auto` (GPUs if there are any), `cpu`, `gpu` or `gpu:N`.
        strategy: `none`, `mirrored` (all chosen devices), or `auto`: mirrored from two GPUs on.
        precision: `fp32` (also what `auto` means) or `mixed`: float16 with float32 weights.
        seed: of Python, NumPy and Keras. deterministic: ops give the same bits each time.

    Raises:
        ResourceError: `resource.no-gpu`: a GPU was asked for and there is none.
    """
    import keras
    import tensorflow as tf

    gpus = _gpus(device)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)
    mixed = precision == "mixed"
    keras.config.set_dtype_policy("mixed_float16" if mixed else "float32")
    chosen = gpus or tf.config.list_logical_devices("CPU")
    names = [f"{d.device_type}:{i}" for i, d in enumerate(chosen)]
    if strategy == "mirrored" or (strategy == AUTO and len(gpus) > 1):
        scope = tf.distribute.MirroredStrategy(names)
    else:
        scope = tf.distribute.get_strategy()
    words = f"{len(gpus)}x GPU" if gpus else f"{cores()}x CPU"
    return Machine(words, "mixed" if mixed else "fp32", scope, scope.num_replicas_in_sync)


def _gpus(device: str) -> list:
    """Make the wanted GPUs visible, with memory taken as it is needed; return them."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return []
    if device.startswith("gpu"):
        number = int(device.partition(":")[2] or 0)
        if number >= len(gpus):
            raise ResourceError(
                "resource.no-gpu",
                f"--device {device}: TensorFlow sees {len(gpus)} GPUs",
                fix="`dlzoo doctor` says why; --device cpu works everywhere",
            )
        gpus = gpus[number : number + 1] if ":" in device else gpus
        tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    return tf.config.list_logical_devices("GPU")
