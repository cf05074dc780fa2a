"""Models build, answer and train on every backend of Keras that is installed (`jax`, `torch`)."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dlzoo import zoo
from rows import SMALLEST, VARIED

BACKENDS = ("jax", "torch")
FEW = "lenet5 resnet18 shufflenet_v2_x0_5"
_REST = sorted((SMALLEST | VARIED) - set(FEW.split()))
REST = [
    " ".join(_REST[i : i + 6]) for i in range(0, len(_REST), 6)
]  # a process takes long to start


def run(backend: str, *argv: str) -> dict:
    """Return what tests/matrix/backends.py prints on a backend."""
    program = Path(__file__).with_name("backends.py")
    done = subprocess.run(
        [sys.executable, program, *argv],
        # jax on CPUs, of which the program makes two: a GPU would be one device
        env=os.environ
        | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["backend"] == backend
    return found


@functools.cache
def on_tensorflow(names: str) -> dict:
    return run("tensorflow", "answers", *names.split())["made"]


def installed(backend: str) -> None:
    if not importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is not installed")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "names", [FEW, *(pytest.param(names, marks=pytest.mark.full) for names in REST)]
)
def test_models_answer_and_train_as_on_tensorflow(backend, names):
    installed(backend)
    found, expected = run(backend, "answers", *names.split()), on_tensorflow(names)
    assert not found["tensorflow"], "the zoo needs Keras alone"
    for name in names.split():
        ours, theirs = found["made"][name], expected[name]
        far = np.abs(np.subtract(ours["logits"], theirs["logits"])).max()
        assert far < 1e-4 * np.std(theirs["logits"]), f"{name} on {backend}: logits {far:.1e} away"
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4), name
        assert ours["learnt"] > 1e-4
        assert ours["gradients"].keys() == theirs["gradients"].keys()
        most = 1e-3 if names == FEW else 0.2  # mostly 1e-6, but deep ones meet kinks of ReLU
        for path, its in theirs["gradients"].items():
            far = np.linalg.norm(np.subtract(ours["gradients"][path], its))
            assert far <= most * np.linalg.norm(its), f"{name} on {backend}: gradient of {path}"


def test_two_devices_of_jax_train_as_one():
    """For those who train with JAX: keras.distribution.DataParallel takes a model of the zoo."""
    installed("jax")
    one, two = run("jax", "parallel")["made"].values()
    assert one == pytest.approx(two, rel=1e-4) and one[1] != one[0]


def test_every_variant_can_be_named_without_tensorflow():
    code = (
        "import sys; from dlzoo import zoo; zoo.list_models(); print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False"] and len(zoo.list_models()) > 100, done.stderr
