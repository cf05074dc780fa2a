"""What the tests of faults share: a command that must fail and change nothing, and one odd run.

What a test records as `seen` is a line as it was printed; `tools/reliability.py` puts it into
docs/RELIABILITY.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import photos
import pytest
from dlzoo import files
from dlzoo.errors import DlzooError
from PIL import Image


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Keep what is cached from one test to the next apart."""
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))


@pytest.fixture
def seen(record_property, tmp_path):
    """Give a function that notes a line and the exit code it came with."""

    def note(text, code=0):
        line = str(text).strip().splitlines()[0].replace(f"{tmp_path}{os.sep}", "")
        record_property("seen", f"{code} {line}")

    return note


def contents(root: Path) -> dict[str, str]:
    """Return what lies below a folder, the cache of `own_home` apart: path to hash, or target."""
    found = {}
    for folder, folders, names in os.walk(root):
        if folder == str(root) and "home" in folders:
            folders.remove("home")
        for path in (Path(folder, name) for name in (*folders, *names)):
            real = path.is_file() and not path.is_symlink()
            found[str(path)] = files.sha256(path) if real else str(path.lstat().st_mode)
    return found


@pytest.fixture
def refused(call, seen, tmp_path):
    """Give `refused(id, code, *argv)`: `dlzoo ARGV` ends so, and changes nothing. Returns stderr.

    Everything in the test's folder is compared, so no run was begun and none was touched.
    """

    def run(id, code, *argv):
        before = contents(tmp_path)
        got, out, errors = call(*argv)
        told = [line for line in errors.splitlines() if line.startswith("error[")]
        assert (got, out) == (code, ""), errors
        assert told and told[-1].startswith(f"error[{id}]: "), errors
        assert "Traceback" not in errors
        assert contents(tmp_path) == before
        seen(told[-1], code)
        return errors

    return run


@pytest.fixture
def raises(seen):
    """Give `raises(id, code)`: a context in which that DlzooError must come, and is noted."""

    @contextlib.contextmanager
    def expect(id, code):
        with pytest.raises(DlzooError) as caught:
            yield caught
        assert (caught.value.id, caught.value.exit_code) == (id, code)
        seen(caught.value, code)

    return expect


@dataclasses.dataclass(frozen=True)
class OddRun:
    """A run on odd photos, made by the command without a terminal: what it printed and left."""

    path: Path
    photos: Path
    argv: tuple[str, ...]
    out: str
    err: str


CLASSES = ("=1+1", "<b>rose & co<b>", "日本 \N{ROSE}")


def odd_photos(root: Path) -> Path:
    """Write three classes of 30 photos that differ in colour, and most of what can be odd."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(CLASSES):
        for i in range(30):
            pixels = rng.integers(0, 90, (36, 40, 3)).astype("uint8")
            pixels[..., k] += 120
            path = root / name / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    photos.broken(root, CLASSES[0])
    photos.giant(root / CLASSES[0] / "giant.png")
    rose = root / CLASSES[1]
    photos.photo(rose / "png.jpg", 101)
    photos.photo(rose / "cmyk.jpg", 102, "JPEG", "CMYK")
    photos.photo(rose / "deep.png", 103, mode="I;16")
    photos.photo(rose / "palette.png", 104, mode="P", transparency=0)
    (rose / "copy.png").write_bytes((rose / "00.png").read_bytes())
    (rose / "Thumbs.db").write_bytes(b"x")
    (root / ".DS_Store").write_bytes(b"x")
    (rose / "loop").symlink_to(root)
    (root / CLASSES[2] / "=cmd|'x'!A0.png").write_bytes((root / CLASSES[2] / "01.png").read_bytes())
    return root


def train_odd(root: Path, out: Path, *more: str) -> OddRun:
    """Train a small network on the odd photos, in a process of its own; 0 is expected."""
    argv = ("finetune", "--backbone", "lenet5", "--weights", "none", "--data", str(root))
    argv += ("--out", str(out), "--epochs", "4", "--deterministic", "--offline", *more)
    quiet = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-m", "dlzoo", *argv],
        capture_output=True,
        text=True,
        env=quiet,  # as a user has it
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return OddRun(path, root, argv, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def odd_run(tmp_path_factory):
    """Give an :class:`OddRun`; tests that change something in it take a copy."""
    place = tmp_path_factory.mktemp("odd")
    return train_odd(odd_photos(place / "photos"), place / "runs")
