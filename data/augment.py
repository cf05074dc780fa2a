"""Augmentation: what a level does, in numbers, and the random draws behind it.

Every draw is a function of a key alone (seed, epoch or view, sample), so a resumed run sees
the very images an uninterrupted one would have seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from ..errors import UsageError, nearest


@dataclass(frozen=True)
class Level:
    """What one level of augmentation does.

    Attributes:
        area: smallest share of the image's largest square that a random crop keeps; the most is 1.
        aspect: largest stretch of the crop's sides, up or down.
        colour: brightness, contrast and saturation are each multiplied by 1 +- this.
        degrees: largest rotation to either side.
        shear: largest shear, in degrees.
        erase: probability that a rectangle of 2-20 % of the area is filled with noise.
    """

    area: float = 1.0
    aspect: float = 1.0
    colour: float = 0.0
    degrees: float = 0.0
    shear: float = 0.0
    erase: float = 0.0


LEVELS = {
    "none": None,
    "light": Level(area=0.7, aspect=1.1),
    "medium": Level(area=0.5, aspect=4 / 3, colour=0.2),
    "strong": Level(area=0.35, aspect=4 / 3, colour=0.4, degrees=15, shear=8, erase=0.25),
}


def level(name: str) -> Level | None:
    """Return a level by name, None for `none`; raises UsageError `usage.augment`."""
    try:
        return LEVELS[name]
    except KeyError:
        raise UsageError(
            "usage.augment",
            f"no augmentation {name!r}{nearest(name, LEVELS)}",
            fix=f"use one of {', '.join(LEVELS)}",
        ) from None


def draw(key: tf.Tensor) -> tf.Tensor:
    """Return the random numbers of a sample, float32 (16,) in [0, 1), from its int64 (2,) key."""
    return tf.random.stateless_uniform((16,), key, alg="philox")


def window(shape: tf.Tensor, u: tf.Tensor, level: Level) -> tuple[tf.Tensor, tf.Tensor]:
    """Return offset (y, x) and size (h, w) of a random crop, float32, in pixels of the image.

    Args:
        shape: float32 (height, width) of the image.
        u: the sample's draws.
        level: gives area and aspect. The area is measured against the largest square of the
            image, and the crop may lie anywhere in it, so a long image is seen to its ends.
    """
    side = tf.reduce_min(shape)
    stretch = tf.pow(level.aspect, 2 * u[0] - 1)
    edge = side * tf.sqrt(_between(u[1], level.area, 1.0))
    size = tf.minimum(edge * tf.stack([tf.math.rsqrt(stretch), tf.sqrt(stretch)]), shape)
    return u[2:4] * (shape - size), size


def alter(image: tf.Tensor, u: tf.Tensor, key: tf.Tensor, level: Level, flip: bool) -> tf.Tensor:
    """Return the image (size, size, 3) mirrored half of the time, and changed by the level."""
    if flip:
        image = tf.cond(u[4] < 0.5, lambda: tf.reverse(image, [1]), lambda: image)
    if level.degrees or level.shear:
        image = _turn(image, u, level)
    if level.colour:
        image = _jitter(image, u, level.colour)
    if level.erase:
        image = _erase(image, u, key, level.erase)
    return tf.clip_by_value(image, 0.0, 255.0)


def mixed(
    dataset: tf.data.Dataset, alpha: float, seed: int, first: int = 0, *, cutmix: float = 0.0
) -> tf.data.Dataset:
    """Mix each sample of a batch with another one of it.

    Args:
        dataset: batches of (images or activations, labels, weights), and of what is not mixed.
            Labels are one-hot, or of several classes, so that the loss is linear in them; weights
            have shape (b,), and say how much each of the two images counts in what is mixed.
        alpha: of the Beta distribution that a batch's share is drawn from for mixup
            (arXiv:1710.09412); 0: no mixup.
        seed: of the draws, with the number of the batch: a run can go on anywhere.
        first: number of the first batch, counted over all epochs.
        cutmix: the same for CutMix (arXiv:1905.04899), where a rectangle is taken from the other
            image; needs images or maps `(b, height, width, c)`. With both, a batch has the one
            or the other, each half of the time.
    """
    if not (alpha or cutmix):
        return dataset

    def draw(number: np.ndarray, n: np.ndarray) -> tuple[np.float32, np.ndarray, np.ndarray]:
        rng = np.random.default_rng([seed, int(number)])
        cuts = cutmix and (not alpha or rng.random() < 0.5)
        concentration = cutmix if cuts else alpha
        share = np.float32(rng.beta(concentration, concentration))
        other = rng.permutation(int(n))
        return share, other, np.array([1, *rng.random(2)] if cuts else [0, 0, 0], np.float32)

    def mix(number: tf.Tensor, batch: tuple) -> tuple:
        wanted = [number + first, tf.shape(batch[0])[0]]
        kinds = (tf.float32, tf.int64, tf.float32)
        share, other, cut = tf.numpy_function(draw, wanted, kinds, stateful=False)
        share, other = tf.ensure_shape(share, ()), tf.ensure_shape(other, (None,))
        x, mask = batch[0], share
        if cutmix:
            mask = _mask(tf.shape(x), share, tf.ensure_shape(cut, (3,)))
            share = tf.reduce_mean(mask)
        x = tf.ensure_shape(mask * x + (1 - mask) * tf.gather(x, other), x.shape)
        # The loss of a mixed image is the weighted sum of two: what each label weighs goes into the
        # label, so that a rare class keeps its weight beside a common one.
        (y, w), kept = batch[1:3], 1 - share
        own, taken = share * w, kept * tf.gather(w, other)
        both = own + taken
        labels = _rows(own, y) * y + _rows(taken, y) * tf.gather(y, other)
        return x, tf.math.divide_no_nan(labels, _rows(both, y)), both, *batch[3:]

    return dataset.enumerate().map(lambda number, batch: mix(number, batch))


def _rows(weights: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Return (b,) weights in a shape that multiplies the rows of `like`."""
    return tf.reshape(weights, [-1] + [1] * (like.shape.rank - 1))


