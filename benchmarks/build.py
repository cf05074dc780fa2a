"""Compare how long it takes to build a network: dlzoo and keras.applications, random weights.

    python benchmarks/build.py efficientnet_b0 resnet50 mobilenet_v2

Both run in one process, in turn; the ratio is what counts.
"""

import statistics
import sys
import time
from functools import partial

import keras
from dlzoo import create_model, zoo

ROUNDS = 9


def main() -> None:
    for name in sys.argv[1:] or ["efficientnet_b0"]:
        reference = getattr(keras.applications, zoo.variants()[name].keras)
        builders = {"dlzoo": partial(create_model, name), "keras": partial(reference, weights=None)}
        took = {key: [] for key in builders}
        for _ in range(ROUNDS + 1):  # the first round warms up
            for key, build in builders.items():
                keras.backend.clear_session()
                began = time.perf_counter()
                build()
                took[key].append(time.perf_counter() - began)
        ours, theirs = (statistics.median(took[key][1:]) for key in ("dlzoo", "keras"))
        ratio = statistics.median(
            a / b for a, b in zip(took["dlzoo"][1:], took["keras"][1:], strict=True)
        )
        print(f"{name}: dlzoo {ours:.2f} s, keras.applications {theirs:.2f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
