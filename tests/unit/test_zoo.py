"""The zoo's names, listings, options and refusals; what the models compute is in tests/matrix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import h5py
import keras
import numpy as np
import pytest
from dlzoo import files, zoo
from dlzoo.errors import ModelError, UsageError
from dlzoo.zoo import graph, registry
from dlzoo.zoo.load import load, row_for_file
from dlzoo.zoo.spec import Preprocess
from golden import random_weights as rw
from rows import rows
from safetensors.numpy import save_file

SMALL = {"input_shape": 32, "num_classes": 3}


def layers(model):
    return [(layer.name, type(layer).__name__, layer.output.shape) for layer in model.layers]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("vgg161", "vgg16"), ("resnet-50", "resnet50"), ("efficientnet_light0", "efficientnet_lite0")],
)
def test_an_unknown_name_suggests_the_nearest(wrong, right):
    with pytest.raises(UsageError, match=f"did you mean '{right}'") as caught:
        zoo.create_model(wrong)
    assert caught.value.id == "model.unknown" and caught.value.exit_code == 2


def test_a_name_like_no_other_suggests_nothing():
    with pytest.raises(UsageError) as caught:
        zoo.create_model("zzzzzzzz")
    assert "did you mean" not in str(caught.value) and "dlzoo list" in caught.value.hint


def test_an_unknown_tag_suggests_the_nearest():
    for options in ({"name": "vgg16.tv_in2k"}, {"name": "vgg16", "weights": "tv_in2k"}):
        with pytest.raises(UsageError, match="did you mean 'tv_in1k'") as caught:
            zoo.create_model(**options)
        assert caught.value.id == "model.unknown-weights"
        assert "keras_in1k" in caught.value.hint


def test_a_name_with_weights_takes_no_others():
    assert zoo.resolve("vgg16.tv_in1k", "tv_in1k") == zoo.resolve("vgg16.tv_in1k", True)
    with pytest.raises(UsageError, match=r"weights of its own, and 'keras_in1k'") as caught:
        zoo.resolve("vgg16.tv_in1k", "keras_in1k")
    assert caught.value.id == "model.unknown-weights"


def test_resolve_finds_the_checkpoint_by_name_or_tag():
    by_name, by_tag = zoo.resolve("vgg16.tv_in1k"), zoo.resolve("vgg16", "tv_in1k")
    assert by_name == by_tag and by_name[1].uri.endswith("vgg16-397923af.pth")
    assert zoo.resolve("vgg16")[1] is None
    for first in (True, "imagenet"):
        assert zoo.resolve("vgg16", first)[1].tag == "keras_in1k"
    assert zoo.resolve("vgg16.tv_in1k", "imagenet") == by_name
    with pytest.raises(UsageError, match=r"model\.no-weights"):
        zoo.resolve("lenet5", True)


def test_a_name_is_registered_once():
    row = {"params": 1, "gmacs": 0.0, "taps": {}}
    add = registry.family("twice", lambda x: {}, paper="", year=2000)
    with pytest.raises(ValueError, match="'vgg16' is registered twice"):
        add("vgg16", **row)
    checkpoint = zoo.resolve("vgg16", True)[1]
    with pytest.raises(ValueError, match="two checkpoints of one tag"):
        add("twice", weights=[checkpoint, checkpoint], **row)
    assert "twice" not in zoo.variants()


# ---------------------------------------------------------------- listings


def test_list_models_takes_wildcards_and_lists():
    assert zoo.list_models("vgg1?") == ["vgg11", "vgg13", "vgg16", "vgg19"]
    assert zoo.list_models(["lenet*", "mlp"]) == ["lenet5", "mlp"]
    assert zoo.list_models("VGG*") == [] == zoo.list_models([])
    assert zoo.list_models() == sorted(zoo.variants(), key=zoo.list_models().index)
    # in natural order: 18 before 101
    assert zoo.list_models(family="resnet")[:2] == ["resnet18", "resnet26_v1_5"]


def test_a_family_that_is_not_there_is_no_empty_list():
    with pytest.raises(UsageError, match=r"model\.family.*mobilnet.*did you mean 'mobilenet"):
        zoo.list_models(family="mobilnet_v2")
    assert zoo.list_models(family="mobile*") and zoo.list_models("nothing*") == []


def test_neither_is_a_tap():
    with pytest.raises(UsageError, match=r"model\.taps.*'c3'; did you mean 'C3'"):
        zoo.list_models(taps="c3")


def test_maps_are_not_pooled():
    for options in ({"pool": "avg"}, {"taps": ["C5"]}):
        given = rf"model\.option.*nothing to pool.*with {next(iter(options))}="
        with pytest.raises(UsageError, match=given):
            zoo.create_model("resnet18", features_only=True, **options)


def test_list_models_filters():
    assert zoo.list_models(family=["mlp", "lenet5"], pretrained=False) == ["lenet5", "mlp"]
    lite = {"family": "efficientnet_lite"}
    assert zoo.list_models(pretrained=True, max_params=5e6, **lite) == ["efficientnet_lite0"]
    assert zoo.list_models(pretrained=True, max_params="5M", **lite) == ["efficientnet_lite0"]
    with pytest.raises(UsageError, match=r"model\.option.*'five' is no number"):
        zoo.list_models(max_params="five")
    assert zoo.list_models(min_top1=82, family="resnet") == ["resnet152_v1_5"]
    assert zoo.list_models(licence="Apache*", **lite) == [f"efficientnet_lite{n}" for n in range(3)]
    assert zoo.list_models(licence="apache*", **lite) == zoo.list_models(licence="Apache*", **lite)
    # one checkpoint must have both: vgg16's better one has another licence
    assert zoo.list_models("vgg16", licence="CC-BY-4.0", min_top1=71.5) == []


def test_info_is_plain_data():
    info = zoo.info("resnet50_v1_5")
    assert info["params"] == 25_557_032 and info["family"] == "resnet"
    assert [row["tag"] for row in info["weights"]] == ["tv_in1k", "tv2_in1k"]
    assert info["weights"][0]["preprocess"]["mean"] == (123.675, 116.28, 103.53)
    assert json.loads(json.dumps(info))["size"] == 224
    with pytest.raises(UsageError, match="did you mean"):
        zoo.info("resnet50_v15")


def test_listing_loads_no_tensorflow():
    program = (
        "import sys; from dlzoo import zoo; zoo.list_models('vgg*'); zoo.info('vgg16'); "
        "dir(zoo); print(*{'tensorflow', 'keras', 'h5py', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


# ---------------------------------------------------------------- options


def test_a_model_is_a_function_of_its_name():
    assert layers(zoo.lenet5(num_classes=4)) == layers(zoo.create_model("lenet5", num_classes=4))
    assert all(callable(getattr(zoo, name)) for name in zoo.list_models())
    assert {"lenet5", "create_model", "list_models"} <= set(dir(zoo))
    with pytest.raises(AttributeError, match="vgg166"):
        _ = zoo.vgg166


def test_pooled_taps_are_joined():
    model = zoo.create_model("resnet18", pool="avg", taps=("C4", "C5"), **SMALL)
    features = keras.Model(model.input, [graph.features(model), *graph.taps(model).values()])
    x = rw.noise(32, 32)[None]
    joined, *maps = features(x, training=False)
    expected = np.concatenate([np.mean(m, (1, 2)) for m in maps[-2:]], -1)
    assert joined.shape == (1, 256 + 512) and graph.joined(model) == [256, 512]
    assert np.abs(joined - expected).max() < 1e-4 * np.abs(expected).max()
    assert graph.built(model).create["taps"] == ["C4", "C5"]
    one = zoo.create_model("resnet18", pool="avg", taps=("C4", "C4"), **SMALL)
    assert graph.built(one).create["taps"] == ["C4"] and graph.joined(one) == [256]


@pytest.mark.parametrize(
    ("name", "first"),
    [("resnet18", "conv5_block1_1_act"), ("mobilenet_v2_035", "block_13_dw_act"), ("vgg11", None)],
)
def test_moments_are_those_of_the_taps_and_of_the_first_activation_at_the_last_stride(name, first):
    model = zoo.create_model(name, pool="moments", taps=("C4", "C5"), num_classes=0, input_shape=64)
    taps = zoo.graph.taps(model)
    inside = [taps["C4"], taps["C5"], *([model.get_layer(first).output] if first else ())]
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    found, c4, c5, *more = keras.Model(model.input, [model.output, *inside])(images)

    def root(x):
        return x / np.sqrt(np.abs(x) + 0.01)

    expected = [np.mean(c4, (1, 2)), *(root(np.var(x, (1, 2))) for x in (c4, *more))]
    expected = np.concatenate([*expected, root(np.mean(c5, (1, 2)))], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_pool_takes_the_maximum_too():
    model = zoo.create_model("resnet18", pool="max", input_shape=64, num_classes=0)
    features = keras.Model(model.input, [model.output, graph.taps(model)["C5"]])
    top, last = features(rw.noise(64, 64)[None], training=False)
    assert np.array_equal(top, np.max(last, (1, 2)))


@pytest.mark.parametrize(
    ("options", "id", "words"),
    [
        ({"pool": "mean"}, "model.pool", "avg, max"),
        ({"pool": "avg", "taps": ("C9",)}, "model.taps", "C1, C2, C3, C4, C5"),
        ({"taps": ("C5",)}, "model.taps", "pool"),
        ({"input_shape": (40, 40, 3), "in_chans": 1}, "model.size", "3 channels, in_chans 1"),
        ({"input_shape": (64, 64, 0)}, "model.size", "no number of channels"),
        ({"input_shape": (64, 64, None)}, "model.size", "no number of channels"),
        ({"input_shape": 31}, "model.size", "at least 32 pixels, got 31"),
        ({"input_shape": (64,)}, "model.size", "height, width"),
        ({"input_shape": (64, 64, 3, 1)}, "model.size", "height, width"),
        ({"input_shape": "64"}, "model.size", "'64' is no size"),
        ({"input_shape": 64.0}, "model.size", "64.0 is no size"),
        ({"input_shape": (64, "64")}, "model.size", "is no size"),
        ({"num_classes": 2.5}, "model.option", "num_classes=2.5"),
        ({"num_classes": "5"}, "model.option", "num_classes='5'"),
        ({"in_chans": "3", "l2": "0.1"}, "model.option", "in_chans='3', l2='0.1'"),
        ({"dropout": float("nan")}, "model.option", "dropout=nan"),
        ({"preprocess": abs}, "model.option", "built-in function abs"),
        ({"preprocess": Preprocess((0.5,) * 3, (0.2,) * 3)}, "model.option", "no images in 0..255"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, id, words):
    with pytest.raises(UsageError, match=words) as caught:
        zoo.create_model("resnet18", **{"num_classes": 3, "input_shape": 32} | options)
    assert caught.value.id == id


def test_numbers_of_numpy_are_numbers():
    model = zoo.create_model(
        "resnet18", num_classes=np.int64(3), input_shape=np.int32(32), in_chans=np.int8(1)
    )
    create = graph.built(model).create
    assert json.loads(json.dumps(create))["input_shape"] == [32, 32, 1]


def test_dense_layers_need_a_size():
    with pytest.raises(UsageError, match="fixed image size") as caught:
        zoo.create_model("lenet5", input_shape=(None, None, 1))
    assert caught.value.id == "model.size"
    assert zoo.create_model("resnet18", input_shape=(None, None)).output_shape == (None, 1000)


def test_dropout_is_the_papers_or_what_is_asked():
    def rates(name, **options):
        found = zoo.create_model(name, **SMALL, **options).layers
        return [layer.rate for layer in found if isinstance(layer, keras.layers.Dropout)]

    assert rates("mlp") == [0.2, 0.2] and rates("mlp", dropout=0.5) == [0.5, 0.5]
    assert rates("efficientnet_lite0") == [0.2]
    assert rates("efficientnet_lite0", dropout=0) == []
    assert rates("resnet18") == [] and rates("resnet18", dropout=0.3) == [0.3]


def test_a_model_knows_how_it_was_made():
    model = zoo.create_model("resnet18", **SMALL)
    made = graph.built(model)
    assert (made.name, made.tag, made.preprocess.size) == ("resnet18", None, 32)
    create = json.loads(json.dumps(made.create))
    create["input_shape"] = tuple(create["input_shape"])
    assert layers(zoo.create_model(**create)) == layers(model)
    with pytest.raises(UsageError, match=r"model\.not-from-zoo"):
        graph.taps(keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)]))
    with pytest.raises(UsageError, match="no tap 'C6'; did you mean"):
        graph.cut(model, "C6")


# ---------------------------------------------------------------- weights of one's own


@pytest.mark.parametrize("file", ["nowhere.pth", "some/where.h5", "nowhere.hdf5"])
def test_a_weights_file_that_is_missing(file):
    with pytest.raises(ModelError) as caught:
        zoo.create_model("resnet18", weights=file)
    assert caught.value.id == "model.file-missing" and caught.value.exit_code == 4


def test_an_address_is_no_file():
    with pytest.raises(ModelError, match="no address") as caught:
        zoo.create_model("resnet18", weights="https://example.com/resnet18.pth")
    assert caught.value.id == "model.uri" and "download it" in caught.value.hint


def state(name="resnet18"):
    """Return the torch state dict of ResNet-18 with 3 classes."""
    model = zoo.create_model(name, **SMALL)
    shapes = {}
    for layer in graph.weighted(model.layers):
        prefix = zoo.variants()[name].family.torch_name(layer.name)
        if isinstance(layer, keras.layers.BatchNormalization):
            parts = ("weight", "bias", "running_mean", "running_var")
            shapes |= {f"{prefix}.{part}": layer.gamma.shape for part in parts}
        elif isinstance(layer, keras.layers.Dense):
            shapes |= {f"{prefix}.weight": layer.kernel.shape[::-1], f"{prefix}.bias": (3,)}
        else:
            h, w, i, o = layer.kernel.shape
            shapes[f"{prefix}.weight"] = (o, i, h, w)
    return rw.state_dict(shapes)


def test_misfits_are_counted_and_the_first_five_named(tmp_path):
    tensors = state()
    wrong = [name for name in tensors if name.endswith("conv2.weight")]  # 8 layers
    for name in wrong[1:]:
        tensors[name] = tensors[name][:, :, :1]
    del tensors[wrong[0]]
    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError) as caught:
        zoo.create_model("resnet18", weights=tmp_path / "x.safetensors", **SMALL)
    text = str(caught.value)
    assert caught.value.id == "model.weights-mismatch"
    assert "8 of 41 layers of resnet18" in text and "and 3 more" in text
    assert f"conv2_block1_2_conv: {wrong[0]} is not in the file" in text
    assert "conv2_block2_2_conv: needs [(3, 3, 64, 64)], the file has [(1, 3, 64, 64)]" in text
    assert text.count("\n  conv") == 5


def test_tensors_that_no_such_layer_has_are_named(tmp_path):
    """Of another architecture's file, or quantised, or of a training that diverged."""
    tensors = state() | {
        "conv1.weight": np.zeros((64, 3, 7, 7), "i1"),
        "bn1.weight": np.full(64, np.nan, "f4"),
        "layer1.0.bn1.weight": np.zeros((64, 64, 1, 1), "f4"),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ModelError) as caught:
        zoo.create_model("resnet18", weights=tmp_path / "x.safetensors", **SMALL)
    text = str(caught.value)
    assert caught.value.id == "model.weights-mismatch" and "3 of 41 layers" in text
    assert text.count("integers, or numbers that are not finite") == 2
    assert "conv2_block1_1_bn: layer1.0.bn1.weight: shape (64, 64, 1, 1)" in text


