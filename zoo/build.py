"""From a name to a Keras model: the only place with Input, normalisation, head and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ..errors import ModelError, UsageError
from . import checkpoints
from .blocks import L
from .graph import Built, built, layer_of, weighted
from .registry import resolve
from .spec import Preprocess, Variant, Weights
from .weights import locate


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    weights: str | Path | bool | None = None,
    input_shape: int | tuple[int | None, ...] | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    pool: str | None = None,
    taps: Iterable[str] | None = None,
    dropout: float | None = None,
    preprocess: Preprocess | None = None,
    offline: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> keras.Model:
    """Build a model of the zoo: one flat functional model on raw RGB images.

    Args:
        name: `vgg16`, or with a checkpoint `vgg16.tv_in1k`.
        num_classes: of the logits; default as the weights or the paper have it. If it
            differs from the weights', the logits layer starts fresh and all else is loaded.
            0 builds the headless backbone: its last feature map, pooled if `pool` is given.
        weights: None (random), a tag, True (the variant's first checkpoint), or the path of
            a `.pth`, `.safetensors`, `.h5` or `.weights.h5` file.
        input_shape: `size`, `(height, width)` or `(height, width, channels)` in pixels.
        in_chans: image channels. With weights made for RGB, 1 sums the first kernel over its
            channels; other numbers repeat it.
        features_only: return the taps, `{"C1": (batch, h/2, w/2, c), ...}`, not logits.
        pool: None keeps the paper's head; `avg` or `max` replaces it by global pooling.
        taps: with `pool`, the taps whose pooled maps are joined; default the last one.
        dropout: rate before the logits; default the paper's.
        preprocess: overrides the normalisation that comes with the weights.
        offline: open no socket for weights; None asks `DLZOO_OFFLINE`.
        progress: called with (bytes done, bytes in all) during a download.

    Returns:
        A `keras.Model` from float images `(batch, height, width, channels)` in 0..255 to
        float32 logits `(batch, num_classes)`; softmax or sigmoid is left to the caller.

    Raises:
        UsageError: an unknown name, or a size below the variant's minimum (before any
            download). ModelError: weights that cannot be had or do not fit.
    """
    path = _as_path(weights)
    variant, row = resolve(name, None if path else weights)  # type: ignore[arg-type]
    if path:
        row = _row_for_file(variant, row, path)
    shape = _input_shape(variant, row, input_shape, in_chans)
    rule = preprocess or (row.preprocess if row else replace(variant.preprocess, size=variant.size))
    classes = num_classes
    if classes is None:
        classes = row.classes if row else variant.num_classes
    create = {
        "name": variant.name,
        "num_classes": classes,
        "input_shape": list(shape),
        "features_only": features_only,
        "pool": pool,
        "taps": list(taps) if taps else None,
        "dropout": dropout,
    }

    image = keras.Input(shape, name="image")
    x = _normalize(image, rule, shape[2])
    maps = variant.family.body(x, **variant.args)
    made = Built(
        variant.name,
        row.tag if row else None,
        create,
        replace(rule, size=shape[0] or rule.size),
        {tap: layer_of(tensor) for tap, tensor in maps.items()},
    )
    if features_only:
        if not maps:
            raise UsageError("model.no-taps", f"{variant.name} has no feature maps")
        outputs: Any = maps
    else:
        outputs = _head(variant, maps, x, classes, pool, create["taps"], dropout)
    model = keras.Model(image, outputs, name=variant.name)
    model.dlzoo = made
    if row:
        file = path or locate(row, variant.name, offline=offline, progress=progress)
        load(model, variant, row, file)
    return model


def load(model: keras.Model, variant: Variant, row: Weights, file: Path) -> None:
    """Load a checkpoint file into a model, whole or not at all.

    The logits are left as they are if the model has another number of classes. Tensors of
    the file that the model has no place for are allowed only where the model was cut short.

    Raises:
        ModelError: `model.weights-mismatch`, naming the first five misfits.
    """
    layers = weighted(model.layers)
    if _fresh_logits(model, variant, row):
        layers = [layer for layer in layers if layer.name != "logits"]
    find, rule = _finder(variant, row, file, model)
    first = layers[0].name if layers else None
    wanted: list[tuple[keras.layers.Layer, list[np.ndarray]]] = []
    problems = []
    for layer in layers:
        shapes = [tuple(w.shape) for w in layer.weights]
        try:
            arrays = find(layer)
        except KeyError as missing:
            problems.append(f"{layer.name}: {missing.args[0]} is not in the file")
            continue
        if layer.name == first:
            arrays = _fit_channels(arrays, rule, shapes[0])
        found = [a.shape for a in arrays]
        if found == shapes:
            wanted.append((layer, arrays))
        else:
            problems.append(f"{layer.name}: needs {shapes}, the file has {found}")
    if problems:
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ModelError(
            "model.weights-mismatch",
            f"{len(problems)} of {len(layers)} layers of {variant.name} do not fit the file:\n  "
            + "\n  ".join(problems[:5])
            + more,
            where=file,
            fix="check that the file belongs to this model (and its number of classes)",
        )
    for layer, arrays in wanted:
        layer.set_weights(arrays)


def _fresh_logits(model: keras.Model, variant: Variant, row: Weights) -> bool:
    """Say whether the logits have other classes, or other features, than the checkpoint's."""
    if "logits" not in {layer.name for layer in model.layers}:
        return False
    pool, taps = (built(model).create[option] for option in ("pool", "taps"))
    pooled_anew = pool and (variant.family.head or pool != "avg")
    return bool(model.get_layer("logits").units != row.classes or pooled_anew or taps)


