"""Export every family to every format and print what comes out.

    python benchmarks/exports.py --data FOLDER                 # the table, about half an hour
    python benchmarks/exports.py --data FOLDER --run RUN       # also int8 of a trained run

The smallest variant of each family has random weights and 5 classes, each with logits of mean 0
and deviation 1 over the photographs; each file is asked about 64 photographs of FOLDER, one by one.
Agreement is of the likeliest class with Keras, the difference the largest one of any probability.
RUN is what `dlzoo finetune --data FOLDER` printed.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import tempfile
from importlib import util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import keras  # noqa: E402
import numpy as np  # noqa: E402
from dlzoo import export, load_run, zoo  # noqa: E402
from dlzoo.errors import DlzooError  # noqa: E402
from dlzoo.transfer.classifier import Classifier  # noqa: E402
from dlzoo.zoo import graph  # noqa: E402
from golden import random_weights as rw  # noqa: E402
from rows import SMALLEST  # noqa: E402

ROW = "{:28} {:18} {:>9} {:>10} {:>9} {:>9}"


def spread(folder: Path, n: int = 64) -> list[bytes]:
    """Return the contents of n photographs, spread over the classes of a folder."""
    found = sorted(folder.glob("*/*.jpg"))
    return [found[i].read_bytes() for i in np.linspace(0, len(found) - 1, n).astype(int)]


def classifier(name: str, size: int) -> Classifier:
    """Return a variant with random weights at the size, or at its least."""
    variant = zoo.variants()[name]
    model = zoo.create_model(
        name,
        num_classes=5,
        input_shape=max(variant.min_size, size),
        in_chans=3,
        pool="avg" if variant.params > 1e8 else None,
    )
    rw.fill(model)
    built = graph.built(model)
    return Classifier(
        model, tuple("abcde"), "multiclass", built.preprocess, {"create": built.create}
    )


def show(name: str, format: str, figures: dict) -> None:
    cells = (
        f"{figures['top1_agreement']:.1%}",
        f"{figures['max_difference']:.1e}",
        f"{figures['bytes'] / 1e6:.2f}",
        f"{figures['latency_ms']:.1f}",
    )
    print(ROW.format(name, format, *cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--only", nargs="+", help="variants; default the smallest of each family")
    parser.add_argument("--run", type=Path, help="a trained run, exported to all, fp16 and int8")
    options = parser.parse_args()
    formats = [f for f, kind in export.FORMATS.items() if all(map(util.find_spec, kind.needs))]
    print(ROW.format("model", "format", "top-1", "difference", "MB", "ms/image"))
    worst = {"top1_agreement": 1.0, "max_difference": 0.0}
    for name in options.only or ([] if options.run else sorted(SMALLEST)):
        made = classifier(name, options.size)
        files = spread(options.data)
        rw.tell_apart(made.model, export.Photos.of(made, files).prepared)
        photos = export.Photos.of(made, files)
        for format in formats:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / export.file_name(format, export.Options())
                try:
                    figures = export.export(made, path, format, images=photos)
                except DlzooError as error:
                    print(ROW.format(name, format, "-", error.id, "-", "-"), error.message)
                    worst["top1_agreement"] = 0.0
                    continue
            show(name, format, figures)
            worst["top1_agreement"] = min(worst["top1_agreement"], figures["top1_agreement"])
            worst["max_difference"] = max(worst["max_difference"], figures["max_difference"])
        keras.backend.clear_session()
        gc.collect()
    if not options.run:
        print(f"least agreement {worst['top1_agreement']:.1%}", end=", ")
        print(f"largest difference {worst['max_difference']:.1e}", end=", ")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"at most {peak / 1024:.0f} MB of memory")
    else:
        trained(options.run, formats)


def trained(folder: Path, formats: list[str]) -> None:
    """Export a run to everything, copies of it in a temporary place, and print int8's accuracy."""
    run = load_run(folder)
    with tempfile.TemporaryDirectory() as place:
        run.directory.export = Path(place)
        for kind in (None, "fp16", "int8"):
            for format, figures in run.export(
                *(formats if kind is None else ["tflite"]), quantize=kind, max_drop=100
            ).items():
                show(run.directory.read()["model"], f"{format} {kind or ''}", figures)
        known = json.loads((Path(place) / "parity.json").read_text("utf-8"))
    accuracy = known["model-int8.tflite"]["accuracy"]
    ratio = known["model.tflite"]["bytes"] / known["model-int8.tflite"]["bytes"]
    print(
        f"int8: {accuracy['float']:.2%} -> {accuracy['quantized']:.2%} on {accuracy['n']} "
        f"validation photos, a drop of {accuracy['drop']:.2f} points; {ratio:.2f} times smaller"
    )


if __name__ == "__main__":
    main()
