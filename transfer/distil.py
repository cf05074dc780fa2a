"""A trained classifier teaches another one: what it answers for the training photos, once.

The teacher's probabilities are softened by a temperature (Hinton et al. 2015, arXiv:1503.02531)
and stand beside the labels in each training batch; `losses.make_loss` reads both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import files
from ..errors import UsageError
from ..zoo.average import TINY
from .classifier import Classifier, to_probabilities

if TYPE_CHECKING:
    from ..data import Data

FILE = "teacher.npy"  # in the run's directory: what a resumed run goes on with


def teach(
    data: Data,
    teacher: Classifier,
    temperature: float,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Let a teacher answer for the training photos; from then on `data.targets` holds both.

    It is asked about the plain photos, in its own image size, through the engine and the cache;
    a student that sees varied photos is taught the answer for the plain one.

    Args:
        temperature: above 0; the larger, the more the unlikely classes count.
        folder: where the answers are kept, and found again by a run that goes on.

    Raises:
        UsageError: `teacher.classes`, it knows other classes or another task.
    """
    if teacher.task != data.task or sorted(teacher.classes) != sorted(data.classes):
        raise UsageError(
            "teacher.classes",
            f"the teacher is {teacher.task} and knows {', '.join(teacher.classes)[:200]}; the "
            f"photos are {data.task}: {', '.join(data.classes)[:200]}",
            fix="take a teacher that was trained on the same classes",
        )
    kept = None if folder is None else folder / FILE
    if kept is not None and kept.is_file():
        answers = np.load(kept)
    else:
        say(f"the teacher answers for {data.splits['train']:,} photos")
        answers = teacher.answers(data, "train")
        if kept is not None:
            files.write_array(kept, answers)
    order = [teacher.classes.index(name) for name in data.classes]
    data.teacher = softened(answers[:, order], data.task, temperature)


def softened(p: np.ndarray, task: str, temperature: float) -> np.ndarray:
    """Return probabilities at a temperature, in the form of labels: one column if binary."""
    p = np.maximum(p.astype("float64"), TINY)
    if task == "multiclass":
        return to_probabilities(np.log(p) / temperature, task)
    logits = (np.log(p) - np.log(np.maximum(1 - p, 1e-7))) / temperature
    return to_probabilities(logits, "multilabel")[:, 1 if task == "binary" else 0 :]
