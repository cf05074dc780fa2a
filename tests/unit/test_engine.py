"""The fast frozen pass: it answers as Keras does, or Keras answers."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo import create_model
from dlzoo.transfer import engine
from dlzoo.transfer.distribute import in_float32
from dlzoo.transfer.memory import collected_often
from dlzoo.zoo import graph

SIZE = 32


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return create_model("resnet18", num_classes=3, input_shape=SIZE, pool="avg")


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    """Engines of CPUs are tried, also where there is a GPU."""
    monkeypatch.setattr(engine, "on_gpu", lambda: False)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0, 255, (5, SIZE, SIZE, 3)).astype("float32")


def test_several_outputs_come_in_their_order(model, images):
    places = ("features", "C5", "C2", "C4")
    outputs = [graph.cut(model, place)[0].output for place in places]
    network = keras.Model(model.input, outputs)
    run = engine.frozen(network, batch=4)
    found = run(images)
    assert run.name == "litert"
    for value, expected in zip(found, network(images, training=False), strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-4)


@pytest.mark.parametrize("n", [1, 4, 5])
def test_any_number_of_images(model, images, n):
    (found,) = engine.frozen(model, batch=4, work=0)(images[:n])
    np.testing.assert_allclose(found, model(images[:n], training=False), atol=1e-4)


def test_its_time_on_a_batch_is_measured_also_where_there_is_no_choice(model, images, monkeypatch):
    monkeypatch.setattr(engine, "on_gpu", lambda: True)
    run = engine.frozen(model, batch=4)
    assert run.seconds == {}
    assert run.measure(images[:3])["keras"] > 0 and run.name == "keras"
    assert run.measure(images) == run.seconds  # and no second time


def test_nothing_is_rounded_inside_and_all_is_as_before_after_it():
    rounding = tf.config.experimental.tensor_float_32_execution_enabled
    before = rounding()
    for on in (True, False):
        tf.config.experimental.enable_tensor_float_32_execution(on)
        with in_float32():
            assert not rounding()
        assert rounding() == on
    tf.config.experimental.enable_tensor_float_32_execution(before)


@pytest.mark.parametrize("wrong", [0.0, np.nan])
def test_an_engine_that_answers_wrongly_is_not_used(model, images, monkeypatch, wrong):
    monkeypatch.setattr(
        engine, "_litert", lambda forward: lambda x: [np.full((len(x), 3), wrong, "float32")]
    )
    run = engine.frozen(model)
    with pytest.warns(UserWarning, match="differs from Keras"):
        (found,) = run(images)
    assert run.name == "keras"
    np.testing.assert_allclose(found, model(images, training=False), atol=1e-4)


def test_an_engine_that_cannot_be_made_is_done_without(model, images, monkeypatch):
    def fail(forward):
        raise RuntimeError("no such operation\n" + "%1 = its whole graph\n" * 999)

    monkeypatch.setattr(engine, "_litert", fail)
    with pytest.warns(UserWarning, match="no such operation$"):
        run = engine.frozen(model)
    np.testing.assert_allclose(run(images)[0], model(images, training=False), atol=1e-4)


def test_large_garbage_that_refers_to_itself_goes_soon():
    """As the copies that tf2onnx makes of a graph: 17 GB for a network of 250 MB were seen."""

    class Graph:
        pass

    def most() -> int:
        graphs, largest = [], 0
        for _ in range(20):
            graph = Graph()
            graph.itself, graph.nodes = graph, [[] for _ in range(10_000)]
            graphs.append(weakref.ref(graph))
            largest = max(largest, sum(found() is not None for found in graphs))
        return largest

    frozen = gc.get_freeze_count()
    with collected_often():
        assert most() <= 3
    assert gc.get_freeze_count() == frozen and gc.get_threshold()[0] > 250
