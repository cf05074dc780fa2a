"""What a model does on the backend of KERAS_BACKEND, as JSON: a process has one backend for good.

python backends.py answers NAME...   # forward, and a training step
python backends.py parallel          # with JAX: as on one device on two
"""

import json
import os
import sys
from pathlib import Path

if sys.argv[1] == "parallel":  # before JAX looks for devices
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    os.environ["NPROC"] = "8"  # threads of XLA: those that wait for each other must all have one

import keras
import numpy as np
from dlzoo import zoo

sys.path.insert(0, str(Path(__file__).parent.parent))
from golden import random_weights as rw

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def built(name: str) -> keras.Model:
    """Return a small one of 7 classes with the weights that every process gives it."""
    variant, _ = zoo.resolve(name)
    pool = "avg" if variant.params > 1e8 else None
    size = max(variant.min_size, 32)
    model = zoo.create_model(
        name, num_classes=7, input_shape=size, pool=pool, dropout=0, drop_path=0
    )
    rw.fill(model)
    return model


def answers(name: str) -> dict:
    model = built(name)
    x = np.rint(rw.uniform("images", (4, *model.input_shape[1:]), 0, 255))
    logits = keras.ops.convert_to_numpy(model(x, training=False))
    for layer in model.layers:  # its statistics over few numbers are ill-conditioned
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    # a bounded step: with random weights, gradients of deep models have any order of magnitude
    step = keras.optimizers.SGD(1e-3, momentum=0.9, global_clipnorm=1.0)
    model.compile(step, LOSS, jit_compile=keras.backend.backend() == "jax")
    loss = float(model.train_on_batch(x, np.arange(4) % 3))
    moved = keras.ops.convert_to_numpy(model(x, training=False))
    gradients = {  # what momentum holds after one step, 64 numbers of each
        weight.path: np.ravel(kept := keras.ops.convert_to_numpy(momentum))[
            :: max(1, kept.size // 64)
        ].tolist()
        for weight, momentum in zip(model.trainable_variables, step.momentums, strict=True)
    }
    learnt = float(np.abs(moved - logits).max())
    return {"logits": logits.tolist(), "loss": loss, "gradients": gradients, "learnt": learnt}


def parallel() -> dict:
    """Train on one device, then on two by keras.distribution.DataParallel."""
    found = {}
    for count in (1, 2):
        devices = keras.distribution.list_devices()[:count]
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
        model = built("lenet5")
        model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), LOSS)
        x = np.rint(rw.uniform("images", (8, *model.input_shape[1:]), 0, 255))
        fit = model.fit(x, np.arange(8) % 3, batch_size=4, epochs=2, shuffle=False, verbose=0)
        found[len(devices)] = fit.history["loss"]
    return found


if __name__ == "__main__":
    made = parallel() if sys.argv[1] == "parallel" else {n: answers(n) for n in sys.argv[2:]}
    loaded = "tensorflow" in sys.modules
    print(json.dumps({"backend": keras.backend.backend(), "tensorflow": loaded, "made": made}))
