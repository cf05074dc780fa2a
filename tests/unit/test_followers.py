"""What TensorBoard, tracking services and log readers are told: each epoch once, come what may."""

import json
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo import finetune
from dlzoo.callbacks import EventFiles, History
from dlzoo.callbacks.followers import following
from dlzoo.errors import UsageError
from photos import coloured


def events(folder):
    """Return {(run, tag): [(step, value), ...]} of all event files below a folder."""
    found = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                key = (str(path.parent.relative_to(folder)), value.tag)
                found.setdefault(key, []).append((event.step, value.simple_value))
    return found


def row(epoch, stage="head", loss=None):
    loss = epoch / 8 if loss is None else loss
    return {
        "stage": stage,
        "epoch": epoch,
        "loss": loss,
        "val_loss": 2.0,
        "lr": 0.5,
        "seconds": 1.0,
    }


def test_a_stage_is_a_run_and_a_step_is_an_epoch_over_all_stages(tmp_path):
    files = EventFiles(tmp_path)
    rows = [row(1), row(2), row(3, "../top")]
    for n in (1, 2, 3):
        files.follow(rows[:n])
    found = events(tmp_path)
    assert found["1-head/train", "loss"] == [(1, 0.125), (2, 0.25)]
    assert found["1-head/val", "loss"] == [(1, 2.0), (2, 2.0)]
    assert found["2-.._top/train", "learning_rate"] == [(3, 0.5)]
    assert len(list(tmp_path.rglob("events*"))) == 4  # a file each
    first = next(
        iter(tf.data.TFRecordDataset(str(next(tmp_path.rglob("events*")))).as_numpy_iterator())
    )
    assert tf.compat.v1.Event.FromString(first).file_version == "brain.Event:2"


def test_epochs_that_were_taken_back_are_there_once(tmp_path):
    (tmp_path / "notes.txt").write_text("stays")
    killed = EventFiles(tmp_path)
    for n in (1, 2, 3):
        killed.follow([row(i) for i in range(1, n + 1)])
    again = EventFiles(tmp_path)  # another process, from a checkpoint after the first epoch
    again.follow([row(1), row(2, loss=0.75)])
    assert events(tmp_path)["1-head/train", "loss"] == [(1, 0.125), (2, 0.75)]
    again.follow([row(1), row(2, loss=0.875)])  # the same process, after a batch that was halved
    again.follow([row(1), row(2, loss=0.875), row(3)])
    assert events(tmp_path)["1-head/train", "loss"] == [(1, 0.125), (2, 0.875), (3, 0.375)]
    assert (tmp_path / "notes.txt").read_text() == "stays"


def test_a_plain_fit_writes_events(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    history = History(followers=[EventFiles(tmp_path)])
    model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=2, verbose=0, callbacks=[history])
    losses = [r["loss"] for r in history.rows]
    assert [v for _, v in events(tmp_path)["1-training/train", "loss"]] == pytest.approx(losses)


class Service:
    """Stands for a tracking service and its package; it remembers what it is told."""

    def __init__(self, monkeypatch, name):
        self.calls, self.epochs, self.runs = [], [], []
        service, package = self, types.ModuleType(name)

        class Callback(keras.callbacks.Callback):
            def on_train_begin(self, logs=None):
                service.calls.append("begin")

            def on_epoch_end(self, epoch, logs=None):
                if epoch == service.fails_at:
                    raise ConnectionError("no way")
                service.epochs.append((epoch, logs["stage"], logs["loss"]))

        def start(run=None, **more):
            service.runs.append(run or f"run{len(service.runs)}")
            return service.runs[-1]

        self.fails_at = None
        if name == "mlflow":
            package.start_run = lambda run_id=None, run_name=None: types.SimpleNamespace(
                info=types.SimpleNamespace(run_id=start(run_id))
            )
            package.log_params = lambda params: self.calls.append(params)
            package.end_run = lambda status: self.calls.append(status)
            inner, callback = "mlflow.keras", "MlflowCallback"
        else:
            package.init = lambda id=None, **more: types.SimpleNamespace(id=start(id))
            package.finish = lambda exit_code: self.calls.append(exit_code)
            inner, callback = "wandb.integration.keras", "WandbMetricsLogger"
        module = types.ModuleType(inner)
        setattr(module, callback, Callback)
        package.__path__, package.__spec__ = [], types.SimpleNamespace(name=name)
        for key, value in ((name, package), ("wandb.integration", package), (inner, module)):
            monkeypatch.setitem(sys.modules, key, value)


