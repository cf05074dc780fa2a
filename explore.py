"""Before a run and after several: which learning rate, which backbone, which run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import console
from .config import FinetuneConfig, resolve
from .data.records import SPLITS
from .errors import DlzooError, ModelError, UsageError
from .job import Job, with_data
from .rundir import RunDir, read_values
from .zoo import resolve as find_model
from .zoo.weights import offline_if

if TYPE_CHECKING:
    from .callbacks import LRFinder
    from .transfer.cache import Activations
    from .transfer.plan import Stage
    from .transfer.probe import Fitted

BATCH = 16  # images of the latency in batches
SECONDS = 1.0  # of measuring each latency, at least three times


def lr_find(
    backbone: str = "efficientnet_lite0",
    data: Any = None,
    *,
    stage: str | None = None,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    plot: Path | str | None = None,
    config: FinetuneConfig | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Look for the learning rate of a stage by a range test, on cached activations where it can be.

    The head starts new, whatever the preset trains before the stage: from a fitted one the loss
    has nothing left to fall by, and every rate looks too high.

    Args:
        backbone, data, config, settings: as for `finetune`.
        stage: the layers that train: `head`, a tap such as `C5`, `all`. Default: what the preset's
            first stage with a learning rate trains, or the head.
        low, high, steps: of the rates, see `callbacks.LRFinder`.
        plot: of a PNG file to draw.

    Returns:
        lr, the suggestion, with `steepest`, `tenth` and `preset` (the rate of the preset, or
        None); stage, trains (groups), cut (where it was cut, or None), optimizer, batch;
        diverged; seconds; rows (step, lr, loss, smooth).

    Raises:
        DivergedError: `train.no-rate`, the loss never fell. DlzooError: as `finetune`.
    """
    from .callbacks import LRFinder

    began = time.perf_counter()
    finder = LRFinder(low, high, steps)
    config = _settled(config, data, {**settings, "backbone": backbone})
    if stage is not None:
        config = config.model_copy(update={"stages": stage})
    with Job(config, data if data is not None else config.data) as job:
        job.find_model()
        job.load_data()
        job.build()
        found_stage = _chosen(job, named=stage)
        chosen = found_stage or _by_steps(config)
        with job.machine.strategy.scope():
            facts = _range_test(job, chosen, finder)
    found = finder.suggestion()
    result = {
        "lr": found.lr,
        "steepest": found.steepest,
        "tenth": found.tenth,
        "preset": found_stage.lr if found_stage else None,
        **facts,
        "optimizer": chosen.optimizer,
        "batch": chosen.batch,
        "diverged": finder.stopped,
        "seconds": round(time.perf_counter() - began, 2),
        "rows": finder.rows,
    }
    if plot:
        from .report import plots

        plots.rates(finder.rows, {"steepest": found.steepest, "tenth": found.tenth}, plot)
    return result


def _settled(config: FinetuneConfig | None, data: Any, settings: dict[str, Any]) -> FinetuneConfig:
    """Return the settings, checked, and tell the console of them."""
    if config is None:
        config = resolve(with_data(settings, data), called="{}=").config
    console.setup(quiet=config.quiet, log_format=config.log_format)
    return config


def _chosen(job: Job, named: str | None) -> Stage | None:
    """Return the stage to test; None is the head, which the preset fits without a rate."""
    from .transfer.plan import LBFGS

    stages = job.plan.stages
    if named is not None and len(stages) > 1:
        raise UsageError(
            "plan.stages", f"{named!r} is more than one stage", fix="--stage head, C5 or all"
        )
    return next((stage for stage in stages if stage.optimizer != LBFGS), None)


def _by_steps(config: FinetuneConfig) -> Stage:
    """Return the stage of a head that would be fitted without a learning rate."""
    from .transfer.plan import HEAD_BY_STEPS

    batch = HEAD_BY_STEPS.batch if config.batch == "auto" else config.batch
    return replace(HEAD_BY_STEPS, batch=batch)


