"""What `load_data` gives: images, labels and splits, checked, with what was odd about them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from ..errors import DataError, nearest
from . import decode, table
from .records import SPLITS, Problem, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Data:
    """A checked set of labelled images in three splits.

    Attributes:
        name: short, for run directories: the folder's name, or `digits`.
        classes: names of the classes; their order is that of the model's outputs.
        task: `binary`, `multiclass` or `multilabel`.
        splits: number of images of `train`, `val` and `test`.
        problems: what is odd about the data.
        flip: whether mirror images make sense; augmentation obeys it. Settable.
        root: the folder that keys are relative to, or None.
        teacher: what a teacher answers for the training photos, float32 like their labels, or None.
        found: `data`, the path, and the arguments of `load_data` that find the same; empty for
            data from Python, and where a run could not say them.
        fingerprint: SHA-256 over key, content hash, labels and split of every image.
    """

    def __init__(
        self,
        name: str,
        records: list[Record],
        classes: tuple[str, ...],
        task: str,
        *,
        problems: list[Problem] | None = None,
        flip: bool = True,
        root: Path | None = None,
        max_pixels: int = decode.MAX_PIXELS,
    ):
        self.name = name
        self.classes = classes
        self.task = task
        self.problems = problems or []
        self.flip = flip
        self.root = root
        self.max_pixels = max_pixels
        self.found: dict[str, Any] = {}
        self._flip = flip
        self.failure: DataError | None = None  # why a pipeline stopped
        self.memory: object = None  # the pipeline's held images
        self.teacher: np.ndarray | None = None
        self._records = {split: [r for r in records if r.split == split] for split in SPLITS}
        self.splits = {split: len(found) for split, found in self._records.items()}
        digest = [
            "\0".join((r.key, r.sha256, "|".join(r.labels), str(r.split))) + "\1" for r in records
        ]
        text = "".join(sorted(digest)) + "\0".join(classes)
        self.fingerprint = files.sha256(text.encode("utf-8", "surrogateescape"))

    def __len__(self) -> int:
        return sum(self.splits.values())

    def __repr__(self) -> str:
        sizes = "/".join(str(n) for n in self.splits.values())
        return f"<Data {self.name!r}: {self.task}, {len(self.classes)} classes, {sizes} images>"

    @property
    def said(self) -> dict[str, Any]:
        """What is said of the data since it was read, by the name of the setting."""
        return {} if self.flip == self._flip else {"flip": "on" if self.flip else "off"}

    def settle_flip(self, said: str) -> None:
        """Let `on` or `off` say whether mirror images make sense; `auto` leaves it to the data."""
        if said != "auto":
            self.flip = said == "on"

    def records(self, split: str) -> list[Record]:
        """Return the records of a split, in their fixed order; raises DataError `data.split`."""
        try:
            return self._records[split]
        except KeyError:
            raise DataError(
                "data.split", f"no split {split!r}{nearest(split, SPLITS)}", where=self.name
            ) from None

    def keys(self, split: str) -> list[str]:
        """Return the keys of a split: paths relative to the root."""
        return [record.key for record in self.records(split)]

    def labels(self, split: str) -> np.ndarray:
        """Return float32 (n, classes), one-hot or multi-hot; (n, 1) for a binary task."""
        records = self.records(split)
        index = {name: i for i, name in enumerate(self.classes)}
        hot = np.zeros((len(records), len(self.classes)), np.float32)
        for row, record in zip(hot, records, strict=True):
            row[[index[name] for name in record.labels]] = 1
        return hot[:, 1:] if self.task == "binary" else hot

    def targets(self, split: str) -> np.ndarray:
        """Return what is learnt: the labels and, in training, behind them the teacher's answers."""
        labels = self.labels(split)
        if split != "train" or self.teacher is None:
            return labels
        return np.concatenate([labels, self.teacher], axis=1)

    def read(self, split: str, i: int) -> np.ndarray:
        """Return image `i` of a split as uint8 (height, width, 3)."""
        return self.records(split)[i].pixels(self.max_pixels)

    def some(self, **most: int) -> Data:
        """Return data with at most so many images of a split, as `some(train=800, val=200)`.

        A split that is not named is kept whole. Which images are taken depends on their content
        alone.
        """
        chosen = []
        for split in SPLITS:
            records = self.records(split)
            if split in most:
                records = sorted(records, key=lambda r: (r.sha256, r.key))[: most[split]]
            chosen += records
        return Data(
            self.name,
            chosen,
            self.classes,
            self.task,
            problems=self.problems,
            flip=self.flip,
            root=self.root,
            max_pixels=self.max_pixels,
        )

    def arrays(
        self, split: str, size: int, *, crop: float = 1.0, channels: int = 3
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a whole split as arrays, for a loop of your own or `model.fit(images, labels)`.

        Args:
            split: `train`, `val` or `test`. size: height and width in pixels.
            crop: share of the shorter side that is kept. channels: 3 is RGB, 1 its mean.

        Returns:
            images float32 (n, size, size, channels) in 0..255, as training sees them without
            augmentation, and labels as `labels` gives them.

        Raises:
            DataError: `data.split` if there is no such split or it is empty, `data.vanished`.
        """
        from ..zoo.spec import Preprocess
        from .pipeline import batches, surfacing

        with surfacing(self):
            found = [
                image if channels == 3 else image.mean(axis=-1, keepdims=True)
                for image, _, _ in batches(
                    self, split, Preprocess(size=size, crop=crop), batch=256
                ).as_numpy_iterator()
            ]
        return np.concatenate(found), self.labels(split)

    @property
    def skipped(self) -> int:
        """The number of images that could not be used."""
        return sum(problem.action == "skipped" for problem in self.problems)

    def summary(self) -> dict[str, Any]:
        """Return what `check` prints, as plain values."""
        per_class = {
            split: {
                name: count[name]
                for count in [Counter(n for r in self._records[split] for n in r.labels)]
                for name in self.classes
            }
            for split in SPLITS
        }
        sides = [min(r.width, r.height) for found in self._records.values() for r in found]
        kinds: dict[tuple[str, str], list[PurePosixPath]] = defaultdict(list)
        for problem in self.problems:
            kinds[problem.action, _kind(problem.reason)].append(PurePosixPath(problem.path))
        return {
            "name": self.name,
            "task": self.task,
            "images": len(self),
            "skipped": self.skipped,
            "splits": dict(self.splits),
            "classes": {
                name: {split: per_class[split][name] for split in SPLITS} for name in self.classes
            },
            "shorter_side": {
                "min": min(sides, default=0),
                "median": int(np.median(sides)) if sides else 0,
                "max": max(sides, default=0),
            },
            "problems": [
                {
                    "action": action,
                    "reason": reason,
                    "count": len(paths),
                    "extensions": dict(Counter(path.suffix.lower() for path in paths)),
                    "folders": dict(Counter(str(path.parent) for path in paths)),
                }
                for (action, reason), paths in sorted(kinds.items())
            ],
            "fingerprint": self.fingerprint,
        }

    def check(self) -> dict[str, Any]:
        """Print a summary: sizes, balance and everything odd; return it as a dictionary."""
        found = self.summary()
        side = found["shorter_side"]
        width = max(len("class"), *(len(printable(name)) for name in self.classes))
        lines = [
            f"{printable(self.name)}: {found['task']}, {found['images']:,} images, "
            f"{len(self.classes)} classes, {found['skipped']} skipped",
            f"shorter side {side['min']}-{side['max']} px, median {side['median']}",
            f"{'class':{width}}" + "".join(f"{split:>8}" for split in SPLITS),
        ]
        for name, counts in found["classes"].items():
            cells = "".join(f"{counts[split]:8,}" for split in SPLITS)
            lines.append(f"{printable(name):{width}}{cells}")
        for row in found["problems"]:
            kinds = ", ".join(f"{n} {suffix}" for suffix, n in row["extensions"].items() if suffix)
            places = ", ".join(f"{n} in {folder}" for folder, n in list(row["folders"].items())[:5])
            detail = "; ".join(filter(None, (kinds, places)))
            text = f"{row['action']}: {row['count']:,} x {row['reason']} ({detail})"
            lines.append(printable(text))
        print("\n".join(lines))
        return found

    def show(self, n: int = 16, split: str = "train") -> Figure:
        """Return a figure of `n` images spread over a split, with their class names."""
        from matplotlib.figure import Figure

        records = self.records(split)
        chosen = np.unique(np.linspace(0, len(records) - 1, min(n, len(records))).astype(int))
        columns = max(1, min(4, len(chosen)))
        rows = max(1, -(-len(chosen) // columns))
        figure = Figure(figsize=(2.5 * columns, 2.7 * rows), layout="constrained")
        axes = np.ravel(figure.subplots(rows, columns, squeeze=False))
        for axis in axes:
            axis.set_axis_off()
        for axis, i in zip(axes, chosen, strict=False):
            axis.imshow(self.read(split, i))
            # a dollar sign would start a formula
            axis.set_title(printable(", ".join(records[i].labels))[:40], parse_math=False)
        return figure

    def write_manifest(self, path: Path | str) -> None:
        """Write path, sha256, label and split of every image; `split_file` takes it back."""
        rows = sorted(
            (r.key, r.sha256, "|".join(r.labels), str(r.split))
            for found in self._records.values()
            for r in found
        )
        table.write_csv(path, ("path", "sha256", "label", "split"), rows)

    def write_problems(self, path: Path | str) -> None:
        """Write path, reason and action of everything odd."""
        write_problems(path, self.problems)


def write_problems(path: Path | str, problems: Iterable[Problem]) -> None:
    """Write path, reason and action of everything odd; data that was refused has it, too."""
    rows = [(p.path, p.reason, p.action) for p in problems]
    table.write_csv(path, ("path", "reason", "action"), rows)


def printable(text: str) -> str:
    """Return text that cannot disturb a terminal: control characters are written out."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text
    )


def _kind(reason: str) -> str:
    """Return a reason without its particulars, for counting."""
    return reason.split(" (")[0].split(": ")[0].split(" as ")[0]
