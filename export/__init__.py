"""Shipping a classifier: one file a format, each checked against the Keras model.

A format is one module here with a `FORMAT` (see `artefact.Format`) and one row in `FORMATS`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..errors import ExportError, UsageError, nearest
from ..transfer.distribute import in_float32
from . import keras_file, onnx_file, parity, savedmodel, tflite
from .artefact import Format, Options, describe
from .parity import Photos

if TYPE_CHECKING:
    from ..transfer.classifier import Classifier

__all__ = ["FORMATS", "Options", "Photos", "check_formats", "export", "file_name"]

FORMATS: dict[str, Format] = {
    "savedmodel": savedmodel.FORMAT,
    "keras": keras_file.FORMAT,
    "tflite": tflite.FORMAT,
    "onnx": onnx_file.FORMAT,
}
PARITY = "parity.json"  # figures by file name, beside the files


def check_formats(formats: Iterable[str], quantize: str | None = None) -> None:
    """Find out whether the formats can be written: before training, not two hours later.

    Raises:
        UsageError: `export.format` for an unknown one, `export.package` with the pip line,
            `export.quantize` if none of them can be quantized like that.
    """
    formats = list(formats)
    for name in formats:
        if name not in FORMATS:
            raise UsageError(
                "export.format",
                f"unknown export format {name!r}{nearest(name, FORMATS)}",
                fix=f"available: {', '.join(FORMATS)}",
            )
        missing = [p for p in FORMATS[name].needs if util.find_spec(p) is None]
        if missing:
            raise UsageError(
                "export.package",
                f"{name} needs packages that are not installed: {', '.join(missing)}",
                fix=f'pip install "dlzoo[{FORMATS[name].extra}]"',
            )
    if quantize and not any(quantize in FORMATS[name].quantize for name in formats):
        able = [name for name, kind in FORMATS.items() if quantize in kind.quantize]
        raise UsageError(
            "export.quantize",
            f"{', '.join(formats) or 'no format'} cannot be quantized to {quantize}",
            fix=f"available: {', '.join(able)}" if able else "available: fp16, int8",
        )


def file_name(format: str, options: Options) -> str:
    """Return what the artefact of a format is called, such as `model-int8.tflite`."""
    kind = FORMATS[format]
    return kind.file_name(kind.fitting(options))


def export(
    classifier: Classifier,
    path: Path | str,
    format: str = "savedmodel",
    *,
    images: Sequence[bytes] | Photos,
    options: Options = Options(),
) -> dict[str, Any]:
    """Write the classifier in one format and check it on real images.

    It appears at `path` as a whole, after it passed. Beside it have landed `<path>.json` (classes,
    size, preprocessing, task, versions; the same is inside the artefact), `use_<format>.py` (a
    program that uses it; one that is there stays) and parity.json (figures of all artefacts
    of the directory). A mixed-precision classifier is rebuilt in float32, and that one is
    compared.

    Args:
        classifier: what is exported.
        path: of the file or directory to write; it must not exist.
        format: one of `FORMATS`.
        images: contents of image files (JPEG, PNG, ...) that both models are asked about.
        options: a format that cannot be quantized stays in float32.

    Returns:
        The figures of `parity.check`, and `format`, `quantize`, `batch`, `bytes` (size) and
        `path`; for int8 also `accuracy` `{"float", "quantized", "drop" (points), ...}`.

    Raises:
        UsageError: as in `check_formats`; `export.exists`, `export.no-images`,
            `export.no-calibration`.
        ExportError: `export.parity` or `export.accuracy`, and what was written is kept as
            `<path>.rejected`; `export.flex`, `export.failed`, `export.custom-object`.
    """
    path = Path(path)
    check_formats([format])
    kind = FORMATS[format]
    chosen = kind.fitting(options)
    if path.exists():
        raise UsageError(
            "export.exists", "there is something already", where=path, fix="remove it, or move it"
        )
    classifier = classifier.float32()
    photos = images if isinstance(images, Photos) else Photos.of(classifier, images)
    about = describe(classifier, format, kind, chosen)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Keras insists on its ending, so what says "not whole yet" comes first.
    temporary = path.with_name(f".{os.getpid()}.part.{path.name}")
    final, refused = path, path.with_name(f"{path.name}.rejected")
    try:
        kind.write(classifier, temporary, about, chosen)
        try:
            with in_float32():
                figures = parity.check(
                    photos, kind.answers(temporary, chosen), classifier.task, chosen.limit
                )
        except ExportError as error:  # it could not even be asked
            _move(temporary, refused)
            raise ExportError(error.id, error.message, where=refused, fix=error.hint) from error
        more = kind.measure(temporary, classifier, chosen) if kind.measure else {}
        passed = figures["passed"] and more.get("passed", True)
        final = path if passed else refused
        figures |= more | {
            "passed": passed,
            "format": format,
            "quantize": chosen.quantize,
            "batch": chosen.batch,
            "bytes": _size(temporary),
            "path": str(final),
        }
        _record(path, final.name, figures)
        if passed:
            files.write_json(path.with_name(f"{path.name}.json"), about)
            program = path.with_name(f"use_{format}.py")
            if not program.exists():  # or the user's changes would be lost
                files.write_text(program, kind.snippet)
        _move(temporary, final)  # last: what is there lacks nothing, whenever this was killed
    finally:
        _remove(temporary)
    if not passed:
        raise parity.rejected(figures, final)
    return figures


def _record(path: Path, final: str, figures: dict[str, Any]) -> None:
    """Put the figures of one artefact among those of its directory."""
    file = path.with_name(PARITY)
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    files.write_json(file, known | {path.name: figures | {"path": final}})


def _size(path: Path) -> int:
    parts = path.rglob("*") if path.is_dir() else [path]
    return sum(part.stat().st_size for part in parts if part.is_file())


def _move(path: Path, target: Path) -> None:
    _remove(target)
    path.rename(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
