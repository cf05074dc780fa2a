"""Which models a test runs over: few by default, every one in `make test-full`."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest
from dlzoo import zoo

_ALL = zoo.variants().values()
SMALLEST = {
    min((v for v in _ALL if v.family.name == family), key=lambda v: v.params).name
    for family in {v.family.name for v in _ALL}
}


# For rows that take seconds a model: those that together have every kind of layer and of head.
VARIED = {"mlp", "lenet5", "resnet18", "mobilenet_v3_small_075"}
VARIED |= {"shufflenet_v2_x0_5", "squeezenet1_1", "convnext_tiny", "efficientnet_lite0"}


def rows(names: Iterable, default: Collection = SMALLEST) -> list:
    """Return names or other values as pytest parameters, those not in `default` marked `full`."""
    return [pytest.param(n, marks=[] if n in default else [pytest.mark.full]) for n in names]
