"""One run on photos with most of what can be odd about photos, made by the command itself."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import photos
from PIL import Image

CLASSES = ("=1+1", "<b>rose & co<b>", "日本 \N{ROSE}")


@dataclass(frozen=True)
class OddRun:
    """A run on odd photos, made by the command without a terminal: what it printed and left."""

    path: Path
    photos: Path
    argv: tuple[str, ...]
    out: str
    err: str


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
