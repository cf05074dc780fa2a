"""Training in stages: what moves and what must not, the best model, and going on after a stop."""

import os
import tempfile
import time
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo import create_model, load_data
from dlzoo.data.pipeline import batches
from dlzoo.errors import ResourceError
from dlzoo.transfer import engine, estimate, shelf
from dlzoo.transfer.cache import Frozen
from dlzoo.transfer.fit import _Training, rehearse, train
from dlzoo.transfer.freeze import frozen_part, unfreeze
from dlzoo.transfer.plan import HEAD, HEAD_BY_STEPS, Plan, Stage
from dlzoo.zoo import graph
from photos import coloured

SIZE = 32
QUIET = {"quiet": True}


@pytest.fixture(scope="module")
def data():
    """48 images in three classes that differ in colour: enough to learn from in two epochs."""
    return load_data(coloured(48), val_split=0.25, test_split=0.0)


def build(name="resnet18", seed=0, **options):
    keras.utils.set_random_seed(seed)
    return create_model(name, num_classes=3, input_shape=SIZE, **options)


def rule(model):
    return graph.built(model).preprocess


def values(model):
    return {w.path: np.asarray(w) for w in model.weights}


def paths(layers):
    return {weight.path for layer in layers for weight in layer.weights}


def moved(before, model):
    after = values(model)
    return {path for path in before if not np.array_equal(before[path], after[path])}


def stage(name, unfreeze, epochs=1, **options):
    return Stage(name, unfreeze, epochs=epochs, **{"batch": 16, "lr": 1e-3, **options})


@pytest.mark.parametrize("use_cache", [True, False])
def test_pain_05_06_a_stage_moves_what_it_unfreezes_and_nothing_else(data, use_cache):
    model = build(pool="avg")
    before = values(model)
    train(model, data, Plan((stage("top", "C5"),)), rule(model), use_cache=use_cache, **QUIET)
    groups = graph.groups(model)
    changed = moved(before, model)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    still = paths(norms) | paths(x for tap in ("C1", "C2", "C3", "C4") for x in groups[tap])
    assert not changed & still
    assert changed == paths(groups["C5"] + groups["head"]) - still


@pytest.mark.full
def test_batchnorm_trains_when_asked(data):
    model = build(pool="avg")
    before = values(model)
    train(model, data, Plan((stage("all", "all"),), train_bn=True), rule(model), **QUIET)
    assert any("moving_mean" in path for path in moved(before, model))


def test_unfreezing_a_group_without_weights_takes_the_one_below():
    model = create_model("vgg11", num_classes=3, input_shape=32, pool="avg")
    assert unfreeze(model, "C5") == ["C4", "C5", "head"]
    trained = {layer.name for layer in model.layers if layer.trainable_weights}
    assert trained == {"block5_conv1", "block5_conv2", "logits"}


@pytest.mark.parametrize(
    ("start", "at"), [("head", "features"), ("C5", "C4"), ("C3", "C2"), ("all", None)]
)
def test_the_frozen_part_ends_where_training_begins(start, at):
    model = build(pool="avg", taps=("C4", "C5"))
    unfreeze(model, start)
    split = frozen_part(model)
    assert (split.at if split else None) == at
    if split:
        x = np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3)).astype("float32")
        whole = np.asarray(model(x, training=False))
        np.testing.assert_allclose(split.top(split.bottom(x)), whole, atol=1e-5)
        assert not split.bottom.trainable_weights


@pytest.mark.full
def test_cached_and_live_training_agree(data):
    """With all images in one batch they differ by the rounding of activations alone."""
    options = {"batch": 64, "schedule": "constant", "optimizer": "sgd", "lr": 0.01}
    plan = Plan((stage("top", "C5", epochs=2, **options),), dropout=0.0)
    start = np.asarray(build(pool="avg", dropout=0.0).get_layer("logits").kernel)
    cached, live = start, start
    for use_cache in (True, False):
        model = build(pool="avg", dropout=0.0)
        train(model, data, plan, rule(model), use_cache=use_cache, **QUIET)
        kernel = np.asarray(model.get_layer("logits").kernel)
        cached, live = (kernel, live) if use_cache else (cached, kernel)
    way = np.abs(live - start).max()
    assert way > 0
    assert np.abs(cached - live).max() < 0.01 * way