def test_a_classifier_that_a_file_does_not_fill_is_told(tmp_path, recwarn):
    tensors = {name: each for name, each in state().items() if not name.startswith("fc.")}
    save_file(tensors, path := tmp_path / "x.safetensors")
    zoo.create_model("resnet18.tv_in1k", weights=path, **SMALL | {"num_classes": 0})
    zoo.create_model("resnet18.tv_in1k", weights=path, pool="moments", **SMALL)  # which no file has
    assert not recwarn
    with pytest.warns(UserWarning, match="classifier of resnet18 is untrained: x.safetensors"):
        zoo.create_model("resnet18.tv_in1k", weights=path, **SMALL)
    with pytest.warns(UserWarning, match="is untrained"):  # nobody asked for so many classes
        zoo.create_model("resnet18.tv_in1k", weights=path, pool="max", input_shape=32)


def test_a_file_of_a_larger_model_is_refused(tmp_path):
    tensors = state() | {"layer5.0.conv1.weight": np.zeros((1 << 20, 1), np.float32)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="11,689,512") as caught:
        zoo.create_model("resnet18", weights=tmp_path / "x.safetensors", **SMALL)
    assert caught.value.id == "model.weights-mismatch"


def test_what_a_file_has_more_is_a_heads_or_refused(tmp_path):
    """A deeper network of the family would fit, and be cut down unseen."""
    tensors = {name: each for name, each in state().items() if not name.startswith("fc.")} | {
        "head.2.weight": np.zeros((5, 512), "f4"),
        "layer1.0.bn1.num_batches_tracked": np.zeros(1, "i8"),
    }
    path, deeper = tmp_path / "x.safetensors", tmp_path / "resnet34-of-mine.safetensors"
    save_file(tensors, path)
    model = zoo.create_model("resnet18", weights=path, **SMALL)
    save_file(tensors | {"layer2.2.conv1.weight": np.zeros((9, 9, 3, 3), "f4")}, deeper)
    variant = zoo.variants()["resnet18"]
    before = model.get_weights()
    with pytest.raises(ModelError, match=r"has more .*\n  layer2\.2\.conv1\.weight") as caught:
        load(model, variant, row_for_file(variant, None, deeper), deeper)
    assert caught.value.id == "model.weights-mismatch" and "of resnet34" in caught.value.hint
    assert all(map(np.array_equal, before, model.get_weights()))


