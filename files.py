"""Files: whole or not there, hashes, where dlzoo keeps things, and a stderr without chatter."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def home() -> Path:
    """Return the cache directory, created: `DLZOO_HOME`, else `~/.cache/dlzoo`.

    Where neither can be written (a read-only home, or a user without one), a per-user directory
    below the system's temporary folder is used, so that nothing but speed is lost.
    """
    wanted = os.environ.get("DLZOO_HOME")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        path = Path(wanted or Path(base, "dlzoo")).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return path
    except (OSError, RuntimeError):  # the latter: nobody knows what ~ is
        pass
    uid = os.getuid() if hasattr(os, "getuid") else 0
    path = Path(tempfile.gettempdir()) / f"dlzoo-{uid}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def standing(path: Path) -> Path:
    """Return `path`, or where it is not there the nearest of the folders above it that is."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def takes_files(folder: Path) -> bool:
    """Say whether files can be made in a folder."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def sha256(data: bytes | Path | str) -> str:
    """Return the SHA-256 of bytes, or of a file's content, in hexadecimal."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256()
    with Path(data).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path | str, mode: str = "w", **kwargs: Any) -> Iterator[IO]:
    """Open a temporary sibling for writing; it becomes `path`, synced, only if all went well."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    if "b" not in mode:
        kwargs.setdefault("encoding", "utf-8")
        kwargs.setdefault("newline", "")
    try:
        with temporary.open(mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path | str, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    with replacing(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as file:
        file.write(text)


def write_array(path: Path | str, values: np.ndarray) -> None:
    """Write an array as `.npy`, atomically.

    NumPy's own `save` does not say why it failed, and of small arrays not even that it did.
    """
    import numpy as np
    from numpy.lib import format

    values = np.ascontiguousarray(values)
    with replacing(path, "wb") as file:
        format.write_array_header_1_0(file, format.header_data_from_array_1_0(values))
        file.write(values.data)


@contextmanager
def stderr_away() -> Iterator[None]:
    """Send what anything, C++ included, writes to the process' stderr nowhere."""
    try:
        kept = os.dup(2)
    except OSError:  # started with stderr closed
        yield
        return
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def lines_of(names: Iterable[str]) -> str:
    """Return names a line each; a name with line breaks in it stays one line."""
    return "".join(" ".join(name.splitlines()) + "\n" for name in names)