def _range_test(job: Job, stage: Stage, finder: LRFinder) -> dict[str, Any]:
    """Run the test on the stage; what is below it is computed once."""
    import keras

    from .data import augment as augmentation
    from .data.pipeline import batches, class_weights, surfacing
    from .transfer.freeze import frozen_part, unfreeze
    from .transfer.losses import regularize
    from .transfer.optim import layer_multipliers
    from .transfer.tail import trainable_view
    from .zoo import graph

    model, plan, data = job.model, job.plan, job.data
    groups = unfreeze(model, stage.unfreeze, train_bn=plan.train_bn)
    regularize(model.layers, plan.l1, plan.l2)
    split = frozen_part(model) if job.config.cache != "off" else None
    weights = class_weights(data, "balanced") if plan.class_weight == "balanced" else None
    epochs = math.ceil(finder.steps / math.ceil(data.splits["train"] / stage.batch))
    if split:
        found = _activations(job, {"train": [split.at]}, weights)["train"][split.at]
        dataset = found.batches(
            stage.batch,
            seed=plan.seed,
            epochs=epochs,
            shuffle=True,
            mixup=plan.mixup,
            cutmix=plan.cutmix,
        )
        trained = trainable_view(split.top)
    else:
        images = batches(
            data, "train", job.rule, batch=stage.batch, augment=plan.augment, seed=plan.seed,
            shuffle=True, epochs=epochs, weights=weights,
        )  # fmt: skip
        dataset = augmentation.mixed(images, plan.mixup, plan.seed, cutmix=plan.cutmix)
        trained = model
    prepare(trained, job, stage, layer_multipliers(graph.groups(model), stage.decay))
    with surfacing(data), console.progress("learning rates") as tell, finder:
        shown = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: tell(batch + 1, finder.steps)
        )
        trained.fit(
            dataset,
            steps_per_epoch=finder.steps,
            callbacks=[finder, shown],
            shuffle=False,
            verbose=0,
        )
    return {"stage": stage.unfreeze, "trains": groups, "cut": split.at if split else None}


def prepare(
    model: Any, job: Job, stage: Stage, multipliers: dict[str, float] | None = None
) -> None:
    """Compile a model for a stage as a run would."""
    from .transfer.losses import make_loss
    from .transfer.optim import compile_model, make_optimizer

    optimizer = make_optimizer(
        stage.optimizer, stage.lr, weight_decay=stage.weight_decay, multipliers=multipliers
    )
    task = job.data.task
    compile_model(model, optimizer, make_loss(task, job.plan.label_smoothing), task)


def _activations(
    job: Job, wanted: dict[str, list[str]], weights: np.ndarray | None = None
) -> dict[str, dict[str, Activations]]:
    """Return the activations of each split at its places, from the cache or computed now."""
    from .transfer.cache import Frozen
    from .zoo import graph

    frozen = Frozen(job.model, job.data, job.rule, say=console.say, bar=console.progress)
    missing = {split: frozen.missing(places, [split]) for split, places in wanted.items()}
    work = sum(
        n * max(graph.gmacs(frozen.bottom(place)) for place in wanted[split])
        for split, n in missing.items()
    )
    frozen.room((places, missing[split], (0,)) for split, places in wanted.items())
    total = sum(missing.values())
    with frozen.passing(f"{job.variant.name}: frozen layers", total):
        found = {
            split: frozen.activations(
                places, split, weights=weights if split == "train" else None, work=work
            )
            for split, places in wanted.items()
        }
    if total:
        console.say(f"{job.variant.name}: frozen layers, {frozen.speed}")
    return found


def _fitted(job: Job, features: Mapping[str, Activations]) -> Fitted:
    """Return the head that `fast` would end with."""
    from .transfer.probe import fit
    from .zoo import graph

    train, val = ((a, a.labels, a.weights) for a in (features["train"], features["val"]))
    parts, smoothing = graph.joined(job.model), job.plan.label_smoothing
    return fit(train, val, job.data.task, parts=parts, label_smoothing=smoothing)


