"""What goes wrong in training and on the way back into it, by the numbers of the fault table.

Kills, torn checkpoints, full disks and signals (28 to 32) have tests in tests/resume, too.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo import finetune, load_data, load_run, resume
from dlzoo.job import Job
from dlzoo.rundir import RunDir
from photos import coloured, folder

SMALL = {
    "backbone": "lenet5",
    "weights": "none",
    "epochs": 2,
    "batch": 8,
    "quiet": True,
    "report": False,
}


def too_large(monkeypatch, limit: int) -> list[int]:
    """Let TensorFlow run out of memory for batches above a limit; return those that were tried."""
    fit, tried = keras.Model.fit, []

    def limited(self, data, *args, **kwargs):
        size = int(next(iter(data))[0].shape[0])
        tried.append(size)
        if size > limit:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return fit(self, data, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "fit", limited)
    return tried


def test_fault_25_out_of_memory_halves_the_batch_and_keeps_the_step(tmp_path, monkeypatch, seen):
    """The network has no BatchNorm, so steps of twice 8 images are those of 16."""
    alike = {
        "lr": 0.05, "optimizer": "sgd", "schedule": "constant", "augment": "none", "dropout": 0.0,
        "stages": [{"name": "all", "unfreeze": "all", "epochs": 2, "batch": 16}],
    }  # fmt: skip
    settings = {k: v for k, v in SMALL.items() if k not in ("epochs", "batch")} | alike
    plain = finetune(data=coloured(60), out=str(tmp_path / "plain"), **settings)
    tried = too_large(monkeypatch, 8)
    halved = finetune(data=coloured(60), out=str(tmp_path / "halved"), **settings)
    assert tried == [16, 8]
    assert [s["batch"] for s in plain.metrics["stages"]] == [16]
    assert [s["batch"] for s in halved.metrics["stages"]] == [8]
    told = (halved.path / "log.txt").read_text().splitlines()
    seen(next(x for x in told if x.startswith("out of memory with a batch of 16: two of 8")))
    for one, other in zip(
        plain.classifier.model.get_weights(), halved.classifier.model.get_weights(), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.full
def test_fault_25_not_for_ever(tmp_path, monkeypatch, raises):
    tried = too_large(monkeypatch, 0)
    with raises("resource.oom", 5):
        finetune(data=coloured(60), out=str(tmp_path), **{**SMALL, "batch": "auto"})
    assert len(tried) == 4 and tried[0] == 8 * tried[-1]


def test_fault_26_out_of_memory_with_a_batch_of_the_users(tmp_path, monkeypatch, raises):
    too_large(monkeypatch, 4)
    with raises("resource.oom", 5) as caught:
        finetune(data=coloured(60), out=str(tmp_path), **SMALL)
    assert "batch of 8" in caught.value.message and "--batch 4" in caught.value.hint


def test_fault_27_a_loss_that_is_no_number_stops_with_the_names_of_the_images(tmp_path, raises):
    with raises("train.diverged", 6) as caught:
        finetune(data=coloured(60), out=str(tmp_path), lr=1e30, optimizer="sgd", **SMALL)
    assert "loss is" in caught.value.message and "try --lr" in caught.value.hint
    names = caught.value.where.split(", ")
    assert names[0].startswith("image/") and names[-1].endswith("and 3 more")
    (path,) = tmp_path.glob("lenet5-*")
    assert load_run(path).status == "failed"


@pytest.mark.full
def test_fault_27_a_loss_that_stays_at_chance_stops(tmp_path, raises):
    rng = np.random.default_rng(1)
    data = rng.integers(127, 129, (60, 32, 32, 3), "uint8"), np.arange(60) % 3
    settings = {**SMALL, "patience": 30, "epochs": 30, "batch": 32, "lr": 1e-3, "augment": "none"}
    with raises("train.diverged", 6) as caught:
        finetune(data=data, out=str(tmp_path), **settings)
    assert "no better than chance for 3 epochs" in caught.value.message


def test_fault_15_a_photo_that_vanishes_in_training_keeps_what_was_trained(tmp_path, raises):
    """The checkpoint is of the step before; with the photo back, the run goes on to its end."""
    from PIL import Image

    for i, (x, y) in enumerate(zip(*coloured(60), strict=True)):
        (folder := tmp_path / "photos" / "rgb"[y]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(folder / f"{i}.png")
    settings = {**SMALL, "out": str(tmp_path), "name": "run", "data": str(tmp_path / "photos")}
    read, reads = Path.read_bytes, []

    def vanishing(path):
        reads.append(path)
        if path.suffix == ".png" and len(reads) > 60 + 30:  # scanned, then half an epoch
            raise FileNotFoundError(2, "No such file or directory")
        return read(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", vanishing)
        with raises("data.vanished", 75):
            finetune(**settings)
    saved = max((tmp_path / "run" / "ckpt").iterdir())  # a slow machine writes more than one
    assert 1 <= int(saved.name[5:]) <= 6
    assert finetune(**settings, resume="auto").status == "finished"


def interrupt(monkeypatch, **settings):
    """Return the settings of a run of four epochs that a signal has ended after its first."""
    from dlzoo.callbacks import History

    settings = {**SMALL, "name": "run", "epochs": 4, **settings}
    real = History.epoch_done

    def signalled(self, epoch, logs):
        real(self, epoch, logs)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(History, "epoch_done", signalled)
        with pytest.raises(Exception, match=r"train\.interrupted"):
            finetune(**settings)
    return settings


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """Give the settings of a run on images in memory that a signal has ended."""
    return interrupt(monkeypatch, data=coloured(60), out=str(tmp_path))


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_fault_16_changed_data_is_counted(tmp_path, interrupted, raises):
    x, y = interrupted["data"]
    x = x.copy()
    x[5] = 255 - x[5]
    before = files(tmp_path / "run")
    with raises("resume.data-changed", 7) as caught:
        finetune(**{**interrupted, "data": (x, y)}, resume="auto")
    assert caught.value.message.startswith("+1 -1: ") and files(tmp_path / "run") == before


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """Give the settings of an interrupted run whose paths are relative to the current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder(Path("photos"))
    split = Path("split.csv")
    split.write_text("path,split\n" + "".join(
        f"{name}/{i:02}.png,{'train' if i < 20 else 'val' if i < 25 else 'test'}\n"
        for name in ("daisy", "rose") for i in range(30)
    ))  # fmt: skip
    return interrupt(monkeypatch, data="photos", split_file=str(split), out="runs")


