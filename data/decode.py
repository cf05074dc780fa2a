"""From bytes to RGB: the one decoder that training, prediction and the export checks share.

What a file is, its content says and not its name. Everything ends as 8-bit RGB: alpha is laid
over white, the first frame of an animation is taken, the EXIF orientation is applied, 16 bits
become 8. The size is read from the header before a single pixel is decoded.
"""

from __future__ import annotations

import io
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ..errors import DataError

MAX_PIXELS = 100_000_000

# The formats worth opening. Left out on purpose: EPS and WMF (they start other programs).
_FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000"),
    *("PPM", "PCX", "TGA", "ICO", "ICNS", "SGI", "QOI", "DDS", "PSD", "MSP"),
)

# Names a file of each format may have without a remark.
EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "DIB": (".dib", ".bmp"),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    **{name: (f".{name.lower()}",) for name in ("PCX", "ICO", "ICNS", "QOI", "DDS", "PSD", "MSP")},
}
# Images too, but none that Pillow opens: they are reported as unreadable, never passed over.
_FOREIGN = (
    ".heic",
    ".heif",
    ".jxl",
    ".svg",
    ".eps",
    ".dng",
    ".raw",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
)
IMAGE_SUFFIXES = frozenset(_FOREIGN).union(*EXTENSIONS.values())

_opening = threading.Lock()
_giant = threading.Lock()  # one image above _GIANT pixels at a time: memory stays bounded
_GIANT = 25_000_000


class Probe(NamedTuple):
    """What a look at a whole image gave: its size in pixels and its format's name."""

    width: int
    height: int
    format: str


def decode(source: bytes | str | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return an image as uint8 RGB of shape (height, width, 3).

    Args:
        source: an image file's content, or the path of one.
        max_pixels: the largest width x height that is decoded.

    Raises:
        DataError: `data.unreadable` with the reason (empty, truncated, not an image, the file
            cannot be read), or `data.image-too-large`.
    """
    return _decode(source, max_pixels, draft=False)[1]


def probe(source: bytes | str | Path, *, max_pixels: int = MAX_PIXELS) -> Probe:
    """Return size and format of an image after decoding all of it, as `decode` would.

    JPEGs are decoded at an eighth of their size: every byte is still read, so a truncated
    file is still found, in half the time.

    Raises:
        DataError: as `decode` does.
    """
    return _decode(source, max_pixels, draft=True)[0]


def _decode(source: bytes | str | Path, limit: int, draft: bool) -> tuple[Probe, np.ndarray]:
    where = None if isinstance(source, bytes) else source
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError("data.unreadable", f"cannot be read: {reason}", where=where) from error
    if not data:
        raise DataError("data.unreadable", "the file is empty (0 bytes)", where=where)
    try:
        with _open(data) as image:
            found = Probe(image.width, image.height, str(image.format))
            pixels = found.width * found.height
            if pixels > limit:
                raise DataError(
                    "data.image-too-large",
                    f"{found.width} x {found.height} pixels, over the limit of {limit:,}",
                    where=where,
                    fix="scale the image down, or raise max_pixels",
                )
            if draft:
                image.draft("RGB", (max(1, found.width // 8), max(1, found.height // 8)))
            if pixels > _GIANT and image.width * image.height > _GIANT:
                with _giant:
                    return found, _rgb(image)
            return found, _rgb(image)
    except DataError:
        raise
    except Exception as error:  # a broken file makes the readers raise anything at all
        raise DataError("data.unreadable", _reason(error), where=where) from error


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(data: bytes) -> Image.Image:
    """Read the header. Pillow's own size guard is off meanwhile: ours names the limit."""
    with _opening:
        formats = _formats()
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data), formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _rgb(image: Image.Image) -> np.ndarray:
    """Return the first frame, upright, as uint8 (height, width, 3)."""
    image.load()
    with suppress(Exception):  # unreadable EXIF says nothing about the pixels, which are fine
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        grey = _eight_bits(image)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"), np.uint8)


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Return a grey image of more than 8 bits as uint8 (height, width).

    16-bit values are divided by 257. For 32-bit integers and floats, which have no agreed
    white, it is the smallest of 1 (floats only), 255 and 65535 that covers the image, else its
    maximum.
    """
    values = np.asarray(image).astype(np.float64)
    values = np.maximum(np.nan_to_num(values, posinf=0, neginf=0), 0)
    top = values.max()
    if image.mode.startswith("I;16"):
        white = 65535.0
    elif image.mode == "F" and top <= 1:
        white = 1.0
    else:
        white = 255.0 if top <= 255 else 65535.0 if top <= 65535 else top
    return (values * (255 / white) + 0.5).astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image of a known format"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"truncated ({text})"
    return f"cannot be decoded ({text})"


def claims_image(path: Path) -> bool:
    """Say whether a file has the name or the header of an image; it may still be broken."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return True  # the scan will find out, and say why
    with suppress(Exception), _open(start):
        return True
    return False
