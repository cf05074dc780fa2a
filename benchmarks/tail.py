"""Compare ways to train the last group of layers (C5 and the head) on this machine.

    python benchmarks/tail.py [MODEL ...]

One process, in turn, medians of images/s of a whole step (forward, backward, Adam):
`live` computes every layer from images and trains the same ones, as Keras users do;
`cached` trains what `graph.cut` leaves, on activations; `view` is `trainable_view` of that.
"""

import statistics
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from dlzoo import create_model
from dlzoo.transfer.freeze import frozen_part, unfreeze
from dlzoo.transfer.losses import make_loss
from dlzoo.transfer.optim import make_optimizer
from dlzoo.transfer.tail import trainable_view

BATCH, SIZE, ROUNDS = 32, 224, 7


def step(model: keras.Model, shape, high: float):
    """Return a function that takes one step of `fit` on the same random batch."""
    x = np.random.default_rng(0).uniform(0, high, (BATCH, *shape)).astype("float32")
    y = np.eye(5, dtype="float32")[np.arange(BATCH) % 5]
    model.compile(make_optimizer("adam", 1e-5), make_loss("multiclass"), jit_compile=False)
    model.make_train_function()
    feed = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
    return lambda: float(model.train_function(feed)["loss"])


def main() -> None:
    for name in sys.argv[1:] or ["efficientnet_lite0", "mobilenet_v2", "resnet50"]:
        model = create_model(name, num_classes=5, pool="avg", dropout=0.3, input_shape=SIZE)
        unfreeze(model, "C5")
        top = frozen_part(model).top
        shape = top.input.shape[1:]
        runs = {
            "live": step(model, (SIZE, SIZE, 3), 255.0),
            "cached": step(top, shape, 1.0),
            "view": step(trainable_view(top), shape, 1.0),
        }
        took: dict[str, list[float]] = {key: [] for key in runs}
        for _ in range(ROUNDS + 1):  # the first round compiles
            for key, run in runs.items():
                began = time.perf_counter()
                run()
                took[key].append(time.perf_counter() - began)
        median = {key: statistics.median(times[1:]) for key, times in took.items()}
        print(
            f"{name} {SIZE} px, batch {BATCH}: "
            + ", ".join(f"{key} {BATCH / seconds:.1f} img/s" for key, seconds in median.items())
            + f"; view/cached {median['cached'] / median['view']:.2f}"
            + f", view/live {median['live'] / median['view']:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
