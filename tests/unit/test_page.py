"""The report of a run, from real runs on generated photos: what it says, and what it explains."""

import base64
import csv
import hashlib
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from dlzoo import finetune, load_data, load_run
from dlzoo.errors import DataError, ExportError, UsageError
from dlzoo.report import robustness
from PIL import Image

# evil, and told by a patch of colour somewhere on grey noise
PATCHES = {"<img src=x onerror=alert(1)>": (220, 30, 30), "=b|c": (30, 40, 220), "none": None}
RED = next(iter(PATCHES))
CORNERS = ((0, 0), (0, 64), (64, 0), (64, 64))  # of the quarter that a patch lies in


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("patches")
    for number, (name, colour) in enumerate(PATCHES.items()):
        (root / name).mkdir()
        for i in range(12):
            rng = np.random.default_rng(100 * number + i)
            side = 128 if colour else 140  # so that there are sizes to draw
            pixels = np.clip(rng.normal(128, 25, (side, side, 3)), 0, 255).astype("uint8")
            y, x = CORNERS[i % 4]
            if colour:
                pixels[y + 10 : y + 54, x + 10 : x + 54] = colour
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("runs"))
    settings = {"preset": "fast", "augment": "light", "size": 128, "quiet": True}
    return finetune(data=photos, out=out, val_split=0.2, test_split=0.2, **settings)


