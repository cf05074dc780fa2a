"""The main job from end to end, and what one can do with its result."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from . import console
from .config import FinetuneConfig, resolve
from .data import Data, load_data
from .errors import DataError, DlzooError, GateError, ResumeError, UsageError
from .job import Job
from .rundir import RunDir

CHECKED = 64  # images an export is compared on


@dataclass(frozen=True)
class Prediction:
    """The answer for one photo: `top` holds (class, probability), the best first.

    `path` is `<ndarray>` or `<bytes>` for a photo that was no file.
    """

    path: str
    error: str | None
    top: list[tuple[str, float]]


class Run:
    """A run directory with a trained classifier in it.

    Attributes:
        path: the directory.
        directory: its files by name.
    """

    def __init__(self, path: Path | str, data: Data | None = None):
        self.directory = RunDir.open(path)
        self.path = self.directory.path
        self._data = data

    def __repr__(self) -> str:
        return f"<Run {str(self.path)!r}: {self.status}>"

    @property
    def status(self) -> str:
        """`created`, `running`, `finished`, `failed` or `interrupted`."""
        return self.directory.read()["status"]

    @cached_property
    def classifier(self):
        """The trained :class:`~dlzoo.transfer.classifier.Classifier`."""
        from .transfer.classifier import Classifier

        return Classifier.load(self.directory.model)

    @property
    def metrics(self) -> dict[str, Any]:
        """What metrics.json holds: the figures on the test photos and of the training."""
        return json.loads(self.directory.metrics.read_text("utf-8"))

    @cached_property
    def data(self) -> Data:
        """The photos of the run, in the splits it was trained with.

        Raises:
            DataError: `run.no-data` if the source was given from Python and is gone.
        """
        if self._data is not None:
            return self._data
        config = tomllib.loads(self.directory.config.read_text("utf-8"))
        if not config.get("data"):
            raise DataError(
                "run.no-data",
                "the run was made from data in memory",
                where=self.path,
                fix="give photos: --data DIR",
            )
        return load_data(
            config["data"],
            split_file=self.directory.manifest,
            ignore_classes=config.get("ignore_class", ()),
            task=config.get("task", "auto"),
        )

    def evaluate(self, split: str = "test", data: Any = None) -> dict[str, Any]:
        """Measure the classifier on a split of its own data, or on other labelled photos.

        Args:
            split: `train`, `val` or `test`. data: any source for `load_data`; all of it is
                used, and its classes are matched by name.

        Returns:
            See `report.metrics.evaluate`.
        """
        from .report import metrics

        classes, task = self.classifier.classes, self.classifier.task
        if data is None:
            labels, found = self._answers(self.data, split)
        else:
            labels, found = self._answers_elsewhere(data)
        return metrics.evaluate(labels, found, classes, task)

    def _answers(self, data: Data, split: str) -> tuple[np.ndarray, np.ndarray]:
        return data.labels(split), self.classifier.answers(data, split)

    def _answers_elsewhere(self, source: Any) -> tuple[np.ndarray, np.ndarray]:
        classes, task = self.classifier.classes, self.classifier.task
        other = source
        if not isinstance(source, Data):
            other = load_data(source, task=task, val_split=0.0, test_split=0.0)
        unknown = sorted(set(other.classes) - set(classes))
        if unknown:
            raise DataError(
                "data.unknown-class",
                f"the run knows no class {', '.join(map(repr, unknown))}",
                where=other.name,
                fix=f"its classes: {', '.join(classes)}",
            )
        parts = [self._answers(other, split) for split, n in other.splits.items() if n]
        labels, found = (np.concatenate(p) for p in zip(*parts, strict=True))
        if task == "binary":
            return (labels if other.classes == classes else 1 - labels), found
        places = [classes.index(name) for name in other.classes]
        aligned = np.zeros((len(labels), len(classes)), "float32")
        aligned[:, places] = labels
        return aligned, found

    def predict(self, photos: Any, topk: int = 5) -> list[Prediction]:
        """Name what photos show.

        Args:
            photos: one photo, or several: paths, contents of image files, or RGB arrays
                (height, width, 3) in 0..255. topk: classes to give for each.

        Returns:
            One :class:`Prediction` a photo, in order; an unreadable one has its `error` set.
        """
        single = isinstance(photos, (str, Path, bytes)) or getattr(photos, "ndim", 4) < 4
        return list(self.predict_stream([photos] if single else photos, topk))

    def predict_stream(
        self, photos: Iterable[Any], topk: int = 5, batch: int = 32
    ) -> Iterator[Prediction]:
        """Give the predictions one by one, reading ahead no more than two batches."""
        from .data.pipeline import load_image

        rule = self.classifier.preprocess

        def load(photo):
            name = str(photo) if isinstance(photo, (str, Path)) else f"<{type(photo).__name__}>"
            try:
                return name, load_image(photo, rule)
            except DlzooError as error:
                return name, error

        rest = iter(photos)
        with ThreadPoolExecutor() as pool:
            ahead = list(pool.map(load, islice(rest, batch)))
            while ahead:
                coming = [pool.submit(load, path) for path in islice(rest, batch)]
                yield from self._named(ahead, topk)
                ahead = [job.result() for job in coming]

    def _named(self, loaded: Sequence[tuple[str, Any]], topk: int) -> Iterator[Prediction]:
        images = [image for _, image in loaded if isinstance(image, np.ndarray)]
        answers = iter(self.classifier.probabilities(np.stack(images)) if images else ())
        for path, image in loaded:
            if isinstance(image, DlzooError):
                yield Prediction(path, f"{image.id}: {image.message}", [])
                continue
            row = next(answers)
            order = np.argsort(-row, kind="stable")[:topk]
            top = [(self.classifier.classes[i], float(row[i])) for i in order]
            yield Prediction(path, None, top)

    def top_losses(self, n: int = 9, split: str = "test") -> list[dict[str, Any]]:
        """Return the images the classifier was most wrong about, the worst first.

        Returns:
            Dicts of path, label, predicted, probability (of the true class), loss (nats).
        """
        labels, found = self._answers(self.data, split)
        classes, task = self.classifier.classes, self.classifier.task
        if task == "binary":
            labels = np.concatenate([1 - labels, labels], axis=1)
        safe = np.clip(found, 1e-7, 1 - 1e-7)
        losses = -(labels * np.log(safe)).sum(1)
        if task == "multilabel":
            losses -= ((1 - labels) * np.log(1 - safe)).sum(1)
        keys = self.data.keys(split)
        return [
            {
                "path": keys[i],
                "label": "|".join(classes[j] for j in np.flatnonzero(labels[i])),
                "predicted": classes[int(found[i].argmax())],
                "probability": float((labels[i] * found[i]).sum() / max(1, labels[i].sum())),
                "loss": float(losses[i]),
            }
            for i in np.argsort(-losses, kind="stable")[:n]
        ]

    def most_confused(self, n: int = 10) -> list[tuple[str, str, int]]:
        """Return (true class, predicted class, images) of the test split, most frequent first."""
        if self.classifier.task == "multilabel":
            raise UsageError("run.multilabel", "a multilabel task has no pairs of confused classes")
        table, classes = np.array(self.metrics["test"]["confusion"]), self.classifier.classes
        pairs = [
            (classes[i], classes[j], int(table[i, j])) for i, j in np.argwhere(table > 0) if i != j
        ]
        return sorted(pairs, key=lambda pair: -pair[2])[:n]

    def report(self) -> Path:
        """Not made by this version: the plots are in `plots/`, the figures in metrics.json."""
        raise UsageError(
            "run.report",
            "this version of dlzoo makes no HTML report",
            where=self.directory.plots,
            fix="look at plots/*.png and metrics.json",
        )

    def export(
        self,
        *formats: str,
        images: Sequence[str | Path] | None = None,
        tolerance: float | None = None,
        quantize: str | None = None,
        max_drop: float = 1.5,
        batch: int | None = None,
        allow_flex: bool = False,
    ) -> dict[str, dict[str, Any]]:
        """Write the classifier for use elsewhere; each file is checked on real photos first.

        All formats are tried, then the first one's error is raised. The figures of what was
        written or refused are also in `export/parity.json`.

        Args:
            formats: of `dlzoo.export.FORMATS`: savedmodel, keras, tflite, onnx.
            images: photos to check on; default: the run's own.
            quantize: `fp16` or `int8`, of the formats that can; int8 is calibrated on the run's
                training photos and measured on its validation photos.
            tolerance, max_drop, batch, allow_flex: see :class:`dlzoo.export.Options`.

        Returns:
            Format to the figures of `dlzoo.export.export`.
        """
        from .export import Options, Photos, check_formats, export, file_name

        check_formats(formats, quantize)
        asked = Options(
            quantize=quantize,
            batch=batch,
            tolerance=tolerance,
            max_drop=max_drop,
            allow_flex=allow_flex,
            data=self.data if quantize == "int8" else None,
        )
        encoded = [Path(p).read_bytes() for p in images] if images else self._photos()
        classifier = self.classifier.float32()
        photos = Photos.of(classifier, encoded)
        done: dict[str, dict[str, Any]] = {}
        failed: list[DlzooError] = []
        for name in formats:
            path = self.directory.export / file_name(name, asked)
            try:
                done[name] = export(classifier, path, name, images=photos, options=asked)
            except DlzooError as error:
                failed.append(error)
        for later in failed[1:]:
            console.say(later.render())
        if failed:
            raise failed[0]
        return done

    def _photos(self) -> list[bytes]:
        """Return encoded images of the test (else validation) split, spread over it."""
        split = "test" if self.data.splits["test"] else "val"
        records = self.data.records(split)
        chosen = np.unique(np.linspace(0, len(records) - 1, CHECKED).astype(int))
        return [records[i].encoded() for i in chosen]

    def summary(self) -> str:
        """Return the last lines of a run: its accuracy and where everything is."""
        found = self.metrics
        test, lines = found["test"], []
        if test:
            low, high = test["accuracy_ci"]
            lines.append(
                f"DONE  test accuracy {test['accuracy']:.1%} ({test['correct']}/{test['n']}, "
                f"95 % CI {100 * low:.1f}-{100 * high:.1f})  macro-F1 {test['macro_f1']:.1%}  "
                f"{_duration(found['seconds'])}"
            )
        else:
            lines.append(f"DONE  no test photos  {_duration(found['seconds'])}")
        starved = [s for s in found["stages"] if s.get("starved")]
        lines += [
            f"      stage {s['name']} waited for images {s['images_share']:.0%} of the time"
            for s in starved
        ]
        lines.append(f"      run {self.path}  plots {self.directory.plots.name}/")
        return "\n".join(lines)


def load_run(path: Path | str) -> Run:
    """Return the run at `path`; raises UsageError `run.not-found`."""
    return Run(path)


def finetune(
    backbone: str = "efficientnet_lite0",
    data: Any = None,
    *,
    config: FinetuneConfig | None = None,
    **settings: Any,
) -> Any:
    """Fine-tune a backbone on labelled images, evaluate it and keep everything in a run.

    Args:
        backbone: a name of the zoo, perhaps with a tag. data: a source for `load_data`, or
            what it returned.
        config: all settings, checked. settings: or some of them by name, see
            `dlzoo.config.FinetuneConfig`.

    Returns:
        The finished :class:`Run`. With `dry_run=True` nothing is written, and what would be
        done is returned as a dictionary.

    Raises:
        DlzooError: whatever went wrong, with its id, a remedy and an exit code.
    """
    if config is None:
        given = {**settings, "backbone": backbone}
        if isinstance(data, (str, Path)):
            given["data"] = str(data)
        config = resolve(given, called="{}=").config
    elif settings:
        raise UsageError("usage.config", "give config= or single settings, not both")
    console.setup(quiet=config.quiet)
    job = Job(config, data if data is not None else config.data)
    if config.dry_run:
        return job.rehearse()

    def export(directory: RunDir) -> None:
        if config.export:
            quantize = None if config.quantize == "none" else config.quantize
            _run_of(job, directory).export(*config.export, quantize=quantize)

    run = _run_of(job, job.run(then=export))
    _gate(run, config.fail_under)
    return run


def _run_of(job: Job, directory: RunDir) -> Run:
    """Return the run that a job made, with the model and data it holds already."""
    run = Run(directory.path, job.data)
    if job.classifier:
        run.__dict__["classifier"] = job.classifier  # fills the cached property
    return run


def resume(path: Path | str, **settings: Any) -> Run:
    """Go on with a run that was killed or interrupted, from its newest checkpoint.

    Args:
        path: of the run directory. settings: those of the call alone, such as `quiet`.

    Returns:
        The finished :class:`Run`; one that was finished already is returned as it is.

    Raises:
        DataError: `run.no-data`, the run was made from data in memory: call `finetune` again
            with the data and `resume="auto"`.
        DlzooError: as `finetune` does.
    """
    directory = RunDir.open(path)
    if not directory.begun:
        raise ResumeError(
            "resume.no-valid-checkpoint",
            "the run never began",
            where=directory.path,
            fix="start it again",
        )
    place = {"out": str(directory.path.parent), "name": directory.path.name, "resume": "auto"}
    config = resolve({**place, **settings}, config_file=directory.config, called="{}=").config
    if not config.data:
        raise DataError(
            "run.no-data",
            "the run was made from data in memory",
            where=directory.path,
            fix='call finetune again with the data, name= and resume="auto"',
        )
    return finetune(config=config)


def _gate(run: Run, wanted: float | None) -> None:
    """Fail a run that is not good enough; it is kept all the same."""
    test = run.metrics["test"]
    if wanted is not None and (test is None or test["accuracy"] < wanted):
        got = f"{test['accuracy']:.4f}" if test else "no test photos"
        raise GateError("gate.fail-under", f"accuracy {got} < {wanted}", where=run.path)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
