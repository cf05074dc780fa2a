"""The main job from end to end, on small generated photographs: finetune, eval, predict, export."""

import ast
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo import compare, console, finetune, load_data, load_run, resume, zoo
from dlzoo.errors import (
    DataError,
    ExportError,
    GateError,
    ModelError,
    ResourceError,
    ResumeError,
    UsageError,
)
from dlzoo.run import Run
from dlzoo.rundir import RunDir
from dlzoo.transfer import probe
from dlzoo.zoo import graph, registry, weights
from keras_writer import write
from PIL import Image
from scipy.optimize import minimize

COLOURS = {"blue": (40, 60, 200), "green": (30, 160, 60), "red": (200, 40, 40)}
FAST = {"preset": "fast", "size": 64, "epochs": 12, "quiet": True, "report": False}


def photo(path: Path, colour, seed: int, size=(72, 64)) -> Path:
    rng = np.random.default_rng(seed)
    pixels = np.clip(rng.normal(colour, 30, (size[1], size[0], 3)), 0, 255).astype("uint8")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for c, (name, colour) in enumerate(COLOURS.items()):
        for i in range(20):
            photo(root / name / f"{i}.jpg", colour, 100 * c + i)
    return root


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    return finetune(data=photos, out=str(tmp_path_factory.mktemp("runs")), **FAST)


def test_the_run_learns_and_tells_everything(run, photos):
    found = run.metrics
    assert found["test"]["accuracy"] == 1.0 and found["test"]["n"] == 6
    about = json.loads((run.path / "run.json").read_text())
    assert about["status"] == "finished" and about["exit"] == 0
    assert about["model"] == "efficientnet_lite0" and about["weights"] == "tf_in1k"
    assert (run.path / "labels.txt").read_text().split() == sorted(COLOURS)
    with (run.path / "predictions_test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and all(row["label"] == row["predicted"] for row in rows)
    with (run.path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, found["epochs"] + 1))
    assert rows[0]["stage"] == "head" and not rows[0]["lr"]  # it is solved
    for plot in ("curves", "confusion"):
        assert Image.open(run.path / "plots" / f"{plot}.png").size[0] > 300
    assert not (run.path / "ckpt").exists()
    assert "stage head" in (run.path / "log.txt").read_text()
    assert "DONE  test accuracy 100.0% (6/6" in run.summary()


def test_a_run_is_loaded_and_answers_the_same(run, photos):
    again = load_run(run.path)
    assert again.evaluate("test") == run.metrics["test"]
    assert again.evaluate("val")["n"] == 6
    files = [photos / "red" / "0.jpg", photos / "blue" / "1.jpg"]
    answers = again.predict(files, topk=2)
    assert [a.top[0][0] for a in answers] == ["red", "blue"]
    assert all(len(a.top) == 2 and a.error is None for a in answers)
    before = run.predict(files[0], topk=2)[0].top
    assert dict(answers[0].top) == pytest.approx(dict(before), abs=1e-5)


def test_a_run_without_test_photos_has_none_when_it_is_loaded(run, tmp_path):
    """Photos it was trained on would be called test photos, and be answered rightly."""
    shutil.copytree(run.path, copied := tmp_path / "run")
    for name, old, new in (
        ("data_manifest.csv", ",test", ",train"),
        ("config.toml", 'flip = "auto"', 'flip = "off"'),
    ):
        text = (copied / name).read_text()
        assert old in text
        (copied / name).write_text(text.replace(old, new))
    (copied / "metrics.json").write_text(json.dumps(run.metrics | {"test": None}))
    again = load_run(copied)
    again.__dict__["classifier"] = run.classifier  # which takes a second to load
    assert again.data.splits == {"train": 54, "val": 6, "test": 0} and again.data.flip is False
    for ask in (again.evaluate, again.top_losses, again.most_confused):
        with pytest.raises(DataError, match=r"data\.empty-split.*no test photos"):
            ask()


