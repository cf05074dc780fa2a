"""Readers of weight files that run nothing from the file and stay within its size in memory.

A file that wants more than to be read is refused (`model.unsafe-file`), one that is damaged or
cut short too (`model.corrupt-file`).
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ..errors import ModelError
from .statedict import Refused, decode, open_zip, read_legacy, read_zip

ZIP_MAGIC, HDF5_MAGIC = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
SAFETENSORS = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16", "BOOL": "?"},
    **{f"I{8 * n}": f"<i{n}" for n in (1, 2, 4, 8)},
    **{f"U{8 * n}": f"<u{n}" for n in (1, 2, 4, 8)},
}
# Before every name: of DataParallel and AveragedModel, torch.compile, and Lightning.
_WRAPPERS = re.compile(r"(?:(?:module|_orig_mod|model)\.)*")
PATIENCE = 120.0  # seconds for HDF5 to find its way through a file

Layers = list[tuple[str, list[np.ndarray]]]


def read_torch(path: Path | str) -> dict[str, np.ndarray]:
    """Return the tensors of a torch `.pth` (zip or legacy format) or `.safetensors` file.

    A state dict wrapped as `{"state_dict": ...}` or `{"model": ...}` is taken out, one of averaged
    weights first, and what wrappers of a network put before every name (`module.`) is dropped.
    bfloat16 becomes float32; other types are kept. The arrays are read-only and may share memory.

    Raises:
        ModelError: `model.unsafe-file` when the file wants anything but tensors, or tensors
            that its bytes do not hold; `model.corrupt-file`; `model.format` when it is of
            another kind; `model.file-missing`.
    """
    path = Path(path)
    with _guarded(path):
        magic = _magic(path)
        if magic.startswith(ZIP_MAGIC):
            tensors = read_zip(path)
        elif magic == HDF5_MAGIC:
            raise Refused("it is an HDF5 file of Keras, not one of torch", "format")
        elif path.suffix == ".safetensors":
            tensors = _read_safetensors(path)
        else:
            tensors = read_legacy(path)
        tensors.pop("n_averaged", None)  # of torch.optim.swa_utils.AveragedModel
        shared = os.path.commonprefix([*tensors])  # noqa: RUF071, of letters is meant
        wrappers = len(_WRAPPERS.findall(shared)[0])
        return {name[wrappers:]: tensor for name, tensor in tensors.items()}


def read_keras(path: Path | str, *, empty: bool = False) -> Layers:
    """Return `(layer name, arrays)` of each layer with weights in a Keras file.

    With `empty`, also of those without, as far as the file names them.

    Reads the HDF5 files of keras.applications and `model.save("x.h5")` in the order of their
    layers, and Keras 3's `.weights.h5` and `.keras`, which keep no order: there layers are
    sorted by name, nested ones as `outer/inner`. Of a `.keras` archive nothing but the
    weights is opened, so a Lambda or a custom class in its configuration has no effect.

    Raises:
        ModelError: `model.unsafe-file` for links, external or virtual storage, or shapes that
            the file does not hold; `model.format` for compressed or chunked weights, or none at
            all; `model.corrupt-file`, `model.file-missing`.
    """
    path = Path(path)
    with _guarded(path):
        magic = _magic(path)
        if magic.startswith(ZIP_MAGIC):
            with open_zip(path) as archive, TemporaryDirectory() as folder:
                inner = Path(folder, "model.weights.h5")
                inner.write_bytes(archive.read(inner.name))
                return _read_hdf5(inner, empty)
        if magic != HDF5_MAGIC:
            raise Refused("it is no HDF5 file", "format")
        return _read_hdf5(path, empty)


def torch_arrays(
    kind: str,
    prefix: str,
    tensors: Mapping[str, np.ndarray],
    *,
    flattened: tuple[int, int, int] | None = None,
) -> list[np.ndarray]:
    """Return the arrays of one Keras layer, in Keras' order and layout, from torch's tensors.

    Args:
        kind: class of the Keras layer: `Conv2D`, `DepthwiseConv2D`, `Dense`,
            `BatchNormalization` or `LayerNormalization`.
        prefix: of the tensors, without the last dot: `features.0`. Or the whole name of one.
        tensors: the state dict.
        flattened: `(height, width, channels)` of the map that a dense layer's input was
            flattened from: torch flattens channels first, Keras channels last.

    Raises:
        KeyError: with the name of a tensor that is missing.
        ValueError: with the name of a tensor of another rank or size.
    """

    def get(part: str, rank: int) -> np.ndarray:
        tensor = tensors[f"{prefix}.{part}"]
        if tensor.ndim != rank:
            raise ValueError(f"{prefix}.{part}: shape {tensor.shape}, expected {rank} dimensions")
        return tensor

    if prefix in tensors:
        return [tensors[prefix]]
    if kind == "BatchNormalization":
        return [get(part, 1) for part in ("weight", "bias", "running_mean", "running_var")]
    if kind == "LayerNormalization":
        return [get(part, 1) for part in ("weight", "bias")]
    if kind == "Conv2D":  # (out, in, height, width) -> (height, width, in, out)
        kernel = get("weight", 4).transpose(2, 3, 1, 0)
    elif kind == "DepthwiseConv2D":  # (channels, 1, height, width) -> (height, width, channels, 1)
        kernel = get("weight", 4).transpose(2, 3, 0, 1)
    elif kind == "Dense":
        kernel = tensors[f"{prefix}.weight"]
        if kernel.ndim == 4:  # some write it as a convolution over the whole map
            kernel = kernel.transpose(0, 2, 3, 1)
        elif flattened:
            height, width, channels = flattened
            if get("weight", 2).shape[1] != height * width * channels:
                raise ValueError(f"{prefix}.weight: {kernel.shape[1]} inputs, not {flattened}")
            kernel = kernel.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
        else:
            kernel = get("weight", 2)
        kernel = kernel.reshape(len(kernel), -1).T
    else:
        raise ValueError(f"no torch layout is known for a {kind} layer")
    arrays = [np.ascontiguousarray(kernel)]
    if f"{prefix}.bias" in tensors:
        arrays.append(get("bias", 1))
    return arrays


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while `path` is read into a ModelError."""
    try:
        yield
    except Refused as refusal:
        raise ModelError(
            f"model.{refusal.id}",
            f"{path.name} is not loaded: {refusal}",
            where=path,
            fix="give a file of weights only, as torch.save(model.state_dict(), ...), safetensors "
            "or Keras' save_weights make it",
        ) from None
    except (FileNotFoundError, IsADirectoryError, PermissionError) as problem:
        raise ModelError(
            "model.file-missing", f"no weights to read: {problem.strerror}", where=path
        ) from None
    except Exception as problem:  # any error on bytes from outside means: the bytes are bad
        raise ModelError(
            "model.corrupt-file",
            f"{path.name} is damaged or no file of weights "
            f"({type(problem).__name__}: {str(problem)[:200]})",
            where=path,
            fix="get the file again: it may be an aborted download",
        ) from problem


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import deserialize

    tensors = {}
    for name, entry in deserialize(path.read_bytes()):
        if entry["dtype"] not in SAFETENSORS:
            raise Refused(f"{name} has the type {entry['dtype']}", "format")
        tensors[name] = decode(entry["data"], SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def check_hdf5(path: Path | str) -> None:
    """Have a Keras HDF5 file looked through by a process of its own.

    Raises:
        ModelError: as `read_keras` does.
    """
    path = Path(path)
    with _guarded(path):
        _places(path)


def _places(path: Path) -> list:
    """Have hdf5.py find the arrays in a process of its own."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("hdf5.py")), str(path)]
    # File locks fail on some read-only and network disks, and nothing is written here.
    environment = {**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE)
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ValueError(why or f"HDF5 ended with {done.returncode}")
    answer = json.loads(done.stdout)
    if "refused" in answer:
        raise Refused(*answer["refused"])
    return answer["layers"]


def _read_hdf5(path: Path, empty: bool) -> Layers:
    layers, left = [], path.stat().st_size
    found = _places(path)
    with path.open("rb") as file:
        for name, places in found:
            arrays = []
            for offset, dtype, shape in places:
                size = math.prod(shape) * np.dtype(dtype).itemsize
                if (left := left - size) < 0:
                    raise Refused("its arrays are together larger than the file")
                file.seek(offset)
                arrays.append(np.frombuffer(file.read(size), dtype).reshape(shape))
            if arrays or empty:
                layers.append((name, arrays))
    if not any(arrays for _, arrays in layers):
        raise Refused("none of its layers has weights", "format")
    return layers
