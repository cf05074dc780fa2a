"""Ensembles: several runs become one, in a run directory like any other."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cluster, console, files
from .config import FinetuneConfig
from .data import Data
from .errors import Interrupted, UsageError
from .job import Job, may_fetch
from .rundir import RunDir, read_values
from .workers import Workers
from .zoo import resolve

if TYPE_CHECKING:
    from .transfer.classifier import Classifier

BETWEEN = " + "  # the names of the backbones of one model


def make_job(config: FinetuneConfig, source: Any) -> Job:
    """Return what does the job that the settings ask for: of one model or of several."""
    runs = _made_of(config)
    several = runs or _wanted(config) > 1 or "," in config.backbone
    return Ensemble(config, source, runs) if several else Job(config, source)


def _made_of(config: FinetuneConfig) -> list[str]:
    """Return the finished runs that a run to go on with is made of, if it is of any."""
    begun = Path(config.out) / config.name / "run.json" if config.name else None
    if config.resume == "auto" and begun and begun.is_file():
        return read_values(begun).get("members", [])
    return []


def _wanted(config: FinetuneConfig) -> int:
    """Return how many models are to be trained, as far as backbones do not ask for more."""
    from .transfer.plan import MEMBERS as of_preset

    if config.ensemble != "auto":
        return config.ensemble
    # from scratch, or where time is short, one model gets all there is
    alone = config.weights == "none" or config.time or "," in config.backbone or cluster.find()
    return 1 if alone else of_preset[config.preset]


class Ensemble(Job):
    """The steps of a run whose model is made of several; what is trained are its members.

    Each member is a run of its own in `members/`, with another seed or another backbone and the
    same photos in the same splits. What frozen layers compute of the photos is shared by all
    members of a backbone, so each one costs only what it trains.

    Args:
        config, source: as for :class:`Job`; several backbones are separated by commas.
        runs: finished runs to take as members, instead of training some.
    """

    def __init__(self, config: FinetuneConfig, source: Any, runs: Sequence[Path | str] = ()):
        super().__init__(config, source)
        self.whole = self.config
        self.runs = [Path(run).resolve() for run in runs]
        self.told: dict[str, Any] = {}
        self._loaded: list[Classifier] = []
        backbones = [name.strip() for name in config.backbone.split(",") if name.strip()]
        n = len(self.runs) or max(_wanted(config), len(backbones))
        self.backbones = [backbones[i % len(backbones)] for i in range(n)]

    def meet(self) -> Workers:
        """Refuse to be one of several processes: each member would have to be such a job."""
        workers = super().meet()
        if workers.count > 1:
            raise UsageError(
                "ensemble.workers",
                f"{workers.count} processes train one model, not several",
                fix="train the members one by one with them, then: dlzoo ensemble RUN RUN",
            )
        return workers

    @may_fetch
    def find_model(self) -> None:
        """Resolve and fetch all backbones; the first one is that of the header."""
        if self.runs:  # they are trained: no weights are fetched
            tag = True if self.whole.weights == "auto" else None
            self.variant, self.row = resolve(self.backbones[0], tag)
            self.weights, self.pretrained = None, False
            self.named = self.variant.name
            return
        for name in reversed(dict.fromkeys(self.backbones)):
            self.config = self.whole.model_copy(update={"backbone": name})
            super().find_model()

    def build(self, begun: RunDir | None = None) -> None:
        """Build the first member, whose plan and size stand in the header; from then on the
        settings are those of the ensemble.
        """
        from .transfer.combine import check_alike
        from .transfer.plan import LBFGS

        self.config = self.config.model_copy(update={"time": self._time})
        super().build(RunDir.open(self.runs[0]) if self.runs else begun)
        self.config = self.whole
        if self.runs:  # no run is made of what cannot be made one
            check_alike(self._trained(self.runs), self.whole.average)
        convex = all(stage.optimizer == LBFGS for stage in self.plan.stages)
        if convex and not self.runs and len(set(self.backbones)) < len(self.backbones):
            raise UsageError(
                "ensemble.alike",
                "a head that is fitted to convergence is the same with every seed",
                fix="--preset balanced, or several backbones: --backbone NAME,NAME",
            )

    @property
    def _time(self) -> int | None:
        """The seconds that a member has, if there is a limit for all."""
        return self.whole.time and max(1, self.whole.time // len(self.backbones))

    def rehearse(self) -> dict[str, Any]:
        """Rehearse the first member, and say that it is one of several."""
        found, n = super().rehearse(), len(self.backbones)
        console.say(f"{n} models are trained and averaged; this is one of {self.backbones[0]}")
        return found | {"members": self.backbones}

    def write_inputs(self, directory: RunDir) -> None:
        """Write what the run starts from, and which runs it is made of."""
        if self.runs:
            directory.record(members=[str(run) for run in self.runs])
        super().write_inputs(directory)

    def to_resume(self, stem: str) -> RunDir | None:
        """Return the run to go on with, see :meth:`Job.to_resume`."""
        self.config = self.whole
        return super().to_resume(stem)

    def train(self, directory: RunDir, resume: bool):
        """Train the members that are not finished, and put them together."""
        from .transfer.combine import together

        runs = self.runs or [self._member(directory, i).path for i in range(len(self.backbones))]
        found = self._trained(runs)
        with self.machine.strategy.scope():
            made, self.told = together(found, self.data, self.whole.average, console.say)
        for told, run in zip(self.told["members"], runs, strict=True):
            told["run"] = str(run)
        self.model, self.rule = made.model, made.preprocess
        return self._outcome(directory, runs)

    def _trained(self, runs: Sequence[Path]) -> list[Classifier]:
        from .transfer.classifier import Classifier

        if not self._loaded:
            self._loaded = [Classifier.load(RunDir.open(run).model) for run in runs]
        return self._loaded

    def _member(self, directory: RunDir, i: int) -> RunDir:
        """Train one member, or go on with it; return its run if it is finished already."""
        changed = {
            "backbone": self.backbones[i],
            "seed": self.whole.seed + i,
            "ensemble": 1,  # not the preset's
            "average": "auto",
            "name": str(i + 1),
            "out": str(directory.members),
            "split_file": str(directory.manifest),
            "resume": "auto",
            "time": self._time,
            "tta": "off",
            "export": [],
        }
        console.say(f"member {i + 1} of {len(self.backbones)}: {self.backbones[i]}")
        try:
            return Job(self.whole.model_copy(update=changed), self.data).run()
        except Interrupted as error:
            raise Interrupted(
                error.id,
                f"member {i + 1} of {len(self.backbones)}: {error.message}",
                where=directory.path,
                fix=f"go on with: {shlex.join(['dlzoo', 'resume', str(directory.path)])}",
            ) from None

    def _outcome(self, directory: RunDir, runs: Sequence[Path]):
        """Return what training came to: the epochs and stages of all members in turn."""
        from .transfer.fit import Outcome

        outcome, at = Outcome(), 0
        members = zip(runs, self._trained(runs), self.told["members"], strict=True)
        for number, (run, trained, told) in enumerate(members, 1):
            member = RunDir.open(run)
            metrics = read_values(member.metrics)
            told["model"] = trained.origin["backbone"]
            told["test"] = metrics["test"] and metrics["test"]["accuracy"]
            with member.history.open(encoding="utf-8", newline="") as file:
                rows: list[dict[str, Any]] = list(csv.DictReader(file))
            outcome.stages += [s | {"name": f"{number} {s['name']}"} for s in metrics["stages"]]
            best = metrics["best"]
            if not outcome.best or told["loss"] < min(
                t["loss"] for t in self.told["members"][: number - 1]
            ):
                outcome.best = best | {"epoch": at + best["epoch"],
                                       "stage": f"{number} {best['stage']}"}  # fmt: skip
            for row in rows:
                at += 1
                outcome.rows.append(row | {"epoch": at, "stage": f"{number} {row['stage']}"})
        names = list(dict.fromkeys(name for row in outcome.rows for name in row))
        with files.replacing(directory.history) as out:
            writer = csv.DictWriter(out, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(outcome.rows)
        return outcome

    def mirrored(self, classifier: Classifier) -> Classifier:
        """Let it look at mirror images, too; of finished runs `auto` asks the validation photos."""
        from .transfer.combine import mirrored_if_better

        if self.runs and self.whole.tta == "auto":
            return mirrored_if_better(classifier, self.data, console.say)
        return super().mirrored(classifier)

    def temper(self, classifier: Classifier) -> None:
        """Leave the answers as they are where they are averaged: each member's are tempered."""
        if self.told["average"] == "weights":
            super().temper(classifier)

    def finish(self, directory: RunDir, outcome) -> None:
        """Save the classifier and its figures, with those of the members beside them."""
        if self.told["average"] != "weights":
            names = {n for told in self.told["members"] for n in told["model"].split(BETWEEN)}
            self.variant = replace(self.variant, name=BETWEEN.join(sorted(names)))
        super().finish(directory, outcome)
        values = read_values(directory.metrics)
        files.write_json(directory.metrics, values | {"ensemble": self.told})


def of_runs(runs: Sequence[RunDir], data: Data, config: FinetuneConfig) -> Ensemble:
    """Return the job that makes an ensemble of finished runs.

    Raises:
        UsageError: `ensemble.few`; `ensemble.unfinished`; `ensemble.data`: they were trained on
            other photos or another split, so test photos of one are training photos of another.
    """
    if not runs:
        raise UsageError("ensemble.few", "no run was given", fix="dlzoo ensemble RUN RUN")
    for run in runs:
        if run.read()["status"] != "finished":
            raise UsageError(
                "ensemble.unfinished",
                f"it is {run.read()['status']}",
                where=run.path,
                fix=f"dlzoo resume {run.path}",
            )
        if run.read()["data"] != data.fingerprint:
            raise UsageError(
                "ensemble.data",
                "it was trained on other photos, or in other splits, than the first run: test "
                "photos of the one may be training photos of the other",
                where=run.path,
                fix=f"train it with --split-file {runs[0].manifest}",
            )
    return Ensemble(config, data, [run.path for run in runs])
