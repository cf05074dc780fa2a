"""Write tests/golden/keras_applications.json: the files that the installed Keras would download.

Each constructor is asked for its ImageNet weights with the download replaced by a note of the
address and hash that Keras would use. The tests hold the rows of the zoo against them::

    python tools/keras_rows.py
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from unittest import mock

import keras

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
# Those with several files: by width and by image size, or by variant.
WIDTHS = {"MobileNet": (0.25, 0.5, 0.75, 1.0), "MobileNetV2": (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)}
SIZES = {"MobileNet": (128, 160, 192, 224), "MobileNetV2": (96, 128, 160, 192, 224)}
V3 = [{}, {"alpha": 0.75}, {"minimalistic": True}]


class Noted(Exception):
    pass


def wanted(constructor, **arguments) -> list[str | None]:
    """Return address and hash of the file that a constructor would download."""
    noted = {}

    def note(*args, **kwargs):
        noted.update(inspect.signature(real).bind(*args, **kwargs).arguments)
        raise Noted

    downloads = sys.modules["keras.src.utils.file_utils"]  # where all of them look it up
    real = downloads.get_file
    with mock.patch.object(downloads, "get_file", note):
        try:
            constructor(weights="imagenet", **arguments)
        except Noted:
            return [noted["origin"], noted.get("file_hash") or noted.get("md5_hash")]
    raise RuntimeError(f"{constructor.__name__} downloads nothing")


def calls():
    for name, constructor in sorted(vars(keras.applications).items()):
        if not inspect.isfunction(constructor):
            continue
        if name in WIDTHS:
            for alpha in WIDTHS[name]:
                for size in SIZES[name] if alpha <= 1 else (224,):
                    yield name, constructor, {"alpha": alpha}, size
        else:
            for arguments in V3 if name.startswith("MobileNetV3") else [{}]:
                yield name, constructor, arguments, None


def main() -> None:
    found: dict[str, dict[str, list]] = {}
    for name, constructor, arguments, size in calls():
        shown = {k: v for k, v in arguments.items() if (k, v) != ("alpha", 1.0)}
        call = f"{name}({', '.join(f'{k}={v}' for k, v in shown.items())})" if shown else name
        shape = {"input_shape": (size, size, 3)} if size else {}
        rows = found.setdefault(call, {})
        rows[str(size or "default")] = wanted(constructor, **arguments, **shape)
        print(call, size, *rows[str(size or "default")], flush=True)
        keras.backend.clear_session()
    text = json.dumps(found, indent=0)
    (GOLDEN / "keras_applications.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
