"""Models and checkpoints of other libraries, by name.

`hf://timm/resnet18.a1_in1k` is a checkpoint on the Hugging Face hub for an architecture we hold.
`keras_hub:resnet_18_imagenet` and `keras_cv:resnet50_imagenet` are backbones of those libraries:
their pyramid outputs are the taps, everything else is as for a model of ours.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any, TypeGuard

from .. import files
from ..errors import ModelError, UsageError, nearest
from .spec import Family, Preprocess, Variant, Weights

FILES = (".pth", ".pt", ".safetensors", ".h5", ".hdf5", ".keras")  # of weights
PRESETS = {"keras_hub": "hub", "keras_cv": "keras-cv"}  # library, and the extra that brings it
_REPO = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?")
# what may be chosen for timm's model and changes no graph, or is seen by the shapes in the file
_ALIKE = ("num_classes", "in_chans", "drop_rate", "drop_path_rate")
_LICENCES = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause",
             "cc-by-nc-4.0": "CC-BY-NC-4.0", "cc-by-4.0": "CC-BY-4.0"}  # fmt: skip


def is_foreign(name: object) -> bool:
    """Say whether a name means a model or checkpoint of another library."""
    return isinstance(name, str) and (name.startswith("hf://") or name.split(":")[0] in PRESETS)


def is_path(weights: object) -> TypeGuard[str | Path]:
    """Say whether what is given as weights is a file or a run, and no checkpoint's name."""
    if isinstance(weights, str):
        return not is_foreign(weights) and ("/" in weights or weights.endswith(FILES))
    return isinstance(weights, Path)


def find(name: str, tag: Any, known: dict[str, Variant]) -> tuple[Variant, Weights | None]:
    """Return what a foreign name, or a foreign tag of a model of ours, means.

    Args:
        name: `hf://...`, `keras_hub:PRESET`, `keras_cv:PRESET`, or a model of ours.
        tag: `hf://...` if `name` is a model of ours; for a preset True takes its weights.
        known: the models of the registry.

    Raises:
        ModelError: `model.package-missing`, `model.offline`, `model.preset`,
            `model.weights-mismatch` when a checkpoint is of another architecture.
    """
    if name.split(":")[0] in PRESETS:
        variant = _preset(name)
        return variant, variant.weights[0] if tag else None
    row, architecture = _hugging_face(name if name.startswith("hf://") else tag)
    same = [v for v in known.values() if v.timm == architecture]
    if name.startswith("hf://"):
        if not same:
            held = [v.timm for v in known.values() if v.timm]
            raise ModelError(
                "model.weights-mismatch",
                f"no model of the zoo is timm's {architecture!r}{nearest(architecture, held)}",
                where=row.uri,
            )
        return same[0], row
    if name not in known:
        raise UsageError("model.unknown", f"no model is called {name!r}{nearest(name, known)}")
    variant = known[name]
    if variant not in same:
        fix = ", ".join(v.name for v in same) or "none of the zoo"
        raise ModelError(
            "model.weights-mismatch",
            f"the checkpoint is of timm's {architecture!r}, and {variant.name} has another graph",
            where=row.uri,
            fix=f"the same graph: {fix}",
        )
    return variant, row


# ---------------------------------------------------------------- Hugging Face


def _hugging_face(uri: str) -> tuple[Weights, str]:
    """Return the row of a timm checkpoint on the hub, and its architecture's name there."""
    found = _REPO.fullmatch(uri)
    if not found:
        raise UsageError("model.uri", f"{uri!r} names no repository", fix="hf://timm/NAME[@COMMIT]")
    repository, revision = found[1], found[2] or "main"
    try:
        return _row(uri, repository, _about(repository, revision))
    except (AttributeError, IndexError, KeyError, TypeError, RecursionError) as odd:
        raise ModelError(
            "model.format",
            f"what the hub says of the repository is not as timm writes it ({odd!r})"[:300],
            where=repository,
            fix="a checkpoint of timm, as in hf://timm/resnet18.a1_in1k",
        ) from odd


def _row(uri: str, repository: str, about: dict[str, Any]) -> tuple[Weights, str]:
    config, rule = about["config"], about["config"]["pretrained_cfg"]
    args = {"global_pool": config.get("global_pool"), **(config.get("model_args") or {})}
    changed = [f"{k}={v!r}" for k, v in args.items() if k not in _ALIKE and v not in (None, "avg")]
    if changed:
        raise ModelError(
            "model.weights-mismatch",
            f"the checkpoint is of a network that was changed by {', '.join(changed)}",
            where=uri,
            fix="a checkpoint of the architecture as it is",
        )
    if (mode := rule.get("crop_mode") or "center") != "center":
        warnings.warn(
            f"timm prepares images for {uri} by crop_mode={mode!r}, which dlzoo does not have: the "
            "centre is cut out, and images that are not square are answered otherwise than by timm",
            stacklevel=2,
        )
    size = rule.get("test_input_size") or rule["input_size"]
    row = Weights(
        tag=uri,
        uri=about["uri"],
        sha256=about["sha256"],
        preprocess=Preprocess(
            tuple(255 * value for value in rule["mean"]),
            tuple(255 * value for value in rule["std"]),
            size=size[-1],
            crop=rule.get("test_crop_pct") or rule.get("crop_pct") or 0.875,
            interpolation=rule.get("interpolation") or "bicubic",
        ),
        reader="timm",
        licence=_LICENCES.get(about["licence"], about["licence"]),
        origin=f"{repository} on the Hugging Face hub, commit {about['commit'][:8]}",
        classes=config.get("num_classes") or rule.get("num_classes", 1000),
    )
    return row, config["architecture"]


