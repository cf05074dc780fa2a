"""Every architecture and checkpoint of keras.applications and torchvision is here, as they have it.

`tools/keras_rows.py` and `tools/make_golden.py` wrote down what the two libraries say.
"""

from __future__ import annotations

import json

import pytest
from dlzoo import zoo
from equality import GOLDEN

VARIANTS = zoo.variants().values()
BY_URI = {row.uri: (variant, row) for variant in VARIANTS for row in variant.weights}
KERAS = json.loads((GOLDEN / "keras_applications.json").read_text())
TORCHVISION = json.loads((GOLDEN / "torchvision.json").read_text())
# They normalise once more inside, and their parameters are counted with the auxiliary heads.
INSIDE = {"googlenet", "inception_v3"}


def test_there_are_as_many_as_promised():
    assert len(zoo.list_models()) >= 130
    assert len(TORCHVISION) == 68 and sum(map(len, TORCHVISION.values())) == 98
    assert len({call.partition("(")[0] for call in KERAS}) >= 38


def test_every_architecture_of_both_libraries_is_here():
    assert {v.torchvision for v in VARIANTS} >= {*TORCHVISION}
    assert {v.keras for v in VARIANTS} >= {*KERAS}


@pytest.mark.parametrize("name", TORCHVISION)
def test_checkpoints_are_those_of_torchvision(name):
    for theirs in TORCHVISION[name]:
        variant, row = BY_URI[theirs["url"]]
        assert variant.torchvision == name and row.reader == "torch"
        assert row.sha256_prefix and row.sha256_prefix in theirs["url"]
        assert (row.top1, row.top5) == (theirs["top1"], theirs["top5"])
        rule = row.preprocess
        assert (rule.size, rule.interpolation) == (theirs["size"], theirs["interpolation"])
        assert round(rule.size / rule.crop) == theirs["resize"]
        if name in INSIDE:
            assert set(rule.mean + rule.std) == {127.5}
        else:
            assert [round(m / 255, 5) for m in rule.mean] == [round(m, 5) for m in theirs["mean"]]
            assert [round(s / 255, 5) for s in rule.std] == [round(s, 5) for s in theirs["std"]]
        assert theirs["params"] >= variant.params
        assert theirs["params"] == variant.params or name in INSIDE
        if theirs["size"] == variant.size:
            assert abs(theirs["gmacs"] - variant.gmacs) < 0.002 * max(1, variant.gmacs)


@pytest.mark.parametrize("call", KERAS)
def test_files_are_those_that_keras_downloads(call):
    for size, (uri, digest) in KERAS[call].items():
        variant, row = BY_URI[uri]
        assert variant.keras == call and row.reader == "keras"
        if digest:
            assert digest in (row.md5, row.sha256)
        if size != "default":
            assert row.preprocess.size == int(size)
