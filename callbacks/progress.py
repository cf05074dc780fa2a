"""What a person sees of a fit: one line an epoch, live on a terminal."""

from __future__ import annotations

import atexit
import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from .base import Resumable, scalars
from .best import BestModel

_REFRESH = 0.1  # seconds between two drawings of the live line


class Progress(Resumable):
    """Show one line an epoch on stderr; never write to stdout.

    On a terminal the running epoch has a bar and the time it will still take; elsewhere (a
    pipe, a log, a notebook) each epoch is one plain ASCII line. It writes nothing else, and a
    stream that has gone away does not stop the training. `NO_COLOR` is honoured.

    Args:
        images: training images an epoch, for the images/s; None shows steps/s. May be set
            anew for each stage.
        best: marks the epochs that are the best so far; put it before this in the list.
        stream: where to write; None is stderr as it is at the time.
        quiet: write nothing.
        log: called with each finished line, also when quiet.
    """

    def __init__(
        self,
        images: int | None = None,
        *,
        best: BestModel | None = None,
        stream: IO[str] | None = None,
        quiet: bool = False,
        log: Callable[[str], None] | None = None,
    ):
        super().__init__()
        self.images, self.best = images, best
        self.stream, self.quiet, self.log = stream, quiet, log
        self._bar: Bar | None = None
        self._begun = self._trained = self._drawn = 0.0
        self._steps = self._skipped = 0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Start the clock and, on a terminal, the live line."""
        self._begun = self._trained = time.perf_counter()
        self._steps = self._skipped = 0
        console = self._console()
        if self.quiet or not console.is_terminal or console.is_dumb_terminal:
            return
        self.close()
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[logs]}", markup=False),
            TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            auto_refresh=False,  # no thread
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bar.add_task(self._title(epoch), total=self.epoch_steps, logs="")
        atexit.register(self.close)  # a live line hides the cursor: bring it back whatever comes
        with contextlib.suppress(OSError, ValueError):
            self._bar.start()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        """Move the bar; a step without logs was done before the run was resumed."""
        self._steps = self.steps_done(batch)
        self._skipped = self._skipped if logs else self._steps
        self._trained = time.perf_counter()
        if self._bar is not None and self._trained - self._drawn >= _REFRESH:
            self._drawn = self._trained
            with contextlib.suppress(OSError, ValueError):
                self._bar.update(
                    self._bar.task_ids[0],
                    completed=self._steps,
                    logs=_values(scalars(logs)),
                    refresh=True,
                )

    def epoch_done(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Write the finished line."""
        self.close()
        line = self.line(epoch, logs)
        if self.log is not None:
            self.log(line)
        if not self.quiet:
            with contextlib.suppress(OSError, ValueError):
                self._console().print(line, markup=False, highlight=False, soft_wrap=True)

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        """Leave the terminal as it was."""
        self.close()

    def close(self) -> None:
        """Take the live line away and show the cursor; done by itself when the process ends."""
        if self._bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self._bar.stop()
            self._bar = None
            atexit.unregister(self.close)

    def line(self, epoch: int, logs: Mapping[str, float]) -> str:
        """Return the finished line of the epoch (from 0), in ASCII."""
        train = {name: value for name, value in logs.items() if not name.startswith("val_")}
        val = {name[4:]: value for name, value in logs.items() if name.startswith("val_")}
        now = time.perf_counter()
        parts = [self._title(epoch), _values(train, "  ")]
        if val:
            parts[-1] += f" | val {_values(val)}"
        parts.append(f" {now - self._begun:.1f} s")
        spent = self._trained - self._begun
        if spent > 0:
            whole, unit = (self.images, "img/s") if self.images else (self._steps, "step/s")
            count = whole * (1 - self._skipped / max(1, self._steps))
            parts.append(f"{count / spent:.{0 if count / spent >= 10 else 1}f} {unit}")
        if self.best is not None and self.best.improved:
            parts.append("best *" if self.best.best == self.best.best_seen else "kept *")
        return "  ".join(parts).encode("ascii", "backslashreplace").decode("ascii")

    def _title(self, epoch: int) -> str:
        total = (self.params or {}).get("epochs")
        stage = f"stage {self.stage}" if self.stage else "epoch"
        return f"{stage}  {epoch + 1}/{total or '?'}"

    def _console(self) -> Console:
        return Console(file=self.stream or sys.stderr, force_jupyter=False)


def _values(logs: Mapping[str, float], gap: str = " ") -> str:
    """Return `loss 0.412 acc .861`: loss first; shares lose the zero that says nothing."""
    names = sorted(logs, key=lambda name: name != "loss")
    return gap.join(f"{name} {_number(name, float(logs[name]))}" for name in names)


def _number(name: str, value: float) -> str:
    if 0 < abs(value) < 0.0005:
        return f"{value:.1e}"
    text = f"{value:.3f}"
    return text[1:] if "loss" not in name and text.startswith("0.") else text
