"""Tables: a CSV of images as a source, split files, and the CSV files a run writes.

A cell that a spreadsheet would take for a formula is written with a leading apostrophe and
read back without it, so that names survive the round trip unchanged.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath

from .. import files
from ..errors import DataError, nearest
from .folder import files_in, only_folder
from .records import Record, Source, split_name

SUFFIXES = (".csv", ".tsv")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # what is escaped already is escaped once more
_ESCAPED = re.compile(r"''*[=+\-@\t\r]")


def escape(cell: str) -> str:
    """Return a cell that no spreadsheet runs; `unescape` gives the original back."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unescape(cell: str) -> str:
    """Undo `escape`; other cells stay as they are."""
    return cell[1:] if _ESCAPED.match(cell) else cell


def write_csv(path: Path | str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file atomically, every cell escaped; file names need not be valid Unicode."""
    with files.replacing(path, errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([escape(str(cell)) for cell in row] for row in rows)


def read_csv(path: Path, needed: Sequence[str], id: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file as dictionaries, keys lower case, cells unescaped.

    Commas, semicolons and tabs separate; it is UTF-8, or UTF-16 with its mark, as spreadsheets
    write it. A row that ends early has empty cells there.

    Raises:
        DataError: with `id`, if it cannot be read, a needed column is missing or there twice, or a
            row is longer than the first line.
    """
    return [row for _, row in _numbered(path, needed, id)]


def _numbered(path: Path, needed: Sequence[str], id: str) -> list[tuple[int, dict[str, str]]]:
    """Return the rows as `read_csv` does, each with its number in a spreadsheet."""
    text = _text(path, id)
    first = text.splitlines()[0] if text.strip() else ""
    delimiter = max(",;\t", key=first.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise DataError(id, f"not a valid CSV file: {error}", where=path) from error
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    for column in needed:
        if column not in header:
            raise DataError(
                id,
                f"no column {column!r}{nearest(column, header)}",
                where=path,
                fix=f"the first line names the columns: {','.join(needed)}",
            )
    for column in (*needed, "split"):
        if header.count(column) > 1:
            raise DataError(id, f"{header.count(column)} columns are called {column!r}", where=path)
    short = dict.fromkeys(header, "")
    found = []
    for number, row in enumerate(rows[1:], start=2):
        if any(cell.strip() for cell in row[len(header) :]):
            raise DataError(
                id,
                f"row {number} has {len(row)} cells, the first line {len(header)}",
                where=path,
                fix='put a cell that holds the separator between quotes: "a, b.jpg"',
            )
        if any(row):
            found.append((number, short | dict(zip(header, map(unescape, row), strict=False))))
    return found


def _text(path: Path, id: str) -> str:
    """Return what a text file says; raises DataError if it is none."""
    try:
        content = path.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = content.decode("utf-16")
        else:
            text = content.decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DataError(id, f"cannot be read: {error.strerror}", where=path) from error
    except UnicodeDecodeError as error:
        raise DataError(id, f"not whole UTF-16 text: {error.reason}", where=path) from error
    if "\0" in text[:4096].partition("\n")[0]:
        raise DataError(
            id,
            "not text in UTF-8, or in UTF-16 with its mark",
            where=path,
            fix="save it as CSV in UTF-8",
        )
    return text


def read_table(path: Path, multilabel: bool = False) -> Source:
    """Return the catalogue of a CSV file with the columns path, label and perhaps split.

    Paths are relative to the CSV file. Labels may be `a|b` for multilabel, and then also empty.

    Args:
        multilabel: it is, whatever the labels look like; so it is where the file's name says so.

    Raises:
        DataError: `data.csv`, `data.split` (an unknown split name, or only some rows have one).
    """
    root = path.absolute().parent
    records: dict[str, Record] = {}
    multilabel = multilabel or "multilabel" in path.stem.lower()
    for number, row in _numbered(path, ("path", "label"), "data.csv"):
        key = PurePath(row["path"].strip()).as_posix() if row["path"].strip() else ""
        labels = tuple(dict.fromkeys(x.strip() for x in row["label"].split("|")))
        labels = tuple(label for label in labels if label)
        if not key:
            raise DataError("data.csv", f"row {number} has no path", where=path)
        split = row.get("split", "").strip()
        if split and split_name(split) is None:
            raise DataError(
                "data.split",
                f"row {number}: {split!r} is no split; train, val or test is",
                where=path,
            )
        record = Record(key, labels, root / key, split_name(split) if split else None)
        known = records.setdefault(key, record)
        if (known.labels, known.split) != (record.labels, record.split):
            raise DataError("data.csv", f"{key!r} is listed twice, differently", where=path)
    found = list(records.values())
    if not found:
        raise DataError("data.csv", "the table has no rows", where=path)
    without = [record.key for record in found if record.split is None]
    if 0 < len(without) < len(found):
        raise DataError(
            "data.split",
            f"{len(without)} rows have no split, such as {without[0]!r}",
            where=path,
            fix="give every row a split, or none",
        )
    many = multilabel or any(len(record.labels) > 1 for record in found)
    unlabelled = [record.key for record in found if not record.labels]
    if unlabelled and not many:
        raise DataError(
            "data.csv",
            f"{len(unlabelled)} rows have no label, such as {unlabelled[0]!r}",
            where=path,
            fix="give every row one; where photos may have none or several: --task multilabel",
        )
    return Source(path.stem, found, root, multilabel=many)


def table_inside(folder: Path) -> Path | None:
    """Return the one table of path and label at the top of a folder, or None.

    Folders that hold nothing but one folder are gone through.
    """
    while inner := only_folder(folder):
        folder = inner
    found = [path for path in files_in(folder) if path.suffix.lower() in SUFFIXES]
    tables = [path for path in found if _is_table(path)]
    return tables[0] if len(tables) == 1 else None


def _is_table(path: Path) -> bool:
    try:
        return bool(read_csv(path, ("path", "label"), "data.csv"))
    except DataError:
        return False


def apply_split_file(source: Source, path: Path, ignored: Iterable[str] = ()) -> None:
    """Set the split of every record from a CSV with the columns path and split.

    Our own data_manifest.csv is such a file. Paths are the records' keys.

    Args:
        source: changed in place.
        path: of the CSV file.
        ignored: keys that may be listed although they are no records any more: unreadable, or of
            a class that is left out.

    Raises:
        DataError: `data.split-file`: a path that is not in the data, an image that is not in
            the file, a path listed twice, an unknown split.
    """
    wanted: dict[str, str] = {}
    for number, row in _numbered(path, ("path", "split"), "data.split-file"):
        key, split = row["path"], split_name(row["split"])
        if split is None:
            raise DataError(
                "data.split-file",
                f"row {number}: {row['split']!r} is no split; train, val or test is",
                where=path,
            )
        if wanted.setdefault(key, split) != split:
            raise DataError("data.split-file", f"{key!r} is listed twice", where=path)
    keys = {record.key for record in source.records}
    unknown = sorted(wanted.keys() - keys - set(ignored))
    if unknown:
        raise DataError(
            "data.split-file",
            f"{len(unknown)} listed paths are not in the data, such as {unknown[0]!r}"
            f"{nearest(unknown[0], keys)}",
            where=path,
            fix=f"paths are relative to {source.root or source.name}, with '/'",
        )
    missing = sorted(keys - wanted.keys())
    if missing:
        raise DataError(
            "data.split-file",
            f"{len(missing)} images are not listed, such as {missing[0]!r}",
            where=path,
            fix="list every image, or leave the split to dlzoo",
        )
    for record in source.records:
        record.split = wanted[record.key]
