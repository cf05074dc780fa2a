"""Compare every model with its reference implementations and write the table of docs/MODELS.md.

    python benchmarks/models.py            # all, about 15 minutes
    python benchmarks/models.py "vgg*"     # some: printed, the page is left as it is

The references are keras.applications (installed with Keras), torchvision and timm (by the golden
files that tools/make_golden.py made of them) and, for the first nets of a course, NumPy. Both sides
have the same random weights and see the same two images; a difference is the largest one of any
logit, in standard deviations of the logits.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import keras  # noqa: E402
from dlzoo import zoo  # noqa: E402
from dlzoo.zoo import anatomy  # noqa: E402
from equality import (  # noqa: E402
    GOLDEN,
    golden_of,
    keras_case,
    summary,
    to_golden,
    to_keras,
    to_numpy,
)

PAGE = ROOT / "docs" / "MODELS.md"
HEAD = """# Models

Written by `python benchmarks/models.py`. GMACs are 10^9 multiply-accumulates of one image of the
given size in pixels; the receptive field is that of the last tap. A difference is the largest one
of any logit to the reference with the same random weights, in standard deviations of the
logits; what remains is the rounding of float32.

"""
COLUMNS = {
    "model": "---", "paper": "---", "params": "--:", "GMACs": "--:", "size": "--:", "taps": "---",
    "sees": "--:", "weights (ImageNet top-1)": "---", "largest difference to": "---",
}  # fmt: skip


def differences(name: str, folder: Path) -> dict[str, float]:
    """Return the largest difference of a variant to each of its references."""
    variant = zoo.variants()[name]
    found = {}
    if variant.keras:
        found[f"keras.applications {variant.keras}"] = to_keras(name, *keras_case(name, folder))
        (folder / f"{name}.h5").unlink()
    if (GOLDEN / f"{name}.npz").exists():
        found[golden_of(name)] = to_golden(name, folder)
    if not found:
        found["NumPy"] = to_numpy(name)
    return found


def line(name: str, found: dict[str, float]) -> str:
    """Return the row of the page."""
    v = zoo.variants()[name]
    size = max(v.min_size, 64) if v.family.head is None else None
    rows = anatomy.layers(zoo.create_model(name, input_shape=size))
    field = next((row.field[0] for row in reversed(rows) if row.tap), "")
    weights = ", ".join(f"`{w.tag}` {w.top1 or '-'}" for w in v.weights) or "none"
    off = "; ".join(f"{reference}: {value:.1e}" for reference, value in found.items())
    paper = v.family.paper
    if paper.startswith("arXiv:"):
        paper = f"[{v.family.year}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})"
    else:
        paper = f"[{v.family.year}](https://doi.org/{paper.rpartition('doi:')[2]})"
    taps = " ".join(f"{tap}:{channels}" for tap, channels in v.taps.items()) or "none"
    cells = [f"`{name}`", paper, f"{v.params:,}", v.gmacs, v.size, taps, field, weights, off]
    return row(cells)


def row(cells) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main(pattern: str | None = None) -> None:
    lines, worst = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name in zoo.list_models(pattern):
            found = differences(name, Path(folder))
            worst[name] = max(found.values())
            shown = "  ".join(f"{value:.1e} ({reference})" for reference, value in found.items())
            print(f"{name:34s} {shown}", flush=True)
            lines.append(line(name, found))
            keras.backend.clear_session()
            gc.collect()
    print(summary(worst))
    if pattern is None:
        table = "\n".join([row(COLUMNS), row(COLUMNS.values()), *lines])
        PAGE.write_text(f"{HEAD}\n{summary(worst)}\n\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
