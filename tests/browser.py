"""A headless Chromium, spoken to through its DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def found() -> str | None:
    """Return the program, or None where there is none (or nothing to speak to it with)."""
    try:
        import websockets  # noqa: F401
    except ImportError:
        return None
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a browser; used as a context manager it ends with the block.

    Attributes:
        requests: addresses that the page asked for. complaints: what it logged as errors.
    """

    def __init__(self, width: int, height: int):
        self._folder = tempfile.TemporaryDirectory(prefix="dlzoo-browser-")
        command = [found(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--remote-debugging-port=0", f"--user-data-dir={self._folder.name}"]
        command += ["--remote-allow-origins=*", f"--window-size={width},{height}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, **quiet)
        self._number, self.requests, self.complaints = 0, [], []
        try:
            self._connect(width, height)
        except BaseException:
            self.close()
            raise

    def _connect(self, width: int, height: int) -> None:
        from urllib.request import ProxyHandler, build_opener

        from websockets.sync.client import connect

        port = Path(self._folder.name) / "DevToolsActivePort"
        self.wait(lambda: port.is_file() and "\n" in port.read_text(), 30)
        where = f"http://127.0.0.1:{port.read_text().split()[0]}/json/list"

        def page():
            with build_opener(ProxyHandler({})).open(where) as answer:
                return next((t for t in json.load(answer) if t["type"] == "page"), None)

        address = self.wait(page, 10)["webSocketDebuggerUrl"]
        self._socket = connect(address, max_size=None, proxy=None)
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **screen)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        if hasattr(self, "_socket"):
            self._socket.close()
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def call(self, method: str, **params):
        """Call a method of the protocol; return its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            told = json.loads(self._socket.recv(timeout=30))
            if told.get("id") == self._number:
                assert "error" not in told, told["error"]
                return told["result"]
            event, about = told.get("method"), told.get("params", {})
            if event == "Network.requestWillBeSent":
                self.requests.append(about["request"]["url"])
            elif event == "Log.entryAdded" and about["entry"]["level"] == "error":
                self.complaints.append(about["entry"]["text"])
            elif event == "Runtime.exceptionThrown":
                self.complaints.append(str(about["exceptionDetails"]))

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait(lambda: self.value("document.readyState") == "complete", 10)

    def value(self, expression: str):
        """Return the value of an expression of JavaScript in the page."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def drop(self, selector: str, path: Path) -> None:
        """Drag a file over the middle of an element, and let it go there."""
        box = self.value(
            f"(b => [b.x + b.width / 2, b.y + b.height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        dragged = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=box[0], y=box[1], data=dragged)

    def choose(self, selector: str, path: Path) -> None:
        """Give a file to an input, as a person does in the chooser."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def wait(self, condition, seconds: float = 20.0):
        """Return what `condition()` gives once it is true."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.05)
        return value

    def picture(self, path: Path) -> None:
        """Save the whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