def test_a_users_file_has_classes_and_a_size_of_its_own(tmp_path):
    own = {"num_classes": 5, "input_shape": 40}
    saved = zoo.create_model("lenet5", **own)
    saved.save_weights(path := tmp_path / "x.weights.h5")
    again = zoo.create_model("lenet5", weights=path, preprocess=Preprocess(), **own)
    assert all(map(np.array_equal, again.get_weights(), saved.get_weights()))


def test_a_file_without_the_papers_head_is_told_how_to_be_used(tmp_path):
    """As keras.applications' include_top=False makes it, with a classifier of one's own."""
    path, options = tmp_path / "x.weights.h5", {"num_classes": 3, "preprocess": Preprocess()}
    zoo.create_model("lenet5", pool="avg", **options).save_weights(path)
    with pytest.raises(ModelError, match=r"fc1: .*\n.*fc2: .* not in the file") as caught:
        zoo.create_model("lenet5", weights=path, **options)
    assert "pool='avg'" in caught.value.hint
    zoo.create_model("lenet5", weights=path, pool="avg", **options)


def test_a_model_leaves_out_what_it_was_cut_off(tmp_path):
    path = tmp_path / "x.weights.h5"
    whole = zoo.create_model("lenet5")
    whole.save_weights(path)

    def made(**options):
        return zoo.create_model("lenet5", weights=path, preprocess=Preprocess(), **options)

    cut = made(num_classes=0, pool="avg", taps="C0")
    assert np.array_equal(cut.get_weights()[0], whole.get_weights()[0])
    with h5py.File(path, "r+") as file:
        file["layers/dense_9/vars/0"] = np.zeros((8, 8), "f4")
    made(num_classes=7)
    with pytest.raises(ModelError, match="dense_9"):
        made()
    with h5py.File(path, "r+") as file:
        file["layers/conv_9/vars/0"] = np.zeros((3, 3, 1, 2), "f4")
    with pytest.raises(ModelError, match="conv_9"):
        made(num_classes=0, pool="avg", taps="C0")