def compare(
    *runs: Any,
    backbones: str | Iterable[str] | None = None,
    init: str | Iterable[str] | None = None,
    data: Any = None,
    images: int = 800,
    plot: Path | str | None = None,
    config: FinetuneConfig | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Compare finished runs, backbones on one set of photos, or first weights of one backbone.

    Args:
        runs: paths of runs. backbones: names, as a list or `a,b,c`. init: what the weights begin
            with, of `imagenet`, `none` and the tags of `backbone=`. One of the three.
        data: photos, as for `finetune`.
        images: training photos at most (`init`).
        plot: of a PNG file to draw (not of runs). The curves of `init` are also written beside
            it, as CSV.
        config, settings: as for `finetune`, those that apply.

    Returns:
        What `compare_runs`, `compare_backbones` or `compare_starts` return.

    Raises:
        UsageError: `usage.compare` if not one of the three is asked for. DlzooError: as
            `finetune`.
    """
    if sum(map(bool, (runs, backbones, init))) != 1:
        raise UsageError(
            "usage.compare",
            "compare what?",
            fix="RUN RUN..., or --backbones a,b,c --data DIR, or --init imagenet,none --data DIR",
        )
    if runs and plot:
        raise UsageError("usage.compare", "of runs nothing is drawn", fix="leave --plot away")
    if runs:
        return compare_runs(runs)
    config = _settled(config, data, settings)
    source = data if data is not None else config.data
    if backbones:
        return compare_backbones(_names(backbones), source, config, plot=plot)
    from .starts import compare_starts

    return compare_starts(_names(init or ()), source, config, images=images, plot=plot)


def _names(given: str | Iterable[str]) -> list[str]:
    parts = given.split(",") if isinstance(given, str) else given
    return list(dict.fromkeys(name.strip() for name in parts if name.strip()))


def compare_runs(runs: Sequence[Any]) -> dict[str, Any]:
    """Return what runs came to, and in which settings they differ.

    Returns:
        runs: one dict each of run, status, backbone, preset, val_accuracy, val_ci, test_accuracy,
        test_ci, epochs, seconds (None where the run has not got there) and settings, those
        that are not the same in all; same_data: whether all saw the same photos in the same
        split.

    Raises:
        UsageError: `run.not-found`.
    """

    found = []
    for run in runs:
        directory = RunDir.open(getattr(run, "path", run))
        about, config, metrics = directory.read(), {}, {}
        if directory.config.is_file():
            config = read_values(directory.config)
        if directory.metrics.is_file():
            metrics = read_values(directory.metrics)
        row = {"run": str(directory.path), "status": about["status"]}
        row["backbone"] = about.get("model", config.get("backbone"))
        row["preset"] = about.get("preset", config.get("preset"))
        for split in ("val", "test"):
            figures = metrics.get(split) or {}
            row[f"{split}_accuracy"] = figures.get("accuracy")
            row[f"{split}_ci"] = figures.get("accuracy_ci")
        row |= {key: metrics.get(key) for key in ("epochs", "seconds")}
        found.append((row, config, about.get("data")))
    shown = ("backbone", "preset", "out", "data")
    keys = sorted({key for _, config, _ in found for key in config} - set(shown))
    differ = [key for key in keys if any(c.get(key) != found[0][1].get(key) for _, c, _ in found)]
    rows = [{**row, "settings": {k: config.get(k) for k in differ}} for row, config, _ in found]
    return {"runs": rows, "same_data": len({data for *_, data in found}) == 1}


def compare_backbones(
    names: Sequence[str], data: Any, config: FinetuneConfig, *, plot: Path | str | None = None
) -> dict[str, Any]:
    """Return how well a head on each backbone does on the photos, and what it costs.

    Each has its default weights and image size (`config.size` overrides), and a head fitted to
    convergence on its pooled features, as the preset `fast` does. Features are kept in the
    cache, latencies are of the fastest engine of this machine.

    Returns:
        backbones: one dict each, the best on validation photos first, of backbone, size,
        val_accuracy, val_ci, test_accuracy, test_ci, params, gmacs, ms_one and ms_batch
        (milliseconds an image, one at a time and BATCH at once), engine, seconds; and error,
        which is None, or the reason why there are no other figures.

    Raises:
        UsageError: `model.unknown`, before anything is done. ModelError: `compare.none` if no
            backbone could be measured. DataError: as `load_data`.
    """
    with offline_if(config.offline):
        for name in names:
            find_model(name)
    fixed = {"weights": "auto", "preset": "fast", "stages": "auto", "epochs": "auto"}
    jobs = {n: Job(config.model_copy(update={**fixed, "backbone": n}), data) for n in names}
    rows: dict[str, dict[str, Any]] = {}
    for name, job in jobs.items():
        with _kept(rows, name):
            job.find_model()
    for name, job in jobs.items():
        if name in rows:
            continue
        job.source = data
        job.load_data()
        data = job.data  # scanned once
        with _kept(rows, name), job:
            rows[name] = _measured(job)
            console.say(f"{name}: {rows[name]['val_accuracy']:.1%}")
    found = sorted(rows.values(), key=lambda row: -(row.get("val_accuracy") or 0.0))
    if all(row["error"] for row in found):
        reasons = "\n  ".join(f"{row['backbone']}: {row['error']}" for row in found)
        raise ModelError(
            "compare.none",
            f"no backbone could be measured\n  {reasons}",
            fix="`dlzoo doctor` says whose weights are here, `dlzoo fetch NAME` gets them",
        )
    if plot:
        from .report import plots

        plots.tradeoff([row for row in found if not row["error"]], plot)
    return {"backbones": found}


@contextmanager
def _kept(rows: dict[str, dict[str, Any]], name: str) -> Iterator[None]:
    """Make a row of the error that keeps one backbone from being measured."""
    try:
        yield
    except DlzooError as error:
        # features of NaN are the fault of one network, too
        if not isinstance(error, ModelError | UsageError) and error.id != "train.features":
            raise
        rows[name] = {"backbone": name, "error": f"{error.id}: {error.message}"}
        console.say(f"{name}: {error.message}")


def _measured(job: Job) -> dict[str, Any]:
    """Return the row of one backbone."""
    from .report.metrics import evaluate
    from .transfer.classifier import to_probabilities
    from .zoo import graph

    began = time.perf_counter()
    job.build()
    model, data = job.model, job.data
    splits = [split for split in SPLITS if data.splits[split]]
    found = _activations(job, {split: ["features"] for split in splits})
    features = {split: found[split]["features"] for split in splits}
    fitted = _fitted(job, features)
    row = {"backbone": job.config.backbone, "size": job.plan.size}
    for split in ("val", "test"):
        figures: dict[str, Any] = {}
        if split in features:
            logits = features[split][:] @ fitted.kernel + fitted.bias
            answers = to_probabilities(logits, data.task)
            figures = evaluate(features[split].labels, answers, data.classes, data.task)
        row[f"{split}_accuracy"] = figures.get("accuracy")
        row[f"{split}_ci"] = figures.get("accuracy_ci")
    row |= {"params": model.count_params(), "gmacs": round(graph.gmacs(model), 4)}
    row["ms_one"], row["engine"] = latency(model, 1)
    row["ms_batch"], _ = latency(model, BATCH)
    return {**row, "seconds": round(time.perf_counter() - began, 2), "error": None}


def latency(model: Any, batch: int) -> tuple[float, str]:
    """Return the median milliseconds an image, computed `batch` at a time, and the engine."""
    from .transfer.engine import frozen

    run = frozen(model, batch=batch, chunk=1 if batch == 1 else None)
    shape = (batch, *model.inputs[0].shape[1:])
    images = np.random.default_rng(0).integers(0, 256, shape).astype("float32")
    run(images)  # chooses the engine
    took: list[float] = []
    while len(took) < 3 or (sum(took) < SECONDS and len(took) < 100):
        began = time.perf_counter()
        run(images)
        took.append(time.perf_counter() - began)
    return round(1000 * float(np.median(took)) / batch, 3), run.name
