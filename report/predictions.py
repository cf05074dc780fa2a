"""predictions_test.csv: one row an image, fit for a spreadsheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.table import write_csv
from .metrics import columns, joined, taken

COLUMNS = 20  # with more classes than this, no column for each


def write(
    path: Path | str,
    keys: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    task: str,
) -> None:
    """Write path, label, predicted, probability, correct, and up to 20 classes' probabilities.

    Names that a spreadsheet would run as formulas are escaped. With a multilabel task several
    names are joined by `|`, and the probability is the lowest that any of the decisions (yes
    or no) was made with.

    Args:
        path: of the file, replaced as a whole.
        keys: the n images' names.
        labels: `(n, k)`, or `(n, 1)` if binary. probabilities: `(n, k)`.
        classes: the k names. task: `binary`, `multiclass` or `multilabel`.
    """
    true, predicted = taken(columns(labels, task), task), taken(probabilities, task)
    if task == "multilabel":
        sure = np.maximum(probabilities, 1 - probabilities).min(1)
    else:
        sure = probabilities.max(1)
    each = list(classes) if len(classes) <= COLUMNS else []
    rows = (
        [
            key,
            joined(true[i], classes),
            joined(predicted[i], classes),
            f"{sure[i]:.6f}",
            str(int((true[i] == predicted[i]).all())),
            *(f"{p:.6f}" for p in probabilities[i][: len(each)]),
        ]
        for i, key in enumerate(keys)
    )
    header = ["path", "label", "predicted", "probability", "correct"]
    write_csv(path, header + [f"p:{name}" for name in each], rows)
