"""Fine-tune on the benchmark split of the flower photographs; print accuracy, calibration and time.

    python benchmarks/flowers.py --data FOLDER --preset fast balanced --rotation 0
    python benchmarks/flowers.py --data FOLDER --preset fast --rotation 0 1 2 --each 20
    python benchmarks/flowers.py --data fashion-mnist --rotation 0 1 2 --each 20

The split is by content-free hash of "class/file": bucket = sha256 % 100, rotated by 20 * r;
train < 80, validation 80-89, test >= 90. With `--each N` there are but N photos of a class, in
the same shares, and another hundred for the test; other ones for each rotation. Each run is a
process of its own, started as a user would start it. `fashion-mnist` is read where dlzoo finds it
on the machine, and so many as are asked for of its training images are written as photos.
"""

import argparse
import csv
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from dlzoo.data import idx
from PIL import Image

FASHION = "fashion-mnist"
TESTED = 100  # photos of a class, where there are but few to learn from


def number(photo: Path) -> int:
    """Return the number of a photo that its place in the splits comes from."""
    key = f"{photo.parent.name}/{photo.name}"
    return int(hashlib.sha256(key.encode()).hexdigest()[:8], 16)


def write_split(root: Path, file: Path, rotation: int) -> None:
    """Write the split file of one rotation: path, split."""
    with file.open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(("path", "split"))
        for photo in sorted(root.glob("*/*")):
            place = (number(photo) + 20 * rotation) % 100
            name = "train" if place < 80 else "val" if place < 90 else "test"
            rows.writerow((f"{photo.parent.name}/{photo.name}", name))


def write_few(root: Path, file: Path, rotation: int, each: int) -> None:
    """Write a table of `each` photos of a class, and others for the test: path, label, split."""
    train, val = round(0.8 * each), round(0.9 * each)
    with file.open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(("path", "label", "split"))
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            photos = sorted(folder.iterdir(), key=number)
            first = rotation * (val + TESTED) % len(photos)
            for i, photo in enumerate((photos[first:] + photos)[: val + TESTED]):
                name = "train" if i < train else "val" if i < val else "test"
                rows.writerow((photo.absolute(), folder.name, name))


def write_fashion(root: Path, each: int) -> None:
    """Write the first training images of each class of Fashion-MNIST as PNG files."""
    folder = idx.fashion_folder()
    if folder is None:
        raise SystemExit(f"{FASHION} is neither in ~/.keras/datasets nor installed from Debian")
    source = idx.read_idx(folder, FASHION, idx.FASHION)
    count = dict.fromkeys(idx.FASHION, 0)
    for record in source.records:
        (label,) = record.labels
        if record.split == "train" and count[label] < each:
            count[label] += 1
            photo = root / label.replace("/", "-") / f"{count[label]:04d}.png"
            photo.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(record.pixels()).save(photo)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help=f"a folder of classes, or {FASHION}")
    parser.add_argument("--preset", nargs="+", default=["fast", "balanced"])
    parser.add_argument("--rotation", nargs="+", type=int, default=[0])
    parser.add_argument("--each", type=int, help="photos of a class; default: all there are")
    parser.add_argument("--set", nargs="*", default=[], help="more settings of finetune, key=value")
    parser.add_argument("--out", type=Path, help="keep the runs in this folder")
    options = parser.parse_args()
    if options.data != FASHION:
        return compare(options, Path(options.data))
    if not options.each:
        parser.error(f"--each is needed: {FASHION} has a split of its own")
    with tempfile.TemporaryDirectory() as folder:
        write_fashion(Path(folder), len(options.rotation) * (options.each + TESTED))
        compare(options, Path(folder))


def compare(options: argparse.Namespace, root: Path) -> None:
    """Run every preset on every rotation of the photos in `root`, and print."""
    extra = [word for setting in options.set for word in ("--set", setting)]
    for preset in options.preset:
        scores, validated, errors, losses = [], [], [], []
        for rotation in options.rotation:
            with tempfile.TemporaryDirectory() as folder:
                split = Path(folder) / "split.csv"
                command = [sys.executable, "-m", "dlzoo", "finetune", "--preset", preset]
                if options.each:
                    write_few(root, split, rotation, options.each)
                    command += ["--data", str(split)]
                else:
                    write_split(root, split, rotation)
                    command += ["--data", str(root), "--split-file", str(split)]
                command += ["--out", str(options.out or folder), "--no-report"]
                began = time.perf_counter()
                done = subprocess.run(
                    [*command, "--quiet", "--json", *extra], check=True, stdout=subprocess.PIPE
                )
                took = time.perf_counter() - began
            found = json.loads(done.stdout)
            test, val = found["test"], found["val"]
            scores.append(test["accuracy"])
            validated.append(val["accuracy"])
            errors.append(test["calibration_error"])
            losses.append(test["log_loss"])
            print(
                f"{preset} rotation {rotation}: test {test['accuracy']:.4f} "
                f"({test['correct']}/{test['n']}), validation {val['accuracy']:.4f}, "
                f"calibration error {errors[-1]:.4f}, log loss {losses[-1]:.4f}, "
                f"{took:.0f} s in all",
                flush=True,
            )
        if len(scores) > 1:
            low, high = min(scores), max(scores)
            print(
                f"{preset}: mean {np.mean(scores):.4f}, range {low:.4f} to {high:.4f}, "
                f"means of validation {np.mean(validated):.4f}, "
                f"calibration error {np.mean(errors):.4f}, log loss {np.mean(losses):.4f}"
            )


if __name__ == "__main__":
    main()
