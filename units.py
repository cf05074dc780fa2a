"""Sizes, times and numbers as people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_BYTES = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_COUNTS = {"K": 1e3, "M": 1e6, "B": 1e9}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def parse_bytes(text: str) -> int:
    """Return the bytes that `20G`, `500 MB` or `1048576` means; raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)(I?B)?", text.strip().upper())
    if not found:
        raise ValueError(f"{text!r} is no size such as 20G")
    return int(float(found[1]) * 1024 ** _BYTES[found[2]])


def parse_count(text: str) -> float:
    """Return the number that `800k`, `10M` or `2.5` is; raises ValueError."""
    unit = _COUNTS.get(text[-1:].upper())
    try:
        return float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number such as 800k or 10M") from None


def parse_seconds(text: str) -> float:
    """Return the seconds that `90s`, `10m` or `1.5h` are; raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([smh]?)", text.strip())
    if not found:
        raise ValueError(f"{text!r} is no time such as 10m")
    return float(found[1]) * _SECONDS[found[2]]


def clock(seconds: float) -> str:
    """Return a time as `1 h 5 min`, `5 min 26 s` or `45 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def accuracy(figures: Mapping[str, Any]) -> str:
    """Return the accuracy in the figures of a split: `93.1% (322/346, 95 % CI 89.9-95.3)`."""
    low, high = figures["accuracy_ci"]
    return (
        f"{figures['accuracy']:.1%} ({figures['correct']:,}/{figures['n']:,}, "
        f"95 % CI {100 * low:.1f}-{100 * high:.1f})"
    )


def change(judged: Mapping[str, Any]) -> str:
    """Return what an export's `accuracy` says: `95.0% -> 93.8% on 80 validation photos`."""
    return (
        f"{judged['float']:.1%} -> {judged['quantized']:.1%} on {judged['n']:,} validation photos"
    )