def _about(repository: str, revision: str) -> dict[str, Any]:
    """Return what the hub says of a repository, asked once: later runs use the same commit."""
    place = files.home() / "hub" / f"{repository.replace('/', '--')}@{revision}.json"
    try:
        return json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    listing = _json(f"{hub}/api/models/{repository}/revision/{revision}?blobs=true")
    commit, names = listing["sha"], {f["rfilename"]: f for f in listing["siblings"]}
    if "model.safetensors" not in names:
        raise ModelError(
            "model.format", "the repository has no model.safetensors", where=repository
        )
    base = f"{hub}/{repository}/resolve/{commit}"
    config = _json(f"{base}/config.json")
    if not {"architecture", "pretrained_cfg"} <= config.keys():
        raise ModelError(
            "model.format",
            "the repository's config.json is not one of timm",
            where=repository,
            fix="a checkpoint of timm, as in hf://timm/resnet18.a1_in1k",
        )
    tags = [t.removeprefix("license:") for t in listing.get("tags", ()) if t.startswith("license:")]
    about = {
        "commit": commit,
        "uri": f"{base}/model.safetensors",
        "sha256": names["model.safetensors"].get("lfs", {}).get("sha256"),
        "config": config,
        "licence": tags[0] if tags else "unknown",
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(place, about)
    return about


def _json(url: str) -> Any:
    import requests

    from .weights import TIMEOUT, is_offline

    reason = "offline mode is on"
    if not is_offline():
        try:
            answer = requests.get(url, timeout=TIMEOUT)
            answer.raise_for_status()
            return answer.json()
        except (requests.RequestException, ValueError) as problem:
            reason = str(problem)[:300]
    raise ModelError(
        "model.offline",
        f"the hub cannot be asked ({reason})",
        where=url,
        fix="give the file itself: weights='model.safetensors' (--weights PATH), and see that its "
        "preprocessing is meant",
    )


# ---------------------------------------------------------------- KerasHub and KerasCV


def _library(name: str) -> tuple[Any, str]:
    library, _, preset = name.partition(":")
    try:
        return importlib.import_module(library), preset
    except ImportError as missing:
        raise ModelError(
            "model.package-missing",
            f"{name} needs {library}, which cannot be imported: {missing}",
            fix=f"pip install 'dlzoo[{PRESETS[library]}]'",
        ) from missing


def _backbone(name: str, trained: bool) -> Any:
    module, preset = _library(name)
    try:
        return module.models.Backbone.from_preset(preset, load_weights=trained)
    except Exception as problem:  # anything: a name, a network, a file of theirs
        raise ModelError(
            "model.preset",
            f"{name} cannot be had: {type(problem).__name__}: {str(problem)[:300]}",
            fix="its name must be one of the library's presets, or the folder of a saved one",
        ) from problem


def _preset(name: str) -> Variant:
    """Describe a backbone of another library as a variant of a family of its own."""
    from . import graph

    module, preset = _library(name)
    backbone = _backbone(name, trained=False)
    maps = _pyramid(backbone)
    if not maps:
        raise ModelError("model.preset", f"{name} has no pyramid outputs, so no taps")
    rule = _converter(module, preset, backbone)

    def body(x, trained=False):
        made = _backbone(name, trained)  # a new one each time: models share no weights
        return graph.replay(made, _pyramid(made), x)

    return Variant(
        name=name,
        family=Family(name.partition(":")[0], body, paper="", year=0),
        args={},
        params=backbone.count_params(),
        gmacs=sum(map(graph.macs, backbone.layers)) / 1e9 if _fixed(backbone) else 0.0,
        taps={tap: tensor.shape[-1] for tap, tensor in maps.items()},
        size=rule.size,
        weights=(Weights("preset", name, rule, "preset", "unknown", name, classes=0),),
        preprocess=rule,
    )


def _fixed(backbone: Any) -> bool:
    return None not in backbone.inputs[0].shape[1:]


def _pyramid(backbone: Any) -> dict[str, Any]:
    """Return the feature maps `P1`..`P5` as taps; KerasCV gives names of layers for tensors."""
    levels = getattr(backbone, "pyramid_outputs", None) or getattr(
        backbone, "pyramid_level_inputs", {}
    )
    return {
        f"C{level[1:]}": backbone.get_layer(at).output if isinstance(at, str) else at
        for level, at in sorted(levels.items())
    }


def _converter(module: Any, preset: str, backbone: Any) -> Preprocess:
    """Return how the library prepares images for a preset, as the normalisation of a model."""
    if backbone.get_config().get("include_rescaling"):  # the backbone does it itself
        return Preprocess((0.0,) * 3, (1.0,) * 3)
    try:
        converter = module.layers.ImageConverter.from_preset(preset)
    except Exception as problem:  # no such class, no such file, no network
        raise ModelError(
            "model.preset",
            f"{preset} does not say how its images are prepared ({str(problem)[:200]})",
            fix="a preset that was saved with its preprocessor",
        ) from problem
    scale, offset = _three(converter.scale, 1.0), _three(converter.offset, 0.0)
    mean = tuple(-o / s for s, o in zip(scale, offset, strict=True))
    size = converter.image_size[0] if converter.image_size else 224
    return Preprocess(mean, tuple(1 / s for s in scale), size=size, crop=1.0)


def _three(value: Any, default: float) -> tuple[float, ...]:
    if value is None:
        value = default
    return tuple(map(float, value)) if hasattr(value, "__len__") else (float(value),) * 3
