"""The one decoder: what people's image files are like (pain 42, faults 6-9)."""

import io
import struct
import zlib

import numpy as np
import pytest
from dlzoo.data.decode import decode, probe
from dlzoo.errors import DataError
from PIL import Image
from PIL.PngImagePlugin import PngInfo

RED = (200, 30, 40)


def encoded(image, format="PNG", **kwargs):
    buffer = io.BytesIO()
    image.save(buffer, format, **kwargs)
    return buffer.getvalue()


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG", "PPM"])
def test_formats_give_rgb_by_content(format, tmp_path):
    path = tmp_path / "named.jpg"
    path.write_bytes(encoded(Image.new("RGB", (6, 4), RED), format))
    image = decode(path)
    assert image.shape == (4, 6, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - RED).max() <= 6  # JPEG and WebP lose a little
    assert probe(path) == (6, 4, format)


def test_bytes_and_path_are_the_same(tmp_path):
    data = encoded(Image.effect_noise((9, 7), 90).convert("RGB"), "JPEG")
    (tmp_path / "a").write_bytes(data)
    np.testing.assert_array_equal(decode(data), decode(tmp_path / "a"))
    np.testing.assert_array_equal(decode(data), decode(str(tmp_path / "a")))


def test_cmyk_and_grey():
    image = decode(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(image.astype(int) - (255, 0, 0)).max() <= 8
    np.testing.assert_array_equal(
        decode(encoded(Image.new("L", (2, 3), 77))), np.full((3, 2, 3), 77)
    )
    assert decode(encoded(Image.new("1", (2, 2), 1))).min() == 255


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 25700, 65535]], np.uint16)
    for format in ("PNG", "TIFF"):
        image = decode(encoded(Image.fromarray(values), format))
        np.testing.assert_array_equal(image[0, :, 0], [0, 1, 100, 255])


def test_float_tiff():
    unit = decode(encoded(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), "TIFF"))
    np.testing.assert_array_equal(unit[0, :, 1], [0, 128, 255])
    raw = decode(encoded(Image.fromarray(np.array([[0, 100, np.nan]], np.float32)), "TIFF"))
    np.testing.assert_array_equal(raw[0, :, 1], [0, 100, 0])


def test_alpha_lies_over_white():
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert (decode(encoded(clear)) == 255).all()
    half = decode(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
    assert abs(int(half[0, 0, 0]) - 127) <= 1
    assert (decode(encoded(Image.new("LA", (2, 2), (9, 0)))) == 255).all()


def test_palette_with_a_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    for format in ("PNG", "GIF"):
        found = decode(encoded(image, format, transparency=0))
        np.testing.assert_array_equal(found, [[[255, 255, 255], [0, 255, 0]]])


def test_animation_gives_the_first_frame():
    frames = [Image.new("RGB", (3, 3), c) for c in ("red", "blue", "lime")]
    for format in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decode(data)[1, 1], [255, 0, 0])


def test_all_eight_orientations_give_the_upright_image():
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8))
    t = Image.Transpose
    stored = {
        1: None,
        2: t.FLIP_LEFT_RIGHT,
        3: t.ROTATE_180,
        4: t.FLIP_TOP_BOTTOM,
        5: t.TRANSPOSE,
        6: t.ROTATE_90,
        7: t.TRANSVERSE,
        8: t.ROTATE_270,
    }
    for orientation, how in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = upright if how is None else upright.transpose(how)
        found = decode(encoded(image, "PNG", exif=exif))
        np.testing.assert_array_equal(found, np.asarray(upright), err_msg=str(orientation))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_orientation_is_that_of_exif_alone(format):
    """XMP and ImageMagick's text in a PNG, which Pillow takes for it, say nothing."""
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    text.add_text("Raw profile type exif", f"\nexif\n{len(raw):8}\n{raw.hex()}\n")
    others = {"TIFF": {}, "PNG": {"pnginfo": text}}.get(format, {"xmp": xmp})
    image = Image.new("RGB", (8, 5))
    assert decode(encoded(image, format, **others)).shape == (5, 8, 3)
    assert decode(encoded(image, format, **others, exif=exif)).shape == (8, 5, 3)


def test_size_is_read_from_the_header_only():
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    with pytest.raises(DataError, match="20000 x 20000") as caught:
        decode(png)
    assert caught.value.id == "data.image-too-large"
    small = encoded(Image.new("RGB", (20, 20)))
    assert decode(small, max_pixels=400).shape == (20, 20, 3)
    with pytest.raises(DataError, match="over the limit of 399"):
        decode(small, max_pixels=399)


def test_pillows_own_size_guard_stays_as_it_was():
    before = Image.MAX_IMAGE_PIXELS
    decode(encoded(Image.new("RGB", (2, 2))))
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("function", [decode, probe])
def test_broken_files_say_why(function, tmp_path):
    whole = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")
    for data, reason in [
        (b"", "0 bytes"),
        (b"I am no image at all", "not an image"),
        (whole[: len(whole) // 2], "truncated"),
        (encoded(Image.effect_noise((64, 64), 90))[:700], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ]:
        with pytest.raises(DataError, match=reason) as caught:
            function(data)
        assert caught.value.id == "data.unreadable"
    with pytest.raises(DataError, match="embedded null"):
        function("a\0b.png")
    with pytest.raises(DataError, match="No such file"):
        function(tmp_path / "absent.png")
