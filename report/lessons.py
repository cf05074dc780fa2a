"""Pictures of what training does: for a course, and for those who look into their network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import files
from .plots import BLUE, GREEN, GREY, ORANGE, new_figure, save, shortened

COLOURS = (BLUE, ORANGE, GREEN, GREY, "#7c3aed", "#c02626")
_FRAMES = 60  # of an animation, at most


def lines(
    series: Mapping[str, Any],
    path: Path | str,
    *,
    x: str,
    y: str,
    at: Sequence[float] | None = None,
    log: bool = False,
) -> None:
    """Draw named series over a common axis.

    Args:
        series: name to values (points,), or (repeats, points): then their mean, and a band from the
            lowest to the highest.
        path: of the PNG file. x, y: what the axes are.
        at: places of the points; default 1, 2, ... log: draw y on a logarithmic scale.
    """
    figure = new_figure(7, 4)
    axis = figure.subplots()
    for colour, (name, values) in zip(_colours(len(series)), series.items(), strict=True):
        runs = np.atleast_2d(np.asarray(values, float))
        places = np.arange(1, runs.shape[1] + 1) if at is None else at
        dot = "o" if runs.shape[1] == 1 else None  # a line of one point cannot be seen
        axis.plot(places, runs.mean(0), color=colour, marker=dot, label=shortened(name, 40))
        if len(runs) > 1:
            axis.fill_between(places, runs.min(0), runs.max(0), color=colour, alpha=0.15, lw=0)
    if log:
        axis.set_yscale("log")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=9, framealpha=0.9, edgecolor="none")
    save(figure, path)


def spread(values: Mapping[str, Sequence[float]], path: Path | str, *, x: str) -> None:
    """Draw each named value as its repeats, their mean and range; the first is what it is held to.

    Args:
        values: name to one value for each repeat, such as each seed. x: what they are.
    """
    figure = new_figure(7, 1.0 + 0.42 * len(values))
    axis = figure.subplots()
    for row, found in enumerate(values.values()):
        colour = BLUE if row else ORANGE
        axis.hlines(row, min(found), max(found), color=colour, linewidth=5, alpha=0.25)
        axis.plot(found, [row] * len(found), ".", color=colour, ms=5, alpha=0.6)
        axis.plot(np.mean(found), row, "D", color=colour, ms=7)
        if not row:
            axis.axvline(float(np.mean(found)), color=colour, linestyle="--", linewidth=1)
    axis.set_yticks(range(len(values)), [shortened(name, 40) for name in values])
    axis.invert_yaxis()
    axis.set_xlabel(x)
    axis.grid(axis="x", alpha=0.25)
    save(figure, path)


def gradients(series: Mapping[str, Sequence[Mapping[str, float]]], path: Path | str) -> None:
    """Draw the norm of each layer's gradient over the steps, one panel for each network.

    Args:
        series: name to `rows` of `callbacks.GradientWatch`. The first layers are dark, the last
            ones bright.
    """
    from matplotlib import colormaps

    columns = min(len(series), 2)
    height = math.ceil(len(series) / columns)
    figure = new_figure(4.2 * columns + 0.8, 2.9 * height + 0.3)
    axes = figure.subplots(height, columns, sharey=True, squeeze=False)
    for axis in axes.flat[len(series) :]:
        axis.axis("off")
    for axis, (name, rows) in zip(axes.flat, series.items(), strict=False):
        layers = list(dict.fromkeys(key for row in rows for key in row if key != "step"))
        colours = colormaps["viridis"](np.linspace(0, 0.92, len(layers)))
        for i, (layer, colour) in enumerate(zip(layers, colours, strict=True)):
            norms = [row.get(layer, np.nan) or np.nan for row in rows]  # 0 has no logarithm
            named = shortened(layer, 20) if i in (0, len(layers) - 1) else None
            axis.plot([row["step"] for row in rows], norms, color=colour, lw=1.2, label=named)
        axis.set_yscale("log")
        axis.set_title(shortened(name, 44), fontsize=10)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, framealpha=0.9, edgecolor="none", loc="lower right")
    for axis in axes[:, 0]:
        axis.set_ylabel("norm of the gradient")
    for axis in axes.flat[max(0, len(series) - columns) : len(series)]:
        axis.set_xlabel("step")
    save(figure, path)


def descent(
    loss: np.ndarray,
    ends: tuple[float, float, float, float],
    paths: Mapping[str, np.ndarray],
    path: Path | str,
    names: tuple[str, str] = ("weight 1", "weight 2"),
) -> None:
    """Draw how optimizers walk over a loss of two weights: still as PNG, moving as GIF.

    Args:
        loss: (rows, columns), the loss over a grid: the second weight grows by row, the first by
            column. ends: smallest and largest first weight, then second.
        paths: name to the weights (steps + 1, 2), from the start on.
        path: of the picture; its name ends in `.png`, or in `.gif` for the moving one.
    """
    figure = new_figure(6.4, 5)
    axis = figure.subplots()
    grid = [np.linspace(*ends[:2], loss.shape[1]), np.linspace(*ends[2:], loss.shape[0])]
    # as far apart where the valley is flat as on its steep sides
    levels = np.unique(np.quantile(loss, np.linspace(0, 1, 24) ** 1.5))
    axis.contourf(*grid, loss, levels=levels, cmap="Greys", alpha=0.55)
    row, column = np.unravel_index(loss.argmin(), loss.shape)
    axis.plot(grid[0][column], grid[1][row], "*", color="black", ms=13, label="lowest loss")
    drawn = []
    for colour, (name, walk) in zip(_colours(len(paths)), paths.items(), strict=True):
        (line,) = axis.plot(*walk.T, "-o", color=colour, ms=2.5, lw=1.4, label=name)
        (head,) = axis.plot(*walk[-1:].T, "o", color=colour, ms=8)
        drawn.append((walk, line, head))
    axis.set_xlabel(names[0])
    axis.set_ylabel(names[1])
    axis.set_xlim(*ends[:2])
    axis.set_ylim(*ends[2:])
    axis.legend(fontsize=9, framealpha=0.9, edgecolor="none")
    if Path(path).suffix == ".gif":
        _animate(figure, axis, drawn, Path(path))
    else:
        save(figure, path)


def _animate(figure: Any, axis: Any, drawn: Sequence[Any], path: Path) -> None:
    """Write a GIF in which each path grows step by step; it stands still at its end."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(70)
    canvas = FigureCanvasAgg(figure)
    steps = max(len(walk) for walk, *_ in drawn)
    ends = list(dict.fromkeys([*range(0, steps, math.ceil(steps / _FRAMES)), steps - 1]))
    frames = []
    for end in ends:
        for walk, line, head in drawn:
            line.set_data(*walk[: end + 1].T)
            head.set_data(*walk[: end + 1][-1:].T)
        axis.set_title(f"step {end}", fontsize=10)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(64))
    times = [100] * (len(frames) - 1) + [1500]  # milliseconds
    with files.replacing(path, "wb") as file:
        frames[0].save(file, "gif", save_all=True, append_images=frames[1:], duration=times, loop=0)


