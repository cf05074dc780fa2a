"""`data.decode` once more, in TensorFlow operations, to travel inside an exported model.

JPEG (grey and CMYK too), PNG, GIF, BMP and, where this TensorFlow has it, WebP come out as
`data.decode` gives them: the same pixels (CMYK within one level of 255), upright, the first
frame, alpha over white. What cannot be decoded alike is an error of the graph, never another
image: TIFF and other rare formats, BMP with less than 8 bits a pixel or compressed, a GIF or
an animated WebP whose first frame does not fill it.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

_AHEAD = 64  # zero bytes after the file, so that reading a field never leaves the tensor


def decode(data: tf.Tensor) -> tf.Tensor:
    """Return the image in a file's bytes (scalar string) as uint8 RGB (height, width, 3)."""
    raw = tf.concat([tf.io.decode_raw(data, tf.uint8), tf.zeros(_AHEAD, tf.uint8)], 0)
    kinds = {b"\xff\xd8\xff": _jpeg, b"\x89PNG": _png, b"GIF8": _gif, b"BM": _bmp, b"RIFF": _webp}
    cases = [(_is(raw, 0, magic), lambda f=reader: f(data, raw)) for magic, reader in kinds.items()]
    image = tf.case(cases, default=lambda: _unknown(raw))
    image.set_shape((None, None, 3))
    return image


def _unknown(raw):
    known = tf.size(raw) < 0  # never
    ok = tf.debugging.Assert(known, ["not a file of JPEG, PNG, GIF, BMP or WebP"])
    with tf.control_dependencies([ok]):
        return tf.zeros((1, 1, 3), tf.uint8)


def _jpeg(data, raw):
    # Both options are what Pillow uses: with them the pixels are equal to the last bit.
    image = tf.io.decode_jpeg(data, 3, dct_method="INTEGER_ACCURATE", fancy_upscaling=True)

    def wanted(at):
        return _is(raw, at, b"\xff\xe1") & _is(raw, at + 4, b"Exif\0\0")

    def goes_on(at):  # a segment, and the pixels have not begun
        return _is(raw, at, b"\xff") & ~_is(raw, at, b"\xff\xda") & ~wanted(at)

    def step(at):  # any number of FF may stand before a marker
        return at + tf.where(_is(raw, at, b"\xff\xff"), 1, 2 + _number(raw, at + 2, 2))

    at = _walk(raw, 2, goes_on, step)
    return _upright(image, _orientation(raw, at + 10, wanted(at)))


