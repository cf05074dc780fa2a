"""Compare how fast a frozen network runs: Keras' compiled function and the LiteRT engine.

    python benchmarks/engine.py efficientnet_lite0 mobilenet_v2 resnet50

Both run side by side in one process on the same images, in turn; the ratio is what counts.
"""

import statistics
import sys
import time

import numpy as np
from dlzoo import create_model
from dlzoo.transfer import engine
from dlzoo.zoo import graph

BATCH, ROUNDS = 32, 7


def main() -> None:
    for name in sys.argv[1:] or ["efficientnet_lite0"]:
        bottom, _ = graph.cut(create_model(name, num_classes=5, pool="avg"), "features")
        shape = (BATCH, *bottom.inputs[0].shape[1:])
        images = np.random.default_rng(0).uniform(0, 255, shape).astype("float32")
        runs = {"keras": engine.frozen(bottom, work=0), "litert": engine.frozen(bottom)}
        took = {key: [] for key in runs}
        answers = {key: run(images) for key, run in runs.items()}  # warm up
        for _ in range(ROUNDS):
            for key, run in runs.items():
                began = time.perf_counter()
                run(images)
                took[key].append(time.perf_counter() - began)
        speed = {key: BATCH / statistics.median(times) for key, times in took.items()}
        ratio = statistics.median(k / f for k, f in zip(took["keras"], took["litert"], strict=True))
        off = np.abs(answers["keras"] - answers["litert"]).max() / np.abs(answers["keras"]).max()
        print(
            f"{name} {shape[1]} px, batch {BATCH}: keras {speed['keras']:.0f} img/s, litert "
            f"{speed['litert']:.0f} img/s, ratio {ratio:.2f}, relative difference {off:.1e}"
        )


if __name__ == "__main__":
    main()
