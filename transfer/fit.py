"""Run the stages of a plan, keep the best model over all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
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
from ..data import augment as augmentation
from ..data.pipeline import batches, class_weights, sample_weights, surfacing
from ..data.records import SPLITS
from ..zoo import graph
from ..zoo.spec import Preprocess
from . import engine, estimate, probe, state
from .cache import Activations, Frozen
from .freeze import Split, frozen_part, unfreeze
from .losses import make_loss, make_metrics, regularize
from .optim import layer_multipliers, make_optimizer
from .plan import HEAD_BY_STEPS, LBFGS, Plan, Stage
from .tail import trainable_view

MONITORS = ("loss", "acc", "val_loss", "val_acc")
Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


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
    bar: Bar = lambda label: nullcontext(lambda done, total: None),
) -> Outcome:
    """Train `model` in place; it ends with the best weights of all stages.

    Args:
        model: from `create_model`, taking raw RGB and giving logits.
        rule: how images are made for it.
        folder: of the run; metrics.csv and checkpoints go there. None keeps all in memory.
        resume: go on from the newest checkpoint in `folder`, if there is one.
        use_cache: compute frozen layers once; None: wherever that is estimated to be faster.
        say: called with lines for people: what a stage trains, how long a pass took.
        log: called with the line of each epoch, for a file.
        bar: gives, for a label, a context in which (done, total) images are shown.

    Raises:
        UsageError: `train.unknown-monitor`, before anything is computed.
        DivergedError: the loss became NaN or never left chance; the best weights are put
            back first.
    """
    check_monitor(plan.monitor, MONITORS)
    with StopOnSignal(cut_validation=True) as stop:
        progress = Progress(images=data.splits["train"], quiet=quiet, log=log)
        job = _Training(model, data, plan, rule, folder, use_cache, progress, say, stop, bar)
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
            (x,), trained = forward(x.numpy()), split.top
            per_image = (time.perf_counter() - began) / len(labels)
            seconds = per_image * (stage.views * data.splits["train"] + data.splits["val"])
        trained.compile(
            make_optimizer("adamw" if stage.optimizer == LBFGS else stage.optimizer, stage.lr),
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

    def __init__(self, model, data, plan: Plan, rule, folder, use_cache, progress, say, stop, bar):
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
        self.frozen = Frozen(
            model, data, rule, augment=plan.augment, leave=self.leave_if_asked, say=say, bar=bar
        )
        self.outcome = Outcome()
        self.activations: dict[str, Activations] = {}  # of the stage, by split
        self.cut: str | None = None  # of the stage
        self._places: dict[str, str] | None = None  # by stage

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
        going_on = checkpoint is not None and first_epoch > 0
        if checkpoint and going_on and not state.cursor(checkpoint)["cut"]:
            split = None  # as it was begun
        if stage.optimizer == LBFGS and not self.convex(split):
            stage = replace(HEAD_BY_STEPS, name=stage.name, unfreeze=stage.unfreeze)
        if split and self.use_cache is None and not going_on and not self.pays(split, stage):
            split = None
        self.cut = split.at if split else None
        facts = {
            "name": stage.name,
            "groups": groups,
            "trainable": sum(math.prod(w.shape) for w in self.model.trainable_weights),
            "cut": self.cut,
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
            self.fit(index, stage, first_epoch, checkpoint, split, callbacks, resumable)
        facts["seconds"] = round(time.perf_counter() - began, 2)
        self.outcome.stages.append(facts)

    def convex(self, split: Split | None) -> bool:
        """Say whether the stage trains the last layer alone, with no penalty of the user's."""
        if split is None or split.at != "features" or self.plan.l1 or self.plan.l2:
            return False
        trained = [layer.name for layer in split.top.layers if layer.trainable_weights]
        return trained == ["logits"]

    def pays(self, split: Split, stage: Stage) -> bool:
        """Say whether computing the frozen layers once is estimated to be faster; tell why."""
        n, places = self.data.splits, [split.at]
        missing = self.frozen.missing(places, ["train"], stage.views)
        missing += self.frozen.missing(places, ["val"])
        if not missing or stage.optimizer == LBFGS:
            return True
        found = estimate.stage(
            estimate.rates(self.frozen, self.places(stage)), split, stage, n, missing
        )
        self.say(f"stage {stage.name}: {found}")
        return found.cached <= found.live

    def places(self, stage: Stage) -> list[str]:
        """Return where this stage and, on the plain images, later ones want activations."""
        if self._places is None:
            before = [layer.trainable for layer in self.model.layers]
            self._places = {}
            for each in self.plan.stages:
                unfreeze(self.model, each.unfreeze, train_bn=self.plan.train_bn)
                if split := frozen_part(self.model):
                    self._places[each.name] = split.at
            for layer, trainable in zip(self.model.layers, before, strict=True):
                layer.trainable = trainable
        names = [each.name for each in self.plan.stages]
        later = [self._places.get(name) for name in names[names.index(stage.name) :]]
        return list(dict.fromkeys(place for place in later if place))

    def fit(self, index, stage, first_epoch, checkpoint, split: Split | None, callbacks, resumable):
        """Train what the stage has unfrozen, from `first_epoch` on."""
        train_set, val_set = self.cached(split, stage) if split else self.live(stage)
        trained = self.model if split is None else split.top
        if split and not engine.on_gpu():  # its shortcuts were measured on CPUs alone
            trained = trainable_view(split.top)
        by_steps = stage.optimizer != LBFGS
        optimizer = make_optimizer(
            stage.optimizer if by_steps else "sgd",
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
            epochs = stage.epochs if by_steps else 1
            callbacks.append(
                _Checkpointer(self, self.checkpoints, index, epochs, resumable, optimizer)
            )
        if not by_steps:
            self.converge(stage, trained, callbacks)
            return
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

    def converge(self, stage: Stage, trained: keras.Model, callbacks) -> None:
        """Solve for the last layer; to the callbacks that is one epoch."""
        every = keras.callbacks.CallbackList(callbacks, model=trained, epochs=1, steps=1)
        every.on_train_begin()
        every.on_epoch_begin(0)
        train, val = self.activations["train"], self.activations["val"]
        found = probe.fit(
            (train.all(), train.labels, train.weights),
            (val.all(), val.labels, val.weights),
            self.data.task,
            label_smoothing=self.plan.label_smoothing,
            leave=self.leave_if_asked,
        )
        self.model.get_layer("logits").set_weights([found.kernel, found.bias])
        self.say(
            f"stage {stage.name}: converged, {len(found.rows)} penalties; l2 {found.l2:.1e} is best"
        )
        chosen = next(row for row in found.rows if row["l2"] == found.l2)
        every.on_train_batch_end(0)
        every.on_epoch_end(0, {name: v for name, v in chosen.items() if name != "l2"})
        every.on_train_end()

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
            images = batches(
                self.data, "train", self.rule, batch=stage.batch, augment=plan.augment,
                seed=plan.seed, shuffle=True, epochs=stage.epochs, start_epoch=first_epoch,
                weights=self.weights,
            )  # fmt: skip
            first = first_epoch * math.ceil(self.data.splits["train"] / stage.batch)
            return augmentation.mixed(images, plan.mixup, plan.seed, first).prefetch(2)

        return train_set, lambda: batches(self.data, "val", self.rule, batch=stage.batch)

    def cached(self, split: Split, stage: Stage):
        """Return the two datasets of activations; falls back on images where disk is short."""
        splits = [name for name in SPLITS if self.data.splits[name]]
        places, frozen = self.places(stage), self.frozen
        images = {name: self.data.splits[name] for name in splits}
        extra = (stage.views - 1) * images["train"]
        if not (
            frozen.room(places, sum(images.values()))
            and (stage.views == 1 or frozen.room([split.at], extra))
        ):
            self.say("not enough disk for activations: computing every layer in every epoch")
            return self.live(stage)
        # The test photos, too: they are measured on these activations in the end.
        missing = frozen.missing(places, splits)
        missing += frozen.missing([split.at], ["train"], stage.views) if extra else 0
        work = missing * graph.gmacs(split.bottom)
        found = {}
        with frozen.passing(f"frozen layers up to {split.at}", missing):
            for name in splits:
                weights = self.weights if name == "train" else None
                of_places = frozen.activations(places, name, weights=weights, work=work)
                found[name] = of_places[split.at]
            if extra:
                found["train"] = frozen.activations(
                    [split.at], "train", views=stage.views, weights=self.weights, work=work
                )[split.at]
        self.say(
            f"frozen layers up to {split.at} ({stage.views} views): "
            + (f"{frozen.speed}" if missing else "all from the cache")
        )
        self.activations = found
        train, val = found["train"], found["val"]

        def train_set(first_epoch):
            return train.batches(
                stage.batch, seed=self.plan.seed, epochs=stage.epochs,
                start_epoch=first_epoch, shuffle=True, mixup=self.plan.mixup,
            )  # fmt: skip

        return train_set, lambda: val.batches(max(stage.batch, 64))


class _Checkpointer(keras.callbacks.Callback):
    """Write a checkpoint after an epoch; stands last, when all others have counted.

    Short epochs are not each worth the writing: there is one every `EVERY` seconds, and one at
    the end of a stage.
    """

    EVERY = 20.0

    def __init__(
        self, training: _Training, folder: Path, index: int, epochs: int, callbacks, optimizer
    ):
        super().__init__()
        self.training, self.folder, self.index, self.epochs = training, folder, index, epochs
        self.resumable, self.optimizer = callbacks, optimizer
        self.written = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        training = self.training
        if training.stop.received is not None:
            return  # the epoch may be cut short: the checkpoint before it stands
        last = self.model.stop_training or epoch + 1 == self.epochs
        if last or time.perf_counter() - self.written > self.EVERY:
            state.save(
                self.folder,
                len(training.history.rows),
                training.model,
                self.optimizer,
                self.resumable,
                {
                    "stage": self.index,
                    "epoch": epoch + 1,
                    "cut": training.cut,
                    "stages": training.outcome.stages,
                },
                training.best.kept,
            )
            self.written = time.perf_counter()


def _stopped(callbacks) -> bool:
    """Say whether early stopping had ended the stage when the checkpoint was written."""
    return any(isinstance(c, EarlyStopping) and c.stopped for c in callbacks)
