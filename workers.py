"""The processes that train one model together, and what they tell each other.

Every process of such a job runs the same program; what must be the same everywhere (a plan, the
name of a directory, whether to stop) is decided by the first of them, the chief, and told to the
others. Whatever is told waits for all: each process must come to the same call.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import numpy as np

from .errors import Interrupted


class Workers:
    """The processes of a job, seen from one of them; alone, all of it costs nothing.

    Args:
        strategy: a `tf.distribute.MultiWorkerMirroredStrategy`; None: there is one process.
        rank: of this one, from 0. count: of all.
    """

    def __init__(self, strategy: Any = None, rank: int = 0, count: int = 1):
        self.rank, self.count, self._strategy = rank, count, strategy

    @property
    def chief(self) -> bool:
        """Whether this is the process that decides, and writes the run."""
        return self.rank == 0

    def agree(self, value: Any) -> Any:
        """Return the chief's value, as JSON gives it back; that of others does not count."""
        return self.every(value if self.chief else None)[0]

    def every(self, value: Any) -> list[Any]:
        """Return the values of all, by rank, as JSON gives them back."""
        if self.count == 1:
            return [value]
        text = np.frombuffer(json.dumps(value, default=str).encode(), np.uint8)
        lengths = self.gather(np.array([len(text)], np.float32)).astype(int)
        padded = np.zeros((1, lengths.max()), np.float32)  # what any device can send
        padded[0, : len(text)] = text
        texts = self.gather(padded).astype(np.uint8)
        return [json.loads(t[:n].tobytes()) for t, n in zip(texts, lengths, strict=True)]

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Return the rows of all, by rank: float32 `(count * n, ...)` from `(n, ...)` of each."""
        if self.count == 1:
            return values
        flat = np.ascontiguousarray(values, np.float32).reshape(1, -1)
        every = self._gather(flat).numpy()
        of_each = every[:: len(every) // self.count]  # each of its replicas sends the same
        return of_each.reshape(-1, *values.shape[1:])

    @cached_property
    def _gather(self) -> Any:
        import tensorflow as tf

        def send(values: Any) -> Any:
            here = tf.identity(values)  # an argument is on no device yet
            return tf.distribute.get_replica_context().all_gather(here, axis=0)

        @tf.function(input_signature=[tf.TensorSpec((1, None), tf.float32)], autograph=False)
        def gather(values: Any) -> Any:
            found = self._strategy.run(send, args=(values,))
            return self._strategy.experimental_local_results(found)[0]

        return gather

    def part(self) -> None:
        """Wait until all have come here; the job is done then, and each may end.

        Asked twice: what one has received, others may still be receiving from it, and would miss
        if it ended now. After the second time nobody needs what came of it.
        """
        self.every(None)
        with suppress(Interrupted), self.watching():
            self.every(None)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Turn what TensorFlow says when another process is gone into an error of ours.

        Raises:
            Interrupted: `dist.worker-lost`. TensorFlow notices it some ten seconds after.
        """
        try:
            yield
        except Exception as error:
            if self.count == 1 or not _of_others(error):
                raise
            raise Interrupted(
                "dist.worker-lost",
                f"rank {_lost(error, self.rank)} of {self.count} no longer answers",
                fix="see why it ended; the run goes on from its last checkpoint: start all "
                "workers again with `dlzoo resume RUN`, or with fewer or one",
            ) from error


def _of_others(error: Exception) -> bool:
    """Say whether an error is what a process meets when another one has gone."""
    import tensorflow as tf

    kinds = tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError
    gone = "ollective ops is aborted", "heartbeat", "failed to connect", "ocket closed"
    return isinstance(error, tf.errors.OpError) and (
        isinstance(error, kinds) or any(text in str(error) for text in gone)
    )


def _lost(error: Exception, own: int) -> str:
    """Return the rank of the process that has gone, as far as the error tells."""
    text = str(error)
    unhealthy = text.partition("unhealthy")[2]
    ranks = re.findall(r"/task:(\d+)", unhealthy) or re.findall(r"/task:(\d+)", text)
    others = sorted({int(rank) for rank in ranks} - {own})
    return ", ".join(map(str, others)) or ("0" if own else "unknown")


class Together:
    """What all processes learn at the same training step: whether to stop, whether to save.

    They ask each other about twice a second, at steps that the chief announces.

    Attributes:
        due: asked of the chief: is it time for a checkpoint?
        save: what came of it, at this step.
    """

    SECONDS = 0.5

    def __init__(self, workers: Workers):
        self.workers, self.due, self.save = workers, lambda: False, False
        self._left, self._steps, self._asked = 1, 1, time.perf_counter()

    def step(self, signal: int | None, now: bool = False) -> int | None:
        """Count a step; return the signal that any process got, if this is a step to ask at.

        Args:
            signal: that this one got. now: all are at a place where they ask in any case.
        """
        self._left -= 1
        self.save = False
        if self._left > 0 and not now:
            return None
        said = {"signal": signal or 0, "save": bool(self.due()), "steps": self._next()}
        every = self.workers.every(said)
        self.save, self._left = every[0]["save"], every[0]["steps"]
        return max(each["signal"] for each in every) or None

    def _next(self) -> int:
        """Return in how many steps to ask again, from how long the last ones took."""
        began, self._asked = self._asked, time.perf_counter()
        of_step = max((self._asked - began) / self._steps, 1e-6)
        self._steps = int(min(max(self.SECONDS / of_step, 1), 2 * self._steps, 1000))
        return self._steps
