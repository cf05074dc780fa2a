"""Kill runs again and again, and see that they come to the same to the last bit.

    python benchmarks/kill_storm.py [--kills 200] [--seed 0]
    python benchmarks/kill_storm.py --recipes 50 [--seed 0]
    python benchmarks/kill_storm.py --photos FLOWERS [--kills 3] [--save-every auto]

Without photos: the small network of tests/resume, in processes that are killed with SIGKILL at
random moments of wall time, wherever they are then; a checkpoint every 3 steps. With recipes: so
many of `tests/resume/recipes.py`, each another one, of seeds from `--seed` on; one that does not
come to the same is told with all that it printed. With photos: the whole command on real ones,
killed at random times of its training, and once not at all.

Printed, but of recipes: kills, differences (there must be none), training steps that were lost
(done after the newest checkpoint and before the kill), how long a checkpoint stalls the training,
the share of the time that went into checkpoints, and how long a start takes until it trains again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "resume"))

import nursery
import recipes


def count_steps(path: Path) -> None:
    """Write down every training step that is done, in this process, and when the first one was."""
    from dlzoo.callbacks import StopOnDivergence

    real = StopOnDivergence.on_train_batch_end
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def counted(self, batch, logs=None):
        real(self, batch, logs)
        if logs:  # else it was done before
            os.pwrite(file, f"{self.step:8d} {time.time():20.6f}".encode(), 0)

    StopOnDivergence.on_train_batch_end = counted


def newest(run: Path) -> int:
    """Return the step of the newest checkpoint."""
    return max((int(p.name[5:]) for p in (run / "ckpt").glob("step-????????")), default=0)


def storm(kills: int, seed: int) -> dict:
    """Kill small runs at random times until there have been enough kills."""
    rng, base = random.Random(seed), Path(tempfile.mkdtemp(prefix="dlzoo-storm-"))
    assert nursery.run(base / "whole") == 0  # this also starts the server that forks the others
    began = time.perf_counter()
    assert nursery.run(base / "timed") == 0
    alone = time.perf_counter() - began
    whole = nursery.result(base / "whole")
    lost, stalls, done, different, runs = [], [], 0, 0, 0
    while done < kills:
        out, runs = base / f"run{runs}", runs + 1
        while True:
            steps = base / "steps.txt"
            steps.unlink(missing_ok=True)
            child = nursery.start(out, partial(count_steps, steps), **{"save_every": 3})
            child.join(rng.uniform(0.1, alone))
            if child.exitcode is None:
                child.kill()
                child.join()
                done += 1
                ended = not (out / "run" / "ckpt").is_dir()  # nothing more is to be lost
                if not ended and steps.exists() and steps.read_text().strip():
                    lost.append(int(steps.read_text().split()[0]) - newest(out / "run"))
                continue
            if child.exitcode == 0:
                break
            raise SystemExit(nursery.said(out))
        different += nursery.result(out) != whole
        stalls.append(json.loads((out / "run" / "metrics.json").read_text())["checkpoints"])
        shutil.rmtree(out)
        print(f"{done} kills, {runs} runs, {different} different", flush=True)
    shutil.rmtree(base)
    lost = [max(0, n) for n in lost]  # a checkpoint may be newer than what was written down
    return {
        "kills": done,
        "runs": runs,
        "different": different,
        "steps_lost_max": max(lost),
        "steps_lost_mean": round(statistics.mean(lost), 2),
        "checkpoint_ms_median": round(
            1000 * statistics.median(s["seconds"] / max(1, s["written"]) for s in stalls), 1
        ),
        "checkpoint_ms_max": round(1000 * max(s["longest"] for s in stalls), 1),
    }


def varied(count: int, seed: int) -> dict:
    """Compare recipes of so many seeds, each with the run that nobody disturbed."""
    base, kills, refused, different = Path(tempfile.mkdtemp(prefix="dlzoo-recipes-")), 0, [], []
    for each in range(seed, seed + count):
        try:
            found = recipes.compare(base, each)
        except AssertionError as error:
            print(error)
            different.append(each)
            continue
        kills += found["killed"]
        refused += [each] * bool(found["refused"])
        print(f"recipe {each}: {found}", flush=True)
    if not different:  # else it is left to be looked at
        shutil.rmtree(base)
    return {"recipes": count, "kills": kills, "refused": refused, "different": different}


def photos(root: Path, kills: int, seed: int, preset: str, save_every: str) -> dict:
    """Kill `dlzoo finetune` on real photos, and compare with the run that nobody killed."""
    rng, base = random.Random(seed), Path(tempfile.mkdtemp(prefix="dlzoo-photos-"))

    def command(name: str) -> list[str]:
        return [
            *(sys.executable, "-m", "dlzoo", "finetune", "--data", str(root)),
            *("--preset", preset, "--deterministic", "--no-report"),
            *("--out", str(base)),
            *("--name", name, "--resume", "auto", "--save-every", save_every),
        ]

    def environment(name: str) -> dict[str, str]:
        return {**os.environ, "DLZOO_HOME": str(base / f"home-{name}")}

    began = time.perf_counter()
    subprocess.run([*command("whole"), "--quiet"], env=environment("whole"), check=True)
    alone = time.perf_counter() - began
    moments = []
    for _ in range(kills):
        began = time.perf_counter()
        child = subprocess.Popen([*command("killed"), "--quiet"], env=environment("killed"))
        try:
            child.wait(rng.uniform(0.3, 1) * alone / (kills + 1))  # all of them before it ends
            raise SystemExit("it ended before it was killed")
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
        moments.append(
            {"seconds": round(time.perf_counter() - began), "step": newest(base / "killed")}
        )
        print(moments[-1], flush=True)
    began = time.perf_counter()
    last = subprocess.Popen(
        command("killed"), env=environment("killed"), stderr=subprocess.PIPE, text=True
    )
    assert last.stderr
    goes_on, said = None, []  # None: killed where no stage was under way
    for line in last.stderr:
        said.append(line)
        if "going on in stage" in line:
            goes_on = round(time.perf_counter() - began, 1)
    if last.wait():
        raise SystemExit("".join(said))
    took = time.perf_counter() - began
    same = {}
    for name in ("metrics.csv", "predictions_test.csv", "model"):
        same[name] = _content(base / "whole" / name) == _content(base / "killed" / name)
    figures = json.loads((base / "whole" / "metrics.json").read_text())
    shutil.rmtree(base)
    saved = figures["checkpoints"]
    return {
        "kills": moments,
        "same": same,
        "test_accuracy": figures["test"]["accuracy"],
        "seconds_alone": round(alone),
        "seconds_of_the_last_part": round(took),
        "seconds_until_it_goes_on": goes_on,
        "checkpoints": saved,
        "share_of_time_%": round(100 * saved["seconds"] / figures["seconds"], 2),
    }


def _content(path: Path):
    """Return what must be the same of a file or of a model's folder."""
    if path.is_dir():
        return json.loads((path / "model.json").read_text())["variables_sha256"]
    with path.open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--recipes", type=int)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--save-every", default="auto")
    asked = parser.parse_args()
    if asked.photos:
        kills = asked.kills or 3
        found = photos(asked.photos, kills, asked.seed, asked.preset, asked.save_every)
    elif asked.recipes:
        found = varied(asked.recipes, asked.seed)
    else:
        found = storm(asked.kills or 200, asked.seed)
    print(json.dumps(found, indent=2))
