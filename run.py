"""A run that is there, and what one can do with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import console
from .data import Data, load_data
from .data.folder import existing
from .errors import DataError, DlzooError, UsageError
from .rundir import RunDir, read_values
from .units import accuracy, clock

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .report.gradcam import Explanation
    from .transfer.classifier import Classifier

_PHOTOS = "`dlzoo eval RUN --data DIR`, `dlzoo export RUN --images DIR`"
CHECKED = 64  # images an export is compared on


@dataclass(frozen=True)
class Prediction:
    """The answer for one photo.

    Attributes:
        path: of the photo; `<ndarray>` or `<bytes>` if it was no file.
        error: why it could not be read, or None.
        top: (class, probability), the best first.
        explained: path of the picture that shows what spoke for the best, if one was asked for.
    """

    path: str
    error: str | None
    top: list[tuple[str, float]]
    explained: str | None = None


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
    def page(self) -> Path:
        """Where the report is, if it has been made."""
        return self.path / "report.html"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the status, the figures, and where the report is."""
        rows = {"run": str(self.path), "status": self.status}
        if self.directory.metrics.is_file():
            found = self.metrics
            for split in ("test", "val"):
                if figures := found[split]:
                    rows[f"{split} accuracy"] = accuracy(figures)
                    rows[f"{split} macro-F1"] = f"{figures['macro_f1']:.1%}"
            rows["time"] = f"{clock(found['seconds'])}, {found['epochs']} epochs"
        if self.page.is_file():
            rows["report"] = str(self.page)
        cells = (f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
        return f"<table>{''.join(cells)}</table>"

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
        return read_values(self.directory.metrics)

    @cached_property
    def data(self) -> Data:
        """The photos of the run, in the splits it was trained with.

        Raises:
            DataError: `run.no-data` if the source was given from Python, or is not where it was.
        """
        if self._data is not None:
            return self._data
        config = read_values(self.directory.config)
        if not config.get("data"):
            raise DataError(
                "run.no-data",
                "the run was made from data in memory",
                where=self.path,
                fix=f"give them: load_run(RUN, data), or {_PHOTOS}",
            )
        try:
            data = load_data(
                config["data"],
                val_split=0.0,  # the manifest has all there are: of a run without test photos, none
                test_split=0.0,
                split_file=self.directory.manifest,
                ignore_classes=config.get("ignore_class", ()),
                task=config.get("task", "auto"),
            )
        except DataError as error:
            if error.id != "data.not-found":
                raise
            raise DataError(
                "run.no-data",
                f"the run's photos are not where they were: {error.message}",
                where=self.path,
                fix=f"put them back, or give others: {_PHOTOS}",
            ) from error
        data.settle_flip(config.get("flip", "auto"))
        return data

    @property
    def _changed(self) -> bool:
        """Whether photos or labels are not those of the run any more."""
        return self.data.fingerprint != self.directory.read()["data"]

    @cached_property
    def _judged(self) -> Data:
        """The run's photos, where their labels are what the classifier answers.

        Raises:
            DataError: `run.data-changed` if they have other classes than it learnt.
        """
        if self.data.classes != self.classifier.classes:
            raise DataError(
                "run.data-changed",
                f"the classes of the data are now {', '.join(self.data.classes)}",
                where=self.data.name,
                fix=f"the run learnt {', '.join(self.classifier.classes)}; `dlzoo eval RUN --data` "
                "matches classes by name",
            )
        if self._changed:
            console.say(f"{self.data.name}: photos or labels are not those of the run any more")
        return self.data

    def evaluate(
        self, split: str | None = None, data: Any = None, tta: bool = False
    ) -> dict[str, Any]:
        """Measure the classifier on a split of its own data, or on other labelled photos.

        Args:
            split: `train`, `val` or `test`; default: of its own data `test`, of others all.
            data: any source for `load_data`; its classes are matched by name.
            tta: average over each photo and its mirror image.

        Returns:
            See `report.metrics.evaluate`.

        Raises:
            DataError: `run.data-changed`, `data.unknown-class`, `data.task`, `data.split`,
                `data.empty-split`.
        """
        from .report import metrics

        classes, task = self.classifier.classes, self.classifier.task
        if data is None:
            labels, found = self._answers(self._judged, split or "test", tta)
        else:
            labels, found = self._answers_elsewhere(data, split, tta)
        return metrics.evaluate(labels, found, classes, task)

    @cached_property
    def _mirrored(self):
        from .transfer.combine import mirrored

        return mirrored(self.classifier)

    def _answers(self, data: Data, split: str, tta: bool = False) -> tuple[np.ndarray, np.ndarray]:
        asked = self._mirrored if tta else self.classifier
        if not len(labels := data.labels(split)):
            raise _empty(split, data.name)
        return labels, asked.answers(data, split)

    def _asked(self, split: str) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Return keys, labels and answers of the run's own photos."""
        return self._judged.keys(split), *self._answers(self._judged, split)

    def _answers_elsewhere(
        self, source: Any, split: str | None, tta: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        from .report.metrics import columns

        classes, task = self.classifier.classes, self.classifier.task
        other = source
        if not isinstance(source, Data):
            # as many columns as there are classes: of the run's two, one may lack
            kind = "multilabel" if task == "multilabel" else "multiclass"
            other = load_data(source, task=kind, val_split=0.0, test_split=0.0, only_judged=True)
        unknown = sorted(set(other.classes) - set(classes))
        if unknown:
            raise DataError(
                "data.unknown-class",
                f"the run knows no class {', '.join(map(repr, unknown))}",
                where=other.name,
                fix=f"its classes: {', '.join(classes)}",
            )
        if "multilabel" in (task, other.task) and task != other.task:
            raise DataError(
                "data.task",
                f"the data is {other.task}, the run {task}",
                where=other.name,
                fix=f"load_data(..., task={task!r})",
            )
        chosen = [split] if split else [name for name, n in other.splits.items() if n]
        parts = [self._answers(other, name, tta) for name in chosen]
        labels, found = (np.concatenate(p) for p in zip(*parts, strict=True))
        aligned = np.zeros((len(labels), len(classes)), "float32")
        places = [classes.index(name) for name in other.classes]
        aligned[:, places] = columns(labels, other.task)
        return (aligned[:, 1:] if task == "binary" else aligned), found

    def predict(self, photos: Any, topk: int = 5, tta: bool = False) -> list[Prediction]:
        """Name what photos show.

        Args:
            photos: one photo, or several: paths, contents of image files, images of Pillow, or RGB
                arrays (height, width, 3) in 0..255; of a folder all images in it, also in folders
                of it. topk: classes to give for each.
            tta: average over each photo and its mirror image.

        Returns:
            One :class:`Prediction` a photo, in order; an unreadable one has its `error` set.
        """
        return list(self.predict_stream(_each(photos), topk, tta=tta))

    def explain(
        self,
        photo: str | Path | bytes | np.ndarray,
        label: str | None = None,
        tap: str | None = None,
    ) -> Explanation:
        """Show what in a photo spoke for a class (Grad-CAM); a notebook shows it as a picture.

        Args:
            photo: a file, its content, or RGB (height, width, 3) in 0..255.
            label: the class; default: the one the photo is taken for.
            tap: the feature map that is looked at; default: the last one.

        Raises:
            DataError: the photo cannot be read. UsageError: see `report.gradcam.explain`.
        """
        from .data.pipeline import load_image
        from .report import gradcam

        image = load_image(photo, self.classifier.preprocess)
        return gradcam.explain(self.classifier, image[None], label and [label], tap)[0]

    def predict_stream(
        self,
        photos: Iterable[Any],
        topk: int = 5,
        batch: int = 32,
        explain: Path | str | None = None,
        tta: bool = False,
    ) -> Iterator[Prediction]:
        """Give the predictions one by one, reading ahead no more than two batches.

        Args:
            explain: a folder for a picture of each photo, `NAME-gradcam.png`, that shows what
                spoke for its answer. tta: see `predict`.
        """
        from .data.pipeline import load_image

        rule, written = self.classifier.preprocess, set[str]()
        asked = self._mirrored if tta else self.classifier
        if explain is not None:
            Path(explain).mkdir(parents=True, exist_ok=True)

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
                pictures: Iterable[str] = ()
                if explain is not None:
                    pictures = self._explained(asked, ahead, explain, written)
                yield from self._named(asked, ahead, topk, pictures)
                ahead = [job.result() for job in coming]

    def _explained(
        self,
        asked: Classifier,
        loaded: Sequence[tuple[str, Any]],
        folder: Path | str,
        written: set[str],
    ) -> list[str]:
        """Write a picture of each photo that could be read; return their paths, in order."""
        from .report import gradcam

        good = [(path, image) for path, image in loaded if isinstance(image, np.ndarray)]
        images = np.array([image for _, image in good])
        found = []
        for (path, _), each in zip(good, gradcam.explain(asked, images), strict=True):
            # a name has 255 bytes, and that of a photo may take them all
            stem = os.fsencode(Path(path).stem)[:200].decode(errors="ignore")
            names = (f"{stem}{f'-{i}' if i > 1 else ''}-gradcam.png" for i in count(1))
            name = next(name for name in names if name not in written)  # photos of one name
            written.add(name)
            each.save(picture := Path(folder) / name)
            found.append(str(picture))
        return found

    def _named(
        self,
        asked: Classifier,
        loaded: Sequence[tuple[str, Any]],
        topk: int,
        pictures: Iterable[str],
    ) -> Iterator[Prediction]:
        images = [image for _, image in loaded if isinstance(image, np.ndarray)]
        answers = iter(asked.probabilities(np.stack(images)) if images else ())
        of_each = iter(pictures)
        for path, image in loaded:
            if isinstance(image, DlzooError):
                yield Prediction(path, f"{image.id}: {image.message}", [])
                continue
            row = next(answers)
            order = np.argsort(-row, kind="stable")[:topk]
            top = [(self.classifier.classes[i], float(row[i])) for i in order]
            yield Prediction(path, None, top, next(of_each, None))

    def top_losses(self, n: int = 9, split: str = "test") -> list[dict[str, Any]]:
        """Return the images the classifier was most wrong about, the worst first.

        Returns:
            Dicts of index, path, label, predicted, likeliest, probability (of the true class), loss
            (nats), see `report.doubts.worst`.
        """
        from .report import doubts

        return doubts.worst(*self._asked(split), self.classifier.classes, self.classifier.task, n)

    def label_errors(self, split: str = "test") -> list[dict[str, Any]]:
        """Return the images whose label is likely wrong, see `report.doubts.label_errors`.

        The training photos are no use: the classifier knows their labels by heart.
        """
        from .report import doubts

        return doubts.label_errors(
            *self._asked(split), self.classifier.classes, self.classifier.task
        )

    def show(self, n: int = 9, split: str = "test") -> Figure:
        """Return a figure of the photos of `top_losses`, as the model sees them."""
        from .data.pipeline import load_image
        from .report import doubts, plots

        rows, records = self.top_losses(n, split), self.data.records(split)
        pixels = (records[row["index"]].pixels(self.data.max_pixels) for row in rows)
        images = [load_image(each, self.classifier.preprocess) for each in pixels]
        return plots.gallery(images, list(map(doubts.title, rows)))

    def most_confused(self, n: int = 10) -> list[tuple[str, str, int]]:
        """Return (true class, predicted class, images) of the test split, most frequent first.

        Raises:
            UsageError: `run.multilabel`. DataError: `data.empty-split`.
        """
        if self.classifier.task == "multilabel":
            raise UsageError("run.multilabel", "a multilabel task has no pairs of confused classes")
        from .report import doubts

        if not (figures := self.metrics["test"]):
            raise _empty("test", self.path)
        return doubts.pairs(figures["confusion"], self.classifier.classes)[:n]

    def as_code(self) -> str:
        """Return a Python program that does the same with plain Keras, to be changed at will.

        It reads the same photos, in the splits of the manifest, and comes to about the same
        accuracy.

        Raises:
            UsageError: `run.unfinished`. DataError: `run.no-data` for data in memory.
        """
        from .report import code

        asked = read_values(self.directory.config).get("flip")

        def flip() -> bool:
            return asked == "on" if asked in ("on", "off") else self.data.flip

        return code.of_run(self.directory, self.classifier, flip)

    def report(self, seconds: float = 60.0) -> Path:
        """Write report.html, MODEL_CARD.md and the plots; return the path of the page.

        Without the photos (given from Python and gone, or changed since) it is made from the
        files of the run, and says what is left out.

        Args:
            seconds: that asking about changed photos may take, about.

        Raises:
            UsageError: `run.unfinished`.
        """
        from .report import page

        if not self.directory.metrics.is_file():
            raise UsageError(
                "run.unfinished",
                f"the run is {self.status}: there is nothing to report yet",
                where=self.path,
                fix="dlzoo resume, or train again",
            )
        data, why = None, ""
        try:
            data = self.data
        except DlzooError as error:
            why = error.message
        if data is not None and self._changed:
            data, why = None, "the photos are not those of the run any more"
        return page.build(self.directory, self.classifier, data, why=why, seconds=seconds)

    def export(
        self,
        *formats: str,
        images: str | Path | Sequence[str | Path] | None = None,
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
            formats: of `dlzoo.export.FORMATS`: savedmodel (also if none is given), keras, tflite,
                onnx.
            images: paths of photos to check on, as in `predict`; default: the run's own.
            quantize: `fp16` or `int8`, of the formats that can; int8 is calibrated on the run's
                training photos and measured on its validation photos.
            tolerance, max_drop, batch, allow_flex: see :class:`dlzoo.export.Options`.

        Returns:
            Format to the figures of `dlzoo.export.export`.
        """
        from .export import Options, Photos, check_formats, export, file_name

        formats = formats or ("savedmodel",)
        check_formats(formats, quantize)
        asked = Options(
            quantize=quantize,
            batch=batch,
            tolerance=tolerance,
            max_drop=max_drop,
            allow_flex=allow_flex,
            data=self._judged if quantize == "int8" else None,
        )
        checked: Sequence[bytes | Path] = (
            self._photos()
            if images is None
            else [existing(Path(path), "give photos to check it on") for path in _each(images)]
        )
        classifier = self.classifier.float32()
        photos = Photos.of(classifier, checked)
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
            for figures in done.values():
                console.say(f"written all the same: {figures['path']}")
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
        took = clock(found["seconds"])
        if test:
            lines.append(
                f"DONE  test accuracy {accuracy(test)}  macro-F1 {test['macro_f1']:.1%}  {took}"
            )
        else:
            lines.append(f"DONE  no test photos  {took}")
        starved = [s for s in found["stages"] if s.get("starved")]
        lines += [
            f"      stage {s['name']} waited for images {s['images_share']:.0%} of the time"
            for s in starved
        ]
        lines.append(
            f"      run {self.path}  "
            + (f"report: {self.page}" if self.page.is_file() else "plots/")
        )
        return "\n".join(lines)


def _each(photos: Any) -> Iterator[Any]:
    """Yield one photo, or each of several; of a folder all images in it."""
    from PIL.Image import Image

    from .answers import below

    single = isinstance(photos, (str, Path, bytes, Image)) or getattr(photos, "ndim", 4) < 4
    for one in [photos] if single else photos:
        yield from below(one)


def _empty(split: str, where: object) -> DataError:
    return DataError("data.empty-split", f"there are no {split} photos", where=where)


def load_run(path: Path | str, data: Data | None = None) -> Run:
    """Return the run at `path`; raises UsageError `run.not-found`.

    Args:
        data: what `load_data` returned, for a run that was made from data in memory. Others read
            their photos again, in the splits they were trained with.
    """
    return Run(path, data)