class Page(HTMLParser):
    """What is on a page: its text, tags, addresses, and the rows of its tables."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text("utf-8")
        self.tags, self.attributes = Counter(), Counter()
        self.addresses, self.rows, self.headings = [], [], []
        self.text = self.style = self.policy = ""
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes.update(name for name, _ in attrs)
        found = dict(attrs)
        self.addresses += [found[name] for name in ("src", "href") if name in found]
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.lasttag == "style" and not self.style:
            self.style = data
            return
        self.text += data
        if self.lasttag == "h2" and data.strip():
            self.headings.append(data)
        if self.lasttag in ("td", "th") and self.rows and data.strip():
            self.rows[-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture(scope="module")
def page(run):
    return Page(run.path / "report.html")


def test_calibration_changes_no_answer_and_can_be_left_out(run, photos, tmp_path):
    settings = {"preset": "fast", "augment": "light", "size": 128, "quiet": True, "report": False}
    plain = finetune(
        data=photos, out=str(tmp_path), val_split=0.2, test_split=0.2, calibrate=False, **settings
    )
    images = np.stack([np.asarray(Image.open(photos / n / "0.png").resize((128, 128)))
                       for n in PATCHES])  # fmt: skip
    one, other = run.classifier.model(images), plain.classifier.model(images)
    temperature = run.classifier.origin["temperature"]
    np.testing.assert_allclose(temperature * np.array(one), other, rtol=1e-3, atol=1e-3)
    assert "temperature" not in plain.classifier.origin


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(run, page):
    assert not page.tags.keys() & {"script", "link", "iframe", "object", "form"}
    assert all(a.startswith(("data:image/", "#")) for a in page.addresses)
    assert not [name for name in page.attributes if name.startswith("on") or name == "style"]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert page.policy.startswith("default-src 'none'; img-src data:;")
    assert f"style-src 'sha256-{digest}'" in page.policy and "unsafe" not in page.policy
    assert "url(" not in page.style and "@import" not in page.style
    assert (run.path / "report.html").stat().st_size < 5e6


def test_every_section_is_there(page):
    assert [int(text.split()[0]) for text in page.headings] == list(range(1, 11))
    for words in ("95 % interval", "finetune --config", "Grad-CAM", "temperature", "One run with"):
        assert words in page.text.replace("\N{NO-BREAK SPACE}", " "), words


def test_names_are_text(page):
    assert RED in page.text and RED not in page.source
    assert any(row[0] == RED for row in page.rows)


def test_the_figures_are_those_of_the_files(run, page):
    test = run.metrics["test"]
    for name, row in test["per_class"].items():
        cells = [f"{100 * row[key]:.1f} %" for key in ("precision", "recall", "f1")]
        assert [name, *cells, str(row["support"])] in page.rows
    with (run.path / "data_manifest.csv").open() as file:
        counted = Counter((r["label"].lstrip("'"), r["split"]) for r in csv.DictReader(file))
    for name in PATCHES:
        counts = [str(counted[name, split]) for split in ("train", "val", "test")]
        assert [name, *counts] in page.rows
    assert f"{test['correct']} of {test['n']} test photos" in page.text
    saved = json.loads((run.path / "model" / "model.json").read_text())
    assert saved["weights_sha256"] in page.text and "Apache-2.0" in page.text
    assert run.directory.read()["data"] in page.text
    changes = [row for row in page.rows if row[0] in robustness.CHANGES]
    assert [row[0] for row in changes] == list(robustness.CHANGES)
    for row in changes:
        low, _, high, _ = row[2].split()
        assert int(low) <= float(row[1].split()[0]) <= int(high)


def test_plots_are_also_files_and_a_card_is_written(run):
    for name in ("calibration", "sizes", "top_losses", "augmented", "curves", "confusion"):
        with Image.open(run.path / "plots" / f"{name}.png") as image:
            assert image.size[0] > 300
    card = (run.path / "MODEL_CARD.md").read_text()
    assert "&lt;img src=x" in card and "<img" not in card and r"=b\|c" in card
    assert f"{run.metrics['test']['n']}, 95 % CI" in card.replace("\N{NO-BREAK SPACE}", " ")


def test_the_temperature_is_applied_and_told(run, page, photos):
    files = [photos / name / "0.png" for name in PATCHES]
    before = [prediction.top for prediction in run.predict(files)]
    saved = json.loads((run.path / "model" / "model.json").read_text())
    found = saved["calibration"]
    assert found["applied"] and found["temperature"] == saved["origin"]["temperature"] != 1
    assert 0.1 <= found["temperature"] <= 10 and found["n"] == run.data.splits["val"]
    assert found["val"]["log_loss"][1] == pytest.approx(run.metrics["val"]["log_loss"], abs=1e-4)
    assert "have been divided by it" in page.text
    again = load_run(run.path)
    for one, other in zip(before, (p.top for p in again.predict(files)), strict=True):
        assert dict(one) == pytest.approx(dict(other), abs=1e-5)
    assert again.evaluate("test") == run.metrics["test"]


def test_pain_48_grad_cam_looks_where_the_evidence_is(run, photos):
    """PAINS 48: on the flat graph; a quarter of the photo would get 0.25 of an even heat."""
    for i, (y, x) in enumerate(CORNERS):
        found = run.explain(photos / RED / f"{i}.png", RED)
        assert found.heat.shape == (128, 128) and found.heat.max() == pytest.approx(1, abs=0.1)
        parts = {(b, a): found.heat[b : b + 64, a : a + 64].sum() for b, a in CORNERS}
        assert max(parts, key=parts.get) == (y, x)
        assert parts[y, x] > 0.35 * found.heat.sum()
    assert found.label == RED and found.overlay().dtype == np.uint8
    assert found._repr_png_().startswith(b"\x89PNG")
    other = run.explain(photos / RED / "3.png", RED, tap="C4")
    assert np.abs(other.heat - found.heat).max() > 0.1


def test_what_cannot_be_explained_is_said(run, photos, tmp_path):
    with pytest.raises(UsageError, match=r"explain\.tap.*C9"):
        run.explain(photos / RED / "0.png", tap="C9")
    with pytest.raises(UsageError, match=r"explain\.label"):
        run.explain(photos / RED / "0.png", "rose")
    (tmp_path / "bad.png").write_bytes(b"text")
    with pytest.raises(DataError):
        run.explain(tmp_path / "bad.png")


def test_pictures_of_predictions_are_told_apart(run, photos, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"text")
    first = photos / RED / "3.png"
    files = [first, bad, photos / "none" / "3.png", first]
    found = list(run.predict_stream(files, explain=tmp_path / "out"))
    names = [p.explained and p.explained.rpartition("/")[2] for p in found]
    assert names == ["3-gradcam.png", None, "3-2-gradcam.png", "3-3-gradcam.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(filter(None, names))
    expected = run.explain(files[0]).overlay()
    with Image.open(tmp_path / "out" / names[0]) as image:
        assert np.abs(np.asarray(image).astype(int) - expected).max() <= 2
    assert found[0].top[0][0] == run.explain(files[0]).label


def test_a_picture_is_of_the_answer_that_is_given(run, photos, tmp_path, monkeypatch):
    """With the mirror image averaged in, too; a name may be as long as a file system allows."""
    from dlzoo.report import gradcam

    made, explain = [], gradcam.explain
    monkeypatch.setattr(gradcam, "explain", lambda *of: made.extend(explain(*of)) or made)
    long = shutil.copy(photos / RED / "3.png", tmp_path / ("\N{ROSE}" * 62 + ".png"))
    (found,) = run.predict_stream([long], topk=1, explain=tmp_path / "out", tta=True)
    assert Path(found.explained).is_file()
    (plain,) = run.predict(long, topk=1)
    assert found.top != plain.top
    label, probability = found.top[0]
    assert made[0].label == label and made[0].probability == pytest.approx(probability, abs=1e-5)


def test_a_notebook_shows_the_run(run):
    shown = run._repr_html_()
    assert "report.html" in shown and "test accuracy" in shown and shown.startswith("<table>")
    figure = run.show(3)
    assert len([axis for axis in figure.axes if axis.images]) == 3


def test_without_the_photos_the_rest_is_told(run, photos):
    elsewhere = photos.with_name("moved")
    photos.rename(elsewhere)
    try:
        path = load_run(run.path).report()
        with pytest.raises(DataError, match=r"run\.no-data.*not where they were") as caught:
            load_run(run.path).evaluate()
        assert "--data DIR" in caught.value.hint and "--images DIR" in caught.value.hint
    finally:
        elsewhere.rename(photos)
    shown = Page(path)
    assert "Photos are not shown" in shown.text and "Not measured" in shown.text
    assert "temperature" in shown.text  # it is known from before
    for name, row in run.metrics["test"]["per_class"].items():
        assert any(cells[0] == name and cells[-1] == str(row["support"]) for cells in shown.rows)


def test_an_ensemble_of_several_labels_is_told_as_what_it_is(run, tmp_path):
    """Also: its figures are those of the model that was saved, not of its members' answers."""
    shutil.copytree(run.path, copied := tmp_path / "run")
    member = {"model": "a", "acc": 0.5, "loss": 1.0, "test": 0.5, "in": True}
    told = {"average": "logits", "members": [member, member], "acc": 0.123, "loss": 9.8765}
    (copied / "metrics.json").write_text(json.dumps(run.metrics | {"ensemble": told}))
    config = (copied / "config.toml").read_text()
    (copied / "config.toml").write_text(re.sub(r"(?m)^data = .*", 'data = "gone"', config))
    (copied / "export").mkdir()
    judged = {"float": 0.5, "quantized": 0.25}
    exported = {"bytes": 1, "latency_ms": 1.0, "top1_agreement": 1.0, "max_difference": 0.1}
    rows = {"model-int8.tflite": exported | {"passed": True, "accuracy": judged}}
    (copied / "export" / "parity.json").write_text(json.dumps(rows))
    again = load_run(copied)
    again.__dict__["classifier"] = replace(run.classifier, task="multilabel")
    text = Page(again.report()).text.replace("\N{NO-BREAK SPACE}", " ")
    val = run.metrics["val"]
    reached = f"an accuracy of {100 * val['accuracy']:.1f} % and a loss of {val['log_loss']:.4f}"
    for words in (
        reached,
        "validation accuracy, each label by itself",
        "test accuracy, all labels of a photo right",
        "One ensemble of 2 models: another seed",
        "answers with its labels, or none",
        ", of the first member",
        "passed; validation accuracy 50.0 % to 25.0 %",
    ):
        assert words in text, words
    assert "9.8765" not in text and "One run" not in text and "one of its classes" not in text
    assert "accuracy (test, all labels right)" in (copied / "MODEL_CARD.md").read_text()


