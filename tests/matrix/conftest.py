"""The models that every row of the matrix runs over, each built once."""

from __future__ import annotations

import gc
import socket

import keras
import numpy as np
import pytest
from dlzoo import zoo
from equality import TOLERANCE
from golden import random_weights as rw
from rows import VARIED, rows

VARIANTS = zoo.variants()
# the blocks of the others are in these, and their golden files are looked at in any case
DEFAULT = VARIED | {"alexnet"}
KEPT = 4e8  # parameters of the models that are kept; those of one large variant fill the memory
_built: dict[tuple, keras.Model] = {}


@pytest.fixture(scope="module", params=rows(zoo.list_models(), DEFAULT))
def name(request):
    """Name every registered variant; by default one of each family."""
    yield request.param
    _built.clear()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Let every test of every model fail that opens a connection."""

    def refuse(self, address):
        raise AssertionError(f"a connection to {address} is opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def _build(name, options):
    """Build a model, or give the one that is still there."""
    if (model := _built.pop((name, options), None)) is None:
        size = VARIANTS[name].params
        while _built and size + sum(m.count_params() for m in _built.values()) > KEPT:
            del _built[next(iter(_built))]  # the one that was asked for longest ago
            gc.collect()
        keras.utils.set_random_seed(0)  # of dropout: what it leaves of SqueezeNet's logits may be 0
        model = zoo.create_model(name, **dict(options))
        if options:
            rw.fill(model)
    _built[name, options] = model
    return model


@pytest.fixture
def build(name):
    """Give `build(**options)`: the variant with 7 classes on small images, built once for all.

    Its weights are such that logits are of order 1. Of VGG's dense layers of 100 million
    parameters only some rows make use: the others ask for `light=True`, which puts global
    average pooling in their place. `whole=True` takes all defaults of the variant.
    """

    def build(light=False, whole=False, **options):
        variant = VARIANTS[name]
        if not whole:
            # without drop path: a dropped branch has no gradient
            options = {"num_classes": 7, "input_shape": size_of(name), "drop_path": 0} | options
        if light and variant.params > 1e8:
            options["pool"] = "avg"
        return _build(name, tuple(options.items()))

    return build


def size_of(name: str) -> int:
    """Return a small image size in pixels."""
    return max(VARIANTS[name].min_size, 32)


@pytest.fixture
def images():
    """Give `images(model, n=2) -> (n, height, width, channels)` in 0..255."""

    def images(model, n=2):
        shape = (n, *model.input_shape[1:])
        return np.rint(rw.uniform("images", shape, 0, 255))

    return images


@pytest.fixture
def close(record_property):
    """Give `close(name, reference, off)`: fail if too far off; the run prints it at its end."""

    def close(name, reference, off):
        record_property("off", (name, reference, off))
        assert off <= TOLERANCE, f"{name} is {off:.1e} from {reference}"

    return close
