"""Plans: presets, what the user puts over them, and their way through TOML."""

import tomllib
from dataclasses import replace

import pytest
import tomli_w
from dlzoo.errors import UsageError
from dlzoo.transfer.plan import (
    HEAD,
    HEAD_BY_STEPS,
    NO_NORM,
    PRESETS,
    SCALE,
    TOP,
    Plan,
    Stage,
    image_size,
    make_plan,
    parse_stages,
)
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("name", PRESETS)
def test_a_plan_survives_toml(name):
    plan = make_plan(name, overrides={"taps": ["C5"], "l2": 1e-4})
    again = Plan.from_dict(tomllib.loads(tomli_w.dumps(plan.to_dict())))
    assert again == plan


def test_presets_unfreeze_more_and_more():
    depth = {"head": 0, "C5": 1, "all": 2}
    for name in PRESETS:
        order = [depth[stage.unfreeze] for stage in make_plan(name, overrides={}).stages]
        assert order == sorted(order) and order[0] == 0


def test_auto_is_left_to_the_preset_and_the_rest_is_put_over_it():
    preset = make_plan("balanced", overrides={})
    plan = make_plan("balanced", overrides={"lr": "auto", "batch": 7, "dropout": 0.0, "decay": 0.5})
    assert plan.dropout == 0.0
    for old, new in zip(preset.stages, plan.stages, strict=True):
        assert (new.lr, new.batch, new.decay) == (old.lr, 7, 0.5)


def test_a_learning_rate_is_for_stages_that_take_steps():
    """A head that is solved has none; it must not be made worse by one that is meant for C5."""
    head, top = make_plan("balanced", overrides={"lr": 1e-4, "optimizer": "sgd"}).stages
    assert head == make_plan("balanced", overrides={}).stages[0]
    assert (top.lr, top.optimizer) == (1e-4, "sgd")
    (head,) = make_plan("fast", overrides={"lr": 1e-4}).stages
    assert head.lr == 1e-4 and head.optimizer != "lbfgs" and head.epochs > 10
    for stages in ("head:3", "head:3,C5:2"):  # these are epochs of steps
        head, *_ = make_plan("balanced", stages=stages, overrides={"lr": 1e-4}).stages
        assert (head.lr, head.epochs) == (1e-4, 3) and head.optimizer != "lbfgs"


@pytest.mark.parametrize("setting", ["mixup", "cutmix", "ema", "dropout"])
def test_what_a_head_that_is_solved_would_not_notice_is_taken_by_steps(setting):
    (head,) = make_plan("fast", overrides={setting: 0.2}).stages
    assert head.optimizer != "lbfgs" and head.epochs == HEAD_BY_STEPS.epochs
    head, top = make_plan("balanced", overrides={setting: 0.2}).stages
    assert head == HEAD and top == TOP  # of stages that take steps it is theirs
    for nothing in (0.0, "auto"):
        assert make_plan("fast", overrides={setting: nothing}).stages == (HEAD,)
    plan = make_plan("fast", overrides={}).to_dict()  # as a file, which has every setting
    again = make_plan("fast", stages=plan["stages"], overrides={setting: 0.2})
    assert again.stages == (HEAD,)


def test_a_head_that_cannot_be_solved_is_planned_by_steps():
    """So that what is told of the plan is what is done."""
    reasons = [{"l1": 1e-4}, {"l2": 1e-4}, {"temperature": 2.0}, {}]
    for overrides in reasons:
        told = {"overrides": overrides, "cache": bool(overrides)}
        head, top = make_plan("balanced", **told).stages
        assert head == HEAD_BY_STEPS and top == TOP
        (head,) = make_plan("fast", **told, epochs=1).stages
        assert head == replace(HEAD_BY_STEPS, epochs=1)
        assert [s.epochs for s in make_plan("balanced", **told, epochs=3).stages] == [1, 2]
        assert [s.epochs for s in make_plan("fast", **told, stages="head:1,C5").stages] == [1, 5]
        assert make_plan("fast", **told, stages="head,C5:1").stages[0].epochs == 60
    assert make_plan("fast", overrides={"l2": 0.0, "lr": "auto"}).stages == (HEAD,)
    (head,) = make_plan("fast", stages="head:1", overrides={"lr": 1e-3}).stages
    assert (head.epochs, head.lr) == (1, 1e-3)


