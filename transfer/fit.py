"""Run the stages of a plan, keep the best model over all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from ..callbacks import (
    BestModel,
    Constant,
    EarlyStopping,
    History,
    OneCycle,
    Progress,
    ReduceLROnPlateau,
    Resumable,
    StopOnDivergence,
    StopOnSignal,
    WarmupCosine,
    chance,
    check_monitor,
)
from ..data import Data
from ..data.pipeline import batches, class_weights, sample_weights, surfacing
from ..zoo import graph
from ..zoo.spec import Preprocess
from . import cache, engine, state
from .freeze import Split, frozen_part, unfreeze
from .losses import make_loss, make_metrics, regularize
from .optim import layer_multipliers, make_optimizer
from .plan import Plan, Stage

MONITORS = ("loss", "acc", "val_loss", "val_acc")


@dataclass
class Outcome:
    """What training came to.

    Attributes:
        rows: one dict an epoch, as in metrics.csv.
        best: the best monitored value, the epoch (over all stages) and the stage it is from.
        stages: for each stage that ran: trained groups, parameters, where it was cut, seconds.
        interrupted: number of the signal that stopped it, or None.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    interrupted: int | None = None


def train(
    model: keras.Model,
    data: Data,
    plan: Plan,
    rule: Preprocess,
    *,
    folder: Path | None = None,
    resume: bool = False,
    use_cache: bool | None = None,
    quiet: bool = False,
    say: Callable[[str], None] = lambda line: None,
    log: Callable[[str], None] | None = None,
) -> Outcome:
    """Train `model` in place; it ends with the best weights of all stages.

    Args:
        model: from `create_model`, taking raw RGB and giving logits.
        rule: how images are made for it.
        folder: of the run; metrics.csv and checkpoints go there. None keeps all in memory.
        resume: go on from the newest checkpoint in `folder`, if there is one.
        use_cache: compute frozen layers once; None: whenever nothing below trains.
        say: called with lines for people: what a stage trains, how long a pass took.
        log: called with the line of each epoch, for a file.

    Raises:
        UsageError: `train.unknown-monitor`, before anything is computed.
        DivergedError: the loss became NaN or never left chance; the best weights are put
            back first.
    """
    check_monitor(plan.monitor, MONITORS)
    with StopOnSignal(cut_validation=True) as stop:
        progress = Progress(images=data.splits["train"], quiet=quiet, log=log)
        job = _Training(model, data, plan, rule, folder, use_cache, progress, say, stop)
        return job.run(resume)


def rehearse(model: keras.Model, data: Data, plan: Plan, rule: Preprocess) -> list[dict[str, Any]]:
    """Take one training and one evaluation step of each stage, and leave `model` as it was.

    Returns:
        For each stage: name, groups, trainable parameters, cut, loss, and `seconds`: how long
        its epochs will take at the speed of a second step, and the frozen pass before them.
    """
    before, found = model.get_weights(), []
    for stage in plan.stages:
        groups = unfreeze(model, stage.unfreeze, train_bn=plan.train_bn)
        split = frozen_part(model)
        with surfacing(data):
            x, labels, _ = next(iter(batches(data, "train", rule, batch=stage.batch)))
        trained, seconds = model, 0.0
        if split:
            forward = engine.frozen(split.bottom, work=0)
            forward(x.numpy()[:1])
            began = time.perf_counter()
            x, trained = forward(x.numpy()), split.top
            per_image = (time.perf_counter() - began) / len(labels)
            seconds = per_image * (stage.views * data.splits["train"] + data.splits["val"])
        trained.compile(
            make_optimizer(stage.optimizer, stage.lr),
            make_loss(data.task, plan.label_smoothing),
            metrics=make_metrics(data.task),
            jit_compile=False,
        )
        loss, *_ = trained.train_on_batch(x, labels)
        began = time.perf_counter()
        trained.train_on_batch(x, labels)
        step = time.perf_counter() - began
        trained.test_on_batch(x, labels)
        seconds += step * math.ceil(data.splits["train"] / stage.batch) * stage.epochs
        found.append(
            {
                "name": stage.name,
                "groups": groups,
                "trainable": sum(math.prod(w.shape) for w in model.trainable_weights),
                "cut": split.at if split else None,
                "loss": float(loss),
                "seconds": round(seconds, 1),
            }
        )
        model.set_weights(before)
    return found