def test_pain_03_other_photos_are_matched_by_class_name(run, tmp_path):
    """A data set that lacks the first class is scored against the right outputs."""
    for name in ("red", "green"):
        for i in range(4):
            photo(tmp_path / name / f"{i}.jpg", COLOURS[name], 900 + i)
    found = run.evaluate(data=tmp_path)
    assert found["accuracy"] == 1.0 and found["n"] == 8
    two = load_data(tmp_path, val_split=0.0, test_split=0.0)
    assert two.task == "binary" and run.evaluate(data=two) == found
    with pytest.raises(DataError, match=r"data\.empty-split.*no test photos"):
        run.evaluate("test", data=two)
    with pytest.raises(DataError, match="did you mean 'train'"):
        run.evaluate("trian", data=two)
    with pytest.raises(DataError, match=r"data\.task.*multilabel"):
        run.evaluate(data=load_data(tmp_path, task="multilabel"))
    shutil.rmtree(tmp_path / "green")
    for path in list((tmp_path / "red").iterdir())[1:]:
        path.unlink()
    alone = run.evaluate(data=tmp_path)  # nothing is learnt of it
    assert alone["n"] == alone["correct"] == alone["per_class"]["red"]["support"] == 1
    for i in range(4):
        photo(tmp_path / "violet" / f"{i}.jpg", (150, 0, 150), i)
    with pytest.raises(DataError, match=r"data\.unknown-class.*violet"):
        run.evaluate(data=tmp_path)


def test_a_split_of_other_photos(run, tmp_path):
    for split, each in (("train", 3), ("test", 2)):
        for name, colour in COLOURS.items():
            for i in range(each):
                photo(tmp_path / split / name / f"{i}.jpg", colour, 700 + i + 10 * each)
    counts = {split: run.evaluate(split, data=tmp_path)["n"] for split in (None, "train", "test")}
    assert counts == {None: 15, "train": 9, "test": 6}


def test_photos_with_other_labels_than_the_runs(run, photos, capsys):
    """Other classes would be taken for those in the same places; other labels are judged."""
    named = [(name, i) for name in COLOURS for i in range(20)]

    def labelled(change):
        pixels = [np.asarray(Image.open(photos / name / f"{i}.jpg")) for name, i in named]
        return Run(run.path, load_data((pixels, [change(*each) for each in named])))

    renamed = labelled(lambda name, i: name.replace("blue", "z"))
    for ask in (renamed.evaluate, renamed.top_losses, renamed.label_errors):
        with pytest.raises(DataError, match=r"run\.data-changed.*green, red, z"):
            ask()
    console.setup()
    swapped = labelled(lambda name, i: {"red": "blue", "blue": "red"}.get(name, name))
    assert swapped.evaluate()["accuracy"] == pytest.approx(1 / 3)
    assert "not those of the run any more" in capsys.readouterr().err


def test_folders_of_photos_are_answered_as_training_reads_them(run, photos, tmp_path):
    (tmp_path / "linked").symlink_to(photos / "red")
    photo(tmp_path / ".hidden" / "0.jpg", (0, 0, 0), 0)
    alone = photo(tmp_path / "0.jpg", COLOURS["blue"], 7)
    found = run.predict(tmp_path, topk=1)
    assert [answer.path for answer in found][:2] == [str(alone), str(tmp_path / "linked/0.jpg")]
    assert [answer.top[0][0] for answer in found] == ["blue"] + ["red"] * 20
    assert len(run.predict([tmp_path, alone])) == 22