def _finder(variant: Variant, row: Weights, file: Path, model: keras.Model):
    """Return `layer -> arrays in Keras' order`, which raises KeyError(what is missing), and
    the preprocessing that the first kernel of the file expects."""
    if row.reader == "torch":
        torch_name = variant.family.torch_name
        if torch_name is None:
            raise ModelError(
                "model.weights-mismatch",
                f"it is not known how a torch file names the layers of {variant.name}",
                where=file,
                fix="give a Keras .h5 file",
            )
        tensors = checkpoints.read_torch(file)
        held = sum(t.size for name, t in tensors.items() if not name.endswith(_BUFFERS))
        _check_size(variant, held, file)
        flattened = _flattened(model)

        def from_torch(layer):
            prefix = torch_name(layer.name, **variant.args)
            return checkpoints.torch_arrays(
                type(layer).__name__, prefix, tensors, flattened=flattened.get(layer.name)
            )

        return from_torch, row.preprocess

    stored = [(name.rsplit("/", 1)[-1], arrays) for name, arrays in checkpoints.read_keras(file)]
    held = sum(a.size for _, arrays in stored for a in (arrays[:2] if len(arrays) == 4 else arrays))
    _check_size(variant, held, file)
    by_name = dict(stored)
    ours = [layer.name for layer in weighted(model.layers)]
    if "logits" in by_name:  # saved from a model of the zoo, whose kernels take RGB already
        return lambda layer: by_name[layer.name], replace(row.preprocess, bgr=False)
    names = {layer: variant.family.keras_name(layer, **variant.args) for layer in ours}
    if not file.name.endswith(".weights.h5"):  # that kind does not keep the order of its layers
        # Keras itself goes by position: its files call some layers otherwise ("probs", "Logits").
        lost = [name for name in names.values() if name not in by_name]
        free = [arrays for name, arrays in stored if name not in names.values()]
        by_name.update(zip(lost, free, strict=False))
    return lambda layer: by_name[names[layer.name]], row.preprocess


_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def _check_size(variant: Variant, held: int, file: Path) -> None:
    """Refuse a file with more parameters than the model: it belongs to a larger one."""
    if held > variant.params:
        raise ModelError(
            "model.weights-mismatch",
            f"the file holds {held:,} parameters, {variant.name} has {variant.params:,}",
            where=file,
            fix="check that the file belongs to this model",
        )


def _flattened(model: keras.Model) -> dict[str, tuple[int, int, int]]:
    """Map the dense layer behind a `flatten` layer to the shape of the map it flattens."""
    names = [layer.name for layer in model.layers]
    if "flatten" not in names:
        return {}
    shape = model.get_layer("flatten").input.shape[1:]
    behind = model.layers[names.index("flatten") + 1 :]
    dense = next(layer for layer in behind if isinstance(layer, keras.layers.Dense))
    return {dense.name: shape} if len(shape) == 3 else {}


def _fit_channels(arrays, rule: Preprocess, shape):
    """Turn a BGR kernel round, and adapt a kernel for RGB to another number of channels."""
    kernel, *rest = arrays
    if kernel.ndim != 4:
        return arrays
    if rule.bgr:
        kernel = kernel[:, :, ::-1]
    channels, wanted = kernel.shape[2], shape[2]
    if channels == 3 and wanted != 3:
        if wanted == 1:
            # The model normalises with the mean of the channels' std: weigh each channel so
            # that a grey image excites the kernel as its three equal channels would.
            scale = np.mean(rule.std) / np.asarray(rule.std, kernel.dtype)
            kernel = (kernel * scale[:, None]).sum(2, keepdims=True)
        else:
            kernel = kernel[:, :, np.arange(wanted) % 3] * (3 / wanted)
    return [np.ascontiguousarray(kernel, dtype="float32"), *rest]


