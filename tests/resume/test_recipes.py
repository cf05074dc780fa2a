"""Varied recipes, killed and gone on with in several ways, come to the same to the last bit.

A few seeds of `recipes`; `benchmarks/kill_storm.py --recipes N --seed S` takes more.
"""

from __future__ import annotations

import pytest
import recipes

SEEDS = (17, 18)


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
def test_fault_29_t2c_a_varied_recipe(tmp_path, seed):
    found = recipes.compare(tmp_path, seed)
    assert found["killed"] and not found["refused"], found
