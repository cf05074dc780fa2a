"""What a frozen network computes, once for each image and view, and then fed to training.

With everything below a tap frozen, the tap's output is a constant of each (augmented) image.
It is computed in one pass, kept as float16 in a memory-mapped file, and each epoch draws one
of the views of every image.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from .. import files
from ..data import Data
from ..data.pipeline import batches, surfacing
from ..zoo.spec import Preprocess
from .engine import Run

FLOAT16 = (-65504.0, 65504.0)
LARGE = 1 << 28  # bytes; larger arrays live in a file and not in memory


class Activations:
    """Outputs of a frozen network: float16 `(views, n, ...)`, labels `(n, k)`, weights `(n,)`."""

    def __init__(self, values: np.ndarray, labels: np.ndarray, weights: np.ndarray):
        self.values, self.labels, self.weights = values, labels, weights

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, batch: int, *, seed: int = 0, epochs: int = 1, start_epoch: int = 0, shuffle=False
    ):
        """Return a tf.data.Dataset of (activation, label, weight), epoch after epoch.

        The order is a permutation from (seed, epoch), and image i shows view i + epoch: so
        every epoch is known without those before it.
        """
        import tensorflow as tf

        n, views = len(self), len(self.values)
        steps = math.ceil(n / batch)

        def gather(at):
            epoch, step = divmod(int(at), steps)
            order = np.random.default_rng([seed, epoch]).permutation(n) if shuffle else np.arange(n)
            chosen = order[step * batch : (step + 1) * batch]
            values = self.values[(chosen + epoch) % views if shuffle else 0, chosen]
            return values.astype("float32"), self.labels[chosen], self.weights[chosen]

        def load(at):
            x, y, w = tf.numpy_function(gather, [at], [tf.float32] * 3)
            x.set_shape((None, *self.values.shape[2:]))
            y.set_shape((None, self.labels.shape[1]))
            w.set_shape((None,))
            return x, y, w

        steps_in_all = tf.data.Dataset.range(start_epoch * steps, epochs * steps)
        return steps_in_all.map(load, num_parallel_calls=2).prefetch(4)


class Store:
    """A folder of activations that goes away with the process, below dlzoo's cache."""

    def __init__(self) -> None:
        parent = files.home() / "activations"
        parent.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(dir=parent, prefix="run-")
        self._count = 0

    def new(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an uninitialised float16 array, in a file if it is large."""
        if 2 * math.prod(shape) < LARGE:
            return np.empty(shape, "float16")
        self._count += 1
        path = Path(self._folder.name) / f"{self._count}.npy"
        return np.lib.format.open_memmap(path, "w+", "float16", shape)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Say whether there is room on the disk, with a tenth of it to spare."""
        disk = shutil.disk_usage(self._folder.name)
        return 2 * math.prod(shape) < disk.free - disk.total // 10

    def close(self) -> None:
        self._folder.cleanup()


def compute(
    run: Run,
    output: tuple[int, ...],
    data: Data,
    split: str,
    rule: Preprocess,
    *,
    store: Store,
    views: int = 1,
    augment: str = "none",
    seed: int = 0,
    weights: np.ndarray | None = None,
    batch: int = 32,
    done: Callable[[int], None] = lambda images: None,
) -> Activations:
    """Pass a split through the frozen network, `views` times; view 0 is the plain image.

    Args:
        run: images to activations, see `engine.frozen`. output: shape of one activation.
        weights: of the classes, see `data.pipeline.class_weights`.
        done: called with the number of images computed, after each batch.
    """
    n = data.splits[split]
    values = store.new((views, n, *output))
    labels, each = data.labels(split), np.empty(n, "float32")
    for view in range(views):
        at = 0
        view_of = batches(
            data, split, rule, batch=batch, augment=augment, seed=seed, view=view, weights=weights
        )
        with surfacing(data):
            for images, _, weight in view_of:
                here = slice(at, at := at + len(weight))
                values[view, here] = np.clip(run(images.numpy()), *FLOAT16)
                each[here] = weight
                done(len(weight))
    return Activations(values, labels, each)


def shape_of(bottom: keras.Model) -> tuple[int, ...]:
    """Return the shape of one activation, without the batch."""
    return tuple(bottom.output.shape[1:])
