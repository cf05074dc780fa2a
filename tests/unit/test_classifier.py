"""A saved classifier comes back the same, or says why it does not."""

import json
import warnings
from dataclasses import replace

import keras
import numpy as np
import pytest
from dlzoo import load_data, zoo
from dlzoo.errors import ModelError
from dlzoo.export.parity import Photos
from dlzoo.files import lines_of
from dlzoo.transfer.classifier import Classifier, to_probabilities
from dlzoo.zoo.spec import Preprocess
from photos import coloured

# Not the variant's own normalisation: it must come back from the file.
RULE = Preprocess(mean=(120.0, 100.0, 90.0), std=(60.0, 50.0, 40.0), size=20, crop=1.0)
CREATE = {"name": "lenet5", "num_classes": 3, "input_shape": [20, 20, 3]}
CLASSES = ("daisy", "rose\nred", "tulip")


def build(task="multiclass", **create):
    create = CREATE | create
    model = zoo.create_model(**create | {"input_shape": (20, 20, 3)}, preprocess=RULE)
    return Classifier(model, CLASSES, task, RULE, {"create": create, "run": "r1"})


@pytest.fixture(scope="module")
def classifier():
    return build()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0, 255, (5, 20, 20, 3)).astype("float32")


@pytest.fixture()
def saved(classifier, tmp_path):
    classifier.save(tmp_path / "model")
    return tmp_path / "model"