def test_pain_13_the_best_model_of_all_stages_is_kept(data):
    """A second stage that ruins the model must not be what the user gets (PAINS 13)."""
    model = build(pool="avg")
    plan = Plan(
        (
            stage("head", "head", epochs=6, lr=1e-2),
            stage("ruin", "head", epochs=2, lr=50.0, optimizer="sgd", schedule="constant"),
        )
    )
    outcome = train(model, data, plan, rule(model), **QUIET)
    assert outcome.best["stage"] == "head"
    ruined = [row["val_loss"] for row in outcome.rows if row["stage"] == "ruin"]
    assert min(ruined) > outcome.best["value"]
    ((x, _, _),) = batches(data, "val", rule(model), batch=64)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)(
        data.labels("val"), model(x, training=False)
    )
    assert float(loss) == pytest.approx(outcome.best["value"], rel=2e-2)


def test_pain_18_rows_count_epochs_over_all_stages(data, tmp_path):
    model = build(pool="avg")
    plan = Plan((stage("a", "head", epochs=2), stage("b", "head", epochs=3)))
    outcome = train(model, data, plan, rule(model), folder=tmp_path, **QUIET)
    assert [row["epoch"] for row in outcome.rows] == [1, 2, 3, 4, 5]
    assert [row["stage"] for row in outcome.rows] == ["a", "a", "b", "b", "b"]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 6


def test_it_goes_the_ways_of_a_gpu(data, monkeypatch):
    """Where TensorFlow computes the frozen layers, and the layers above them as they are."""
    monkeypatch.setattr(engine, "on_gpu", lambda: True)
    monkeypatch.setenv("DLZOO_HOME", tempfile.mkdtemp(dir=os.environ["DLZOO_HOME"]))
    said: list[str] = []
    plan = Plan((stage("a", "head", epochs=2), stage("b", "C5", epochs=2)))
    outcome = train(build(pool="avg"), data, plan, rule(build()), say=said.append, **QUIET)
    assert [row["stage"] for row in outcome.rows] == ["a", "a", "b", "b"]
    assert "frozen layers computed once" in said[0]


def test_a_head_is_fitted_to_convergence(data):
    """No step of gradient descent makes the loss on the features any smaller."""
    model = build(pool="avg", dropout=0.2)
    plan = Plan((replace(HEAD, name="only"),))
    lines = []
    outcome = train(model, data, plan, rule(model), log=lines.append, **QUIET)
    assert len(lines) == 1 and " img/s" in lines[0] and " 0.0 img/s" not in lines[0]
    assert [(row["stage"], row["epoch"]) for row in outcome.rows] == [("only", 1)]
    assert outcome.best["value"] == outcome.rows[0]["val_loss"]
    assert outcome.rows[0]["val_acc"] == 1.0
    ((x, y, _),) = batches(data, "val", rule(model), batch=64)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)(y, model(x, training=False))
    assert float(loss) == pytest.approx(outcome.best["value"], rel=2e-2, abs=1e-3)


def test_without_room_for_activations_every_layer_is_computed(data, monkeypatch, tmp_path):
    """A head that was to be solved takes steps then, also when the run goes on."""
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DLZOO_CACHE_LIMIT", "1000")
    model, said = build("squeezenet1_1", pool="avg"), []
    options = {"folder": tmp_path, "save_every": 1, "use_cache": True, "say": said.append} | QUIET

    def stop(line):
        if " 2/2 " in line:
            raise KeyboardInterrupt

    plan = Plan((replace(HEAD, epochs=2),))
    with pytest.raises(KeyboardInterrupt):
        train(model, data, plan, rule(model), log=stop, **options)
    outcome = train(model, data, plan, rule(model), resume=True, **options)
    (facts,) = outcome.stages
    assert (facts["cut"], facts["batch"]) == (None, HEAD_BY_STEPS.batch)
    assert len(outcome.rows) == 2
    assert sum("not enough disk" in line for line in said) == 1
    assert sum("takes up to 2 epochs" in line for line in said) == 2  # begun, and gone on with
    assert any("going on in stage head, epoch 2" in line for line in said)


def test_a_stage_that_freezes_what_was_trained_goes_on_on_it(data, tmp_path):
    """Activations are those of the layers as they were trained, not as a model begins with them."""
    rate = {"lr": 0.05, "epochs": 2, "optimizer": "sgd"}
    plan = Plan((stage("all", "all", **rate), stage("head", "head", **rate)), taps=())
    options = {"use_cache": True, "save_every": 1, "deterministic": True} | QUIET

    def stop(line):
        if "stage head  1/2" in line:
            raise KeyboardInterrupt

    def make():
        return build("lenet5", in_chans=3)

    whole = make()
    rows = train(whole, data, plan, rule(whole), folder=tmp_path / "whole", **options).rows
    with pytest.raises(KeyboardInterrupt):
        train(make(), data, plan, rule(whole), folder=tmp_path, log=stop, **options)
    model = make()
    again = train(model, data, plan, rule(model), folder=tmp_path, resume=True, **options)
    assert not moved(values(whole), model)
    assert [row["val_loss"] for row in again.rows] == [row["val_loss"] for row in rows]
    assert again.before > again.stages[0]["seconds"] > 0  # the time of what was done before counts


