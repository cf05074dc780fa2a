"""Checkpoints of the Hugging Face hub, and backbones of KerasHub and KerasCV, by name."""

import json
import re
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import keras
import numpy as np
import pytest
from dlzoo import files, zoo
from dlzoo.errors import ModelError, UsageError
from dlzoo.zoo import graph
from golden import random_weights as rw
from safetensors.numpy import save

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RULE = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "input_size": [3, 96, 96]}
CONFIG = {
    "architecture": "resnet18",
    "num_classes": 11,
    "pretrained_cfg": {**RULE, "crop_pct": 0.95, "interpolation": "bicubic"},
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Give a hub on 127.0.0.1 that holds timm/resnet18.a1_in1k: what it serves, by path."""
    shapes = {name: tuple(shape) for name, shape in golden_tensors("resnet18").items()}
    shapes["fc.weight"], shapes["fc.bias"] = (11, 512), (11,)
    tensors = save(rw.state_dict(shapes))
    listing = {
        "sha": COMMIT,
        "tags": ["license:apache-2.0"],
        "siblings": [
            {"rfilename": "model.safetensors", "lfs": {"sha256": files.sha256(tensors)}},
            {"rfilename": "config.json"},
        ],
    }
    base = f"/timm/resnet18.a1_in1k/resolve/{COMMIT}"
    served = {
        "/api/models/timm/resnet18.a1_in1k/revision/main?blobs=true": json.dumps(listing).encode(),
        f"{base}/config.json": json.dumps(CONFIG).encode(),
        f"{base}/model.safetensors": tensors,
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = served.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("DLZOO_OFFLINE", raising=False)
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "resnet18", "pretrained_cfg": {}},
        {"architecture": "resnet18", "pretrained_cfg": None},
        {"architecture": "resnet18", "pretrained_cfg": {**RULE, "mean": 3}},
        ["architecture", "pretrained_cfg"],
    ],
)
def test_a_hub_that_says_something_else_is_an_error_and_no_crash(hub, config):
    hub[f"/timm/resnet18.a1_in1k/resolve/{COMMIT}/config.json"] = json.dumps(config).encode()
    with pytest.raises(ModelError) as caught:
        zoo.create_model("hf://timm/resnet18.a1_in1k", weights=None)
    assert caught.value.id == "model.format"


def golden_tensors(name):
    from pathlib import Path

    with np.load(Path(rw.__file__).with_name(f"{name}.npz")) as file:
        return dict(json.loads(file["tensors"].tobytes()))


URI = "hf://timm/resnet18.a1_in1k"


def test_a_timm_checkpoint_comes_with_its_preprocessing(hub):
    model = zoo.create_model(URI, input_shape=64)
    rule = graph.built(model).preprocess
    assert np.allclose(rule.mean, (127.5, 102, 76.5)) and np.allclose(rule.std, (51, 76.5, 102))
    assert (rule.crop, rule.interpolation) == (0.95, "bicubic")
    assert model.output_shape == (None, 11)
    variant, row = zoo.resolve("resnet18", URI)
    assert (variant.name, row.classes, row.licence) == ("resnet18", 11, "Apache-2.0")
    kernel = model.get_layer("logits").kernel.numpy()
    assert np.array_equal(kernel.T, rw.state_dict({"fc.weight": (11, 512)})["fc.weight"])
    hub.clear()  # from now on the network is gone
    again = zoo.create_model("resnet18", weights=URI, input_shape=64, num_classes=11)
    x = np.rint(rw.uniform("x", (1, 64, 64, 3), 0, 255))
    assert np.array_equal(again(x), model(x))


def test_a_hub_file_that_is_not_what_the_hub_says(hub):
    path = next(key for key in hub if key.endswith("safetensors"))
    hub[path] = hub[path][:-1] + b"!"
    with pytest.raises(ModelError, match=r"model\.hash"):
        zoo.create_model(URI)


@pytest.mark.parametrize(
    ("name", "weights", "id", "says"),
    [
        ("resnet50", URI, "model.weights-mismatch", "same graph: resnet18"),
        ("resnet19", URI, "model.unknown", "did you mean"),
        ("hf://timm", None, "model.uri", "hf://timm/NAME"),
        ("hf://timm/nothing", None, "model.offline", "404"),
    ],
)
def test_names_that_mean_nothing(hub, name, weights, id, says):
    with pytest.raises((ModelError, UsageError), match=re.escape(says)) as caught:
        zoo.create_model(name, weights=weights)
    assert caught.value.id == id


def test_a_checkpoint_of_another_library_is_refused(hub):
    path = next(key for key in hub if key.endswith("config.json"))
    hub[path] = json.dumps({"architectures": ["ResNetForImageClassification"]}).encode()
    with pytest.raises(ModelError, match="not one of timm") as caught:
        zoo.create_model(URI)
    assert caught.value.id == "model.format" and "hf://timm/" in caught.value.hint


@pytest.mark.parametrize(
    "change", [{"global_pool": "max"}, {"model_args": {"act_layer": "silu", "num_classes": 11}}]
)
def test_a_checkpoint_of_a_changed_network_is_refused(hub, change):
    """Its weights would fit, and the answers be wrong."""
    path = next(key for key in hub if key.endswith("config.json"))
    hub[path] = json.dumps(CONFIG | {"global_pool": "avg"} | change).encode()
    with pytest.raises(ModelError, match=r"global_pool='max'|act_layer='silu'") as caught:
        zoo.resolve(URI)
    assert caught.value.id == "model.weights-mismatch"


def test_a_way_to_crop_that_dlzoo_lacks_is_told(hub):
    path = next(key for key in hub if key.endswith("config.json"))
    rule = CONFIG["pretrained_cfg"] | {"crop_mode": "squash"}
    hub[path] = json.dumps(CONFIG | {"pretrained_cfg": rule, "model_args": None}).encode()
    with pytest.warns(UserWarning, match="crop_mode='squash'"):
        zoo.resolve(URI)


def test_a_file_without_a_hash_is_not_downloaded(hub):
    path = next(key for key in hub if key.startswith("/api"))
    listing = json.loads(hub[path])
    del listing["siblings"][0]["lfs"]
    hub[path] = json.dumps(listing).encode()
    with pytest.raises(ModelError, match="no hash"):
        zoo.create_model(URI)


def test_offline_means_offline(hub, monkeypatch, call, tmp_path):
    with pytest.raises(ModelError, match="offline mode is on"):
        zoo.create_model(URI, offline=True)
    code, _, errors = call("fetch", URI, "--offline")
    assert code == 4 and "offline mode is on" in errors
    assert not (tmp_path / "home" / "hub").exists()  # nor was the hub asked what it has
    monkeypatch.setenv("DLZOO_OFFLINE", "1")
    with pytest.raises(ModelError, match="offline mode is on"):
        zoo.create_model(URI)


# ---------------------------------------------------------------- backbones of other libraries


def pyramid(trained):
    """Return a small backbone as KerasHub's are: functional, with `pyramid_outputs`."""
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, 2, padding="same", activation="relu", name="stem")(image)
    y = keras.layers.Conv2D(6, 3, 2, padding="same", name="stage1")(x)
    z = keras.layers.BatchNormalization(name="stage1_norm")(y)
    model = keras.Model(image, z)
    model.pyramid_outputs = {"P1": x, "P2": z}
    if trained:
        rw.fill(model)
    return model


