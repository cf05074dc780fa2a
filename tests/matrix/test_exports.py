"""Every family exports to every format, and each file answers as the Keras model does."""

from __future__ import annotations

import io
from importlib import util

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo import export, zoo
from dlzoo.transfer.classifier import Classifier
from dlzoo.transfer.memory import traced_graphs_let_go
from dlzoo.zoo import graph
from golden import random_weights as rw
from PIL import Image
from rows import SMALLEST, rows

pytestmark = pytest.mark.full
INSTALLED = [f for f, kind in export.FORMATS.items() if all(map(util.find_spec, kind.needs))]
LISTED = rows(sorted(SMALLEST))


def pictures() -> list[bytes]:
    """Return parts of a photograph, and noise, as files."""
    whole = rw.photo()
    parts = [whole[i * 20 : i * 20 + 160, i * 30 : i * 30 + 190] for i in range(6)]
    files = []
    for pixels in (*parts, rw.noise(90, 70).astype("uint8")):
        Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
        files.append(file.getvalue())
    return files


@pytest.fixture(scope="module", params=LISTED)
def classifier(request):
    """Give the smallest variant of a family, on small images, with the photos it is asked about."""
    variant = zoo.variants()[request.param]
    model = zoo.create_model(
        variant.name,
        num_classes=7,
        input_shape=max(variant.min_size, 48),
        in_chans=3,
        pool="avg" if variant.params > 1e8 else None,
    )
    rw.fill(model)
    rule, create = graph.built(model).preprocess, graph.built(model).create
    made = Classifier(model, tuple("abcdefg"), "multiclass", rule, {"create": create})
    rw.tell_apart(model, export.Photos.of(made, pictures()).prepared)
    with traced_graphs_let_go():
        yield made, export.Photos.of(made, pictures())
        keras.backend.clear_session()


@pytest.mark.parametrize("format", INSTALLED)
def test_pain_01_29_it_answers_as_keras_does(classifier, tmp_path, format):
    made, photos = classifier
    assert np.ptp(photos.expected, axis=0).max() > 1e-3  # the photos make a difference
    path = tmp_path / export.file_name(format, export.Options())
    figures = export.export(made, path, format, images=photos)
    assert figures["top1_agreement"] == 1 and figures["max_difference"] <= 1e-3
    if format == "tflite":
        names = {op["op_name"] for op in tf.lite.Interpreter(str(path))._get_ops_details()}
        assert not [name for name in names if "Flex" in name or "CUSTOM" in name]


@pytest.mark.parametrize("format", [f for f in INSTALLED if f != "savedmodel"])
def test_pain_30_it_takes_a_fixed_batch(classifier, tmp_path, format):
    made, photos = classifier
    asked = export.Options(batch=2)
    path = tmp_path / export.file_name(format, asked)
    figures = export.export(made, path, format, images=photos, options=asked)
    assert list(figures["ways"]) == ["batch 2"] and figures["max_difference"] <= 1e-3
