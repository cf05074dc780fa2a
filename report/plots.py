"""Pictures of a run as PNG files, drawn without pyplot and its global state."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files, units
from .metrics import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, GREEN = "#1f5fa8", "#d9731a", "#6b7280", "#2b8a3e"
_DPI = 110


def curves(rows: Sequence[Mapping[str, Any]], path: Path | str, best: int | None = None) -> None:
    """Draw loss, accuracy and learning rate over all epochs, with the stages and the best one.

    Args:
        rows: of metrics.csv: `stage`, `epoch`, `loss`, `val_loss`, an accuracy and its `val_`
            twin, `lr`; numbers may be strings, empty ones are gaps.
        path: of the PNG file.
        best: epoch (from 1) whose weights were kept; default that of the lowest `val_loss`.
    """
    epochs = np.arange(1, len(rows) + 1)
    series = {name: _column(rows, name) for name in _names(rows)}
    score = next((name for name in series if "acc" in name and not name.startswith("val_")), None)
    if best is None and np.isfinite(series.get("val_loss", np.array([np.nan]))).any():
        best = int(np.nanargmin(series["val_loss"])) + 1
    panels = [("loss", "loss"), (score, "accuracy"), ("lr", "learning rate")]
    panels = [
        (name, title)
        for name, title in panels
        if name in series and np.isfinite(series[name]).any()
    ]
    figure = new_figure(7, 0.6 + 2 * len(panels))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, title) in zip(axes, panels, strict=True):
        if name == "lr":
            axis.plot(epochs, series[name], color=GREY, marker=".", drawstyle="steps-mid")
            least, most = np.nanmin(series[name]), np.nanmax(series[name])
            if least > 0:
                axis.set_yscale("log")
                # a cosine ends near 0, which would leave no room for the rest
                axis.set_ylim(max(least, most / 1e4) / 1.5, most * 1.5)
        else:
            marker = "o" if len(rows) <= 40 else None
            for key, colour, label in (
                (name, BLUE, "train"),
                (f"val_{name}", ORANGE, "validation"),
            ):
                if key in series:
                    axis.plot(epochs, series[key], color=colour, marker=marker, ms=3.5, label=label)
        axis.set_ylabel(title)
        axis.grid(alpha=0.25)
        if best:
            label = f"kept: epoch {best}"
            axis.axvline(best, color=GREEN, linestyle="--", linewidth=1.2, label=label)
    _stages(axes, [str(row.get("stage", "")) for row in rows])
    axes[0].legend(fontsize=9, framealpha=0.9, edgecolor="none")
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes[-1].set_xlim(0.5, len(rows) + 0.5)
    save(figure, path)


def confusion(metrics: Mapping[str, Any], path: Path | str) -> None:
    """Draw the confusion matrix of `metrics.evaluate`: the share of each true class.

    Up to 30 classes have their counts written in; where not all names fit, every second or
    third class has one. A multilabel task has a matrix per class, so bars of precision and
    recall are drawn.
    """
    if metrics["task"] == "multilabel":
        _bars(metrics, path)
        return
    counts = np.asarray(metrics["confusion"])
    names = [shortened(name, 24) for name in metrics["per_class"]]
    k = len(names)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(3.2 + 0.33 * k, 13)
    size = float(np.clip(11 - 0.12 * k, 6, 10))
    figure = new_figure(side + 1.2, side)
    axis = figure.subplots()
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(
        image, ax=axis, fraction=0.04, pad=0.02, aspect=30, label="share of the true class"
    )
    # As many names as fit: one needs about 1.3 times its font size.
    step = math.ceil(k * size * 1.3 / 72 / (side * 0.72))
    ticks = range(0, k, step)
    turn = 90 if 0.65 * size / 72 * max(map(len, names)) > side * 0.72 / k else 0
    axis.set_xticks(ticks, names[::step], rotation=turn, fontsize=size)
    axis.set_yticks(ticks, names[::step], fontsize=size)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title(f"accuracy {units.accuracy(metrics)}", fontsize=11)
    if k <= 30:
        widest = max(len(str(counts.max())), 2)
        inner = min(10.0, side * 0.72 / k * 72 / (0.75 * widest))
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if share[row, column] > 0.55 else "#1f2937"
                axis.text(
                    column, row, str(count), ha="center", va="center", color=colour, size=inner
                )
    save(figure, path)


def samples(images: Sequence[np.ndarray], titles: Sequence[str], path: Path | str) -> None:
    """Draw images (height, width, 3) in 0..255, of any size, in a grid with their titles."""
    save(gallery(images, titles), path)


def gallery(
    images: Sequence[np.ndarray], titles: Sequence[str], columns: int | None = None
) -> Figure:
    """Return a figure of images and their titles, by default about as many columns as lines."""
    columns = columns or min(len(images), max(1, math.ceil(math.sqrt(len(images)))))
    lines = math.ceil(len(images) / columns)
    wrapped = ["\n".join(textwrap.wrap(shortened(title, 48), 24)) for title in titles]
    shapes = [np.shape(image)[:2] for image in images]
    # Each line as high as its tallest image, within reason, plus the title.
    heights = [
        2.1 * max(min(h / w, 1.6) for h, w in shapes[i * columns : (i + 1) * columns])
        + 0.16 * (1 + max(t.count("\n") for t in wrapped[i * columns : (i + 1) * columns]))
        for i in range(lines)
    ]
    figure = new_figure(2.1 * columns + 0.3, sum(heights) + 0.12 * lines + 0.2)
    grid = figure.subplots(lines, columns, squeeze=False, height_ratios=heights)
    for axis in grid.flat:
        axis.axis("off")
    for axis, image, title in zip(grid.flat, images, wrapped, strict=False):
        axis.imshow(np.clip(np.asarray(image), 0, 255).astype("uint8"))
        axis.set_anchor("N")
        axis.set_title(title, fontsize=9, pad=4)
    return figure


def reliability(series: Mapping[str, Sequence[Sequence[float]]], path: Path | str) -> None:
    """Draw the share of right answers over how sure they were (a reliability diagram).

    Args:
        series: name to rows of `metrics.calibration`; a dot's area is its number of images, its
            line the 95 % interval of the share.
    """
    figure = new_figure(5.2, 4.4)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="as sure as right")
    for colour, (name, bins) in zip((ORANGE, BLUE), series.items(), strict=False):
        count, sure, right = np.array(bins).T
        ends = np.array([wilson(n * share, n) for n, share in zip(count, right, strict=True)]).T
        axis.vlines(sure, *ends, color=colour, linewidth=1.2, alpha=0.35)
        area = 14 + 240 * count / count.sum()
        axis.scatter(sure, right, area, color=colour, alpha=0.75)
        axis.scatter([], [], 36, color=colour, alpha=0.75, label=shortened(name, 32))
    axis.set_xlabel("how sure the answer was")
    axis.set_ylabel("share that was right")
    axis.set_xlim(-0.02, 1.04)
    axis.set_ylim(-0.04, 1.06)
    axis.grid(alpha=0.25)
    # dots lie anywhere within the axes
    figure.legend(loc="outside upper center", ncols=3, fontsize=9, frameon=False, columnspacing=1)
    save(figure, path)


def sizes(sides: Sequence[int], used: int, path: Path | str) -> None:
    """Draw how many photos have a shorter side of how many pixels, and the size they are given."""
    figure = new_figure(6.4, 2.8)
    axis = figure.subplots()
    low, high = min(sides), max(sides)
    wide = high > 4 * low
    bins = np.geomspace(low, high, 25) if wide else np.linspace(low - 0.5, high + 0.5, 25)
    axis.hist(sides, bins=bins.tolist(), color=BLUE, alpha=0.8)
    if wide:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
    axis.axvline(used, color=ORANGE, linestyle="--", label=f"the model sees {used} px")
    axis.set_xlabel("shorter side in pixels")
    axis.set_ylabel("photos")
    axis.grid(axis="y", alpha=0.25)
    axis.legend(fontsize=9, framealpha=0.9, edgecolor="none")
    save(figure, path)


def rates(rows: Sequence[Mapping[str, Any]], marks: Mapping[str, float], path: Path | str) -> None:
    """Draw the loss of a range test over the learning rate, and the rates that it suggests.

    Args:
        rows: `lr`, `loss` and `smooth` of each step. marks: name to learning rate.
    """
    figure = new_figure(7, 4)
    axis = figure.subplots()
    lr, loss, smooth = (_column(rows, name) for name in ("lr", "loss", "smooth"))
    axis.plot(lr, loss, ".", color=GREY, alpha=0.5, ms=4, label="each batch")
    axis.plot(lr, smooth, color=BLUE, label="average")
    for colour, (name, value) in zip((GREEN, ORANGE), marks.items(), strict=False):
        axis.axvline(value, color=colour, linestyle="--", label=f"{name}: {value:.2g}")
    seen = smooth[np.isfinite(smooth)]
    if len(seen) and seen.min() < seen[0]:  # what comes after divergence would flatten the rest
        low, high = seen.min(), max(seen[0], np.nanmax(loss[: max(3, len(loss) // 4)]))
        axis.set_ylim(low - 0.1 * (high - low), high + 0.2 * (high - low))
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("loss")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=9, framealpha=0.9, edgecolor="none")
    save(figure, path)


def tradeoff(rows: Sequence[Mapping[str, Any]], path: Path | str) -> None:
    """Draw the accuracy of backbones over their latency; a dot's area is the number of parameters.

    Args:
        rows: `backbone`, `val_accuracy`, `val_ci`, `ms_one` and `params` of each.
    """
    figure = new_figure(8, 5)
    axis = figure.subplots()
    x, y = _column(rows, "ms_one"), 100 * _column(rows, "val_accuracy")
    area = np.maximum(_column(rows, "params") / 1e5, 8)  # points^2: 10M parameters are 100
    ends = 100 * np.array([row["val_ci"] for row in rows], float).T
    axis.errorbar(x, y, np.abs(ends - y), fmt="none", ecolor=GREY, alpha=0.5, linewidth=1)
    axis.scatter(x, y, area, color=BLUE, alpha=0.6, edgecolors="white", zorder=3)
    for row, at, height, size in zip(rows, x, y, area, strict=True):
        side = 1 if at <= (x.min() + x.max()) / 2 else -1  # names stay inside
        axis.annotate(
            f"{shortened(str(row['backbone']), 32)} ({row['params'] / 1e6:.1f}M)",
            (at, height),
            xytext=(side * (math.sqrt(size / math.pi) + 3), 3),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            fontsize=8,
        )
    axis.margins(x=0.25)
    axis.set_xlabel("milliseconds an image, one at a time")
    axis.set_ylabel("validation accuracy in percent (95 % interval)")
    axis.grid(alpha=0.25)
    save(figure, path)


def starts(
    curves: Mapping[str, Mapping[str, Any]], higher: Mapping[str, str | None], path: Path | str
) -> None:
    """Draw validation accuracy per epoch from several first weights, and who is higher where.

    Args:
        curves: `accuracy` of each, from epoch 0 (before training) on.
        higher: of `start`, `slope` and `asymptote`: which of `curves`.
    """
    figure = new_figure(8, 5)
    axis = figure.subplots()
    for colour, (name, curve) in zip((BLUE, ORANGE, GREEN, GREY), curves.items(), strict=False):
        y = 100 * np.array(curve["accuracy"])
        axis.plot(y, color=colour, marker="o", ms=3.5, label=f"weights: {shortened(name, 24)}")
        steepest = int(np.diff(y).argmax())
        places = {
            "start": (1, y[1], (8, -14)),
            "slope": (steepest + 0.5, (y[steepest] + y[steepest + 1]) / 2, (10, 0)),
            "asymptote": (len(y) - 1, y[-1], (-8, 8)),
        }
        for part, (x, height, shift) in places.items():
            if higher[part] == name:
                axis.annotate(
                    f"higher {part}",
                    (x, height),
                    xytext=shift,
                    textcoords="offset points",
                    ha="right" if shift[0] < 0 else "left",
                    fontsize=9,
                    color=colour,
                )
    axis.set_xlabel("epoch")
    axis.set_ylabel("validation accuracy in percent")
    axis.set_ylim(0, 108)
    axis.locator_params(axis="x", integer=True)
    axis.grid(alpha=0.25)
    axis.legend(loc="lower right", fontsize=9, framealpha=0.9, edgecolor="none")
    save(figure, path)


def _bars(metrics: Mapping[str, Any], path: Path | str) -> None:
    names = list(metrics["per_class"])
    figure = new_figure(8, 1.4 + 0.32 * len(names))
    axis = figure.subplots()
    places = np.arange(len(names))
    for shift, key, colour in ((-0.2, "precision", BLUE), (0.2, "recall", ORANGE)):
        values = [metrics["per_class"][name][key] for name in names]
        axis.barh(places + shift, values, 0.38, color=colour, label=key)
    supports = [metrics["per_class"][name]["support"] for name in names]
    labels = [f"{shortened(n, 24)} ({s})" for n, s in zip(names, supports, strict=True)]
    axis.set_yticks(places, labels, fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.grid(axis="x", alpha=0.25)
    axis.set_title(
        f"all labels right: {metrics['accuracy'] * 100:.1f} % of {metrics['n']:,}", fontsize=11
    )
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    save(figure, path)


def _stages(axes, stages: Sequence[str]) -> None:
    """Draw a line between stages, shade every second one and write their names on top."""
    starts = [i for i, stage in enumerate(stages) if i == 0 or stage != stages[i - 1]]
    ends = [*starts[1:], len(stages)]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        for axis in axes:
            if number:
                axis.axvline(start + 0.5, color=GREY, linewidth=0.8)
            if number % 2:
                axis.axvspan(start + 0.5, end + 0.5, color=GREY, alpha=0.07, linewidth=0)
        room = max(3, int(70 * (end - start) / len(stages)))
        axes[0].annotate(
            shortened(stages[start], room),
            ((start + end + 1) / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color="#374151",
        )


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if name != "stage"))


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    values = [row.get(name) for row in rows]
    return np.array([np.nan if v in (None, "") else float(v) for v in values])


def shortened(text: str, length: int) -> str:
    """Return text on one line, its middle left out if it is too long."""
    text = " ".join(text.split())
    if len(text) > length:
        tail = length // 3
        text = f"{text[: length - 1 - tail]}…{text[-tail:]}"
    return text.replace("$", r"\$")  # or matplotlib would set it as mathematics


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, so many inches wide and high, that finds its own margins."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    return Figure(figsize=(width, height), dpi=_DPI, layout=layout, facecolor="white")


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG, atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with files.replacing(path, "wb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box says so in the picture
        figure.savefig(file, format="png")
