"""Zip and tar archives, unpacked with suspicion, once, below `files.home()/archives`."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from .. import files
from ..errors import DataError, ResourceError

SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".zip", ".tar", ".tgz", ".tbz2", ".txz")

MAX_FILES = 5_000_000
MAX_BYTES = 500 * 2**30
MAX_RATIO = 100  # unpacked to packed; photographs hardly pack at all
FREE_BYTES = 1 << 20  # below this the ratio is of no interest

_Member = tuple[str, IO[bytes]]


def unpack(path: Path) -> Path:
    """Return the folder with an archive's files, unpacking it unless that was done before.

    Raises:
        DataError: `data.unsafe-archive`: a name that leads outside, a link, a device, more
            than `MAX_FILES` files, `MAX_BYTES` bytes or `MAX_RATIO` times the archive's size.
            `data.archive`: not a valid archive. Nothing is left behind then.
        ResourceError: `resource.disk`.
    """
    target = files.home() / "archives" / files.sha256(path)[:32]
    if target.is_dir():
        return target
    target.parent.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".part-", dir=target.parent))
    try:
        _unpack(path, temporary)
        try:
            os.replace(temporary, target)
        except OSError:  # another process was faster
            if not target.is_dir():
                raise
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            "data.archive", f"not a valid archive: {error}", where=path, fix="download it again"
        ) from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or an exotic compression
        raise DataError("data.archive", f"cannot be unpacked: {error}", where=path) from error
    except OSError as error:
        raise ResourceError(
            "resource.disk", f"cannot unpack: {error.strerror or error}", where=target.parent
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _unpack(path: Path, folder: Path) -> None:
    packed, written = path.stat().st_size, 0
    members = _zip(path) if zipfile.is_zipfile(path) else _tar(path)
    for count, (name, file) in enumerate(members, start=1):
        if count > MAX_FILES:
            raise _unsafe(path, f"more than {MAX_FILES:,} files")
        out = folder / _safe(path, name)
        out.parent.mkdir(parents=True, exist_ok=True)
        with file, out.open("wb") as sink:
            # what is counted is what comes out, not what the archive says of itself
            while chunk := file.read(1 << 18):
                written += len(chunk)
                if written > max(FREE_BYTES, MAX_RATIO * packed) or written > MAX_BYTES:
                    raise _unsafe(
                        path, f"it unpacks to over {written // max(1, packed)} x its size"
                    )
                sink.write(chunk)


def _unsafe(path: Path, reason: str) -> DataError:
    return DataError(
        "data.unsafe-archive",
        f"refused to unpack: {reason}",
        where=path,
        fix="unpack it yourself if you trust it, and give the folder",
    )


def _safe(path: Path, name: str) -> PurePosixPath:
    """Return a member's name if it stays inside; raises `data.unsafe-archive` otherwise."""
    inside = PurePosixPath(name)
    if (
        inside.is_absolute()
        or ".." in inside.parts
        or not inside.parts
        or "\\" in name
        or "\0" in name
        or ":" in inside.parts[0]
    ):
        raise _unsafe(path, f"{name!r} leads outside")
    return inside


def _zip(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            _safe(path, info.orig_filename.rstrip("/") or "/")
            if info.is_dir():
                continue
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise _unsafe(path, f"{info.filename!r} is a link or a device")
            yield info.filename, archive.open(info)


def _tar(path: Path) -> Iterator[_Member]:
    with tarfile.open(path) as archive:
        for info in archive:
            if info.isdir():
                if info.name.strip("./"):
                    _safe(path, info.name)
                continue
            if not info.isreg():
                raise _unsafe(path, f"{info.name!r} is a link or a device")
            file = archive.extractfile(info)
            assert file is not None  # a regular file has content
            yield info.name, file
