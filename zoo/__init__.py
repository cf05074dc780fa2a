"""The model zoo: builders of the classic CNNs, their checkpoints and what is known of them.

`create_model("vgg16", num_classes=5)` and `zoo.vgg16(num_classes=5)` are the same. Listing and
looking up models loads no TensorFlow; building one does.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from . import families  # noqa: F401
from .registry import list_models, resolve, variants

if TYPE_CHECKING:
    from .build import create_model

__all__ = ["create_model", "info", "list_models", "resolve", "variants"]


def info(name: str) -> dict[str, Any]:
    """Return what is known of a model as plain values, without building it.

    Returns:
        name, family, paper, year, params, gmacs, size and min_size in pixels, in_chans,
        num_classes, `taps` with the channels of each, what keras.applications, torchvision and
        timm call it, and `weights`: one dict a checkpoint with tag, licence, origin, top1, top5,
        uri, hashes and preprocessing.

    Raises:
        UsageError: `model.unknown`.
    """
    from dataclasses import asdict

    variant, _ = resolve(name)
    fields = ("params", "gmacs", "size", "min_size", "in_chans", "num_classes")
    others = ("keras", "torchvision", "timm")
    return {
        "name": variant.name,
        "family": variant.family.name,
        "paper": variant.family.paper,
        "year": variant.family.year,
        **{field: getattr(variant, field) for field in (*fields, *others)},
        "taps": dict(variant.taps),
        "weights": [asdict(row) for row in variant.weights],
    }


def __getattr__(name: str) -> Any:
    if name == "create_model":
        from .build import create_model

        return create_model
    if name in variants():
        from .build import create_model

        return functools.partial(create_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *variants()]
