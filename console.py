"""What people see: results on stdout, everything else on stderr.

Colour and frames only on a terminal (and never with `NO_COLOR`); anywhere else plain lines. A
reader that goes away (`| head`), a closed stream or a narrow encoding is no error.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from .errors import DlzooError

PACE = 5.0  # seconds between two JSON lines of a progress
_state: dict[str, Any] = {"quiet": False, "mute": False, "json": False, "log": None}


class Closed(Exception):
    """The reader of stdout went away: there is nobody left to answer to."""


def is_terminal(stream: IO[str] | None = None) -> bool:
    """Return whether a person is looking at `stream` (stderr by default)."""
    stream = sys.stderr if stream is None else stream
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def setup(quiet: bool = False, mute: bool = False, log_format: str = "text") -> None:
    """Make the standard streams print any text in any locale.

    Args:
        quiet: say nothing but errors and results. mute: nothing but errors.
        log_format: of what goes to stderr: `text`, or `json`, one object a line with `time` and
            `event`: `message`, `epoch`, `progress` or `error`.
    """
    _state.update(quiet=quiet or mute, mute=mute, json=log_format == "json")
    for stream in (sys.stdout, sys.stderr, sys.stdin):
        if hasattr(stream, "reconfigure"):
            # file names that are not text pass through as they are; what ASCII lacks is escaped
            utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
            keep = utf8 or stream is sys.stdin
            stream.reconfigure(errors="surrogateescape" if keep else "backslashreplace")


def out(text: str = "", end: str = "\n") -> None:
    """Print a result on stdout.

    Raises:
        Closed: nobody reads it any more.
    """
    if not _state["mute"]:
        _write(sys.stdout, text + end, Closed)


def as_json(value: Any) -> str:
    """Return one line of ASCII JSON; what JSON does not know (a path) becomes text."""
    return json.dumps(value, default=str)


def out_json(value: Any) -> None:
    """Print one JSON object on stdout, on one line."""
    out(as_json(value))


def say(text: str = "", shown: str | None = None) -> None:
    """Print a line about what is going on on stderr, and into the run's log.

    Args:
        text: the line. shown: what a terminal gets in its place.
    """
    log(text)
    if _state["json"]:
        event("message", text=text)
    elif not _state["quiet"]:
        _write(sys.stderr, (shown if shown and is_terminal() else text) + "\n")


def is_json() -> bool:
    """Return whether stderr is read by a program: JSON lines."""
    return _state["json"]


def event(kind: str, **values: Any) -> None:
    """Write a JSON line on stderr, where such are wanted."""
    if _state["json"] and (kind == "error" or not _state["quiet"]):
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        _write(sys.stderr, as_json({"time": at, "event": kind, **values}) + "\n")


class Epochs:
    """Writes each epoch as a JSON line, where such are wanted; follows a history."""

    def follow(self, rows: Sequence[Mapping[str, Any]], model: Any = None) -> None:
        # JSON knows no NaN
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v
                 for k, v in rows[-1].items()}  # fmt: skip
        event("epoch", **plain)


def header(lines: Sequence[str]) -> None:
    """Say some lines, the first of them bold on a terminal."""
    for i, line in enumerate(lines):
        say(line, _styled(line, "1") if i == 0 else None)


def box(text: str) -> None:
    """Say the last lines of a run, framed on a terminal."""
    if not is_terminal() or is_json():
        say(text)
        return
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console(file=sys.stderr)
    with console.capture() as captured:
        console.print(Panel.fit(Text(text), border_style="green"))
    say(text, captured.get().rstrip("\n"))


def error(error: DlzooError) -> None:
    """Print an error on stderr, also when quiet, and into the run's log."""
    text = error.render()
    log(text)
    if _state["json"]:
        about = {"id": error.id, "where": error.where, "fix": error.hint, "code": error.exit_code}
        event("error", text=error.message, **about)
        return
    head, colon, rest = text.partition(":")
    _write(sys.stderr, (_styled(head, "1;31") if is_terminal() else head) + colon + rest + "\n")


def table(rows: Sequence[Sequence[object]], columns: Sequence[str]) -> None:
    """Print a table on stdout, with lines and colours on a terminal only.

    Args:
        rows: one cell a column; None is an empty cell.
        columns: the headings; `>` before one aligns its column to the right.
    """
    right = [column.startswith(">") for column in columns]
    columns = [column.removeprefix(">") for column in columns]
    cells = [["" if cell is None else plain(str(cell)) for cell in row] for row in rows]
    if is_terminal(sys.stdout):
        from rich import box as frames
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        shown = Table(box=frames.SIMPLE_HEAD, pad_edge=False)
        for column, is_right in zip(columns, right, strict=True):
            shown.add_column(column, justify="right" if is_right else "left", overflow="fold")
        for row in cells:
            shown.add_row(*map(Text, row))
        console = Console(file=sys.stdout)
        with console.capture() as captured:
            console.print(shown)
        out(captured.get(), end="")
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in [list(columns), *cells]:
        aligned = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        out("  ".join(aligned).rstrip())


def plain(text: str) -> str:
    """Return `text` with control characters (a new line in a file name) made visible."""
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else repr(c)[1:-1]
                   for c in text)  # fmt: skip


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function of (done so far, in all or 0) that draws a bar, on a terminal only."""
    if _state["json"]:
        yield _telling(what)
        return
    if not is_terminal() or _state["quiet"]:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


def _telling(what: str) -> Callable[[int, int], None]:
    """Return a function of (done, total) that tells both now and then, as JSON."""
    told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= PACE:
            told = time.monotonic()
            event("progress", what=what, done=done, total=total or None)

    return tell


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Copy what is said into a file, from here to the end of the block."""
    before = _state["log"]
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        _state["log"] = file
        try:
            yield
        finally:
            _state["log"] = before


def flush() -> None:
    """Bring out what is still buffered; drop it where nobody listens any more."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            _write(stream, "")


def _styled(text: str, code: str) -> str:
    return text if os.environ.get("NO_COLOR") else f"\x1b[{code}m{text}\x1b[0m"


def log(text: str) -> None:
    if _state["log"] is not None:
        print(text, file=_state["log"], flush=True)


def _write(stream: IO[str] | None, text: str, gone: type[Exception] | None = None) -> None:
    """Write at once; with `gone` it is a result, else a remark that may be lost.

    Args:
        gone: raised where nobody reads the stream any more.
    """
    if stream is None:  # started with the stream closed
        return
    try:
        stream.write(text)
        stream.flush()
    except UnicodeEncodeError:
        _write(stream, text.encode("ascii", "backslashreplace").decode(), gone)
    except (OSError, ValueError) as error:
        closed = isinstance(error, BrokenPipeError | ValueError)
        if closed or gone:
            # the interpreter flushes once more at its end: let that go nowhere, in silence
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if gone and closed:
            raise gone from None
        if gone:  # a result that is cut off, as on a full disk, must not be taken for a whole one
            raise
