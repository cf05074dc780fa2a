"""How the answers of `predict`, `lr-find` and `compare` are written; which photos are meant."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import console
from .errors import UsageError


def photos(given: Iterable[str]) -> Iterator[str]:
    """Yield files as given, the images below folders sorted, and stdin's lines for `-`."""
    for photo in given:
        if photo == "-":
            yield from _listed(sys.stdin)
        else:
            yield from below(photo)


def _listed(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if "\0" in line:  # which no name of a file holds: a photo itself, or find -print0
            raise UsageError(
                "usage",
                "stdin holds no list of files",
                fix="- reads one path a line; give a photo by its path",
            )
        if path := line.rstrip("\r\n"):
            yield path


def below(photo: Any) -> Iterator[Any]:
    """Yield the images below a folder, sorted, as training finds them; what is none as it is."""
    from .data.decode import claims_image
    from .data.folder import files_below

    if isinstance(photo, (str, Path)) and os.path.isdir(photo):
        yield from (str(path) for path in files_below(Path(photo)) if claims_image(path))
    else:
        yield photo


def _line(prediction: Any, *_: Any) -> str:
    top = "  ".join(f"{console.plain(label)} {p:.1%}" for label, p in prediction.top)
    bad = prediction.error is not None
    answer = f"error: {console.plain(prediction.error)}" if bad else top
    picture = f"  {console.plain(prediction.explained)}" if prediction.explained else ""
    return f"{console.plain(str(prediction.path))}  {answer}{picture}"


def _csv_row(prediction: Any, topk: int, pictures: bool) -> str:
    cells = [cell for label, p in prediction.top for cell in (label, f"{p:.6f}")]
    cells += [""] * (2 * topk - len(cells))  # there are fewer classes, or none of a broken photo
    picture = [prediction.explained or ""] if pictures else []
    return _csv([str(prediction.path), prediction.error or "", *cells, *picture])


def csv_head(topk: int, pictures: bool) -> str:
    """Return the first line of the CSV."""
    columns = (f"{c}{i + 1}" for i in range(topk) for c in ("label", "probability"))
    return _csv(["path", "error", *columns, *(["explained"] if pictures else [])])


def _csv(row: Sequence[str]) -> str:
    from .data.table import escape

    # "\r\n" for the quotes that it puts around names with either in them
    csv.writer(line := io.StringIO(), lineterminator="\r\n").writerow(map(escape, row))
    return line.getvalue().removesuffix("\r\n")


def _json(prediction: Any, *_: Any) -> str:
    top = [{"label": label, "probability": float(p)} for label, p in prediction.top]
    row = {"path": str(prediction.path), "error": prediction.error, "top": top}
    return console.as_json(row | ({"explained": p} if (p := prediction.explained) else {}))


# format -> one line for one prediction, of so many classes, with a picture or without
FORMATS = {"table": _line, "csv": _csv_row, "jsonl": _json}


def rates(found: dict[str, Any], lines: int = 12) -> None:
    """Print the result of `lr_find`: some of its steps, and the suggestion."""
    rows = found["rows"]
    chosen = sorted({round(i * (len(rows) - 1) / (lines - 1)) for i in range(lines)})
    cells = [(f"{rows[i]['lr']:.1e}", *(f"{rows[i][k]:.4g}" for k in ("loss", "smooth")))
             for i in chosen]  # fmt: skip
    console.table(cells, [">lr", ">loss", ">average"])
    preset = f"; the preset has {found['preset']:.1e}" if found["preset"] else ""
    console.out(
        f"suggestion: lr {found['lr']:.1e} for stage {found['stage']} with {found['optimizer']} "
        f"(steepest fall {found['steepest']:.1e}, a tenth of the lowest {found['tenth']:.1e}"
        f"{preset})"
    )


def compared(found: dict[str, Any]) -> None:
    """Print what `compare` found."""
    (_runs if "runs" in found else _backbones if "backbones" in found else _starts)(found)


def _share(row: dict[str, Any], split: str) -> str | None:
    if row.get(f"{split}_accuracy") is None:
        return None
    low, high = row[f"{split}_ci"]
    return f"{row[f'{split}_accuracy']:.1%} ({100 * low:.1f}-{100 * high:.1f})"


def _runs(found: dict[str, Any]) -> None:
    keys = list(found["runs"][0]["settings"])
    cells = [
        (
            *(row[key] if row["status"] == "finished" or key != "run" else f"{row[key]} "
              f"({row['status']})" for key in ("run", "backbone", "preset")),
            _share(row, "val"),
            _share(row, "test"),
            row["epochs"],
            row["seconds"],
            *(row["settings"][key] for key in keys),
        )
        for row in found["runs"]
    ]  # fmt: skip
    heads = ["run", "backbone", "preset", ">validation (95 % CI)", ">test (95 % CI)", ">epochs"]
    console.table(cells, [*heads, ">seconds", *keys])
    if not found["same_data"]:
        console.say("the runs had other photos or other splits: their accuracies do not compare")


def _backbones(found: dict[str, Any]) -> None:
    from .about import count

    cells: list[tuple[Any, ...]] = [
        (row["backbone"], *(None,) * 8, row["error"])
        if row["error"]
        else (
            row["backbone"],
            _share(row, "val"),
            _share(row, "test"),
            row["size"],
            count(row["params"]),
            f"{row['gmacs']:.3g}",
            f"{row['ms_one']:.1f}",
            f"{row['ms_batch']:.1f}",
            f"{row['seconds']:.1f}",
            None,
        )
        for row in found["backbones"]
    ]
    heads = ["backbone", ">validation (95 % CI)", ">test (95 % CI)", ">size", ">params", ">GMACs"]
    heads += [">ms an image", ">in batches", ">seconds", "not measured"]
    if not any(row["error"] for row in found["backbones"]):
        heads, cells = heads[:-1], [row[:-1] for row in cells]
    console.table(cells, heads)


def _starts(found: dict[str, Any]) -> None:
    curves = found["curves"]
    accuracies = zip(*(curve["accuracy"] for curve in curves.values()), strict=True)
    cells: list[tuple[Any, ...]] = [
        (epoch, *(f"{a:.1%}" for a in each)) for epoch, each in enumerate(accuracies)
    ]
    for part, winner in found["higher"].items():
        figures = (f"{curve[part]:.1%}{' *' if name == winner else ''}"
                   for name, curve in curves.items())  # fmt: skip
        cells.append((part, *figures))
    console.table(cells, ["epoch", *(f">{name}" for name in curves)])
