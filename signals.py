"""Listening for signals, and giving back what was there before."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]


def listen(names: Iterable[str], handler: Handler) -> Callable[[], None]:
    """Hand the signals of these names to `handler`; return what puts the previous ones back.

    A signal that was ignored (`nohup`) stays ignored, and one that the system does not know is
    passed over (Windows has no SIGHUP). Outside the main thread, where Python allows no
    handlers, nothing is done.
    """
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name, None) for name in names):
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)

    def restore() -> None:
        for number, before in previous.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)

    return restore