def _png(data, raw):
    def grey16():  # divided by 257 and rounded; other 16-bit images keep the upper byte
        grey = tf.cast(tf.io.decode_png(data, 1, tf.uint16), tf.int32)
        return tf.cast(tf.repeat((grey + 128) // 257, 3, axis=2), tf.uint8)

    def others():  # asked for alpha, TensorFlow misreads pixels of less than 8 bits
        few = raw[24] < 8
        return tf.cond(few, lambda: tf.io.decode_png(data), lambda: tf.io.decode_png(data, 4))

    image = _rgb(tf.cond(_is(raw, 24, b"\x10\x00"), grey16, others))

    def step(at):
        return at + 12 + _number(raw, at, 4)

    at = _walk(raw, 8, lambda at: ~_is(raw, at + 4, b"eXIf"), step)
    return _upright(image, _orientation(raw, at + 8, _is(raw, at + 4, b"eXIf")))


def _webp(data, raw):
    def chunk(name):  # chunks are padded to an even length
        def step(at):
            return at + 8 + (_number(raw, at + 4, 4, little=True) + 1) // 2 * 2

        return _walk(raw, 12, lambda at: ~_is(raw, at, name), step)

    def says(flag):
        return _is(raw, 12, b"VP8X") & (raw[20] // flag % 2 == 1)

    def still():
        # Not said to be an animation, and the chunk around the first frame cut down to its header,
        # which decoders pass over: what follows is then the image of the file.
        return _put(_put(data, chunk(b"ANMF") + 4, b"\x10\0\0\0"), 20, b"\x10")

    # No animation may come to TensorFlow 2.21: it makes room for three channels of one without
    # alpha and writes four, whatever it is asked for.
    animated, alpha, exif = says(2), says(16), says(8)
    data = tf.cond(animated, still, lambda: tf.identity(data))
    kept = tf.where(animated & ~alpha, 3, 4)
    image = _rgb(tf.io.decode_image(data, 0, expand_animations=False)[:, :, :kept])
    at = chunk(b"EXIF")
    base = at + 8 + tf.where(_is(raw, at + 8, b"Exif\0\0"), 6, 0)
    return _upright(image, _orientation(raw, base, exif & _is(raw, at, b"EXIF")))


def _gif(data, raw):
    """Decode the first frame. TensorFlow paints transparent pixels black; Pillow tells them
    from black ones, so the transparent palette entry is made white and the remark that it is
    transparent is turned into a comment before decoding."""
    flags = tf.cast(raw[10], tf.int32)
    table = tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)
    control, extension, text = b"\x21\xf9", b"\x21", b"\x2c"

    def step(at, block, seen):
        # A block is an extension's header, or one of its sub-blocks; length 0 ends them.
        length = tf.cast(raw[at], tf.int32)
        seen = tf.where(~block & _is(raw, at, control), at, seen)
        return tf.where(block, at + 1 + length, at + 2), ~block | (length > 0), seen

    def goes_on(at, block, seen):
        return (at < tf.size(raw) - _AHEAD) & (block | _is(raw, at, extension))

    at, _, seen = tf.while_loop(goes_on, step, (13 + table, tf.constant(False), tf.constant(0)))
    whole = tf.reduce_all(raw[at + 1 : at + 9] == tf.concat([tf.zeros(4, tf.uint8), raw[6:10]], 0))
    ok = tf.debugging.Assert(
        whole & _is(raw, at, text), ["GIF: the first frame does not fill the image"]
    )
    with tf.control_dependencies([ok]):
        local = raw[at + 9] >= 128
    colour = tf.where(local, at + 10, 13) + 3 * tf.cast(raw[seen + 6], tf.int32)

    def opaque():
        return _put(_put(data, colour, b"\xff\xff\xff"), seen + 1, b"\xfe")

    data = tf.cond((seen > 0) & (raw[seen + 3] % 2 == 1), opaque, lambda: tf.identity(data))
    return tf.io.decode_image(data, 3, expand_animations=False)


def _bmp(data, raw):
    bits = _number(raw, 28, 2, little=True)
    header = _number(raw, 14, 4, little=True)
    plain = _is(raw, 30, b"\0\0\0\0") & (header >= 40) & (bits >= 8) & (bits != 16)
    ok = tf.debugging.Assert(plain, ["BMP: only uncompressed 8, 24 and 32 bits can be read"])
    with tf.control_dependencies([ok]):
        image = tf.io.decode_bmp(data, 0)  # with 8 bits these are places in the palette

    def palette():
        colours = tf.reshape(
            tf.concat([raw, tf.zeros(1024, tf.uint8)], 0)[14 + header :][:1024], (256, 4)
        )
        return tf.gather(colours[:, 2::-1], tf.cast(image[:, :, 0], tf.int32))

    return tf.cond(bits == 8, palette, lambda: image[:, :, :3])


def _rgb(image):
    """Return grey, RGB or RGBA as RGB: alpha over white, rounded as Pillow rounds it."""

    def over_white():
        rgba = tf.cast(image, tf.int32)
        colour, alpha = rgba[:, :, :3], rgba[:, :, 3:]
        return tf.cast((colour * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)

    channels = tf.shape(image)[2]
    opaque = tf.tile(image[:, :, :3], (1, 1, tf.where(channels == 1, 3, 1)))
    return tf.cond(channels == 4, over_white, lambda: opaque)


def _orientation(raw, base, present):
    """Return the EXIF orientation 1..8 (1 if there is none) of the TIFF header at `base`."""

    def read():
        little = _is(raw, base, b"II")
        start = tf.minimum(base + _number(raw, base + 4, 4, little), tf.size(raw) - _AHEAD)
        count = tf.minimum(_number(raw, start, 2, little), (tf.size(raw) - start - 2) // 12)
        rows = tf.reshape(raw[start + 2 : start + 2 + 12 * tf.maximum(count, 0)], (-1, 12))
        rows = tf.cast(rows, tf.int32)
        rows = tf.where(
            little, tf.gather(rows, [1, 0, 9, 8], axis=1), tf.gather(rows, [0, 1, 8, 9], axis=1)
        )
        values = tf.boolean_mask(
            rows[:, 2] * 256 + rows[:, 3], rows[:, 0] * 256 + rows[:, 1] == 0x0112
        )
        return tf.concat([values, [1]], 0)[0]

    return tf.cond(present, read, lambda: 1)


def _upright(image, orientation):
    """Undo an EXIF orientation: transpose for 5..8, then mirror sideways, then upside down."""

    def when(orientations, change, image):
        chosen = tf.reduce_any(orientation == tf.constant(orientations))
        return tf.cond(chosen, lambda: change(image), lambda: image)

    image = when((5, 6, 7, 8), lambda x: tf.transpose(x, (1, 0, 2)), image)
    image = when((2, 3, 6, 7), lambda x: x[:, ::-1], image)
    return when((3, 4, 7, 8), lambda x: x[::-1], image)


def _walk(raw, start: int, goes_on: Callable, step: Callable) -> tf.Tensor:
    """Go from block to block until `goes_on` is false or the file ends; return where."""
    end = tf.size(raw) - _AHEAD
    inside = lambda at: (at < end) & (at >= 0) & goes_on(at)  # noqa: E731
    (at,) = tf.while_loop(inside, lambda at: (step(at),), (tf.constant(start),))
    return tf.clip_by_value(at, 0, end)


def _is(raw, at, expected: bytes) -> tf.Tensor:
    return tf.reduce_all(raw[at : at + len(expected)] == tf.constant(list(expected), tf.uint8))


def _number(raw, at, size: int, little: tf.Tensor | bool = False) -> tf.Tensor:
    """Return the unsigned number of `size` bytes at `at`; those above 2^30 come out as 2^30."""
    digits = tf.cast(raw[at : at + size], tf.int64)
    digits = tf.where(little, digits, digits[::-1])
    value = tf.reduce_sum(digits * tf.constant([256**i for i in range(size)], tf.int64))
    return tf.cast(tf.minimum(value, 2**30), tf.int32)


def _put(data, at, new: bytes) -> tf.Tensor:
    end = tf.minimum(at + len(new), tf.strings.length(data))  # of a file cut off before it
    rest = tf.strings.substr(data, end, -1)
    return tf.strings.join([tf.strings.substr(data, 0, at), new, rest])
