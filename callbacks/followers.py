"""What is told of each epoch to other programs: TensorBoard, MLflow, Weights & Biases.

Each follows `History`, whose rows are the truth of a run over all stages and restarts: an epoch
that is trained again after a kill is told once.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from .. import files

Row = Mapping[str, Any]
MEMORY = "tracking.json"  # in a run: which run of a tracker it is, and how many epochs it knows


class Follower(Protocol):
    """What `History` calls after each epoch."""

    def follow(self, rows: Sequence[Row], model: Any) -> None:
        """Take the rows of all epochs so far; those before the last may be others than before."""


class EventFiles:
    """Write TensorBoard's event files: a run for each stage, with `train` and `val` in it.

    It follows a history: `History(followers=[EventFiles("events")])`.

    A scalar's step is the epoch over all stages, so that the curves of the stages follow one
    another. The files hold what the rows are: where epochs were taken back (a resumed run), all
    is written anew, and a TensorBoard that is looking drops what it had.

    Args:
        folder: made if missing; files of another run in it go away.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self._told: list[Row] = []
        self._writers: dict[str, Any] = {}

    def follow(self, rows: Sequence[Row], model: Any = None) -> None:
        """Write the new rows."""
        if not self._writers or self._told != list(rows[:-1]):
            self.close()
            for old in self.folder.rglob("events.out.tfevents.*"):
                old.unlink(missing_ok=True)
            self._told = []
        stages = list(dict.fromkeys(row["stage"] for row in rows))
        for row in rows[len(self._told) :]:
            stage = re.sub(r"[^\w.-]+", "_", row["stage"] or "training")
            name = f"{stages.index(row['stage']) + 1}-{stage}"
            groups: dict[str, dict[str, float]] = {"train": {}, "val": {}}
            for key, value in row.items():
                if key not in ("stage", "epoch"):
                    split = "val" if key.startswith("val_") else "train"
                    groups[split][_TAGS.get(key, key.removeprefix("val_"))] = value
            for split, values in groups.items():
                if values:
                    self._write(self.folder / name / split, row["epoch"], values)
        self._told = [dict(row) for row in rows]

    def close(self) -> None:
        """Close the files; what comes later goes into new ones."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _write(self, folder: Path, step: int, values: Mapping[str, float]) -> None:
        import tensorflow as tf

        # The format needs no TensorBoard: records of TensorFlow's own Event.
        of_v1, now = tf.compat.v1, time.time()
        writer = self._writers.get(str(folder))
        if writer is None:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
            writer = self._writers[str(folder)] = tf.io.TFRecordWriter(str(folder / name))
            start = of_v1.SessionLog(status=of_v1.SessionLog.START)
            writer.write(
                of_v1.Event(wall_time=now, file_version="brain.Event:2").SerializeToString()
            )
            writer.write(of_v1.Event(wall_time=now, session_log=start).SerializeToString())
        scalars = [of_v1.Summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]
        event = of_v1.Event(wall_time=now, step=step, summary=of_v1.Summary(value=scalars))
        writer.write(event.SerializeToString())
        writer.flush()


_TAGS = {"lr": "learning_rate", "seconds": "seconds_of_epoch"}


class Tracker:
    """Hand each epoch, once, to the Keras callback of a tracking service.

    Such a callback counts from 0 in every fit; here it is called as if all stages, and what
    was trained before a restart, were one. A service that fails ends no training.

    Args:
        name: `mlflow` or `wandb`.
        folder: of the run, where `tracking.json` is kept.
        settings: shown by the service as the parameters of the run.
        say: told that the service has failed.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        settings: Mapping[str, Any],
        say: Callable[[str], None] = lambda line: None,
    ):
        self.name, self.memory, self.settings, self.say = name, folder / MEMORY, settings, say
        known = self._known().get(name, {})
        self.run, self.told = known.get("run"), known.get("epochs", 0)
        self.title = folder.name
        self._callback: Any = None
        self._failed = False

    def follow(self, rows: Sequence[Row], model: Any) -> None:
        """Tell the epochs that the service does not know."""
        if self._failed:
            return
        try:
            if self._callback is None:
                new = self.run is None
                self._callback = _BEGIN[self.name](self)
                self._callback.set_model(model)
                if new:  # it tells the service what may be told once only
                    self._callback.on_train_begin()
            self._callback.set_model(model)  # that of the stage
            stages = list(dict.fromkeys(row["stage"] for row in rows))
            for row in rows[self.told :]:
                logs = {k: v for k, v in row.items() if k not in ("stage", "epoch")}
                logs["stage"] = stages.index(row["stage"]) + 1
                self._callback.on_epoch_end(row["epoch"] - 1, logs)
                self.told = row["epoch"]
            self._remember()
        except Exception as error:
            self._fail(error)

    def close(self, status: str) -> None:
        """End the run of the service: `finished`, `failed` or `interrupted`."""
        if self._callback is None or self._failed:
            return
        try:
            self._callback.on_train_end()
            _END[self.name](status)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failed = True
        self.say(f"track.failed: {self.name} gets no more epochs: {type(error).__name__}: {error}")

    def _remember(self) -> None:
        known = {self.name: {"run": self.run, "epochs": self.told}}
        files.write_json(self.memory, self._known() | known)

    def _known(self) -> dict[str, dict[str, Any]]:
        try:
            return json.loads(self.memory.read_text("utf-8"))
        except (OSError, ValueError):  # none yet, or damaged: the service gets a new run
            return {}


def _begin_mlflow(tracker: Tracker) -> Any:
    mlflow = importlib.import_module("mlflow")
    keras = importlib.import_module("mlflow.keras")
    run = mlflow.start_run(run_id=tracker.run, run_name=None if tracker.run else tracker.title)
    if tracker.run is None:
        # its own limit is 6,000 characters
        mlflow.log_params({key: str(value)[:500] for key, value in tracker.settings.items()})
    tracker.run = run.info.run_id
    return keras.MlflowCallback()


def _begin_wandb(tracker: Tracker) -> Any:
    wandb = importlib.import_module("wandb")
    keras = importlib.import_module("wandb.integration.keras")
    known = {"id": tracker.run, "resume": "allow"} if tracker.run else {}
    project = os.environ.get("WANDB_PROJECT", "dlzoo")
    run = wandb.init(project=project, name=tracker.title, config=dict(tracker.settings), **known)
    tracker.run = run.id
    return keras.WandbMetricsLogger()


def _end_mlflow(status: str) -> None:
    states = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
    importlib.import_module("mlflow").end_run(states[status])


def _end_wandb(status: str) -> None:
    importlib.import_module("wandb").finish(exit_code=0 if status == "finished" else 1)


_BEGIN = {"mlflow": _begin_mlflow, "wandb": _begin_wandb}
_END = {"mlflow": _end_mlflow, "wandb": _end_wandb}


@contextmanager
def following(
    folder: Path,
    track: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[list[Follower]]:
    """Give the followers of a run: its event files and the trackers, which end with the block."""
    events = EventFiles(folder / "events")
    trackers = [Tracker(name, folder, settings or {}, say) for name in track]
    status = "failed"
    try:
        yield [events, *trackers]
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        events.close()
        for tracker in trackers:
            tracker.close(status)
