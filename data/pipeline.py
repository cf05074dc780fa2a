"""The tf.data pipeline: deterministic, stateless, and resumable at any step.

The order of an epoch is a permutation of (seed, epoch); the augmentation of a sample is a
function of (seed, epoch, content of the image). Nothing depends on what was drawn before, on the
number of threads, or on what is held in memory.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ..errors import INTERRUPTED, DataError, UsageError
from ..machine import cores
from ..zoo.spec import Preprocess
from . import augment as augmentation
from .catalogue import Data
from .decode import decode
from .records import Record, as_pixels
from .resize import reduce_pixels, resample, resize_rule, shorter_side

__all__ = [
    "Part",
    "batches",
    "class_weights",
    "identities",
    "load_image",
    "permutation",
    "resize_rule",
    "surfacing",
    "untuned",
]

_MASK = (1 << 64) - 1
_EPOCH, _VIEW = 1, 2
_RETRY_AFTER = (0.05, 0.2, 0.8)  # seconds


@dataclass(frozen=True)
class Part:
    """Which images of each batch one of several replicas of a model computes.

    Attributes:
        index: of the replica. of: their number.
        same: give every part the same number of images always, as a TPU wants it; the last
            batch of an epoch is filled up then. Else a part is filled up only where it would
            have no image at all.
    """

    index: int
    of: int
    same: bool = False

    def most(self, batch: int) -> int:
        """Return how many images a part has at most."""
        return -(-batch // self.of)

    def cut(self, rows: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return this part's rows of a batch, and float32: 0 for those that fill it up."""
        if self.same:
            most = self.most(batch)
            mine, size = rows[self.index * most : (self.index + 1) * most], most
        else:
            mine = np.array_split(rows, self.of)[self.index]
            size = max(1, len(mine))
        real = np.zeros(size, np.float32)
        real[: len(mine)] = 1
        return np.concatenate([mine, np.repeat(rows[:1], size - len(mine))]), real