def test_pain_44_networks_without_batchnorm_are_fine_tuned_more_slowly():
    plain, careful = (make_plan("best", norm=norm, overrides={}) for norm in (True, False))
    assert careful.stages[0].lr == plain.stages[0].lr
    assert all(c.lr < p.lr / 5 for c, p in zip(careful.stages[1:], plain.stages[1:], strict=True))


def test_a_network_without_weights_is_trained_whole():
    (stage,) = make_plan("fast", pretrained=False, overrides={}).stages
    assert stage.unfreeze == "all"


def test_stages_are_read_from_text():
    stages = parse_stages("head:3, C4:5,all", make_plan("balanced", overrides={}).stages)
    assert [(s.unfreeze, s.epochs) for s in stages[:2]] == [("head", 3), ("C4", 5)]
    assert stages[2].unfreeze == "all" and stages[2].epochs > 0


@pytest.mark.parametrize("text", ["", "head:x", "head:3,,C5:2", "head:0"])
def test_unreadable_stages_are_refused(text):
    with pytest.raises(UsageError, match=r"plan\.stages"):
        parse_stages(text, ())


def test_stages_are_read_from_tables():
    plan = make_plan("fast", stages=[{"name": "a", "unfreeze": "C5", "epochs": 2}], overrides={})
    assert plan.stages == (Stage("a", "C5", epochs=2),)
    with pytest.raises(UsageError, match=r"plan\.unknown.*epoch_count"):
        make_plan("fast", stages=[{"name": "a", "epoch_count": 2}], overrides={})


def test_two_stages_of_one_name_are_refused():
    with pytest.raises(UsageError, match="stage-twice"):
        make_plan("fast", stages="head:1,head:2", overrides={})


@given(st.integers(3, 400), st.sampled_from(PRESETS))
def test_epochs_are_shared_out_whole(epochs, name):
    stages = make_plan(name, epochs=epochs, overrides={}).stages
    assert sum(stage.epochs for stage in stages) == epochs
    assert all(stage.epochs >= 1 for stage in stages)


def test_fewer_epochs_than_stages_are_refused():
    with pytest.raises(UsageError, match=r"plan\.epochs"):
        make_plan("best", epochs=1, overrides={})


@given(st.integers(1, 4000), st.integers(32, 80))
def test_image_size_is_never_below_the_minimum_nor_above_the_checkpoint(side, smallest):
    size = image_size(224, 0, side, smallest)
    assert smallest <= size <= 224


def test_small_images_are_not_blown_up_to_the_full_size():
    assert image_size(224, 0, 8, 32) == 96
    assert image_size(224, 0, 100, 32) == 160
    assert image_size(224, 0, 240, 32) == 224
    assert image_size(224, 0, 240, 32, SCALE["best"]) == 288
    assert image_size(224, 0, 100, 32, SCALE["best"]) == 160


def test_networks_without_batchnorm_go_slower_in_every_deep_stage():
    """Also in stages that the preset does not have; what is said in full stays as it is."""
    with_norm = make_plan("fast", stages="head,C5,all", overrides={})
    without = make_plan("fast", stages="head,C5,all", norm=False, overrides={})
    ratios = [b.lr / a.lr for a, b in zip(with_norm.stages, without.stages, strict=True)]
    assert ratios == pytest.approx([1, NO_NORM, NO_NORM])
    table = [{"name": "x", "unfreeze": "all", "lr": 0.5}]
    assert make_plan("fast", stages=table, norm=False, overrides={}).stages[0].lr == 0.5
    assert make_plan("best", norm=False, overrides={"lr": 0.2}).stages[1].lr == 0.2
    assert image_size(224, 288, 240, 32) == 288
    assert image_size(28, 0, 200, 16) == 28


