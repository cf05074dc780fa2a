"""TensorFlow Serving's REST API, as its model server speaks it for our exported SavedModel.

https://www.tensorflow.org/tfx/serving/api_rest: rows (`instances`) or columns (`inputs`), bytes
as `{"b64": ...}`, and an output that has no name where there is only one.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ..errors import nearest
from .limits import Refused

DEFAULT, UINT8, BYTES, NAMES = "serving_default", "serving_uint8", "bytes", "class_names"
# signature -> its input and the type of that, as `export.serving` writes them
INPUTS: dict[str, tuple[str, str] | None] = {
    DEFAULT: ("images", "DT_FLOAT"),
    UINT8: ("images", "DT_UINT8"),
    BYTES: ("image_bytes", "DT_STRING"),
    NAMES: None,
}


@dataclass(frozen=True)
class Call:
    """What a request asks.

    Attributes:
        signature: one of `INPUTS`.
        images: contents of image files, or RGB arrays (height, width, 3) float32 or uint8.
        rows: whether it came as `instances`, and is answered so.
    """

    signature: str
    images: Sequence[bytes] | np.ndarray
    rows: bool


def parse(body: bytes | bytearray) -> Call:
    """Return what the JSON of a request asks.

    Raises:
        Refused: 400, with what is wrong.
    """
    try:
        asked = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        _wrong("json", f"not JSON: {error or 'nested too deep'}")
    if not isinstance(asked, dict):
        _wrong("json", "a request is a JSON object")
    if ("instances" in asked) == ("inputs" in asked):
        _wrong("form", "a request has either `instances` or `inputs`")
    signature = asked.get("signature_name") or DEFAULT
    if not isinstance(signature, str) or signature not in INPUTS:
        known = ", ".join(INPUTS)
        _wrong("signature", f"no signature {signature!r}{nearest(signature, INPUTS)}", known)
    rows = "instances" in asked
    values = asked["instances" if rows else "inputs"]
    if signature == NAMES:
        if rows or values not in ({}, []):
            _wrong("form", f"{NAMES} takes no input", '"inputs": {}')
        return Call(signature, (), rows)
    name, dtype = INPUTS[signature] or ("", "")
    if rows:
        if not isinstance(values, list):
            _wrong("form", "`instances` is a list")
        values = [_named(value, name) for value in values]
    else:
        values = _named(values, name)
    if not isinstance(values, list) or not values:
        _wrong("form", f"`{name}` is a list of at least one image")
    if dtype == "DT_STRING":
        return Call(signature, [_content(value) for value in values], rows)
    return Call(signature, _pixels(values, dtype), rows)


def _named(value: Any, name: str) -> Any:
    """Return the input's value, which may stand alone or under its name."""
    if isinstance(value, dict) and set(value) != {"b64"}:
        if set(value) != {name}:
            given = ", ".join(map(repr, value)) or "nothing"
            _wrong("form", f"the input is called {name!r}; got {given}"[:300])
        return value[name]
    return value


def _content(value: Any) -> bytes:
    if isinstance(value, str):  # as text, which no image is; the decoder says so
        return value.encode("utf-8", "replace")
    if not isinstance(value, dict) or set(value) != {"b64"} or not isinstance(value["b64"], str):
        _wrong("dtype", 'the content of an image file is {"b64": "..."}')
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        _wrong("b64", f"not base64: {error}")


