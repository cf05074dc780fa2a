"""What the examples of the course share: options also for a notebook, data, a compiled net."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import console
from .errors import DataError

if TYPE_CHECKING:
    from .data import Data


@dataclass(frozen=True)
class Options:
    """What an example was asked for.

    Attributes:
        out: the folder for its pictures; it exists.
        quick: do just enough to see that it works.
        data: a source for `load_data`.
    """

    out: Path
    quick: bool
    data: str

    def pick(self, whole: Any, quick: Any) -> Any:
        """Return the first value, or in a quick run the second."""
        return quick if self.quick else whole

    def load(self, **settings: Any) -> Data:
        """Load the data; where flowers or Fashion-MNIST cannot be had, digits take their place."""
        from .data import load_data

        try:
            return load_data(self.data, **settings)
        except DataError as error:
            if error.id != "data.offline":
                raise
            console.say(f"{self.data} is not on this machine: the digits take its place")
            return load_data("digits", **settings)

    def show(self, name: str) -> None:
        """Show a picture of the folder in a notebook; elsewhere say where it is."""
        if _in_notebook():
            from IPython.display import Image, display

            display(Image(str(self.out / name)))
        else:
            console.out(str(self.out / name))


def options(data: str = "digits", arguments: list[str] | None = None) -> Options:
    """Return the options `--out DIR`, `--quick` and `--data SOURCE` of the command line.

    In a notebook there is no command line: all have their defaults.

    Args:
        data: used if nothing else is asked for. arguments: default those of the process.
    """
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("lessons"), help="folder of the pictures")
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    parser.add_argument("--data", default=data, help="digits, fashion-mnist, flowers, DIR, ...")
    if arguments is None and _in_notebook():
        arguments = []
    found = parser.parse_args(arguments)
    found.out.mkdir(parents=True, exist_ok=True)
    console.setup()
    return Options(found.out, found.quick, found.data)


def compiled(
    model: Any, optimizer: str = "adam", lr: float = 1e-3, task: str = "multiclass"
) -> Any:
    """Return a classifier that is ready for `fit`: cross-entropy of its logits, and accuracy.

    Args:
        model: gives logits, one for each class.
        optimizer: `sgd`, `momentum`, `nesterov`, `adam` or `adamw`. lr: its learning rate.
        task: `multiclass`, `binary` (one logit) or `multilabel`.
    """
    from .transfer.losses import make_loss
    from .transfer.optim import compile_model, make_optimizer

    compile_model(model, make_optimizer(optimizer, lr), make_loss(task), task)
    return model


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules
