"""The figures are right, the pictures are there, the table is safe to open."""

import csv
import math

import numpy as np
import pytest
from dlzoo.errors import DlzooError
from dlzoo.report import calibration, doubts, lessons, metrics, plots, predictions, robustness
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from sklearn import metrics as sk

NAMES = tuple(f"c{i}" for i in range(7))


def drawn(n=200, k=7, seed=0):
    """Return true classes and probabilities that are right two times out of three."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, k, n)
    probabilities = rng.dirichlet(np.ones(k), n)
    probabilities[np.arange(n), true] += 0.4
    return true, probabilities / probabilities.sum(1, keepdims=True)


def test_multiclass_figures_are_those_of_sklearn():
    true, p = drawn()
    found = metrics.evaluate(np.eye(7)[true], p, NAMES, "multiclass")
    predicted = p.argmax(1)
    assert found["n"] == 200 and found["correct"] == (predicted == true).sum()
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(true, predicted))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(true, predicted, average="macro"))
    assert found["log_loss"] == pytest.approx(sk.log_loss(true, p))
    assert found["top5_accuracy"] == pytest.approx(sk.top_k_accuracy_score(true, p, k=5))
    assert found["confusion"] == sk.confusion_matrix(true, predicted).tolist()
    row = found["per_class"]["c3"]
    assert row["recall"] == pytest.approx(sk.recall_score(true == 3, predicted == 3))
    assert row["precision"] == pytest.approx(sk.precision_score(true == 3, predicted == 3))
    assert row["support"] == (true == 3).sum()
    counts = np.bincount(true)
    assert found["majority_class"] == NAMES[counts.argmax()]
    assert found["majority_accuracy"] == counts.max() / 200


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(2, 8))
def test_what_is_told_of_each_class_is_what_sklearn_tells(seed, n, k):
    rng = np.random.default_rng(seed)
    names = [f"c{i}" for i in range(k)]
    true, p = rng.integers(0, rng.integers(1, k + 1), n), rng.dirichlet(np.ones(k) * 0.4, n)
    one = metrics.evaluate(np.eye(k)[true], p, names, "multiclass")
    rows = sk.precision_recall_fscore_support(true, p.argmax(1), labels=range(k), zero_division=0)
    several, q = rng.random((n, k)) < 0.3, rng.random((n, k))
    many = metrics.evaluate(several, q, names, "multilabel")
    more = sk.precision_recall_fscore_support(several, q > 0.5, zero_division=0)
    for found, wanted in ((one, rows), (many, more)):
        told = [list(row.values()) for row in found["per_class"].values()]
        np.testing.assert_allclose(told, np.transpose(wanted), atol=1e-12)
        assert [type(value) for value in told[0]] == [float, float, float, int]
    assert one["confusion"] == sk.confusion_matrix(true, p.argmax(1), labels=range(k)).tolist()
    assert many["confusion"] == sk.multilabel_confusion_matrix(several, q > 0.5).tolist()


def test_a_class_the_split_lacks_keeps_its_row_and_moves_no_other():
    true, p = drawn(k=3)
    keep = true != 0
    whole = metrics.evaluate(np.eye(3)[true], p, "abc", "multiclass")
    part = metrics.evaluate(np.eye(3)[true[keep]], p[keep], "abc", "multiclass")
    assert part["per_class"]["a"]["support"] == 0
    assert part["confusion"] == [[0, 0, 0], *whole["confusion"][1:]]
    for name in "bc":
        assert part["per_class"][name]["recall"] == whole["per_class"][name]["recall"]


def test_a_class_that_does_not_occur_at_all_does_not_lower_the_mean():
    found = metrics.evaluate(np.eye(3)[[0, 1]], np.eye(3)[[0, 1]], "abc", "multiclass")
    assert found["macro_f1"] == 1 and list(found["per_class"]) == ["a", "b", "c"]


def test_binary_labels_of_one_column_are_the_second_class():
    labels = np.array([[1], [0], [1], [0]], "float32")
    p = np.array([[0.2, 0.8], [0.7, 0.3], [0.6, 0.4], [0.9, 0.1]])
    found = metrics.evaluate(labels, p, ("no", "yes"), "binary")
    assert found["confusion"] == [[2, 0], [1, 1]]
    assert found["accuracy"] == 0.75 and found["top5_accuracy"] is None
    assert found["log_loss"] == pytest.approx(-np.log([0.8, 0.7, 0.4, 0.9]).mean())


def test_multilabel_counts_rows_that_are_right_altogether():
    labels = np.array([[1, 0], [1, 1], [0, 0]])
    p = np.array([[0.9, 0.2], [0.8, 0.4], [0.1, 0.3]])
    found = metrics.evaluate(labels, p, ("x", "y"), "multilabel")
    assert found["correct"] == 2
    assert found["confusion"] == [[[1, 0], [0, 2]], [[2, 0], [1, 0]]]
    assert found["macro_f1"] == pytest.approx(0.5)
    right = np.where(labels == 1, p, 1 - p)
    assert found["log_loss"] == pytest.approx(-np.log(right).mean())


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_the_schema_is_the_same_for_every_task(task):
    true, p = drawn()
    multi = metrics.evaluate(np.eye(7)[true], p, NAMES, task)
    binary = metrics.evaluate(true[:, None] > 3, np.full((200, 2), 0.5), "ab", "binary")
    assert list(multi) == list(binary)


def test_calibration_error_of_an_overconfident_model():
    # Always 90 % sure, right in half of the cases.
    p = np.tile([0.9, 0.1], (10, 1))
    found = metrics.evaluate(np.eye(2)[[0, 1] * 5], p, "ab", "multiclass")
    assert found["calibration_error"] == pytest.approx(0.4)
    assert metrics.calibration(np.array([0.0, 1.0]), np.array([0, 1]), bins=2) == [
        [1, 0.0, 0.0],
        [1, 1.0, 1.0],
    ]


def test_wilson_interval_of_a_known_case():
    # 348 of 367, the example of the documentation.
    low, high = metrics.wilson(348, 367)
    assert (round(low, 3), round(high, 3)) == (0.921, 0.967)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_proportion_and_stays_in_range(case):
    correct, n = case
    low, high = metrics.wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    assert high - low > 0


@pytest.mark.parametrize(
    ("labels", "p", "id"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2)), "data.empty-split"),
        (np.eye(2), np.array([[math.nan, 1], [0, 1]]), "model.not-finite"),
    ],
)
def test_what_cannot_be_judged_is_an_error(labels, p, id):
    with pytest.raises(DlzooError) as caught:
        metrics.evaluate(labels, p, "ab", "multiclass")
    assert caught.value.id == id


def rows(n=6):
    return [
        {
            "stage": "head" if i < 2 else "all",
            "epoch": i + 1,
            "loss": str(1 / (i + 1)),
            "accuracy": i / n,
            "val_loss": abs(i - 3) + 0.5,
            "val_accuracy": "" if i == 1 else i / n,
            "lr": 1e-3,
        }
        for i in range(n)
    ]


def shown(path):
    """Return a picture as an array, having checked that something is drawn on it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L"))
    assert pixels.min() < 50 and pixels.std() > 5
    return pixels