def models(rows: Sequence[Mapping[str, Any]], path: Path | str) -> None:
    """Draw the accuracy of networks over what an image costs, joined by year of their paper.

    Args:
        rows: `name`, `year`, `gmacs`, `params` and `top1` (percent) of each. A dot's area is the
            number of parameters.
    """
    figure = new_figure(8, 5)
    axis = figure.subplots()
    years = [row["year"] for row in rows]
    dots = axis.scatter(
        [row["gmacs"] for row in rows],
        [row["top1"] for row in rows],
        [row["params"] / 2.5e5 for row in rows],  # points^2: 10M parameters are 40
        c=years,
        cmap="viridis",
        alpha=0.7,
        edgecolors="white",
    )
    axis.set_xscale("log")
    axis.margins(0.12)
    axis.set_xlabel("10⁹ multiply-accumulates for an image")
    axis.set_ylabel("ImageNet top-1 in percent, as published")
    axis.grid(alpha=0.25)
    figure.colorbar(dots, ax=axis, label="year of the paper", fraction=0.04, pad=0.02)
    _name_dots(figure, axis, rows)
    save(figure, path)


def _name_dots(figure: Any, axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write each name where it covers no other one, if there is such a place beside its dot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the places are those of this layout
    inside, taken = axis.get_window_extent(renderer), list[Any]()
    for row in rows:
        off = math.sqrt(row["params"] / 2.5e5 / math.pi) + 2
        places = (
            (0, off, "center", "bottom"), (off, 0, "left", "center"), (0, -off, "center", "top"),
            (-off, 0, "right", "center"), (off, off, "left", "bottom"), (off, -off, "left", "top"),
            (-off, off, "right", "bottom"), (-off, -off, "right", "top"),
        )  # fmt: skip
        tried: list[tuple[int, int, Any, Any]] = []
        for x, y, across, up in places:
            name = axis.annotate(
                shortened(row["name"], 24), (row["gmacs"], row["top1"]), xytext=(x, y),
                textcoords="offset points", ha=across, va=up, fontsize=8,
            )  # fmt: skip
            box = name.get_window_extent(renderer)
            outside = not (inside.x0 < box.x0 and box.x1 < inside.x1)
            tried.append((sum(map(box.overlaps, taken)) + outside, len(tried), name, box))
        *_, chosen, box = min(tried, key=lambda t: t[:2])
        taken.append(box)
        for _, _, name, _ in tried:
            if name is not chosen:
                name.remove()


def fields(maps: Mapping[str, np.ndarray], boxes: Mapping[str, int], path: Path | str) -> None:
    """Draw where in the image one number of a feature map looks, and the box it cannot leave.

    Args:
        maps: name to (height, width), how much each pixel counts. boxes: name to the width of the
            receptive field in pixels, about the middle.
    """
    from matplotlib.patches import Rectangle

    figure = new_figure(2.6 * len(maps), 3)
    for axis, (name, seen) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items(),
                                  strict=True):  # fmt: skip
        axis.imshow(np.log10(seen / seen.max() + 1e-6), cmap="magma")
        rows, columns = np.nonzero(seen)
        side = boxes[name]
        middle = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
        corner = middle[1] - side / 2, middle[0] - side / 2
        axis.add_patch(Rectangle(corner, side, side, fill=False, color="#4ade80", lw=1.5))
        axis.set_title(f"{shortened(name, 20)}: {side} px", fontsize=10)
        axis.set_xlim(-0.5, seen.shape[1] - 0.5)
        axis.set_ylim(seen.shape[0] - 0.5, -0.5)
        axis.axis("off")
    save(figure, path)


def _colours(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]
