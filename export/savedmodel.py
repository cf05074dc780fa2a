"""TensorFlow SavedModel: image files or raw pixels in, probabilities and names out.

    model = tf.saved_model.load(path)
    model(images)                        # float32 or uint8 (n, height, width, 3) in 0..255
    model(tf.constant([file, ...]))      # contents of JPEG, PNG, GIF, BMP or WebP files
    model.class_names()

For TensorFlow Serving the same are signatures: `serving_default` and `serving_uint8` (input
`images`), `bytes` (input `image_bytes`) and `class_names`; they are also the faster way for pixels
of many sizes, since TensorFlow traces `model(images)` anew for each shape. Decoding, EXIF
orientation, resizing and normalisation are in the graph; it needs neither dlzoo nor Keras.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from . import parity
from .artefact import INSIDE, Format, Options
from .snippets import snippet

if TYPE_CHECKING:
    from ..transfer.classifier import Classifier

EXTRA = "assets.extra"  # TensorFlow's own place for files that go with a SavedModel


def _write(
    classifier: Classifier, directory: Path, about: dict[str, Any], options: Options
) -> None:
    import tensorflow as tf

    from .serving import Serving

    serving = Serving(classifier, options.batch)
    tf.saved_model.save(serving, str(directory), serving.signatures())
    (directory / EXTRA).mkdir()
    files.write_json(directory / EXTRA / INSIDE, about)


def _answers(directory: Path, options: Options) -> dict[str, parity.Answer]:
    """Return the two ways of asking the SavedModel in a directory: pixels, and files."""
    import tensorflow as tf

    from ..data.decode import decode

    loaded = tf.saved_model.load(str(directory))
    # a signature is one graph for all sizes; `loaded(...)` would be traced for each size anew
    by_signature = loaded.signatures["serving_default"]
    batch = options.batch or 1  # the images are of many sizes

    def by_pixels(photos: parity.Photos) -> Iterator[np.ndarray]:
        for image in photos.files:
            pixels = decode(image)[None].astype("float32")
            found = by_signature(images=tf.constant(np.repeat(pixels, batch, axis=0)))
            yield found["probabilities"].numpy()[:1]

    def by_bytes(photos: parity.Photos) -> Iterator[np.ndarray | None]:
        for image in photos.files:
            try:
                yield loaded(tf.constant([image] * batch)).numpy()[:1]
            except tf.errors.InvalidArgumentError:  # a TIFF, say
                yield None

    return {"pixels": by_pixels, "bytes": by_bytes}


_SNIPPET = snippet(
    file="savedmodel",
    packages="tensorflow",
    more="""
The model takes image files as they are, and pixels of any size: model.model(images).

TF Serving: copy the folder to models/NAME/1, then
    tensorflow_model_server --rest_api_port=8501 --model_name=NAME --model_base_path=$PWD/models
    POST http://localhost:8501/v1/models/NAME:predict
    {"signature_name": "bytes", "instances": [{"image_bytes": {"b64": "..."}}]}
JavaScript: ask that server; `use_onnx.py` tells of models inside the browser.
Android: use the tflite format.
""",
    imports="""

import tensorflow as tf
""",
    load=f"""
        with open(f"{{path}}/{EXTRA}/{INSIDE}", encoding="utf-8") as file:
            self.about = json.load(file)
        self.model = tf.saved_model.load(path)
""",
    ask="return self.model(tf.constant(pixels)).numpy()",
)

FORMAT = Format(
    stem="savedmodel",
    suffix="",
    write=_write,
    answers=_answers,
    snippet=_SNIPPET,
    takes="RGB images of any size, values 0..255, or encoded image files",
    any_size=True,
)