def test_a_look_at_later_stages_leaves_the_layers_as_this_one_has_them(monkeypatch):
    """Also which BatchNorm layers the replicas keep alike, in a stage above one of fewer layers."""
    several = SimpleNamespace(num_replicas_in_sync=2)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: several)
    model, first = build(pool="avg"), stage("top", "C5")
    plan = Plan((first, stage("head", "head")), train_bn=True)
    unfreeze(model, first.unfreeze, train_bn=True)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    before = [(norm.trainable, norm.synchronized) for norm in norms]
    job = SimpleNamespace(model=model, plan=plan, ahead=True, _places=None)
    assert _Training.places(job, first) == ["C4", "features"]
    assert [(norm.trainable, norm.synchronized) for norm in norms] == before
    assert (True, True) in before and (False, False) in before


@pytest.mark.full
def test_room_for_the_activations_of_one_stage_is_used(data, monkeypatch, tmp_path):
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))
    model = build("squeezenet1_1", pool="avg")
    sizes = [np.prod(graph.cut(model, place)[0].output.shape[1:]) for place in ("features", "C3")]
    monkeypatch.setenv("DLZOO_CACHE_LIMIT", str(2 * len(data) * min(sizes)))
    plan = Plan((HEAD, stage("top", "C4")))
    outcome = train(model, data, plan, rule(model), use_cache=True, **QUIET)
    assert [facts["cut"] for facts in outcome.stages] == ["features", None]


@pytest.mark.full
def test_plain_and_varied_activations_need_room_for_both(data, monkeypatch, tmp_path):
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))
    model = build("vgg11", pool="avg")
    plan = Plan((stage("head", "head", views=3),), augment="light")
    of_image = 2 * graph.cut(model, "features")[0].output.shape[-1]
    images = data.splits["val"] + 3 * data.splits["train"]
    for spare, cut in ((-1, None), (len(data) * 200, "features")):  # beside numbers and checksums
        monkeypatch.setenv("DLZOO_CACHE_LIMIT", str(images * of_image + spare))
        outcome = train(model, data, plan, rule(model), use_cache=True, **QUIET)
        assert outcome.stages[0]["cut"] == cut


@pytest.mark.full
def test_a_stage_goes_on_on_its_activations_or_not_at_all(data, monkeypatch, tmp_path):
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))
    plan, model = Plan((stage("top", "C4", epochs=2),)), build("squeezenet1_1", pool="avg")
    options = {"folder": tmp_path, "save_every": 1, "use_cache": True} | QUIET

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, data, plan, rule(model), log=stop, **options)
    monkeypatch.setenv("DLZOO_CACHE_LIMIT", "1000")
    kept = shelf.root().rename(tmp_path / "kept")
    with pytest.raises(ResourceError, match=r"resource\.disk.*begun on"):
        train(model, data, plan, rule(model), resume=True, **options)
    kept.rename(shelf.root())  # what is there needs no room
    outcome = train(model, data, plan, rule(model), resume=True, **options)
    assert outcome.stages[0]["cut"] == "C3" and len(outcome.rows) == 2


@pytest.mark.full
def test_a_head_is_fitted_to_every_view(data):
    losses = {}
    for views in (1, 3):
        model = build(pool="avg", dropout=0.2)
        plan = Plan((replace(HEAD, views=views),), augment="strong")
        losses[views] = train(model, data, plan, rule(model), **QUIET).rows[0]["loss"]
    assert losses[1] != losses[3]


@pytest.mark.full
@pytest.mark.parametrize("views", [(3, 3), (2, 3)])
def test_views_of_several_stages_are_computed_together(data, views, monkeypatch):
    """What a later stage wants besides is computed then, and for that stage alone."""
    monkeypatch.setenv("DLZOO_HOME", tempfile.mkdtemp(dir=os.environ["DLZOO_HOME"]))
    n, said = data.splits["train"], []
    head, top = replace(HEAD, views=views[0]), stage("top", "C5", views=views[1], epochs=1)
    model = build(pool="avg")
    train(model, data, Plan((head, top), augment="light"), rule(model), use_cache=True,
          say=said.append, **QUIET)  # fmt: skip
    told = [line for line in said if line.startswith("frozen layers")]
    assert told[0].startswith(f"frozen layers up to features ({views[0]} views): ")
    assert f" {views[0] * n + data.splits['val']:,} images" in told[0]
    lacking = "all from the cache" if views[0] == views[1] else f"{n:,} images"
    assert told[1].startswith(f"frozen layers up to C4 (3 views): {lacking}")


