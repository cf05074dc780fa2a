"""The zoo on a GPU, through Keras' JAX backend: are the answers right, and how fast beside PyTorch?

    export KERAS_BACKEND=jax PYTHONPATH=tests
    python benchmarks/accelerator.py answers [MODEL ...]   # against tests/golden, three precisions
    python benchmarks/accelerator.py speed [MODEL ...]     # beside torchvision's, bfloat16
    python benchmarks/accelerator.py train FOLDER          # photos in folders by class

`answers` prints the largest difference of a logit in standard deviations of the logits: in true
float32, in the float32 that JAX takes by default on GPUs (TF32), and in bfloat16 with float32
variables. `speed` takes models of both libraries with random weights, the batch on the device:
images/s of a forward pass and of a whole training step (SGD with momentum), medians in turn.
`train` trains all layers of the default backbone from its published weights.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np
from dlzoo import zoo
from equality import GOLDEN, to_golden
from rows import SMALLEST

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
PEERS = ["resnet50_v1_5", "efficientnet_b0_tv", "mobilenet_v2_tv", "convnext_tiny", "regnet_y_8gf"]
CLASSES, SIZE, BATCH, ROUNDS, PASSES = 1000, 224, 128, 7, 10  # of `speed`


def answers(names: list[str]) -> None:
    for name in names or sorted(n for n in SMALLEST if (GOLDEN / f"{n}.npz").exists()):
        far = {}
        for label, matmul, policy in (
            ("float32", "highest", "float32"),
            ("TF32", None, "float32"),
            ("bfloat16", None, "mixed_bfloat16"),
        ):
            keras.config.set_dtype_policy(policy)
            with jax.default_matmul_precision(matmul), tempfile.TemporaryDirectory() as folder:
                far[label] = to_golden(name, Path(folder))
        print(name, *(f"{label} {off:.1e}" for label, off in far.items()), flush=True)


def of_jax(name: str) -> dict[str, Callable[[], object]]:
    """Return a forward pass and a training step of a model of the zoo, each waiting for its end."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = zoo.create_model(name, input_shape=SIZE)
    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
    optimizer.build(model.trainable_variables)
    x = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (BATCH, SIZE, SIZE, 3)), "float32")
    y = jnp.arange(BATCH) % CLASSES
    state = {
        "train": [v.value for v in model.trainable_variables],
        "other": [v.value for v in model.non_trainable_variables],
        "steps": [v.value for v in optimizer.variables],
    }

    @jax.jit
    def forward(train, other, x):
        return model.stateless_call(train, other, x, training=False)[0]

    @jax.jit
    def step(train, other, steps, x, y):
        def loss(train):
            logits, moved = model.stateless_call(train, other, x, training=True)
            return LOSS(y, logits), moved

        (value, moved), gradients = jax.value_and_grad(loss, has_aux=True)(train)
        train, steps = optimizer.stateless_apply(steps, gradients, train)
        return {"train": train, "other": moved, "steps": steps}, value

    def once() -> None:
        made, value = step(**state, x=x, y=y)
        state.update(made)
        jax.block_until_ready(value)

    return {
        "forward": lambda: forward(state["train"], state["other"], x).block_until_ready(),
        "step": once,
    }


def of_torch(name: str, compiled: bool) -> dict[str, Callable[[], object]]:
    """Return the same of torchvision's model, in channels_last and autocast."""
    import torch
    import torchvision

    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    theirs = getattr(torchvision.models, zoo.variants()[name].torchvision)()
    theirs = theirs.to(device, memory_format=torch.channels_last)
    x = torch.rand(BATCH, 3, SIZE, SIZE, device=device).to(memory_format=torch.channels_last)
    y = torch.arange(BATCH, device=device) % CLASSES
    optimizer = torch.optim.SGD(theirs.parameters(), 1e-3, momentum=0.9)
    call = torch.compile(theirs) if compiled else theirs

    def forward() -> None:
        theirs.eval()
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            float(call(x).sum())

    def step() -> None:
        theirs.train()
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(call(x), y)
        loss.backward()
        optimizer.step()
        float(loss.detach())

    return {"forward": forward, "step": step}


def speed(names: list[str]) -> None:
    for name in names or PEERS:
        began = time.perf_counter()
        sides = {
            "dlzoo": of_jax(name),
            "torch": of_torch(name, False),
            "torch.compile": of_torch(name, True),
        }
        for part in ("forward", "step"):
            took: dict[str, list[float]] = {side: [] for side in sides}
            for turn in range(ROUNDS + 2):  # the first two compile
                for side, runs in sides.items():
                    start = time.perf_counter()
                    for _ in range(PASSES if turn > 1 else 1):
                        runs[part]()
                    took[side].append((time.perf_counter() - start) / PASSES)
            rate = {side: BATCH / statistics.median(times[2:]) for side, times in took.items()}
            best = max(rate["torch"], rate["torch.compile"])
            print(
                f"{name} {part}: "
                + ", ".join(f"{side} {each:.0f} img/s" for side, each in rate.items())
                + f"; dlzoo / the faster {rate['dlzoo'] / best:.2f}"
                + f" ({time.perf_counter() - began:.0f} s in all)",
                flush=True,
            )


def train(folder: Path) -> None:
    paths = sorted(folder.glob("*/*"))
    labels = sorted({path.parent.name for path in paths})
    order = np.random.default_rng(0).permutation(len(paths))
    size, batch, epochs = 96, 64, 20
    x = np.stack(
        [np.asarray(keras.utils.load_img(paths[i], target_size=(size, size))) for i in order]
    )
    y = np.array([labels.index(paths[i].parent.name) for i in order])
    held = len(x) // 10
    keras.utils.set_random_seed(0)
    for policy in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        model = zoo.create_model(
            "efficientnet_lite0",
            weights=True,
            num_classes=len(labels),
            input_shape=size,
            pool="avg",
        )
        steps = epochs * -(-(len(x) - held) // batch)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, steps, warmup_target=1e-3, warmup_steps=60
        )
        model.compile(keras.optimizers.AdamW(rate), LOSS, metrics=["accuracy"])
        began = time.perf_counter()
        fit = model.fit(x[held:], y[held:], batch_size=batch, epochs=epochs, verbose=0)
        took = time.perf_counter() - began
        right = (model.predict(x[:held], batch_size=batch, verbose=0).argmax(-1) == y[:held]).sum()
        print(
            f"{policy}: {right}/{held} of the held out photos, training loss "
            f"{fit.history['loss'][-1]:.3f}, {took:.0f} s for {epochs} epochs of {len(x) - held}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("answers", "speed", "train"))
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--small", action="store_true", help="batch 4, to see it run on a CPU")
    options = parser.parse_args()
    if options.small:
        BATCH, ROUNDS = 4, 1
    print(
        "python", sys.version.split()[0], "keras", keras.__version__, jax.devices()[0].device_kind
    )
    if options.what == "train":
        train(Path(options.rest[0]))
    else:
        {"answers": answers, "speed": speed}[options.what](options.rest)
