"""What oneDNN's kernels are worth on this processor: Keras' graph with and without them.

    python benchmarks/onednn.py

One process each, since TensorFlow decides when it is first imported.
"""

import os
import statistics
import subprocess
import sys
import time

ROUNDS = 5


def measure() -> None:
    import keras
    import numpy as np
    import tensorflow as tf
    from dlzoo import create_model
    from dlzoo.transfer.freeze import unfreeze
    from dlzoo.transfer.optim import make_optimizer
    from dlzoo.zoo import graph

    def rate(images, step):
        step()
        took = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            step()
            took.append(time.perf_counter() - began)
        return images / statistics.median(took)

    for name, batch in (("efficientnet_lite0", 32), ("resnet50", 8)):
        model = create_model(name, num_classes=5, pool="avg")
        rng = np.random.default_rng(0)
        x = rng.uniform(0, 255, (batch, *model.input_shape[1:])).astype("float32")
        y = np.eye(5, dtype="float32")[np.arange(batch) % 5]
        forward = tf.function(lambda images, model=model: model(images, training=False))
        images = tf.constant(x)
        found = [("forward", rate(batch, lambda f=forward, i=images: f(i)))]
        for what, start in (("all layers", "all"), ("above C4", "C5")):
            unfreeze(model, start)
            trained, given = model, x
            if start == "C5":
                trained = graph.cut(model, "C4")[1]
                given = rng.normal(size=(batch, *trained.input_shape[1:])).astype("float32")
            loss = keras.losses.CategoricalCrossentropy(from_logits=True)
            trained.compile(make_optimizer("adamw", 1e-4), loss, jit_compile=False)
            step = rate(batch, lambda t=trained, g=given, y=y: t.train_on_batch(g, y))
            found.append((f"step, {what}", step))
        opts = os.environ["TF_ENABLE_ONEDNN_OPTS"]
        shown = ", ".join(f"{what} {speed:.1f}" for what, speed in found)
        print(f"oneDNN {opts}: {name}: {shown} img/s", flush=True)


if __name__ == "__main__":
    if "TF_ENABLE_ONEDNN_OPTS" in os.environ:
        measure()
    else:
        for value in "01":
            environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": value}
            subprocess.run([sys.executable, __file__], check=True, env=environment)