TINY = {"weights": "none", "stages": "all:1", "size": 32, "quiet": True}


def arrays(kind):
    rng = np.random.default_rng(0)
    n, classes = {"binary": (40, 2), "multilabel": (60, 3), "multiclass": (360, 120)}[kind]
    x, y = rng.integers(0, 255, (n, 32, 32, 3)).astype("uint8"), np.arange(n) % classes
    if kind == "multilabel":
        y = (rng.random((n, classes)) < 0.5).astype(int)
    x[:, :8, :8] = (np.arange(n) * 5 % 250).astype("uint8")[:, None, None, None]
    return x, y, [f"class {i}" for i in range(classes)]


@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "test_split"),
    [
        ("binary", 0.0),
        ("multilabel", 0.2),
        pytest.param("multiclass", 0.3, marks=pytest.mark.full),
    ],
)
def test_every_kind_of_task_has_a_report(tmp_path, kind, test_split):
    x, y, classes = arrays(kind)
    splits = {"val_split": 0.25, "test_split": test_split}
    data = load_data((x, y), classes=classes, task=kind, **splits)
    made = finetune("lenet5", data, out=str(tmp_path), **TINY)
    shown = Page(made.path / "report.html")
    main = made.metrics["test"] or made.metrics["val"]
    assert (
        f"{main['correct']} of {main['n']} {'test' if test_split else 'validation'}" in shown.text
    )
    assert ("There are no test photos" in shown.text) is (not test_split)
    rows = [row for row in shown.rows if row[0] in classes and len(row) == 5]
    assert len(rows) == len(classes)
    if len(classes) > 30:  # the weakest first
        scores = [float(row[3].split()[0]) for row in rows]
        assert scores == sorted(scores)
    with pytest.raises(DataError, match=r"run\.no-data"):
        load_run(made.path).data.splits  # noqa: B018
    assert "made from data in memory" in Page(load_run(made.path).report()).text


@pytest.mark.full
def test_a_refused_export_is_in_the_report(tmp_path, monkeypatch):
    x, y, _ = arrays("binary")

    def refuse(*_, **__):
        return {"passed": False, "n": 1, "max_difference": 1.0, "top1_agreement": 0.0}

    monkeypatch.setattr("dlzoo.export.parity.compare", refuse)
    with pytest.raises(ExportError, match=r"export\.parity"):
        finetune("lenet5", load_data((x, y)), out=str(tmp_path), export=["keras"], **TINY)
    (made,) = tmp_path.iterdir()
    (row,) = [row for row in Page(made / "report.html").rows if row[0] == "model.keras"]
    assert row[-1] == "rejected"


def test_a_report_that_fails_is_no_failed_run(tmp_path, monkeypatch, capsys):
    x, y, _ = arrays("binary")

    def broken(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("dlzoo.report.page.build", broken)
    settings = {**TINY, "quiet": False}
    made = finetune("lenet5", load_data((x, y)), out=str(tmp_path), **settings)
    assert made.status == "finished" and "no report was made: OSError: no space left" in (
        capsys.readouterr().err
    )
    made.directory.metrics.unlink()
    with pytest.raises(UsageError, match=r"run\.unfinished"):
        made.report()
