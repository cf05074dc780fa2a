"""Run the stages of a plan, keep the best model over all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..callbacks import (
    AverageWeights,
    BestModel,
    Constant,
    EarlyStopping,
    History,
    OneCycle,
    Progress,
    ReduceLROnPlateau,
    Resumable,
    Resume,
    StopOnDivergence,
    StopOnSignal,
    WarmupCosine,
    chance,
    check_monitor,
)
from ..callbacks.followers import Follower
from ..callbacks.resume import build_metrics
from ..data import Data
from ..data import augment as augmentation
from ..data.pipeline import batches, class_weights, permutation, sample_weights, surfacing
from ..data.records import SPLITS
from ..errors import DataError, ResourceError
from ..workers import Together
from ..zoo import graph
from ..zoo.spec import Preprocess
from . import engine, estimate, probe, shelf
from .begin import Beginning
from .cache import Activations, EveryView, Frozen
from .distribute import Machine
from .freeze import Split, frozen_part, unfreeze
from .losses import make_loss, regularize
from .memory import traced_graphs_let_go
from .optim import compile_model, layer_multipliers, make_optimizer
from .plan import LBFGS, Plan, Stage, head_by_steps
from .replicas import replicated, spread
from .tail import trainable_view

MONITORS = ("loss", "acc", "val_loss", "val_acc")
SAMPLE = 4  # batches, to measure what making images costs
STARVED = 0.5  # of a training step: then the network waits for images more than it computes
HALVINGS = 3  # of a batch, before memory counts as too small
# of a stage: makes its training set from (epoch, step, part), its validation set from (part), and
# the latter's batch
Images = tuple[Callable[..., tf.data.Dataset], Callable[..., tf.data.Dataset], int]
Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


@dataclass
class Outcome:
    """What training came to.

    Attributes:
        rows: one dict an epoch, as in metrics.csv.
        best: of what is kept the monitored value, the epoch (over all stages) and the stage; and
            the value `best_seen` of all epochs, see `callbacks.BestModel`.
        stages: for each stage that ran: trained groups, parameters, where it was cut, seconds.
        interrupted: number of the signal that stopped it, or None.
        saved: steps of all stages that the newest checkpoint holds.
        stall: seconds that each checkpoint took.
        before: seconds of training that earlier calls had saved, if it went on from a checkpoint.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    interrupted: int | None = None
    saved: int = 0
    stall: list[float] = field(default_factory=list)
    before: float = 0.0


