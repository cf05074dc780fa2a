"""Fixtures that several folders of tests share."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if os.path.exists("/dev/nvidia0"):  # others use its memory, too; numbers are compared, some exactly
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    os.environ.setdefault("TF_DETERMINISTIC_OPS", "1")
os.environ["DLZOO_HOME"] = tempfile.mkdtemp(prefix="dlzoo-tests-")  # never the user's own
sys.path.insert(0, str(Path(__file__).parent))  # for `golden` and `known_gaps`

from dlzoo.errors import DlzooError
from known_gaps import KNOWN_GAPS

# A shell that starts the tests in the background has it ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples each time, however long a busy machine takes for one.
hypothesis.settings.register_profile(
    "same",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("same")

MUCH, MORE = 3 << 30, 1 << 30  # bytes


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Expect a test to fail for the variants in known_gaps.py, and to be taken out once passing."""
    reason = KNOWN_GAPS.get((pyfuncitem.originalname, pyfuncitem.funcargs.get("name")))
    try:
        result = yield
    except Exception:
        if reason is None:
            raise
        return True
    if reason is not None:
        pytest.fail(f"a known gap passes now, take it out of known_gaps.py: {reason}")
    return result


def pytest_collection_finish():
    """Look for garbage less often: tracing makes so many objects that it takes long."""
    gc.set_threshold(20_000, 20, 50)


_after = [0]  # bytes in use when garbage was last looked for


@pytest.hookimpl(trylast=True)  # after the fixtures have let go
def pytest_runtest_teardown():
    """Look for garbage where much memory has come into use: models are few objects, but large.

    Not where what is in use stays: to look takes a second by then.
    """
    if _in_use() > max(MUCH, _after[0] + MORE):
        gc.collect()
        _after[0] = _in_use()


def _in_use() -> int:
    with contextlib.suppress(OSError):  # Linux tells how much
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def pytest_sessionfinish():
    """Take away what the tests kept."""
    shutil.rmtree(os.environ["DLZOO_HOME"], ignore_errors=True)


def pytest_terminal_summary(terminalreporter):
    """Print how far each model was from its references, by the tests of this run."""
    found: dict[tuple[str, str], float] = {}
    for report in (r for reports in terminalreporter.stats.values() for r in reports):
        for key, value in getattr(report, "user_properties", ()):
            if key == "off":
                *of, off = value
                found[tuple(of)] = max(off, found.get(tuple(of), 0.0))
    if not found:
        return
    from equality import summary

    terminalreporter.section("largest difference of a logit, in standard deviations of the logits")
    worst: dict[str, float] = {}
    for (name, reference), off in sorted(found.items()):
        terminalreporter.write_line(f"{off:.1e}  {name:32s} {reference}")
        worst[name] = max(off, worst.get(name, 0.0))
    terminalreporter.write_line(summary(worst))


@pytest.fixture
def call(capsys, monkeypatch):
    """Give a function that runs `dlzoo ...` in this process: (exit code, stdout, stderr)."""
    from dlzoo import cli

    for name in [n for n in os.environ if n.startswith("DLZOO_") and n != "DLZOO_HOME"]:
        monkeypatch.delenv(name)

    def run(*argv):
        with pytest.raises(SystemExit) as done:
            cli.main([str(arg) for arg in argv])
        return (done.value.code, *capsys.readouterr())

    return run


class FileServer(ThreadingHTTPServer):
    """Serves one file on 127.0.0.1, and can be told to serve it badly.

    Attributes:
        body: what is served. requests: the Range header (or None) of each request so far.
        ranges: whether Range requests are honoured.
        failing: how many requests are still answered with `status`.
        cut: how many bytes are sent of an answer before the connection is `held` and dropped.
        redirect: a URL that every request is sent to.
    """

    daemon_threads = True

    def __init__(self, body: bytes):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body, self.requests = body, []
        self.ranges, self.failing, self.status = True, 0, 500
        self.cut, self.redirect = None, None
        self.held = threading.Event()
        self.held.set()
        self.sent = threading.Event()  # the cut has been reached

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/files/net.h5"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self):
        server, wanted = self.server, self.headers["Range"]
        server.requests.append(wanted)
        if server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            return self.end_headers()
        if server.failing:
            server.failing -= 1
            return self.send_error(server.status)
        start = 0
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.body):
                return self.send_error(416)
            self.send_response(206)
            last = len(server.body) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(server.body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        self.wfile.write(server.body[start:][: server.cut])
        if server.cut:
            self.wfile.flush()
            server.sent.set()
            server.held.wait(20)

    def log_message(self, *args):
        pass


@pytest.fixture
def file_server(tmp_path, monkeypatch):
    """Give a FileServer, an empty cache directory, and no proxy in between."""
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("DLZOO_OFFLINE", raising=False)
    server = FileServer(b"weights " * (1 << 19))  # 4 MiB
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.held.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def seen(record_property, tmp_path):
    """Give a function that notes a line as it was printed, and the exit code it came with.

    `tools/reliability.py` puts it into docs/RELIABILITY.md.
    """

    def note(text, code=0):
        line = str(text).strip().splitlines()[0].replace(f"{tmp_path}{os.sep}", "")
        record_property("seen", f"{code} {line}")

    return note


@pytest.fixture
def raises(seen):
    """Give `raises(id, code)`: a context in which that DlzooError must come, and is noted."""

    @contextlib.contextmanager
    def expect(id, code):
        with pytest.raises(DlzooError) as caught:
            yield caught
        assert (caught.value.id, caught.value.exit_code) == (id, code)
        seen(caught.value, code)

    return expect