class _Training:
    """One run through the stages: what they share, and the steps of each."""

    def __init__(self, model, data, plan: Plan, rule, folder, use_cache, progress, say, stop):
        self.model, self.data, self.plan, self.rule = model, data, plan, rule
        self.folder, self.use_cache, self.say, self.stop = folder, use_cache, say, stop
        self.checkpoints = None if folder is None else folder / "ckpt"
        if self.checkpoints:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.best = BestModel(model, monitor=plan.monitor)
        self.history = History(None if folder is None else folder / "metrics.csv")
        self.progress = progress
        progress.best = self.best
        self.weights = None
        labels, of_samples = data.labels("train"), None
        if plan.class_weight == "balanced":
            self.weights = class_weights(data, "balanced")
            of_samples = sample_weights(data, "train", self.weights)
        loss, accuracy = chance(labels, of_samples)
        self.guard = StopOnDivergence(chance_loss=loss, chance_acc=accuracy)
        self.store = cache.Store()
        self.outcome = Outcome()

    def run(self, resume: bool) -> Outcome:
        start, first_epoch, checkpoint = 0, 0, None
        if resume and self.checkpoints and (checkpoint := state.latest(self.checkpoints)):
            at = state.cursor(checkpoint)
            start, first_epoch = at["stage"], at["epoch"]
            self.outcome.stages = at["stages"]
            state.restore_variables(checkpoint / "model.npz", self.model.variables)
            self.say(f"resuming in stage {self.plan.stages[start].name}, epoch {first_epoch + 1}")
        try:
            for index in range(start, len(self.plan.stages)):
                self.stage(index, first_epoch if index == start else 0, checkpoint)
                checkpoint = None
                self.leave_if_asked()
        except KeyboardInterrupt:
            if self.stop.received is None:
                raise
        finally:
            self.best.restore()
            self.store.close()
        best = self.best
        self.outcome.rows = self.history.rows
        self.outcome.best = {"value": best.best, "epoch": best.epoch, "stage": best.best_stage}
        self.outcome.interrupted = self.stop.received
        return self.outcome

    def leave_if_asked(self, *_: object) -> None:
        """Give up what is not yet saved once a signal has come."""
        if self.stop.received is not None:
            raise KeyboardInterrupt

    def stage(self, index: int, first_epoch: int, checkpoint: Path | None) -> None:
        """Freeze, cut, compile and fit one stage."""
        stage, began = self.plan.stages[index], time.perf_counter()
        if index and not checkpoint:
            self.best.restore()  # each stage starts from the best model so far
        groups = unfreeze(self.model, stage.unfreeze, train_bn=self.plan.train_bn)
        regularize(self.model.layers, self.plan.l1, self.plan.l2)
        split = frozen_part(self.model) if self.use_cache is not False else None
        facts = {
            "name": stage.name,
            "groups": groups,
            "trainable": sum(math.prod(w.shape) for w in self.model.trainable_weights),
            "cut": split.at if split else None,
        }
        steps = math.ceil(self.data.splits["train"] / stage.batch)
        callbacks = self.callbacks(stage, steps)
        resumable = [c for c in callbacks if isinstance(c, Resumable) and c is not self.stop]
        for callback in resumable:
            callback.new_stage(stage.name)
        if checkpoint:
            state.restore_callbacks(checkpoint, resumable)
            self.best.kept = state.read_arrays(checkpoint / "best.npz") or None
        if first_epoch < stage.epochs and not (checkpoint and _stopped(callbacks)):
            self.say(
                f"stage {stage.name}: trains {', '.join(groups)}; {facts['trainable']:,} parameters"
                + (f"; all below {split.at} is computed once" if split else "")
            )
            self.fit(index, first_epoch, checkpoint, split, callbacks, resumable)
        facts["seconds"] = round(time.perf_counter() - began, 2)
        self.outcome.stages.append(facts)

    def fit(self, index, first_epoch, checkpoint, split: Split | None, callbacks, resumable):
        """Train what the stage has unfrozen, from `first_epoch` on."""
        stage = self.plan.stages[index]
        train_set, val_set = self.cached(split, stage) if split else self.live(stage)
        trained = split.top if split else self.model
        optimizer = make_optimizer(
            stage.optimizer,
            stage.lr,
            weight_decay=stage.weight_decay,
            multipliers=layer_multipliers(graph.groups(self.model), stage.decay),
        )
        optimizer.build(trained.trainable_variables)
        if checkpoint and first_epoch:
            state.restore_variables(checkpoint / "optimizer.npz", optimizer.variables)
        trained.compile(
            optimizer=optimizer,
            loss=make_loss(self.data.task, self.plan.label_smoothing),
            metrics=make_metrics(self.data.task),
            jit_compile=False,  # XLA makes convolutions several times slower on a CPU
        )
        if self.checkpoints:
            callbacks.append(_Checkpointer(self, self.checkpoints, index, resumable, optimizer))
        with surfacing(self.data):
            trained.fit(
                train_set(first_epoch),
                initial_epoch=first_epoch,
                epochs=stage.epochs,
                steps_per_epoch=math.ceil(self.data.splits["train"] / stage.batch),
                validation_data=val_set(),
                callbacks=callbacks,
                shuffle=False,  # the datasets bring their order along
                verbose=0,
            )

    def callbacks(self, stage: Stage, steps: int) -> list[keras.callbacks.Callback]:
        total = stage.epochs * steps
        policy: keras.callbacks.Callback
        if stage.schedule == "cosine":
            policy = WarmupCosine(stage.lr, total, round(stage.warmup * total))
        elif stage.schedule == "onecycle":
            policy = OneCycle(stage.lr, total)
        elif stage.schedule == "plateau":
            policy = ReduceLROnPlateau(self.plan.monitor, patience=max(1, stage.patience // 2))
        else:
            policy = Constant(stage.lr)
        early = EarlyStopping(self.plan.monitor, patience=stage.patience)
        return [self.stop, policy, self.guard, early, self.best, self.history, self.progress]

    def live(self, stage: Stage):
        """Return the two datasets of images, the first as a function of the first epoch."""
        plan = self.plan

        def train_set(first_epoch):
            return batches(
                self.data, "train", self.rule, batch=stage.batch, augment=plan.augment,
                seed=plan.seed, shuffle=True, epochs=stage.epochs, start_epoch=first_epoch,
                weights=self.weights,
            )  # fmt: skip

        return train_set, lambda: batches(self.data, "val", self.rule, batch=stage.batch)

    def cached(self, split: Split, stage: Stage):
        """Return the two datasets of activations; falls back on images where disk is short."""
        shape, n = cache.shape_of(split.bottom), self.data.splits
        if not self.store.fits((stage.views * n["train"] + n["val"], *shape)):
            self.say("not enough disk for activations: computing every layer in every epoch")
            return self.live(stage)
        began, images = time.perf_counter(), stage.views * n["train"] + n["val"]
        run = engine.frozen(split.bottom, work=images * graph.gmacs(split.bottom))

        def compute(name, views):
            return cache.compute(
                run, shape, self.data, name, self.rule, store=self.store, views=views,
                augment=self.plan.augment, seed=self.plan.seed,
                weights=self.weights if name == "train" else None, done=self.leave_if_asked,
            )  # fmt: skip

        train, val = compute("train", stage.views), compute("val", 1)
        spent = time.perf_counter() - began
        self.say(
            f"frozen pass up to {split.at}: {images:,} images "
            f"({stage.views} views), {spent:.1f} s, {images / spent:.0f} img/s"
        )

        def train_set(first_epoch):
            return train.batches(
                stage.batch, seed=self.plan.seed, epochs=stage.epochs,
                start_epoch=first_epoch, shuffle=True,
            )  # fmt: skip

        return train_set, lambda: val.batches(max(stage.batch, 64))


class _Checkpointer(keras.callbacks.Callback):
    """Write a checkpoint after an epoch; stands last, when all others have counted.

    Short epochs are not each worth the writing: there is one every `EVERY` seconds, and one at
    the end of a stage.
    """

    EVERY = 20.0

    def __init__(self, training: _Training, folder: Path, index: int, callbacks, optimizer):
        super().__init__()
        self.training, self.folder, self.index = training, folder, index
        self.resumable, self.optimizer = callbacks, optimizer
        self.written = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        training = self.training
        if training.stop.received is not None:
            return  # the epoch may be cut short: the checkpoint before it stands
        last = self.model.stop_training or epoch + 1 == training.plan.stages[self.index].epochs
        if last or time.perf_counter() - self.written > self.EVERY:
            state.save(
                self.folder,
                len(training.history.rows),
                training.model,
                self.optimizer,
                self.resumable,
                {"stage": self.index, "epoch": epoch + 1, "stages": training.outcome.stages},
                training.best.kept,
            )
            self.written = time.perf_counter()


def _stopped(callbacks) -> bool:
    """Say whether early stopping had ended the stage when the checkpoint was written."""
    return any(isinstance(c, EarlyStopping) and c.stopped for c in callbacks)
