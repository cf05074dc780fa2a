"""Which epoch should be kept where few photos validate: test accuracy by rule, on photographs.

    python benchmarks/kept.py --data FOLDER --each 20 100 --rotation 0 1 2

`balanced` is trained to its end on few photos of each class, the test accuracy is measured after
every epoch, and `callbacks.BestModel` is asked which epoch it would have kept: by accuracy alone,
and with epochs that are within so many standard errors of the best counted as its equals.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from dlzoo.callbacks import BestModel, best
from dlzoo.config import FinetuneConfig
from dlzoo.job import Job
from dlzoo.transfer.cache import Frozen
from dlzoo.transfer.fit import train
from dlzoo.zoo import graph
from flowers import write_few

ERRORS = (0.5, 1.0, 1.5, 2.0, 3.0)
CUT = "C4"  # below it `balanced` trains nothing


def epochs(table: Path) -> tuple[list[dict[str, float]], int]:
    """Return of each epoch `val_acc`, `val_loss` and `test`; and how many photos validate."""
    job = Job(FinetuneConfig(data=str(table), preset="balanced"), str(table))
    job.find_model()
    job.load_data()
    job.build()
    found = Frozen(job.model, job.data, job.rule).activations([CUT], "test")[CUT]
    top, labels, rows = graph.cut(job.model, CUT)[1], found.labels.argmax(1), []
    epoch_done = BestModel.epoch_done

    def measured(self: BestModel, epoch: int, logs: dict[str, float]) -> None:
        parts = (found[i : i + 250] for i in range(0, len(labels), 250))
        answers = np.concatenate([np.asarray(top(part, training=False)) for part in parts])
        test = float((answers.argmax(1) == labels).mean())
        rows.append({name: float(logs[name]) for name in ("val_acc", "val_loss")} | {"test": test})
        epoch_done(self, epoch, logs)

    with mock.patch.object(BestModel, "epoch_done", measured):
        train(job.model, job.data, job.plan, job.rule, use_cache=True, quiet=True)
    return rows, job.data.splits["val"]


def kept(rows: list[dict[str, float]], images: int, errors: float) -> float:
    """Return the test accuracy of the epoch that is kept under a rule."""
    rule = BestModel(
        monitor="val_acc", images=images, snapshot=lambda: (), restore=lambda weights: None
    )
    with mock.patch.object(best, "CHANCE", errors):
        for row in rows:
            rule.epoch_done(0, row)
    return rows[rule.epoch - 1]["test"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--each", nargs="+", type=int, default=[20, 100])
    parser.add_argument("--rotation", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    for each in options.each:
        found: dict[str, list[float]] = {}
        for rotation in options.rotation:
            with tempfile.TemporaryDirectory() as folder:
                write_few(options.data, table := Path(folder) / "table.csv", rotation, each)
                rows, images = epochs(table)
            print(json.dumps({"each": each, "rotation": rotation, "images": images, "rows": rows}))
            for name, value in (
                ("the head", rows[0]["test"]),
                ("accuracy alone", kept(rows, 0, 0.0)),
                *((f"{z:g} errors", kept(rows, images, z)) for z in ERRORS),
                ("the last", rows[-1]["test"]),
                ("the best on the test", max(row["test"] for row in rows)),
            ):
                found.setdefault(name, []).append(100 * value)
        print(f"{each} of a class, {images} validate:")
        for name, values in found.items():
            each_one = ", ".join(f"{value:.1f}" for value in values)
            print(f"  {name:22s} {np.mean(values):.1f} % ({each_one})", flush=True)


if __name__ == "__main__":
    main()
