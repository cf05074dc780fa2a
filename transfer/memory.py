"""Letting go of what TensorFlow and its converters keep."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

OWN = 1_000  # frozen objects: Python 3.12 begins with 375 of its own, whoever freezes has more


@contextmanager
def traced_graphs_let_go() -> Iterator[None]:
    """Let go of the graphs that were traced inside, once nothing runs them any more.

    Each time that `ReplicaContext.all_reduce` (called by every optimizer of Keras) or `tf.nn.silu`
    is traced, TensorFlow registers a gradient under a new name, for as long as the process lives;
    its closure holds the whole graph of the training step (memory grows as in keras#17458). The
    name is asked for while a gradient is traced, and never after that.
    """
    registered: dict[str, Any] = {}
    with suppress(ImportError, AttributeError):  # it has no public name
        from tensorflow.python.framework import ops

        registered = ops.gradient_registry._registry
    before = set(registered)
    try:
        yield
    finally:
        for name in registered.keys() - before:
            if name.startswith("CustomGradient-"):
                del registered[name]
        gc.collect()


@contextmanager
def collected_often() -> Iterator[None]:
    """Let garbage that refers to itself go soon: for code that makes few objects, but large ones.

    Python looks for it after 70,000 new objects, and only when they are a quarter of the old ones,
    of which TensorFlow makes half a million. Inside it is after 1,000, and those of before do not
    count.
    """
    if gc.get_freeze_count() > OWN:  # whoever froze objects does not want them looked at again
        yield
        return
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.collect()  # so that Python counts anew
    gc.set_threshold(250, 2, 2)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        gc.collect()
