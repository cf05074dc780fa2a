"""lr-find and compare: what they measure, print, draw, and that they keep nothing."""

import csv
import json
from types import SimpleNamespace

import dlzoo
import keras
import numpy as np
import pytest
from dlzoo import create_model, explore, load_data, starts
from dlzoo.errors import DivergedError, UsageError
from dlzoo.rundir import RunDir
from dlzoo.transfer import cache, engine, shelf
from dlzoo.transfer.plan import TOP
from dlzoo.zoo import graph
from photos import coloured
from PIL import Image

SIZE = 32
SCRATCH = "vgg11"
LITE = "efficientnet_lite0"  # its weights come from pip
SMALL = {"size": SIZE, "quiet": True, "offline": True}


@pytest.fixture(scope="module")
def data():
    """48 images in three classes that differ in colour."""
    return load_data(coloured(48), val_split=0.25, test_split=0.125)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path, monkeypatch):
    """Run in an empty folder, which must be empty but for pictures in the end."""
    monkeypatch.chdir(tmp_path)
    yield
    assert {path.suffix for path in tmp_path.iterdir()} <= {".png", ".csv", ".h5", ""}
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def quick(monkeypatch):
    """Measure no latency."""
    monkeypatch.setattr(explore, "latency", lambda model, batch: (2.5, "litert"))


@pytest.fixture
def computed(monkeypatch):
    """Record how many images go through frozen layers."""
    seen, compute = [], cache.Frozen._compute

    def record(self, shelves, split, ids, rows, view, work):
        seen.append((split, sorted(shelves), len(rows)))
        compute(self, shelves, split, ids, rows, view, work)

    monkeypatch.setattr(cache.Frozen, "_compute", record)
    return seen


@pytest.mark.full
def test_the_first_stage_with_a_rate_is_tried_on_the_cache(data, computed):
    """`balanced` trains C5 after the head: on activations of C4, computed once."""
    found = dlzoo.lr_find(LITE, data, steps=40, batch=12, **SMALL)
    assert (found["stage"], found["cut"], found["trains"]) == ("C5", "C4", ["C5", "head"])
    assert found["preset"] == TOP.lr and found["optimizer"] == "adamw" and found["batch"] == 12
    assert found["lr"] == min(found["steepest"], found["tenth"])
    assert found["rows"][0]["lr"] == pytest.approx(1e-6)
    assert found["rows"][0]["loss"] > 0.7 * np.log(3)  # the head is new
    assert computed == [("train", ["C4"], 30)]
    computed.clear()
    again = dlzoo.lr_find(LITE, data, steps=40, batch=12, **SMALL)
    assert not computed
    assert again["rows"] == found["rows"]


@pytest.mark.full
def test_a_head_that_is_fitted_without_a_rate_is_tried_by_steps(data):
    found = dlzoo.lr_find(LITE, data, preset="fast", steps=30, **SMALL)
    assert (found["stage"], found["cut"], found["preset"]) == ("head", "features", None)
    assert found["rows"][0]["loss"] > 0.9 * np.log(3)  # from the start
    assert 1e-5 < found["lr"] < 0.3


def test_what_is_in_the_cache_takes_no_room_of_other_activations(data, monkeypatch, tmp_path):
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))
    model = create_model(SCRATCH, num_classes=3, input_shape=SIZE, pool="avg")
    rule = graph.built(model).preprocess
    job = SimpleNamespace(model=model, data=data, rule=rule, variant=SimpleNamespace(name=SCRATCH))
    for place in ("C5", "features"):
        explore._activations(job, {"train": [place]})
    kept = {entry["place"]: entry["bytes"] for entry in shelf.entries()}
    assert set(kept) == {"C5", "features"}
    monkeypatch.setenv("DLZOO_CACHE_LIMIT", str(sum(kept.values())))
    explore._activations(job, {"train": ["features"]})
    assert {entry["place"] for entry in shelf.entries()} == set(kept)


def test_a_network_without_weights_is_tried_live(data, tmp_path):
    found = dlzoo.lr_find(
        "lenet5", data, weights="none", steps=25, batch=16, plot=tmp_path / "lr.png", **SMALL
    )
    assert found["stage"] == "all" and found["cut"] is None
    assert Image.open(tmp_path / "lr.png").size[0] > 300


