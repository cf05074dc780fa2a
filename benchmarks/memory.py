"""Print the memory of a process that trains stage after stage.

    python benchmarks/memory.py FLOWERS [--stages 12]

Sixty photographs, a small EfficientNet, each stage one epoch with another part of it trained; each
compiles and traces anew. Printed: VmRSS after each epoch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from serve import memory
from workers import some

DEPTHS = ("C5", "C4", "C3", "C2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("flowers", type=Path, help="a folder with one folder for each class")
    parser.add_argument("--stages", type=int, default=12)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        photos = some(asked.flowers, 60, base / "photos")
        tables = [
            f'[[stages]]\nname = "s{i}"\nunfreeze = "{DEPTHS[i % 4]}"\nepochs = 1\n'
            for i in range(asked.stages)
        ]
        config = base / "stages.toml"
        config.write_text(f'backbone = "{asked.backbone}"\n' + "".join(tables))
        command = [
            sys.executable, "-m", "dlzoo", "finetune", "--data", photos, "--config", config,
            "--size", "64", "--batch", "16", "--cache", "off", "--no-report",
            "--out", base / "runs",
        ]  # fmt: skip
        done = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert done.stderr
        for line in done.stderr:
            if "1/1" in line:
                now = memory(done.pid, "VmRSS")
                print(f"{now:6.0f} MB  {line.split('loss')[0].strip()}", flush=True)
        sys.exit(done.wait())


if __name__ == "__main__":
    main()
