"""Compare a frozen pass and a training step with timm's models in PyTorch, on this processor.

    python benchmarks/peers.py [MODEL ...] [--torch PYTHON]

The same architecture, batch and float32 images in memory; random weights. Frozen pass: the whole
network without training, by dlzoo's engine, and by PyTorch in inference mode. Training step: all
layers, SGD with momentum, as `finetune` compiles it. PyTorch in channels_last, eager and through
`torch.compile`; the faster counts. Each side is a process of its own, in turn, three times;
medians. `--torch` names the Python that has torch and timm, if it is not this one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

TIMM = {
    "efficientnet_lite0": "tf_efficientnet_lite0",
    "mobilenet_v2_tv": "mobilenetv2_100",
    "resnet50_v1_5": "resnet50",
    "vgg16": "vgg16",
}
CLASSES, SIZE, BATCH, PASSES, ROUNDS = 5, 224, 32, 3, 3


def rate(run: Callable[[], object]) -> float:
    """Return images/s; the first two calls compile."""
    for _ in range(2):
        run()
    began = time.perf_counter()
    for _ in range(PASSES):
        run()
    return BATCH * PASSES / (time.perf_counter() - began)


def of_dlzoo(name: str) -> dict[str, float]:
    import numpy as np
    from dlzoo import create_model
    from dlzoo.transfer import engine
    from dlzoo.transfer.losses import make_loss
    from dlzoo.transfer.optim import compile_model, make_optimizer

    model = create_model(name, num_classes=CLASSES, input_shape=SIZE)
    x = np.random.default_rng(0).uniform(0, 255, (BATCH, SIZE, SIZE, 3)).astype("float32")
    y = np.eye(CLASSES, dtype="float32")[np.arange(BATCH) % CLASSES]
    frozen = engine.frozen(model, batch=BATCH)
    found = {"frozen": rate(lambda: frozen(x))}
    optimizer = make_optimizer("momentum", 1e-3)
    compile_model(model, optimizer, make_loss("multiclass"), "multiclass")
    return {**found, "step": rate(lambda: model.train_on_batch(x, y))}


def of_torch(name: str, compiled: bool) -> dict[str, float]:
    import timm
    import torch

    model = timm.create_model(TIMM[name], num_classes=CLASSES)
    model = model.to(memory_format=torch.channels_last)
    x = torch.rand(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    y = torch.arange(BATCH) % CLASSES
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    call = torch.compile(model) if compiled else model

    def forward() -> None:
        with torch.inference_mode():
            call(x)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(call(x), y).backward()
        optimizer.step()

    model.eval()
    found = {"frozen": rate(forward)}
    model.train()
    return {**found, "step": rate(step)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(TIMM))
    parser.add_argument("--torch", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        (name,) = asked.models
        made = of_dlzoo(name) if asked.side == "dlzoo" else of_torch(name, "compile" in asked.side)
        print(json.dumps(made))
        return
    for name in asked.models:
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(ROUNDS):
            for side in ("dlzoo", "torch", "torch.compile"):
                python = sys.executable if side == "dlzoo" else asked.torch
                done = subprocess.run(
                    [python, __file__, name, "--side", side],
                    check=side != "torch.compile",  # which wants a compiler
                    stdout=subprocess.PIPE,
                    text=True,
                )
                if done.returncode == 0:
                    found.setdefault(side, []).append(json.loads(done.stdout.splitlines()[-1]))
        for part in ("frozen", "step"):
            speed = {s: statistics.median(each[part] for each in all) for s, all in found.items()}
            best = max(speed[side] for side in speed if side != "dlzoo")
            each = ", ".join(f"{side} {one:.1f}" for side, one in speed.items())
            ratio = speed["dlzoo"] / best
            print(f"{name} {part}: {each} img/s; dlzoo / the faster {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
