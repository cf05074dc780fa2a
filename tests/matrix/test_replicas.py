"""Row 14: two replicas (logical CPUs) train as one device does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from dlzoo import zoo
from rows import rows

DEFAULT = "lenet5 shufflenet_v2_x0_5"  # in one process, since it takes seconds to start
OTHERS = [name for name in zoo.list_models() if name not in DEFAULT.split()]


@pytest.mark.full
@pytest.mark.parametrize("names", rows([DEFAULT, *OTHERS], [DEFAULT]))
def test_pain_10_two_replicas_train_as_one_device(names):
    program = Path(__file__).with_name("replicas.py")
    done = subprocess.run([sys.executable, program, *names.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == names.split()
    for name, replicas, far, losses in rows:
        assert replicas == "2"
        assert float(far) < 0.01 and float(losses) < 1e-3, name