def test_a_broken_photo_for_the_check_of_an_export_is_named(run, photos, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes((photos / "red" / "0.jpg").read_bytes()[:300])
    with pytest.raises(DataError, match="truncated") as caught:
        run.export("savedmodel", images=[photos / "red" / "1.jpg", bad])
    assert caught.value.where == str(bad)
    for given in (str(bad), tmp_path):  # one alone, and the folder that it is in
        with pytest.raises(DataError, match="truncated") as caught:
            run.export("savedmodel", images=given)
        assert caught.value.where == str(bad)
    with pytest.raises(DataError, match=r"data\.not-found.*(\n.*)*give photos"):
        run.export("savedmodel", images=[tmp_path / "none.jpg"])


def test_an_export_of_no_format_is_a_savedmodel(run, photos, monkeypatch):
    written = []
    monkeypatch.setattr("dlzoo.export.export", lambda model, path, name, **_: written.append(path))
    assert list(run.export(images=photos / "red" / "0.jpg")) == ["savedmodel"]
    assert [path.name for path in written] == ["savedmodel"]


def test_what_was_written_is_told_beside_what_was_refused(run, photos, monkeypatch, capsys):
    def export(classifier, path, name, **_):
        if name == "keras":
            raise ExportError("export.parity", "too different")
        return {"path": str(path)}

    monkeypatch.setattr("dlzoo.export.export", export)
    console.setup()
    with pytest.raises(ExportError, match="too different"):
        run.export("keras", "tflite", images=[photos / "red" / "0.jpg"])
    assert "written all the same: " in (told := capsys.readouterr().err) and ".tflite" in told


def test_worst_and_confused_images_are_named(run):
    worst = run.top_losses(3)
    assert len(worst) == 3
    assert worst[0]["loss"] >= worst[1]["loss"] >= worst[2]["loss"]
    assert run.most_confused() == []


def test_the_program_of_a_run_solves_for_its_head_as_the_run_does(run):
    """Features that hardly move count for less than the others of their layer there, too."""
    tree = ast.parse(run.as_code())
    tree.body = [node for node in tree.body if getattr(node, "name", "") == "converge"]
    kept, parts = [], graph.joined(run.classifier.model)
    layer = SimpleNamespace(set_weights=kept.append)
    space = {"np": np, "tf": tf, "minimize": minimize,
             "loss": keras.losses.CategoricalCrossentropy(from_logits=True),
             "model": SimpleNamespace(get_layer=lambda name: layer)}  # fmt: skip
    exec(compile(tree, "program", "exec"), space)
    rng = np.random.default_rng(0)
    x, val_x = rng.normal(0, 1, (2, 60, sum(parts))).astype("float32")
    x[:, :5] *= 1e-4
    x[:, 5] = 3
    y, val_y = np.eye(3, dtype="float32")[rng.integers(0, 3, (2, 60))]
    space["converge"]((x, y), (val_x, val_y))
    ones = np.ones(60, "float32")
    wanted = probe.fit((x, y, ones), (val_x, val_y, ones), "multiclass", parts=parts).kernel
    np.testing.assert_allclose(kept[-1][0], wanted, atol=0.02 * np.abs(wanted).max())


@pytest.mark.full
def test_the_export_stands_alone(run, photos, tmp_path):
    figures = run.export("savedmodel")["savedmodel"]
    assert figures["passed"] and figures["max_difference"] < 1e-3
    script = """
import sys
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
answer = model.signatures["bytes"](image_bytes=tf.constant([open(sys.argv[2], "rb").read()]))
assert "dlzoo" not in sys.modules
print(answer["label"].numpy()[0].decode(), float(answer["probabilities"].numpy().max()))
"""
    path = photos / "green" / "3.jpg"
    done = subprocess.run(
        [sys.executable, "-c", script, figures["path"], str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    label, probability = done.stdout.split()
    top = run.predict(path)[0].top[0]
    assert label == top[0] == "green"
    assert float(probability) == pytest.approx(top[1], abs=1e-4)
    with pytest.raises(UsageError, match=r"export\.format"):
        run.export("tflight")


@pytest.mark.full
def test_exports_of_a_run_go_together(run):
    """One refused is no reason to leave the others out, and its error comes all the same."""
    done = run.export("keras", "tflite", quantize="int8", max_drop=50)
    assert [Path(figures["path"]).name for figures in done.values()] == [
        "model.keras",
        "model-int8.tflite",
    ]
    assert done["keras"]["quantize"] is None and done["tflite"]["accuracy"]["n"] == 6
    with pytest.raises(ExportError) as raised:
        run.export("tflite", "keras", tolerance=-1.0, batch=2)
    assert (raised.value.id, raised.value.exit_code) == ("export.parity", 8)
    folder = run.path / "export"
    known = json.loads((folder / "parity.json").read_text())
    passed = {name: figures["passed"] for name, figures in known.items() if name[0] == "m"}
    assert passed == {
        "model.keras": True,
        "model-int8.tflite": True,
        "model-batch2.tflite": False,
        "model-batch2.keras": False,
    }
    assert (folder / "model-batch2.keras.rejected").is_file()
    assert (folder / "use_tflite.py").is_file()


def test_missing_the_gate_keeps_the_run(photos, tmp_path):
    """Exit 9; and the settings of a run can be given back."""
    with pytest.raises(GateError) as raised:
        finetune(
            data=photos, out=str(tmp_path), fail_under=1.0, **{**FAST, "epochs": 1, "lr": 1e-9}
        )
    assert raised.value.exit_code == 9
    (kept,) = tmp_path.iterdir()
    assert load_run(kept).status == "finished"
    stages = tomllib.loads((kept / "plan.toml").read_text())["stages"]
    assert stages[0]["epochs"] == 1 and stages[0]["lr"] == 1e-9


@pytest.mark.full
def test_resuming_a_finished_run_finds_it(run, photos, capsys):
    """Fault 37."""
    asked = {**FAST, "out": str(run.path.parent), "resume": "auto", "quiet": False}
    wanted = {"export": ["tflite"], "quantize": "fp16"}
    again = finetune(data=photos, tta="on", **wanted, **asked)
    assert again.path == run.path
    assert len(list(run.path.parent.iterdir())) == 1
    told = capsys.readouterr().err
    path = run.path / "export" / "model-fp16.tflite"  # it had none
    assert f"exported {path}\n" in told
    assert "it keeps its own tta; another run of it: dlzoo ensemble" in told


@pytest.mark.full
def test_what_one_run_decides_of_the_data_is_not_for_the_next(photos, tmp_path):
    data = load_data(photos)
    asked = {"out": str(tmp_path), **FAST, "size": 32, "epochs": 1}
    plain = finetune("lenet5", data, weights="none", flip="off", **asked)
    assert data.flip and plain.classifier.origin["flip"] is False
    with pytest.raises(ModelError, match=r"model\.never-mirrored"):  # before it trains
        finetune("lenet5", data, weights="none", flip="off", tta="on", **asked)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_run_of_loaded_photos_finds_them_again_in_its_splits(photos, tmp_path):
    data = load_data(photos, seed=5, val_split=0.2, ignore_classes=("red",))
    asked = {"out": str(tmp_path), "weights": "none", **FAST, "size": 32, "epochs": 1}
    with pytest.raises(UsageError, match=r"usage\.data.*val_split= comes too late"):
        finetune("lenet5", data, val_split=0.3, **asked)
    data.flip = False
    run = finetune("lenet5", data, **asked)
    again = load_run(run.path)
    assert again.data.fingerprint == data.fingerprint and not again.data.flip
    assert again.evaluate()["accuracy"] == run.metrics["test"]["accuracy"]
    assert str(photos) in again.as_code()
    assert resume(run.path).path == run.path
    assert finetune("lenet5", data, resume="auto", **asked).path == run.path
    given = load_run(run.path, data)
    assert given.data is data
    run.directory.record(status="interrupted")
    moved = run.path.rename(tmp_path / "elsewhere")
    assert resume(moved).data.fingerprint == data.fingerprint


def test_resuming_under_other_settings_or_photos_is_refused(photos, tmp_path):
    """Faults 16 and 35."""
    few = {**FAST, "epochs": 1, "out": str(tmp_path), "name": "mine"}
    finetune(data=photos, **few)
    with pytest.raises(ResourceError, match=r"run\.exists"):
        finetune(data=photos, **few)
    with pytest.raises(ResumeError, match=r"resume\.config-changed.*lr"):
        finetune(data=photos, resume="auto", lr=0.5, **few)
    with pytest.raises(ResumeError, match=r"resume\.config-changed|resume\.data-changed"):
        finetune(data=photos, resume="auto", **few, seed=3)


@pytest.mark.full
def test_pain_35_a_file_put_where_the_error_said_is_used(photos, tmp_path, monkeypatch):
    """The way out of fault 19: VGG16's published file, brought by hand, and offline."""
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))
    variant, row = zoo.resolve("vgg16", True)
    file = weights.place(row)
    file.parent.mkdir(parents=True)
    reference = keras.applications.VGG16(weights=None)
    write(reference, file)
    mine = replace(row, md5=hashlib.md5(file.read_bytes()).hexdigest())
    changed = replace(variant, weights=(mine, *variant.weights[1:]))
    monkeypatch.setitem(registry._VARIANTS, "vgg16", changed)
    settings = {"size": 32, "preset": "fast", "epochs": 1, "quiet": True, "report": False}
    settings["offline"] = True
    run = finetune("vgg16", photos, out=str(tmp_path / "runs"), **settings)
    monkeypatch.delenv("DLZOO_OFFLINE", raising=False)
    layer = "block5_conv3"  # frozen by this preset, so it is still the file's
    np.testing.assert_array_equal(
        run.classifier.model.get_layer(layer).kernel, reference.get_layer(layer).kernel
    )
    first = np.asarray(reference.get_layer("block1_conv1").kernel)[:, :, ::-1]  # BGR to RGB
    np.testing.assert_array_equal(run.classifier.model.get_layer("block1_conv1").kernel, first)
    assert run.metrics["test"]["n"] == 6


@pytest.mark.full
def test_a_network_is_trained_from_scratch(photos, tmp_path):
    """--weights none, with a net that has no pretrained weights and keeps its own head."""
    settings = {**FAST, "size": "auto", "epochs": 3, "weights": "none"}
    run = finetune("lenet5", photos, out=str(tmp_path), **settings)
    assert run.metrics["test"]["n"] == 6
    assert [row["name"] for row in run.metrics["stages"]] == ["all"]
    with pytest.raises(UsageError, match=r"model\.no-weights"):
        finetune("lenet5", photos, out=str(tmp_path), quiet=True)


def test_what_is_wrong_with_the_model_is_said_before_a_run_is_made(photos, tmp_path):
    for settings in ({"weights": "nowhere.h5"}, {"taps": ["C9"]}, {"stages": "head:1,C8:1"}):
        with pytest.raises((ModelError, UsageError)):
            finetune(
                data=photos, out=str(tmp_path / "runs"), **{**FAST, "epochs": "auto"} | settings
            )
        assert not (tmp_path / "runs").exists()


@pytest.mark.full
def test_arrays_and_two_classes(tmp_path):
    """A binary task has one logit; data in memory cannot be had again from the run alone."""
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = rng.integers(0, 80, (40, 48, 48, 3)).astype("uint8")
    x[y == 1, :, :, 0] += 150
    data = load_data((x, y), classes=("dark", "red"))
    run = finetune(data=data, out=str(tmp_path), **{**FAST, "epochs": 20})
    assert run.classifier.task == "binary"
    assert run.classifier.model.output_shape == (None, 1)
    assert run.metrics["test"]["accuracy"] == 1.0
    with pytest.raises(DataError, match=r"run\.no-data"):
        load_run(run.path).evaluate()


def test_a_dry_run_writes_nothing_and_draws_nothing(photos, tmp_path):
    drawn = np.random.get_state()[1].tolist()
    found = finetune(data=photos, out=str(tmp_path / "runs"), dry_run=True, **FAST)
    assert not (tmp_path / "runs").exists()
    assert found["stages"][0]["name"] == "head" and found["data"]["images"] == 60
    assert np.random.get_state()[1].tolist() == drawn
    with pytest.raises(UsageError, match=r"run\.not-found"):
        finetune(data=photos, dry_run=True, teacher=str(tmp_path), **FAST)


@pytest.mark.parametrize("given", ["weights", "teacher"])
def test_photos_that_an_earlier_run_was_trained_on_judge_no_later_one_unnoticed(
    run, photos, tmp_path, monkeypatch, capsys, given
):
    from dlzoo.config import resolve
    from dlzoo.job import Job
    from dlzoo.transfer import distil, fit
    from dlzoo.transfer.classifier import Classifier

    monkeypatch.setattr(fit, "train", lambda *given, **more: SimpleNamespace(interrupted=None))
    monkeypatch.setattr(distil, "teach", lambda *given: None)
    monkeypatch.setattr(Classifier, "load", lambda directory: None)
    console.setup(quiet=False)

    def told(**settings):
        config = resolve({given: str(run.path), **settings}).config
        job = Job(config, load_data(photos, **config.of_data()))
        job.load_data()
        job.model, job.plan, job.rule = None, SimpleNamespace(temperature=2.0), None
        job.train(RunDir(tmp_path), resume=False)
        return capsys.readouterr().err, job.data

    err, data = told(seed=1)
    trained = {r.sha256 for r in run.data.records("train")}
    seen = sum(r.sha256 in trained for r in data.records("test"))
    assert seen and "train.photos-seen" in err and f"{seen} of 6 test photos" in err
    err, _ = told(seed=1, split_file=run.path / "data_manifest.csv")
    assert "photos-seen" not in err


@pytest.mark.parametrize(
    ("seconds", "told"), [(59.4, "59 s"), (326, "5 min 26 s"), (3900.2, "1 h 5 min")]
)
def test_the_time_of_a_run_is_told_as_in_its_report(seconds, told, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    found = {"test": None, "stages": [], "seconds": seconds}
    (tmp_path / "metrics.json").write_text(json.dumps(found))
    assert f"no test photos  {told}\n" in load_run(tmp_path).summary()


def test_a_manifest_may_name_photos_in_no_unicode(photos, tmp_path):
    from dlzoo import resuming
    from dlzoo.config import FinetuneConfig
    from dlzoo.job import Job

    job, directory = Job(FinetuneConfig(), None), RunDir(tmp_path)
    job.data = load_data(photos)
    job.data.records("train")[0].key = os.fsdecode(b"caf\xe9.jpg")
    job.data.write_manifest(directory.manifest)
    assert resuming.changed_rows(job.data, directory) == (0, 0)
    job.tell_of_photos_seen(directory)


def test_a_run_without_network_forbids_none_to_the_next(photos, monkeypatch):
    from dlzoo import job as steps
    from dlzoo.config import FinetuneConfig

    seen = []

    def load(source, **settings):
        seen.append(weights.is_offline())
        return load_data(source)

    monkeypatch.setattr(steps, "load_data", load)
    for offline in (True, False):
        steps.Job(FinetuneConfig(offline=offline), photos).load_data()
    assert seen == [True, False] and not weights.is_offline()


def test_importing_dlzoo_loads_no_tensorflow():
    code = "import sys, dlzoo; print({'tensorflow', 'keras', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("time", "augment", "views"),
    [
        ("1s", "light", [3]),
        pytest.param("15s", "light", [3], marks=pytest.mark.full),
        pytest.param("250s", "light", [6, 6], marks=pytest.mark.full),
        ("150s", "light", [3, 3]),
        ("9h", "medium", [6, 6]),
    ],
)
def test_the_best_preset_that_fits_is_taken(
    photos, monkeypatch, capsys, tmp_path, time, augment, views
):
    """Whole, or with half of the epochs and views; of so few photos there are six."""
    from dlzoo import console
    from dlzoo.config import resolve
    from dlzoo.job import Job
    from dlzoo.transfer import estimate

    console.setup(quiet=False)
    seconds = {(1, "light"): 20.0, (2, "light"): 200.0, (2, "medium"): 2000.0}

    def needed(rates, frozen, plan, use_cache):
        return seconds[len(plan.stages), plan.augment] * plan.stages[-1].views / 6

    monkeypatch.setattr(estimate, "rates", lambda frozen, places: None)
    monkeypatch.setattr(estimate, "plan", needed)
    job = Job(resolve({"time": time, "size": 64, "data": str(photos)}).config, str(photos))
    job.find_model()
    job.load_data()
    job.build()
    assert [stage.views for stage in job.plan.stages] == views
    assert job.plan.augment == augment
    told = capsys.readouterr().err
    assert ("is the shortest there is" in told) == (time == "1s")
    # it is that preset which is named, also by a run that goes on
    taken = told.split("preset ")[1].split()[0]
    with RunDir.create(tmp_path, None, "run") as directory:
        job.write_inputs(directory)
        job.header(directory)
    assert f"plan {taken}: " in capsys.readouterr().err
    again = Job(job.config, job.data)
    again.find_model()
    again.load_data()
    again.build(directory)
    assert again.preset == taken
    # nor do its first weights depend on how many presets were tried
    for one, other in zip(job.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert compare(directory.path)["runs"][0]["preset"] == taken
