"""The one thread that computes, so that nothing else of a service ever waits for a network."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..report import gradcam
from ..transfer import engine
from ..transfer.classifier import to_probabilities

if TYPE_CHECKING:
    from ..transfer.classifier import Classifier

# Images at a time on a GPU. On a CPU it is one: with LiteRT an image costs within a tenth the same
# alone as among others (benchmarks/RESULTS.md), and is answered sooner.
BATCH = 8


@dataclass
class _Job:
    images: np.ndarray
    label: str | None = None
    explain: bool = False
    answer: Future = field(default_factory=Future)


class Worker:
    """Answers for prepared images, in the order they come.

    What waits is computed together where the engine takes several images at a time. A future
    that is cancelled before its turn costs nothing.

    Args:
        compute: gives the logits of images, `batch` at a time; default: the fastest there is.
    """

    def __init__(self, classifier: Classifier, compute: engine.Engine | None = None):
        self.classifier = classifier
        self._compute = compute or engine.frozen(classifier.model, batch=BATCH, chunk=1)
        size = classifier.preprocess.size
        # the engine compares itself with Keras on its first images: those of nobody, but not flat
        self._compute(np.random.default_rng(0).uniform(0, 255, (1, size, size, 3)))
        self._explainer: gradcam.Explainer | None = None
        with suppress(UsageError):  # a network without feature maps: it says so when it is asked
            self._explainer = gradcam.Explainer(classifier, traced=True)
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="dlzoo-compute", daemon=True)
        self._thread.start()

    @property
    def engine(self) -> str:
        """The name of what computes, such as `litert`."""
        return self._compute.name

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def probabilities(self, images: np.ndarray) -> Future:
        """Return what will be the probabilities, float32 `(n, classes)`.

        Args:
            images: float32 `(n, size, size, 3)` in 0..255.
        """
        return self._add(_Job(images))

    def explain(self, image: np.ndarray, label: str | None = None) -> Future:
        """Return what will be the Grad-CAM :class:`~dlzoo.report.gradcam.Explanation` of one
        image, for the class it is taken for or another.
        """
        return self._add(_Job(image[None], label, explain=True))

    def close(self) -> None:
        """Compute what waits, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _add(self, job: _Job) -> Future:
        with self._changed:
            if self._closing:
                raise RuntimeError("the worker is closed")
            self._waiting.append(job)
            self._changed.notify()
        return job.answer

    def _take(self) -> list[_Job]:
        """Return the next job, and those behind it that fit into the same step; [] at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return []
            jobs = [self._waiting.popleft()]
            room = self._compute.batch - len(jobs[0].images)
            while not jobs[0].explain and self._waiting:
                following = self._waiting[0]
                room -= len(following.images)
                if following.explain or room < 0:
                    break
                jobs.append(self._waiting.popleft())
            return jobs

    def _work(self) -> None:
        while taken := self._take():
            jobs = [job for job in taken if job.answer.set_running_or_notify_cancel()]
            if not jobs:
                continue
            try:
                answers = self._explained(jobs[0]) if jobs[0].explain else self._answered(jobs)
            except Exception as error:  # of these jobs alone: the thread goes on
                for job in jobs:
                    job.answer.set_exception(error)
            else:
                for job, answer in zip(jobs, answers, strict=True):
                    job.answer.set_result(answer)

    def _answered(self, jobs: list[_Job]) -> list[np.ndarray]:
        (logits,) = self._compute(np.concatenate([job.images for job in jobs]))
        found = to_probabilities(logits, self.classifier.task)
        return np.split(found, np.cumsum([len(job.images) for job in jobs])[:-1])

    def _explained(self, job: _Job) -> list[Any]:
        explain = self._explainer or gradcam.Explainer(self.classifier)
        return explain(job.images, job.label and [job.label])
