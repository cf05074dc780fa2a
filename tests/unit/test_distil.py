"""A run teaches another one."""

import resource
from types import SimpleNamespace

import numpy as np
import pytest
from dlzoo import finetune, load_data, load_run
from dlzoo.errors import UsageError, of_the_machine
from dlzoo.transfer.classifier import to_probabilities
from dlzoo.transfer.distil import FILE, softened, teach
from dlzoo.transfer.losses import TEACHER, make_loss, make_metrics
from photos import coloured

SMALL = {"weights": "none", "size": 28, "batch": 16, "quiet": True, "report": False}


def entropy(p, task):
    """Cross-entropy of p with itself."""
    if task == "multiclass":
        return -(p * np.log(p)).sum(-1)
    return -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean(-1)


@pytest.mark.parametrize("task, k", [("multiclass", 4), ("multilabel", 4), ("binary", 1)])
def test_the_loss_is_that_of_labels_and_teacher(task, k):
    rng, t = np.random.default_rng(0), 3.0
    logits, of_teacher = rng.normal(size=(2, 5, k)).astype("float32")
    labels = np.eye(4, dtype="float32")[[0, 1, 2, 3, 0]][:, :k]
    q = softened(to_probabilities(of_teacher, task), task, t)
    both = np.concatenate([labels, q], axis=1)
    plain, taught = make_loss(task, 0.1), make_loss(task, 0.1, t)
    p = softened(to_probabilities(logits, task), task, t)
    if task == "multiclass":
        cross = -(q * np.log(p)).sum(-1)
    else:
        cross = -(q * np.log(p) + (1 - q) * np.log(1 - p)).mean(-1)
    apart = (cross - entropy(q, task)).mean()
    expected = (1 - TEACHER) * float(plain(labels, logits)) + TEACHER * t**2 * apart
    assert float(taught(both, logits)) == pytest.approx(expected, rel=1e-4)
    assert float(taught(labels, logits)) == pytest.approx(float(plain(labels, logits)))
    (alone,), (beside,) = make_metrics(task), make_metrics(task)
    alone.update_state(labels, logits)
    beside.update_state(both, logits)
    assert float(alone.result()) == float(beside.result())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    data = load_data(coloured(120), seed=0)
    out = str(tmp_path_factory.mktemp("teacher"))
    return data, finetune("lenet5", data, out=out, epochs=2, **SMALL)


@pytest.mark.full
def test_a_student_comes_near_its_teacher(teacher, tmp_path):
    """Nearer than a twin that was not taught; the answers were asked for once."""
    data, run = teacher
    apart = {}
    expected = run.classifier.answers(data, "test")
    for name, given in (("alone", {}), ("taught", {"teacher": str(run.path)})):
        student = finetune("lenet5", data, out=str(tmp_path), name=name, seed=7, epochs=2,
                           temperature=4.0, **given, **SMALL)  # fmt: skip
        apart[name] = np.abs(student.classifier.answers(data, "test") - expected).mean()
    assert apart["taught"] < apart["alone"]
    assert np.load(tmp_path / "taught" / FILE).shape == (data.splits["train"], 3)
    assert not (tmp_path / "alone" / FILE).exists()
    assert load_run(tmp_path / "taught").metrics["val"]["log_loss"] < 5
    assert 'teacher = "' in (tmp_path / "taught/config.toml").read_text()


@pytest.mark.full
def test_a_teacher_of_other_classes_is_refused(teacher, tmp_path):
    _, run = teacher
    images, labels = coloured(60)
    other = load_data((images, labels % 2), seed=0)
    with pytest.raises(UsageError, match=r"teacher\.classes"):
        finetune("lenet5", other, out=str(tmp_path), teacher=str(run.path), epochs=1, **SMALL)


def test_a_disk_that_is_full_of_the_teachers_answers_is_told(tmp_path):
    data = load_data(coloured(60))
    teacher = SimpleNamespace(
        task=data.task,
        classes=data.classes,
        answers=lambda data, split: np.ones((data.splits[split], len(data.classes)), "float32"),
    )
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            teach(data, teacher, 1.0, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert of_the_machine(caught.value).id == "resource.disk"
    assert not list(tmp_path.iterdir())
