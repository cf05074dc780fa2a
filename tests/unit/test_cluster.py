"""Which processes a job has, what each of them computes, and how `dlzoo launch` starts them."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from dlzoo import cli, cluster
from dlzoo.data.pipeline import Part
from dlzoo.errors import INTERRUPTED, UsageError
from dlzoo.launch import launch
from dlzoo.transfer.plan import LBFGS, make_plan
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
HOSTS = ["n1:2222", "n2:2222"]


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in ("TF_CONFIG", "DLZOO_BESIDE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


def config(hosts=HOSTS, kind="worker", index=0, **more):
    return json.dumps(
        {"cluster": {"worker": hosts, **more}, "task": {"type": kind, "index": index}}
    )


def test_without_a_word_there_is_one_process(monkeypatch):
    assert cluster.find() is None
    monkeypatch.setenv("TF_CONFIG", config(["n1:2222"]))
    assert cluster.find() is None


def test_workers_of_tf_config(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config(index=1))
    found = cluster.find()
    assert (found.addresses, found.rank, found.said_by) == (tuple(HOSTS), 1, "TF_CONFIG")
    assert found.beside == (0, 1)
    monkeypatch.setenv("DLZOO_BESIDE", "1/2")
    assert cluster.find().beside == (1, 2)


@pytest.mark.parametrize(("kind", "index", "rank"), [("chief", 0, 0), ("worker", 1, 2)])
def test_a_chief_comes_first(monkeypatch, kind, index, rank):
    monkeypatch.setenv("TF_CONFIG", config(kind=kind, index=index, chief=["n0:1"]))
    found = cluster.find()
    assert found.addresses == ("n0:1", *HOSTS) and found.rank == rank


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting"),
        ("[]", "indices"),
        ('{"cluster": {}}', "it lacks 'task'"),
        (config(index=2), "worker 2 is not in the cluster"),
        (config(index=-1), "worker -1 is not in the cluster"),
        (config(kind="judge"), "it lacks 'judge'"),
        (config(ps=["n3:1"]), "not ps"),
        (config(["n1", "n2"]), "host:port"),
        (config([1, 2]), "host:port"),
        (config(chief=["a:1", "b:1"]), "not in the cluster"),
    ],
)
def test_a_tf_config_that_does_not_say_it_is_refused(monkeypatch, text, why):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match=r"dist\.tf-config") as refused:
        cluster.find()
    assert why in str(refused.value)
    assert "unset it to train in one process" in str(refused.value)


def slurm(monkeypatch, rank, node, nodes="n[2,10]", tasks="2(x2)", count=4, **more):
    values = {
        "SLURM_PROCID": rank, "SLURM_STEP_NUM_TASKS": count, "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NTASKS": count, "SLURM_JOB_ID": 7,
        "SLURMD_NODENAME": node, "SLURM_LOCALID": rank % 2, **more,
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("SLURM_GPUS_PER_TASK", raising=False)
    monkeypatch.delenv("SLURM_STEP_GPUS", raising=False)


def test_workers_of_slurm_are_in_the_order_of_their_ranks(monkeypatch):
    """Slurm counts n2 before n10; sorted as text they would be the other way round."""
    slurm(monkeypatch, 3, "n10")
    found = cluster.find()
    hosts, ports = zip(*(a.split(":") for a in found.addresses), strict=True)
    assert hosts == ("n2", "n2", "n10", "n10")
    assert len(set(found.addresses)) == 4 and all(int(p) in range(20000, 40010) for p in ports)
    assert (found.rank, found.said_by, found.beside) == (3, "Slurm", (1, 2))


def test_where_slurm_hands_out_the_gpus_nothing_is_shared(monkeypatch):
    slurm(monkeypatch, 1, "n2")
    monkeypatch.setenv("SLURM_GPUS_PER_TASK", "1")
    assert cluster.find().beside == (0, 1)


def test_ranks_of_slurm_in_another_order_are_refused(monkeypatch):
    slurm(monkeypatch, 1, "n10")  # cyclic: n2, n10, n2, n10
    with pytest.raises(UsageError, match=r"dist\.slurm.*\n*.*rank 1 runs on n10, not on n2"):
        cluster.find()


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID"])
def test_what_slurm_says_must_be_numbers(monkeypatch, name):
    slurm(monkeypatch, 1, "n2")
    monkeypatch.setenv(name, "two")
    with pytest.raises(UsageError, match=rf"{name} should be a number, and is 'two'"):
        cluster.find()


def test_the_batch_script_of_slurm_is_one_process(monkeypatch):
    slurm(monkeypatch, 0, "n2")
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    assert cluster.find() is None


@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=40, unique=True),
    st.integers(1, 9),
    st.booleans(),
    st.integers(0, 20),
)
def test_every_image_of_a_batch_is_in_one_part(rows, of, same, spare):
    rows, batch = np.array(rows), len(rows) + spare
    cuts = [Part(i, of, same).cut(rows, batch) for i in range(of)]
    seen = [row for mine, real in cuts for row, is_real in zip(mine, real, strict=True) if is_real]
    assert sorted(seen) == sorted(rows)
    for mine, real in cuts:
        assert 1 <= len(mine) == len(real) <= Part(0, of).most(batch)
        assert set(mine) <= set(rows)  # what fills a part up can be read
    if same:
        assert len({len(mine) for mine, _ in cuts}) == 1


@given(st.sampled_from(["fast", "balanced", "best"]), st.integers(1, 600), st.integers(1, 10**6))
def test_more_replicas_take_larger_steps_but_not_fewer_than_they_need(name, replicas, images):
    plan = make_plan(name, overrides={})
    scaled = plan.scaled(replicas, images)
    for old, new in zip(plan.stages, scaled.stages, strict=True):
        factor = new.batch // old.batch
        assert new.batch == factor * old.batch and 1 <= factor <= replicas
        if old.optimizer == LBFGS:
            assert new == old
            continue
        assert factor == 1 or images >= 20 * new.batch
        assert new.lr == pytest.approx(old.lr * factor**0.5)
    kept = plan.scaled(replicas, images, rates=False)
    assert [s.lr for s in kept.stages] == [s.lr for s in plan.stages]


def test_gradient_descent_takes_the_rate_times_the_batch():
    plan = make_plan("balanced", overrides={"optimizer": "momentum", "lr": 0.1, "batch": 32})
    (top,) = [s for s in plan.scaled(8, 10**6).stages if s.optimizer == "momentum"]
    assert top.lr == pytest.approx(0.8)


@pytest.mark.parametrize("command", [[], ["predict", "x"]])
def test_only_what_trains_is_launched(command):
    with pytest.raises(UsageError, match="launch runs finetune or resume"):
        launch(command, 2)


def test_the_first_worker_is_heard_and_what_all_say_alike_is_said_once(capfd):
    assert launch(["finetune", "--help"], 2) == 0
    said = capfd.readouterr()
    assert said.out.count("--backbone") == 1 and not said.err
    assert launch(["finetune", "--preset", "typo"], 2) == 2
    said = capfd.readouterr()
    assert said.err.count("typo") == 1


@pytest.mark.full
def test_what_another_worker_fails_of_is_told(capfd, monkeypatch):
    """On another machine a variable of the environment may be another one."""
    from dlzoo import launch as module

    def otherwise(rank, addresses, real=module._environment):
        return real(rank, addresses) | ({"DLZOO_PRESET": "typo"} if rank else {})

    monkeypatch.setattr(module, "_environment", otherwise)
    code = launch(["finetune", "--data", "/nowhere", "--dry-run"], 2)
    said = capfd.readouterr().err
    assert code == 3 and "data.not-found" in said
    assert "[rank 1]" in said and "ended with exit code 2" in said


def test_the_pods_of_the_recipe_find_each_other(monkeypatch, tmp_path):
    """What docs/recipes/kubernetes.yaml runs gives each pod the TF_CONFIG that dlzoo takes."""
    service, job = yaml.safe_load_all((ROOT / "docs" / "recipes" / "kubernetes.yaml").read_text())
    name, spec = job["metadata"]["name"], job["spec"]
    (pod,) = spec["template"]["spec"]["containers"]
    env = {each["name"]: each["value"] for each in pod["env"]}
    assert spec["completions"] == spec["parallelism"] == int(env["WORKERS"]) == 4
    said = tmp_path / "dlzoo"
    said.write_text('#!/bin/sh\necho "$TF_CONFIG"\necho "$@" >&2\n')
    said.chmod(0o755)
    env |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": "3"}
    done = subprocess.run([*pod["command"], *pod["args"]], env=env, capture_output=True, text=True)
    monkeypatch.setenv("TF_CONFIG", done.stdout)
    found = cluster.find()
    domain = spec["template"]["spec"]["subdomain"]
    port = pod["ports"][0]["containerPort"]
    assert domain == service["metadata"]["name"] and found.rank == 3
    assert found.addresses == tuple(f"{name}-{i}.{domain}:{port}" for i in range(4))
    verb, *options = done.stderr.split()
    assert verb == "finetune"
    cli.finetune.make_context(verb, options)  # there are such options


def test_every_exit_code_of_the_recipe_is_one_of_ours():
    job = list(yaml.safe_load_all((ROOT / "docs" / "recipes" / "kubernetes.yaml").read_text()))[1]
    codes = [r["onExitCodes"]["values"] for r in job["spec"]["podFailurePolicy"]["rules"][::2]]
    assert codes[0] == codes[1] == [INTERRUPTED, 128 + 9, 128 + 15]