@pytest.fixture
def keras_hub(monkeypatch):
    def from_preset(preset, load_weights=True):
        if preset != "tiny_imagenet":
            raise ValueError(f"`preset` {preset} is not known")
        return pyramid(load_weights)

    converter = types.SimpleNamespace(scale=[0.02, 0.02, 0.04], offset=-2.0, image_size=(48, 48))
    module = types.ModuleType("keras_hub")
    module.models = types.SimpleNamespace(Backbone=types.SimpleNamespace(from_preset=from_preset))
    module.layers = types.SimpleNamespace(
        ImageConverter=types.SimpleNamespace(from_preset=lambda preset: converter)
    )
    monkeypatch.setitem(__import__("sys").modules, "keras_hub", module)
    return converter


def test_a_preset_becomes_a_flat_model_with_taps(keras_hub):
    name = "keras_hub:tiny_imagenet"
    model = zoo.create_model(name, weights=True, num_classes=5, pool="avg")
    assert model.input_shape == (None, 48, 48, 3) and model.output_shape == (None, 5)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    assert list(graph.groups(model)) == ["C1", "C2", "head"]
    x = np.rint(rw.uniform("x", (2, 48, 48, 3), 0, 255)).astype("float32")
    expected = pyramid(True)(x * np.float32([0.02, 0.02, 0.04]) - 2, training=False)
    maps = zoo.create_model(name, weights=True, features_only=True)(x, training=False)
    assert np.allclose(maps["C2"], expected, atol=1e-5)
    plain = zoo.create_model(name, num_classes=5, pool="avg")
    assert [la.name for la in plain.layers] == [la.name for la in model.layers]
    one, other = (m.get_layer("stem").kernel.numpy() for m in (plain, model))
    assert not np.array_equal(one, other)


def test_a_preset_that_cannot_be_had(keras_hub, monkeypatch):
    with pytest.raises(ModelError, match=r"model\.preset.*is not known"):
        zoo.create_model("keras_hub:huge_imagenet")
    monkeypatch.setitem(__import__("sys").modules, "keras_cv", None)
    with pytest.raises(ModelError, match=r"dlzoo\[keras-cv\]"):
        zoo.create_model("keras_cv:resnet50")


@pytest.mark.parametrize("library", ["keras_hub", "keras_cv"])
def test_the_libraries_themselves(library, tmp_path):
    module = pytest.importorskip(library)
    if library == "keras_hub":
        backbone = module.models.ResNetBackbone(
            input_conv_filters=[64], input_conv_kernel_sizes=[7], stackwise_num_filters=[64, 80],
            stackwise_num_blocks=[1, 1], stackwise_num_strides=[1, 2], block_type="basic_block",
            image_shape=(64, 64, 3),
        )  # fmt: skip
        rw.fill(backbone)
        backbone.save_to_preset(str(tmp_path))
        converter = module.layers.ResNetImageConverter(image_size=(64, 64), scale=1 / 50, offset=-2)
        converter.save_to_preset(str(tmp_path))
        expected = backbone.pyramid_outputs["P3"]
    else:
        backbone = module.models.ResNetBackbone(
            stackwise_filters=[8, 16], stackwise_blocks=[1, 1], stackwise_strides=[1, 2],
            include_rescaling=True, input_shape=(64, 64, 3),
        )  # fmt: skip
        rw.fill(backbone)
        module.src.utils.preset_utils.save_to_preset(backbone, str(tmp_path))
        expected = backbone.get_layer(backbone.pyramid_level_inputs["P3"]).output
    name = f"{library}:{tmp_path}"
    maps = zoo.create_model(name, weights=True, features_only=True, input_shape=64)
    x = np.rint(rw.uniform("x", (2, 64, 64, 3), 0, 255)).astype("float32")
    theirs = keras.Model(backbone.inputs, expected)
    prepared = x / 50 - 2 if library == "keras_hub" else x
    assert np.allclose(maps(x)["C3"], theirs(prepared), atol=1e-4)