def test_curves_show_the_best_epoch(tmp_path):
    plots.curves(rows(), tmp_path / "a.png")
    plots.curves(rows(), tmp_path / "b.png", best=4)
    plots.curves(rows(), tmp_path / "c.png", best=2)
    assert np.array_equal(shown(tmp_path / "a.png"), shown(tmp_path / "b.png"))
    assert not np.array_equal(shown(tmp_path / "a.png"), shown(tmp_path / "c.png"))


def test_curves_of_a_single_epoch_without_validation(tmp_path):
    plots.curves([{"stage": "head", "epoch": 1, "loss": 0.5}], tmp_path / "a.png")
    shown(tmp_path / "a.png")


@pytest.mark.parametrize("k", [2, 7, 102])
def test_confusion_is_drawn_for_any_number_of_classes(tmp_path, k):
    true, p = drawn(n=3 * k, k=k)
    names = [f"${i}$ a long name of a flower {i}" for i in range(k)]
    found = metrics.evaluate(np.eye(k)[true], p, names, "multiclass")
    plots.confusion(found, tmp_path / "a.png")
    assert max(shown(tmp_path / "a.png").shape) < 1700


def test_confusion_of_a_multilabel_task(tmp_path):
    true, p = drawn()
    plots.confusion(metrics.evaluate(np.eye(7)[true], p, NAMES, "multilabel"), tmp_path / "a.png")
    shown(tmp_path / "a.png")


def test_samples_of_any_size_and_number(tmp_path):
    images = [np.full((20 + 9 * i, 40, 3), 40 * i, "uint8") for i in range(5)]
    plots.samples(images, ["a title too long for one line of the grid"] * 5, tmp_path / "a.png")
    shown(tmp_path / "a.png")


def test_pictures_leave_no_pyplot_state(tmp_path):
    import matplotlib.pyplot as plt

    plots.samples([np.zeros((8, 8, 3))], ["x"], tmp_path / "a.png")
    assert plt.get_fignums() == []


def table(tmp_path, *arguments):
    predictions.write(tmp_path / "p.csv", *arguments)
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_name_truth_answer_and_probability(tmp_path):
    labels, p = np.array([[1.0], [0.0]]), np.array([[0.25, 0.75], [0.4, 0.6]])
    found = table(tmp_path, ["a.jpg", "b,c.jpg"], labels, p, ("no", "yes"), "binary")
    assert found == [
        {
            "path": "a.jpg",
            "label": "yes",
            "predicted": "yes",
            "probability": "0.750000",
            "correct": "1",
            "p:no": "0.250000",
            "p:yes": "0.750000",
        },
        {
            "path": "b,c.jpg",
            "label": "no",
            "predicted": "yes",
            "probability": "0.600000",
            "correct": "0",
            "p:no": "0.400000",
            "p:yes": "0.600000",
        },
    ]


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_predictions_hold_no_formula(tmp_path, start):
    names = (f"{start}cmd|'/C calc'!A0", "b")
    table(tmp_path, [f"{start}1.jpg"], np.eye(2)[:1], np.eye(2)[:1], names, "multiclass")
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        for cell in (cell for row in csv.reader(file) for cell in row):
            assert not cell.startswith(("=", "+", "-", "@"))


def test_predictions_of_many_classes_have_no_column_for_each(tmp_path):
    names = [str(i) for i in range(21)]
    (row,) = table(tmp_path, ["a"], np.eye(21)[:1], np.eye(21)[:1], names, "multiclass")
    assert list(row) == ["path", "label", "predicted", "probability", "correct"]


def test_predictions_of_several_labels(tmp_path):
    labels, p = np.array([[1, 1, 0]]), np.array([[0.9, 0.3, 0.2]])
    (row,) = table(tmp_path, ["a"], labels, p, ("x", "y", "z"), "multilabel")
    assert (row["label"], row["predicted"], row["correct"]) == ("x|y", "x", "0")
    assert row["probability"] == "0.700000"


