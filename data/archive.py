"""Zip and tar archives, unpacked with suspicion, once, below `files.home()/archives`."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import math
import os
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from .. import files
from ..errors import DataError, ResourceError

SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".zip", ".tar", ".tgz", ".tbz2", ".txz")

MAX_FILES = 5_000_000
MAX_BYTES = 500 * 2**30
MAX_RATIO = 100  # unpacked to packed; photographs hardly pack at all
FREE_BYTES = 1 << 20  # below this the ratio is of no interest
BLOCK = 4096  # what every member counts for at least: it takes a place on the disk
MAX_HEADER = 1 << 16  # bytes of all headers of a tar's member

# the disk's fault; whatever else goes wrong is the archive's
_DISK = {
    getattr(errno, name, None)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EMFILE", "ENFILE")
}
_PACKED: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_ENCRYPTED, _UTF8 = 1 << 0, 1 << 11  # flags of a zip's member
_Member = tuple[str, IO[bytes] | None]  # None: a folder


def unpack(path: Path) -> Path:
    """Return the folder with an archive's files, unpacking it unless that was done before.

    Raises:
        DataError: `data.unsafe-archive`: a name that leads outside, a link, a device, more
            than `MAX_FILES` files, `MAX_BYTES` bytes or `MAX_RATIO` times the archive's size.
            `data.archive`: not a valid archive. Nothing is left behind then.
        ResourceError: `resource.disk`.
    """
    try:
        target = files.home() / "archives" / files.sha256(path)[:32]
    except OSError as error:
        raise DataError("data.archive", f"cannot be read: {error.strerror}", where=path) from error
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".part-", dir=target.parent, ignore_cleanup_errors=True
        ) as temporary:
            _unpack(path, Path(temporary))
            try:
                os.replace(temporary, target)
            except OSError:  # another process was faster
                if not target.is_dir():
                    raise
    except (DataError, ResourceError):
        raise
    except Exception as error:  # zipfile and tarfile raise anything on damaged files
        if isinstance(error, OSError) and error.errno in _DISK:
            raise ResourceError(
                "resource.disk", f"cannot unpack: {error.strerror}", where=target.parent
            ) from error
        reason = str(error)[:200] or type(error).__name__
        raise DataError(
            "data.archive", f"cannot be unpacked: {reason}", where=path, fix="download it again"
        ) from error
    return target


def _unpack(path: Path, folder: Path) -> None:
    packed, written = path.stat().st_size, 0
    most = min(max(FREE_BYTES, MAX_RATIO * packed), MAX_BYTES)

    def count(size: int) -> None:
        # what is counted is what comes out, not what the archive says of itself
        nonlocal written
        written += size
        if written > most:
            raise _unsafe(path, f"it unpacks to over {written // max(1, packed)} x its size")

    members = _zip(path) if zipfile.is_zipfile(path) else _tar(path)
    for number, (name, file) in enumerate(members, start=1):
        if number > MAX_FILES:
            raise _unsafe(path, f"more than {MAX_FILES:,} files")
        count(BLOCK)
        out = folder / _safe(path, name)
        if file is None:
            continue
        out.parent.mkdir(parents=True, exist_ok=True)
        with file, out.open("wb") as sink:
            while chunk := file.read(1 << 18):
                count(len(chunk))
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


def _named(info: zipfile.ZipInfo) -> str:
    """Return a member's name. macOS and Info-ZIP write UTF-8 without saying so."""
    name = info.orig_filename
    if not info.flag_bits & _UTF8:
        with suppress(UnicodeError):  # then it is the old code page, as zipfile has taken it
            name = name.encode("cp437").decode()
    return name


def _zip(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = _named(info)
            if info.is_dir():
                yield name.rstrip("/") or "/", None
                continue
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise _unsafe(path, f"{name!r} is a link or a device")
            if info.flag_bits & _ENCRYPTED:
                raise DataError(
                    "data.archive",
                    "it is encrypted",
                    where=path,
                    fix="unpack it with its password, and give the folder",
                )
            # the others are unpacked in one piece, whatever its size
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _unsafe(path, f"{name!r} is compressed by another method than deflate")
            _safe(path, name)
            yield name, archive.open(info)


class _Tape:
    """A tar without its compression, of which reading a member's headers takes but little.

    That limits whatever they claim: long names, extended headers, lists of a file's holes. What
    tarfile calls its own steps differs from one Python to the next, so none of them is replaced.
    """

    def __init__(self, file: IO[bytes]):
        self.tell, self.seek, self._file = file.tell, file.seek, file
        self.left = float(MAX_HEADER)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError("the headers of a member are too long")
        self.left -= size
        return self._file.read(size)


def _tar(path: Path) -> Iterator[_Member]:
    with path.open("rb") as file:
        start = file.read(6)
    opener = next((f for magic, f in _PACKED.items() if start.startswith(magic)), open)
    with opener(path, "rb") as file:
        tape = _Tape(file)
        with tarfile.TarFile(fileobj=tape) as archive:  # type: ignore[arg-type]
            while info := archive.next():
                archive.members.clear()  # type: ignore[attr-defined]  # which tarfile would keep
                tape.left = math.inf  # what a member holds is counted as it comes
                if info.issparse():
                    raise tarfile.ReadError("it holds sparse files")
                if info.isdir():
                    if info.name.strip("./"):
                        yield info.name, None
                elif info.isreg():
                    yield info.name, archive.extractfile(info)
                else:
                    raise _unsafe(path, f"{info.name!r} is a link or a device")
                tape.left = MAX_HEADER
