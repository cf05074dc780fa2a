"""Compare how fast a frozen network runs: `model.predict`, Keras' compiled function, the engine.

    python benchmarks/engine.py --data FLOWERS efficientnet_lite0 mobilenet_v2 resnet50

Side by side in one process on the same photographs, in turn, medians. First images that lie in
memory, then, with --data, decoding included: `predict` on the same pipeline, and a pass
into an empty cache. `floor` is what the counted MACs would take at the speed of a float32 matrix
product measured here.
"""

import argparse
import os
import statistics
import tempfile
import time

import numpy as np
from dlzoo import create_model, load_data
from dlzoo.data.pipeline import batches
from dlzoo.transfer import engine
from dlzoo.transfer.cache import Frozen
from dlzoo.zoo import graph

BATCH, ROUNDS = 32, 3


def matrix_product() -> float:
    """Return GMACs a second of a large float32 matrix product in TensorFlow."""
    import tensorflow as tf

    n = 2048
    a = tf.random.normal((n, n))
    tf.matmul(a, a).numpy()
    took = []
    for _ in range(5):
        began = time.perf_counter()
        tf.matmul(a, a).numpy()
        took.append(time.perf_counter() - began)
    return n**3 / min(took) / 1e9


def rates(images: int, runs: dict) -> dict[str, float]:
    """Return the median images/s of some functions that are called in turn."""
    took = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(ROUNDS):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            took[name].append(time.perf_counter() - began)
    return {name: images / statistics.median(times) for name, times in took.items()}


def show(what: str, speed: dict[str, float]) -> None:
    print(
        f"  {what}: "
        + ", ".join(f"{name} {rate:.1f}" for name, rate in speed.items())
        + f" img/s; engine / predict {speed['engine'] / speed['predict']:.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["efficientnet_lite0"])
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, default=128)
    options = parser.parse_args()
    peak = matrix_product()
    print(f"float32 matrix product: {peak:.0f} GMACs/s")
    for name in options.names:
        model = create_model(name, num_classes=5, pool="avg")
        bottom, _ = graph.cut(model, "features")
        shape = (options.images, *bottom.inputs[0].shape[1:])
        images = np.random.default_rng(0).uniform(0, 255, shape).astype("float32")
        plain, fast = engine.frozen(bottom, work=0), engine.frozen(bottom)
        speed = rates(
            len(images),
            {
                "predict": lambda: bottom.predict(images, batch_size=BATCH, verbose=0),  # noqa: B023
                "compiled": lambda: plain(images),  # noqa: B023
                "engine": lambda: fast(images),  # noqa: B023
            },
        )
        floor = peak / graph.gmacs(bottom)
        print(f"{name} {shape[1]} px: {fast.name}, floor {floor:.0f} img/s")
        show("images in memory", speed)
        if not options.data:
            continue
        data = load_data(options.data)
        rule = graph.built(model).preprocess
        rows = np.arange(min(options.images, data.splits["test"]))

        def by_predict(bottom=bottom, data=data, rule=rule, rows=rows):
            data.memory = None  # nothing is decoded beforehand
            found = batches(data, "test", rule, batch=BATCH, view=0, rows=rows)
            bottom.predict(found.map(lambda x, y, w: x), verbose=0)

        frozen = Frozen(model, data, rule)
        data.splits["test"], kept = len(rows), data._records["test"]
        data._records["test"] = kept[: len(rows)]

        def by_pass(frozen=frozen, data=data):
            data.memory = None
            with tempfile.TemporaryDirectory() as home:
                os.environ["DLZOO_HOME"] = home
                frozen._shelves.clear()
                frozen.activations(["features"], "test")

        with_decoding = rates(len(rows), {"predict": by_predict, "engine": by_pass})
        show("decoding included", with_decoding)
        print(f"  of the bare engine: {with_decoding['engine'] / speed['engine']:.2f}")


if __name__ == "__main__":
    main()