def test_a_plan_is_fitted_to_a_network_without_a_map_of_stride_32():
    plan = make_plan("balanced", overrides={})
    assert plan.fitted(["C1", "C2", "C3", "C4", "C5"]) == plan
    fitted = plan.fitted(["C1", "C2", "C3", "C4"])  # SqueezeNet
    assert fitted.taps == ("C3", "C4")
    assert [stage.unfreeze for stage in fitted.stages] == ["head", "C4"]
    assert plan.fitted([]) == plan


def test_few_images_are_seen_in_more_epochs():
    """As many steps as with thousands of images; neither the head nor a large data set changes."""
    plan = make_plan("balanced", overrides={})
    epochs = {n: [s.epochs for s in plan.for_images(n).stages] for n in (20, 1650, 2933, 90000)}
    assert epochs == {20: [1, 30], 1650: [1, 9], 2933: [1, 5], 90000: [1, 5]}
    assert plan.for_images(20).stages[1].patience == 30
    impatient = make_plan("balanced", overrides={"patience": 2}).for_images(20, {"patience"})
    assert impatient.stages[1].patience == 2


def test_few_images_are_seen_in_more_views():
    """At most 2,000 images more than there are; where many views are asked for, they stay."""
    plan = make_plan("fast", overrides={})
    found = {n: plan.for_images(n) for n in (1, 80, 600, 2000, 2001, 90000)}
    views = {n: few.stages[0].views for n, few in found.items()}
    assert views == {1: 6, 80: 6, 600: 4, 2000: 2, 2001: 1, 90000: 1}
    assert {n: few.augment for n, few in found.items() if n > 600} == {
        2000: "light", 2001: "none", 90000: "none"
    }  # fmt: skip
    as_they_are = plan.for_images(80, {"augment"})
    assert (as_they_are.stages[0].views, as_they_are.augment) == (1, "none")
    assert plan.for_images(600).halved().stages[0].views == 2
    balanced = make_plan("balanced", overrides={})
    views = {n: [s.views for s in balanced.for_images(n).stages] for n in (80, 600, 1000, 2933)}
    assert views == {80: [6, 6], 600: [4, 4], 1000: [3, 4], 2933: [1, 4]}


def test_of_very_few_images_a_moving_average_is_kept():
    plan = make_plan("balanced", overrides={})
    assert {n: plan.for_images(n).ema for n in (80, 480, 481, 2933)} == {
        80: 0.97, 480: 0.97, 481: 0, 2933: 0
    }  # fmt: skip
    assert plan.for_images(80, {"ema"}).ema == 0
    assert make_plan("fast", overrides={}).for_images(80).ema == 0


def test_who_asks_for_augmented_images_gets_views_of_them():
    """Also of many images; what tables say in full stays."""
    plan = make_plan("fast", overrides={"augment": "strong"})
    assert [plan.for_images(n).stages[0].views for n in (80, 90000)] == [6, 4]
    assert plan.for_images(80).augment == plan.for_images(90000).augment == "strong"
    table = [{"name": "head", "unfreeze": "head", "optimizer": "lbfgs"}]
    assert make_plan("fast", stages=table, overrides={"augment": "strong"}).stages[0].views == 1
    plain = make_plan("fast", overrides={"augment": "none"})
    assert plain.stages[0].views == 1


def test_batches_grow_with_replicas_but_leave_an_epoch_twenty_steps():
    plan = make_plan("balanced", overrides={})

    def top(replicas, images, rates=True):
        stage = plan.scaled(replicas, images, rates).stages[1]
        return stage.batch // 32, stage.lr / plan.stages[1].lr

    assert top(1, 10**6) == (1, 1) and top(8, 10**6) == (8, 8**0.5)
    assert top(8, 4 * 20 * 32) == (4, 2) and top(8, 100) == (1, 1)
    assert top(8, 10**6, rates=False) == (8, 1)


def test_a_head_takes_c3_only_where_it_trains_alone():
    taps = {s: make_plan("fast", stages=s, overrides={}).taps for s in ("auto", "head", "head,C5")}
    assert taps == {"auto": ("C3", "C4", "C5"), "head": ("C3", "C4", "C5"), "head,C5": ("C4", "C5")}
