"""Everything the report and the model card tell of a run, as plain values."""

from __future__ import annotations

import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import table
from ..data.records import SPLITS
from ..rundir import RunDir, read_values
from . import calibration, doubts, metrics, robustness

if TYPE_CHECKING:
    from ..data import Data
    from ..transfer.classifier import Classifier

WORST, DOUBTED, PAIRS = 9, 24, 10  # rows shown at most
FEW = 10  # test photos of a class below which its figures say little
Answers = Mapping[str, np.ndarray]


def of_run(directory: RunDir, classifier: Classifier) -> dict[str, Any]:
    """Return what the files of a finished run tell, without its photos."""
    from ..zoo import graph

    about, found = directory.read(), read_values(directory.metrics)
    saved = read_values(directory.model / "model.json")
    parity = directory.export / "parity.json"
    known = saved.get("calibration")
    rows = read_rows(directory.history)
    main = "test" if found["test"] else "val"
    weights = directory.model / "model.weights.h5"
    return {
        "name": directory.path.name,
        "task": classifier.task,
        "classes": list(classifier.classes),
        "about": about,
        "command": _command(directory, about["argv"]),
        "plan": read_values(directory.plan),
        "origin": saved["origin"],
        "digest": saved["weights_sha256"],
        "test": found["test"],
        "val": found["val"],
        "main": main,
        "figures": found[main],
        "pairs": _pairs(found[main], classifier.classes),
        "training": {key: found[key] for key in ("best", "stages", "epochs", "seconds")},
        "head": _head(rows, found["best"]),
        "ensemble": found.get("ensemble"),
        "counts": _counts(directory.manifest, classifier.classes),
        "problems": read_rows(directory.data_report),
        "model": {
            "params": classifier.model.count_params(),
            "gmacs": graph.gmacs(classifier.model),
            "bytes": weights.stat().st_size,
            "size": classifier.preprocess.size,
            "networks": graph.built(classifier.model).members,
            "mirrored": graph.built(classifier.model).copies > 1,
        },
        "exports": read_values(parity)
        if (parity := directory.export / "parity.json").is_file()
        else {},
        "calibration": known and {"applied": False} | known,
    }


def calibrate(
    classifier: Classifier, data: Data, answers: Answers
) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """Return the temperature of the validation photos, and what it changes.

    Returns:
        temperature; applied, whether the model answers with it; n, the photos it was fitted on;
        for `val` and, if there is one, `test`: log_loss and calibration_error, without and with
        the temperature; helps: whether the log loss of the test photos falls (without any, None).
        And for each split the answers without and with it.
    """
    from ..zoo import graph

    task, averaged = classifier.task, graph.built(classifier.model).copies > 1
    applied = None if averaged else classifier.origin.get("temperature")
    temperature = applied or calibration.fit(data.labels("val"), answers["val"], task)
    found: dict[str, Any] = {
        "temperature": temperature, "applied": bool(applied), "n": len(answers["val"])
    }  # fmt: skip
    both = {}
    for split, p in answers.items():
        other = calibration.tempered(p, task, 1 / applied if applied else temperature)
        both[split] = [other, p] if applied else [p, other]
        figures = [metrics.evaluate(data.labels(split), each, data.classes, task)
                   for each in both[split]]  # fmt: skip
        found[split] = {k: [f[k] for f in figures] for k in ("log_loss", "calibration_error")}
    before, after = found["test"]["log_loss"] if "test" in found else (None, None)
    return found | {"helps": None if before is None else bool(after < before)}, both


def of_photos(
    classifier: Classifier, data: Data, answers: Answers, main: str, seconds: float
) -> dict[str, Any]:
    """Return what needs the photos: worst answers, doubted labels, robustness, sizes, latency."""
    task, names = classifier.task, data.classes
    doubted = [
        {**row, "split": split}
        for split, p in answers.items()
        for row in doubts.label_errors(data.keys(split), data.labels(split), p, names, task)
    ]
    doubted.sort(key=lambda row: row["own"] - row["other"])
    asked = (data.keys(main), data.labels(main), answers[main], names, task)
    return {
        "worst": doubts.worst(*asked, n=WORST),
        "doubted": doubted[:DOUBTED],
        "doubted_in_all": len(doubted),
        "robustness": robustness.measure(classifier, data, main, answers[main], seconds),
        "latency_ms": _latency(classifier),
    }