def keras_file(path, **layers):
    """Write a file as Keras 2 does."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array(list(layers), "S")
        for layer, arrays in layers.items():
            names = [f"{i}:0" for i in range(len(arrays))]
            file.create_group(layer).attrs["weight_names"] = np.array(names, "S")
            for name, array in zip(names, arrays, strict=True):
                file[f"{layer}/{name}"] = np.asarray(array, "f4")
    return path


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("mobilenet_v3_small", "mobilenet_v3_small_tv"),
        ("mobilenet_v2_tv", "mobilenet_v2"),
        ("efficientnet_b5_tv", "efficientnet_b5"),  # timm has it with two others' epsilon or pads
    ],
)
def test_a_file_of_the_form_that_pads_otherwise_is_refused(name, right, tmp_path):
    """Names and shapes agree, and the answers would be wrong."""
    path = tmp_path / "x.safetensors"
    if name.startswith("efficientnet"):
        save_file({"conv_stem.weight": np.zeros((48, 3, 3, 3), "f4")}, path)
    elif right.endswith("_tv"):
        save_file({"features.0.0.weight": np.zeros((16, 3, 3, 3), "f4")}, path)
    else:
        path = keras_file(tmp_path / "x.h5", Conv1=[np.zeros((3, 3, 3, 32))])
    with pytest.raises(ModelError, match="fit, and the answers be wrong") as caught:
        zoo.create_model(name, weights=path, **SMALL, preprocess=Preprocess())
    assert caught.value.id == "model.weights-mismatch" and caught.value.hint.endswith(right)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("efficientnet_b0", "use efficientnet_b0_tv"),
        ("efficientnet_lite0", "that is no model of the zoo"),
        ("efficientnet_b5", "that is no model of the zoo"),  # efficientnet_b5_tv has its epsilon
    ],
)
def test_timm_names_two_networks_alike(name, instead, tmp_path):
    variant = zoo.variants()[name]
    model = zoo.create_model(name, pool="avg", taps="C1", **SMALL)
    told = {}
    for file in ("model.safetensors", f"tf_{name}_ap.safetensors"):
        save_file({"conv_stem.weight": np.zeros((1, 1, 1, 1), "f4")}, tmp_path / file)
        row = row_for_file(variant, None, tmp_path / file)
        with warnings.catch_warnings(record=True) as caught, pytest.raises(ModelError):
            warnings.simplefilter("always")
            load(model, variant, row, tmp_path / file)
        told[file] = [str(warning.message) for warning in caught]
    [text], none = told.values()
    assert f"tf_{name} and {name} alike" in text and not none
    assert text.endswith(instead)


def test_the_order_of_channels_is_the_files_or_the_users(tmp_path):
    """Keras' own VGG takes BGR; what a user trained need not."""
    kernel = np.arange(27 * 64).reshape(3, 3, 3, 64)
    convs = {"block1_conv1": [kernel, np.zeros(64)]}
    convs["block1_conv2"] = [np.zeros((3, 3, 64, 64)), np.zeros(64)]
    mine = keras_file(tmp_path / "x.h5", **convs)
    variant = zoo.variants()["vgg16"]
    model = zoo.create_model("vgg16", num_classes=0, pool="avg", taps="C0", input_shape=32)
    published = mine.with_name("vgg16_weights_tf_dim_ordering_tf_kernels.h5")
    published.write_bytes(mine.read_bytes())
    of_the_zoo = keras_file(tmp_path / "zoo.h5", normalize=[], **convs)
    for path, given, turned in (
        (of_the_zoo, Preprocess(bgr=True), False),
        (mine, None, True),
        (mine, Preprocess(bgr=True), True),
        (mine, Preprocess(), False),
        (published, Preprocess(), True),
    ):
        load(model, variant, row_for_file(variant, None, path, given), path)
        expected = kernel[:, :, ::-1] if turned else kernel
        assert np.array_equal(model.get_layer("block1_conv1").kernel, expected), (path, given)


IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    ("variance", "scalings", "std"),
    [
        (np.square(IMAGENET[1]), 1, IMAGENET[1]),
        (IMAGENET[1], 1, IMAGENET[1]),  # as published
        (IMAGENET[1], 2, IMAGENET[1]),  # as saved from what Keras made of that
        (np.ones(3), 1, np.ones(3)),  # as trained from scratch
        (np.full(3, 4), 2, 2 * np.sqrt(IMAGENET[1])),
    ],
)
def test_how_images_are_normalised_is_read_off_a_keras_efficientnet(
    variance, scalings, std, tmp_path
):
    layers = {"rescaling": [], "normalization": [IMAGENET[0], variance, 0], "stem_conv": [[1]]}
    layers |= {"rescaling_1": []} if scalings > 1 else {}
    row = row_for_file(
        zoo.variants()["efficientnet_b0"], None, keras_file(tmp_path / "x.h5", **layers)
    )
    assert np.allclose(row.preprocess.mean, np.multiply(IMAGENET[0], 255))
    assert np.allclose(row.preprocess.std, np.multiply(std, 255))
    assert row.preprocess.size == 224


def test_a_published_file_is_known_wherever_it_lies(tmp_path):
    vgg = zoo.variants()["vgg16"]
    features = vgg.weights[2]
    path = tmp_path / "vgg16_features-amdegroot-88682ab5.pth"
    path.write_bytes(b"weights")
    assert row_for_file(vgg, None, path) == replace(features, tag=path.name)
    copy = path.rename(tmp_path / "copy.pth")
    with pytest.warns(UserWarning, match=r"as of tv_in1k\. .*name vgg16\.tv_in1k or vgg16"):
        row = row_for_file(vgg, None, copy)
    assert row.preprocess == vgg.weights[1].preprocess
    hashed = replace(features, sha256_prefix=files.sha256(b"weights")[:8])
    vgg = replace(vgg, weights=(*vgg.weights[:2], hashed))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert row_for_file(vgg, None, copy).classes == 0
        copy.write_bytes(b"others")
        assert row_for_file(vgg, None, copy, Preprocess()).classes == 1000
        assert row_for_file(vgg, hashed, copy).classes == 0
    mine = keras_file(tmp_path / "x.h5", fc1=[np.zeros((1, 1))])
    with pytest.warns(UserWarning, match=r"std \(1.0, 1.0, 1.0\), blue first, are taken, as of k"):
        row_for_file(vgg, None, mine)  # the only way, and yet the user's may be another


