"""How many images should an engine of a CPU compute at a time?

python benchmarks/chunks.py [efficientnet_lite0]
"""

import sys
import time

import numpy as np
from dlzoo import create_model
from dlzoo.transfer import engine
from dlzoo.zoo import graph

IMAGES, ROUNDS = 128, 3


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "efficientnet_lite0"
    bottom, _ = graph.cut(create_model(name, num_classes=5, pool="avg"), "features")
    shape = (IMAGES, *bottom.inputs[0].shape[1:])
    images = np.random.default_rng(0).uniform(0, 255, shape).astype("float32")
    for chunk in (1, 2, 4, 8, 16, 32):
        engine.CHUNK = chunk
        run = engine.frozen(bottom)
        run(images)
        took = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            run(images)
            took.append(time.perf_counter() - began)
        print(f"{name}, {chunk} at a time: {IMAGES / min(took):.0f} img/s", flush=True)


if __name__ == "__main__":
    main()
