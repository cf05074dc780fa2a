"""A run as a program: the plain Keras and TensorFlow that do what its plan says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..data import augment, table
from ..errors import DataError, UsageError
from ..rundir import RunDir, read_values
from ..transfer.plan import HEAD_BY_STEPS, LBFGS, Plan, Stage
from ..zoo import graph

if TYPE_CHECKING:
    from ..transfer.classifier import Classifier

TEMPLATE = "code.py.jinja"
_POLICIES = {"fp16": "mixed_float16", "bf16": "mixed_bfloat16"}
# optimizer of a plan -> class of Keras, and its further arguments
_KINDS = {
    "sgd": ("SGD", ""),
    "momentum": ("SGD", ", momentum=0.9"),
    "nesterov": ("SGD", ", momentum=0.9, nesterov=True"),
    "adam": ("Adam", ""),
    "adamw": ("Adam", ""),  # its decay is that of `layerwise`
}
# arguments of `create_model` that a run may have other than their defaults
_CREATE = ("num_classes", "input_shape", "pool", "taps", "dropout")


def of_run(directory: RunDir, classifier: Classifier, flip: Callable[[], bool]) -> str:
    """Return a Python program that trains and measures as a finished run did.

    Its accuracy is about that of the run: order and augmentation of the images are others.

    Args:
        flip: says whether the photos may be mirrored.

    Raises:
        UsageError: `run.unfinished`. DataError: `run.no-data` for a run of data in memory.
    """
    if not directory.metrics.is_file():
        raise UsageError(
            "run.unfinished", "the run has not come to its end", where=directory.path,
            fix="dlzoo resume, or train again",
        )  # fmt: skip
    config, about = read_values(directory.config), directory.read()
    if not config.get("data"):
        raise DataError("run.no-data", "the run was made from data in memory", where=directory.path)
    plan = Plan.from_dict(read_values(directory.plan))
    cuts = {s["name"]: s["cut"] for s in read_values(directory.metrics)["stages"]}
    convex = _convex(classifier, plan)
    stages = [_told(stage, plan, cuts.get(stage.name), convex) for stage in plan.stages]
    source = Path(config["data"])
    rows = table.read_csv(directory.manifest, ("path", "split"), "run.damaged")
    create = {k: v for k, v in classifier.origin["create"].items() if k in _CREATE}
    told: dict[str, Any] = {
        "version": __version__,
        "source": config["data"],
        "folder": _folder(source, [row["path"] for row in rows]),
        "ignored": list(config.get("ignore_class", ())),
        "manifest": str(directory.manifest.absolute()),
        "classes": list(classifier.classes),
        "task": classifier.task,
        "rule": classifier.preprocess,
        "method": classifier.preprocess.interpolation,
        "plan": plan,
        "mode": "max" if plan.monitor.endswith("acc") else "min",
        "precision": _POLICIES.get(about["precision"], about["precision"]),
        "model": about["model"],
        "weights": None if about["weights"] == "none" else about["weights"],
        "create": {k: tuple(v) if isinstance(v, list) else v for k, v in create.items()},
        "stages": stages,
        "cut": any(not stage["live"] for stage in stages),
        "augments": any(stage["augment"] for stage in stages),
        "level": augment.level(plan.augment),
        "flip": plan.augment != "none" and flip(),
        "weighted": plan.class_weight == "balanced",
        "has_test": any(row["split"] == "test" for row in rows),
    }
    return _render(told)


def _told(stage: Stage, plan: Plan, cut: str | None, convex: bool) -> Mapping[str, Any]:
    """Return what the program must know of a stage that was cut where `cut` says."""
    plain = asdict(stage)
    if stage.optimizer == LBFGS and not (convex and cut == "features"):
        plain = asdict(HEAD_BY_STEPS) | {"name": stage.name, "unfreeze": stage.unfreeze}
    augmented = plan.augment != "none" and (cut is None or plain["views"] > 1)
    kind, more = _KINDS.get(plain["optimizer"], ("", ""))
    return plain | {
        "live": augmented or cut != "features",
        "augment": augmented,
        "kind": kind,
        "more": more,
        "layerwise": bool(plain["decay"] != 1 or plain["weight_decay"]),
    }


def _convex(classifier: Classifier, plan: Plan) -> bool:
    """Say whether the head is one layer without penalties: then it was fitted to convergence."""
    head = [layer.name for layer in graph.groups(classifier.model)["head"] if layer.weights]
    return head == ["logits"] and not (plan.l1 or plan.l2)


def _folder(source: Path, keys: list[str]) -> str | None:
    """Return the folder that the keys of the photos are paths in; None for other sources."""
    for folder in (source, source.parent):
        if folder.is_dir() and all((folder / key).is_file() for key in keys[:3]):
            return str(folder.absolute())
    return None


def _render(told: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # it is Python: values go through `repr`
    )
    environment.filters["repr"] = repr
    return environment.get_template(TEMPLATE).render(**told)
