"""The web application: its addresses, and how each request is let in, bounded and answered."""

from __future__ import annotations

import asyncio
import base64
import re
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from .. import __version__, console
from ..data.decode import decode
from ..data.pipeline import load_image, resize_rule
from ..errors import DlzooError
from ..machine import cores
from . import page, tfserving
from .limits import Gate, Limits, Refused, too_large
from .worker import Worker

if TYPE_CHECKING:
    from ..transfer.classifier import Classifier

TOP = 5  # classes in an answer, unless asked for others
SMALLER_PHOTO = "send a smaller photo, or start the service with a larger --max-pixels"
DRAINED = 4  # of a too large body, times the limit, before the line is cut in the middle of it
_MODEL = re.compile(r"(?P<name>[^/:]+)(/versions/(?P<version>\d+))?(?P<what>/metadata|:predict)?")
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(
    classifier: Classifier,
    name: str = "model",
    limits: Limits | None = None,
    say: Callable[[str], None] = lambda line: None,
    worker: Worker | None = None,
) -> Starlette:
    """Return the ASGI application that answers for a classifier.

    Args:
        name: of the model, in its addresses.
        limits: default: those of :class:`Limits`.
        say: called with a line for each answered request.
        worker: what computes; closed with the application. Default: one of its own.
    """
    worker = worker or Worker(classifier)
    service = _Service(classifier, name, limits or Limits(), say, worker)
    routes = [
        Route("/", service.answering(service.front)),
        Route("/health", service.health),
        Route("/health/live", service.live),
        Route("/health/ready", service.health),
        Route("/predict", service.answering(service.predict), methods=["POST"]),
        Route("/v1/models/{rest:path}", service.answering(service.model), methods=["GET", "POST"]),
    ]
    return Starlette(
        routes=routes,
        lifespan=service.lifespan,
        exception_handlers={HTTPException: service.unknown},
    )


