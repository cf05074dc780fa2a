"""Compare `dlzoo finetune` with the recipe of Keras' transfer-learning guide, written by hand.

    python benchmarks/recipe.py --data FLOWERS [--epochs 5 3] [--preset fast balanced] [--rounds 3]

The guide (keras.io/guides/transfer_learning): a frozen backbone called with `training=False`,
RandomFlip and RandomRotation(0.1), dropout 0.2, Adam 1e-3, batch 32, 5 epochs; then all layers,
Adam 1e-5, 3 epochs; decoded images are cached in memory. It is run as the guide has it, and once
more with tf.data's tuner switched off, for which its iterators may wait long after their end
(benchmarks/tuner.py), which is not what the two recipes differ in. Both sides take the same weights
(EfficientNet-Lite0 at 224 px) and the same split (rotation 0 of benchmarks/flowers.py). Each side
is a process of its own, one after the other, with TensorFlow's own defaults for the guide's and an
empty cache for dlzoo's, which runs before and after the guide's and is told by the median. Fewer
epochs are told as such, and what five and three would take is counted from the last one.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flowers import write_split

SIZE, BATCH, PLANNED = 224, 32, (5, 3)
AGAIN = "fast, again with another seed and with the report"


def by_hand(root: Path, split: Path, epochs: list[int], tuned: bool) -> dict:
    """Train as the guide does; return seconds of each epoch and accuracies after each phase."""
    import csv

    import keras
    import tensorflow as tf  # before dlzoo, which would choose other kernels for it
    from dlzoo import create_model

    names = sorted(p.name for p in root.iterdir() if p.is_dir())
    files = {"train": [], "val": [], "test": []}
    with split.open(encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            files[row["split"]].append(row["path"])

    def load(path, label):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.image.resize(image, (SIZE, SIZE)), label

    def dataset(name):
        paths = [str(root / path) for path in files[name]]
        labels = [names.index(path.split("/")[0]) for path in files[name]]
        found = tf.data.Dataset.from_tensor_slices((paths, labels))
        options = tf.data.Options()
        options.autotune.enabled = tuned
        found = found.with_options(options)
        return found.map(load, num_parallel_calls=tf.data.AUTOTUNE).cache()

    keras.utils.set_random_seed(0)
    augment = keras.Sequential(
        [keras.layers.RandomFlip("horizontal"), keras.layers.RandomRotation(0.1)]
    )
    train = dataset("train").shuffle(len(files["train"])).batch(BATCH)
    train = train.map(lambda x, y: (augment(x), y), num_parallel_calls=tf.data.AUTOTUNE)
    train = train.prefetch(tf.data.AUTOTUNE)
    val, test = (dataset(n).batch(BATCH).prefetch(tf.data.AUTOTUNE) for n in ("val", "test"))

    backbone = create_model("efficientnet_lite0", weights=True, num_classes=0, pool="avg")
    backbone.trainable = False
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Dropout(0.2)(backbone(inputs, training=False))
    model = keras.Model(inputs, keras.layers.Dense(len(names))(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    clock: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.begun = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            clock.append(time.perf_counter() - self.begun)

    found = []
    for phase, (rate, count) in enumerate(zip((1e-3, 1e-5), epochs, strict=True)):
        if not count:
            continue
        backbone.trainable = phase == 1
        model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
        history = model.fit(
            train, validation_data=val, epochs=count, verbose=0, callbacks=[Clock()]
        )
        accuracy = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
        found.append({"val": history.history["val_accuracy"][-1], "test": accuracy})
    return {"epochs": clock, "phases": found}


def timed(command: list[str], home: Path) -> tuple[float, dict]:
    """Run a command; return its seconds and the JSON that it prints."""
    began = time.perf_counter()
    environment = {**os.environ, "DLZOO_HOME": str(home)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return time.perf_counter() - began, json.loads(done.stdout)


def count_by_hand(
    options: argparse.Namespace, split: Path, home: Path, tuned: bool
) -> dict[str, float]:
    """Train by hand; print what came of it; return the seconds of the head and of the whole."""
    command = [sys.executable, __file__, "--data", str(options.data), "--by-hand", str(split)]
    name = "by hand" if tuned else "by hand without the tuner"
    command += [] if tuned else ["--untuned"]
    took, hand = timed([*command, "--epochs", *map(str, options.epochs)], home)
    seconds, counts = hand["epochs"], options.epochs
    rest = took - sum(seconds)
    head, deep = seconds[: counts[0]], seconds[counts[0] :]
    each = " ".join(f"{s:.0f}" for s in seconds)
    print(f"{name}, seconds an epoch: {each}; rest {rest:.0f}")
    for layers, phase in zip(("head", "all layers"), hand["phases"], strict=False):
        print(f"{name}, after {layers}: validation {phase['val']:.4f}, test {phase['test']:.4f}")
    # the first epoch also decodes and compiles; those left out would take as long as the last
    of_head = rest + sum(head) + (PLANNED[0] - len(head)) * head[-1]
    found = {f"head {name}": of_head}
    if deep:
        found[f"whole {name}"] = of_head + sum(deep) + (PLANNED[1] - len(deep)) * deep[-1]
    counted = "" if tuple(counts) == PLANNED else f" (counted from {counts[0]} and {counts[1]})"
    told = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in found.items())
    print(f"{told}{counted}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, nargs=2, default=list(PLANNED), help="perhaps 2 0")
    parser.add_argument("--preset", nargs="*", default=["fast", "balanced"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--by-hand", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--untuned", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.by_hand:
        found = by_hand(options.data, options.by_hand, options.epochs, not options.untuned)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        split, home = Path(folder) / "split.csv", Path(folder) / "home"
        write_split(options.data, split, 0)
        finetune = [sys.executable, "-m", "dlzoo", "finetune", "--data", str(options.data)]
        finetune += ["--split-file", str(split), "--out", folder, "--quiet", "--json", "--preset"]
        took: dict[str, list[float]] = {}
        hand: dict[str, float] = {}
        for turn in range(options.rounds):
            for preset in options.preset:
                shutil.rmtree(home, ignore_errors=True)
                seconds, found = timed([*finetune, preset, "--no-report"], home)
                took.setdefault(preset, []).append(seconds)
                figures = ", ".join(f"{s} {found[s]['accuracy']:.4f}" for s in ("val", "test"))
                print(f"dlzoo {preset}: {seconds:.0f} s, {figures}", flush=True)
                if preset == "fast":  # a balanced one trains anew whatever is cached
                    seconds, _ = timed([*finetune, preset, "--seed", "1"], home)
                    took.setdefault(AGAIN, []).append(seconds)
                    print(f"dlzoo {AGAIN}: {seconds:.0f} s", flush=True)
            if turn == 0:  # in the middle: machines have slow hours
                for tuned in (True, False):
                    hand |= count_by_hand(options, split, Path(folder) / "none", tuned)
        for name, each in took.items():
            middle = statistics.median(each)
            ratios = ", ".join(f"{part} / this {t / middle:.1f}" for part, t in hand.items())
            print(f"dlzoo {name}: {middle:.0f} s, the median of {len(each)}; {ratios}")


if __name__ == "__main__":
    main()