@pytest.mark.full
def test_images_are_mixed_as_in_training_also_where_all_layers_train(data):
    options = {"weights": "none", "steps": 20, "batch": 16, **SMALL}
    plain, *mixed = (dlzoo.lr_find("lenet5", data, **options, **how)["rows"]
                     for how in ({}, {"mixup": 0.4}, {"cutmix": 1.0}))  # fmt: skip
    assert all(rows[0]["loss"] != plain[0]["loss"] for rows in mixed)


def test_a_stage_is_one_stage(data):
    with pytest.raises(UsageError) as error:
        dlzoo.lr_find("lenet5", data, weights="none", stage="head,all", **SMALL)
    assert error.value.id == "plan.stages"


def test_a_loss_that_never_falls_is_said(data):
    with pytest.raises(DivergedError) as error:
        dlzoo.lr_find("lenet5", data, weights="none", low=50, high=1e4, steps=12, **SMALL)
    assert error.value.id == "train.no-rate" and error.value.exit_code == 6


def test_lr_find_prints_a_table_or_json(call, monkeypatch):
    rows = [{"step": i, "lr": 10.0**-i, "loss": 1.0, "smooth": 1.0} for i in range(40)]
    given = {}

    def lr_find(**options):
        given.update(options)
        return {
            "lr": 1e-3, "steepest": 2e-3, "tenth": 1e-3, "preset": None, "stage": "C5",
            "optimizer": "adamw", "rows": rows,
        }  # fmt: skip

    monkeypatch.setattr(explore, "lr_find", lr_find)
    code, out, _ = call("lr-find", "--data", "digits", "--stage", "C5", "--size", "96")
    assert code == 0 and len(out.splitlines()) == 14
    assert out.splitlines()[-1].startswith("suggestion: lr 1.0e-03 for stage C5 with adamw")
    assert given["stage"] == "C5" and given["config"].size == 96 and given["data"] == "digits"
    code, out, _ = call("lr-find", "--data", "digits", "--json")
    assert json.loads(out)["lr"] == 1e-3


def test_backbones_are_measured_and_those_not_here_are_rows(data, quick, computed, tmp_path):
    names = f"resnet50,{LITE},lenet5"
    plot = tmp_path / "backbones.png"
    found = dlzoo.compare(backbones=names, data=data, plot=plot, **SMALL)["backbones"]
    assert [row["backbone"] for row in found] == [LITE, "resnet50", "lenet5"]
    best, offline, bare = found
    assert best["val_accuracy"] == best["test_accuracy"] == 1.0 and best["error"] is None
    assert best["size"] == SIZE and best["ms_one"] == 2.5 and best["engine"] == "litert"
    assert 3.3e6 < best["params"] < 4.7e6 and 0 < best["gmacs"] < 0.02
    assert offline["error"].startswith("model.offline") and "no-weights" in bare["error"]
    assert Image.open(plot).size[0] > 300
    computed.clear()
    again = dlzoo.compare(backbones=[LITE], data=data, **SMALL)["backbones"]
    assert not computed and again[0]["val_accuracy"] == 1.0


def test_if_no_backbone_can_be_had_that_is_an_error(call):
    code, out, err = call(
        "compare", "--backbones", "resnet50,vgg16", "--data", "digits", "--offline"
    )
    assert code == 4 and not out
    assert "compare.none" in err and "resnet50: model.offline" in err and "vgg16: " in err


def test_an_unknown_backbone_is_said_at_once(call):
    code, _, err = call("compare", "--backbones", f"{LITE},vgg61", "--data", "nowhere")
    assert code == 2 and "did you mean 'vgg16'?" in err


def test_backbones_are_printed(call, monkeypatch, data):
    row = {
        "backbone": LITE, "size": 224, "val_accuracy": 0.94, "val_ci": [0.91, 0.96],
        "test_accuracy": None, "test_ci": None, "params": 3.4e6, "gmacs": 0.39, "ms_one": 9.0,
        "ms_batch": 8.0, "engine": "litert", "seconds": 12.0, "error": None,
    }  # fmt: skip
    missing = {"backbone": "resnet50", "error": "model.offline: not here"}
    answer = {"backbones": [row, missing]}
    monkeypatch.setattr(explore, "compare_backbones", lambda *a, **k: answer)
    code, out, _ = call("compare", "--backbones", "a,b", "--data", "digits")
    assert code == 0
    assert "94.0% (91.0-96.0)" in out and "3.4M" in out and "model.offline: not here" in out
    _, out, _ = call("compare", "--backbones", "a,b", "--data", "digits", "--json")
    assert json.loads(out) == answer


