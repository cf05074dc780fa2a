"""What `dlzoo list` and `dlzoo info` say of the models."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from . import console, zoo


def listing(names: Iterable[str]) -> None:
    """Print one line a model."""
    rows = []
    for m in map(zoo.info, names):
        best = max((w["top1"] for w in m["weights"] if w["top1"]), default=None)
        rows.append(
            (
                m["name"],
                count(m["params"]),
                f"{m['gmacs']:.3g}",
                m["size"],
                None if best is None else f"{best:.1f}",
                " ".join(w["tag"] for w in m["weights"]),
            )
        )
    console.table(rows, ["name", ">params", ">GMACs", ">size", ">top-1", "weights"])


def facts(about: dict[str, Any]) -> None:
    """Print what the registry knows of one model: its figures and its weights."""
    for key, value in about.items():
        if key in ("taps", "weights", "layers") or value is None:
            continue
        console.out(f"{key:12} {value:,}" if key == "params" else f"{key:12} {value}")
    if about["weights"]:
        console.out()
        rows = [
            (
                w["tag"],
                w["top1"],
                w["top5"],
                f"{w['preprocess']['size']} {w['preprocess']['interpolation']}",
                w["licence"],
                "yes" if w["here"] else "no",
                w["origin"],
                w["uri"],
            )
            for w in about["weights"]
        ]
        heads = ["weights", ">top-1", ">top-5", "image", "licence", "here", "origin", "from"]
        console.table(rows, heads)


def taps(about: dict[str, Any]) -> None:
    """Print the feature maps that the model offers."""
    console.out()
    rows = [
        (t["name"], t["channels"], t["stride"], _pair(t["map"]), _field(t["field"]), t["layer"])
        for t in about["taps"]
    ]
    heads = ["tap", ">channels", ">stride", ">map", ">receptive field", "layer"]
    console.table(rows, heads)


def layers(about: dict[str, Any]) -> None:
    """Print every layer with its output, its cost and what it sees of the image."""
    console.out()
    rows = [
        (
            r["group"],
            r["name"],
            r["kind"],
            " x ".join("?" if n is None else str(n) for n in r["shape"]),
            r["formula"],
            f"{r['params']:,}" if r["params"] else None,
            f"{r['macs'] / 1e6:,.2f}" if r["macs"] else None,
            _field(r["field"]),
        )
        for r in about["layers"]
    ]
    heads = ["group", "layer", "kind", ">output", "(W + P - K) / S + 1", ">params", ">MMACs"]
    console.table(rows, [*heads, ">receptive field"])
    total = [sum(r[part] for r in about["layers"]) for part in ("params", "macs")]
    console.out(f"{len(rows)} layers, {total[0]:,} parameters, {total[1] / 1e9:.3f} GMACs")


def anatomy(model: Any) -> dict[str, Any]:
    """Return the taps and the layers of a built model as plain values."""
    from dataclasses import asdict

    from .zoo.anatomy import layers

    rows = [asdict(row) for row in layers(model)]
    found = [
        {
            "name": row["tap"],
            "layer": row["name"],
            "channels": row["shape"][-1],
            "stride": 2 ** int(row["tap"][1:]),
            "map": row["shape"][:2],
            "field": row["field"],
        }
        for row in rows
        if row["tap"]
    ]
    return {"taps": found, "layers": rows}


def count(number: float) -> str:
    """Return a count of parameters for people: 4.7M."""
    power = min(int(math.log10(max(number, 1))) // 3, 3)
    return f"{number / 1000**power:.1f}{' kMG'[power].strip()}" if power else str(int(number))


def _pair(pair: Any) -> str:
    return f"{pair[0]} x {pair[1]}" if pair[0] != pair[1] else str(pair[0])


def _field(field: Any) -> str:
    return _pair(field) if field else "all"
