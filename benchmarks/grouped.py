"""Compare grouped convolutions: dlzoo's way (TensorFlow's own kernel) and Keras' (XLA), on a CPU.

    python benchmarks/grouped.py

A ResNeXt-50 with random weights, forward and one training step; the layers are the same `Conv2D`
objects. Both run in one process, in turn; the ratio is what counts.
"""

import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from dlzoo import create_model

BATCH, SIZE, ROUNDS = 8, 128, 5


def timed(model):
    images = np.random.default_rng(0).uniform(0, 255, (BATCH, SIZE, SIZE, 3)).astype("float32")
    labels = np.arange(BATCH) % 5
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def forward(x):
        return model(x, training=False)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        return tape.gradient(value, [v.value for v in model.trainable_variables])

    return {"forward": lambda: forward(images), "training step": lambda: step(images, labels)}


def main() -> None:
    models = {"dlzoo": create_model("resnext50_32x4d", num_classes=5, input_shape=SIZE)}
    models["keras"] = keras.models.clone_model(models["dlzoo"])  # Keras' own way of computing them
    runs = {key: timed(model) for key, model in models.items()}
    for what in ("forward", "training step"):
        took = {key: [] for key in runs}
        for _ in range(ROUNDS + 1):  # the first round compiles
            for key, run in runs.items():
                began = time.perf_counter()
                run[what]()
                took[key].append(time.perf_counter() - began)
        ours, theirs = (BATCH / statistics.median(took[key][1:]) for key in ("dlzoo", "keras"))
        ratio = statistics.median(
            k / d for k, d in zip(took["keras"][1:], took["dlzoo"][1:], strict=True)
        )
        print(
            f"resnext50_32x4d {SIZE} px, batch {BATCH}, {what}: dlzoo {ours:.1f} img/s, Keras "
            f"{theirs:.2f} img/s, ratio {ratio:.1f}"
        )


if __name__ == "__main__":
    main()