def edit(directory, **changes):
    path = directory / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def test_probabilities_are_those_of_the_logits_and_do_not_overflow():
    logits = np.array([[1e4, 0.0, -1e4], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(to_probabilities(logits, "multiclass")[0], [1, 0, 0])
    np.testing.assert_allclose(to_probabilities(logits, "multiclass")[1], 1 / 3, rtol=1e-6)
    sigmoid = to_probabilities(logits, "multilabel")
    np.testing.assert_allclose(sigmoid[0], [1, 0.5, 0])
    np.testing.assert_allclose(sigmoid[1], 1 / (1 + np.exp(-1)), rtol=1e-6)
    binary = to_probabilities(np.array([[-1000.0], [2.0]]), "binary")
    np.testing.assert_allclose(binary[:, 1], [0, 1 / (1 + np.exp(-2))], rtol=1e-6)
    np.testing.assert_allclose(binary.sum(1), 1)


@pytest.mark.parametrize("name", ["lenet5", "squeezenet1_1"])
def test_a_temperature_divides_the_logits(name):
    """Of SqueezeNet, too, which puts a ReLU and a mean behind them."""
    keras.utils.set_random_seed(0)
    rule = replace(RULE, size=32)
    model = zoo.create_model(name, num_classes=3, input_shape=(32, 32, 3), preprocess=rule)
    made = Classifier(model, CLASSES, "multiclass", rule, {})
    images = np.random.default_rng(0).uniform(0, 255, (5, 32, 32, 3)).astype("float32")
    before, answers = made.model(images).numpy(), made.probabilities(images)
    many = np.random.default_rng(1).integers(0, 255, (12, 32, 32, 3)).astype("uint8")
    data = load_data((many, [*"abc"] * 4), val_split=0.0, test_split=0.0)
    made.answers(data, "train")  # is remembered, and tempered with the rest
    made.temper(0.5)
    anew = Classifier(made.model, CLASSES, "multiclass", rule, {}).answers(data, "train")
    np.testing.assert_allclose(made.answers(data, "train"), anew, rtol=1e-4)
    np.testing.assert_allclose(made.model(images), 2 * before, rtol=1e-5, atol=1e-6)
    assert made.origin["temperature"] == 0.5
    assert (made.probabilities(images).max(1) > answers.max(1)).all()
    made.temper(4)
    np.testing.assert_allclose(made.model(images), before / 2, rtol=1e-5, atol=1e-6)
    assert made.origin["temperature"] == 2  # of both


def test_labels_are_a_line_each_whatever_is_in_a_name():
    assert lines_of(["daisy", "rose\nred", "tulip\r\n"]) == "daisy\nrose red\ntulip\n"


def test_batches_are_put_together_in_order(classifier, images):
    whole = classifier.probabilities(images)
    assert whole.shape == (5, 3) and whole.dtype == np.float32
    np.testing.assert_allclose(classifier.probabilities(images, batch=2), whole, atol=1e-6)
    single = np.concatenate([classifier.probabilities(image[None]) for image in images])
    np.testing.assert_allclose(single, whole, atol=1e-6)
    assert classifier.probabilities(images[:0]).shape == (0, 3)


def test_images_of_another_shape_are_refused(classifier, images):
    """Also photos, which are RGB, by a model of grey images: it is never exported, either."""
    with pytest.raises(ModelError, match=r"model\.images.*(19, 20, 3).*\n.*load_image"):
        classifier.probabilities(images[:, 1:])
    grey = zoo.create_model("lenet5", num_classes=3, input_shape=20, in_chans=1)
    rule = zoo.graph.built(grey).preprocess
    grey = Classifier(grey, CLASSES, "multiclass", rule, {})
    assert grey.probabilities(images[..., :1]).shape == (5, 3)
    photos = coloured(6)[0]
    data = load_data((photos, ["a", "b"] * 3), val_split=0.0, test_split=0.0)
    with pytest.raises(ModelError, match=r"model\.images(.|\n)*in_chans"):
        Photos.of(grey, [data.records("train")[0].encoded()])
    with pytest.raises(ModelError, match=r"model\.images"):
        grey.answers(data, "train")


def test_scaled_images_are_warned_about_and_black_ones_are_not(classifier, images):
    with pytest.warns(UserWarning, match="already scaled"):
        classifier.probabilities(images / 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier.probabilities(np.zeros_like(images))
        classifier.probabilities(images.astype("uint8"))


def test_a_saved_classifier_comes_back_the_same(classifier, images, saved):
    loaded = Classifier.load(saved)
    assert np.array_equal(loaded.probabilities(images), classifier.probabilities(images))
    assert (loaded.classes, loaded.task, loaded.preprocess) == (CLASSES, "multiclass", RULE)
    assert loaded.origin == classifier.origin
    assert sorted(p.name for p in saved.iterdir()) == [
        "labels.txt",
        "model.json",
        "model.weights.h5",
    ]
    assert (saved / "labels.txt").read_text("utf-8").splitlines() == ["daisy", "rose red", "tulip"]
    assert json.loads((saved / "model.json").read_text("utf-8"))["versions"]["keras"]


def test_saving_again_replaces(classifier, images, saved):
    other = build()
    other.save(saved)
    assert np.array_equal(Classifier.load(saved).probabilities(images), other.probabilities(images))


def test_a_save_is_the_same_bytes_whatever_the_process_has_made_before(classifier, saved, tmp_path):
    classifier.save(again := tmp_path / "again")
    for file in saved.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_save_torn_between_weights_and_description_is_refused(classifier, saved):
    before = (saved / "model.json").read_bytes()
    build().save(saved)
    (saved / "model.json").write_bytes(before)
    with pytest.raises(ModelError) as caught:
        Classifier.load(saved)
    assert caught.value.id == "model.hash"


@pytest.mark.parametrize("name", ["model.json", "model.weights.h5"])
def test_a_directory_without_a_model_is_no_run(saved, name):
    (saved / name).unlink()
    with pytest.raises(ModelError) as caught:
        Classifier.load(saved)
    assert caught.value.id == "model.not-a-run"


def test_a_torn_description_is_no_run(saved):
    (saved / "model.json").write_text('{"format": 1, "cla')
    with pytest.raises(ModelError) as caught:
        Classifier.load(saved)
    assert caught.value.id == "model.not-a-run"


def test_a_savedmodel_is_refused_and_its_run_named(saved):
    exported = saved.parent / "export" / "savedmodel"
    exported.mkdir(parents=True)
    (exported / "saved_model.pb").touch()
    with pytest.raises(ModelError) as caught:
        Classifier.load(exported)
    assert caught.value.id == "model.not-a-run"
    assert "SavedModel" in caught.value.message and str(saved.parent) in caught.value.hint


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_pain_20_a_failure_names_the_versions_that_differ(saved):
    edit(saved, versions={"dlzoo": "9.9", "keras": "4.0"}, create=CREATE | {"num_classes": 4})
    with pytest.raises(ModelError) as caught:
        Classifier.load(saved)
    assert caught.value.id == "model.version"
    assert "keras 4.0" in caught.value.message and keras.__version__ in caught.value.message


def test_other_versions_alone_are_no_failure(saved, classifier, images):
    edit(saved, versions={"dlzoo": "9.9", "keras": "4.0"})
    loaded = Classifier.load(saved)
    assert np.array_equal(loaded.probabilities(images), classifier.probabilities(images))


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_weights_that_do_not_fit_are_a_mismatch_where_versions_agree(saved):
    edit(saved, create=CREATE | {"num_classes": 4})
    with pytest.raises(ModelError) as caught:
        Classifier.load(saved)
    assert caught.value.id == "model.weights-mismatch"


def test_weights_that_keras_silently_left_out_are_found(saved, monkeypatch):
    monkeypatch.setattr(keras.Model, "load_weights", lambda *_, **__: None)
    with pytest.raises(ModelError) as caught:
        Classifier.load(saved)
    assert caught.value.id == "model.weights-mismatch"


def test_a_model_that_cannot_be_built_again_is_not_saved(classifier, tmp_path):
    bare = Classifier(classifier.model, CLASSES, "multiclass", RULE, {})
    with pytest.raises(ModelError) as caught:
        bare.save(tmp_path / "model")
    assert caught.value.id == "model.no-recipe" and not (tmp_path / "model").exists()


def test_mixed_precision_is_rebuilt_in_float32_with_the_same_weights(classifier, images):
    assert classifier.float32() is classifier
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        mixed = build()
        whole = mixed.float32()
        assert keras.config.dtype_policy().name == "mixed_float16"
    finally:
        keras.config.set_dtype_policy(before)
    assert {layer.compute_dtype for layer in whole.model.layers} == {"float32"}
    for ours, theirs in zip(whole.model.get_weights(), mixed.model.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)
    difference = np.abs(whole.probabilities(images) - mixed.probabilities(images)).max()
    assert 0 < difference < 1e-2
