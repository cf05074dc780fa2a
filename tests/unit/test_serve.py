"""The HTTP service answers as TensorFlow Serving would, within its limits, whatever comes."""

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import util

import numpy as np
import pytest
import tensorflow as tf
from dlzoo import zoo
from dlzoo.data.pipeline import load_image
from dlzoo.errors import UsageError
from dlzoo.export.serving import Serving
from dlzoo.transfer.classifier import Classifier
from dlzoo.zoo.spec import Preprocess
from photos import giant
from PIL import Image

pytest.importorskip("starlette", reason="needs the extra serve")
from dlzoo import serve
from dlzoo.serve import Limits
from dlzoo.serve.app import create_app
from dlzoo.serve.worker import Worker
from dlzoo.transfer import engine
from starlette.testclient import TestClient

SIZE = 20
CLASSES = ("daisy", "<b>rose</b>", "tulip é")
DTYPES = {
    "DT_FLOAT": tf.float32,
    "DT_UINT8": tf.uint8,
    "DT_STRING": tf.string,
    "DT_INT64": tf.int64,
}
UINT8 = {"signature_name": "serving_uint8"}
FILES = {"signature_name": "bytes"}
PREDICT = "/v1/models/net:predict"
LIMITS = Limits(body=300_000, seconds=20, pixels=1_000_000, queue=8)


def build(task="multiclass", name="lenet5"):
    create = {"name": name, "num_classes": 1 if task == "binary" else 3}
    create |= {"input_shape": [SIZE, SIZE, 3]}
    rule = Preprocess(size=SIZE, crop=0.8)
    model = zoo.create_model(**create | {"input_shape": (SIZE, SIZE, 3)}, preprocess=rule)
    classes = CLASSES[:2] if task == "binary" else CLASSES
    return Classifier(model, classes, task, rule, {"create": create})


@pytest.fixture(scope="module")
def classifier():
    return build()


class Compute:
    """Keras, which needs no conversion: it can be held up, and remembers what it was given."""

    name = "keras"

    def __init__(self, classifier, batch=1):
        self.batch, self.sizes, self.go = batch, [], threading.Event()
        self.inner, self.failing = engine.frozen(classifier.model, work=0), False
        self.go.set()

    def __call__(self, images):
        self.go.wait(20)
        self.sizes.append(len(images))
        return 1 / 0 if self.failing else self.inner(images)


def app(classifier, limits=LIMITS, compute=None, **more):
    worker = Worker(classifier, compute or Compute(classifier))
    return TestClient(create_app(classifier, "net", limits, worker=worker, **more))


@pytest.fixture(scope="module")
def client(classifier):
    with app(classifier) as found:
        yield found


