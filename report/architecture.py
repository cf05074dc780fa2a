"""A drawing of an architecture: its feature maps from the image to the logits, to scale."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from .. import files
from ..zoo import anatomy, graph
from .plots import BLUE, GREEN, GREY, ORANGE, new_figure

_TILT = 0.35  # how far a map leans back, so that it is seen as a plane
_GAP = 0.9
_LEAST = 0.8  # what a box takes of the width, so that there is room for the text below
_SHOWN = {
    "Conv2D": "conv",
    "DepthwiseConv2D": "depthwise",
    "Dense": "dense",
    "MaxPooling2D": "max pool",
    "AveragePooling2D": "average pool",
}


def draw(model: Any, path: Path | str) -> None:
    """Draw a model of the zoo into a `.svg`, `.png` or `.pdf` file.

    Each tap is a box: as high as its map is (in steps of powers of two), as deep as its channels
    are many (likewise). Below it stands what computes it.

    Raises:
        UsageError: another ending of the file's name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from ..errors import UsageError

    form = Path(path).suffix.removeprefix(".").lower()
    if form not in ("svg", "png", "pdf"):
        raise UsageError("report.format", f"no drawing can be made as {Path(path).name!r}",
                         fix="a name that ends in .svg, .png or .pdf")  # fmt: skip
    boxes = _boxes(model)
    figure = new_figure(max(7.0, 1.75 * len(boxes)), 4.6)
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.set_axis_off()
    axis.set_aspect("equal")
    right, tops = 0.0, []
    for i, box in enumerate(boxes):
        right = _box(axis, right, box)
        tops.append(box["height"])
        if i + 1 < len(boxes):
            style = {"arrowstyle": "->", "color": GREY, "lw": 1.1}
            axis.annotate("", (right + _GAP * 0.85, 0), (right + 0.12, 0), arrowprops=style)
            right += _GAP
    about = graph.built(model)
    total = sum(row.params for row in anatomy.layers(model))
    axis.set_title(
        f"{about.name}   {total / 1e6:,.2f} M parameters   {graph.gmacs(model):.3f} GMACs",
        fontsize=12, loc="left",
    )  # fmt: skip
    axis.set_xlim(-0.4, right + 0.4)
    axis.set_ylim(-max(tops) / 2 - 1.6, max(tops) / 2 + 1.3)
    with files.replacing(path, "wb") as file:
        figure.savefig(file, format=form)


def _boxes(model: Any) -> list[dict[str, Any]]:
    shape = model.input_shape[1:]
    boxes = [_map("image", shape, "", ORANGE)]
    rows = anatomy.layers(model)
    for tap in graph.built(model).taps:
        group = [row for row in rows if row.group == tap]
        shape = next(row.shape for row in group if row.tap == tap)
        boxes.append(_map(tap, shape, _summary(group), BLUE))
    head = [row for row in rows if row.group == "head"]
    for row in head:
        if row.kind == "Dense":
            text = f"{row.params / 1e6:,.2f} M params"
            boxes.append(_map(row.name, row.shape, text, GREEN))
    return boxes


def _map(name: str, shape: tuple, text: str, colour: str) -> dict[str, Any]:
    height = math.log2(shape[0] + 1) * 0.5 if len(shape) == 3 else 2.6
    depth = math.log2(shape[-1] + 1) * 0.16 if len(shape) == 3 else 0.25
    size = " x ".join(map(str, shape))
    return {"name": name, "size": size, "text": text, "colour": colour,
            "height": height, "depth": depth, "flat": len(shape) != 3}  # fmt: skip


def _summary(rows: list[anatomy.LayerRow]) -> str:
    """Say in a few lines what a group is made of: `3x3 conv x 4`, its parameters."""
    kinds: Counter[str] = Counter()
    for row in rows:
        if kind := _SHOWN.get(row.kind):
            kinds[kind] += 1
    lines = [f"{kind} \N{MULTIPLICATION SIGN} {n}" for kind, n in kinds.most_common(4)]
    lines.append(f"{sum(row.params for row in rows) / 1e6:,.2f} M params")
    field = next((row.field for row in rows if row.tap), None)
    if field:
        lines.append(f"sees {field[0]} px")
    return "\n".join(lines)


def _box(axis: Any, left: float, box: dict[str, Any]) -> float:
    """Draw one box from `left` on and return where it ends."""
    from matplotlib.patches import Polygon

    half, depth = box["height"] / 2, box["depth"]
    lean = 0.0 if box["flat"] else _TILT * box["height"] * 0.5
    front = [(left, -half), (left + depth, -half), (left + depth, half), (left, half)]
    side = [(left + depth, -half), (left + depth + lean, -half + lean),
            (left + depth + lean, half + lean), (left + depth, half)]  # fmt: skip
    top = [(left, half), (left + depth, half), (left + depth + lean, half + lean),
           (left + lean, half + lean)]  # fmt: skip
    for points, alpha in ((front, 0.75), (side, 0.4), (top, 0.55)):
        patch = Polygon(points, facecolor=box["colour"], alpha=alpha, edgecolor="white", lw=0.8)
        axis.add_patch(patch)
    middle, right = left + (depth + lean) / 2, left + depth + lean
    axis.text(middle, half + lean + 0.15, box["name"], ha="center", va="bottom", fontsize=10,
              fontweight="bold")  # fmt: skip
    text = f"{box['size']}\n{box['text']}".rstrip()
    axis.text(middle, -half - 0.2, text, ha="center", va="top", fontsize=7.5, linespacing=1.35)
    return max(right, left + _LEAST)
