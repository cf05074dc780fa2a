"""Tells where in a Keras HDF5 file the arrays lie. Run as a script: `hdf5.py FILE` -> JSON.

HDF5's C library can hang, crash or take any amount of memory on a damaged file. So it works
here, in a process of its own with limits, and says only `[layer, [[offset, dtype, shape], ..]]`;
the numbers themselves are read by checkpoints.py, straight from the file.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Place = tuple[int, str, tuple[int, ...]]

MAX_NAMES = 4096  # in one attribute, which HDF5 keeps below 64 KB
MAX_ANSWER = 1 << 24  # letters; names can be listed, or nested, to far more than the file
EXTRA_MEMORY = 1 << 29  # bytes, beyond what Python takes
WEIGHT = 500  # that one array counts as, so that they are 33,000 at most: a NASNet has 1,500
MAX_WORK = 15  # seconds of the processor


class Refused(Exception):
    """`message` for people, and the last part of the error's id."""

    def __init__(self, message: str, id: str = "unsafe-file"):
        super().__init__(message, id)


def layers(file: h5py.File) -> list[tuple[str, list[Place]]]:
    """Return the layers in the file's order, or sorted by name where it has none."""
    if file.userblock_size:
        raise Refused("it does not begin as a file of Keras does", "format")
    root = node(file, "model_weights") if "model_weights" in file else file
    if {"layer_names", "layer_names0"} & set(root.attrs):
        found: list[tuple[str, list[Place]]] = []
        letters = 0
        for layer in names(root, "layer_names"):
            weights = names(node(root, layer), "weight_names")
            letters += len(layer)
            if not weights:
                found.append((layer, []))
            owners = [name.rpartition("/")[0].rpartition("/")[2] or layer for name in weights]
            if len(set(owners)) == 1:
                owners = [layer] * len(weights)
            letters += sum(map(len, weights)) + WEIGHT * len(weights)
            if letters > MAX_ANSWER:
                raise Refused("it lists more weights than it can hold")
            # A model inside the model: its weights are told apart by the names of its layers. All
            # that are trained come before all that are not, such as moving statistics.
            inner: dict[str, list[str]] = {}
            for owner, name in zip(owners, weights, strict=True):
                inner.setdefault(owner, []).append(name)
            for owner, parts in inner.items():
                found.append((owner, [place(node(root, f"{layer}/{name}")) for name in parts]))
        return found
    if "layers" not in root:
        raise Refused("there are no Keras weights in it", "format")
    found, letters = [], 0
    for layer, places in walk(node(root, "layers"), "", set()):
        letters += len(layer)
        if letters > MAX_ANSWER:
            raise Refused("its names are together longer than the file")
        found.append((layer, places))
    return found


def walk(group: Any, path: str, seen: set[int]) -> Iterator[tuple[str, list[Place]]]:
    """Yield the `vars` of the layers below `group`, each under the layer's own name."""
    for name in sorted(group):
        child = node(group, name)
        if not isinstance(child, h5py.Group) or name == "vars":
            continue
        address = h5py.h5o.get_info(child.id).addr
        if address in seen:
            raise Refused("its groups go round in a circle")
        seen.add(address)
        places = []
        if "vars" in child:
            variables = node(child, "vars")
            name = str(variables.attrs.get("name", name))
            places = [place(node(variables, key)) for key in sorted(variables, key=int)]
        yield path + name, places
        yield from walk(child, f"{path}{name}/", seen)


def node(parent: Any, path: str) -> Any:
    """Return what `path` leads to, if every step lies in this file."""
    for part in path.split("/"):
        if part in ("", ".", ".."):
            raise Refused(f"a weight has the path {path!r}")
        if not isinstance(parent.get(part, getlink=True), h5py.HardLink):
            raise Refused(f"{path!r} is a link to elsewhere")
        parent = parent[part]
    return parent


def names(group: Any, key: str) -> list[str]:
    """Return an attribute of names, which Keras cuts into key0, key1, ... when long."""
    keys = [key]
    if key not in group.attrs:
        keys = [f"{key}{i}" for i in range(len(group.attrs)) if f"{key}{i}" in group.attrs]
    found = []
    for part in keys:
        if math.prod(group.attrs.get_id(part).shape) > MAX_NAMES:
            raise Refused(f"its list {part} is too long")
        values = np.ravel(group.attrs[part])
        found += [v.decode() if isinstance(v, bytes) else str(v) for v in values]
    return found


def place(dataset: Any) -> Place:
    """Return byte offset, type and shape of an array that lies in the file as it is."""
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiub":
        raise Refused(f"{dataset.name} is no array of numbers")
    if dataset.is_virtual or dataset.external:
        raise Refused(f"{dataset.name} takes its values from another file")
    stored = dataset.id.get_storage_size()
    if dataset.id.get_create_plist().get_nfilters():  # can unpack to any size
        raise Refused(f"{dataset.name} is compressed; save it again without", "format")
    if dataset.size * dataset.dtype.itemsize != stored:
        raise Refused(f"{dataset.name} of shape {dataset.shape} is larger than what is stored")
    if dataset.chunks:
        raise Refused(f"{dataset.name} is cut into chunks; save it again without", "format")
    return dataset.id.get_offset() or 0, dataset.dtype.str, dataset.shape


def main(path: str) -> None:
    with suppress(ImportError, OSError, ValueError):  # on Linux; elsewhere time is limited only
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + EXTRA_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_WORK, MAX_WORK))
    try:
        with h5py.File(path, "r") as file:
            print(json.dumps({"layers": layers(file)}))
    except Refused as refusal:
        print(json.dumps({"refused": refusal.args}))


if __name__ == "__main__":
    main(sys.argv[1])