@pytest.mark.parametrize(("name", "end"), [("mlflow", "FINISHED"), ("wandb", 0)])
def test_a_tracking_service_gets_each_epoch_once_over_stages_and_restarts(
    name, end, tmp_path, monkeypatch
):
    service = Service(monkeypatch, name)
    rows = [row(1), row(2), row(3, "top")]
    with pytest.raises(KeyboardInterrupt), following(tmp_path, [name], {"seed": 0}) as followers:
        for n in (1, 2):
            for each in followers:
                each.follow(rows[:n], None)
        raise KeyboardInterrupt
    assert service.calls[-1] in ("KILLED", 1)
    with following(tmp_path, [name]) as followers:  # resumed from before the second epoch
        for n in (2, 3):
            for each in followers:
                each.follow(rows[:n], None)
    assert service.epochs == [(0, 1, 0.125), (1, 1, 0.25), (2, 2, 0.375)]
    assert service.runs == ["run0", "run0"] and service.calls.count("begin") == 1
    assert service.calls[-1] == end


def test_a_service_that_fails_ends_no_training(tmp_path, monkeypatch):
    service, said = Service(monkeypatch, "mlflow"), []
    service.fails_at = 1
    with following(tmp_path, ["mlflow"], {}, said.append) as followers:
        for n in (1, 2, 3):
            for each in followers:
                each.follow([row(i) for i in range(1, n + 1)], None)
    assert service.epochs == [(0, 1, 0.125)]
    assert len(said) == 1 and "mlflow" in said[0] and "no way" in said[0]
    assert len(events(tmp_path / "events")["1-head/train", "loss"]) == 3


def test_a_missing_package_is_told_before_anything_else(call):
    if "wandb" in sys.modules:
        pytest.skip("it is installed")
    with pytest.raises(UsageError) as caught:
        finetune(data="nowhere", track="wandb")
    assert caught.value.id == "track.package" and 'dlzoo[wandb]"' in caught.value.hint
    assert call("finetune", "--data", "nowhere", "--track", "wandbb")[0] == 2


@pytest.fixture(scope="module")
def lines_and_run(tmp_path_factory):
    """Return what a run says in JSON, and the run."""
    import contextlib
    import io

    settings = {"weights": "none", "epochs": 2, "quiet": False, "report": False}
    with contextlib.redirect_stderr(io.StringIO()) as told:
        run = finetune(
            "lenet5", coloured(60), out=str(tmp_path_factory.mktemp("runs")), log_format="json",
            **settings,
        )  # fmt: skip
    return [json.loads(line) for line in told.getvalue().splitlines()], run


@pytest.mark.full
def test_every_line_of_a_run_is_json(lines_and_run):
    lines, run = lines_and_run
    assert all(line["event"] in ("message", "epoch", "progress") and line["time"] for line in lines)
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2]
    assert {"stage", "loss", "val_loss", "lr", "seconds"} <= epochs[0].keys()
    assert not run.directory.log.read_text().startswith("{")  # the log stays for people


@pytest.mark.full
def test_a_run_has_its_curves_for_tensorboard(lines_and_run):
    _, run = lines_and_run
    found = events(run.path / "events")
    (stage,) = {key[0].split("/")[0] for key in found}
    assert [step for step, _ in found[f"{stage}/val", "loss"]] == [1, 2]
    assert {"loss", "acc", "learning_rate"} <= {tag for where, tag in found if "train" in where}


def test_an_error_is_a_json_line(call):
    code, _, err = call("finetune", "--data", "/nowhere", "--log-format", "json")
    told = json.loads(err.splitlines()[-1])
    assert told["event"] == "error" and told["id"] == "data.not-found" and told["code"] == code == 3
