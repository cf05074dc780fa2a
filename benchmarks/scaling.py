"""What a step costs one process, two replicas and two workers, and what more would bring.

    python benchmarks/scaling.py [MODEL] [--size 96] [--batch 32]   # measures on this machine
    python benchmarks/scaling.py --paper                            # the model of docs/SCALING.md

Measured one after the other in one run, medians of whole training steps (all layers, Adam, a batch
of noise that is there already):

- `one process`: a batch on two threads;
- `two replicas`: halves of it on two logical devices of one process, each may use both threads;
- `two workers`: halves of it in two processes, each on a processor of its own;
- `two alone`: such processes at the same time that do not speak to each other: what is left of the
  workers' step is communication and waiting for each other;
- `all-reduce`: the gradients alone, summed over the two workers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from dlzoo.launch import free_addresses

ROUNDS, WARM = 15, 3
KINDS = {"one process": 1, "two replicas": 1, "two workers": 2, "two alone": 2}  # processes


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="efficientnet_lite0")
    parser.add_argument("--size", type=int, default=96, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=32, help="images of a step, over all")
    parser.add_argument("--paper", action="store_true", help="only the model on paper")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    return parser.parse_args()


# -- measured


def child(asked: argparse.Namespace) -> dict[str, float]:
    """Return seconds of a step, and of an all-reduce of its gradients where there is one."""
    import tensorflow as tf

    if asked.child == "two replicas":
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, halves)
    import numpy as np
    from dlzoo import create_model
    from dlzoo.callbacks.resume import build_metrics
    from dlzoo.transfer.distribute import prepare
    from dlzoo.transfer.losses import make_loss, make_metrics
    from dlzoo.transfer.optim import make_optimizer
    from dlzoo.transfer.replicas import replicated, spread

    kind = {"two replicas": "mirrored", "two workers": "multiworker"}.get(asked.child, "none")
    machine = prepare(strategy=kind)
    batch = asked.batch // 2 if asked.child == "two alone" else asked.batch
    x = np.random.default_rng(0).uniform(0, 255, (batch, asked.size, asked.size, 3)).astype("f4")
    y = np.eye(5, dtype="f4")[np.arange(batch) % 5]
    ones = np.ones(batch, "f4")
    with machine.strategy.scope():
        model = create_model(asked.model, num_classes=5, pool="avg", input_shape=asked.size)
        several = machine.replicas > 1
        if several:
            model = replicated(model)
        metrics = {"weighted_metrics" if several else "metrics": make_metrics("multiclass")}
        optimizer = make_optimizer("adam", 1e-5)
        optimizer.build(model.trainable_variables)
        model.compile(optimizer, make_loss("multiclass"), jit_compile=False, **metrics)
        build_metrics(model, y[:1], y[:1], ones[:1])
        if several:

            def of_part(part):
                rows, real = part.cut(np.arange(batch), batch)
                data = (x[rows], y[rows], ones[rows], real, np.float32(batch))
                return tf.data.Dataset.from_tensors(data)

            feed = iter(spread(machine.strategy, of_part))
        else:
            feed = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
        model.make_train_function()
        took = timed(lambda: model.train_function(feed))
    found = {"step": took, "bytes": 4.0 * sum(np.prod(v.shape) for v in model.trainable_weights)}
    if machine.workers.count > 1:
        found["all-reduce"] = all_reduce(machine.strategy, model.trainable_weights)
    return found


def all_reduce(strategy, variables) -> float:
    """Return the seconds in which as many numbers as the gradients have are summed."""
    import tensorflow as tf

    def each():
        context = tf.distribute.get_replica_context()
        return context.all_reduce("sum", [tf.ones(v.shape) * 1.0 for v in variables])

    @tf.function(autograph=False)
    def once():
        return strategy.experimental_local_results(strategy.run(each)[-1])[0]

    return timed(once)


def timed(step) -> float:
    """Return the median seconds of a step."""
    import tensorflow as tf

    took = []
    for _ in range(WARM + ROUNDS):
        began = time.perf_counter()
        tf.nest.map_structure(lambda each: each.numpy(), step())
        took.append(time.perf_counter() - began)
    return statistics.median(took[WARM:])


def start(asked: argparse.Namespace, kind: str, rank: int, addresses: list[str]):
    """Start a process, with the processors and the neighbours that its kind has."""
    env = dict(os.environ) | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    env.pop("TF_CONFIG", None)
    if kind == "two workers":
        task = {"type": "worker", "index": rank}
        env["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
    command = [sys.executable, __file__, asked.model, "--child", kind]
    command += ["--size", str(asked.size), "--batch", str(asked.batch)]
    here = sorted(os.sched_getaffinity(0))[:2]
    own = {here[rank]} if KINDS[kind] == 2 else set(here)
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, own),
    )  # fmt: skip


def measure(asked: argparse.Namespace) -> None:
    found = {}
    for kind, processes in KINDS.items():
        addresses = free_addresses(processes)
        running = [start(asked, kind, rank, addresses) for rank in range(processes)]
        said = [process.communicate()[0] for process in running]
        if any(process.returncode for process in running):
            raise SystemExit(f"{kind}: a process failed")
        values = [json.loads(text.splitlines()[-1]) for text in said]
        found[kind] = {key: max(v[key] for v in values) for key in values[0]}
    one = found["one process"]["step"]
    print(f"{asked.model} {asked.size} px, batch {asked.batch}, all layers, Adam:")
    for kind, values in found.items():
        step = values["step"]
        print(f"  {kind:13} {step * 1e3:7.1f} ms a step, {one / step:.2f} of one process' speed")
    workers, alone = found["two workers"], found["two alone"]["step"]
    talk, sent, took = workers["step"] - alone, workers["bytes"], workers["all-reduce"]
    print(
        f"  of the workers' step {talk * 1e3:.1f} ms ({talk / workers['step']:.0%}) is "
        f"communication and waiting; the all-reduce alone, {sent / 1e6:.1f} MB, takes "
        f"{took * 1e3:.1f} ms ({sent / took / 1e9:.2f} GB/s)"
    )


# -- on paper

# name: images a second that one data-centre GPU trains in mixed precision, parameters that train.
# The first is an assumption: 60 TFLOP/s for dense convolutions, a tenth of that for depthwise ones,
# which wait for memory. Put in what you measured.
NETS = {
    "efficientnet_lite0, all": (2500, 3.4e6),
    "resnet50, all": (2400, 23.5e6),
    "resnet50, C5 and head": (2400, 15.0e6),
    "vgg16, all": (650, 14.7e6),
}
# name: replicas, bytes/s that a link carries, s that a message takes
CLUSTERS = {
    "8 GPUs, NVLink": (8, 300e9, 5e-6),
    "8 GPUs, PCIe 4": (8, 20e9, 10e-6),
    "64 workers, 100 Gbit/s": (64, 11e9, 20e-6),
    "64 workers, 10 Gbit/s": (64, 1.1e9, 50e-6),
}
PER_REPLICA = 32  # images
BUCKET = 32e6  # bytes that one collective takes, as tf.distribute packs them


def step_on_paper(
    rate: float, parameters: float, replicas: int, link: float, wait: float
) -> tuple[float, float]:
    """Return seconds of computing and of communication of a step.

    A ring sends 2 (k - 1) / k of the bytes over each link, in 2 (k - 1) messages a bucket.
    """
    sent, hops = 4 * parameters, 2 * (replicas - 1)
    buckets = -(-sent // BUCKET)
    return PER_REPLICA / rate, hops / replicas * sent / link + hops * wait * buckets


def paper() -> None:
    print(f"{PER_REPLICA} images a replica; computing and communication do not overlap:")
    for net, (rate, parameters) in NETS.items():
        for cluster, (replicas, link, wait) in CLUSTERS.items():
            compute, talk = step_on_paper(rate, parameters, replicas, link, wait)
            even = PER_REPLICA * talk / compute  # images a replica at which half the time is talk
            print(
                f"  {net:23} {cluster:23} {4 * parameters / 1e6:5.1f} MB, "
                f"computing {compute * 1e3:5.1f} ms, communication {talk * 1e3:6.1f} ms: "
                f"{replicas * compute / (compute + talk):4.1f} times one; half is lost below "
                f"{even:.0f} images a replica"
            )


def main() -> None:
    asked = arguments()
    if asked.child:
        print(json.dumps(child(asked)))
    elif asked.paper:
        paper()
    else:
        measure(asked)


if __name__ == "__main__":
    main()
