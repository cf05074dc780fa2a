"""Rows 12 and 15: our outputs are those of torchvision and timm with the same weights.

`tools/make_golden.py` made the golden files. The weights, too large to keep, come from names and
shapes (tests/golden/random_weights.py) and go through a real file and the public way in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import keras
import numpy as np
import pytest
from dlzoo import zoo
from dlzoo.data.pipeline import load_image
from dlzoo.zoo import graph
from equality import GOLDEN, TOLERANCE, golden_of, images, off_by, read, to_golden, to_numpy
from golden import random_weights as rw
from rows import SMALLEST, rows
from safetensors.numpy import save_file

CONVERTED = [v for v in zoo.variants() if (GOLDEN / f"{v}.npz").exists()]


def cases() -> Iterator[str]:
    """Return `NAME SIZE` for heads that are built for one size, else `NAME all`."""
    for name in CONVERTED:
        fixed = zoo.variants()[name].family.head is not None
        for size in read(name)[1] if fixed else ["all"]:
            yield f"{name} {size}"


# Of each family the smallest, but for those that are large and have the blocks of others.
DEFAULT = {f"{name} all" for name in SMALLEST - {"wide_resnet50_2", "resnext50_32x4d"}}
DEFAULT |= {"alexnet 224x224", "vgg11 96x160"}  # heads of one size


@pytest.mark.parametrize("case", rows(cases(), DEFAULT))
def test_same_outputs_as_the_reference(case, tmp_path, close):
    name, size = case.split()
    close(name, golden_of(name), to_golden(name, tmp_path, None if size == "all" else size))


@pytest.mark.parametrize("name", ["mlp", "lenet5"])
def test_same_outputs_as_a_few_lines_of_numpy(name, close):
    close(name, "NumPy", to_numpy(name))


@pytest.mark.parametrize(
    "name",
    rows([f"efficientnet_lite{n}.tf_in1k" for n in (0, 1, 2)], ["efficientnet_lite0.tf_in1k"]),
)
def test_same_outputs_with_the_published_weights(name, close):
    (size, expected), *_ = read(name)[1].items()
    model = zoo.create_model(name)
    variant = name.partition(".")[0]
    off = off_by(np.asarray(model(images(size), training=False)), expected)
    close(variant, f"{golden_of(variant)}, published weights", off)
    plain = zoo.create_model(variant)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]


def test_12_pain_36_from_the_photograph_to_the_logits():
    """Resizing is the one step where libraries differ: Pillow rounds between its two passes."""
    model = zoo.create_model("efficientnet_lite0.tf_in1k")
    pixels = load_image(GOLDEN / "photo.jpg", graph.built(model).preprocess)
    kept, _ = read("photo_to_lite0")[1]["224x224"]
    logits = np.asarray(model(pixels[None], training=False))
    off = np.abs(logits[:, : kept.shape[1]] - kept).max()
    print(f"off by {off:.1e}")
    assert off < 0.1


def test_11_a_grey_image_is_a_colour_image_of_equal_channels(tmp_path):
    x = images("64x64")[..., :1]
    name = "efficientnet_lite0.tf_in1k"  # its channels are normalised alike: no difference
    options = {"input_shape": 64}
    colour, grey = zoo.create_model(name, **options), zoo.create_model(name, in_chans=1, **options)
    off = np.abs(grey(x, training=False) - colour(np.repeat(x, 3, -1), training=False)).max()
    assert off <= TOLERANCE

    save_file(rw.state_dict(read("resnet18")[0]), tmp_path / "x.safetensors")
    options["weights"] = tmp_path / "x.safetensors"  # normalised by channel: nearly none
    colour, grey = (zoo.create_model("resnet18", in_chans=n, **options) for n in (3, 1))
    kernels = [m.get_layer("conv1_conv").kernel.numpy() for m in (colour, grey)]
    std = np.array((58.395, 57.12, 57.375))
    weighed = (kernels[0] * (std.mean() / std)[:, None]).sum(2, keepdims=True)
    assert np.allclose(kernels[1], weighed, atol=1e-5)
    expected = colour(np.repeat(x, 3, -1), training=False).numpy()
    off = np.abs(grey(x, training=False) - expected).max()
    print(f"resnet18 grey: off by {off:.1e}, spread {expected.std():.1e}")
    assert off < 0.3 * expected.std()
    inner = [
        keras.Model(m.input, m.get_layer("conv1_bn").output)(i, training=False)[:, 2:-2, 2:-2]
        for m, i in ((colour, np.repeat(x, 3, -1)), (grey, x))
    ]  # only at the edge do zeros stand for other colours
    assert np.abs(inner[1] - inner[0]).max() <= TOLERANCE * np.std(inner[0])


@pytest.mark.full
def test_densenet_files_of_old_spell_their_names_otherwise(tmp_path):
    """torchvision still serves files of 2017, with `norm.1` for `norm1`."""
    tensors = rw.state_dict(read("densenet121")[0])
    old = {re.sub(r"(denselayer\d+\.(norm|conv))(\d)", r"\1.\3", k): v for k, v in tensors.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    save_file(tensors, tmp_path / "new.safetensors")
    save_file(old, tmp_path / "old.safetensors")
    new, same = (
        zoo.create_model("densenet121", weights=tmp_path / f"{age}.safetensors", input_shape=64)
        for age in ("new", "old")
    )
    assert all(map(np.array_equal, new.get_weights(), same.get_weights()))


def test_every_torch_checkpoint_has_a_golden_file():
    named = {name for name, v in zoo.variants().items() if v.torchvision or v.timm}
    torch = {n for n, v in zoo.variants().items() if any(w.reader == "torch" for w in v.weights)}
    assert torch <= named == set(CONVERTED)