LARGE = [("resnet50", 1000), ("resnet50", 0), ("densenet121", 0)]


@pytest.mark.parametrize("file", rows(["mine.weights.h5", "mine.keras"], {"mine.keras"}))
@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("mobilenet_v3_small_075", 1000),
        *(pytest.param(*each, marks=pytest.mark.full) for each in LARGE),
    ],
)
def test_weights_saved_from_a_model_come_back(name, classes, file, tmp_path):
    options = {"num_classes": classes, "input_shape": 32}
    model = zoo.create_model(name, **options)
    rw.fill(model)
    save = model.save if file.endswith(".keras") else model.save_weights
    save(path := tmp_path / file)
    rule = graph.built(model).preprocess
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = zoo.create_model(name, weights=path, preprocess=rule, **options)
    x = rw.noise(32, 32)[None]
    assert np.array_equal(again(x, training=False), model(x, training=False))
    assert all(map(np.array_equal, again.get_weights(), model.get_weights()))
    with pytest.warns(UserWarning, match="how images were normalised"):
        zoo.create_model(name, weights=path, **options)


def test_from_scratch_an_image_leaves_its_mark():
    """The first layers' initialisation must not let the signal fade or explode."""
    for name in ("mobilenet_v2", "efficientnet_lite0", "resnet18"):
        keras.utils.set_random_seed(0)
        model = zoo.create_model(name, input_shape=64, num_classes=10)
        x = np.stack([rw.noise(64, 64), rw.photo()[:64, :64].astype("float32")])
        logits = np.asarray(model(x, training=False))
        assert 1e-2 < np.abs(logits[0] - logits[1]).max() < 1e2, name


@pytest.mark.full
def test_grouped_convolutions_train_without_onednn():
    """TensorFlow's own kernel has no gradient there: dlzoo goes back group by group."""
    code = (
        "import dlzoo, keras, numpy as np, tensorflow as tf\n"
        "from dlzoo.zoo.blocks import conv, native_groups\n"
        "x = keras.Input((9, 9, 12))\n"
        "net = keras.Model(x, conv(x, 24, 3, 2, groups=3, name='c'))\n"
        "images = np.random.default_rng(0).normal(size=(2, 9, 9, 12)).astype('float32')\n"
        "def gradients():\n"
        "    with tf.GradientTape() as tape:\n"
        "        loss = tf.reduce_sum(net(images) ** 2)\n"
        "    return [g.numpy() for g in tape.gradient(loss, net.trainable_variables)]\n"
        "expected = gradients()\n"  # Keras' own way
        "native_groups(net)\n"
        "for a, b in zip(expected, gradients(), strict=True):\n"
        "    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)\n"
    )
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
