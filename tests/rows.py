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


def rows(names: Iterable[str], default: Collection[str] = SMALLEST) -> list:
    """Return the names as pytest parameters, those not in `default` marked `full`."""
    return [pytest.param(n, marks=[] if n in default else [pytest.mark.full]) for n in names]
