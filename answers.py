"""`dlzoo predict`: which photos are meant, and how an answer is written."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import console


def photos(given: Iterable[str]) -> Iterator[str]:
    """Yield files as given, the images below folders sorted, and stdin's lines for `-`."""
    from .data.decode import claims_image

    for photo in given:
        if photo == "-":
            yield from (path for line in sys.stdin if (path := line.rstrip("\r\n")))
        elif os.path.isdir(photo):
            for path in sorted(Path(photo).rglob("*")):
                hidden = any(part.startswith(".") for part in path.relative_to(photo).parts)
                if not hidden and path.is_file() and claims_image(path):
                    yield str(path)
        else:
            yield photo


def _line(prediction: Any) -> str:
    top = "  ".join(f"{console.plain(label)} {p:.1%}" for label, p in prediction.top)
    bad = prediction.error is not None
    answer = f"error: {console.plain(prediction.error)}" if bad else top
    return f"{console.plain(str(prediction.path))}  {answer}"


def _csv_row(prediction: Any) -> str:
    cells = (cell for label, p in prediction.top for cell in (label, f"{p:.6f}"))
    return _csv([str(prediction.path), prediction.error or "", *cells])


def csv_head(topk: int) -> str:
    """Return the first line of the CSV."""
    columns = (f"{c}{i + 1}" for i in range(topk) for c in ("label", "probability"))
    return _csv(["path", "error", *columns])


def _csv(row: Sequence[str]) -> str:
    from .data.table import escape

    # "\r\n" for the quotes that it puts around names with either in them
    csv.writer(line := io.StringIO(), lineterminator="\r\n").writerow(map(escape, row))
    return line.getvalue().removesuffix("\r\n")


def _json(prediction: Any) -> str:
    top = [{"label": label, "probability": float(p)} for label, p in prediction.top]
    return console.as_json({"path": str(prediction.path), "error": prediction.error, "top": top})


# format -> one line for one prediction
FORMATS = {"table": _line, "csv": _csv_row, "jsonl": _json}
