"""The course's chart: one network trained from several first weights, all else being the same."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from . import console, files
from .config import FinetuneConfig
from .errors import UsageError
from .job import Job

EPOCHS, IMAGES = 8, 800  # where nothing is said
MOMENTUM = 0.9  # of BatchNorm's statistics
INITS = {"imagenet": "auto", "none": "none"}  # what is said -> the setting `weights`


def compare_starts(
    inits: Sequence[str],
    data: Any,
    config: FinetuneConfig,
    *,
    images: int = IMAGES,
    plot: Path | str | None = None,
) -> dict[str, Any]:
    """Train the whole network from several first weights, all else being the same.

    It is kept short: EPOCHS epochs, IMAGES training photos and a quarter of that to validate
    on, and small images, unless said otherwise.

    Returns:
        backbone, size, images (trained and validated on), and curves: for each of `inits` its
        `accuracy` on validation photos before the first and after each epoch, its `start` (after
        the first epoch), `slope` (largest rise in one epoch) and `asymptote` (mean of the last
        quarter of the epochs), and `seconds`; higher: for each of the three which of `inits`
        has the highest, or None if two are equal.

    Raises:
        UsageError: `usage.compare`. DlzooError: as `finetune`.
    """
    if len(inits) < 2 or images < 1:
        raise UsageError(
            "usage.compare",
            "at least two kinds of first weights are compared, on at least one photo",
            fix="--init imagenet,none",
        )
    common: dict[str, Any] = {
        "taps": ["C4", "C5"], "pool": "avg", "crop": 1.0, "dropout": 0.2, "label_smoothing": 0.0,
        "stages": "auto", "epochs": "auto", "train_bn": True, "preset": "balanced",
    }  # fmt: skip
    if config.augment == "auto":
        common["augment"] = "light"
    jobs = {}
    for name in inits:
        weights = INITS.get(name, name)
        jobs[name] = Job(config.model_copy(update={**common, "weights": weights}), data)
        jobs[name].find_model()
    curves: dict[str, dict[str, Any]] = {}
    size = config.size
    for name, job in jobs.items():
        job.source = data
        job.load_data()
        if not curves:
            few = {"train": images, "val": max(1, images // 4), "test": 0}
            job.data = job.data.some(**few)
        data = job.data
        if size == "auto":
            from .transfer.plan import MIN_SIZE

            size = min(job.make_plan(job.config.preset).size, max(MIN_SIZE, job.variant.min_size))
        job.config = job.config.model_copy(update={"size": size})
        with job:
            job.build()  # sets the seed of all that is random
            began = time.perf_counter()
            with job.machine.strategy.scope():
                accuracy = _trained(job, name, EPOCHS if config.epochs == "auto" else config.epochs)
        curves[name] = {
            "accuracy": accuracy,
            "start": accuracy[1],
            "slope": float(np.diff(accuracy).max()),
            "asymptote": float(np.mean(accuracy[-max(1, len(accuracy) // 4) :])),
            "seconds": round(time.perf_counter() - began, 2),
        }
    higher = {part: _highest(curves, part) for part in ("start", "slope", "asymptote")}
    found = {
        "backbone": job.variant.name,
        "size": size,
        "images": {split: data.splits[split] for split in ("train", "val")},
        "curves": curves,
        "higher": higher,
    }
    if plot:
        from .report import plots

        plots.starts(curves, higher, plot)
        write_curves(curves, Path(plot).with_suffix(".csv"))
    return found


def _trained(job: Job, name: str, epochs: int) -> list[float]:
    """Return the validation accuracy before the first epoch and after each."""
    import keras

    from .callbacks import History, WarmupCosine
    from .data.pipeline import batches, surfacing
    from .explore import prepare
    from .transfer.freeze import unfreeze
    from .transfer.plan import SCRATCH

    model, data, config = job.model, job.data, job.config
    given = {key: getattr(config, key) for key in ("lr", "batch", "optimizer")}
    stage = replace(SCRATCH, **{key: v for key, v in given.items() if v != "auto"})
    unfreeze(model, "all", train_bn=True)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # a few hundred steps are too few for statistics that remember hundreds
            layer.momentum = min(layer.momentum, MOMENTUM)
    prepare(model, job, stage)
    steps = math.ceil(data.splits["train"] / stage.batch)
    history, total = History(), steps * epochs
    schedule = WarmupCosine(stage.lr, total, round(stage.warmup * total))
    options: dict[str, Any] = {"batch": stage.batch, "seed": config.seed}
    with surfacing(data), console.progress(f"{job.variant.name} from {name}") as tell:
        shown = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: tell(epoch + 1, epochs)
        )
        val = batches(data, "val", job.rule, batch=stage.batch)
        before = model.evaluate(val, verbose=0, return_dict=True)["acc"]
        model.fit(
            batches(
                data, "train", job.rule, augment=job.plan.augment, shuffle=True, epochs=epochs,
                **options,
            ),
            epochs=epochs,
            steps_per_epoch=steps,
            validation_data=val,
            callbacks=[schedule, history, shown],
            shuffle=False,
            verbose=0,
        )  # fmt: skip
    return [float(before), *(row["val_acc"] for row in history.rows)]


def _highest(curves: dict[str, dict[str, Any]], part: str) -> str | None:
    values = {name: curve[part] for name, curve in curves.items()}
    best = [name for name, value in values.items() if value == max(values.values())]
    return best[0] if len(best) == 1 else None


def write_curves(curves: dict[str, dict[str, Any]], path: Path) -> None:
    """Write the accuracies as CSV: epoch (0 is before the first), one column each."""
    with files.replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["epoch", *curves])
        each = zip(*(curve["accuracy"] for curve in curves.values()), strict=True)
        writer.writerows([epoch, *accuracies] for epoch, accuracies in enumerate(each))
