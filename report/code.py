"""A run as a program: the plain Keras and TensorFlow that do what its plan says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..callbacks.best import CHANCE, WORSE
from ..data import augment, table
from ..errors import DataError, UsageError
from ..rundir import RunDir, read_values
from ..transfer import probe
from ..transfer.plan import HEAD, LBFGS, Plan, Stage, head_by_steps
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

    Its accuracy is about that of the run: order and augmentation of the images are others. Of an
    ensemble it is the program of the first member. What it leaves out is said at its top.

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
    left_out = []
    while told_of := read_values(directory.metrics).get("ensemble"):  # it may be one of several
        mirrored = bool(classifier.origin["create"].get("mirror"))
        directory, text = _first(directory, told_of, mirrored)
        if text:  # one run alone was only taught to look at the mirror image, too
            classifier = type(classifier).load(directory.model)
            left_out.append(text)
    config, about = read_values(directory.config), directory.read()
    if not config.get("data"):
        raise DataError("run.no-data", "the run was made from data in memory", where=directory.path)
    plan = Plan.from_dict(read_values(directory.plan))
    cuts = {s["name"]: s["cut"] for s in read_values(directory.metrics)["stages"]}
    convex = _convex(classifier, plan)
    stages = [_told(stage, plan, cuts.get(stage.name), convex) for stage in plan.stages]
    if plan.temperature:
        left_out.append(f"what its teacher answered ({config['teacher']}): labels alone are learnt")
    made = classifier.origin["create"]
    source = Path(config["data"])
    rows = table.read_csv(directory.manifest, ("path", "split"), "run.damaged")
    create = {k: v for k, v in made.items() if k in _CREATE}
    told: dict[str, Any] = {
        "version": __version__,
        "left_out": left_out,
        "divisor": classifier.origin.get("temperature"),
        "mirror": made.get("average") if made.get("mirror") else None,
        "source": _here(config["data"]),
        "folder": _folder(source, [row["path"] for row in rows]),
        "ignored": list(config.get("ignore_class", ())),
        "manifest": str(directory.manifest.absolute()),
        "classes": list(classifier.classes),
        "task": classifier.task,
        "rule": classifier.preprocess,
        "method": classifier.preprocess.interpolation,
        "plan": plan,
        "probe": probe,
        "parts": graph.joined(classifier.model) if convex else [],
        "chance": CHANCE,
        "worse": WORSE,
        "mode": "max" if plan.monitor.endswith("acc") else "min",
        "precision": _POLICIES.get(about["precision"], about["precision"]),
        "model": about["model"],
        "weights": None if about["weights"] == "none" else _here(about["weights"]),
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
        plain = asdict(head_by_steps(replace(stage, optimizer=HEAD.optimizer)))
    augmented = plan.augment != "none" and (cut is None or plain["views"] > 1)
    kind, more = _KINDS.get(plain["optimizer"], ("", ""))
    return plain | {
        "live": plain["optimizer"] != LBFGS and (augmented or cut != "features"),
        "augment": augmented,
        "kind": kind,
        "more": more,
        "layerwise": bool(plain["decay"] != 1 or plain["weight_decay"]),
    }


def _convex(classifier: Classifier, plan: Plan) -> bool:
    """Say whether the head is one layer and learns from labels alone: then it was solved for."""
    head = [layer.name for layer in graph.groups(classifier.model)["head"] if layer.weights]
    return head == ["logits"] and not (plan.l1 or plan.l2 or plan.temperature)


def _first(directory: RunDir, ensemble: Mapping[str, Any], mirrored: bool) -> tuple[RunDir, str]:
    """Return the first member of an ensemble, and what is left out without the others, if any."""
    members = [_member(directory, Path(told["run"])) for told in ensemble["members"]]
    if len(members) == 1:
        return members[0], ""
    how = {"weights": "the average of the weights"}.get(
        ensemble["average"], f"the average of the {ensemble['average']}"
    )
    paths = ", ".join(str(member.path.absolute()) for member in members[1:])
    of = f"{len(members)} models{' and of mirror images' if mirrored else ''}"
    return members[0], f"{how} of {of}: this is the first; the others: {paths}"


def _member(directory: RunDir, told: Path) -> RunDir:
    """Open a member: those that the ensemble trained lie in it, wherever it has gone."""
    own = directory.members / told.name
    return RunDir.open(own if own.is_dir() else told)


def _here(name: str) -> str:
    """Return the whole path of what is a file or folder, other names as they are."""
    return str(Path(name).absolute()) if Path(name).exists() else name


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