@pytest.mark.full
@pytest.mark.parametrize("use_cache", [True, False])
def test_mixup_trains(data, use_cache):
    model = build(pool="avg")
    plan = Plan((stage("top", "C5"),), mixup=0.3)
    outcome = train(model, data, plan, rule(model), use_cache=use_cache, **QUIET)
    assert np.isfinite(outcome.rows[0]["loss"])


@pytest.mark.full
def test_the_faster_way_is_taken_and_told(data, monkeypatch):
    """Frozen layers are computed once, unless that is estimated to take longer."""
    for speed, way in ((1e9, "cached"), (1e-9, "live")):
        rates = estimate.Rates(keras=1.0, engine=speed)
        monkeypatch.setattr(estimate, "rates", lambda frozen, places, rates=rates: rates)
        monkeypatch.setenv("DLZOO_HOME", tempfile.mkdtemp(dir=os.environ["DLZOO_HOME"]))
        said = []
        model = build(pool="avg")
        plan = Plan((stage("top", "C5", views=2),), augment="light")
        outcome = train(model, data, plan, rule(model), say=said.append, **QUIET)
        assert outcome.stages[0]["cut"] == {"cached": "C4", "live": None}[way]
        assert way in said[0]


def test_longer_plans_are_estimated_to_take_longer(data):
    model = build(pool="avg")
    frozen = Frozen(model, data, rule(model), augment="light")
    rates = estimate.Rates(keras=1.0, engine=2.0)
    plans = [
        Plan((stage("a", "head", epochs=1),)),
        Plan((stage("a", "head", epochs=9),)),
        Plan((stage("a", "head", epochs=9), stage("b", "C5", views=3))),
        Plan((stage("a", "head", epochs=9), stage("b", "C5", views=3), stage("c", "all"))),
    ]
    seconds = [estimate.plan(rates, frozen, plan) for plan in plans]
    assert seconds == sorted(seconds) and len(set(seconds)) == 4
    # one pass computes what a head and the stage after it want
    both, alone = (
        estimate.plan(rates, frozen, Plan((*before, stage("b", "C5", views=3))))
        for before in ([stage("a", "head", views=3)], [])
    )
    of_pass = 3 * data.splits["train"] * graph.gmacs(frozen.bottom("features")) / rates.engine
    assert alone < both < alone + of_pass / 2
    # every epoch computes every layer where nothing is kept
    nothing_kept = [estimate.plan(rates, frozen, plan, use_cache=False) for plan in plans]
    assert nothing_kept[1] - estimate.FIXED > 5 * (seconds[1] - estimate.FIXED)
    assert nothing_kept[-1] > seconds[-1]


@pytest.mark.full
def test_a_head_with_a_penalty_of_the_users_is_trained_by_steps(data):
    model = build(pool="avg")
    plan = Plan((HEAD,), l1=1e-4)
    outcome = train(model, data, plan, rule(model), **QUIET)
    assert len(outcome.rows) > 1


@pytest.mark.full
def test_a_rehearsal_leaves_the_model_as_it_was(data):
    model = build(pool="avg")
    before = values(model)
    stages = rehearse(model, data, Plan((stage("a", "head"), stage("b", "all"))), rule(model))
    assert not moved(before, model)
    assert [s["name"] for s in stages] == ["a", "b"]
    assert all(np.isfinite(s["loss"]) and s["seconds"] > 0 for s in stages)
    assert stages[0]["trainable"] < stages[1]["trainable"]
    assert stages[0]["cut"] == "features"
    (live,) = rehearse(model, data, Plan((stage("a", "head"),)), rule(model), use_cache=False)
    assert live["cut"] is None and live["trainable"] == stages[0]["trainable"]


@pytest.mark.parametrize("slow", [True, False])
def test_images_that_take_longer_than_the_network_are_told_of(data, monkeypatch, slow):
    from dlzoo.data.pipeline import _Images

    get = _Images.get

    def wait(self, record, hold):
        time.sleep(0.05 if slow else 0)
        return get(self, record, hold)

    monkeypatch.setattr(_Images, "get", wait)
    said, model = [], build("lenet5", in_chans=3)
    plan = Plan((stage("all", "all", epochs=2),), taps=())
    outcome = train(model, data, plan, rule(model), use_cache=False, say=said.append, **QUIET)
    (facts,) = outcome.stages
    assert 0 < facts["images_share"] <= 1 and facts["starved"] == slow
    assert any("train.starved" in line for line in said) == slow
