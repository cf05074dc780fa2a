"""First weights from a run of dlzoo's: its model, with the preprocessing it was trained with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import files
from ..errors import ModelError
from .spec import Preprocess, Variant, Weights

JSON, WEIGHTS = "model.json", "model.weights.h5"  # of a saved classifier
RUN = "a run of dlzoo"


def weights_of(directory: Path) -> Path:
    """Return the weights file of a run, or of its `model` folder; raises `model.not-a-run`."""
    for folder in (directory / "model", directory):
        if (folder / JSON).is_file() and (folder / WEIGHTS).is_file():
            return folder / WEIGHTS
    raise not_a_run(directory)


def row_for_run(variant: Variant, file: Path) -> Weights | None:
    """Return the row of a weights file that lies in a run; None for any other file.

    Raises:
        ModelError: `model.weights-mismatch` if it is of another model, `model.hash` if it is not
            the one that was saved.
    """
    about = file.with_name(JSON)
    if file.name != WEIGHTS or not about.is_file():
        return None
    try:
        saved = json.loads(about.read_bytes())
        create, digest = saved["create"], saved["weights_sha256"]
        rule, classes = _preprocess(saved["preprocess"]), int(create["num_classes"])
        name = str(create["name"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            "model.not-a-run", f"not a model of dlzoo's: {error!r:.200}", where=about
        ) from None
    if len(create.get("members", ())) > 1:
        raise ModelError(
            "model.weights-mismatch",
            "an ensemble has the weights of several models",
            where=file,
            fix="give the run of one of its members",
        )
    if name != variant.name:
        raise ModelError(
            "model.weights-mismatch",
            f"the run is of {name}, not of {variant.name}",
            where=file,
            fix=f"--backbone {name}",
        )
    if (found := files.sha256(file)) != digest:
        raise ModelError("model.hash", f"expected sha256 {digest} got {found}", where=file)
    return Weights(
        tag=file.name,
        uri=file.absolute().as_uri(),
        preprocess=replace(rule, bgr=False),  # the kernels were turned
        reader="keras",
        licence="unknown",
        origin=RUN,
        classes=classes,
    )


def _preprocess(saved: dict[str, Any]) -> Preprocess:
    """Return what JSON kept of a Preprocess."""
    return Preprocess(**saved | {"mean": tuple(saved["mean"]), "std": tuple(saved["std"])})


def not_a_run(directory: Path) -> ModelError:
    """Return the error for a folder without a model, naming the run of an exported SavedModel."""
    if not (directory / "saved_model.pb").is_file():
        message = f"there is no {JSON} here, so this is no model of a run"
        return ModelError("model.not-a-run", message, where=directory, fix="give a run directory")
    runs = [up for up in directory.resolve().parents if (up / "model" / JSON).is_file()]
    return ModelError(
        "model.not-a-run",
        "an exported SavedModel answers but cannot be trained further or exported again",
        where=directory,
        fix=f"give {runs[0]}" if runs else "give the run directory it was exported from",
    )
