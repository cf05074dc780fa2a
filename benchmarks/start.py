"""Seconds that a command waits for Keras and TensorFlow, beside what importing them takes alone.

    python benchmarks/start.py

A command imports them without scikit-learn and matplotlib (see `guard.UNUSED`). Fresh processes,
in turn; medians of five.
"""

import statistics
import subprocess
import sys

ROUNDS = 5
TIMED = "import time; began = time.perf_counter(); import keras; print(time.perf_counter() - began)"
SIDES = {
    "keras alone": TIMED,
    "in a command": f"from dlzoo import guard; guard.prepare_tensorflow(); {TIMED}",
}


def seconds(code: str) -> float:
    """Return what a fresh process prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    took: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(1 + ROUNDS):  # the first one reads the files
        for side, code in SIDES.items():
            took[side].append(seconds(code))
    medians = {side: statistics.median(each[1:]) for side, each in took.items()}
    for side, each in took.items():
        print(f"{side:12} {medians[side]:.2f} s ({min(each[1:]):.2f}-{max(each[1:]):.2f})")
    alone, command = medians.values()
    print(f"a command waits {alone - command:.2f} s less ({1 - command / alone:.0%})")


if __name__ == "__main__":
    main()
