"""dlzoo: a Keras 3 model zoo and transfer-learning toolkit.

Importing this package loads no TensorFlow: each public name is fetched on first use.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# TensorFlow leaves oneDNN's kernels off on processors without AVX-512, where they are faster too
# (benchmarks/RESULTS.md); it reads this when it is first imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# public name -> the room it lives in
_PUBLIC = {
    "create_model": "zoo",
    "list_models": "zoo",
    "info": "zoo",
    "load_data": "data",
    "Plan": "transfer.plan",
    "Stage": "transfer.plan",
    "Classifier": "transfer.classifier",
    "ensemble": "training",
    "finetune": "training",
    "Run": "run",
    "load_run": "run",
    "resume": "training",
    "lr_find": "explore",
    "compare": "explore",
    "DlzooError": "errors",
}
_ROOMS = ("zoo", "data", "callbacks", "transfer", "export", "report")
__all__ = [
    "Classifier",
    "DlzooError",
    "Plan",
    "Run",
    "Stage",
    "__version__",
    "callbacks",
    "compare",
    "create_model",
    "data",
    "ensemble",
    "export",
    "finetune",
    "info",
    "list_models",
    "load_data",
    "load_run",
    "lr_find",
    "report",
    "resume",
    "transfer",
    "zoo",
]

if TYPE_CHECKING:  # what the two tables above say, for editors and type checkers
    from . import callbacks, data, export, report, transfer, zoo
    from .data import load_data
    from .errors import DlzooError
    from .explore import compare, lr_find
    from .run import Run, load_run
    from .training import ensemble, finetune, resume
    from .transfer.classifier import Classifier
    from .transfer.plan import Plan, Stage
    from .zoo import create_model, info, list_models


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
