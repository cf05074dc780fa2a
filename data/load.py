"""`load_data`: from any source to checked, split data."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DataError, UsageError, nearest
from . import decode
from .archive import SUFFIXES as ARCHIVES
from .archive import unpack
from .catalogue import Data
from .decode import claims_image
from .folder import existing, read_folder
from .idx import FASHION, fashion_folder, read_idx
from .memory import read_digits, read_python
from .records import SPLITS, Problem, Record, Source
from .scan import Progress, scan
from .split import split_records
from .table import SUFFIXES as TABLES
from .table import apply_split_file, read_table, table_inside
from .tfds_source import fetch_tfds, read_tfds

TASKS = ("auto", "binary", "multiclass", "multilabel")

MAX_BAD = 0.05  # the share of bad images that is let pass
_SCANNED = (decode.MAX_PIXELS, MAX_BAD)  # as a run scans, which has no settings for them


def load_data(
    source: Any,
    *,
    task: str = "auto",
    val_split: float = 0.1,
    test_split: float = 0.1,
    split_file: str | Path | None = None,
    seed: int = 0,
    on_bad_image: str = "skip",
    ignore_classes: Collection[str] = (),
    strict: bool = False,
    max_pixels: int = decode.MAX_PIXELS,
    max_bad: float = MAX_BAD,
    classes: Sequence[str] | None = None,
    only_judged: bool = False,
    progress: Progress | None = None,
) -> Data:
    """Return checked data in three splits from whatever holds the images.

    Args:
        source: `digits`; `flowers`; `fashion-mnist`; `tfds:NAME` or `tfds:NAME/CONFIG`; a folder
            of class folders, perhaps below train/, val/ and test/; a CSV file (path, label, perhaps
            split; labels `a|b` for multilabel); a zip or tar archive of either; from Python
            also `(images, labels)`, a tf.data.Dataset of (image, label), or a dict of splits.
        task: `auto` takes two classes for binary, several labels to an image for multilabel.
        val_split, test_split: fractions. Splits that the source brings along are kept; a
            missing one is cut out of its training part.
        split_file: a CSV (path, split) that places every image; data_manifest.csv is one.
        seed: of the split.
        on_bad_image: `skip` (recorded in `problems`) or `fail`.
        ignore_classes: names of classes to leave out.
        strict: fail if an image occurs under two labels, or in two splits of the source.
        max_pixels: larger images are skipped.
        max_bad: the share of bad images above which the data is refused.
        classes: class names by index, for labels given from Python as numbers or (n, classes)
            arrays; of names, the order.
        only_judged: nothing is trained on them: one class will do, and one image of it.
        progress: called with (images scanned, images in all).

    Raises:
        DataError: with one of the ids `data.not-found`, `data.permission`, `data.no-classes`,
            `data.one-class`, `data.class-too-small`, `data.class-name-clash`, `data.class-name`,
            `data.unknown-class`, `data.too-many-bad`, `data.duplicates`, `data.split`,
            `data.split-file`, `data.csv`, `data.labels`, `data.range`, `data.shape`, `data.source`,
            `data.task`, `data.archive`, `data.unsafe-archive`, `data.idx`, `data.tfds`,
            `data.tfds-features`, `data.offline`, and for `on_bad_image="fail"` `data.unreadable`,
            `data.image-too-large`; the message says what to do, and `problems` what was found odd
            before.
        ResourceError: `resource.disk`, an archive cannot be unpacked.
        UsageError: an argument that makes no sense.
    """
    _check_arguments(task, val_split, test_split, on_bad_image, max_bad, max_pixels)
    if isinstance(ignore_classes, str):
        ignore_classes = (ignore_classes,)
    found = _open(source, task, classes)
    try:
        unwanted = _ignore(found, ignore_classes)
        _check_names(found, least=1 if only_judged else 2)
        files_of = Counter(label for record in found.records for label in record.labels)
        scan(
            found,
            on_bad_image=on_bad_image,
            max_pixels=max_pixels,
            max_bad=max_bad,
            progress=progress,
        )
        if split_file is not None:
            gone = unwanted | {p.path for p in found.problems}
            apply_split_file(
                found, existing(Path(split_file), "give a CSV file of path and split"), gone
            )
        given = {record.split for record in found.records} - {None}
        names = _classes(found, given)
        if not only_judged:
            _check_sizes(found, names, files_of, given, val_split, test_split)
        split_records(found.records, val_split, test_split, seed)
        _check_splits(found, names)
        _check_duplicates(found, strict)
        data = Data(
            found.name,
            found.records,
            names,
            _task(task, names, found.multilabel),
            problems=found.problems,
            flip=found.flip,
            root=found.root,
            max_pixels=max_pixels,
        )
    except DataError as error:
        error.problems = found.problems
        raise
    if isinstance(source, str | os.PathLike) and (max_pixels, max_bad) == _SCANNED:
        named = isinstance(source, str) and is_name(source)
        data.found = {
            "data": source if named else str(Path(source).expanduser().absolute()),
            "task": task,
            "val_split": val_split,
            "test_split": test_split,
            "on_bad_image": on_bad_image,
            "ignore_classes": list(ignore_classes),
            "strict": strict,
        }
    return data


def _check_arguments(
    task: str,
    val_split: float,
    test_split: float,
    on_bad_image: str,
    max_bad: float,
    max_pixels: int,
) -> None:
    if task not in TASKS:
        raise UsageError("usage.task", f"no task {task!r}{nearest(task, TASKS)}")
    if on_bad_image not in ("skip", "fail"):
        raise UsageError("usage.on-bad-image", f"{on_bad_image!r} is neither 'skip' nor 'fail'")
    if not (val_split >= 0 and test_split >= 0 and val_split + test_split < 1):
        raise UsageError(
            "usage.split",
            f"val_split {val_split} and test_split {test_split} leave nothing to train on",
            fix="give fractions such as 0.1 and 0.1",
        )
    if not 0 <= max_bad <= 1 or max_pixels < 1:
        raise UsageError("usage.scan", "max_bad is a fraction, max_pixels a positive number")


def is_name(source: str) -> bool:
    """Say whether a source is data that has a name, whatever folder is called so, and no path."""
    return source in ("digits", "flowers", "fashion-mnist") or source.startswith("tfds:")


def _open(source: Any, task: str, classes: Sequence[str] | None) -> Source:
    if classes is not None and isinstance(source, str | os.PathLike):
        raise UsageError(
            "usage.classes",
            "classes= names the labels of arrays; those of files have names of their own",
            fix="leave it out: they are sorted by name, and ignore_classes= leaves some away",
        )
    if isinstance(source, str) and is_name(source):
        found = _named(source)
        if os.path.isdir(source):
            reason = f"a folder of this name: ./{source} is that, {source} is not"
            found.problems.append(Problem(source, reason, "ignored"))
        return found
    if not isinstance(source, str | os.PathLike):
        return read_python(source, classes)
    path = existing(Path(source).expanduser())
    if path.is_dir():
        return read_folder(path)
    name = path.name.lower()
    if name.endswith(TABLES):
        return read_table(path, multilabel=task == "multilabel")
    if name.endswith(ARCHIVES):
        return _unpacked(path, task)
    above = str(path.absolute().parent.parent)
    raise DataError(
        "data.not-found",
        f"{path.name!r} is a file; a folder of class folders, a CSV file or an archive is needed",
        where=path.absolute(),
        fix=f"give the folder, such as {above!r}"
        if claims_image(path)
        else f"a table is {' or '.join(TABLES)}, an archive {', '.join(ARCHIVES)}",
    )


def fetch(source: str) -> Path | None:
    """Get data that has a name now, to work without a network later.

    Args:
        source: `flowers`, `fashion-mnist` or `tfds:NAME`; `digits` are always here.

    Returns:
        Where it lies; None where a package brings it.

    Raises:
        UsageError: `usage.data` for a path. DataError: see `tfds_source.read_tfds`.
    """
    if not is_name(source):
        raise UsageError(
            "usage.data",
            f"{source!r} is no name of data that could be fetched",
            fix="flowers, fashion-mnist or tfds:NAME; a path is read where it is",
        )
    if source == "digits":
        return None
    if source == "fashion-mnist" and (folder := fashion_folder()):
        return folder
    return fetch_tfds(*_of_tfds(source))


def _named(source: str) -> Source:
    """Return the data of a name that `is_name`."""
    if source == "digits":
        return read_digits()
    if source == "fashion-mnist" and (folder := fashion_folder()):
        return read_idx(folder, source, FASHION)
    return read_tfds(*_of_tfds(source))


def _of_tfds(source: str) -> tuple[str, str | None]:
    """Return what TFDS calls the data of a name, and what else its user calls it."""
    ours = {"flowers": "tf_flowers", "fashion-mnist": "fashion_mnist"}
    return (ours[source], source) if source in ours else (source.removeprefix("tfds:"), None)


def _unpacked(path: Path, task: str) -> Source:
    """Return what an archive holds: the table at its top with its photos, or class folders."""
    name = path.name[: -len(next(s for s in ARCHIVES if path.name.lower().endswith(s)))]
    folder = unpack(path)
    table = table_inside(folder)
    if table is None:
        return read_folder(folder, name)
    found = read_table(table, multilabel=task == "multilabel")
    for record in found.records:
        inside = PurePosixPath(record.key)
        if inside.is_absolute() or ".." in inside.parts:
            raise DataError(
                "data.unsafe-archive",
                f"its table names a file outside: {record.key!r}",
                where=path,
                fix="unpack it yourself if you trust it, and give the table",
            )
    found.problems.append(Problem(table.name, "the labels are those of this table", "kept"))
    found.name = name
    return found


def _ignore(source: Source, names: Collection[str]) -> set[str]:
    """Leave classes out; return the keys of the images that go with them."""
    known = {label for record in source.records for label in record.labels}
    known |= set(source.expected) | set(source.classes or ())
    for name in names:
        if name not in known:
            raise UsageError(
                "usage.ignore-class", f"there is no class {name!r}{nearest(name, known)}"
            )
    before = {record.key for record in source.records}
    kept = []
    for record in source.records:
        left = tuple(label for label in record.labels if label not in names)
        if len(left) == len(record.labels) or (source.multilabel and left):
            record.labels = left
            kept.append(record)
    source.records = kept
    source.expected = tuple(name for name in source.expected if name not in names)
    if source.classes:
        source.classes = tuple(name for name in source.classes if name not in names)
    return before - {record.key for record in kept}


def _check_names(source: Source, least: int) -> None:
    """Refuse class names that some file systems or people cannot tell apart, and too few."""
    names = {label for record in source.records for label in record.labels}
    names |= set(source.expected)
    folded = defaultdict(list)
    for name in sorted(names):
        if name != name.encode("utf-8", "replace").decode():
            raise DataError(
                "data.class-name",
                f"the class name {name!r} is not valid Unicode",
                where=source.root or source.name,
                fix="write the name in UTF-8",
            )
        folded[unicodedata.normalize("NFC", name).casefold()].append(name)
    for clash in folded.values():
        if len(clash) > 1:
            raise DataError(
                "data.class-name-clash",
                "class names that differ in upper and lower case only: "
                + " and ".join(map(repr, clash)),
                where=source.root or source.name,
                fix="put the images of one class under one name",
            )
    if len(names) < least and not source.multilabel:
        raise DataError(
            "data.one-class",
            f"only one class: {next(iter(names), None)!r}",
            where=source.root or source.name,
            fix="a classifier needs at least two classes; add a folder of other images",
        )


def _classes(source: Source, given: Collection[str | None]) -> tuple[str, ...]:
    """Return the class names: those of the training part, sorted unless the source has an order."""
    train = [r for r in source.records if not given or r.split == "train"]
    if given and not train:
        raise DataError(
            "data.split",
            "there are no training images",
            where=source.root or source.name,
            fix="name one of the splits train",
        )
    names = {label for record in train for label in record.labels} | set(source.expected)
    for record in source.records:
        for label in record.labels:
            if label not in names:
                raise DataError(
                    "data.unknown-class",
                    f"class {label!r} is in {record.split} but not in train{nearest(label, names)}",
                    where=record.key,
                    fix=f"add images of it to train, or --ignore-class {label}",
                )
    if source.classes is not None:
        every = set(source.classes)
        listed = names if given else every
        return tuple(name for name in source.classes if name in listed | names)
    return tuple(sorted(names))


def _check_sizes(
    source: Source,
    names: tuple[str, ...],
    files_of: Counter[str],
    given: Collection[str | None],
    val_split: float,
    test_split: float,
) -> None:
    """Refuse classes that cannot be in every split without sharing an image."""
    cut = [
        split
        for split, share in (("val", val_split), ("test", test_split))
        if split not in given and share > 0
    ]
    images = Counter(label for record in source.records for label in record.labels)
    pool = [record for record in source.records if record.split in (None, "train")]
    distinct: dict[str, set[str]] = defaultdict(set)
    for record in pool:
        for label in record.labels:
            distinct[label].add(record.sha256)
    for name in names:
        where = source.root / name if source.root and not given else source.root or source.name
        if images[name] < 3:
            bad = files_of[name] - images[name]
            detail = (
                f" ({files_of[name]} files, {bad} unreadable: `dlzoo data check --report FILE` "
                "lists them)"
            )
            noun = "image" if images[name] == 1 else "images"
            raise DataError(
                "data.class-too-small",
                f"class {name!r} has {images[name]} readable {noun}; "
                "train/val/test needs at least 3",
                where=f"{where}{detail if bad else ''}",
                fix=f"add images, or --ignore-class {name}",
            )
        if len(distinct[name]) < 1 + len(cut):
            raise DataError(
                "data.class-too-small",
                f"class {name!r} has {len(distinct[name])} different images to make "
                f"{'/'.join(['train', *cut])} of; {1 + len(cut)} are needed",
                where=where,
                fix=f"add images, or --ignore-class {name}",
            )


def _check_splits(source: Source, names: tuple[str, ...]) -> None:
    """Note the classes that lack in a split."""
    have = {(label, record.split) for record in source.records for label in record.labels}
    used = {record.split for record in source.records}
    for split in SPLITS:
        for name in names:
            if split in used and (name, split) not in have:
                reason = f"no images of this class in {split}"
                source.problems.append(Problem(name, reason, "kept"))


def _check_duplicates(source: Source, strict: bool) -> None:
    """Note images of equal content; those under two labels or in two splits may be an error."""
    same: dict[str, list[Record]] = defaultdict(list)
    for record in source.records:
        same[record.sha256].append(record)
    serious = []
    for group in same.values():
        first = group[0]
        for other in group[1:]:
            if set(other.labels) != set(first.labels):
                reason = f"same image under two labels: as {first.key} ({'|'.join(first.labels)})"
            elif other.split != first.split:
                reason = f"same image in {first.split} and {other.split}: as {first.key}"
            else:
                reason = f"same image twice, grouped into one split: as {first.key}"
            problem = Problem(other.key, reason, "kept")
            source.problems.append(problem)
            if "twice" not in reason:
                serious.append(problem)
    if strict and serious:
        raise DataError(
            "data.duplicates",
            f"images under two labels or in two splits: {len(serious)}, such as "
            f"{serious[0].path!r}: {serious[0].reason}",
            where=source.root or source.name,
            fix="remove one of each, or leave out --strict-data",
        )


def _task(task: str, names: tuple[str, ...], multilabel: bool) -> str:
    if task == "auto":
        return "multilabel" if multilabel else "binary" if len(names) == 2 else "multiclass"
    if multilabel and task != "multilabel":
        raise DataError("data.task", f"some images have none or several labels: not {task}")
    if task == "binary" and len(names) != 2:
        raise DataError("data.task", f"{len(names)} classes are not a binary task")
    return task