def sure(task, factor, n=4000):
    """Return labels drawn from known probabilities, and the answers of a model too sure of them."""
    rng = np.random.default_rng(0)
    if task == "multiclass":
        logits = rng.normal(0, 1.5, (n, 4))
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        true = np.array([rng.choice(4, p=row) for row in p])
        wrong = np.exp(factor * logits)
        return np.eye(4)[true], wrong / wrong.sum(1, keepdims=True)
    columns = 1 if task == "binary" else 3
    logits = rng.normal(0, 1.5, (n, columns))
    labels = (rng.random((n, columns)) < 1 / (1 + np.exp(-logits))).astype(float)
    wrong = 1 / (1 + np.exp(-factor * logits))
    return labels, np.hstack([1 - wrong, wrong]) if task == "binary" else wrong


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("factor", [3.0, 0.5])
def test_the_temperature_undoes_what_made_the_answers_wrong(task, factor):
    labels, p = sure(task, factor)
    found = calibration.fit(labels, p.astype("float32"), task)
    assert found == pytest.approx(factor, rel=0.12)
    after = calibration.tempered(p, task, found)
    assert after.shape == p.shape
    if task == "multilabel":
        assert ((after > 0.5) == (p > 0.5)).all()
    else:
        assert (after.argsort(1) == p.argsort(1)).all()
        assert after.sum(1) == pytest.approx(1)
    names = list("abcd")[: p.shape[1]]
    before, now = (metrics.evaluate(labels, each, names, task) for each in (p, after))
    assert now["calibration_error"] < before["calibration_error"] / 2
    assert now["log_loss"] < before["log_loss"]


def test_the_temperature_of_answers_that_are_all_right_is_bounded():
    p = np.array([[1.0, 0.0], [0.0, 1.0]], "float32")
    assert 0.1 <= calibration.fit(np.eye(2), p, "multiclass") <= 10
    assert np.isfinite(calibration.tempered(p, "multilabel", 0.1)).all()


@pytest.mark.parametrize(("n", "sure"), [(10, 11 / 12), (100, 101 / 102)])
@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_few_answers_that_are_all_right_promise_little(task, n, sure):
    """Not certainty: as much as one more photo would that is answered wrongly."""
    labels, p = np.tile([0, 1], (n, 1)), np.tile([0.2, 0.8], (n, 1))
    labels = labels[:, 1:] if task == "binary" else labels
    after = calibration.tempered(p, task, calibration.fit(labels, p, task))
    assert after[0, 1] == pytest.approx(sure, abs=1e-3)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_wrong_labels_are_found_and_right_ones_left_alone(task):
    rng = np.random.default_rng(1)
    k = {"binary": 2}.get(task, 4)
    true = rng.integers(0, k, 200)
    p = np.full((200, k), 0.06) + rng.random((200, k)) / 50
    p[np.arange(200), true] = 0.85 + rng.random(200) / 50
    given = true.copy()
    given[:5] = (true[:5] + 1) % k
    p[:5] = 0.01  # surer than most, as the method asks for
    p[np.arange(5), true[:5]] = 0.95
    labels = np.eye(k)[given]
    found = doubts.label_errors(
        [f"{i}.jpg" for i in range(200)],
        labels[:, 1:] if task == "binary" else labels,
        p if task == "multilabel" else p / p.sum(1, keepdims=True),
        [f"c{i}" for i in range(k)],
        task,
    )
    assert {row["index"] for row in found} == set(range(5))
    for row in found:
        i = row["index"]
        assert row["path"] == f"{i}.jpg" and row["own"] < row["other"]
        if task == "multilabel":  # one label too many and one that lacks
            told = {(r["label"], r["likelier"]) for r in found if r["index"] == i}
            wrong, right = f"c{given[i]}", f"c{true[i]}"
            assert told == {(wrong, f"not {wrong}"), (f"not {right}", right)}
        else:
            assert (row["label"], row["likelier"]) == (f"c{given[i]}", f"c{true[i]}")


