"""What users of other tools suffer from: each test names the number of its item.

The items, and where else they are proved, stand in docs/RELIABILITY.md.
"""

import configparser
import csv
import gc
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from dlzoo import create_model, load_data, load_run
from dlzoo.data.decode import decode
from dlzoo.doctor import EXTRAS
from dlzoo.transfer.classifier import Classifier
from dlzoo.transfer.fit import train
from dlzoo.transfer.plan import Plan, Stage
from dlzoo.zoo import graph
from dlzoo.zoo.spec import Preprocess
from odd import train_odd
from photos import folder, photo
from PIL import Image
from tensorflow.python.framework.func_graph import FuncGraph


@pytest.fixture(scope="module")
def again(odd_run, tmp_path_factory):
    """Give a second run with the same photos, settings and seed, which also printed JSON."""
    return train_odd(odd_run.photos, tmp_path_factory.mktemp("again"), "--json")


@pytest.fixture(scope="module")
def data():
    """Three classes of 12 training images each; 28 x 28 pixels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (48, 28, 28, 3)).astype("uint8")
    return load_data((images, np.arange(48) % 3), val_split=0.25, test_split=0.0)


def fit(name, data, stages, size=28, pool=None, **options):
    """Train a network that begins with the same answer for everything."""
    model = create_model(name, num_classes=3, input_shape=(size, size, 3), pool=pool)
    model.get_layer("logits").kernel.assign(0 * model.get_layer("logits").kernel)
    plan = Plan(stages, size=size, **options.pop("plan", {}))
    return train(model, data, plan, graph.built(model).preprocess, quiet=True, **options)


def test_pain_01_scaled_images_are_refused_or_warned_of(odd_run, tmp_path, raises):
    """In data from arrays, in predict, and where a classifier is asked directly."""
    run = load_run(odd_run.path)
    pixels = decode(photo(tmp_path / "a.png", 3))
    scaled = np.stack([pixels / 255.0] * 9).astype("float32")
    with raises("data.range", 3):
        load_data((scaled, np.arange(9) % 3))
    right, wrong = run.predict([pixels, scaled[0]])
    file = tmp_path / "a.png"
    given = (pixels, file, file.read_bytes(), Image.fromarray(pixels), tf.constant(pixels))
    assert [run.predict(x)[0].top for x in given] == 5 * [right.top]
    assert right.error is None and wrong.error.startswith("data.range: pixels lie in 0..1")
    with pytest.warns(UserWarning, match="already scaled"):
        run.classifier.probabilities(np.zeros((1, 28, 28, 3), "float32") + 0.5)


def test_pain_09_odd_folders_are_no_classes(tmp_path):
    """And a validation split may be spelled as people do."""
    for split in ("training", "valid", "Test"):
        folder(tmp_path / "d" / split, each=4, start=len(split) * 100)
        photo(tmp_path / "d" / split / ".ipynb_checkpoints" / "a.png", 1)
    photo(tmp_path / "d" / ".git" / "a.png", 1)
    data = load_data(tmp_path / "d")
    assert data.classes == ("daisy", "rose")
    assert data.splits == {"train": 8, "val": 8, "test": 8}
    noted = {p.path for p in data.problems if p.action == "ignored"}
    assert noted == {".git", *(f"{s}/.ipynb_checkpoints" for s in ("training", "valid", "Test"))}


def test_pain_11_an_unknown_monitor_is_an_error_before_any_step(tmp_path, raises, refused):
    """Before the data is even touched: there is none."""
    with raises("train.unknown-monitor", 2) as caught:
        fit("lenet5", None, (Stage("all", "all"),), plan={"monitor": "val_f1"})
    assert "val_acc, val_loss" in caught.value.hint
    argv = ("finetune", "--data", "no/such", "--out", tmp_path / "runs", "--monitor", "val_lss")
    assert "did you mean 'val_loss'?" in refused("config.invalid", 2, *argv)


def test_pain_19_every_epoch_is_whole_whatever_the_batch(odd_run):
    """78 images in batches of 32: four epochs were asked for, and each was validated."""
    with (odd_run.path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert all(float(row["val_loss"]) > 0 for row in rows)


def test_pain_22_a_run_gives_its_preprocessing(tmp_path):
    """It is not the variant's own here, and nothing needs to be warned of."""
    rule = Preprocess(mean=(120.0, 100.0, 90.0), std=(60.0, 50.0, 40.0), size=28)
    create = {"name": "lenet5", "num_classes": 3, "input_shape": [28, 28, 3]}
    model = create_model(**create, preprocess=rule)
    run = tmp_path / "run"
    Classifier(model, ("a", "b", "c"), "multiclass", rule, {"create": create}).save(run / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = create_model("lenet5", num_classes=2, input_shape=(28, 28, 3), weights=run)
    assert graph.built(other).preprocess == rule
    assert other.get_layer("normalize").scale == model.get_layer("normalize").scale


def test_pain_22_a_run_gives_its_weights_to_another(odd_run, tmp_path, call):
    """`--weights RUN`: all layers of it, a head for the new classes."""
    source = load_run(odd_run.path).classifier.model
    given = {"weights": odd_run.path, "input_shape": (28, 28, 3)}
    model = create_model("lenet5", num_classes=2, **given)
    for mine, theirs in zip(model.layers, source.layers, strict=True):
        same = all(map(np.array_equal, mine.get_weights(), theirs.get_weights()))
        assert same == (mine.name != "logits"), mine.name
    whole = create_model("lenet5", num_classes=3, **given)
    assert all(map(np.array_equal, whole.get_weights(), source.get_weights()))
    argv = ("finetune", "--backbone", "lenet5", "--weights", odd_run.path, "--epochs", "1")
    argv += ("--preset", "fast", "-q", "--data", folder(tmp_path / "p"), "--out", tmp_path / "runs")
    code, _, errors = call(*argv)
    assert (code, errors) == (0, "")


def test_pain_22_an_export_given_for_a_run_is_refused_with_the_path_to_use(
    odd_run, tmp_path, refused
):
    exported = tmp_path / "run" / "export" / "savedmodel"
    exported.mkdir(parents=True)
    (exported / "saved_model.pb").touch()
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / "model" / "model.json").touch()
    argv = ("finetune", "--data", odd_run.photos, "--out", tmp_path / "runs", "--backbone")
    told = refused("model.not-a-run", 4, *argv, "lenet5", "--weights", exported)
    assert "SavedModel" in told and f"fix:   give {tmp_path / 'run'}\n" in told
    told = refused("model.weights-mismatch", 4, *argv, "mlp", "--weights", odd_run.path)
    assert "the run is of lenet5, not of mlp" in told and "--backbone lenet5" in told