def test_a_run_goes_on_from_any_folder(somewhere, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    run = resume(tmp_path / "here" / "runs" / "run")
    assert run.status == "finished" and run.data.splits["val"] == 10


@pytest.mark.full
def test_a_run_goes_on_with_photos_that_moved(somewhere):
    Path("photos").rename("moved")
    run = finetune(**somewhere | {"data": "moved"}, resume="auto")
    assert run.status == "finished" and load_run(run.path).data.splits["val"] == 10


@pytest.mark.full
def test_photos_that_come_in_memory_do_not_make_a_run_forget_where_they_are(tmp_path, monkeypatch):
    photos = folder(tmp_path / "photos")
    given = interrupt(monkeypatch, data=str(photos), out=str(tmp_path))
    run = finetune(**given | {"data": load_data(photos, seed=0)}, resume="auto")
    assert run.status == "finished" and sum(load_run(run.path).data.splits.values()) == 60


@pytest.mark.full
def test_fault_35_changed_settings_are_named(tmp_path, interrupted, raises):
    before = files(tmp_path / "run")
    with raises("resume.config-changed", 7) as caught:
        finetune(**interrupted, lr=0.01, resume="auto")
    assert caught.value.message == "lr auto -> 0.01" and files(tmp_path / "run") == before


@pytest.mark.full
def test_fault_36_other_versions_go_on_and_say_so(tmp_path, interrupted, seen):
    path = tmp_path / "run" / "run.json"
    about = json.loads(path.read_text())
    about["environment"]["tensorflow"] = "2.0.0"
    path.write_text(json.dumps(about))
    run = finetune(**interrupted, resume="auto")
    assert run.status == "finished"
    (resumed,) = run.directory.read()["resumed"]
    assert resumed["bit_exact"] is False
    assert resumed["changed"] == [f"tensorflow 2.0.0 -> {about['versions']['tensorflow']}"]
    told = (run.path / "log.txt").read_text().splitlines()
    seen(next(x for x in told if x.startswith("resume.not-bit-exact: tensorflow 2.0.0")))


def test_fault_37_a_finished_run_is_left_as_it_is(tmp_path, interrupted, capsys, seen):
    finetune(**interrupted, resume="auto")
    before = files(tmp_path / "run")
    finetune(**{**interrupted, "quiet": False}, resume="auto")
    said = capsys.readouterr().err
    assert "(4/4 epochs)" in said
    seen(next(x for x in said.splitlines() if x.startswith("nothing to resume")))
    assert files(tmp_path / "run") == before


def test_a_run_killed_before_it_began_is_no_dead_end(tmp_path, raises):
    """What is to be done with it then works, also where a name was given."""
    RunDir.create(tmp_path, "run", "net-data")
    with raises("resume.no-valid-checkpoint", 7) as caught:
        resume(tmp_path / "run")
    assert caught.value.hint == "remove it and start it again"
    shutil.rmtree(tmp_path / "run")
    RunDir.create(tmp_path, "run", "net-data")


def test_a_run_killed_after_it_was_finished_loses_its_checkpoints(tmp_path, interrupted):
    """Which go last; the next call, that finds it finished, takes them away."""
    kept = shutil.copytree(tmp_path / "run" / "ckpt", tmp_path / "ckpt")
    finetune(**interrupted, resume="auto")
    shutil.copytree(kept, tmp_path / "run" / "ckpt")
    finetune(**interrupted, resume="auto")
    assert not (tmp_path / "run" / "ckpt").exists()


def test_a_run_that_another_process_finishes_meanwhile_is_not_trained_anew(
    tmp_path, interrupted, monkeypatch, raises
):
    """Between the look at it and the lock lie seconds, in which the network is built."""
    build, before = Job.build, {}

    def slow(self, begun):
        build(self, begun)
        monkeypatch.undo()
        finetune(**interrupted, resume="auto")  # the other process
        before.update(files(tmp_path / "run"))

    monkeypatch.setattr(Job, "build", slow)
    with raises("run.finished", 5):
        finetune(**interrupted, resume="auto")
    assert files(tmp_path / "run") == before