def _normalize(x, rule: Preprocess, channels: int):
    mean, std = np.asarray(rule.mean), np.asarray(rule.std)
    if len(mean) != channels:
        if channels == 1:
            mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
        else:
            mean, std = np.resize(mean, channels), np.resize(std, channels)
    # float32 whatever the policy: 255 * scale + offset would lose two digits in float16.
    return L.Rescaling(
        (1 / std).tolist(), (-mean / std).tolist(), dtype="float32", name="normalize"
    )(x)


def _head(variant: Variant, maps, x, classes, pool, taps, dropout):
    last = list(maps.values())[-1] if maps else x
    rate = variant.family.dropout if dropout is None else dropout
    if pool is None and taps:
        raise UsageError(
            "model.taps", "taps= joins pooled maps, so it needs pool=", fix="pool='avg'"
        )
    papers_own = variant.family.head if pool is None else None
    if papers_own and not (maps and classes == 0):
        if None in x.shape[1:3]:
            raise UsageError(
                "model.size",
                f"the dense layers of {variant.name} need a fixed image size",
                fix=f"input_shape={variant.size}, or pool='avg' instead of these layers",
            )
        out = papers_own(maps or x, rate, **variant.args)
    elif pool is None and classes == 0:
        out = last
    else:
        out = _pooled(variant, maps, pool or "avg", taps)
    if classes == 0:
        return out
    if rate and not papers_own:
        out = L.Dropout(rate, name="dropout")(out)
    return L.Dense(classes, dtype="float32", name="logits")(out)


def _pooled(variant: Variant, maps, pool: str, taps: list[str] | None):
    kinds = {"avg": L.GlobalAveragePooling2D, "max": L.GlobalMaxPooling2D}
    if pool not in kinds:
        raise UsageError("model.pool", f"pool={pool!r} is unknown", fix="avg, max or None")
    unknown = [tap for tap in taps or () if tap not in maps]
    if unknown or not maps:
        raise UsageError(
            "model.taps",
            f"{variant.name} has no tap {', '.join(unknown) or 'to pool'}",
            fix=f"its taps: {', '.join(maps) or 'none'}",
        )
    chosen = list(taps or [list(maps)[-1]])
    pooled = [kinds[pool](name=f"pool_{tap}")(maps[tap]) for tap in chosen]
    return pooled[0] if len(pooled) == 1 else L.Concatenate(name="features")(pooled)


def _input_shape(variant: Variant, row: Weights | None, shape, in_chans) -> tuple:
    size = row.preprocess.size if row else variant.size
    if shape is None:
        shape = (size, size)
    elif isinstance(shape, int):
        shape = (shape, shape)
    channels = in_chans or (shape[2] if len(shape) == 3 else variant.in_chans)
    if in_chans and len(shape) == 3 and shape[2] != in_chans:
        raise UsageError("model.size", f"input_shape says {shape[2]} channels, in_chans {in_chans}")
    short = [side for side in shape[:2] if side is not None and side < variant.min_size]
    if short:
        raise UsageError(
            "model.size",
            f"{variant.name} needs images of at least {variant.min_size} pixels, got {short[0]}",
            fix=f"--size {size}",
        )
    return (*shape[:2], channels)


def _as_path(weights: object) -> Path | None:
    """Take `weights` as a file if it looks like one, and say so if it is not there."""
    if not isinstance(weights, (str, Path)) or not (
        isinstance(weights, Path) or "/" in weights or weights.endswith(_FILES)
    ):
        return None
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ModelError("model.file-missing", "there is no such weights file", where=path)
    return path


_FILES = (".pth", ".pt", ".safetensors", ".h5")


def _row_for_file(variant: Variant, row: Weights | None, path: Path) -> Weights:
    """Take a user's file for a checkpoint of the variant that is stored in the same way."""
    reader = "keras" if path.suffix == ".h5" else "torch"
    same = [w for w in variant.weights if w.reader == reader]
    if row or same:
        return replace(row or same[0], tag=path.name)
    return Weights(
        tag=path.name,
        uri=path.as_uri() if path.is_absolute() else str(path),
        preprocess=replace(variant.preprocess, size=variant.size),
        reader=reader,
        licence="unknown",
        origin="a local file",
        classes=variant.num_classes,
    )
