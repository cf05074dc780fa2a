"""The report of a run: one HTML file that needs no network and no script, and a model card."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from ..errors import UsageError
from ..units import clock
from . import doubts, facts, gradcam, metrics, plots

if TYPE_CHECKING:
    from ..data import Data
    from ..rundir import RunDir
    from ..transfer.classifier import Classifier

PAGE, CARD = "report.html", "MODEL_CARD.md"
SAMPLES = 8  # training photos shown
DOTS = 10  # of each kind in the reliability diagram
_THUMB = 224  # pixels of a photo's side in the page
_LONG = 30  # rows of a table from which the weakest come first


def build(
    directory: RunDir,
    classifier: Classifier,
    data: Data | None,
    *,
    why: str = "",
    seconds: float = 60.0,
) -> Path:
    """Write `report.html`, `MODEL_CARD.md` and the plots of a finished run.

    The temperature found on the validation photos goes into `model/model.json`.

    Args:
        data: the photos of the run; without them what needs them is left out.
        why: said in their place.
        seconds: that the photos for the robustness may take, about.

    Returns:
        The path of the page.
    """
    from ..transfer.classifier import annotate

    told = facts.of_run(directory, classifier)
    both: Mapping[str, Sequence[np.ndarray]] = {}
    if data is not None:
        answers = {s: classifier.answers(data, s) for s in ("val", "test") if data.splits[s]}
        told["calibration"], both = facts.calibrate(classifier, data, answers)
        annotate(directory.model, calibration=told["calibration"])
        told |= facts.of_photos(classifier, data, answers, told["main"], seconds)
        told["sizes"] = data.summary()["shorter_side"]
    told |= {"caveats": facts.caveats(told), "photos": data is not None, "why": why}
    directory.plots.mkdir(exist_ok=True)
    told["plots"] = _plots(directory, told, classifier, data, both)
    told |= _photos(directory, told, classifier, data) if data is not None else {}
    css = Path(__file__).with_name("page.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    path = directory.path / PAGE
    _write(path, _render("page.html", told, css=css, css_digest=digest))
    _write(directory.path / CARD, _render("card.md", told))
    return path


def _plots(
    directory: RunDir,
    told: Mapping[str, Any],
    classifier: Classifier,
    data: Data | None,
    both: Mapping[str, Sequence[np.ndarray]],
) -> dict[str, str]:
    """Draw what is not there yet; return name to data URI."""
    figures, folder = told["figures"], directory.plots
    rows = facts.read_rows(directory.history)
    drawings: dict[str, Callable[[Path], None]] = {
        "curves": lambda path: plots.curves(rows, path, best=told["training"]["best"]["epoch"]),
        "confusion": lambda path: plots.confusion(figures, path),
    }
    for name, draw in drawings.items():
        if not (path := folder / f"{name}.png").is_file():
            draw(path)
    if data is not None:
        split, found = told["main"], told["calibration"]
        names = ("without", f"with temperature {found['temperature']:.2f}")
        labels, task = data.labels(split), classifier.task
        series = {
            name: metrics.calibration(*metrics.confidence(labels, p, task), DOTS)
            for name, p in zip(names, both[split], strict=True)
        }
        plots.reliability(series, folder / "calibration.png")
        sides = [min(r.width, r.height) for s in data.splits for r in data.records(s)]
        if len(set(sides)) > 1:
            plots.sizes(sides, classifier.preprocess.size, folder / "sizes.png")
    return {n: _uri((folder / f"{n}.png").read_bytes(), "png")
            for n in (*drawings, "calibration", "sizes")
            if (folder / f"{n}.png").is_file()}  # fmt: skip


def _photos(
    directory: RunDir, told: Mapping[str, Any], classifier: Classifier, data: Data
) -> dict[str, Any]:
    """Return the rows that show photos, with these; draw two galleries of them."""
    from ..data.pipeline import batches, load_image, surfacing

    rule, split = classifier.preprocess, told["main"]

    def prepared(of: str, i: int) -> np.ndarray:
        return load_image(data.records(of)[i].pixels(data.max_pixels), rule)

    worst = told["worst"]
    images = np.stack([prepared(split, row["index"]) for row in worst])
    pairs = [[image] for image in images]
    with suppress(UsageError):  # a network without feature maps
        asked = [row["likeliest"] for row in worst]
        for pair, found in zip(pairs, gradcam.explain(classifier, images, asked), strict=True):
            pair.append(found.overlay())
    titles = list(map(doubts.title, worst))
    plots.samples([pair[-1] for pair in pairs], titles, directory.plots / "top_losses.png")
    doubted = [prepared(row["split"], row["index"]) for row in told["doubted"]]
    augment, records = told["plan"]["augment"], data.records("train")
    rows = np.unique(np.linspace(0, len(records) - 1, SAMPLES).astype(int))
    views = []
    with surfacing(data):
        for view in range(1 if augment == "none" else 2):
            how = {"batch": len(rows), "augment": augment, "view": view, "rows": rows}
            views.append(next(iter(batches(data, "train", rule, **how)))[0].numpy())
    labels = [", ".join(records[i].labels) for i in rows]
    samples = list(zip(*views, strict=True))
    if augment != "none":
        names = [name for label in labels for name in (label, "varied")]
        plots.samples(list(chain(*samples)), names, directory.plots / "augmented.png")
    return {
        "worst": [row | {"images": _thumbs(pair)} for row, pair in zip(worst, pairs, strict=True)],
        "doubted": [
            row | {"images": _thumbs([image])}
            for row, image in zip(told["doubted"], doubted, strict=True)
        ],
        "samples": [
            {"label": label, "images": _thumbs(views)}
            for label, views in zip(labels, samples, strict=True)
        ],
    }


def _thumbs(images: Iterable[np.ndarray]) -> list[str]:
    return [_thumb(image) for image in images]


def _thumb(image: np.ndarray) -> str:
    """Return an image (height, width, 3) in 0..255 as a data URI."""
    from PIL import Image

    picture = Image.fromarray(np.clip(image, 0, 255).astype("uint8"))
    picture.thumbnail((_THUMB, _THUMB))
    picture.save(buffer := io.BytesIO(), "jpeg", quality=82)
    return _uri(buffer.getvalue(), "jpeg")


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _write(path: Path, text: str) -> None:
    """Write text as UTF-8; names of files that are no text are shown with question marks."""
    with files.replacing(path, "wb") as file:
        file.write(text.encode("utf-8", "replace"))


def _render(template: str, told: Mapping[str, Any], **more: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda share, digits=1: f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%",
        "count": lambda n: f"{n:,}",
        "size": _size,
        "clock": clock,
        "plain": _plain,
        "weakest": _weakest,
    }
    return environment.get_template(template).render(**told, **more)


def _size(n: float) -> str:
    return f"{n / 1e6:,.1f} MB" if n >= 1e5 else f"{n / 1e3:,.1f} kB"


def _plain(text: Any) -> str:
    """Return text that is no Markdown and no HTML, on one line."""
    escaped = re.sub(r"([\\`*_\[\]|])", r"\\\1", " ".join(str(text).split()))
    return html.escape(escaped, quote=False)


def _weakest(per_class: Mapping[str, Mapping[str, float]]) -> list[tuple[str, Mapping[str, float]]]:
    """Return the rows of a table of classes; those of a long one with the weakest first."""
    rows = list(per_class.items())
    return rows if len(rows) < _LONG else sorted(rows, key=lambda row: row[1]["f1"])
