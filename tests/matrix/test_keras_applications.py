"""Row 15: our outputs are those of keras.applications with the same weights, file and all."""

from __future__ import annotations

import re
from contextlib import contextmanager

import h5py
import keras
import numpy as np
import pytest
from dlzoo import zoo
from dlzoo.errors import ModelError
from equality import TOLERANCE, images, keras_case, size_for_keras, to_keras
from rows import SMALLEST, rows

VARIANTS = {name: v for name, v in zoo.variants().items() if v.keras}
LAST = {"vgg16": "block5_pool", "resnet50": "conv5_block3_out", "mobilenet_v2": "out_relu"}


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    """Give (name, image size, reference, its preprocessing, file of its weights)."""
    name = request.param
    model, preprocess, path = keras_case(name, tmp_path_factory.mktemp(name))
    yield name, size_for_keras(name), model, preprocess, path
    path.unlink()


def over(names, default):
    return pytest.mark.parametrize("case", rows(names, default), indirect=True)


# Of each family the smallest, but for those that the default golden files show to be right.
@over(VARIANTS, SMALLEST - {"densenet121", "efficientnet_v2_b0"} | {"resnet50"})
def test_same_outputs_as_keras_applications(case, close):
    name, _, theirs, preprocess, path = case
    off = to_keras(name, theirs, preprocess, path)
    close(name, f"keras.applications {VARIANTS[name].keras}", off)


@contextmanager
def renamed(path, rename):
    """Give the layers in the file other names, and take them back afterwards."""
    with h5py.File(path, "r+") as file:
        names = [name.decode() for name in file.attrs["layer_names"]]
        file.attrs["layer_names"] = np.array([rename(name) for name in names], "S")
        for name in names:
            if rename(name) != name:
                file.move(name, rename(name))
    yield
    with h5py.File(path, "r+") as file:
        file.attrs["layer_names"] = np.array(names, "S")
        for name in names:
            if rename(name) != name:
                file.move(rename(name), name)


@over(["resnet50", "mobilenet_v2"], ["resnet50"])
def test_the_classifier_may_have_any_name(case):
    """The published ResNet files are older than the builders, and call it `probs`."""
    name, size, theirs, _, path = case
    with renamed(path, lambda layer: {"predictions": "probs"}.get(layer, layer)):
        model = zoo.create_model(name, weights=path, input_shape=size)
    kernels = [m.layers[-1].kernel.numpy() for m in (model, theirs)]
    assert np.array_equal(*kernels)


@over(VARIANTS, ["mobilenet_v3_small_075", "efficientnet_b0"])
def test_other_names_are_matched_as_keras_does_by_position(case):
    name, _, theirs, preprocess, path = case
    kept = ("normalization", "rescaling")  # a published file calls these as the builder does
    with renamed(path, lambda layer: layer if layer.startswith(kept) else f"{layer}_of_mine"):
        off = to_keras(name, theirs, preprocess, path)
    assert off <= TOLERANCE


@over(["resnet50", "mobilenet_v2"], [])
def test_unknown_names_of_another_variant_are_refused(case):
    name, size, _, _, path = case
    other = {"resnet50": "resnet101", "mobilenet_v2": "mobilenet_v2_130"}[name]
    with (
        renamed(path, lambda layer: f"{layer}_of_mine"),
        pytest.raises(ModelError, match="is not in the file") as caught,
    ):
        zoo.create_model(other, weights=path, input_shape=size)
    assert caught.value.id == "model.weights-mismatch"


@over(["resnet50", "mobilenet_v2"], ["resnet50"])
def test_a_file_of_another_variant_is_refused(case):
    name, _, _, _, path = case
    other = {"resnet50": "resnet101", "mobilenet_v2": "resnet50"}[name]
    with pytest.raises(ModelError, match=re.escape(str(path))) as caught:
        zoo.create_model(other, weights=path, pool="avg", num_classes=7)
    assert caught.value.id == "model.weights-mismatch"


@over(LAST, [])
def test_a_backbone_takes_its_part_of_the_file(case):
    name, size, theirs, preprocess, path = case
    expected = keras.Model(theirs.input, theirs.get_layer(LAST[name]).output)
    expected = np.asarray(expected(preprocess(images(f"{size}x{size}")), training=False))
    options = {"weights": path, "input_shape": size}
    taps = zoo.create_model(name, features_only=True, **options)
    pooled = zoo.create_model(name, num_classes=7, pool="avg", **options)
    features = keras.Model(pooled.input, zoo.graph.features(pooled))
    maps = np.asarray(list(taps(images(f"{size}x{size}"), training=False).values())[-1])
    assert np.abs(maps - expected).max() <= TOLERANCE * expected.std()
    off = np.asarray(features(images(f"{size}x{size}"))) - expected.mean((1, 2))
    assert np.abs(off).max() <= TOLERANCE * expected.std()
