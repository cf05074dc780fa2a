"""The program that a run gives of itself trains as the run did, with plain Keras."""

import csv
import json
import re
import runpy
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import keras
import numpy as np
import pytest
from dlzoo import ensemble, finetune, load_run
from dlzoo.errors import DataError, UsageError
from dlzoo.report import code
from dlzoo.transfer.plan import Plan, Stage
from photos import coloured
from PIL import Image

NAMES = ("=blue's", 'green "x"', "red")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for i, (pixels, label) in enumerate(zip(*coloured(90), strict=True)):
        (root / NAMES[label]).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / NAMES[label] / f"{i:02d}.png")
    return root


def execute(run, tmp_path, monkeypatch, capsys):
    """Run the program of a run; return the accuracy it prints, and the model it saves."""
    program, saved = tmp_path / "program.py", tmp_path / "net.keras"
    program.write_text(run.as_code(), "utf-8")
    monkeypatch.setattr(sys, "argv", [str(program), str(saved)])
    policy = keras.config.dtype_policy()
    try:
        runpy.run_path(str(program), run_name="__main__")
    finally:
        keras.config.set_dtype_policy(policy)
    told = capsys.readouterr().out
    return float(told.rsplit("test accuracy ", 1)[1].split()[0]), keras.saving.load_model(saved)


def settings(tmp_path, **more):
    return {"out": str(tmp_path / "runs"), "quiet": True, "report": False, **more}


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    asked = settings(tmp_path_factory.mktemp("run"), weights="none", epochs=4, lr=0.01, batch=16)
    return finetune("lenet5", folder, test_split=0.2, **asked)


@pytest.mark.full
def test_a_net_from_scratch_is_trained_again(run, tmp_path, monkeypatch, capsys):
    accuracy, model = execute(run, tmp_path, monkeypatch, capsys)
    assert run.metrics["test"]["accuracy"] == accuracy == 1.0
    images, labels = coloured(30)
    size = run.classifier.preprocess.size
    small = np.stack([np.asarray(Image.fromarray(i).resize((size, size))) for i in images])
    found = model.predict_on_batch(small.astype("float32")).argmax(1)
    assert (found == [sorted(NAMES).index(NAMES[i]) for i in labels]).mean() > 0.9


def test_the_program_of_a_finished_run_goes_where_it_is_asked_to(run, tmp_path, call):
    done, out, _ = call("report", run.path, "--code", "-")
    assert done == 0 and out == run.as_code() and "LEFT OUT" not in out
    path = tmp_path / "p.py"
    assert call("report", run.path, "--code", path)[1].strip() == str(path)
    assert path.read_text("utf-8") == out
    shutil.copytree(run.path, tmp_path / "stopped")
    (tmp_path / "stopped" / "metrics.json").unlink()
    with pytest.raises(UsageError, match="not come to its end"):
        load_run(tmp_path / "stopped").as_code()


def test_an_ensemble_finds_its_members_wherever_it_has_gone(run, tmp_path):
    """A program asked for in another folder than the one it was trained from, or of a moved run."""
    moved = tmp_path / "moved"
    for name in ("", "members/1", "members/2"):
        shutil.copytree(run.path, moved / name, dirs_exist_ok=True)
    told = {"average": "logits", "members": [{"run": f"runs/both/members/{i}"} for i in (1, 2)]}
    (moved / "metrics.json").write_text(json.dumps(run.metrics | {"ensemble": told}))
    again = load_run(moved)
    again.__dict__["classifier"] = run.classifier  # which takes a while to load
    text = again.as_code()
    assert f"this is the first; the others: {moved / 'members' / '2'}" in text


def test_one_run_with_its_mirror_images_is_the_program_of_that_run(run, tmp_path):
    """Also as a member of another ensemble."""
    mirrored = ensemble(run, tta="on", **settings(tmp_path))
    text, answers = mirrored.as_code(), "for photos and their mirror images, as logits"
    assert "LEFT OUT" not in text and answers in text and answers not in run.as_code()
    several = Path(shutil.copytree(mirrored.path, tmp_path / "several"))
    members = [{"run": str(each.path)} for each in (mirrored, run)]
    told = {"average": "logits", "members": members}
    (several / "metrics.json").write_text(json.dumps(mirrored.metrics | {"ensemble": told}))
    left_out = (
        "\nLEFT OUT: the average of the logits of 2 models and of mirror images: "
        f"this is the first; the others: {run.path}.\n"
    )
    code = load_run(several).as_code()
    assert left_out in code and code.replace(left_out, "") == text


