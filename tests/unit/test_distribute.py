"""Where the computing happens, on machines with GPUs that are pretended."""

import random
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from dlzoo.transfer.distribute import prepare, steady

GPUS = [SimpleNamespace(name=f"/physical_device:GPU:{i}", device_type="GPU") for i in (0, 1)]


@pytest.fixture
def machine(monkeypatch):
    """Return a machine with two GPUs: those in use, whether it computes already, and so on."""
    it = SimpleNamespace(used=GPUS, running=False, growth=[], capability=(9, 0))

    def set_visible(gpus, kind):
        if it.running and gpus != it.used:
            raise RuntimeError("Visible devices cannot be modified after being initialized")
        it.used = gpus

    def set_growth(gpu, on):
        if it.running:
            raise RuntimeError("Physical devices cannot be modified after being initialized")
        it.growth.append(gpu)

    def details(gpu):
        return {"compute_capability": it.capability}

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: GPUS)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: it.used)
    monkeypatch.setattr(tf.config, "set_visible_devices", set_visible)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", set_growth)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", details)
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    yield it
    tf.config.experimental.enable_tensor_float_32_execution(before)


@pytest.mark.parametrize(("device", "used"), [("cpu", []), ("gpu:1", GPUS[1:]), ("gpu", GPUS)])
def test_the_chosen_gpus_are_used_and_take_memory_as_it_is_needed(machine, device, used):
    found = prepare(device=device, strategy="none")
    assert machine.used == used == machine.growth
    assert found.device.endswith("GPU" if used else "CPU")


@pytest.mark.parametrize("device", ["auto", "gpu:0"])
def test_a_process_that_has_computed_already_keeps_its_gpus(machine, device):
    """As a notebook that has built a model."""
    machine.used, machine.running = GPUS[:1], True
    assert prepare(device=device, strategy="none").device == "1x GPU"
    assert machine.used == GPUS[:1]


@pytest.mark.parametrize("device", ["cpu", "gpu:1"])
def test_it_cannot_have_others(machine, device, raises):
    machine.used, machine.running = GPUS[:1], True
    with raises("resource.device-set", 5) as caught:
        prepare(device=device, strategy="none")
    assert "GPU:0" in caught.value.message and "restart" in caught.value.hint


@pytest.mark.parametrize(
    ("precision", "capability", "said", "rounding"),
    [
        ("auto", (9, 0), "tf32", True),
        ("auto", (7, 5), "fp32", True),
        ("fp32", (9, 0), "fp32", False),
        ("mixed", (9, 0), "mixed", True),
    ],
)
def test_float32_is_true_float32_where_it_is_asked_for(
    machine, precision, capability, said, rounding
):
    machine.capability = capability
    policy = keras.config.dtype_policy()
    try:
        assert prepare(device="gpu:0", strategy="none", precision=precision).precision == said
    finally:
        keras.config.set_dtype_policy(policy)
    assert tf.config.experimental.tensor_float_32_execution_enabled() == rounding


@pytest.mark.parametrize("seen", [False, True])
def test_a_process_gets_its_settings_back(seen):
    def settings():
        tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
        return keras.config.dtype_policy().name, steady(), tf32, random.random(), np.random.rand()

    drawn, of_numpy = random.getstate(), np.random.get_state()
    before = settings()
    random.setstate(drawn)
    np.random.set_state(of_numpy)
    one = prepare(device="cpu", strategy="none", precision="mixed", seed=3, deterministic=True)
    two = prepare(device="cpu", strategy="none", precision="fp32", seed=4) if seen else None
    if two:  # that of a member, which is left to what trains them all
        assert steady()
    one.leave()
    assert settings() == before
