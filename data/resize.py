"""The one resize rule: from an image of any size to the square a model takes.

It is made of TensorFlow operations only, and an export puts the very same function into the
SavedModel, so training, prediction and the exported file see the same pixels.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from ..errors import UsageError, nearest
from ..zoo.spec import Preprocess

_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic", "lanczos3": "lanczos3"}


def resize_rule(image: tf.Tensor, preprocess: Preprocess) -> tf.Tensor:
    """Return the centre of an image as float32 (size, size, 3) in 0..255.

    The shorter side is resized to `round(size / crop)`, with anti-aliasing, keeping the aspect
    (the longer side rounded down); the centre is cut out. Only the pixels that stay are
    computed. An image more than twice too large is first averaged over blocks of k x k pixels,
    `k = shorter side // (2 * round(size / crop))`, and rounded to whole numbers.

    Args:
        image: (height, width, 3), uint8 or float in 0..255; sizes need not be static.
        preprocess: gives size, crop and interpolation.
    """
    short = shorter_side(preprocess)
    image = _reduced(image, short)
    shape = tf.shape(image)[:2]
    side = tf.reduce_min(shape)
    new = tf.cast(tf.cast(shape, tf.int64) * short // tf.cast(side, tf.int64), tf.int32)
    offset = tf.cast((new - preprocess.size) // 2, tf.float32)
    scale = tf.cast(new, tf.float32) / tf.cast(shape, tf.float32)
    return resample(image, offset, scale, preprocess)


def shorter_side(preprocess: Preprocess) -> int:
    """Return what the shorter side is resized to before the crop, in pixels."""
    return round(preprocess.size / preprocess.crop)


def resample(
    image: tf.Tensor, offset: tf.Tensor, scale: tf.Tensor, preprocess: Preprocess
) -> tf.Tensor:
    """Return the (size, size) window at `offset` of the image enlarged by `scale`.

    Args:
        image: (height, width, 3), uint8 or float.
        offset: float32 (y, x), in pixels of the enlarged image.
        scale: float32 (y, x), new size over old.
        preprocess: gives size and interpolation.
    """
    size, kind = preprocess.size, preprocess.interpolation
    if kind == "nearest":
        rows, columns = (
            tf.clip_by_value(
                tf.cast(
                    (tf.range(size, dtype=tf.float32) + offset[axis] + 0.5) / scale[axis], tf.int32
                ),
                0,
                tf.shape(image)[axis] - 1,
            )
            for axis in (0, 1)
        )
        found = tf.gather(tf.gather(image, rows, axis=0), columns, axis=1)
        return tf.ensure_shape(tf.cast(found, tf.float32), (size, size, 3))
    if kind not in _KERNELS:
        raise UsageError(
            "usage.interpolation",
            f"no interpolation {kind!r}{nearest(kind, [*_KERNELS, 'nearest'])}",
        )
    found = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=(size, size),
        scale=scale,
        translation=-offset,
        kernel_type=_KERNELS[kind],
        antialias=True,
    )[0]
    # cubic and Lanczos kernels overshoot at edges
    return tf.ensure_shape(tf.clip_by_value(found, 0.0, 255.0), (size, size, 3))


def _reduced(image: tf.Tensor, short: int) -> tf.Tensor:
    """Average blocks of pixels if the image is more than twice too large."""
    shape = tf.shape(image)[:2]
    k = tf.reduce_min(shape) // (2 * short)

    def average() -> tf.Tensor:
        count = shape // k
        start = (shape - count * k) // 2
        inner = tf.slice(image, [start[0], start[1], 0], [count[0] * k, count[1] * k, 3])
        blocks = tf.reshape(inner, [count[0], k, count[1], k, 3])
        total = tf.reduce_sum(tf.cast(blocks, tf.float32), axis=[1, 3])
        return tf.cast(tf.floor(total / tf.cast(k * k, tf.float32) + 0.5), image.dtype)

    return tf.cond(k >= 2, average, lambda: image)


def reduce_pixels(image: np.ndarray, short: int) -> np.ndarray:
    """Return what the rule averages a uint8 image to, or the image itself; in NumPy."""
    height, width = image.shape[:2]
    k = min(height, width) // (2 * short)
    if k < 2:
        return image
    rows, columns = height // k, width // k
    y, x = (height - rows * k) // 2, (width - columns * k) // 2
    blocks = image[y : y + rows * k, x : x + columns * k].reshape(rows, k, columns, k, 3)
    total = blocks.sum(axis=(1, 3), dtype=np.uint32)
    return np.floor(total.astype(np.float32) / np.float32(k * k) + 0.5).astype(np.uint8)
