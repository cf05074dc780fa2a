"""One row an epoch, over all stages."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import files
from .base import Resumable, learning_rate
from .followers import Follower


class History(Resumable):
    """Collect the epochs' rows, and write them as CSV after each.

    A row has `stage`, `epoch` (from 1, over all stages), those of the epoch's logs that are one
    number, `lr` (that of its last step; none where the optimizer's is NaN, as no steps were
    taken) and `seconds`.

    Args:
        path: CSV file, replaced as a whole after each epoch; None keeps the rows in memory.
        followers: told of all rows after each epoch, see `callbacks.followers`.

    Attributes:
        rows: list of dicts.
    """

    fields = ("rows",)

    def __init__(self, path: Path | str | None = None, followers: Sequence[Follower] = ()):
        super().__init__()
        self.followers = followers
        self.path = None if path is None else Path(path)
        self.rows: list[dict[str, Any]] = []
        self._begun = 0.0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()

    def epoch_done(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Add the row and write the file."""
        own = {"stage": self.stage, "epoch": len(self.rows) + 1}
        row: dict[str, Any] = own | dict(logs) | own  # also where a metric is called so
        if math.isfinite(rate := learning_rate(self.model.optimizer)):
            row["lr"] = rate
        row["seconds"] = round(time.perf_counter() - self._begun, 3)
        self.rows.append(row)
        if self.path is not None:
            self.write(self.path)
        for follower in self.followers:
            follower.follow(self.rows, self.model)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the rows back; the file loses those that came after them."""
        super().load_state_dict(state)
        if self.path is not None:
            self.write(self.path)

    def write(self, path: Path | str) -> None:
        """Write all rows as CSV, atomically; a quantity that a row lacks is left empty."""
        last = ("lr", "seconds")
        names = dict.fromkeys(name for row in self.rows for name in row if name not in last)
        with files.replacing(path) as file:
            writer = csv.DictWriter(file, [*names, *last], lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
