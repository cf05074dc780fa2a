"""A service under load, and given what it should not take: figures, and the status codes.

    python benchmarks/serve.py RUN PHOTOS

Starts `dlzoo serve RUN` in a process of its own, asks it about photos one after the other, 8 and
200 at a time, and for explanations; then sends bodies that are too large, no image, a
decompression bomb, JSON that is none, and images of the wrong kind; looks whether it still
answers as before, how much memory it has, and with which code it ends on SIGTERM.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from photos import giant

MANY = 200


class Client:
    def __init__(self, port: int):
        self.port = port

    def ask(self, path: str, body: bytes = b"", headers=None, method: str = "POST"):
        """Return (status, seconds, parsed JSON or text)."""
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body or None, headers or {})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        kind = answer.headers.get_content_type()
        told = json.loads(content) if kind == "application/json" else content.decode()
        return answer.status, time.perf_counter() - began, told


def memory(pid: int, key: str) -> float:
    """Return VmRSS or VmHWM of a process in MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def together(n: int, ask, times: int) -> tuple[Counter, list[float], float]:
    began = time.perf_counter()
    with ThreadPoolExecutor(n) as pool:
        answers = list(pool.map(ask, range(times)))
    whole = time.perf_counter() - began
    return Counter(status for status, *_ in answers), [s for _, s, _ in answers], whole


def load(client: Client, photos: list[bytes]) -> None:
    for name, path in (("one photo", "/predict"), ("explained", "/predict?explain=gradcam")):
        for n, times in ((1, 50), (8, 200), (MANY, MANY)):
            found, seconds, whole = together(
                n, lambda i, p=path: client.ask(p, photos[i % len(photos)]), times
            )
            ordered = sorted(1e3 * s for s in seconds)
            print(
                f"{name:10} {n:4} at a time  {dict(found)}  {times / whole:6.1f} a second  "
                f"median {statistics.median(ordered):6.0f} ms  "
                f"95 % below {ordered[int(0.95 * len(ordered))]:6.0f} ms"
            )


def abuse(client: Client, name: str, photo: bytes) -> None:
    predict = f"/v1/models/{name}:predict"
    with tempfile.TemporaryDirectory() as folder:
        bomb = giant(Path(folder) / "bomb.png").read_bytes()
    floats = json.dumps({"instances": [[[["a", "b", "c"]]]]}).encode()
    wrong = json.dumps({"signature_name": "serving_uint8", "instances": [[[[1.5, 2, 3]]]]})
    bombs = json.dumps(
        {"signature_name": "bytes", "instances": [{"b64": base64.b64encode(bomb).decode()}]}
    )
    rows = {
        "50 MB": ("/predict", bytes(50_000_000)),
        "50 MB of JSON": (predict, b'{"instances": [' + b" " * 50_000_000),
        "19 MB of zeros": ("/predict", bytes(19_000_000)),
        "a text file": ("/predict", b"I am a rose"),
        "nothing": ("/predict", b""),
        "half a photo": ("/predict", photo[: len(photo) // 2]),
        "a bomb": ("/predict", bomb),
        "a bomb in JSON": (predict, bombs.encode()),
        "malformed JSON": (predict, b'{"instances": ['),
        "deep JSON": (predict, b"[" * 1_000_000),
        "19 MB of lists": (predict, b'{"instances":[' + b"[]," * 6_000_000 + b"[]]}"),
        "text for numbers": (predict, floats),
        "floats for uint8": (predict, wrong.encode()),
        "no signature": (predict, b'{"signature_name": "x", "instances": []}'),
        "another model": ("/v1/models/other:predict", b"{}"),
        "no such address": ("/etc/passwd", b""),
    }
    for what, (path, body) in rows.items():
        status, seconds, told = client.ask(path, body)
        print(f"{what:18} {status}  {1e3 * seconds:6.0f} ms  {str(told)[:90]}")
    found, *_ = together(32, lambda i: client.ask("/predict", bomb), 64)
    print(f"{'64 bombs at once':18} {dict(found)}")
    found, *_ = together(32, lambda i: client.ask("/predict", bytes(50_000_000)), 32)
    print(f"{'32 times 50 MB':18} {dict(found)}")


def main() -> None:
    run, folder = sys.argv[1:3]
    files = sorted(Path(folder).rglob("*.jpg"))
    photos = [path.read_bytes() for path in files[:: max(1, len(files) // 50)]]
    command = [sys.executable, "-m", "dlzoo", "serve", run, "--port", "0", "--quiet"]
    began = time.perf_counter()
    service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        client = Client(int(service.stdout.readline().rsplit(":", 1)[1].strip(" /\n")))
        while True:
            status, _, health = client.ask("/health", method="GET")
            if status == 200:
                break
        print(f"ready after {time.perf_counter() - began:.1f} s, engine {health['engine']}")
        print(f"{os.cpu_count()} cores, {memory(service.pid, 'VmRSS'):,.0f} MB")
        before = client.ask("/predict", photos[0])
        load(client, photos)
        abuse(client, health["model"], photos[0])
        after = client.ask("/predict", photos[0])
        same = before[2]["top"][0]["label"] == after[2]["top"][0]["label"]
        print(f"afterwards {after[0]}, the same answer: {same}")
        print(
            f"memory now {memory(service.pid, 'VmRSS'):,.0f} MB, "
            f"at most {memory(service.pid, 'VmHWM'):,.0f} MB"
        )
        with ThreadPoolExecutor(20) as pool:  # twenty requests are in work when it is asked to go
            last = [pool.submit(client.ask, "/predict", photos[0]) for _ in range(20)]
            time.sleep(0.1)
            service.send_signal(signal.SIGTERM)
            outcomes = Counter(
                str(f.result()[0]) if not f.exception() else type(f.exception()).__name__
                for f in last
            )
        print(f"SIGTERM with 20 requests: {dict(outcomes)}, exit code {service.wait(60)}")
    finally:
        service.kill()


if __name__ == "__main__":
    main()
