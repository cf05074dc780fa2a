"""Which processes a job has, from what starts them: `TF_CONFIG` or Slurm.

Loads no TensorFlow before it knows that there are several.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import UsageError

PORTS = range(20000, 40000)  # one of them by the number of the Slurm job
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Cluster:
    """The processes of a job.

    Attributes:
        addresses: `host:port` of each, by rank. rank: of this one.
        said_by: where that is from: `TF_CONFIG` or `Slurm`.
        beside: index of this process among those of its machine, and how many these are, where
            they have to share the machine's GPUs.
    """

    addresses: tuple[str, ...]
    rank: int
    said_by: str
    beside: tuple[int, int] = (0, 1)

    def resolver(self) -> Any:
        """Return what TensorFlow is told of it."""
        import tensorflow as tf

        return tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": list(self.addresses)}),
            task_type="worker",
            task_id=self.rank,
            rpc_layer="grpc",
        )


def find() -> Cluster | None:
    """Return the processes of this job, or None where it is the only one.

    Raises:
        UsageError: `dist.tf-config`, it does not name the workers and which of them this is;
            `dist.slurm`, ranks and hosts are not in one order, or a number is none.
    """
    env, found = os.environ, None
    if env.get("TF_CONFIG"):
        found = _tf_config(env["TF_CONFIG"], env)
    elif _number(env, "SLURM_STEP_NUM_TASKS", "1") > 1:  # set by srun, not in the batch script
        found = _slurm(env)
    return found if found and len(found.addresses) > 1 else None


def _tf_config(text: str, env: Mapping[str, str]) -> Cluster:
    try:
        said = json.loads(text)
        cluster, task = said["cluster"], said["task"]
        chief = list(cluster.get("chief", []))
        addresses = [*chief, *cluster.get("worker", [])]
        index = int(task["index"])
        rank = {"chief": index, "worker": len(chief) + index}[task["type"]]
        others = sorted(set(cluster) - {"chief", "worker"})
        if others:
            raise ValueError(f"only chief and worker can train, not {', '.join(others)}")
        if not 0 <= rank < len(addresses) or len(chief) > 1:
            raise ValueError(f"task {task['type']} {index} is not in the cluster")
        if not all(isinstance(a, str) and ":" in a for a in addresses):
            raise ValueError("each worker is host:port")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            "dist.tf-config",
            f"TF_CONFIG: {reason}",
            where=text if len(text) < 200 else f"{text[:200]}...",
            fix='{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}; unset it to train in one process',
        ) from None
    return Cluster(tuple(addresses), rank, "TF_CONFIG", _beside(env.get("DLZOO_BESIDE", "")))


def _slurm(env: Mapping[str, str]) -> Cluster:
    """Ask TensorFlow's resolver for the addresses; which GPUs are whose is Slurm's matter."""
    import tensorflow as tf

    rank, most = _number(env, "SLURM_PROCID"), _number(env, "SLURM_STEP_NUM_TASKS")
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        port_base=PORTS[_number(env, "SLURM_JOB_ID", "0") % len(PORTS)],
        gpus_per_node=most,  # it counts ports by GPUs; none is set aside
        gpus_per_task=1,
        auto_set_gpu=False,
    )
    # the resolver sorts hosts as text (n10 before n2), Slurm counts ranks by their numbers
    addresses = sorted(resolver.cluster_spec().as_dict()["worker"], key=_numbers)
    host = addresses[rank].rpartition(":")[0]
    if env.get("SLURMD_NODENAME", host) != host:
        raise UsageError(
            "dist.slurm",
            f"rank {rank} runs on {env['SLURMD_NODENAME']}, not on {host}",
            fix="srun --distribution=block, or set TF_CONFIG",
        )
    alone = "SLURM_GPUS_PER_TASK" in env or "SLURM_STEP_GPUS" in env
    here = sum(a.startswith(f"{host}:") for a in addresses)
    beside = (0, 1) if alone else (_number(env, "SLURM_LOCALID", "0"), here)
    return Cluster(tuple(addresses), rank, "Slurm", beside)


def _number(env: Mapping[str, str], name: str, default: str = "") -> int:
    """Return what Slurm says in a variable, or the default where it is not set."""
    text = env.get(name) or default
    try:
        return int(text)
    except ValueError:
        raise UsageError(
            "dist.slurm",
            f"{name} should be a number, and is {text!r}",
            fix="start the processes with srun, or unset SLURM_STEP_NUM_TASKS for one process",
        ) from None


def _numbers(text: str) -> list[tuple[int, str]]:
    """Return what sorts texts by the numbers in them."""
    return [(int(part or 0), "") if part.isdigit() else (0, part) for part in _DIGITS.split(text)]


def _beside(text: str) -> tuple[int, int]:
    """Return what `dlzoo launch` says of the processes of a machine: `1/2`."""
    index, _, count = text.partition("/")
    return (int(index), int(count)) if index.isdigit() and count.isdigit() else (0, 1)