@pytest.mark.parametrize("batch", [1, 32])
def test_latency_is_measured_on_an_engine(monkeypatch, batch):
    """Which computes one image alone, not in a chunk of several."""
    real, computed = engine._litert, set()

    def noting(forward):
        computed.add(forward.inputs[0].shape[0])
        return real(forward)

    monkeypatch.setattr(engine, "_litert", noting)
    monkeypatch.setattr(engine, "on_gpu", lambda: False)
    monkeypatch.setattr(explore, "SECONDS", 0.01)
    model = create_model("lenet5", num_classes=3, weights=None, input_shape=32)
    milliseconds, name = explore.latency(model, batch)
    assert 0 < milliseconds < 1000 and name == "litert"
    assert len(computed) == 1 and max(computed) <= batch


@pytest.fixture
def runs(tmp_path_factory):
    """Give two finished runs that differ in their learning rate, and one that was stopped."""
    out, made = tmp_path_factory.mktemp("made"), []
    for i, lr in enumerate((1e-3, 2e-3, 1e-3)):
        run = RunDir.create(out, f"r{i}", "x")
        run.config.write_text(f'backbone = "{LITE}"\npreset = "fast"\nlr = {lr}\nseed = 0\n')
        run.record(model=LITE, data="abc", status="finished" if i < 2 else "interrupted")
        if i < 2:
            part = {"accuracy": 0.9 + i / 100, "accuracy_ci": [0.8, 0.95]}
            figures = {"val": part, "test": None, "epochs": 7, "seconds": 3.5}
            run.metrics.write_text(json.dumps(figures))
        made.append(run.path)
    return made


def test_runs_are_set_side_by_side(runs, call):
    found = dlzoo.compare(*runs)
    assert [row["val_accuracy"] for row in found["runs"]] == [0.9, 0.91, None]
    assert [row["settings"] for row in found["runs"]] == [{"lr": x} for x in (1e-3, 2e-3, 1e-3)]
    assert found["same_data"]
    RunDir(runs[0]).record(data="other")
    code, out, err = call("compare", *runs)
    assert code == 0 and "do not compare" in err
    assert "91.0% (80.0-95.0)" in out and "(interrupted)" in out
    assert out.splitlines()[0].split()[-1] == "lr"
    assert call("compare", "nowhere")[0] == 2


@pytest.mark.parametrize(
    "argv", [[], ["r", "--init", "none,imagenet"], ["r", "s", "--plot", "of_runs.png"]]
)
def test_one_thing_is_compared(call, argv):
    code, _, err = call("compare", *argv)
    assert code == 2 and "usage.compare" in err


@pytest.mark.full
def test_first_weights_are_compared_with_all_else_the_same(data, tmp_path):
    """A file of the very weights that the same seed gives: both curves are one."""
    keras.utils.set_random_seed(0)
    model = create_model(SCRATCH, num_classes=3, input_shape=SIZE, pool="avg", taps=("C4", "C5"))
    file = tmp_path / "first.weights.h5"
    model.save_weights(file)
    plot = tmp_path / "chart.png"
    options = {"epochs": 2, "images": 24, "batch": 8, "lr": 1e-4, "plot": plot}
    inits = ["none", str(file)]
    found = dlzoo.compare(init=inits, data=data, backbone=SCRATCH, **options, **SMALL)
    assert found["images"] == {"train": 24, "val": 6} and found["size"] == SIZE
    first, second = (found["curves"][name] for name in inits)
    assert first["accuracy"] == second["accuracy"] and len(first["accuracy"]) == 3
    assert first["start"] == first["accuracy"][1]
    assert found["higher"] == {"start": None, "slope": None, "asymptote": None}
    with plot.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    assert [float(row["none"]) for row in rows] == first["accuracy"]
    assert Image.open(plot).size[0] > 300


def test_who_is_higher_is_told_without_ties():
    curves = {"a": {"start": 0.5, "slope": 0.1}, "b": {"start": 0.5, "slope": 0.2}}
    assert starts._highest(curves, "start") is None
    assert starts._highest(curves, "slope") == "b"
