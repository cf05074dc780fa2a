"""From bytes to RGB: the one decoder that training, prediction and the export checks share.

What a file is, its content says and not its name. Everything ends as 8-bit RGB: alpha is laid
over white, the first frame of an animation is taken, the EXIF orientation is applied, 16 bits
become 8. The size is read from the header before a single pixel is decoded.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from ..errors import DataError

MAX_PIXELS = 100_000_000

# The formats worth opening. Left out on purpose: EPS and WMF (they start other programs), ICO and
# ICNS (Pillow unpacks what is inside, of any size, when it opens them).
_FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000"),
    *("PPM", "PCX", "TGA", "SGI", "QOI", "DDS", "PSD", "MSP"),
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
    **{name: (f".{name.lower()}",) for name in ("PCX", "QOI", "DDS", "PSD", "MSP")},
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
    ".ico",
    ".icns",
)
IMAGE_SUFFIXES = frozenset(_FOREIGN).union(*EXTENSIONS.values())

_opening = threading.Lock()
_giant = threading.Lock()  # one image above _GIANT pixels at a time: memory stays bounded
_GIANT = 25_000_000
_STRIP = 4_000_000  # pixels that are converted at a time
# Some decoders, and four colours, take more memory for a pixel: how many others it counts as.
_WEIGHT = {"WEBP": 2, "AVIF": 2, "JPEG2000": 3, "QOI": 2, "DDS": 2, "CMYK": 2}
_MAX_SCANS = 20  # of a JPEG of max_pixels (it needs 10), more of a smaller one; each is a pass

# orientation in EXIF -> the view of an upright array in which its pixels lie as in the file
_AS_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: np.rot90,
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


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
    except ValueError as error:  # such as a NUL in its name
        raise DataError("data.unreadable", f"cannot be read: {error}", where=where) from error
    if not data:
        raise DataError("data.unreadable", "the file is empty (0 bytes)", where=where)
    try:
        with _open(data) as image:
            found = Probe(image.width, image.height, str(image.format))
            pixels = found.width * found.height
            most = limit // max(_WEIGHT.get(str(of), 1) for of in (image.format, image.mode))
            if pixels > most:
                raise DataError(
                    "data.image-too-large",
                    f"{found.width} x {found.height} pixels, over the limit of {most:,}",
                    where=where,
                    fix="scale the image down, or raise max_pixels",
                )
            jpeg = found.format in ("JPEG", "MPO")
            if jpeg and data.count(b"\xff\xda") * pixels > _MAX_SCANS * limit:
                raise DataError("data.unreadable", "a JPEG of very many scans", where=where)
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


def of_pillow(image: Image.Image, where: object = None) -> np.ndarray:
    """Return an image that Pillow has opened or made, as `decode` returns that of a file.

    Raises:
        DataError: `data.unreadable`.
    """
    try:
        return _rgb(image)
    except Exception as error:  # it is read only now
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
    """Return the first frame, upright, as uint8 (height, width, 3).

    It is converted strip by strip: a large image lies in memory twice, and not six times.
    """
    image.load()
    orientation = 1
    with suppress(Exception):  # unreadable EXIF says nothing about the pixels, which are fine
        # Not image.getexif(), which also believes XMP and text chunks: browsers and exported
        # models do not.
        exif = Image.Exif()
        exif.load(image.info["exif"])
        noted = exif.get(ExifTags.Base.Orientation)
        orientation = noted if noted in _AS_STORED else 1
    width, height = image.size
    rows = max(1, _STRIP // max(1, width))
    strips = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    deep = image.mode.startswith(("I", "F"))
    white = _white(image, max(_values(image.crop(s)).max() for s in strips)) if deep else 0.0
    upright = np.empty((height, width, 3) if orientation < 5 else (width, height, 3), np.uint8)
    stored = _AS_STORED.get(orientation, lambda upright: upright)(upright)
    for strip in strips:
        part = image.crop(strip)
        if deep:
            pixels = (_values(part) * (255 / white) + 0.5).astype(np.uint8)[..., None]
        else:
            pixels = np.asarray(_over_white(part))
        stored[strip[1] : strip[3]] = pixels
    return upright


def _over_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _values(image: Image.Image) -> np.ndarray:
    values = np.asarray(image).astype(np.float64)
    return np.maximum(np.nan_to_num(values, posinf=0, neginf=0), 0)


def _white(image: Image.Image, top: float) -> float:
    """Return what is white in a grey image of more than 8 bits whose maximum is `top`.

    16-bit values are divided by 257. For 32-bit integers and floats, which have no agreed
    white, it is the smallest of 1 (floats only), 255 and 65535 that covers the image, else its
    maximum.
    """
    if image.mode.startswith("I;16"):
        return 65535.0
    if image.mode == "F" and top <= 1:
        return 1.0
    return 255.0 if top <= 255 else 65535.0 if top <= 65535 else top


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