def photo(seed=0, width=50, height=40, format="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), format)
    return file.getvalue()


def b64(content):
    return {"b64": base64.b64encode(content).decode()}


def expected(classifier, *photos):
    return classifier.probabilities(
        np.stack([load_image(p, classifier.preprocess) for p in photos])
    )


def test_a_photo_is_named_as_predict_names_it(client, classifier):
    (row,) = expected(classifier, photo())
    best = classifier.classes[row.argmax()]
    for body in (
        {"content": photo()},
        {"files": {"file": ("a.png", photo())}},
        {"files": {"x": photo()}},
    ):
        answer = client.post("/predict", params={"top": 2}, **body)
        assert answer.status_code == 200
        first, _ = answer.json()["top"]
        assert first == {"label": best, "probability": pytest.approx(row.max(), abs=1e-5)}
    assert len(client.post("/predict", content=photo()).json()["top"]) == 3


def test_an_explanation_is_a_picture_of_the_class_asked_for(client, classifier):
    asked = {"explain": "gradcam", "label": CLASSES[1]}
    found = client.post("/predict", params=asked, content=photo()).json()["explained"]
    place = expected(classifier, photo())[0][1]
    assert found["label"] == CLASSES[1] and found["probability"] == pytest.approx(place, abs=1e-5)
    kind, _, content = found["image"].partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == "data:image/png;base64" and image.size == (SIZE, SIZE)
    default = client.post("/predict", params={"explain": "gradcam"}, content=photo()).json()
    assert default["explained"]["label"] == default["top"][0]["label"]


@pytest.mark.parametrize(
    "task",
    ["multiclass", *(pytest.param(t, marks=pytest.mark.full) for t in ("multilabel", "binary"))],
)
def test_predict_answers_as_the_signatures_of_the_savedmodel(task):
    """What a model server makes of them: rows of named outputs, or columns."""
    classifier = build(task)
    files = [photo(1), photo(2, format="JPEG")]
    pixels = np.random.default_rng(3).integers(0, 256, (2, 30, 24, 3), np.uint8)
    signatures = Serving(classifier).signatures()
    with app(classifier) as client:
        for signature, values, plain in (
            (
                "serving_default",
                pixels.astype("float32") / 3,
                (pixels.astype("float32") / 3).tolist(),
            ),
            ("serving_uint8", pixels, pixels.tolist()),
            ("bytes", files, [b64(content) for content in files]),
        ):
            (spec,) = signatures[signature].input_signature
            wanted = {k: v.numpy() for k, v in signatures[signature](tf.constant(values)).items()}
            asked = {"signature_name": signature}
            rows = client.post(PREDICT, json=asked | {"instances": plain}).json()["predictions"]
            named = [{spec.name: value} for value in plain]
            assert client.post(PREDICT, json=asked | {"instances": named}).json() == {
                "predictions": rows
            }
            columns = client.post(PREDICT, json=asked | {"inputs": {spec.name: plain}}).json()
            columns = columns["outputs"]
            if len(wanted) == 1:  # no names where there is one output
                rows = [{"probabilities": row} for row in rows]
                columns = {"probabilities": columns}
            assert columns == {k: [row[k] for row in rows] for k in wanted}
            np.testing.assert_allclose(columns["probabilities"], wanted["probabilities"], atol=2e-3)
            for name in wanted.keys() - {"probabilities"}:
                texts = [v.decode() if isinstance(v, bytes) else v for v in wanted[name].tolist()]
                assert columns[name] == texts
        names = client.post(PREDICT, json={"signature_name": "class_names", "inputs": {}}).json()
        assert names == {"outputs": list(classifier.classes)}
        told = client.get("/v1/models/net/metadata").json()
    described = told["metadata"]["signature_def"]["signature_def"]
    assert described.keys() == signatures.keys()
    for name, function in signatures.items():
        outputs = function.get_concrete_function().structured_outputs
        inputs = {spec.name: spec for spec in function.input_signature}
        for part, specs in (("inputs", inputs), ("outputs", outputs)):
            assert described[name][part].keys() == specs.keys()
            for key, spec in specs.items():
                shown = described[name][part][key]
                assert DTYPES[shown["dtype"]] == spec.dtype
                sizes = [int(d["size"]) for d in shown["tensor_shape"]["dim"]]
                assert sizes == [-1 if n is None else n for n in spec.shape]


def test_the_state_of_the_model_is_told_as_a_model_server_tells_it(client):
    status = client.get("/v1/models/net").json()
    assert status == client.get("/v1/models/net/versions/1").json()
    (row,) = status["model_version_status"]
    assert row["state"] == "AVAILABLE" and row["status"]["error_code"] == "OK"
    assert client.get("/health/live").json() == {"live": True}
    health = client.get("/health/ready")
    assert health.status_code == 200 and health.json()["ready"] and health.json()["images"] == 0


BAD = {
    "no JSON": (PREDICT, b'{"instances": [', 400, "serve.json"),
    "no number": (PREDICT, b'{"instances": [NaN]}', 400, "serve.json"),
    "deep": (PREDICT, b"[" * 100_000, 400, "serve.json"),
    "no object": (PREDICT, b"[]", 400, "serve.json"),
    "no text": (PREDICT, b"\xff\xfe\x80", 400, "serve.json"),
    "no input": (PREDICT, b"{}", 400, "serve.form"),
    "both": (PREDICT, {"instances": [], "inputs": []}, 400, "serve.form"),
    "none": (PREDICT, {"instances": []}, 400, "serve.form"),
    "no list": (PREDICT, {"instances": 3}, 400, "serve.form"),
    "other name": (PREDICT, {"instances": [{"pixels": [[[1, 2, 3]]]}]}, 400, "serve.form"),
    "signature": (PREDICT, {"signature_name": "byte", "instances": [1]}, 400, "serve.signature"),
    "no text for it": (PREDICT, {"signature_name": [1], "inputs": [1]}, 400, "serve.signature"),
    "words": (PREDICT, {"instances": [[[["a", "b", "c"]]]]}, 400, "serve.dtype"),
    "files for pixels": (PREDICT, {"instances": [b64(b"x")]}, 400, "serve.dtype"),
    "truth": (PREDICT, {"instances": [[[[True, True, False]]]]}, 400, "serve.dtype"),
    "infinite": (PREDICT, b'{"instances": [[[[1e999, 1, 1]]]]}', 400, "serve.dtype"),
    "floats for uint8": (PREDICT, UINT8 | {"instances": [[[[0.5, 1, 1]]]]},
                         400, "serve.dtype"),
    "256 for uint8": (PREDICT, UINT8 | {"instances": [[[[256, 1, 1]]]]},
                      400, "serve.dtype"),
    "numbers for files": (PREDICT, FILES | {"instances": [[1]]}, 400, "serve.dtype"),
    "no base64": (PREDICT, FILES | {"instances": [{"b64": "?"}]}, 400, "serve.b64"),
    "scaled": (PREDICT, {"instances": [[[[0.5, 0, 1]]]]}, 400, "serve.range"),
    "centred": (PREDICT, {"instances": [[[[-1, 0, 1]]]]}, 400, "serve.range"),
    "ragged": (PREDICT, {"inputs": [[[[1, 2, 3]]], [[[1, 2, 3]] * 2]]}, 400, "serve.shape"),
    "grey": (PREDICT, {"instances": [[[1, 2], [3, 4]]]}, 400, "serve.shape"),
    "empty": (PREDICT, {"instances": [[], []]}, 400, "serve.shape"),
    "a word in JSON": (PREDICT, FILES | {"instances": ["rose"]}, 400,
                       "data.unreadable"),
    "many": (PREDICT, FILES | {"instances": ["rose"] * 9}, 413, "serve.images"),
    "large": ("/predict", bytes(300_001), 413, "serve.body"),
    "a text": ("/predict", b"I am a rose", 400, "data.unreadable"),
    "nothing": ("/predict", b"", 400, "data.unreadable"),
    "half": ("/predict", photo()[:1000], 400, "data.unreadable"),
    "top 0": ("/predict?top=0", photo(), 400, "serve.top"),
    "top x": ("/predict?top=x", photo(), 400, "serve.top"),
    "explanation": ("/predict?explain=why", photo(), 400, "serve.explain"),
    "label": ("/predict?explain=gradcam&label=cat", photo(), 400, "explain.label"),
    "other model": ("/v1/models/other:predict", {}, 404, "serve.model"),
    "other version": ("/v1/models/net/versions/2:predict", {}, 404, "serve.model"),
    "other verb": ("/v1/models/net:classify", {}, 404, "serve.address"),
    "no address": ("/nowhere", {}, 404, "serve.http"),
    "no method": ("/health", {}, 405, "serve.http"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_told_and_not_answered(what, client):
    path, body, status, id = BAD[what]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, content=content)
    assert (answer.status_code, answer.json()["id"]) == (status, id)
    assert answer.json()["error"]
    assert client.get("/health").json()["images"] == 0  # nothing is left behind


def test_a_bomb_and_a_form_without_a_file_are_refused(client, tmp_path):
    bomb = giant(tmp_path / "bomb.png").read_bytes()[:290_000]
    answer = client.post("/predict", content=bomb)
    assert (answer.status_code, answer.json()["id"]) == (413, "data.image-too-large")
    assert "--max-pixels" in answer.json()["fix"]
    answer = client.post(PREDICT, json=FILES | {"instances": [b64(bomb[:9000])]})
    assert (answer.status_code, answer.json()["id"]) == (413, "data.image-too-large")
    form = {"headers": {"content-type": "multipart/form-data; boundary=x"}}
    assert client.post("/predict", content=b"--x--\r\n", **form).json()["id"] == "serve.form"
    assert client.post("/predict", content=b"\0garbage", **form).status_code == 400
    asking = {"headers": {"expect": "100-continue"}}  # such a client is told before it sends
    assert client.post("/predict", content=bytes(300_001), **asking).status_code == 413


def test_too_many_are_sent_away_and_too_slow_ones_told_while_the_page_still_comes(classifier):
    """One thread computes; the loop that takes requests never waits for it."""
    compute, limits = Compute(classifier), Limits(seconds=1.5, queue=4)
    with app(classifier, limits, compute) as client, ThreadPoolExecutor(8) as pool:
        compute.go.clear()
        asked = [pool.submit(client.post, "/predict", content=photo(i)) for i in range(4)]
        deadline = time.monotonic() + 5
        while client.get("/health").json()["images"] < 4:  # it answers meanwhile
            assert time.monotonic() < deadline
        busy = client.post("/predict", content=photo())
        assert busy.status_code == 503 and busy.headers["retry-after"] == "1"
        assert client.get("/").status_code == 200
        late = [each.result() for each in asked]
        assert {r.status_code for r in late} == {504}
        assert {r.json()["id"] for r in late} == {"serve.timeout"}
        compute.go.set()
        assert client.post("/predict", content=photo()).status_code == 200


def test_waiting_images_are_computed_together_and_each_gets_its_own(classifier):
    compute = Compute(classifier, batch=3)
    worker = Worker(classifier, compute)
    images = np.random.default_rng(0).uniform(0, 255, (7, SIZE, SIZE, 3)).astype("float32")
    wanted = classifier.probabilities(images)
    compute.sizes.clear()
    compute.go.clear()
    first = worker.probabilities(images[:1])
    time.sleep(0.2)  # it is being computed
    rest = [worker.probabilities(images[i : i + n]) for i, n in ((1, 1), (2, 2), (4, 1), (5, 2))]
    rest[2].cancel()
    compute.go.set()
    np.testing.assert_allclose(first.result(20), wanted[:1], atol=1e-5)
    np.testing.assert_allclose(rest[1].result(20), wanted[2:4], atol=1e-5)
    np.testing.assert_allclose(rest[3].result(20), wanted[5:7], atol=1e-5)
    assert compute.sizes == [1, 3, 2]
    worker.close()


def test_a_fault_while_computing_is_a_500_and_the_next_one_is_answered(classifier):
    lines, compute = [], Compute(classifier)
    with app(classifier, compute=compute, say=lines.append) as client:
        compute.failing = True
        answer = client.post("/predict", content=photo())
        assert (answer.status_code, answer.json()["id"]) == (500, "serve.bug")
        assert any("ZeroDivisionError" in line for line in lines)
        compute.failing = False
        assert client.post("/predict", content=photo()).status_code == 200


def test_a_client_that_goes_away_is_no_fault_of_the_service(classifier):
    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    lines, of = [], {"type": "http", "method": "POST", "path": "/predict", "query_string": b""}
    with app(classifier, say=lines.append) as client:
        asyncio.run(client.app({**of, "headers": [(b"content-length", b"9")]}, receive, send))
        (line,) = lines
        assert line.startswith("POST /predict 499 ")
        assert client.get("/health").json()["images"] == 0


def test_what_computes_by_itself_agrees_with_the_classifier(classifier):
    worker = Worker(classifier)
    images = np.random.default_rng(0).uniform(0, 255, (3, SIZE, SIZE, 3)).astype("float32")
    found = worker.probabilities(images).result(20)
    np.testing.assert_allclose(found, classifier.probabilities(images), atol=1e-4)
    worker.close()
    assert not worker.alive


def test_the_page_runs_nothing_but_its_own_script(classifier):
    worker = Worker(classifier, Compute(classifier))
    with TestClient(create_app(classifier, "<i>net</i>", worker=worker)) as client:
        page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "<i>net" not in page.text and "&lt;i&gt;net" in page.text
    assert "innerHTML" not in page.text and " onclick" not in page.text and "http" not in page.text


def test_a_network_without_maps_is_served_without_explanations():
    with app(build(name="mlp")) as client:
        assert client.post("/predict", content=photo()).status_code == 200
        answer = client.post("/predict?explain=gradcam", content=photo())
        assert (answer.status_code, answer.json()["id"]) == (400, "explain.no-map")


def test_a_missing_package_is_named_with_the_command(monkeypatch, call, tmp_path):
    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda n: None if n == "uvicorn" else found(n))
    code, _, err = call("serve", tmp_path)
    assert code == 2 and 'pip install "dlzoo[serve]"' in err and "uvicorn" in err


def test_what_cannot_be_served_says_why(classifier, call, tmp_path):
    classifier.save(tmp_path / "model")
    assert call("serve", tmp_path / "nothing")[0] == 2
    with pytest.raises(UsageError, match="no name for a model"):
        serve.serve(tmp_path / "model", name="a/b")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = call("serve", tmp_path / "model", "--port", port)
    assert code == 5 and "serve.port" in err
    assert call("serve", tmp_path / "model", "--timeout", "soon")[0] == 2


@pytest.mark.full
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_lets_begun_requests_end(classifier, tmp_path, number, code):
    classifier.save(tmp_path / "model")
    command = [sys.executable, "-m", "dlzoo", "serve", str(tmp_path / "model"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            address = service.stdout.readline().strip()
            asyncio.run(_leave(int(address.rsplit(":")[-1].strip("/")), service, number))
            assert service.wait(30) == code
        finally:
            service.kill()


async def _leave(port, service, number):
    """Send half of a request, then the signal, then the other half."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = photo()
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    writer.write(head + body[:100])
    await writer.drain()
    await asyncio.sleep(0.3)
    os.kill(service.pid, number)
    await asyncio.sleep(0.3)
    writer.write(body[100:])
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200") and b'"top"' in answer
    writer.close()


@pytest.mark.full
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_a_photo_is_dropped_on_the_page_in_a_browser(classifier, tmp_path, width, height):
    """Dropped, then another one chosen; names of classes are text, nothing else is loaded."""
    import browser

    if not browser.found():
        pytest.skip("needs Chromium and the package websockets")
    classifier.save(tmp_path / "model")
    (tmp_path / "a.png").write_bytes(photo())
    (tmp_path / "text.jpg").write_text("I am a rose")
    command = [sys.executable, "-m", "dlzoo", "serve", str(tmp_path / "model"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            address = service.stdout.readline().strip()
            with browser.Browser(width, height) as page:
                page.open(address)
                page.drop("#drop", tmp_path / "a.png")
                page.wait(lambda: page.value("document.querySelector('#heat').naturalWidth"))
                bars = "[...document.querySelectorAll('#bars button')].map(b => b.innerText)"
                rows = [text.split("\n") for text in page.value(bars)]
                order = expected(classifier, photo())[0].argsort()[::-1]
                assert [row[0] for row in rows] == [CLASSES[i] for i in order]
                assert page.value("document.querySelectorAll('#bars b').length") == 0
                assert page.value("document.querySelector('#why').innerText") == rows[0][0]
                assert page.value("document.documentElement.scrollWidth <= innerWidth")
                page.value("document.querySelectorAll('#bars button')[1].click()")
                page.wait(
                    lambda: page.value("document.querySelector('#why').innerText") == rows[1][0]
                )
                assert page.complaints == []
                page.choose("#file", tmp_path / "text.jpg")
                told = "document.querySelector('#state').innerText"
                page.wait(lambda: "not an image" in page.value(told))
                outside = [
                    r for r in page.requests if not r.startswith((address, "data:", "blob:"))
                ]
                assert outside == []
        finally:
            service.kill()
