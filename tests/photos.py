"""Small generated image files and folders of classes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def photo(path: Path, number: int, format: str = "PNG", mode: str = "RGB", **options) -> Path:
    """Write an image of 8 x 9 random pixels that are a function of `number`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (9, 8, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, format, **options)
    return path


def coloured(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return n small images whose class, 0 to 2, is their colour: soon learnt."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    images = rng.integers(0, 90, (n, 32, 32, 3)).astype("uint8")
    images[np.arange(n), :, :, labels] += 120
    return images, labels


def folder(root: Path, names=("daisy", "rose"), each: int = 30, start: int = 0) -> Path:
    """Write `each` different images of each class."""
    for k, name in enumerate(names):
        for i in range(each):
            photo(root / name / f"{i:02d}.png", start + 1000 * k + i)
    return root


def broken(root: Path, into: str = "rose") -> list[str]:
    """Write three files that are no images, each in another way; return their keys."""
    whole = photo(root / into / "cut.jpg", 1, "JPEG").read_bytes()
    (root / into / "cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (root / into / "empty.jpg").write_bytes(b"")
    (root / into / "text.jpg").write_text("I am a rose")
    return [f"{into}/{name}.jpg" for name in ("cut", "empty", "text")]


def giant(path: Path) -> Path:
    """Write a whole PNG of 20,000 x 20,000 grey pixels, all black: 400 kB, as RGB 1.2 GB."""
    side, packer = 20_000, zlib.compressobj(1)
    pixels = b"".join([*(packer.compress(bytes(1 + side)) for _ in range(side)), packer.flush()])

    def chunk(name, body):
        crc = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path