def test_a_photo_of_several_labels_is_taken_for_all_that_are_likely():
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]])
    p = np.array([[0.9, 0.7, 0.1], [0.9, 0.6, 0.2], [0.8, 0.2, 0.1], [0.4, 0.3, 0.1]])
    rows = doubts.worst("abcd", labels, p, ("x", "y", "z"), "multilabel", 4)
    found = {row["path"]: row["predicted"] for row in rows}
    assert found == {"a": "x|y", "b": "x|y", "c": "x", "d": ""}
    assert {row["path"]: doubts.title(row) for row in rows} == {
        "a": "x|y (80%)",
        "b": "x (90%), taken for x|y",
        "c": "no label, taken for x",
        "d": "y (30%), taken for none",
    }
    assert {row["likeliest"] for row in rows} == {"x"}


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_one_label_alone_is_a_question_with_two_answers(seed, n):
    rng = np.random.default_rng(seed)
    yes, p = rng.random((n, 1)) < 0.5, rng.random((n, 1))
    one = yes.astype("float32"), p, ["x"], "multilabel"
    two = yes.astype("float32"), np.hstack([1 - p, p]), ["not x", "x"], "binary"
    alone, both = metrics.evaluate(*one), metrics.evaluate(*two)
    assert alone["per_class"]["x"] == both["per_class"]["x"]
    assert alone["confusion"] == [both["confusion"]]
    for key in ("correct", "accuracy", "majority_accuracy"):
        assert alone[key] == both[key]
    assert alone["log_loss"] == pytest.approx(both["log_loss"])
    found, wanted = (calibration.fit(labels, p, task) for labels, p, _, task in (one, two))
    assert found == pytest.approx(wanted)
    keys = [f"{i}.jpg" for i in range(n)]
    found, wanted = (doubts.worst(keys, *each, n) for each in (one, two))
    assert [row["index"] for row in found] == [row["index"] for row in wanted]
    assert doubts.label_errors(keys, *one) == doubts.label_errors(keys, *two)


def test_pairs_of_confused_classes_come_by_number():
    found = doubts.pairs([[5, 1, 0], [3, 9, 0], [0, 2, 7]], "abc")
    assert found == [("b", "a", 3), ("c", "b", 2), ("a", "b", 1)]


def test_photos_are_changed_as_their_names_say():
    image = np.random.default_rng(0).integers(40, 160, (64, 64, 3)).astype("uint8")
    found = {name: change(image) for name, change in robustness.CHANGES.items()}
    assert all(x.shape == image.shape and x.dtype == np.uint8 for x in found.values())
    assert (found["mirrored"][:, ::-1] == image).all()
    assert found["30 % darker"].mean() == pytest.approx(0.7 * image.mean(), rel=0.02)
    assert found["30 % brighter"].mean() == pytest.approx(1.3 * image.mean(), rel=0.02)
    assert found["blurred"].std() < 0.7 * image.std()
    assert 0 < np.abs(found["JPEG quality 30"].astype(int) - image).mean() < 40


def test_reliability_and_sizes_are_drawn(tmp_path):
    bins = [[10, 0.3, 0.5], [30, 0.9, 0.8]]
    plots.reliability({"a": bins, "b $x$": bins[:1]}, tmp_path / "a.png")
    plots.sizes([100] * 5, 224, tmp_path / "b.png")
    plots.sizes([30, 100, 4000], 224, tmp_path / "c.png")
    for name in "abc":
        shown(tmp_path / f"{name}.png")


def test_the_legend_of_the_reliability_diagram_hides_no_dot(monkeypatch, tmp_path):
    def save(figure, path):
        FigureCanvasAgg(figure).draw()
        (axis,) = figure.axes
        legends = [*figure.legends, *filter(None, [axis.get_legend()])]
        assert not any(axis.bbox.overlaps(each.get_window_extent()) for each in legends)
        counted.append(len(legends))

    counted = []
    monkeypatch.setattr(plots, "save", save)
    plots.reliability({"a": [[3, 0.1, 1.0]], "b": [[3, 0.9, 0.0]]}, tmp_path / "a.png")
    assert counted == [1]


def test_a_line_of_one_point_is_a_dot(monkeypatch, tmp_path):
    """An example has one epoch where it is only to be seen that it works."""
    saved = []
    monkeypatch.setattr(lessons, "save", lambda figure, path: saved.append(figure))
    for values in ([0.5], [0.5, 0.6]):
        lessons.lines({"a": values}, tmp_path / "a.png", x="epoch", y="accuracy")
    markers = [figure.axes[0].lines[0].get_marker() for figure in saved]
    assert markers == ["o", "None"]
