"""Row 15: our outputs are those of keras.applications with the same weights, file and all."""

from __future__ import annotations

import re
from contextlib import contextmanager
from zlib import crc32

import h5py
import keras
import numpy as np
import pytest
from dlzoo import zoo
from dlzoo.errors import ModelError
from golden import random_weights as rw
from keras_writer import write
from rows import rows

K = keras.applications
REFERENCES = {  # constructor, module of its preprocessing, last layer before the head
    "vgg16": (K.VGG16, K.vgg16, "block5_pool"),
    "vgg19": (K.VGG19, K.vgg19, "block5_pool"),
    "resnet50": (K.ResNet50, K.resnet, "conv5_block3_out"),
    "resnet101": (K.ResNet101, K.resnet, "conv5_block3_out"),
    "resnet152": (K.ResNet152, K.resnet, "conv5_block3_out"),
    "mobilenet_v2": (K.MobileNetV2, K.mobilenet_v2, "out_relu"),
}
TOLERANCE = 1e-4
SIZES = {"vgg16": 224, "vgg19": 224}  # their head takes no other


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


def as_first_published(name: str) -> str:
    """Return the name of a layer in the ResNet files, which are older than the builders."""
    return {"predictions": "probs"}.get(name, name)


def unrecognisable(name: str) -> str:
    return f"layer_{crc32(name.encode()):08x}"


def images(size: int) -> np.ndarray:
    return np.stack([rw.noise(size, size), rw.photo()[:size, :size].astype("float32")])


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    """Give (name, reference, its logits, its last feature map, file of its weights)."""
    name = request.param
    build, rules, last = REFERENCES[name]
    size = SIZES.get(name, 75)
    model = build(weights=None, input_shape=(size, size, 3), classifier_activation=None)
    rw.fill(model)
    if rules is not K.mobilenet_v2:  # the others do not divide their images by anything
        first = next(layer for layer in model.layers if layer.weights)
        first.kernel.assign(first.kernel / 64)
    both = keras.Model(model.input, [model.output, model.get_layer(last).output])
    logits, maps = both(rules.preprocess_input(images(size)), training=False)
    assert 0.5 < np.std(logits) < 5
    write(model, path := tmp_path_factory.mktemp(name) / "reference.h5")
    yield name, size, logits.numpy(), maps.numpy(), path
    path.unlink()


def over(*default: str):
    """Run a test over all references and all names in the file: by default these only."""
    renames = {f.__name__: f for f in (str, as_first_published, unrecognisable)}
    pairs = [f"{name} {how}" for name in REFERENCES for how in renames]
    values = [
        pytest.param(*row.values[0].split(), marks=row.marks, id=row.values[0])
        for row in rows(pairs, default)
    ]
    return pytest.mark.parametrize(("case", "rename"), values, indirect=True)


@pytest.fixture
def rename(request):
    return {"str": str}.get(request.param) or globals()[request.param]


@over(
    "vgg16 str",
    "resnet50 as_first_published",
    "resnet50 unrecognisable",
    "mobilenet_v2 str",
    "mobilenet_v2 unrecognisable",
)
def test_same_outputs_as_keras_applications(case, rename):
    name, size, expected, _, path = case
    with renamed(path, rename):
        model = zoo.create_model(name, weights=path, input_shape=size)
    off = np.abs(model(images(size), training=False).numpy() - expected).max()
    print(f"{name}: off by {off:.1e}")
    assert off <= TOLERANCE


@over("resnet50 unrecognisable", "mobilenet_v2 str", "mobilenet_v2 unrecognisable")
def test_a_file_of_another_variant_is_refused(case, rename):
    name, _, _, _, path = case
    other = {
        "vgg16": "vgg19",
        "vgg19": "vgg16",
        "resnet50": "resnet101",
        "resnet101": "resnet50",
        "resnet152": "resnet101",
        "mobilenet_v2": "resnet50",
    }[name]
    with renamed(path, rename), pytest.raises(ModelError, match=re.escape(str(path))) as caught:
        zoo.create_model(other, weights=path, pool="avg", num_classes=7)
    assert caught.value.id == "model.weights-mismatch"


@over("resnet50 unrecognisable", "mobilenet_v2 str")
def test_a_backbone_takes_its_part_of_the_file(case, rename):
    name, size, _, expected, path = case
    options = {"weights": path, "input_shape": size}
    with renamed(path, rename):
        taps = zoo.create_model(name, features_only=True, **options)
        pooled = zoo.create_model(name, num_classes=7, pool="avg", **options)
    maps = list(taps(images(size), training=False).values())
    assert np.abs(maps[-1] - expected).max() <= 1e-3  # these go up to 10
    features = keras.Model(pooled.input, zoo.graph.features(pooled))
    assert np.abs(features(images(size)) - expected.mean((1, 2))).max() <= 1e-3
