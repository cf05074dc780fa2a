"""Several processes train one model: as one alone would, and none waits for one that has gone."""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import nursery
import pytest
from nursery import run, together

long = pytest.mark.long
# no random numbers in the network; 64 images do not divide by 8, and 8 does not by 3
STEADY = {"backbone": "steady", "dropout": 0.0, "train_bn": False, "deterministic": False}


def weights(out):
    found = {}
    with h5py.File(out / "run" / "model" / "model.weights.h5") as file:
        file.visititems(
            lambda name, item: (
                found.update({name: np.asarray(item)}) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


def agree(one, other, tolerance=1e-5):
    """See that two runs came to the same: each epoch, the weights, every answer.

    Sums of other orders differ in the last bit, and Adam divides by roots of small squares: after
    70 steps of weights around 1 differences of 1.1e-5 were seen.
    """
    rows = nursery.figures(one), nursery.figures(other)
    assert len(rows[0]) == len(rows[1]) > 3
    for a, b in zip(*rows, strict=True):
        assert a == pytest.approx(b, abs=tolerance)
    mine, theirs = weights(one), weights(other)
    for name, values in mine.items():
        np.testing.assert_allclose(values, theirs[name], atol=2 * tolerance, err_msg=name)
    answers = [nursery.result(out)["predictions"].splitlines() for out in (one, other)]
    assert len(answers[0]) == len(answers[1]) > 10
    for a, b in zip(*answers, strict=True):
        assert a.split(",")[:3] == b.split(",")[:3]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Give what one process came to that nobody disturbed."""
    out = tmp_path_factory.mktemp("alone")
    assert run(out, **STEADY) == 0, nursery.said(out)
    return out


@pytest.mark.full
@pytest.mark.parametrize("count", [2, 3])
def test_pain_31_32_workers_train_as_one_process(alone, tmp_path, count):
    assert together(tmp_path, count, **STEADY) == [0] * count, nursery.said(tmp_path)
    agree(alone, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize(
    ("count", "settings"),
    [
        (2, {"cache": "off", "augment": "none"}),
        (3, {"cache": "off", "class_weight": "balanced", "l2": 1e-3}),
        (2, {"train_bn": True}),
    ],
    ids=str,
)
def test_workers_with_other_settings_train_as_one_process(tmp_path, count, settings):
    settings = {**STEADY, **settings}
    assert run(tmp_path / "one", **settings) == 0, nursery.said(tmp_path / "one")
    codes = together(tmp_path / "many", count, **settings)
    assert codes == [0] * count, nursery.said(tmp_path / "many")
    agree(tmp_path / "one", tmp_path / "many")


@pytest.mark.full
def test_replicas_train_as_one_process(alone, tmp_path):
    assert run(tmp_path, nursery.two_replicas, strategy="mirrored", **STEADY) == 0
    agree(alone, tmp_path)


@pytest.mark.full
def test_replicas_drop_other_numbers_each():
    """Of four images, two a replica: with the same numbers dropped no odd count could be."""
    program = Path(__file__).with_name("dropping.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["seeds"][0] == found["seeds"][1]
    expected = 999 * np.array([1, 4, 6, 4, 1]) / 16
    assert np.abs(found["kept"] - expected).max() < 5 * np.sqrt(999 / 4)


@pytest.mark.full
def test_dropout_is_of_another_draw_and_learns_as_well(tmp_path):
    """Other numbers are dropped: the losses are near each other, not the same."""
    settings = {**STEADY, "backbone": "tiny", "dropout": 0.3}
    assert run(tmp_path / "one", **settings) == 0
    assert together(tmp_path / "two", 2, **settings) == [0, 0]
    one, two = nursery.figures(tmp_path / "one"), nursery.figures(tmp_path / "two")
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], abs=0.35)


@pytest.mark.parametrize(("victim", "then"), [(0, 1), (1, 3)])
@long
def test_fault_38_t8_a_lost_worker(alone, tmp_path, seen, victim, then):
    """The others end within a minute; fewer or more go on to the same end."""
    dying = {victim: [partial(nursery.at_step, 15)]}  # the last checkpoint was after step 13
    began = time.monotonic()
    codes = together(tmp_path / "a", 2, dying, **STEADY)
    assert time.monotonic() - began < 60 + 60  # starting and training come first
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 75, nursery.said(tmp_path / "a")
    said = nursery.said(tmp_path / "a")
    assert f"dist.worker-lost]: rank {victim} of 2" in said or f"rank {victim} of 2 no" in said
    seen(f"dist.worker-lost: rank {victim} of 2 no longer answers", 75)
    if victim:  # the chief itself can no longer write its end
        assert '"status": "interrupted"' in (tmp_path / "a" / "run" / "run.json").read_text()
    if then == 1:
        assert run(tmp_path / "a", **STEADY) == 0, nursery.said(tmp_path / "a")
    else:
        assert together(tmp_path / "a", then, **STEADY) == [0] * then, nursery.said(tmp_path / "a")
    assert "going on in stage" in (tmp_path / "a" / "run" / "log.txt").read_text()
    agree(alone, tmp_path / "a")


@long
def test_t8_a_signal_to_one_worker_stops_all_at_one_step(alone, tmp_path):
    asked = {1: [partial(nursery.signalled, signal.SIGTERM, 14)]}
    assert together(tmp_path / "a", 2, asked, save_every=1000, **STEADY) == [75, 75]
    steps = sorted(int(p.name[5:]) for p in (tmp_path / "a" / "run" / "ckpt").glob("step-*"))
    assert steps and steps[-1] >= 14
    assert together(tmp_path / "a", 2, save_every=1000, **STEADY) == [0, 0]
    agree(alone, tmp_path / "a")


def other_photos() -> None:
    real = nursery.photos

    def photos():
        images, labels = real()
        images[0, 0, 0] += 1
        return images, labels

    nursery.photos = photos


@pytest.mark.full
def test_workers_with_other_photos_are_refused(tmp_path):
    codes = together(tmp_path, 2, {1: [other_photos]}, **STEADY)
    assert codes == [3, 3]
    assert "other photos than rank" in nursery.said(tmp_path)
    assert not (tmp_path / "run").exists()
