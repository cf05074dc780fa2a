"""Train each named model on one device and on two replicas.

Prints how far apart they end, over how far the training moved them.

A program of its own, since a process can be told only once how many devices it has.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from dlzoo import zoo

sys.path.insert(0, str(Path(__file__).parent.parent))
from golden import random_weights as rw


def trained(name: str, strategy: tf.distribute.Strategy) -> tuple[np.ndarray, ...]:
    """Return all weights before and after two steps, and the losses."""
    variant, _ = zoo.resolve(name)
    with strategy.scope():
        model = zoo.create_model(
            name,
            num_classes=3,
            input_shape=max(variant.min_size, 32),
            pool="avg" if variant.params > 1e8 else None,
            dropout=0,
        )
        rw.fill(model)
        for layer in model.layers:  # in each replica, norms would see half the batch
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.001, momentum=0.9), loss)
    before = flat(model)
    x = np.rint(rw.uniform("images", (8, *model.input_shape[1:]), 0, 255))
    run = model.fit(x, np.arange(8) % 3, batch_size=4, epochs=1, shuffle=False, verbose=0)
    return before, flat(model), np.array(run.history["loss"])


def flat(model: keras.Model) -> np.ndarray:
    return np.concatenate([values.ravel() for values in model.get_weights()])


def main(names: list[str]) -> None:
    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    mirrored = tf.distribute.MirroredStrategy(devices)
    for name in names:
        (start, one, loss), (_, two, losses) = (
            trained(name, strategy) for strategy in (tf.distribute.get_strategy(), mirrored)
        )
        far = np.abs(one - two).max() / np.abs(one - start).max()
        print(name, mirrored.num_replicas_in_sync, far, np.abs(loss - losses).max())


if __name__ == "__main__":
    main(sys.argv[1:])