class _Service:
    """What the addresses share: the worker, the threads that decode, and the counting."""

    def __init__(self, classifier: Classifier, name: str, limits: Limits, say, worker: Worker):
        self.classifier, self.name, self.limits, self.say = classifier, name, limits, say
        self.gate, self.worker = Gate(limits), worker
        self.pool = ThreadPoolExecutor(cores(), thread_name_prefix="dlzoo-decode")
        self.page = page.render(name)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Run until the server has answered its last request."""
        yield
        self.pool.shutdown(cancel_futures=True)
        self.worker.close()

    def answering(self, endpoint: Endpoint) -> Endpoint:
        """Return the endpoint with its time limit, its errors as JSON, and a line in the log."""

        async def answer(request: Request) -> Response:
            began = time.perf_counter()
            try:
                async with asyncio.timeout(self.limits.seconds):
                    response = await endpoint(request)
            except TimeoutError:
                late = f"no answer within {self.limits.seconds:g} s"
                response = _told(Refused(504, "serve.timeout", late))
            except DlzooError as error:
                response = _told(error)
            except ClientDisconnect:  # nobody gets this one: it is for the log, as nginx has it
                response = _told(Refused(499, "serve.gone", "the client went away"))
            except HTTPException as error:  # of Starlette's own readers of forms
                response = _told(Refused(error.status_code, "serve.http", error.detail))
            except Exception as error:
                self.say(traceback.format_exc())
                what = f"a fault of the service: {type(error).__name__}"
                response = _told(Refused(500, "serve.bug", what))
            spent = 1e3 * (time.perf_counter() - began)
            path = console.plain(request.url.path)
            self.say(f"{request.method} {path} {response.status_code} {spent:.0f} ms")
            return response

        return answer

    async def unknown(self, request: Request, error: Exception) -> Response:
        """Answer for an address or a method that there is not."""
        assert isinstance(error, HTTPException)
        said = Refused(error.status_code, "serve.http", f"{error.detail}: {request.url.path}")
        return _told(said, error.headers)

    # -- the addresses

    async def front(self, request: Request) -> Response:
        """Show the page."""
        headers = {"Content-Security-Policy": self.page.policy, "Referrer-Policy": "no-referrer"}
        return HTMLResponse(self.page.html, headers=_HEADERS | headers)

    async def live(self, request: Request) -> Response:
        """Say that the process is there."""
        return JSONResponse({"live": True}, headers=_HEADERS)

    async def health(self, request: Request) -> Response:
        """Say whether it answers, and what is waiting."""
        ready = self.worker.alive
        told = {
            "live": True,
            "ready": ready,
            "model": self.name,
            "classes": len(self.classifier.classes),
            "images": self.gate.images,
            "engine": self.worker.engine,
            "dlzoo": __version__,
        }
        return JSONResponse(told, status_code=200 if ready else 503, headers=_HEADERS)

    async def predict(self, request: Request) -> Response:
        """Name what one photo shows: the body itself, or the file of a form."""
        classes = self.classifier.classes
        top = _number(request.query_params.get("top", str(min(TOP, len(classes)))), len(classes))
        explain, label = (request.query_params.get(key) for key in ("explain", "label"))
        if explain not in (None, "", "gradcam"):
            raise Refused(400, "serve.explain", f"no explanation {explain!r}", fix="gradcam")
        with self.gate.images_of(1), self.gate.body() as body:
            await self.read(request, body)
            (image,) = await self.prepare([await _photo(request, body)])
            (row,) = await asyncio.wrap_future(self.worker.probabilities(image[None]))
            order = np.argsort(-row, kind="stable")[:top]
            told: dict[str, Any] = {
                "model": self.name,
                "top": [
                    {"label": classes[i], "probability": p}
                    for i, p in zip(order, tfserving.shortest(row[order]), strict=True)
                ],
            }
            if explain:
                found = await asyncio.wrap_future(self.worker.explain(image, label or None))
                png = await self.aside(found._repr_png_)
                told["explained"] = {
                    "label": found.label,
                    "probability": tfserving.shortest(np.array([found.probability]))[0],
                    "image": f"data:image/png;base64,{base64.b64encode(png).decode()}",
                }
            return JSONResponse(told, headers=_HEADERS)

    async def model(self, request: Request) -> Response:
        """Answer as TensorFlow Serving does below `/v1/models/`."""
        asked = _MODEL.fullmatch(request.path_params["rest"])
        method = "POST" if asked and asked["what"] == ":predict" else "GET"
        if not asked or request.method not in (method, "HEAD"):
            path = f"{request.method} {request.url.path}"
            raise Refused(404, "serve.address", f"Malformed request: {path}")
        if asked["name"] != self.name or asked["version"] not in (None, "1"):
            raise Refused(
                404,
                "serve.model",
                f"Servable not found for request: {asked[0]}",
                fix=f"/v1/models/{self.name}",
            )
        if asked["what"] is None:
            return JSONResponse(tfserving.status(), headers=_HEADERS)
        classes, task = self.classifier.classes, self.classifier.task
        if asked["what"] == "/metadata":
            told = tfserving.metadata(self.name, len(classes), task)
            return JSONResponse(told, headers=_HEADERS)
        with self.gate.images_of(1), self.gate.body() as body:
            await self.read(request, body)
            call = await self.aside(tfserving.parse, body)
            found = np.empty((0, len(classes)), "float32")
            if n := len(call.images):
                with self.gate.images_of(n, counted=1):
                    images = np.stack(await self.prepare(call.images))
                    found = await asyncio.wrap_future(self.worker.probabilities(images))
            told = tfserving.answer(call, found, classes, task)
            return JSONResponse(told, headers=_HEADERS)

    # -- their steps

    async def read(self, request: Request, body: bytearray) -> None:
        """Read the body of a request into `body`.

        One that is too large is read on for a while and dropped: most clients look for an answer
        only when they have sent everything.
        """
        limit, total = self.limits.body, 0
        declared = request.headers.get("content-length", "")
        told = int(declared) if declared.isascii() and declared.isdigit() else 0
        asks_first = request.headers.get("expect", "").lower() == "100-continue"
        if told > DRAINED * limit or (told > limit and asks_first):
            raise too_large(limit)
        async for chunk in request.stream():
            total += len(chunk)
            if max(total, told) <= limit:
                self.gate.add(body, chunk)
            elif total > DRAINED * limit:
                break
        if total > limit:
            raise too_large(limit)

    async def aside(self, work: Callable[..., Any], *given: Any) -> Any:
        """Do something in one of the threads that decode."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, *given)

    async def prepare(self, images: Sequence[bytes] | np.ndarray) -> list[np.ndarray]:
        """Return images as the model takes them, float32 (size, size, 3) in 0..255."""
        rule, most = self.classifier.preprocess, self.limits.pixels

        def one(image: bytes | np.ndarray) -> np.ndarray:
            if isinstance(image, np.ndarray):
                return resize_rule(tf.constant(image), rule).numpy()
            return load_image(decode(image, max_pixels=most), rule)

        return list(await asyncio.gather(*(self.aside(one, image) for image in images)))


async def _photo(request: Request, body: bytearray) -> bytes:
    """Return the content of the photo in a body: the body itself, or the one file of a form."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return bytes(body)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    why = "the form has no file"
    try:
        async with Request(request.scope, receive).form(max_files=1, max_fields=8) as form:
            for value in form.values():
                if isinstance(value, UploadFile):
                    return await value.read()
    except ValueError as error:  # so python-multipart, where Starlette does not translate it
        why = f"the form cannot be read: {error}"
    raise Refused(400, "serve.form", why, fix="curl -F file=@photo.jpg")


def _number(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:9]) > 0):
        raise Refused(400, "serve.top", f"top={text[:40]!r}", fix=f"a number from 1 to {most}")
    return min(int(text[:9]), most)


def _told(error: DlzooError, more: Any = None) -> Response:
    """Return an error as a response; whatever the client sent wrongly is 4xx."""
    status, fix = 400, error.hint
    if isinstance(error, Refused):
        status = error.status
    elif error.id == "data.image-too-large":
        status, fix = 413, SMALLER_PHOTO
    told = {"error": error.message, "id": error.id} | ({"fix": fix} if fix else {})
    headers = _HEADERS | dict(more or {}) | ({"Retry-After": "1"} if status == 503 else {})
    return JSONResponse(told, status_code=status, headers=headers)
