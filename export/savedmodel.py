"""TensorFlow SavedModel: image files or raw pixels in, probabilities and names out.

    model = tf.saved_model.load(path)
    model(images)                        # float32 or uint8 (n, height, width, 3) in 0..255
    model(tf.constant([file, ...]))      # contents of JPEG, PNG, GIF, BMP or WebP files
    model.class_names()

For TensorFlow Serving the same are signatures: `serving_default` and `serving_uint8` (input
`images`), `bytes` (input `image_bytes`) and `class_names`. Decoding, EXIF orientation, resizing
and normalisation are in the graph; it needs neither dlzoo nor Keras.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import files
from ..errors import UsageError
from . import parity

if TYPE_CHECKING:
    from ..transfer.classifier import Classifier

EXTRA = "assets.extra"  # TensorFlow's own place for files that go with a SavedModel


def savedmodel(
    classifier: Classifier,
    path: Path | str,
    *,
    images: Sequence[bytes],
    tolerance: float = 1e-3,
) -> dict:
    """Write a SavedModel directory, load it again and check it on real images.

    It appears at `path` as a whole, after it passed. `assets.extra/` in it holds dlzoo.json
    (classes, preprocessing, versions) and parity.json (what is returned).

    A mixed-precision classifier is rebuilt in float32, and that one is compared. Args,
    Returns, Raises: see `dlzoo.export.export`.
    """
    path = Path(path)
    if path.exists():
        raise UsageError("export.exists", "there is something already", where=path)
    classifier = classifier.float32()
    expected = parity.reference(classifier, images)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(classifier, temporary)
        answers = _answers(temporary)
        figures = parity.check(expected, answers, images, classifier.task, tolerance)
        files.write_json(temporary / EXTRA / "parity.json", figures)
        if not figures["passed"]:
            kept = path.with_name(f"{path.name}.rejected")
            shutil.rmtree(kept, ignore_errors=True)
            temporary.rename(kept)
            raise parity.rejected(figures, kept)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return figures


def _write(classifier: Classifier, directory: Path) -> None:
    import tensorflow as tf

    from ..transfer.classifier import versions
    from .serving import Serving

    serving = Serving(classifier)
    tf.saved_model.save(serving, str(directory), serving.signatures())
    about = {
        "format": "dlzoo.savedmodel/1",
        "task": classifier.task,
        "classes": list(classifier.classes),
        "preprocess": asdict(classifier.preprocess),
        "input": "RGB images of any size, values 0..255, or encoded image files",
        "origin": classifier.origin,
        "versions": versions(),
    }
    (directory / EXTRA).mkdir()
    files.write_json(directory / EXTRA / "dlzoo.json", about)


def _answers(directory: Path) -> dict[str, parity.Answer]:
    """Return the two ways of asking the SavedModel in a directory: files, and pixels."""
    import tensorflow as tf

    from ..data.decode import decode

    loaded = tf.saved_model.load(str(directory))

    def by_bytes(image: bytes) -> np.ndarray | None:
        try:
            return loaded(tf.constant([image])).numpy()
        except tf.errors.InvalidArgumentError:  # a TIFF, say
            return None

    def by_pixels(image: bytes) -> np.ndarray:
        return loaded(decode(image)[None].astype("float32")).numpy()

    return {"bytes": by_bytes, "pixels": by_pixels}
