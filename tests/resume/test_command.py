"""The command line, interrupted and killed, and going on by the command that its message names."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from photos import coloured


@pytest.mark.long
def test_fault_28_29_37_on_the_command_line(tmp_path):
    """Ctrl-C, exit 75, the command that the message names, SIGKILL, that command again, and then
    there is nothing left to do.
    """
    from PIL import Image

    for i, (x, y) in enumerate(zip(*coloured(60), strict=True)):
        (folder := tmp_path / "photos" / "rgb"[y]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(folder / f"{i}.png")
    command = [sys.executable, "-m", "dlzoo"]
    first = ["finetune", "--data", "photos", "--backbone", "lenet5", "--weights", "none"]
    first += ["--epochs", "400", "--patience", "400", "--lr", "1e-3", "--save-every", "20"]
    first += ["--name", "run", "--fail-under", "0.01", "--no-report"]

    def begin(args, number):
        """Start a command, and send it a signal when it has written some epochs more."""
        table = tmp_path / "runs" / "run" / "metrics.csv"
        seen = table.read_text().count("\n") if table.exists() else 0
        process = subprocess.Popen(
            [*command, *args], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None:
            if table.exists() and table.read_text().count("\n") > seen + 15:
                process.send_signal(number)
                break
            time.sleep(0.05)
        return process.wait(60), process.stderr.read()

    code, said = begin(first, signal.SIGINT)
    assert code == 75, said
    assert "error[train.interrupted]" in said and "go on with: dlzoo resume runs/run" in said
    code, said = begin(["resume", "runs/run"], signal.SIGKILL)
    assert code == -signal.SIGKILL and "going on in stage all, epoch 1" in said
    # it need not be trained to its end: as if early stopping had come
    config = tmp_path / "runs" / "run" / "plan.toml"
    config.write_text(config.read_text().replace("epochs = 400", "epochs = 40"))
    for expected in ("going on in stage all", "nothing to resume"):
        done = subprocess.run(
            [*command, "resume", "runs/run"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0 and expected in done.stderr, done.stderr
        assert done.stdout.strip() == "runs/run"
