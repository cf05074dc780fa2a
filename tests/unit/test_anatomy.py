"""What `dlzoo info` says of a model's layers is what the papers and the arithmetic say."""

import json
import re

import pytest
from dlzoo import zoo
from dlzoo.cli import main
from dlzoo.errors import UsageError
from dlzoo.report import architecture
from dlzoo.zoo import anatomy, graph
from rows import rows

# Published by Araujo, Norris and Sim, "Computing receptive fields", doi:10.23915/distill.00021.
FIELDS = {
    "alexnet": 195,
    "vgg16": 212,
    "resnet50": 483,
    "resnet101": 1027,
    "resnet152": 1507,
    "mobilenet": 315,
    "mobilenet_v2": 491,
    "inception_v3": 1311,
    "inception_resnet_v2": 3039,
}
DEEP = {"resnet101", "resnet152", "inception_resnet_v2"}
FORMULA = re.compile(r"\((\d+) \+ (\d+) - (\d+)\) / (\d+) \+ 1 = (\d+)")


@pytest.mark.parametrize("name", rows(FIELDS, FIELDS.keys() - DEEP))
def test_receptive_fields_are_those_published(name):
    model = zoo.create_model(name, num_classes=0, pool="avg", input_shape=96)
    rows = {row.tap: row for row in anatomy.layers(model) if row.tap}
    assert rows["C5"].field == (FIELDS[name],) * 2
    assert [rows[tap].stride for tap in rows] == [(2 ** int(tap[1:]),) * 2 for tap in rows]


def test_output_sizes_follow_the_formula():
    rows = anatomy.layers(zoo.create_model("alexnet"))
    by_name = {row.name: row for row in rows}
    assert by_name["conv1"].formula == "(224 + 4 - 11) / 4 + 1 = 55"
    assert by_name["pool1"].formula == "(55 + 0 - 3) / 2 + 1 = 27"
    assert by_name["conv2"].formula == "(27 + 4 - 5) / 1 + 1 = 27"
    for name in ("alexnet", "resnet18", "efficientnet_lite0"):
        for row in anatomy.layers(zoo.create_model(name, input_shape=(96, 130))):
            for line in FORMULA.findall(row.formula):
                w, p, k, s, out = map(int, line)
                assert (w + p - k) // s + 1 == out in row.shape, row


def test_costs_add_up_to_those_of_the_model():
    model = zoo.create_model("efficientnet_lite0")
    rows = anatomy.layers(model)
    assert sum(row.params for row in rows) == zoo.info("efficientnet_lite0")["params"]
    assert sum(row.macs for row in rows) / 1e9 == graph.gmacs(model)
    assert [row.group for row in rows] == sorted((row.group for row in rows), key=_depth)
    head = {row.name: row for row in rows if row.group == "head"}
    assert head["logits"].field is None and head["logits"].shape == (1000,)


def _depth(group):
    return 9 if group == "head" else int(group[1:])


def test_a_gate_that_sees_all_does_not_widen_the_field():
    rows = anatomy.layers(zoo.create_model("mobilenet_v3_small", input_shape=64))
    assert {row.field for row in rows if row.name.endswith("_gate")} == {None}
    assert None not in {row.field for row in rows if row.name.endswith("_excite")}


@pytest.mark.parametrize("form", ["svg", "png", "pdf"])
def test_the_drawing_names_the_maps(tmp_path, form):
    path = tmp_path / f"net.{form}"
    architecture.draw(zoo.create_model("lenet5"), path)
    start = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[form]
    assert path.read_bytes().startswith(start)
    if form == "svg":
        text = path.read_text()
        assert all(f"<!-- {tap} -->" in text for tap in ("image", "C0", "C1", "C2", "logits"))


def test_a_drawing_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"report\.format"):
        architecture.draw(zoo.create_model("lenet5"), tmp_path / "net.docx")


def test_the_same_on_the_command_line(tmp_path, capsys):
    picture = tmp_path / "lenet.svg"
    about = json.loads(call(capsys, "lenet5", "--json", "--size", "32", "--plot", str(picture)))
    assert picture.exists()
    assert [tap["map"] for tap in about["taps"]] == [[32, 32], [12, 12], [6, 6]]
    assert sum(row["params"] for row in about["layers"]) > 61_706  # of a larger image
    out = call(capsys, "lenet5")
    assert "(28 + 4 - 5) / 1 + 1 = 28" in out and "61,706 parameters" in out


def call(capsys, *argv):
    with pytest.raises(SystemExit) as done:
        main(["info", *argv])
    assert done.value.code == 0
    return capsys.readouterr().out
