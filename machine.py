"""What this machine is, as far as results and plans depend on it; loads no TensorFlow."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .rundir import versions


def cores() -> int:
    """Return the number of processors this process may use."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return here or 1


def processor() -> str:
    """Return the name of the processor: its instructions decide how sums are rounded."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")


def environment() -> dict[str, Any]:
    """Return what the last bit of a result depends on, beside its recipe and device."""
    here = {"machine": platform.machine(), "processor": processor(), "threads": cores()}
    return versions() | here


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what is not as it was, such as `tensorflow 2.20.0 -> 2.21.0`."""
    return [f"{key} {old.get(key)} -> {new[key]}" for key in new if old.get(key) != new[key]]
