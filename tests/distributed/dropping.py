"""Print how many of four images each of 999 numbers was dropped of, in two replicas of one process.

A program of its own, since a process can be told only once how many devices it has.
"""

import json

import keras
import numpy as np
import tensorflow as tf
from dlzoo.transfer.replicas import replicated, spread

COUNT = 999


def main() -> None:
    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    ones = np.ones(2, "float32")
    part = (np.ones((2, COUNT), "float32"), ones[:, None], ones, ones, np.float32(4))
    with strategy.scope():
        layers = [
            keras.Input((COUNT,)),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros"),
        ]
        model = keras.Sequential(layers)
        trained = replicated(model)
        # the gradient of a number's weight is then its mean over the images
        trained.compile(keras.optimizers.SGD(1.0), loss=lambda true, made: -made[:, 0])
        data = spread(strategy, lambda part_of: tf.data.Dataset.from_tensors(part))
        trained.fit(data, steps_per_epoch=1, verbose=0)
    kept = np.rint(model.layers[-1].kernel.numpy().ravel() * 4 / 2).astype(int)
    (seed,) = (v for v in model.non_trainable_variables if v.path.endswith("generator_state"))
    copies = [copy.numpy().tolist() for copy in strategy.experimental_local_results(seed.value)]
    print(json.dumps({"kept": np.bincount(kept, minlength=5).tolist(), "seeds": copies}))


if __name__ == "__main__":
    main()
