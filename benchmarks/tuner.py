"""Measure how long an iterator of tf.data takes to be let go, with TensorFlow's tuner and without.

    python benchmarks/tuner.py [--seconds 3] [--times 8]

The tuner of a dataset sleeps 10 ms, then 20, 40 and so on, up to a minute, between two looks.
When the iterator is let go, it is woken before it can see that all is over: where other threads
have the cores, it may go to sleep again, and the iterator waits for it. A pass over a dataset that
does next to nothing, with one thread beside it that multiplies matrices.
"""

import argparse
import threading
import time

import numpy as np
import tensorflow as tf

STEP = 0.05  # seconds


def let_go(seconds: float, tuned: bool) -> float:
    """Return the seconds between the last element of a pass and the end of its iterator."""
    dataset = tf.data.Dataset.range(round(seconds / STEP))
    dataset = dataset.map(lambda i: i + 1, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = tuned
    last = 0.0
    for _ in dataset.with_options(options):
        time.sleep(STEP)
        last = time.perf_counter()
    return time.perf_counter() - last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of a pass")
    parser.add_argument("--times", type=int, default=8)
    options = parser.parse_args()
    over = threading.Event()

    def work() -> None:
        matrix = np.ones((1000, 1000))
        while not over.is_set():
            matrix @ matrix

    threading.Thread(target=work, daemon=True).start()
    for tuned in (True, False) * 2:
        found = [let_go(options.seconds, tuned) for _ in range(options.times)]
        told = ", ".join(f"{seconds:.2f}" for seconds in found)
        print(f"{'with' if tuned else 'without'} the tuner, after {options.seconds} s: {told} s")
    over.set()


if __name__ == "__main__":
    main()
