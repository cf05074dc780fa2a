"""Compare runs of one process, two replicas and two workers on real photographs.

    python benchmarks/workers.py FLOWERS [--photos 256] [--dropout SEEDS]

The same command four times: alone on two processors; alone on one, the control, which differs by
rounding alone; with `--strategy mirrored` on two logical devices of one process; and by `dlzoo
launch --workers 2`. Each has activations of its own. Printed: the largest differences of losses by
stage, of the final weights and of the test probabilities, test answers that differ, the epochs of
each stage, and seconds of wall time.

Dropout is off unless asked for: replicas draw other numbers than one, so runs differ as those of
different seeds do. With `--dropout 5` each way therefore runs with five seeds on the same split,
for as many epochs, and what is printed is the mean and the standard deviation of the losses of
each stage's last epoch.

Gradient descent, since Adam takes a whole step also where a gradient is nothing but rounding. What
remains grows where an activation lies at the kink of a ReLU6: its gradient is there or not.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

SETTINGS = [
    "--batch", "32", "--size", "96", "--patience", "2",
    "--augment", "light", "--seed", "0", "--no-report", "--name", "run",
]  # fmt: skip
SPLIT = """
import sys, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from dlzoo.cli import main
main(sys.argv[1:])
"""
WAYS = {  # name: strategy, processors, and how the command is started
    "one process": ("none", 2, ["-m", "dlzoo"]),
    "one processor": ("none", 1, ["-m", "dlzoo"]),
    "two replicas": ("mirrored", 2, ["-c", SPLIT]),
    "two workers": ("multiworker", 2, ["-m", "dlzoo", "launch", "--workers", "2", "--"]),
}


def some(source: Path, count: int, out: Path) -> Path:
    """Copy that many photos, as many of each class."""
    classes = sorted(p for p in source.iterdir() if p.is_dir())
    for number, folder in enumerate(classes):
        own = count // len(classes) + (number < count % len(classes))
        (out / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:own]:
            shutil.copy(path, out / folder.name)
    return out


def rows(run: Path, name: str) -> list[dict[str, str]]:
    with (run / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def weights(run: Path) -> np.ndarray:
    """Return all numbers of the trained model, one after the other."""
    found = []
    with h5py.File(run / "model" / "model.weights.h5") as file:
        file.visititems(
            lambda _, item: (
                found.append(np.ravel(item[()])) if isinstance(item, h5py.Dataset) else None
            )
        )
    return np.concatenate([each.astype("float64") for each in found])


def compare(one: Path, other: Path) -> str:
    """Return how far two runs are apart, in words."""
    mine, theirs = rows(one, "metrics.csv"), rows(other, "metrics.csv")
    stages = [[r["stage"] for r in each] for each in (mine, theirs)]
    told = ", ".join(f"{s} {stages[1].count(s)}" for s in dict.fromkeys(stages[1]))
    if stages[0] != stages[1]:
        return f"OTHER EPOCHS: {told}"
    off: dict[str, float] = {}
    for a, b in zip(mine, theirs, strict=True):
        apart = max(abs(float(a[key]) - float(b[key])) for key in ("loss", "val_loss"))
        off[a["stage"]] = max(apart, off.get(a["stage"], 0.0))
    answers = [rows(run, "predictions_test.csv") for run in (one, other)]
    columns = [c for c in answers[0][0] if c.startswith("p:")]
    pairs = list(zip(*answers, strict=True))
    apart = max(abs(float(a[c]) - float(b[c])) for a, b in pairs for c in columns)
    differ = sum(a["predicted"] != b["predicted"] for a, b in pairs)
    far = np.abs(weights(one) - weights(other)).max()
    losses = ", ".join(f"{stage} {by:.1e}" for stage, by in off.items())
    return (
        f"losses {losses}, weights {far:.1e}, test probabilities {apart:.1e}, "
        f"{differ} of {len(pairs)} answers differ; epochs: {told}"
    )


def start(out: Path, strategy: str, processors: int, way: list[str], settings: list[str]) -> Path:
    """Run once and return the run's folder."""
    command = [sys.executable, *way, "finetune", *settings, "--out", out, "--strategy", strategy]
    env = os.environ | {"DLZOO_HOME": str(out.parent / f"home-{out.name}")}
    here = sorted(os.sched_getaffinity(0))[:processors]
    subprocess.run(
        command, env=env, check=True, stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, here),
    )  # fmt: skip
    return out / "run"


def with_dropout(base: Path, settings: list[str], seeds: int) -> None:
    """Print how the last losses of each way spread over seeds."""
    photos = base / "photos"
    paths = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.*"))
    splits = ("train",) * 8 + ("val", "test")
    lines = [f"{path},{splits[i % 10]}" for i, path in enumerate(paths)]
    (base / "split.csv").write_text("\n".join(["path,split", *lines]) + "\n")
    settings = [*settings, "--patience", "99", "--split-file", str(base / "split.csv")]
    for name, (strategy, processors, way) in WAYS.items():
        if name == "one processor":
            continue
        found: dict[str, list[float]] = {}
        for seed in range(seeds):
            out = base / f"{name}-{seed}".replace(" ", "-")
            run = start(out, strategy, processors, way, [*settings, "--seed", str(seed)])
            last = {row["stage"]: row for row in rows(run, "metrics.csv")}
            for stage, row in last.items():
                for key in ("loss", "val_loss"):
                    found.setdefault(f"{stage} {key}", []).append(float(row[key]))
        told = ", ".join(
            f"{k} {np.mean(v):.3f} +- {np.std(v, ddof=1):.3f}" for k, v in found.items()
        )
        print(f"{name}, {seeds} seeds: {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("flowers", type=Path, help="a folder with one folder for each class")
    parser.add_argument("--photos", type=int, default=256)
    parser.add_argument("--optimizer", default="momentum")
    parser.add_argument("--lr", default="1e-3")
    parser.add_argument("--stages", default="head:12,C5:6,all:1")
    parser.add_argument("--keep", action="store_true", help="the runs, and say where")
    parser.add_argument("--dropout", type=int, default=0, metavar="SEEDS", help="0.3, not none")
    asked = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="dlzoo-workers-"))
    photos = some(asked.flowers, asked.photos, base / "photos")
    settings = [*SETTINGS, "--optimizer", asked.optimizer, "--lr", asked.lr, "--data", str(photos)]
    settings += ["--stages", asked.stages, "--dropout", "0.3" if asked.dropout else "0"]
    if asked.dropout:
        with_dropout(base, settings, asked.dropout)
        shutil.rmtree(base)
        return
    first = None
    for name, way in WAYS.items():
        out = base / name.replace(" ", "-")
        began = time.perf_counter()
        start(out, *way, settings)
        took = time.perf_counter() - began
        accuracy = json.loads((out / "run" / "metrics.json").read_text())["test"]["accuracy"]
        said = compare(first, out / "run") if first else "is compared with"
        print(f"{name}: {took:.0f} s, test accuracy {accuracy:.4f}; {said}", flush=True)
        first = first or out / "run"
    if asked.keep:
        print(base)
    else:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
