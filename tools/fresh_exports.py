"""Ask exported files in clean environments: only ai-edge-litert, onnxruntime or tensorflow.

    python tools/fresh_exports.py RUN/export PHOTO... [--keep FOLDER]

For each format in the folder a virtual environment is made with that one package (and what it
needs), and `use_FORMAT.py` is run in it on pixels prepared here, since Pillow is not there. Its
answers must be those of the Keras model of the run to 1e-3, or for int8 its likeliest class.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
from dlzoo import export, load_run

PACKAGES = {
    "tflite": "ai-edge-litert",
    "onnx": "onnxruntime",
    "savedmodel": "tensorflow",
    "keras": "tensorflow",
}
ASK = """
import importlib.util, json, sys
import numpy as np
assert importlib.util.find_spec("dlzoo") is None
sys.path.insert(0, sys.argv[1])
use = __import__(sys.argv[2])
pixels, model = np.load(sys.argv[4]), use.Model(sys.argv[3])
answers = [np.asarray(model(image[None]))[0].tolist() for image in pixels]
print(json.dumps({"classes": model.about["classes"], "answers": answers}))
"""


def python_of(folder: Path, package: str) -> Path:
    """Return the interpreter of an environment with one package, made if it is not there."""
    place = folder / package
    if not (place / "bin" / "python").exists():
        venv.create(place, with_pip=True)
        command = [place / "bin" / "python", "-m", "pip", "install", "--quiet", package]
        subprocess.run(command, check=True)
    return place / "bin" / "python"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--keep", type=Path, help="where the environments are made, and stay")
    options = parser.parse_args()
    run = load_run(options.folder.parent)
    photos = export.Photos.of(run.classifier, [photo.read_bytes() for photo in options.photos])
    known = json.loads((options.folder / "parity.json").read_text("utf-8"))
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        np.save(pixels := Path(scratch) / "pixels.npy", photos.prepared)
        for name, figures in known.items():
            if not figures["passed"] or figures["batch"]:
                continue
            format = figures["format"]
            python = python_of(options.keep or Path(scratch), PACKAGES[format])
            ask = [
                python,
                "-I",  # nothing of PYTHONPATH either
                "-c",
                ASK,
                options.folder,
                f"use_{format}",
                options.folder / name,
                pixels,
            ]
            done = subprocess.run(ask, capture_output=True, text=True, cwd=scratch)
            if done.returncode:
                failed = True
                print(f"{name:24} FAILED {done.stderr[-2000:]}")
                continue
            told = json.loads(done.stdout)
            answers = np.array(told["answers"])
            off = float(np.abs(answers - photos.expected).max())
            same = float((answers.argmax(1) == photos.expected.argmax(1)).mean())
            right = told["classes"] == list(run.classifier.classes)
            right &= off <= 1e-3 or (figures["quantize"] is not None and same > 0.9)
            failed |= not right
            print(
                f"{name:24} with {PACKAGES[format]:16} {'ok' if right else 'WRONG'}: same answer "
                f"{same:.1%}, largest difference {off:.1e}, {len(answers)} photos",
                flush=True,
            )
    sys.exit(failed)


if __name__ == "__main__":
    main()
