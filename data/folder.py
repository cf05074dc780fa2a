"""A folder of class folders, or one with train/, val/ and test/ above them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..errors import DataError, nearest
from .archive import SUFFIXES as ARCHIVES
from .decode import claims_image
from .records import Problem, Record, Source, split_name

TREE = """make it look like this (one folder per class), or give a CSV with the columns path,label:
           {name}/
             daisy/   a.jpg b.png ...
             roses/   c.jpg d.webp ...
         or, with splits of your own: {name}/train/daisy/... {name}/val/daisy/... {name}/test/..."""
SOURCES = "give digits, flowers, tfds:NAME, a folder of class folders or a CSV file"
_JUNK = {"thumbs.db", "desktop.ini", "icon\r", "__macosx"}


def existing(path: Path, fix: str = SOURCES) -> Path:
    """Return `path` if there is something.

    Args:
        fix: what to give instead; default: what data can be.

    Raises:
        DataError: `data.not-found`, `data.permission`.
    """
    try:
        path.lstat()
        return path
    except PermissionError as error:
        raise _forbidden(path) from error
    except OSError as error:  # absent, a file where a folder is meant, or an impossible name
        parent = path.parent
        siblings: list[str] = []
        with suppress(OSError):
            siblings = sorted(os.listdir(parent))
        raise DataError(
            "data.not-found",
            f"there is no {str(path)!r}{nearest(path.name, siblings)}",
            where=parent.absolute(),
            fix=fix,
        ) from error


def read_folder(root: Path, name: str | None = None) -> Source:
    """Return the catalogue of a folder; nothing is decoded.

    Class folders are searched to any depth. Dot-files, system files and links in a circle are
    ignored with a note.

    Args:
        root: the folder.
        name: what the user calls it, if not by its own name.

    Raises:
        DataError: `data.no-classes`, `data.split` (val and valid both), `data.permission`.
    """
    problems: list[Problem] = []
    root = root.absolute()
    name = name or root.resolve().name or "data"
    top, root = root, _unwrapped(root)
    folders = _folders(root, root, problems)
    splits = {folder: split_name(folder.name) for folder in folders}
    named = sum(split is not None for split in splits.values())
    layered = any(
        split == "train"
        and _has_folders(folder)
        # alone beside others it may be a class, to any depth: then images lie straight in it
        and (named > 1 or named == len(folders) or not any(map(claims_image, files_in(folder))))
        for folder, split in splits.items()
    )
    if layered:
        classes = _split_classes(splits, root, problems)
    else:
        classes = [(folder, None) for folder in folders]
    records = [record for path, split in classes for record in _class(path, root, split, problems)]
    if not records:
        reason = "has no class folders" if not classes else "has class folders without any file"
        shown = name if root == top else root.name
        packed = [e.path for e in _entries(root) if e.name.lower().endswith(ARCHIVES)]
        raise DataError(
            "data.no-classes",
            f"{shown!r} {reason}",
            where=root,
            fix=f"give the archive inside: {packed[0]}" if packed else TREE.format(name=shown),
        )
    # an empty folder in val or test is a class that lacks there; elsewhere it is a class too small
    names = sorted({path.name for path, split in classes if split in (None, "train")})
    return Source(name, records, root, expected=tuple(names), problems=problems)


def _split_classes(
    splits: dict[Path, str | None], root: Path, problems: list[Problem]
) -> list[tuple[Path, str | None]]:
    """Return the class folders inside the split folders, each with its split."""
    named = [split for split in splits.values() if split]
    if len(set(named)) < len(named):
        raise DataError(
            "data.split",
            "several folders stand for one split: "
            + ", ".join(sorted(folder.name for folder, split in splits.items() if split)),
            where=root,
            fix="keep one of val, valid, validation, dev (train, training; test, testing)",
        )
    others = [folder.name for folder, split in splits.items() if split is None]
    if len(named) == 1 and others:
        raise DataError(
            "data.split",
            f"beside 'train' with its class folders there is {others[0]!r}, which is no split",
            where=root,
            fix="call it val or test, or take it away; if train is a class, put its images "
            "straight into it",
        )
    found: list[tuple[Path, str | None]] = []
    for folder, split in splits.items():
        if split is None:
            problems.append(Problem(folder.name, "not a split folder", "ignored"))
        else:
            found += [(inner, split) for inner in _folders(folder, root, problems)]
    return found


def _unwrapped(root: Path) -> Path:
    """Go down where a folder holds nothing but one folder of folders (archives do that)."""
    while inner := only_folder(root):
        if split_name(inner.name) or not _has_folders(inner) or inner.is_symlink():
            break
        if files_in(inner):
            break
        root = inner
    return root


def only_folder(folder: Path) -> Path | None:
    """Return the one folder that is all a folder holds, or None."""
    inside = [e for e in _entries(folder) if not _is_junk(e.name)]
    return Path(inside[0].path) if len(inside) == 1 and inside[0].is_dir() else None


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except PermissionError as error:
        raise _forbidden(folder) from error


def _forbidden(path: Path) -> DataError:
    return DataError(
        "data.permission",
        f"the folder {path.name!r} may not be read",
        where=path,
        fix="give yourself the right to read it (chmod u+rx), or take it out of the data",
    )


def _has_folders(folder: Path) -> bool:
    return any(e.is_dir() and not _is_junk(e.name) for e in _entries(folder))


def files_in(folder: Path) -> list[Path]:
    """Return the files straight in a folder, sorted, but the system's."""
    return [Path(e.path) for e in _entries(folder) if e.is_file() and not _is_junk(e.name)]


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _JUNK