def _pixels(values: list[Any], dtype: str) -> np.ndarray:
    """Return RGB images (n, height, width, 3) of nested lists."""
    numbers = f'"signature_name": "{BYTES}" takes image files'
    if any(isinstance(value, dict | str) for value in values):
        _wrong("dtype", "images are nested lists of numbers", numbers)
    # Looked through first: over millions of lists that are no array NumPy takes seconds, in which
    # no other thread gets on.
    if not (_even(values) and _even(row for image in values for row in image)):
        _wrong("shape", "images are of shape (n, height, width, 3), all of one size")
    try:
        images = np.array(values)
    except (ValueError, OverflowError):
        _wrong("shape", "images are of shape (n, height, width, 3), all of one size")
    if images.dtype.kind not in "iuf":
        _wrong("dtype", "images are nested lists of numbers", numbers)
    if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        shape = "x".join(map(str, images.shape))
        _wrong("shape", f"images are of shape (n, height, width, 3); got {shape}")
    if dtype == "DT_UINT8":
        if images.dtype.kind == "f" or images.min() < 0 or images.max() > 255:
            _wrong("dtype", "uint8 images hold whole numbers from 0 to 255")
        return images.astype("uint8")
    with np.errstate(over="ignore"):
        images = images.astype("float32")
    if not np.isfinite(images).all():
        _wrong("dtype", "images hold finite numbers")
    low, high = images.min(), images.max()
    if low < 0 or high > 255 or (high <= 1 and (images % 1).any()):
        _wrong("range", f"pixels lie in {low:g}..{high:g}; raw RGB in 0..255 is needed")
    return images


def _even(values: Iterable[Any]) -> bool:
    """Say whether values are lists of one length, not none."""
    lengths = {len(value) if isinstance(value, list) else 0 for value in values}
    return len(lengths) == 1 and 0 not in lengths


def answer(call: Call, found: np.ndarray, classes: Sequence[str], task: str) -> dict[str, Any]:
    """Return the JSON for probabilities `(n, classes)`.

    Like the SavedModel's signatures: beside the probabilities the likeliest class as `index` and
    `label`, but for a multilabel task.
    """
    if call.signature == NAMES:
        return {"outputs": list(classes)}
    outputs: dict[str, list[Any]] = {"probabilities": shortest(found)}
    if task != "multilabel":
        outputs["index"] = [int(i) for i in found.argmax(axis=1)]
        outputs["label"] = [classes[i] for i in outputs["index"]]
    if len(outputs) == 1:
        return {"predictions" if call.rows else "outputs": outputs["probabilities"]}
    if not call.rows:
        return {"outputs": outputs}
    rows = zip(*outputs.values(), strict=True)
    return {"predictions": [dict(zip(outputs, row, strict=True)) for row in rows]}


def shortest(found: np.ndarray) -> list[Any]:
    """Return float32 values as the shortest numbers that are read back as the same float32."""
    if found.ndim > 1:
        return [shortest(row) for row in found]
    return [float(str(value)) for value in found.astype("float32")]


def status() -> dict[str, Any]:
    """Return what `GET /v1/models/NAME` answers: there is one version, and it is there."""
    row = {
        "version": "1",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    return {"model_version_status": [row]}


def metadata(name: str, classes: int, task: str) -> dict[str, Any]:
    """Return what `GET /v1/models/NAME/metadata` answers: the signatures."""
    signatures = {}
    for signature, takes in INPUTS.items():
        inputs, outputs = {}, {"class_names": _tensor("DT_STRING", classes)}
        if takes:
            images = (-1,) if takes[1] == "DT_STRING" else (-1, -1, -1, 3)
            inputs = {takes[0]: _tensor(takes[1], *images)}
            outputs = {"probabilities": _tensor("DT_FLOAT", -1, classes)}
            if task != "multilabel":
                outputs |= {"index": _tensor("DT_INT64", -1), "label": _tensor("DT_STRING", -1)}
        signatures[signature] = {
            "inputs": inputs,
            "outputs": outputs,
            "method_name": "tensorflow/serving/predict",
        }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": "1"},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def _tensor(dtype: str, *shape: int) -> Mapping[str, Any]:
    dim = [{"size": str(size), "name": ""} for size in shape]
    return {"dtype": dtype, "tensor_shape": {"dim": dim, "unknown_rank": False}, "name": ""}


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _wrong(what: str, message: str, fix: str | None = None) -> NoReturn:
    raise Refused(400, f"serve.{what}", message, fix=fix)
