"""What the formats share: options, the description that travels with a file, the last layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import parity

if TYPE_CHECKING:
    import keras

    from ..data import Data
    from ..transfer.classifier import Classifier

INSIDE = "dlzoo.json"  # the description, where a format has room for a file
_TOLERANCE = {None: 1e-3, "fp16": 1e-2, "int8": None}


@dataclass(frozen=True)
class Options:
    """How an artefact is made and judged.

    Attributes:
        quantize: None, `fp16` (weights) or `int8` (weights and activations).
        batch: images a call takes; None: any number.
        tolerance: largest difference of a probability that is accepted; None: 1e-3, with fp16
            1e-2, with int8 any, since its accuracy is measured.
        max_drop: percentage points of validation accuracy that int8 may lose.
        allow_flex: whether LiteRT files may need TensorFlow's operations (the Flex delegate).
        data: the photos of int8: its ranges come from the training split, its accuracy from
            the validation split.
    """

    quantize: str | None = None
    batch: int | None = None
    tolerance: float | None = None
    max_drop: float = 1.5
    allow_flex: bool = False
    data: Data | None = None

    @property
    def limit(self) -> float | None:
        return _TOLERANCE[self.quantize] if self.tolerance is None else self.tolerance


@dataclass(frozen=True)
class Format:
    """One format: its functions, and what is told of it.

    Attributes:
        stem, suffix: of the file's name.
        write: `write(classifier, path, about, options)` makes the artefact; `about` is a
            description as `describe` returns it, to be put inside.
        answers: `answers(path, options)` opens it and returns the ways of asking it.
        snippet: a Python program that uses it, see `snippets`.
        measure: `measure(path, classifier, options)` returns further figures, with `passed`.
        needs: packages besides TensorFlow's, named as on PyPI. extra: of dlzoo, with them.
        quantize: the kinds of quantization it can.
        takes: what its input is. any_size: whether images of any size are taken.
    """

    stem: str
    suffix: str
    write: Callable[[Classifier, Path, dict[str, Any], Options], None]
    answers: Callable[[Path, Options], dict[str, parity.Answer]]
    snippet: str
    measure: Callable[[Path, Classifier, Options], dict[str, Any]] | None = None
    needs: tuple[str, ...] = ()
    extra: str = ""
    quantize: tuple[str, ...] = ()
    takes: str = "RGB images, values 0..255"
    any_size: bool = False

    def fitting(self, options: Options) -> Options:
        """Return the options that this format can follow."""
        return options if options.quantize in self.quantize else replace(options, quantize=None)

    def file_name(self, options: Options) -> str:
        """Return such as `model.onnx`, `model-int8.tflite` or `model-batch8.onnx`."""
        parts = [self.stem, options.quantize, options.batch and f"batch{options.batch}"]
        return "-".join(part for part in parts if part) + self.suffix


def describe(classifier: Classifier, name: str, kind: Format, options: Options) -> dict[str, Any]:
    """Return what an artefact tells of itself, JSON-able and alike for all formats."""
    from ..transfer.classifier import versions

    side = None if kind.any_size else classifier.preprocess.size
    rule = asdict(classifier.preprocess)  # its mean and deviation are inside the model
    return {
        "schema": 1,
        "format": name,
        "quantize": options.quantize,
        "task": classifier.task,
        "classes": list(classifier.classes),
        "size": classifier.preprocess.size,
        "preprocess": {key: rule[key] for key in ("size", "crop", "interpolation")},
        "input": {
            "values": f"{kind.takes}; the model normalises them itself",
            "shape": [options.batch, side, side, 3],
            "dtype": "uint8" if options.quantize == "int8" else "float32",
        },
        "output": {
            "values": "probabilities, in the order of classes",
            "shape": [options.batch, len(classifier.classes)],
            "dtype": "float32",
        },
        "origin": classifier.origin,
        "versions": versions() | {package: metadata.version(package) for package in kind.needs},
    }


def answering(classifier: Classifier) -> keras.Model:
    """Return the model with its last step: `(n, size, size, 3)` to probabilities `(n, classes)`.

    Only built-in layers, and the layers of the classifier themselves, not copies.
    """
    import keras
    import numpy as np

    model, name = classifier.model, "probabilities"
    logits = model.outputs[0]
    layers = keras.layers
    if classifier.task == "multiclass":
        last = layers.Softmax(dtype="float32", name=name)
    elif classifier.task == "multilabel":
        last = layers.Activation("sigmoid", dtype="float32", name=name)
    else:  # sigmoid(-z) and sigmoid(z), as Classifier.probabilities gives them
        last = layers.Dense(2, "sigmoid", use_bias=False, dtype="float32", name=name)
        last.build(logits.shape)
        last.set_weights([np.array([[-1.0, 1.0]], "float32")])
        last.trainable = False
    return keras.Model(model.inputs[0], last(logits), name=model.name)
