"""Faults 40, 41 and 44: what a finished run answers, exports and writes down."""

import csv
import io
import json
import shutil

import pytest
import tensorflow as tf
from odd import CLASSES


@pytest.fixture
def run(odd_run, tmp_path):
    """Give a copy of the odd run's directory, to be written to."""
    return shutil.copytree(odd_run.path, tmp_path / "run")


def test_fault_40_an_export_that_answers_otherwise_is_kept_as_rejected(
    run, call, seen, monkeypatch
):
    """Exit 8; what was exported before stays, byte for byte."""
    from dlzoo.export import serving

    assert call("export", run, "--to", "keras")[0] == 0
    before = (run / "export" / "model.keras").read_bytes()
    rule = serving.resize_rule
    monkeypatch.setattr(serving, "resize_rule", lambda x, to: tf.reverse(rule(x, to), [-1]))
    code, out, errors = call("export", run, "--to", "savedmodel")
    told = errors.splitlines()[-3]
    assert (code, out) == (8, "") and told.startswith("error[export.parity]: "), errors
    assert "> 1e-03, the largest difference of a probability on 9 images" in told
    folder = run / "export"
    assert not (folder / "savedmodel").exists() and (folder / "savedmodel.rejected").is_dir()
    assert (folder / "model.keras").read_bytes() == before
    figures = json.loads((folder / "parity.json").read_text("utf-8"))
    assert (figures["model.keras"]["passed"], figures["savedmodel"]["passed"]) == (True, False)
    seen(told, code)


def test_fault_41_one_bad_photo_of_a_thousand(odd_run, call, seen, tmp_path, monkeypatch):
    """Its row says so, the others are as without it and in order; --strict fails at the end."""
    good = sorted((odd_run.photos / CLASSES[2]).glob("0?.png"))[:8]
    alone = call("predict", odd_run.path, *good, "--format", "jsonl")[1].splitlines()
    answers = {(row := json.loads(line))["path"]: row for line in alone}
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    asked = [str(good[i % len(good)]) for i in range(1000)]
    asked[501] = str(bad)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(asked)))
    code, out, errors = call("predict", odd_run.path, "-", "--format", "jsonl", "--strict")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["path"] for row in rows] == asked
    assert [i for i, row in enumerate(rows) if row["error"]] == [501]
    assert rows[501]["error"].startswith("data.unreadable: ") and rows[501]["top"] == []
    for row in rows[:501] + rows[502:]:
        for ours, theirs in zip(row["top"], answers[row["path"]]["top"], strict=True):
            assert ours["label"] == theirs["label"]
            assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-6)
    assert (code, errors.splitlines()[0]) == (
        3, "error[data.bad-image]: 1 of 1000 photos could not be read"
    )  # fmt: skip
    seen(errors, code)
    assert call("predict", odd_run.path, bad, good[0])[0] == 0


def cells(text: str) -> list[str]:
    return [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]


def test_fault_44_no_table_holds_a_formula(odd_run, call, seen):
    """Class `=1+1` and a file called `=cmd...`; `data.read_csv` gives the names back."""
    from dlzoo.data.table import read_csv

    tables = {path.name: path.read_text("utf-8") for path in odd_run.path.glob("*.csv")}
    photo = odd_run.photos / CLASSES[0] / "00.png"
    tables["predict"] = call("predict", odd_run.path, photo, "--format", "csv")[1]
    assert {"data_manifest.csv", "data_report.csv", "predictions_test.csv"} < set(tables)
    for name, text in tables.items():
        risky = [cell for cell in cells(text) if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
        assert not risky, name
    manifest = read_csv(odd_run.path / "data_manifest.csv", ("path", "label"), "data.csv")
    assert {row["label"] for row in manifest} == set(CLASSES)
    seen(next(line for line in tables["predictions_test.csv"].splitlines() if "=1+1/" in line))


def test_fault_44_no_page_holds_a_class_name_as_markup(odd_run):
    """Whatever page or drawing a run has; a figure's text is not looked into."""
    for page in (*odd_run.path.rglob("*.html"), *odd_run.path.rglob("*.svg")):
        assert CLASSES[1] not in page.read_text("utf-8"), page
