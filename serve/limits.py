"""What a service takes at most, and how it says that something is too much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import DlzooError

BODIES = 8  # as many full bodies are held at a time; further ones have to wait outside


@dataclass(frozen=True)
class Limits:
    """Bounds on what one request, and all of them together, may take.

    Attributes:
        body: bytes of a request.
        seconds: from its first byte to the answer.
        pixels: of an encoded image, before anything of it is decoded.
        queue: images that are read, wait or are computed at a time.
    """

    body: int = 20_000_000
    seconds: float = 30.0
    pixels: int = 50_000_000
    queue: int = 256


class Refused(DlzooError):
    """A request that is not answered, with its HTTP status."""

    def __init__(self, status: int, id: str, message: str, **more: Any):
        super().__init__(id, message, **more)
        self.status = status


class Gate:
    """Counts the images and bytes in work; used in the event loop alone, so without a lock."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.images = self.bytes = 0

    @contextmanager
    def images_of(self, n: int, counted: int = 0) -> Iterator[None]:
        """Count the images of a request while the block runs.

        Args:
            counted: of the `n`, those that count already.

        Raises:
            Refused: 413 if they are more than are ever let in, 503 if they are too many now.
        """
        most = self.limits.queue
        if n > most:
            raise Refused(413, "serve.images", f"{n} images in one request; at most {most}")
        more = n - counted
        if self.images + more > most:
            raise busy(f"{self.images} images are waiting already")
        self.images += more
        try:
            yield
        finally:
            self.images -= more

    @contextmanager
    def body(self) -> Iterator[bytearray]:
        """Give the place for a body, whose bytes count until the block ends."""
        place = bytearray()
        try:
            yield place
        finally:
            self.bytes -= len(place)

    def add(self, place: bytearray, chunk: bytes) -> None:
        """Add to a body.

        Raises:
            Refused: 503 if all bodies together would take too much memory.
        """
        if self.bytes + len(chunk) > BODIES * self.limits.body:
            raise busy("too many large requests at once")
        self.bytes += len(chunk)
        place += chunk


def busy(why: str) -> Refused:
    """Return what a client is told that should come again."""
    return Refused(503, "serve.busy", why, fix="try again in a second")


def too_large(limit: int) -> Refused:
    return Refused(
        413,
        "serve.body",
        f"the request has more than {limit:,} bytes",
        fix="send a smaller photo, or start the service with a larger --max-body",
    )
