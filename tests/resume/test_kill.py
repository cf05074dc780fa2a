"""Killed at any moment and started again, a run comes to the same to the last bit.

The children are real processes and die of a real SIGKILL (see `nursery`). T0 to T8 are the
numbers of docs/RELIABILITY.md. The few tests that are not marked `long` are in `make test`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from functools import partial
from pathlib import Path

import nursery
import pytest

# What frozen layers compute is computed once for all, but where that is what is killed.
HOME = Path(os.environ["DLZOO_HOME"]) / "children"
STEPS = 30  # 3 stages of 2 epochs of 5 steps
BRIEF = {"stages": "C4:2"}  # where it does not matter in which stage a checkpoint was written
long = pytest.mark.long


def run(out, *prepare, **settings):
    return nursery.run(out, *prepare, **{"home": HOME} | settings)


def until_done(out, *deaths, **settings):
    """Start a run again and again, dying as told; the last time it ends by itself."""
    for death in deaths:
        code = run(out, death, **settings)
        assert code == -signal.SIGKILL, nursery.said(out)
    assert run(out, **settings) == 0, nursery.said(out)
    return nursery.result(out)


def line(out, start):
    """Return the last line that was printed and begins so."""
    return [x for x in nursery.said(out).splitlines() if x.startswith(start)][-1]


def tidy(out):
    """Check that nothing is left over of what was interrupted."""
    rest = [p.name for p in (out / "run").rglob("*") if ".part" in p.name or "ckpt" in p.name]
    assert not rest


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """Give a run that was killed after some checkpoints."""
    out = tmp_path_factory.mktemp("cut")
    assert run(out, partial(nursery.at_step, 19)) == -signal.SIGKILL
    assert len(list((out / "run" / "ckpt").glob("step-*"))) == 2
    return out


@pytest.fixture(scope="module")
def brief(tmp_path_factory):
    """Give what a short run came to that nobody disturbed."""
    return until_done(tmp_path_factory.mktemp("brief"), **BRIEF)


@pytest.fixture(scope="module")
def brief_cut(tmp_path_factory):
    """Give a short run that was killed after two checkpoints, of steps 3 and 6."""
    out = tmp_path_factory.mktemp("brief_cut")
    assert run(out, partial(nursery.at_step, 8), **BRIEF) == -signal.SIGKILL
    return out


def copy(cut, tmp_path):
    shutil.copytree(cut, out := tmp_path / "out", symlinks=True)
    return out, sorted((out / "run" / "ckpt").glob("step-*"))


@long
def test_t0_control(whole, tmp_path):
    assert until_done(tmp_path, home=tmp_path / "home") == whole
    tidy(tmp_path)


FORGET = ["slots", "sums", "seeds", "norm", "weights", "cursor", "WarmupCosine", "BestModel",
          "History"]  # fmt: skip


@long
@pytest.mark.parametrize("what", FORGET)
def test_t1_whatever_is_left_out_is_noticed(whole, cut, tmp_path, what):
    """Step 19 is in the middle of an epoch in which everything trains; so is 16, the last saved.

    The best model is of the epoch before step 26, the last one saved before 28.
    """
    if what == "BestModel":
        out = tmp_path
        assert run(out, partial(nursery.at_step, 28)) == -signal.SIGKILL
    else:
        out, _ = copy(cut, tmp_path)
    run(out, partial(nursery.forget, what))
    assert nursery.result(out) != whole


POINTS = {
    "first step": partial(nursery.at_step, 1),
    "in an epoch": partial(nursery.at_step, 8),
    "last step of an epoch": partial(nursery.at_step, 15),
    "first step of a stage": partial(nursery.at_step, 21),
    "last step of all": partial(nursery.at_step, STEPS),
    "in validation": partial(nursery.in_validation, 4),
    "after validation": partial(nursery.after_epoch, 3),
    "before a stage": partial(nursery.before_stage, 2),
    "before the last stage": partial(nursery.before_stage, 3),
    "in the cache, first batch": partial(nursery.in_cache, "add", 1),
    "in the cache, writing": partial(nursery.in_cache, "close", 2),
    "saving the model": partial(nursery.in_finish, "save"),
    "model saved": partial(nursery.in_finish, "save", after=True),
    "measuring": partial(nursery.in_finish, "metrics", 2),
    "writing predictions": partial(nursery.in_finish, "predictions"),
    "drawing": partial(nursery.in_finish, "plots"),
    "not yet called finished": partial(nursery.in_finish, "finished"),
    "called finished": partial(nursery.in_finish, "finished", after=True),
}  # fmt: skip
SHORT = {"in an epoch"}


@pytest.mark.parametrize(
    "point", [pytest.param(p, marks=[] if p in SHORT else [long]) for p in POINTS]
)
def test_fault_29_t2_killed(whole, tmp_path, point, seen):
    home = tmp_path / "home" if "cache" in point else HOME
    assert until_done(tmp_path, POINTS[point], quiet=False, home=home) == whole
    if point == "in an epoch":
        seen(line(tmp_path, "going on"))


@long
def test_fault_29_t2_killed_where_layers_are_frozen_again(tmp_path):
    """What an earlier stage trained is computed once for a later one, by its trained weights."""
    results = []
    for name, deaths in (("whole", ()), ("cut", (18, 6))):
        dying = (partial(nursery.at_step, step) for step in deaths)
        results.append(until_done(tmp_path / name, *dying, stages="all:2,C4:2,head:2"))
    assert results[0] == results[1]


@long
def test_fault_29_t2_killed_and_what_was_computed_of_the_photos_cleared(tmp_path):
    """What frozen layers gave is computed again, and answers do not tell whether it is there."""
    settings = {"backbone": "steady", "stages": "all:1,C4:2,head:2"}
    whole = until_done(tmp_path / "whole", home=tmp_path / "home", **settings)
    out, home = tmp_path / "cut", tmp_path / "cleared"
    for point in ("before the last stage", "saving the model"):
        assert run(out, POINTS[point], home=home, **settings) == -signal.SIGKILL, nursery.said(out)
        shutil.rmtree(home)
    assert until_done(out, home=home, **settings) == whole


@long
@pytest.mark.parametrize("operation", range(1, 13))
def test_fault_30_t2_killed_between_the_writes_of_a_checkpoint(brief, tmp_path, operation):
    assert until_done(tmp_path, partial(nursery.in_save, 3, operation), **BRIEF) == brief
    tidy(tmp_path)


@long
def test_fault_29_t2_killed_in_export(whole, tmp_path):
    point = partial(nursery.in_finish, "export")
    assert until_done(tmp_path, point, export=["keras"]) == whole
    assert list((tmp_path / "run" / "export").glob("*.keras"))


@long
@pytest.mark.parametrize("seed", range(20))
def test_fault_29_t2b_storm(whole, tmp_path, seed):
    """Killed every few steps until it is done; never more than a few checkpoints lie about."""
    rng = random.Random(seed)
    for _ in range(STEPS):
        code = run(tmp_path, partial(nursery.at_step, rng.randint(2, 30)))
        left = list((tmp_path / "run" / "ckpt").glob("step-*"))
        assert len(left) <= 3
        if code == 0:
            break
        assert code == -signal.SIGKILL, nursery.said(tmp_path)
    assert nursery.result(tmp_path) == whole
    tidy(tmp_path)


@long
@pytest.mark.parametrize("every", [1, 7, 100])
def test_t4_how_often_it_is_saved_changes_nothing(whole, tmp_path, every):
    settings = {"save_every": every}
    assert until_done(tmp_path, partial(nursery.at_step, 13), **settings) == whole


@long
@pytest.mark.parametrize("calls", [1, 8])
def test_t4_nor_does_how_many_images_are_made_at_once(whole, tmp_path, calls):
    assert run(tmp_path, partial(nursery.parallel_calls, calls), home=tmp_path / "home") == 0
    assert nursery.result(tmp_path) == whole


def damage(path, how):
    content = path.read_bytes()
    path.unlink()  # a file of two checkpoints is one
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


TORN = [("model.npz", "flipped"), ("state.json", "truncated"), ("manifest.json", "truncated")]
TORN += [
    (f"{name}.npz", how)
    for name in ("model", "still", "optimizer", "metrics", "BestModel")
    for how in ("truncated", "gone")
]


@long
@pytest.mark.parametrize(("file", "how"), TORN)
def test_fault_31_t5_a_torn_file_costs_one_checkpoint(brief, brief_cut, tmp_path, file, how, seen):
    out, (_, newest) = copy(brief_cut, tmp_path)
    damage(newest / file, how)
    assert until_done(out, **BRIEF) == brief
    told = (out / "run" / "log.txt").read_text().splitlines()
    seen(next(x for x in told if x.startswith("resume.fallback step 3: ")))


@long
def test_fault_31_t5_with_no_whole_checkpoint_nothing_is_touched(brief_cut, tmp_path, seen):
    out, found = copy(brief_cut, tmp_path)
    for path in found:
        damage(path / "model.npz", "truncated")
    before = sorted(p for path in found for p in path.iterdir())
    assert run(out, **BRIEF) == 7
    seen(line(out, "error[resume.no-valid-checkpoint]: "), 7)
    assert sorted(p for path in found for p in path.iterdir()) == before


@long
def test_fault_32_t6_a_full_disk_keeps_the_last_good_checkpoint(whole, tmp_path, seen):
    assert run(tmp_path, partial(nursery.small_files, 4096)) == 5
    seen(line(tmp_path, "error[resume.disk]: need "), 5)
    assert not list((tmp_path / "run" / "ckpt").glob(".*"))
    assert until_done(tmp_path) == whole


@long
def test_fault_25_t6_memory_runs_out_in_a_run_that_was_killed(tmp_path):
    """The stage begins again with half of the batch, as in the run that nobody disturbed, also
    where checkpoints of the whole batch are there.
    """
    stages = [
        {"name": name, "unfreeze": name, "epochs": 2, "batch": 16, "lr": 0.02}
        for name in ("C4", "all")
    ]
    settings = {"stages": stages, "batch": "auto", "save_every": 2, "quiet": False}
    lacking = partial(nursery.out_of_memory, 9, 8)  # in the second epoch of the second stage
    results = []
    for name, deaths in (("whole", ()), ("cut", (9, 4, 7))):
        for step in deaths:  # before it runs out, and with the half batch before it is saved
            dying = lacking, partial(nursery.at_step, step)
            assert run(tmp_path / name, *dying, **settings) == -signal.SIGKILL
        assert run(tmp_path / name, lacking, **settings) == 0, nursery.said(tmp_path / name)
        line(tmp_path / name, "out of memory with a batch of 16: two of 8 make a step")
        results.append(nursery.result(tmp_path / name))
    assert results[0] == results[1]


SIGNALS = [("SIGTERM", 1), ("SIGINT", 1), ("SIGINT", 2), ("SIGHUP", 1)]


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "times", "step"),
    [
        pytest.param(name, times, step, marks=[] if (name, step) == ("SIGTERM", 14) else [long])
        for name, times in SIGNALS
        for step in (4, 14, 26)  # one in each stage
    ],
)
def test_fault_28_t7_a_signal_saves_and_says_how_to_go_on(whole, tmp_path, seen, name, times, step):
    asked = partial(nursery.signalled, getattr(signal, name), step, times)
    assert run(tmp_path, asked, save_every=100) == 75, nursery.said(tmp_path)
    seen(line(tmp_path, "error[train.interrupted]: "), 75)
    saved = sorted(int(p.name[5:]) for p in (tmp_path / "run" / "ckpt").glob("step-*"))
    if times == 1:
        assert saved[-1] in (step, step + 1)  # the step that was under way is finished
    else:  # it left at once
        assert not saved or saved[-1] < step
    assert until_done(tmp_path, save_every=100) == whole


@long
def test_fault_28_t7_a_signal_in_validation_loses_no_step(whole, tmp_path):
    asked = partial(nursery.term_in_validation, 4)
    assert run(tmp_path, asked, save_every=100) == 75
    assert (tmp_path / "run" / "ckpt" / "step-00000010").is_dir()
    assert until_done(tmp_path, save_every=100) == whole


@long
def test_t8_pain_34_two_replicas_go_on_as_well(tmp_path):
    """On two devices sums are added in an order of their own: equal to a tolerance."""
    settings = {"strategy": "mirrored", "stages": "all:3"}
    results = []
    for out, deaths in ((tmp_path / "a", ()), (tmp_path / "b", (8, 5))):
        for step in deaths:
            dying = [nursery.two_replicas, partial(nursery.at_step, step)]
            assert run(out, *dying, **settings) == -signal.SIGKILL, nursery.said(out)
        assert run(out, nursery.two_replicas, **settings) == 0, nursery.said(out)
        results.append(nursery.figures(out))
    whole, resumed = results
    assert len(whole) == len(resumed) == 3
    for one, other in zip(whole, resumed, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
