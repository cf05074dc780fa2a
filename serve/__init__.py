"""A small HTTP service for a trained classifier: `dlzoo serve RUN`.

It answers as TensorFlow Serving does for the exported SavedModel, and a page at `/` takes a photo
and shows the answer with what spoke for it. Needs the extra `serve` (Starlette, uvicorn).
"""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import signals
from ..errors import ResourceError, UsageError
from .limits import Limits

if TYPE_CHECKING:
    from ..transfer.classifier import Classifier

__all__ = ["Limits", "check_packages", "load", "serve"]

HOST, PORT = "127.0.0.1", 8501  # that of TensorFlow Serving's REST API
_PACKAGES = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}


def check_packages() -> None:
    """Raise UsageError `serve.package` with the pip line if the extra is not installed."""
    if missing := [name for module, name in _PACKAGES.items() if util.find_spec(module) is None]:
        raise UsageError(
            "serve.package",
            f"the service needs packages that are not installed: {', '.join(missing)}",
            fix='pip install "dlzoo[serve]"',
        )


def load(path: Path | str) -> tuple[Classifier, str]:
    """Return the classifier of a run, or of the `model` folder of one, and a name for it.

    Raises:
        UsageError: `run.not-found`. ModelError: as `Classifier.load`.
    """
    from ..rundir import RunDir
    from ..transfer.classifier import Classifier
    from ..zoo.from_run import JSON

    path = Path(path)
    if (path / JSON).is_file():  # what was copied to a server
        return Classifier.load(path), path.absolute().name
    directory = RunDir.open(path)
    return Classifier.load(directory.model), directory.path.absolute().name


def serve(
    path: Path | str,
    *,
    host: str = HOST,
    port: int = PORT,
    name: str | None = None,
    limits: Limits | None = None,
    ready: Callable[[str], None] = lambda url: None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Answer requests until SIGTERM or Ctrl-C; those that have begun are answered first.

    Args:
        path: of a run, or of its `model` folder.
        host, port: where to listen; port 0 is any free one.
        name: of the model, in `/v1/models/NAME`; default: that of the folder.
        limits: on size, time and number.
        ready: called with the address once it is open. say: with a line a request.

    Raises:
        KeyboardInterrupt: Ctrl-C; after SIGTERM it returns.
        ResourceError: `serve.port`, it cannot be listened to.
        UsageError: `serve.package`, `serve.name`.
    """
    check_packages()
    import uvicorn

    from .app import create_app

    limits = limits or Limits()
    classifier, found = load(path)
    name = re.sub(r"[^\w.-]+", "_", found) if name is None else name
    if not re.fullmatch(r"[\w.-]+", name):
        raise UsageError("serve.name", f"no name for a model: {name!r}", fix="letters, digits, -_.")
    with _listening(host, port) as listener:
        app = create_app(classifier, name, limits, say)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(limits.seconds)),
        )
        server, received = uvicorn.Server(config), list[int]()

        @contextmanager
        def capture_signals() -> Iterator[None]:
            # uvicorn would send the signal once more in the end: the process would die of it
            def leave(number: int, frame: Any) -> None:
                received.append(number)
                server.handle_exit(number, frame)

            restore = signals.listen(("SIGINT", "SIGTERM"), leave)
            try:
                yield
            finally:
                restore()

        server.capture_signals = capture_signals  # type: ignore[method-assign]
        ready(_address(host, listener))
        server.run(sockets=[listener])
    if signal.SIGINT in received:
        raise KeyboardInterrupt


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise ResourceError(
            "serve.port",
            f"cannot listen: {getattr(error, 'strerror', None) or error}",
            where=f"{host}:{port}",
            fix="--port 0 takes any free port",
        ) from None


def _address(host: str, listener: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"
