"""Where the computing happens: device, precision, strategy and determinism, decided once."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import cluster
from ..errors import ResourceError, UsageError
from ..machine import cores
from ..workers import Workers

AUTO = "auto"


@dataclass(frozen=True)
class Machine:
    """What a run computes on.

    Attributes:
        device: in words, such as `2x CPU`. precision: `fp32`, `tf32`, `mixed` or `bf16`.
        strategy: the tf.distribute strategy whose scope models are built in.
        replicas: how many copies of the model compute a batch.
        workers: the processes that do.
        why: that strategy.
        leave: gives the process the settings back that it had before, see `_settings`.
    """

    device: str
    precision: str
    strategy: Any
    replicas: int = 1
    workers: Workers = field(default_factory=Workers)
    why: str = ""
    leave: Callable[[], None] = lambda: None

    @property
    def words(self) -> str:
        """What the header of a run says: device, precision, copies and processes."""
        text = f"{self.device} {self.precision}"
        if self.workers.count > 1:
            text += f", {self.workers.count} workers"
        return text + (f", {self.replicas} replicas" if self.replicas > 1 else "")


def prepare(
    *,
    device: str = AUTO,
    strategy: str = AUTO,
    precision: str = AUTO,
    seed: int = 0,
    deterministic: bool = False,
) -> Machine:
    """Choose devices and set the process up for them; call before any model is built.

    Several workers must be set up before TensorFlow computes anything in this process.

    Args:
        device: `auto` (GPUs if there are any), `cpu`, `gpu` or `gpu:N`.
        strategy: `none`; `mirrored`, all chosen devices of this machine; `multiworker`, those of
            all processes that `TF_CONFIG` or Slurm name; `tpu`; or `auto`: multiworker where
            there are such processes, mirrored from two GPUs on.
        precision: of training steps. `fp32`; `mixed`: float16 (on a TPU bfloat16) with float32
            weights; `auto`: float32, whose products a GPU that can takes from factors of ten
            bits (TF32), as TensorFlow does by itself. For answers see `in_float32`.
        seed: of Python, NumPy and Keras. deterministic: ops give the same bits each time.

    Raises:
        ResourceError: `resource.no-gpu`, `resource.no-tpu`: it was asked for and there is none.
        UsageError: `dist.no-cluster`: nothing names the workers; or as `cluster.find`.
    """
    import keras
    import tensorflow as tf

    found = cluster.find() if strategy in (AUTO, "multiworker") else None
    if strategy == "multiworker" and found is None:
        raise UsageError(
            "dist.no-cluster",
            "nothing says which workers there are",
            fix="set TF_CONFIG, start it by srun, or try it out on this machine with "
            "`dlzoo launch --workers 2 -- finetune ...`",
        )
    gpus: list = []
    if strategy == "tpu":
        scope, chips = _tpu()
        words, why = f"{chips}x TPU", "--strategy tpu"
    else:
        gpus = _gpus(device, found.beside if found else (0, 1))
        words = f"{len(gpus)}x GPU" if gpus else f"{cores()}x CPU"
        if found:  # before anything asks for a logical device
            scope, why = _several(found), f"{len(found.addresses)} workers in {found.said_by}"
        elif strategy == "mirrored" or (strategy == AUTO and len(gpus) > 1):
            kind = "GPU" if gpus else "CPU"
            names = [f"{kind}:{i}" for i in range(len(tf.config.list_logical_devices(kind)))]
            scope, why = tf.distribute.MirroredStrategy(names), f"{len(names)} devices"
        else:
            scope = tf.distribute.get_strategy()
            why = "--strategy none" if strategy == "none" else "one device"
    leave = _settings()
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)
    mixed, half = precision == "mixed", "bfloat16" if strategy == "tpu" else "float16"
    keras.config.set_dtype_policy(f"mixed_{half}" if mixed else "float32")
    rounding = precision != "fp32"
    tf.config.experimental.enable_tensor_float_32_execution(rounding)
    name = "tf32" if rounding and any(map(_has_tf32, gpus)) else "fp32"
    if mixed:
        name = "bf16" if strategy == "tpu" else "mixed"
    workers = Workers(scope, found.rank, len(found.addresses)) if found else Workers()
    return Machine(words, name, scope, scope.num_replicas_in_sync, workers, why, leave)


def _settings() -> Callable[[], None]:
    """Return what gives a process the settings of now back that a run changes.

    Else the layers that a notebook makes after a run in mixed precision would compute in float16,
    and what it draws from Python's and NumPy's generators would be the same after each run.
    """
    import keras
    import tensorflow as tf
    from tensorflow.python.framework import config

    drawn, of_numpy = random.getstate(), np.random.get_state()
    policy, exact = keras.config.dtype_policy(), steady()
    rounding = tf.config.experimental.tensor_float_32_execution_enabled()

    def give_back() -> None:
        random.setstate(drawn)
        np.random.set_state(of_numpy)
        keras.config.set_dtype_policy(policy)
        tf.config.experimental.enable_tensor_float_32_execution(rounding)
        if not exact:
            config.disable_op_determinism()

    return give_back


def steady() -> bool:
    """Say whether the operations of this process give the same bits each time."""
    from tensorflow.python.framework import config  # TensorFlow has no public way to ask

    return config.is_op_determinism_enabled()


@contextmanager
def in_float32() -> Iterator[None]:
    """Compute in true float32 inside: what is answered, kept or compared.

    A recent GPU takes products of float32 from factors of ten bits (TF32). That is good enough for
    the gradient of a batch, but the logits of EfficientNet-Lite0 were seen to move by 1 % of their
    standard deviation (benchmarks/RESULTS.md): answers would differ from all other machines'.
    """
    import tensorflow as tf

    rounding = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(rounding)


def _has_tf32(gpu: Any) -> bool:
    import tensorflow as tf

    details = tf.config.experimental.get_device_details(gpu)
    return details.get("compute_capability", (0, 0)) >= (8, 0)


def _several(found: cluster.Cluster) -> Any:
    """Return the strategy of several processes, once all of them have come."""
    import tensorflow as tf

    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=found.resolver())
    except (tf.errors.OpError, RuntimeError) as error:
        raise ResourceError(
            "dist.no-workers",
            f"rank {found.rank} ({found.addresses[found.rank]}) did not meet the other workers: "
            + str(error).splitlines()[0][:300],
            fix="start all workers at about the same time; each must reach the addresses of "
            "the others, and its own port must be free",
        ) from error


def _tpu() -> tuple[Any, int]:
    """Connect to the TPU that `TPU_NAME` names, or to that of this machine."""
    import tensorflow as tf

    name = os.environ.get("TPU_NAME", "local")
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        scope = tf.distribute.TPUStrategy(resolver)
    except (tf.errors.OpError, ValueError, RuntimeError, OSError) as error:
        raise ResourceError(
            "resource.no-tpu",
            f"no TPU {name!r}: " + (str(error).splitlines() or [type(error).__name__])[0][:300],
            fix="choose a TPU runtime, install tensorflow-tpu, and set TPU_NAME if it is not "
            "in this machine; --strategy auto works everywhere",
        ) from error
    return scope, scope.num_replicas_in_sync


def _gpus(device: str, beside: tuple[int, int]) -> list:
    """Make the wanted GPUs visible, with memory taken as it is needed; return them.

    Args:
        beside: index and number of the processes that share those of this machine.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if device == "cpu":
        return _visible([], device)
    if device.startswith("gpu"):
        number = int(device.partition(":")[2] or 0)
        if number >= len(gpus):
            raise ResourceError(
                "resource.no-gpu",
                f"--device {device}: TensorFlow sees {len(gpus)} GPUs",
                fix="`dlzoo doctor` says why; --device cpu works everywhere",
            )
        gpus = gpus[number : number + 1] if ":" in device else gpus
    index, count = beside
    if ":" not in device and len(gpus) >= count > 1:
        share = len(gpus) // count
        gpus = gpus[index * share : (index + 1) * share]
    return _visible(gpus, device) if gpus else []


def _visible(gpus: list, device: str) -> list:
    """Let TensorFlow use these GPUs alone, with memory as it is needed; return those it uses.

    Which ones cannot be changed once it has computed anything, as in a notebook that has built a
    model: then those it uses are taken, unless others were asked for.
    """
    import tensorflow as tf

    try:
        tf.config.set_visible_devices(gpus, "GPU")
    except RuntimeError as error:
        used = tf.config.get_visible_devices("GPU")
        if device != AUTO and used != gpus:
            raise ResourceError(
                "resource.device-set",
                f"--device {device}: TensorFlow runs in this process already, with "
                f"{len(used)} GPUs: {', '.join(gpu.name for gpu in used) or 'none'}",
                fix="restart the notebook or the program, and choose the device before anything "
                "is computed; or leave it at auto",
            ) from error
        return used
    for gpu in gpus:
        with suppress(RuntimeError, ValueError):  # it runs already, or is split into several
            tf.config.experimental.set_memory_growth(gpu, True)
    return gpus