def _mask(shape: tf.Tensor, share: tf.Tensor, cut: tf.Tensor) -> tf.Tensor:
    """Return the share of the own image at each place (1, height, width, 1): 0 in the rectangle.

    Args:
        cut: whether there is one (else every place has `share`), and where its middle lies, 0..1.
    """
    inside = []
    for axis in (1, 2):
        side = tf.cast(shape[axis], tf.float32)
        half = side * tf.sqrt(1 - share) / 2
        at = tf.range(side) + 0.5 - cut[axis] * side
        inside.append(tf.abs(at) < half)
    hole = inside[0][:, None] & inside[1][None]
    own = tf.where(hole, 0.0, 1.0)
    return tf.where(cut[0] > 0, own, tf.fill(tf.shape(own), share))[None, :, :, None]


def _between(u: tf.Tensor, low: float, high: float) -> tf.Tensor:
    return low + u * (high - low)


def _jitter(image: tf.Tensor, u: tf.Tensor, amount: float) -> tf.Tensor:
    brightness, contrast, saturation = (_between(u[i], 1 - amount, 1 + amount) for i in (5, 6, 7))
    # image * brightness, then away from its mean, then away from its grey: one linear map
    gain = brightness * contrast
    grey = tf.tensordot(image, tf.constant([0.299, 0.587, 0.114]), 1)[..., None]
    shift = tf.reduce_mean(image) * brightness * (1 - contrast)
    return image * (gain * saturation) + (grey * (gain * (1 - saturation)) + shift)


def _turn(image: tf.Tensor, u: tf.Tensor, level: Level) -> tf.Tensor:
    """Rotate and shear about the centre; what comes in from outside is a reflection."""
    angle = _between(u[8], -level.degrees, level.degrees) * (math.pi / 180)
    shear = tf.tan(_between(u[9], -level.shear, level.shear) * (math.pi / 180))
    cos, sin = tf.cos(angle), tf.sin(angle)
    a, b, c, d = cos, shear * cos - sin, sin, shear * sin + cos
    centre = (tf.cast(tf.shape(image)[:2], tf.float32) - 1) / 2
    y, x = centre[0], centre[1]
    matrix = tf.stack([a, b, x - a * x - b * y, c, d, y - c * x - d * y, 0.0, 0.0])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=matrix[None],
        output_shape=tf.shape(image)[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )[0]


def _erase(image: tf.Tensor, u: tf.Tensor, key: tf.Tensor, probability: float) -> tf.Tensor:
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    stretch = tf.exp(_between(u[11], -1.0, 1.0))
    size = tf.sqrt(_between(u[10], 0.02, 0.2) * tf.stack([stretch, 1 / stretch]))
    size = tf.minimum(size, 1.0) * shape
    start = u[12:14] * (shape - size)
    y, x = (tf.range(shape[axis], dtype=tf.float32) for axis in (0, 1))
    inside = ((y >= start[0]) & (y < start[0] + size[0]))[:, None] & (
        (x >= start[1]) & (x < start[1] + size[1])
    )

    def erased() -> tf.Tensor:
        noise = tf.random.stateless_uniform(tf.shape(image), key + 1, 0.0, 255.0, alg="philox")
        return tf.where(inside[..., None], noise, image)

    return tf.cond(u[14] < probability, erased, lambda: image)