@pytest.mark.full
def test_pain_39_optional_packages_are_optional():
    """With all of them hidden, `doctor` finds nothing wrong and says how to get them."""
    hidden = [name for names in EXTRAS.values() for name in names]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({hidden}))\n"
        "from dlzoo.cli import main\n"
        "import dlzoo.export, dlzoo.explore, dlzoo.job, dlzoo.training\n"
        "main(['doctor'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert all(f"dlzoo[{extra}]" in done.stdout for extra in EXTRAS)


def test_pain_39_requirements_have_lower_bounds_only():
    found = configparser.ConfigParser()
    found.read(Path(__file__).parents[2] / "setup.cfg")
    lines = found["options"]["install_requires"].split("\n")
    lines += [
        line for extra in found["options.extras_require"].values() for line in extra.split("\n")
    ]
    for line in filter(None, lines):
        assert re.fullmatch(r"[\w\[\]-]+>=[\d.]+", line.partition(";")[0].strip()), line


def test_pain_40_the_device_is_told_and_a_missing_gpu_is_an_error(odd_run, tmp_path, refused):
    import tensorflow as tf

    assert re.search(r"^device \d+x (CPU fp32|GPU (fp32|tf32))", odd_run.err, re.MULTILINE)
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    told = refused(
        *("resource.no-gpu", 5, "finetune", "--backbone", "lenet5", "--weights", "none"),
        *("--data", folder(tmp_path / "p"), "--device", "gpu", "--out", tmp_path / "runs"),
    )
    assert "TensorFlow sees 0 GPUs" in told


@pytest.mark.full
def test_pain_41_graphs_of_earlier_stages_are_let_go(data):
    """What grew was one graph of the training step a stage, which TensorFlow kept for good."""

    def graphs() -> int:
        gc.collect()
        return sum(isinstance(each, FuncGraph) for each in gc.get_objects())

    found = []
    depths = ("C1", "C2", "all", "C1", "C2")
    stages = [Stage(f"{i}", depth, 1, optimizer="adam") for i, depth in enumerate(depths)]
    fit("lenet5", data, stages, use_cache=False, log=lambda line: found.append(graphs()))
    assert len(found) == len(depths) and found[-1] == found[1] > 0


@pytest.mark.full
def test_pain_44_a_collapsed_network_is_stopped_and_told_what_to_change(data, raises):
    """A VGG that answers 1/n for everything: loss ln(n), epoch after epoch."""
    stage = Stage("all", "all", epochs=9, lr=1e-9, optimizer="sgd", schedule="constant")
    rows = []
    with raises("train.diverged", 6) as caught:
        fit("vgg11", data, (stage,), size=32, pool="avg", use_cache=False, log=rows.append)
    assert "loss 1.099 is no better than chance for 3 epochs" in caught.value.message
    assert len(rows) == 2 and "--lr" in caught.value.hint  # of the third, only the error is told


@pytest.mark.full
def test_pain_49_the_same_seed_gives_the_same_weights(odd_run, again):
    """Two processes with --deterministic: bits, predictions and curves are equal."""
    assert json.loads(again.out)["run"] == str(again.path)  # alone on stdout
    first, second = (load_run(run.path) for run in (odd_run, again))
    for mine, theirs in zip(
        first.classifier.model.get_weights(), second.classifier.model.get_weights(), strict=True
    ):
        assert mine.tobytes() == theirs.tobytes()
    for name in ("predictions_test.csv", "data_manifest.csv"):
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()
    curves = []
    for run in (first, second):
        with (run.path / "metrics.csv").open(newline="") as file:
            curves.append([{**row, "seconds": None} for row in csv.DictReader(file)])
    assert curves[0] == curves[1]


def test_pain_50_without_a_terminal(odd_run, seen):
    """One plain line an epoch on stderr, the result alone on stdout."""
    assert odd_run.out == f"{odd_run.path}\n"
    assert odd_run.err.isascii() and not re.search(r"[\r\x1b\x08]", odd_run.err)
    lines = re.findall(r"^stage all +(\d)/4  loss .*", odd_run.err, re.MULTILINE)
    assert lines == ["1", "2", "3", "4"]
    assert "Warning" not in odd_run.err
    seen(re.search(r"^stage all +4/4 .*", odd_run.err, re.MULTILINE)[0])