@pytest.mark.full
def test_what_a_program_leaves_out_is_said_at_its_top(tmp_path, folder):
    asked = settings(tmp_path, weights="none", epochs=1)
    both = finetune("mlp", folder, ensemble=2, **asked)
    first, second = (both.path / "members" / name for name in "12")
    code = both.as_code()
    assert f"LEFT OUT: the average of the {both.metrics['ensemble']['average']} of 2" in code
    assert str(second) in code.split('"""')[1]
    assert code.split('"""')[2] == load_run(first).as_code().split('"""')[2]
    taught = finetune("mlp", folder, teacher=str(first), **asked)
    assert f"LEFT OUT: what its teacher answered ({first})" in taught.as_code()


@pytest.mark.full
def test_of_data_in_memory_there_is_no_program(tmp_path):
    run = finetune("mlp", coloured(60), **settings(tmp_path, weights="none", epochs=1))
    with pytest.raises(DataError) as caught:
        load_run(run.path).as_code()
    assert caught.value.id == "run.no-data"


def test_every_field_of_a_plan_is_in_a_program_or_said_to_be_left_out():
    """A field that comes later is told here: see docs/ARCHITECTURE.md."""
    ours = Path(code.__file__)
    text = ours.read_text("utf-8") + ours.with_name(code.TEMPLATE).read_text("utf-8")
    of_model = {"size", "crop", "taps", "pool", "dropout"}  # known by how the model was built
    asked = {
        "plan": {f.name for f in fields(Plan)} - of_model,
        "stage": {f.name for f in fields(Stage)},
    }
    for what, names in asked.items():
        told = set(re.findall(rf"\b(?:{what}|plain)\b[.\[]\"?(\w+)", text))
        assert names <= told, names - told


PRETRAINED = {"size": 96, "backbone": "efficientnet_lite0", "test_split": 0.2}
ALL = {
    "preset fast": {"preset": "fast", **PRETRAINED},
    "preset balanced": {"preset": "balanced", **PRETRAINED},
    "by accuracy": {"preset": "balanced", "monitor": "val_acc", **PRETRAINED},
    "a head by steps, then all": {
        "stages": "head:6,all:2", "optimizer": "nesterov", "lr": 0.001, "schedule": "plateau",
        "class_weight": "balanced", "l2": 1e-5, **PRETRAINED,
    },
    "much of everything": {
        "backbone": "lenet5", "weights": "none", "epochs": 12, "lr": 0.003, "augment": "medium",
        "mixup": 0.1, "schedule": "onecycle", "optimizer": "adam", "label_smoothing": 0.05,
        "class_weight": "balanced", "test_split": 0.2,
    },
    "averaged and cut": {
        "backbone": "lenet5", "weights": "none", "epochs": 12, "lr": 0.003, "cutmix": 0.3,
        "mixup": 0.1, "ema": 0.9, "tta": "on", "test_split": 0.2,
    },
    "a rectangle of another, from a cut on": {
        "preset": "balanced", "cutmix": 0.5, "ema": 0.8, "epochs": 5, "taps": ["C5"], **PRETRAINED
    },
    "strongly varied": {
        "backbone": "lenet5", "weights": "none", "epochs": 12, "lr": 0.003, "augment": "strong",
        "schedule": "constant", "test_split": 0.2,
    },
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("what", ALL)
def test_every_kind_of_plan_comes_to_about_the_same(what, folder, tmp_path, monkeypatch, capsys):
    run = finetune(data=folder, **settings(tmp_path, **ALL[what]))
    accuracy, _ = execute(run, tmp_path, monkeypatch, capsys)
    assert run.metrics["test"]["accuracy"] >= 0.9 and accuracy >= 0.9


@pytest.mark.full
@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_other_tasks_come_to_about_the_same(task, folder, tmp_path, monkeypatch, capsys):
    rows = []
    for path in sorted(folder.rglob("*.png")):
        name = NAMES.index(path.parent.name)
        labels = {
            "binary": ["no", "yes"][name == 2],
            "multilabel": "red|warm" if name == 2 else "cold",
        }
        rows.append((path, labels[task]))
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    run = finetune(
        data=tmp_path / "table.csv", task=task, **settings(tmp_path, preset="fast", **PRETRAINED)
    )
    accuracy, _ = execute(run, tmp_path, monkeypatch, capsys)
    assert run.metrics["test"]["accuracy"] >= 0.9 and accuracy >= 0.9