def caveats(facts: Mapping[str, Any]) -> list[str]:
    """Return what the figures do not say, most important first."""
    figures, found = facts["figures"], []
    if facts["main"] == "val":
        found.append(
            "There are no test photos. All figures are of the validation photos, by which the best "
            "epoch was chosen, so they flatter the model."
        )
    low, high = figures["accuracy_ci"]
    found.append(
        f"The accuracy is measured on {figures['n']:,} photos: with others like them it may be "
        f"anything from {100 * low:.1f} to {100 * high:.1f} % (95 % interval)."
    )
    made = f"One run with one seed ({facts['plan']['seed']})"
    if facts["ensemble"]:
        n = max(len(facts["ensemble"]["members"]), facts["model"]["networks"])
        made = f"One ensemble of {n} models" if n > 1 else made
    found.append(
        f"{made}: another seed or another split gives other figures, often by as much as the "
        "interval is wide."
    )
    few = [name for name, row in figures["per_class"].items() if row["support"] < FEW]
    if few:
        some = ", ".join(few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        found.append(f"Fewer than {FEW} photos of {some}: their own figures say little.")
    if leaks := facts["counts"]["leaks"]:
        found.append(
            f"{leaks:,} images of equal content lie in more than one split: what was learnt by "
            "heart counts as right."
        )
    kind = "Test" if facts["main"] == "test" else "Validation"
    found.append(
        f"{kind} photos come from the same source as the training photos. Other cameras, places "
        "or years are likely to do worse: dlzoo eval RUN --data DIR tells how much."
    )
    answers = "its labels, or none" if facts["task"] == "multilabel" else "one of its classes"
    found.append(f"Whatever is shown, the model answers with {answers}.")
    return found


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file of the run; none if it is not there."""
    return table.read_csv(path, (), "run.damaged") if path.is_file() else []


def _command(directory: RunDir, argv: Sequence[str]) -> str:
    program, *rest = argv
    if program == "dlzoo":
        return shlex.join(["dlzoo", *rest])
    return f"dlzoo finetune --config {shlex.quote(directory.path.name)}/config.toml"


def _pairs(figures: Mapping[str, Any], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the pairs of classes that are confused most often."""
    if figures["task"] == "multilabel":  # no pairs there
        return []
    return [
        {"true": true, "predicted": predicted, "n": n,
         "share": n / figures["per_class"][true]["support"]}
        for true, predicted, n in doubts.pairs(figures["confusion"], classes)[:PAIRS]
    ]  # fmt: skip


def _head(rows: Sequence[Mapping[str, str]], best: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the validation accuracy of the head alone and of the model kept, if both were."""
    head = [float(row["val_acc"]) for row in rows if row["stage"] == "head" and row.get("val_acc")]
    kept = rows[best["epoch"] - 1].get("val_acc")
    if not head or not kept or best["stage"] == "head":
        return None
    return {"head": max(head), "kept": float(kept)}


def _counts(manifest: Path, classes: Sequence[str]) -> dict[str, Any]:
    """Return the photos of each class and split, copies, and those in more than one split."""
    rows = read_rows(manifest)
    of = {split: Counter[str]() for split in SPLITS}
    splits, copies = Counter[str](), defaultdict[str, list[dict[str, str]]](list)
    for row in rows:
        splits[row["split"]] += 1
        # a name may hold a bar itself; then it is no list
        names = [row["label"]] if row["label"] in classes else row["label"].split("|")
        of[row["split"]].update(names)
        copies[row["sha256"]].append(row)
    several = [found for found in copies.values() if len(found) > 1]
    return {
        "splits": {split: splits[split] for split in SPLITS},
        "classes": {name: {split: of[split][name] for split in SPLITS} for name in classes},
        "copies": sum(len(found) - 1 for found in several),
        "leaks": sum(len({row["split"] for row in found}) > 1 for found in several),
        "conflicts": sum(len({row["label"] for row in found}) > 1 for found in several),
    }


def _latency(classifier: Classifier) -> float:
    """Return the milliseconds that one photo takes, the median of several."""
    size = classifier.preprocess.size
    photo, seconds = np.full((1, size, size, 3), 127, "float32"), []
    for _ in range(6):
        began = time.perf_counter()
        classifier.probabilities(photo)
        seconds.append(time.perf_counter() - began)
    return 1e3 * float(np.median(seconds[1:]))
