"""The rows of the history and the lines of the progress display."""

import csv
import io
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo.callbacks import BestModel, Constant, History, Progress, ReduceLROnPlateau

X = np.zeros((8, 2), "float32")
Y = np.zeros((8, 1), "float32")


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def __init__(self, encoding="utf-8"):
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding=encoding, write_through=True)

    def isatty(self):
        return True

    def text(self):
        return self.bytes.getvalue().decode(self.encoding)


@pytest.fixture
def model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["acc"], run_eagerly=True)
    return model


def fit(model, epochs, *callbacks, first=0, val=True):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    check = {"validation_data": data} if val else {}
    return model.fit(
        data,
        epochs=epochs,
        initial_epoch=first,
        verbose=0,
        shuffle=False,
        callbacks=callbacks,
        **check,
    )


def test_history_is_one_table_over_stages(model, tmp_path):
    path = tmp_path / "metrics.csv"
    history = History(path)
    history.new_stage("head")
    fit(model, 2, history, val=False)
    history.new_stage("top")
    fit(model, 2, Constant(0.01), history)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["stage"], r["epoch"]) for r in rows] == [
        ("head", "1"), ("head", "2"), ("top", "3"), ("top", "4"),
    ]  # fmt: skip
    assert list(rows[0]) == [
        "stage", "epoch", "acc", "loss", "val_acc", "val_loss", "lr", "seconds",
    ]  # fmt: skip
    assert rows[0]["val_loss"] == "" and float(rows[3]["val_loss"]) == 0.0
    assert [round(row["lr"], 6) for row in history.rows] == [0.1, 0.1, 0.01, 0.01]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


class Two(keras.metrics.MeanAbsoluteError):
    """Gives two numbers, as `F1Score` gives one for each class."""

    def result(self):
        return keras.ops.stack([super().result()] * 2)


def test_a_metric_of_several_numbers_has_no_column(model):
    stream, history = Terminal(), History()
    model.compile("sgd", "mse", metrics=[Two(name="f1"), "mae"], run_eagerly=True)
    fit(model, 1, history, Progress(stream=stream))
    assert "val_mae" in history.rows[0] and "val_f1" not in history.rows[0]
    assert "mae" in stream.text() and "f1" not in stream.text()


def test_a_metric_called_as_a_column_does_not_take_its_place(model):
    names = ("epoch", "stage", "lr", "seconds")
    metrics = [keras.metrics.MeanAbsoluteError(name=name) for name in names]
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=metrics, run_eagerly=True)
    fit(model, 1, history := History())
    row = history.rows[0]
    assert (row["stage"], row["epoch"], row["lr"]) == ("", 1, pytest.approx(0.1))
    assert "val_stage" in row


def test_history_goes_on_after_a_restart(model, tmp_path):
    old, new = History(), History(tmp_path / "metrics.csv")
    fit(model, 2, old)
    saved = json.loads(json.dumps(old.state_dict()))
    fit(model, 1, old)  # rows after the save are not in it
    new.load_state_dict(saved)
    fit(model, 3, new, first=2)
    assert [row["epoch"] for row in new.rows] == [1, 2, 3]
    assert new.rows[:2] == old.rows[:2]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("order", [1, -1])
def test_a_row_has_the_rate_its_epoch_was_trained_with(model, order):
    history = History()
    callbacks = [ReduceLROnPlateau("loss", factor=0.5, patience=1), history][::order]
    fit(model, 3, *callbacks)
    np.testing.assert_allclose([row["lr"] for row in history.rows], [0.1, 0.1, 0.05], rtol=1e-6)


def test_not_a_terminal_one_ascii_line_an_epoch(model, capfd):
    best = BestModel()
    progress = Progress(images=8, best=best)
    progress.new_stage("tête")
    fit(model, 2, best, progress)
    out, err = capfd.readouterr()
    assert out == "" and err.isascii() and "\r" not in err and "\x1b" not in err
    first, second = err.splitlines()
    number = r"\d*\.\d+"
    assert re.fullmatch(
        rf"stage t\\xeate  1/2  loss {number}  acc 1.000 \| val loss {number} acc 1.000"
        r"   \d+\.\d s  [\d.]+ img/s  best \*",
        first,
    ), first
    assert "2/2" in second and "best" not in second


def test_quiet_writes_nothing(model, capfd):
    fit(model, 1, Progress(quiet=True))
    assert capfd.readouterr() == ("", "")


def test_numbers():
    progress = Progress()
    progress.params = {"epochs": 3}
    line = progress.line(0, {"loss": 0.4119, "acc": 0.861, "val_loss": 0.2981, "val_acc": 0.905})
    assert line.startswith("epoch  1/3  loss 0.412  acc .861 | val loss 0.298 acc .905   ")
    assert "loss 1.0e-05  acc 1.000" in progress.line(0, {"loss": 1e-5, "acc": 1.0})
    assert "loss nan" in progress.line(0, {"loss": float("nan")})


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_on_a_terminal_a_live_line_then_the_finished_one(model, monkeypatch, encoding):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal(encoding)
    fit(model, 2, Progress(stream=stream))
    text = stream.text()
    assert "ETA" in text and "%" in text and text.isascii() == (encoding == "ascii")
    assert text.count("step/s\n") == 2
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back


def test_no_color_and_dumb_terminals(model, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    fit(model, 1, Progress(stream=stream))
    assert not re.search(r"\x1b\[[\d;]*3\d[\d;]*m", stream.text())
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    fit(model, 1, Progress(stream=stream))
    assert "\x1b" not in stream.text()


def test_an_error_in_the_fit_brings_the_cursor_back_on_close(model, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = Progress(stream=stream)

    def fail(batch, logs):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fit(model, 1, progress, keras.callbacks.LambdaCallback(on_train_batch_end=fail))
    progress.close()
    text = stream.text()
    assert "\x1b[?25h" in text[text.rindex("\x1b[?25l") :]


def test_a_stream_that_went_away_stops_nothing(model):
    stream = io.StringIO()
    progress = Progress(stream=stream)
    closing = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: stream.close())
    assert len(fit(model, 2, progress, closing).epoch) == 2