def _key(path: Path | str, root: Path) -> str:
    return Path(path).relative_to(root).as_posix()


def _folders(folder: Path, root: Path, problems: list[Problem]) -> list[Path]:
    """Return the folders inside, noting the rest."""
    found = []
    for entry in _entries(folder):
        key = _key(entry.path, root)
        if _is_junk(entry.name):
            problems.append(Problem(key, "hidden or system file", "ignored"))
        elif entry.is_dir():
            found.append(Path(entry.path))
        else:
            problems.append(Problem(key, "not inside a class folder", "ignored"))
    return found


def _class(folder: Path, root: Path, split: str | None, problems: list[Problem]) -> list[Record]:
    """Return a record for each file of one class folder, image or not: the scan finds out."""
    above = [path.stat() for path in folder.parents if path.is_relative_to(root)]
    paths = _walk(folder, root, problems, tuple((s.st_dev, s.st_ino) for s in above))
    return [Record(_key(path, root), (folder.name,), path, split) for path in paths]


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the regular files below a folder that are not hidden, sorted, as for a class."""
    return _walk(folder, folder, [], ())


def _walk(
    folder: Path, root: Path, problems: list[Problem], above: tuple[tuple[int, int], ...]
) -> Iterator[Path]:
    """Yield the regular files below `folder`, sorted; links are followed, but not in circles."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        problems.append(Problem(_key(folder, root), "a link back to a folder above", "ignored"))
        return
    entries = _entries(folder)
    if not entries:
        problems.append(Problem(_key(folder, root), "an empty folder", "ignored"))
    for entry in entries:
        key = _key(entry.path, root)
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            reason = f"a link that leads nowhere ({error.strerror})"
            problems.append(Problem(key, reason, "ignored"))
            continue
        if _is_junk(entry.name):
            problems.append(Problem(key, "hidden or system file", "ignored"))
        elif stat.S_ISDIR(mode):
            yield from _walk(Path(entry.path), root, problems, (*above, here))
        elif stat.S_ISREG(mode):
            yield Path(entry.path)
        else:  # a pipe would block whoever opens it
            problems.append(Problem(key, "not a regular file", "ignored"))