def train(
    model: keras.Model,
    data: Data,
    plan: Plan,
    rule: Preprocess,
    *,
    folder: Path | None = None,
    resume: bool = False,
    machine: Machine | None = None,
    use_cache: bool | None = None,
    save_every: str | int = "auto",
    deterministic: bool = False,
    halve: bool = False,
    followers: Sequence[Follower] = (),
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
        machine: from `distribute.prepare`; the model was made in the scope of its strategy. Of
            several processes all call this, with the same arguments and one folder.
        use_cache: compute frozen layers once; None: wherever that is estimated to be faster.
        save_every: training steps or time between checkpoints, see `callbacks.Resume`.
        deterministic: decide nothing by the clock.
        halve: where memory runs out, take half of the batch and two such for a step.
        followers: told of each epoch, see `callbacks.followers`.
        say: called with lines for people: what a stage trains, how long a pass took.
        log: called with the line of each epoch, for a file.
        bar: gives, for a label, a context in which (done, total) images are shown.

    Raises:
        UsageError: `train.unknown-monitor`, before anything is computed.
        DivergedError: the loss became NaN or never left chance; the best weights are put
            back first.
        ResourceError: `resource.oom`, `resource.disk`; `resume.disk` and `resume.permission` of a
            checkpoint.
        ResumeError: `resume.no-valid-checkpoint`, `resume.config-changed`.
    """
    check_monitor(plan.monitor, MONITORS)
    machine = machine or Machine("", "", tf.distribute.get_strategy())
    # one that runs out of memory cannot ask the others, who wait for it, for smaller batches
    halve = halve and machine.workers.count == 1
    together = Together(machine.workers) if machine.workers.count > 1 else None
    with StopOnSignal(cut_validation=True, together=together) as stop:
        progress = Progress(images=data.splits["train"], quiet=quiet, log=log)
        how = _How(machine, together, use_cache, save_every, deterministic, halve, followers)
        job = _Training(model, data, plan, rule, folder, how, progress, say, stop, bar)
        with machine.strategy.scope():
            return job.run(resume)


def rehearse(
    model: keras.Model, data: Data, plan: Plan, rule: Preprocess, use_cache: bool = True
) -> list[dict[str, Any]]:
    """Take one training and one evaluation step of each stage, and leave `model` as it was.

    Args:
        use_cache: False: frozen layers are computed in every epoch, as `train` then does.

    Returns:
        For each stage: name, groups, trainable parameters, cut, loss, and `seconds`: how long
        its epochs will take at the speed of a second step, and the frozen pass before them.
    """
    before, found = model.get_weights(), []
    for stage in plan.stages:
        groups = unfreeze(model, stage.unfreeze, train_bn=plan.train_bn)
        split = frozen_part(model) if use_cache else None
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
        optimizer = make_optimizer(
            "adamw" if stage.optimizer == LBFGS else stage.optimizer, stage.lr
        )
        loss_of = make_loss(data.task, plan.label_smoothing)
        compile_model(trained, optimizer, loss_of, data.task)
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


@dataclass(frozen=True)
class _How:
    """Arguments of `train` that are handed through."""

    machine: Machine
    together: Together | None
    use_cache: bool | None
    save_every: str | int
    deterministic: bool
    halve: bool
    followers: Sequence[Follower]


class _Training:
    """One run through the stages: what they share, and the steps of each."""

    def __init__(self, model, data, plan: Plan, rule, folder, how: _How, progress, say, stop, bar):
        self.model, self.data, self.plan, self.rule = model, data, plan, rule
        self.folder, self.how, self.say, self.stop = folder, how, say, stop
        self.workers = how.machine.workers
        shares = data.splits["val"] if "acc" in plan.monitor else 0
        self.best = BestModel(model, monitor=plan.monitor, images=shares)
        writes = folder is not None and self.workers.chief
        self.history = History(
            folder / "metrics.csv" if writes else None, how.followers if writes else ()
        )
        self.progress = progress
        progress.best = self.best
        self.weights = None
        labels, of_samples = data.labels("train"), None
        if plan.class_weight == "balanced":
            self.weights = class_weights(data, "balanced")
            of_samples = sample_weights(data, "train", self.weights)
        loss, accuracy = chance(labels, of_samples)
        self.guard = StopOnDivergence(
            chance_loss=loss, chance_acc=accuracy, files=self.images_of_batch
        )
        self.beginning = Beginning(model, self.best, (self.guard, self.history))
        self.frozen = Frozen(
            model, data, rule, augment=plan.augment, steady=how.deterministic,
            hold=len(plan.stages) > 1 or plan.stages[0].views > 1,
            workers=self.workers, leave=self.leave_if_asked, say=say, bar=bar,
        )  # fmt: skip
        self.outcome, self.began = Outcome(), time.perf_counter()
        self.activations: dict[str, Activations] = {}  # of the stage, by split
        self.resume: Resume | None = None
        self.doing: dict[str, Any] = {}  # of the stage: what a checkpoint must know of it
        self.ahead = True  # what later stages want is computed together with what this one wants
        self._batch = 1  # of the stage
        self._places: dict[str, str] | None = None  # by stage

    def run(self, resume: bool) -> Outcome:
        start = 0
        if self.folder is not None:
            self.resume = Resume(
                self.folder / "ckpt",
                [self.guard, self.best, self.history],
                every=self.how.save_every,
                model=self.model,
                data_goes_on=True,
                more=lambda: {
                    **self.doing,
                    "stages": self.outcome.stages,
                    "spent": self.outcome.before + time.perf_counter() - self.began,
                },
                together=self.how.together,
                say=self.say,
            )
        found = self.resume.found if resume and self.resume else None
        if found:
            self.doing = found.state["more"]
            start, self.outcome.stages = self.doing["stage"], self.doing.pop("stages")
            self.outcome.before = self.doing.pop("spent", 0.0)
        try:
            for index in range(start, len(self.plan.stages)):
                self.stage(index, going_on=found is not None and index == start)
                self.leave_if_asked()
        except KeyboardInterrupt:
            if self.stop.received is None:
                raise
        finally:
            self.best.restore()
        best = self.best
        self.outcome.rows = self.history.rows
        self.outcome.best = {
            "value": best.best,
            "best_seen": best.best_seen,
            "epoch": best.epoch,
            "stage": best.best_stage,
        }
        self.outcome.interrupted = self.stop.received
        if self.resume:
            self.outcome.saved = self.resume.found.step if self.resume.found else 0
            self.outcome.stall = self.resume.stall
        return self.outcome

    def leave_if_asked(self, *_: object) -> None:
        """Give up what is not yet saved once a signal has come to any of the processes."""
        received = [each for each in self.workers.every(self.stop.received) if each]
        if received:
            self.stop.received = received[0]
            raise KeyboardInterrupt

    def leave_if_interrupted(self, *_: object) -> None:
        """Give up once a signal has come to this process, while the others wait for it."""
        if self.stop.received is not None:
            raise KeyboardInterrupt

    def images_of_batch(self, epoch: int, batch: int) -> list[str]:
        """Return the names of the images of a training step."""
        order = permutation(self.data.splits["train"], self.plan.seed, epoch)
        keys = self.data.keys("train")
        return [keys[i] for i in order[batch * self._batch : (batch + 1) * self._batch]]

    def stage(self, index: int, going_on: bool) -> None:
        """Freeze, cut, compile and fit one stage.

        Args:
            going_on: from the checkpoint found, which is of this stage.
        """
        stage, began, resume = self.plan.stages[index], time.perf_counter(), self.resume
        if index and not going_on:
            self.best.restore()  # each stage starts from the best model so far
        groups = unfreeze(self.model, stage.unfreeze, train_bn=self.plan.train_bn)
        if resume and going_on:
            resume.put_weights_back()  # an earlier stage may have trained what is frozen now
        self.frozen.look_again()
        regularize(self.model.layers, self.plan.l1, self.plan.l2)
        facts = {
            "name": stage.name,
            "groups": groups,
            "trainable": sum(math.prod(w.shape) for w in self.model.trainable_weights),
        }
        split = frozen_part(self.model) if self.how.use_cache is not False else None
        if going_on:  # as it was begun
            split = split if split and split.at == self.doing["cut"] else None
        stage = self.solvable(stage, split)
        if not going_on:
            as_asked = self.how.use_cache or self.how.deterministic
            if split and not (as_asked or self.workers.agree(self.pays(split, stage))):
                split = None
            if split and not self.room(stage):
                self.say("not enough disk for activations: computing every layer in every epoch")
                split, stage = None, self.solvable(stage, None)
            self.doing = {"stage": index, "cut": None, "batch": stage.batch}
        self.doing["cut"] = split.at if split else None
        for callback in (self.guard, self.best, self.history, self.progress):
            callback.new_stage(stage.name)
        if resume and not going_on:
            resume.new_stage(stage.name)
        epochs = stage.epochs if stage.optimizer != LBFGS else 1
        if resume and going_on and resume.epoch >= epochs:
            resume.put_back()
        else:
            self.say(
                f"stage {stage.name}: trains {', '.join(groups)}; {facts['trainable']:,} parameters"
                + (f"; all below {split.at} is computed once" if split else "")
            )
            if resume and going_on:
                at = f"epoch {resume.epoch + 1}, step {resume.batch + 1}"
                self.say(f"going on in stage {stage.name}, {at}")
                if split and not self.room(stage):
                    raise ResourceError(
                        "resource.disk",
                        "no room for the activations that the stage was begun on",
                        where=shelf.root(),
                        fix="make room on the disk, or a larger DLZOO_CACHE_LIMIT, and go on",
                    )
            self.fit_in_memory(stage, split)
        facts |= {**self.doing, "seconds": round(time.perf_counter() - began, 2)}
        del facts["stage"]
        self.outcome.stages.append(facts)

    def solvable(self, stage: Stage, split: Split | None) -> Stage:
        """Return the stage; by steps, of which the plan knows nothing, if it cannot be solved."""
        if stage.optimizer != LBFGS or self.convex(split):
            return stage
        found = head_by_steps(stage)
        self.say(f"stage {stage.name}: it cannot be solved, and takes up to {found.epochs} epochs")
        return found

    def convex(self, split: Split | None) -> bool:
        """Say whether the stage trains the last layer alone, by the labels and nothing else."""
        more = self.plan.l1 or self.plan.l2 or self.plan.temperature
        if split is None or split.at != "features" or more:
            return False
        trained = [layer.name for layer in split.top.layers if layer.trainable_weights]
        return trained == ["logits"]

    def pays(self, split: Split, stage: Stage) -> bool:
        """Say whether computing the frozen layers once is estimated to be faster; tell why."""
        n, places = self.data.splits, [split.at]
        missing = self.frozen.missing(places, ["train"], range(stage.views))
        missing += self.frozen.missing(places, ["val"])
        if not missing or stage.optimizer == LBFGS:
            return True
        found = estimate.stage(
            estimate.rates(self.frozen, self.places(stage)), split, stage, n, missing
        )
        self.say(f"stage {stage.name}: {found}")
        return found.cached <= found.live

    def room(self, stage: Stage) -> bool:
        """Say whether there is room for what a stage's activations lack. Where it does not also
        do for those of later stages, each stage computes its own.
        """
        found = self.frozen.room(
            (places, self.frozen.missing(places, splits, views), views)
            for places, splits, views in self.wanted(stage)
        )
        if found or not self.ahead:
            return found
        self.ahead = False
        return self.room(stage)

    def wanted(self, stage: Stage) -> list[tuple[list[str], list[str], range]]:
        """Return which activations a stage takes: of places, splits and views."""
        # The test photos, too: they are measured on these activations in the end.
        splits = [name for name in SPLITS if self.data.splits[name]]
        plain = (self.places(stage), splits, range(1))
        varied = (self.places(stage, stage.views), ["train"], range(1, stage.views))
        return [plain, varied] if stage.views > 1 else [plain]

    def places(self, stage: Stage, views: int = 1) -> list[str]:
        """Return where this stage and later ones want activations of so many views at least; of
        those that have no room together (`ahead`) the stage's own.
        """
        if self._places is None:
            self._places = {}
            for each in self.plan.stages:
                unfreeze(self.model, each.unfreeze, train_bn=self.plan.train_bn)
                if split := frozen_part(self.model):
                    self._places[each.name] = split.at
            unfreeze(self.model, stage.unfreeze, train_bn=self.plan.train_bn)  # as it was
        names = [each.name for each in self.plan.stages]
        first = names.index(stage.name)
        later = self.plan.stages[first:] if self.ahead else self.plan.stages[first : first + 1]
        found = (self._places.get(each.name) for each in later if each.views >= views)
        return list(dict.fromkeys(place for place in found if place))

    def fit_in_memory(self, stage: Stage, split: Split | None) -> None:
        """Fit a stage; where its batch does not fit into memory and may be halved, do so."""
        resume = self.resume
        if resume and (resume.epoch or resume.batch):
            resume.load(self.beginning)
        elif self.how.halve:
            self.beginning.take()
        smallest = max(1, stage.batch >> HALVINGS)
        while True:
            batch = self.doing["batch"]
            try:
                with traced_graphs_let_go():
                    return self.fit(stage, split, batch)
            except (tf.errors.ResourceExhaustedError, MemoryError) as error:
                if self.beginning.version is None or batch // 2 < smallest:
                    raise _too_large(batch) from error
            self.doing["batch"] = batch // 2
            self.say(f"out of memory with a batch of {batch}: two of {batch // 2} make a step")
            self.beginning.put_back()
            if resume:
                resume.new_stage(stage.name)

    def fit(self, stage: Stage, split: Split | None, batch: int) -> None:
        """Train what the stage has unfrozen, from where the checkpoint found stands.

        Args:
            batch: images that are computed at a time; several such make a step of the plan's.
        """
        self._batch = batch
        together = max(1, stage.batch // batch)
        by_steps = stage.optimizer != LBFGS
        first = (self.resume.epoch, self.resume.batch) if self.resume else (0, 0)
        strategy = self.how.machine.strategy
        slices = 1
        if several := self.how.machine.replicas > 1:  # they add up within a step
            slices, together, batch = together, 1, stage.batch
        images = self.cached(split, stage, batch) if split else self.live(stage, batch)
        train_set, val_set, val_batch = images
        trained = self.model if split is None else split.top
        if split and not engine.on_gpu():  # its shortcuts were measured on CPUs alone
            trained = trainable_view(split.top)
        if several:
            trained = replicated(trained, slices)
        steps = math.ceil(self.data.splits["train"] / batch)
        optimizer = make_optimizer(
            stage.optimizer if by_steps else "sgd",
            stage.lr,
            weight_decay=stage.weight_decay,
            multipliers=layer_multipliers(graph.groups(self.model), stage.decay),
            ema=(self.plan.ema or None) if by_steps else None,
            accumulate=together,
        )
        task, plan = self.data.task, self.plan
        loss = make_loss(task, plan.label_smoothing, plan.temperature)
        compile_model(trained, optimizer, loss, task, weighted=several)
        some = self.data.labels("train")[:1]
        targets = self.data.targets("train")[:1]
        build_metrics(trained, targets, np.zeros_like(some), np.ones(1, np.float32))
        callbacks = self.callbacks(stage, steps)
        if self.resume:
            kept = [c for c in callbacks if isinstance(c, Resumable)]
            kept += [self.beginning] * self.how.halve
            callbacks.append(self.resume.watching(kept))
        if not by_steps:
            self.converge(stage, trained, callbacks)
            return
        seen, measured, val_steps = None, None, None
        if several:
            seen = spread(strategy, lambda part: train_set(*first, part))
            measured = spread(strategy, val_set)
            val_steps = math.ceil(self.data.splits["val"] / val_batch)
        else:
            # of no known length: Keras would count the steps passed over, and end too soon
            seen = train_set(*first).filter(lambda *batch: True)
            measured = val_set()
        try:
            with surfacing(self.data):
                trained.fit(
                    seen,
                    initial_epoch=first[0],
                    epochs=stage.epochs,
                    steps_per_epoch=steps,
                    validation_data=measured,
                    validation_steps=val_steps,
                    callbacks=callbacks,
                    shuffle=False,  # the datasets bring their order along
                    verbose=0,
                )
                if self.doing["cut"] is None and self.stop.received is None and self.workers.chief:
                    self.tell_share_of_images(train_set(0, 0), steps)
        except DataError:  # a photo vanished: what was trained on the others stays
            for callback in callbacks:
                if isinstance(callback, AverageWeights):
                    callback.put_back()
            if self.resume:
                self.resume.save_what_is_done()
            raise

    def tell_share_of_images(self, images, steps: int) -> None:
        """Measure what making the images costs of a training step; warn if it is most of it."""
        if not self.history.rows or self.history.rows[-1]["seconds"] <= 0:
            return
        few = iter(images.take(SAMPLE + 1))
        next(few)  # the first one waits for threads to start
        began = time.perf_counter()
        alone = sum(1 for _ in few)
        if not alone:
            return
        of_images = (time.perf_counter() - began) / alone
        share = min(1.0, of_images / (self.history.rows[-1]["seconds"] / steps))
        self.doing |= {"images_share": round(share, 3), "starved": share > STARVED}
        if share > STARVED:
            self.say(
                f"train.starved: making the images takes {share:.0%} of a step; a lighter "
                "--augment, smaller photos or a faster disk would make it shorter"
            )

    def converge(self, stage: Stage, trained: keras.Model, callbacks) -> None:
        """Solve for the last layer; to the callbacks that is one epoch. Of several processes
        one solves: another machine's numbers may differ in the last bit.
        """
        # what it comes to is saved as a whole epoch, never as a step inside one
        every = keras.callbacks.CallbackList(callbacks, model=trained, epochs=1, steps=1)
        every.on_train_begin()
        every.on_epoch_begin(0)
        trained.optimizer.learning_rate = math.nan  # it takes no steps
        logits, figures = self.model.get_layer("logits"), None
        kernel, bias = logits.get_weights()
        if self.workers.chief:
            train, val = (EveryView(self.activations[split]) for split in ("train", "val"))
            found = probe.fit(
                (train, train.labels, train.weights),
                (val, val.labels, val.weights),
                self.data.task,
                parts=graph.joined(self.model),
                label_smoothing=self.plan.label_smoothing,
                leave=self.leave_if_interrupted,
            )
            kernel, bias = found.kernel, found.bias
            penalties = f"{len(found.rows)} penalties; l2 {found.l2:.1e} is best"
            self.say(f"stage {stage.name}: converged, {penalties}")
            chosen = next(row for row in found.rows if row["l2"] == found.l2)
            figures = {name: value for name, value in chosen.items() if name != "l2"}
        figures = self.workers.agree(figures)
        of_chief = slice(len(kernel))
        logits.set_weights(
            [self.workers.gather(kernel)[of_chief], self.workers.gather(bias)[: len(bias)]]
        )
        every.on_train_batch_end(0, figures)  # without them it would be a step passed over
        every.on_epoch_end(0, figures)
        every.on_train_end()

    def callbacks(self, stage: Stage, steps: int) -> list[keras.callbacks.Callback]:
        total = stage.epochs * steps
        policy: Resumable
        if stage.schedule == "cosine":
            policy = WarmupCosine(stage.lr, total, round(stage.warmup * total))
        elif stage.schedule == "onecycle":
            policy = OneCycle(stage.lr, total)
        elif stage.schedule == "plateau":
            policy = ReduceLROnPlateau(self.plan.monitor, patience=max(1, stage.patience // 2))
        else:
            policy = Constant(stage.lr)
        early = EarlyStopping(self.plan.monitor, patience=stage.patience)
        for callback in (policy, early):
            callback.new_stage(stage.name)
        found = [self.stop, policy, self.guard, early, self.best, self.history, self.progress]
        return [*found, AverageWeights()] if self.plan.ema and stage.optimizer != LBFGS else found

    def live(self, stage: Stage, batch: int) -> Images:
        """Return what makes the two datasets of images, and the second one's batch.

        The first takes the epoch and step it begins with, both the part of a replica.
        """
        plan = self.plan

        def train_set(epoch, step, part=None):
            images = batches(
                self.data, "train", self.rule, batch=batch, augment=plan.augment,
                seed=plan.seed, shuffle=True, epochs=stage.epochs, start_epoch=epoch,
                start_step=step, weights=self.weights, part=part,
            )  # fmt: skip
            first = epoch * math.ceil(self.data.splits["train"] / batch) + step
            return augmentation.mixed(
                images, plan.mixup, plan.seed, first, cutmix=plan.cutmix
            ).prefetch(2)

        def val_set(part=None):
            return batches(self.data, "val", self.rule, batch=batch, part=part)

        return train_set, val_set, batch

    def cached(self, split: Split, stage: Stage, batch: int) -> Images:
        """Return the same of activations."""
        frozen, wanted = self.frozen, self.wanted(stage)
        missing = sum(frozen.missing(*each) for each in wanted)
        work = missing * graph.gmacs(split.bottom)
        found = {}
        with frozen.passing(f"frozen layers up to {split.at}", missing):
            for places, splits, views in wanted:
                for name in splits:
                    found[name] = frozen.activations(
                        places, name, views=views.stop, work=work,
                        weights=self.weights if name == "train" else None,
                    )[split.at]  # fmt: skip
        several = f" ({stage.views} views)" if stage.views > 1 else ""
        self.say(
            f"frozen layers up to {split.at}{several}: "
            + (f"{frozen.speed}" if missing else "all from the cache")
        )
        self.activations = found
        train, val = found["train"], found["val"]

        def train_set(epoch, step, part=None):
            return train.batches(
                batch, seed=self.plan.seed, epochs=stage.epochs, start_epoch=epoch,
                start_step=step, shuffle=True, mixup=self.plan.mixup,
                cutmix=self.plan.cutmix, part=part,
            )  # fmt: skip

        val_batch = max(batch, 64)
        return train_set, lambda part=None: val.batches(val_batch, part=part), val_batch


def _too_large(batch: int) -> ResourceError:
    return ResourceError(
        "resource.oom",
        f"out of memory with a batch of {batch} images",
        fix=f"try --batch {max(1, batch // 2)}, or a smaller --size; checkpoints are kept",
    )
