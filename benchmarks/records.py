"""Print the most memory that a run of 100,000 images takes, beside one of 10,000.

    python benchmarks/records.py FLOWERS [--counts 10000 100000] [--preset fast]

Each image is another crop of 64 pixels from the photographs, a JPEG file of its own, so that
nothing is computed once for many. Each run is a process of its own with an empty cache; its memory
is what the system says was the most, mapped files included.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIDE = 64


def crops(flowers: Path, count: int, out: Path) -> None:
    """Write so many crops, in a folder for each class."""
    from PIL import Image

    rng, photos = np.random.default_rng(0), sorted(flowers.rglob("*.jpg"))
    photos = [photos[i] for i in rng.permutation(len(photos))]
    each = -(-count // len(photos))
    for i, path in enumerate(photos):
        folder = out / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        whole = Image.open(path).convert("RGB")
        for j in range(min(each, count - i * each)):
            side = int(rng.integers(SIDE, min(whole.size)))
            x, y = (int(rng.integers(0, length - side + 1)) for length in whole.size)
            written = io.BytesIO()
            part = whole.resize((SIDE, SIDE), Image.BILINEAR, (x, y, x + side, y + side))
            part.save(written, "JPEG", quality=85)
            (folder / f"{path.stem}_{j}.jpg").write_bytes(written.getvalue())


def run(photos: Path, base: Path, preset: str) -> dict:
    """Return images, seconds, accuracy and the most memory in MB of one run."""
    began = time.perf_counter()
    command = [
        sys.executable, "-m", "dlzoo", "finetune", "--data", photos, "--preset", preset,
        "--size", str(SIDE), "--no-report", "--json", "--out", base / "runs",
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    done = subprocess.run(
        command,
        env=os.environ | {"DLZOO_HOME": str(base / "home")},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert most > before, "a run before this one took more"
    figures = json.loads(done.stdout)
    return {
        "images": sum(1 for _ in photos.rglob("*.jpg")),
        "memory_mb": round(most / 1024),
        "test_accuracy": figures["test"]["accuracy"],
        "seconds": round(time.perf_counter() - began),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("flowers", type=Path, help="a folder with one folder for each class")
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--preset", default="fast")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for count in asked.counts:  # from few to many
            base = Path(name) / str(count)
            crops(asked.flowers, count, base / "photos")
            print(json.dumps(run(base / "photos", base, asked.preset)), flush=True)


if __name__ == "__main__":
    main()