def batches(
    data: Data,
    split: str,
    preprocess: Preprocess,
    *,
    batch: int,
    augment: str = "none",
    seed: int = 0,
    shuffle: bool = False,
    epochs: int = 1,
    start_epoch: int = 0,
    start_step: int = 0,
    view: int | None = None,
    rows: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    part: Part | None = None,
    hold: bool = True,
) -> tf.data.Dataset:
    """Return the batches of a split, for one epoch or many.

    Each epoch has `ceil(n / batch)` batches, the last one smaller if need be. Errors of the
    data come out as TensorFlow errors; iterate inside `surfacing(data)` to get the DataError.

    Args:
        data: from `load_data`.
        split: `train`, `val` or `test`.
        preprocess: gives size, crop and interpolation; the normalisation is in the model.
        batch: images per batch.
        augment: `none`, `light`, `medium` or `strong`; see `augment.LEVELS` for the numbers.
            Images are mirrored only if `data.flip`.
        seed: of order and augmentation.
        shuffle: another order in every epoch; else that of the records.
        epochs: the epoch after the last one.
        start_epoch, start_step: where to begin; what follows is what a run from the start
            would have seen from there on.
        view: a pass over the records in their order, whose augmentation depends on (view,
            sample) and on no seed, so that it is the same in every run. View 0 is not
            augmented: the image that evaluation sees.
        rows: the pass takes these records only; int64, in the order wanted.
        weights: per class (classes,), from `class_weights`; an image weighs as its class, or
            as its classes on average.
        part: only what this replica computes of each batch.
        hold: keep decoded images in memory for the next pass, within bounds.

    Returns:
        (image float32 (b, size, size, 3) in 0..255, label float32 (b, k), weight float32 (b,));
        with a teacher its answers stand behind the labels (`Data.targets`);
        with `part` also real float32 (b,), 0 for an image that only fills the part up, and
        float32 (), how many images the whole batch has.

    Raises:
        DataError: `data.split` if the split is empty.
        UsageError: an argument that makes no sense.
    """
    level = augmentation.level(augment)
    records, idents = data.records(split), identities(data, split).view(np.int64)
    if not records:
        raise DataError("data.split", f"the {split} split is empty", where=data.name)
    if batch < 1 or not 0 <= start_epoch <= epochs or start_step < 0:
        raise UsageError("usage.batches", f"batch {batch}, epochs {start_epoch} to {epochs}")
    if rows is not None and view is None:
        raise UsageError("usage.batches", "rows= says what a pass takes: give its view=, too")
    if view is not None:
        epochs, start_epoch, shuffle = 1, 0, False
        level = level if view > 0 else None
    every = np.arange(len(records)) if rows is None else np.asarray(rows, np.int64)
    steps = -(-len(every) // batch)
    most = part.most(batch) if part else batch
    labels, weight = data.targets(split), sample_weights(data, split, weights)
    images = _images(data, shorter_side(preprocess))
    augmented = _augmenting(level, data.flip, preprocess) if level else None

    def fetch(index: np.ndarray) -> np.ndarray:
        try:
            return images.get(records[index], hold)
        except DataError as error:
            data.failure = error
            raise

    def order(epoch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return keys (n, 2) of an epoch's samples, the samples, and their `real` and count.

        -1 fills a batch up to the size of the others, and is dropped again.
        """
        rows = permutation(len(records), seed, int(epoch)) if shuffle else every
        indices, share = np.full(steps * most, -1, np.int64), np.ones((steps * most, 2), np.float32)
        if part is None:
            indices[: len(rows)] = rows
        else:
            for step in range(steps):
                whole = rows[step * batch : (step + 1) * batch]
                mine, real = part.cut(whole, batch)
                here = slice(step * most, step * most + len(mine))
                indices[here], share[here, 0], share[here, 1] = mine, real, len(whole)
        key = _mix(seed, _EPOCH, int(epoch)) if view is None else _mix(_VIEW, view)
        keys = np.full((len(indices), 2), key, np.uint64).view(np.int64)
        keys[:, 1] = idents[indices]
        return keys, indices, share

    def samples(epoch: tf.Tensor) -> tf.data.Dataset:
        kinds = tf.int64, tf.int64, tf.float32
        keys, indices, share = tf.numpy_function(order, [epoch], kinds, stateful=False)
        keys = tf.ensure_shape(keys, (steps * most, 2))
        indices = tf.ensure_shape(indices, (steps * most,))
        share = tf.ensure_shape(share, (steps * most, 2))
        return tf.data.Dataset.from_tensor_slices((keys, indices, share))

    def sample(key: tf.Tensor, index: tf.Tensor, share: tf.Tensor) -> tuple[tf.Tensor, ...]:
        def make() -> tf.Tensor:
            pixels = tf.numpy_function(fetch, [index], tf.uint8, stateful=False)
            pixels = tf.ensure_shape(pixels, (None, None, 3))
            if augmented is None:
                return resize_rule(pixels, preprocess)
            return augmented(pixels, key)

        size = preprocess.size
        return index, share, tf.cond(index >= 0, make, lambda: tf.zeros((size, size, 3)))

    def finish(index: tf.Tensor, share: tf.Tensor, image: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Drop what filled up the last batch; add labels and weights."""
        real = tf.math.count_nonzero(index >= 0)
        index = index[:real]
        label, factor = tf.numpy_function(
            lambda i: (labels[i], weight[i]), [index], (tf.float32, tf.float32), stateful=False
        )
        found = (
            image[:real],
            tf.ensure_shape(label, (None, labels.shape[1])),
            tf.ensure_shape(factor, (None,)),
        )
        if part is None:
            return found
        if part.same:  # of one size always
            found = tuple(tf.ensure_shape(x, (most, *x.shape[1:])) for x in found)
            share = tf.ensure_shape(share, (most, 2))
        return *found, share[:real, 0] if not part.same else share[:, 0], share[0, 1]

    plain = tf.autograph.experimental.do_not_convert
    dataset = tf.data.Dataset.range(start_epoch, epochs).flat_map(plain(samples))
    dataset = dataset.skip(start_step * most)
    dataset = dataset.map(plain(sample), num_parallel_calls=cores(), deterministic=True)
    dataset = dataset.batch(most, drop_remainder=True).map(plain(finish)).prefetch(2)
    left = max(0, (epochs - start_epoch) * steps - start_step)
    return untuned(dataset.apply(tf.data.experimental.assert_cardinality(left)))


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return a dataset whose parallelism TensorFlow leaves as it is, as it does in what follows.

    Its tuner sleeps between two looks, twice as long each time. An iterator that is let go wakes
    it before it says that all is over, so that where the cores are busy it may go to sleep again;
    and the iterator waits. A pass of 21 s stood still for another 20 s so (benchmarks/tuner.py).
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def load_image(source: Any, preprocess: Preprocess) -> np.ndarray:
    """Return an image as evaluation sees it: float32 (size, size, 3) in 0..255.

    Args:
        source: a path, the bytes of an image file, or an array or Pillow's image as `load_data`
            takes it.
        preprocess: gives size, crop and interpolation.

    Raises:
        DataError: as `decode.decode` and `records.as_pixels` do.
    """
    is_file = isinstance(source, bytes | str | os.PathLike)
    pixels = decode(source) if is_file else as_pixels(source, "image")
    reduced = reduce_pixels(pixels, shorter_side(preprocess))
    return resize_rule(tf.constant(reduced), preprocess).numpy()


def class_weights(data: Data, kind: str | None = "balanced") -> np.ndarray:
    """Return a weight for each class, float32 (classes,), from the training split.

    `balanced` is `labels in all / (classes * labels of this class)`, as in scikit-learn; None
    is 1 for each.

    Raises:
        UsageError: `usage.class-weight`.
    """
    if kind is None:
        return np.ones(len(data.classes), np.float32)
    if kind != "balanced":
        raise UsageError("usage.class-weight", f"{kind!r} is not 'balanced'")
    counts = _hot(data, "train").sum(0)
    return (counts.sum() / (len(counts) * np.maximum(counts, 1))).astype(np.float32)


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of an epoch, int64 (n,): the same on every machine and version."""
    return np.argsort(_scramble(np.arange(n, dtype=np.uint64), _mix(seed, epoch)), kind="stable")


@contextmanager
def surfacing(data: Data) -> Iterator[None]:
    """Turn the TensorFlow error of a failed read back into the DataError that caused it."""
    try:
        yield
    except tf.errors.OpError as error:
        cause = data.failure
        data.failure = None
        if cause is None:
            raise
        raise cause from error


@lru_cache(maxsize=16)  # the same passes are made again and again, and tracing takes long
def _augmenting(
    level: augmentation.Level, flip: bool, preprocess: Preprocess
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Return what makes of an image and its key the image that is trained on."""

    @tf.function(autograph=False)
    def augmented(pixels: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        u = augmentation.draw(key)
        shape = tf.cast(tf.shape(pixels)[:2], tf.float32)
        start, window = augmentation.window(shape, u, level)
        scale = preprocess.size / window
        image = resample(pixels, start * scale, scale, preprocess)
        return augmentation.alter(image, u, key, level, flip)

    return augmented


def _hot(data: Data, split: str) -> np.ndarray:
    """Return one column per class, also for a binary task."""
    labels = data.labels(split)
    return np.concatenate([1 - labels, labels], axis=1) if data.task == "binary" else labels


def identities(data: Data, split: str) -> np.ndarray:
    """Return what each image is known by, uint64 (n,): the start of the hash of its content."""
    return np.array([int(r.sha256[:16], 16) for r in data.records(split)], np.uint64)


def sample_weights(data: Data, split: str, weights: np.ndarray | None) -> np.ndarray:
    hot = _hot(data, split)
    if weights is None:
        return np.ones(len(hot), np.float32)
    weights = np.asarray(weights, np.float32)
    if weights.shape != (len(data.classes),):
        raise UsageError(
            "usage.class-weight", f"{weights.shape} weights for {len(data.classes)} classes"
        )
    count = hot.sum(1)
    return np.where(count > 0, hot @ weights / np.maximum(count, 1), 1).astype(np.float32)


def _scramble(values: np.ndarray, key: int) -> np.ndarray:
    """Return well mixed uint64 (the finaliser of splitmix64)."""
    z = values * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _mix(*numbers: int) -> int:
    """Return one 64-bit key for some whole numbers."""
    key = 0
    for number in numbers:
        start = np.array([number & _MASK], np.uint64)
        key = int(_scramble(start, (key * 0x2545F4914F6CDD1D + 1) & _MASK)[0])
    return key


def _budget() -> int:
    """Return how many bytes of images may be held: 2 GiB, or a quarter of the memory."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = 4 * 2**30
    return min(2 * 2**30, memory // 4)


def _images(data: Data, short: int) -> _Images:
    """Return the image memory of some data; another image size replaces it."""
    if not isinstance(data.memory, _Images) or data.memory.short != short:
        data.memory = _Images(short, data.max_pixels)
    return data.memory


class _Images:
    """Decoded and reduced images, held in memory as far as the budget goes."""

    def __init__(self, short: int, max_pixels: int):
        self.short = short
        self._max_pixels = max_pixels
        self._held: dict[str, np.ndarray] = {}
        self._left = _budget()
        self._lock = threading.Lock()

    def get(self, record: Record, hold: bool) -> np.ndarray:
        held = self._held.get(record.key)
        if held is None:
            held = reduce_pixels(self._read(record), self.short)
            with self._lock:
                if hold and record.key not in self._held and held.nbytes <= self._left:
                    self._left -= held.nbytes
                    self._held[record.key] = held
        return held

    def _read(self, record: Record) -> np.ndarray:
        for wait in _RETRY_AFTER:  # a network drive may only have hiccuped
            try:
                return record.pixels(self._max_pixels)
            except DataError:
                time.sleep(wait)
        try:
            return record.pixels(self._max_pixels)
        except DataError as error:
            raise DataError(
                "data.vanished",
                f"{record.key}: it could be read when it was scanned, but now: {error.message}",
                where=record.image if isinstance(record.image, Path) else record.key,
                fix="bring the file back and resume the run",
                exit_code=INTERRUPTED,
            ) from error
