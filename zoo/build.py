"""From a name to a Keras model: the only place with Input, normalisation, head and weights."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from ..errors import UsageError, nearest
from .anatomy import fields
from .blocks import PADDINGS, L, native_groups
from .from_run import RUN
from .graph import NORMALIZE, Built, layer_of
from .load import as_path, load, row_for_file
from .registry import resolve, variants
from .spec import Preprocess, Variant, Weights
from .weights import locate, offline_if


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    weights: str | Path | bool | None = None,
    input_shape: int | tuple[int | None, ...] | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    pool: str | None = None,
    taps: str | Iterable[str] | None = None,
    dropout: float | None = None,
    drop_path: float | None = None,
    activation: str | None = None,
    padding: str | None = None,
    l1: float = 0.0,
    l2: float = 0.0,
    aux: bool = False,
    preprocess: Preprocess | None = None,
    offline: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> keras.Model:
    """Build a model of the zoo: one flat functional model on raw RGB images.

    Args:
        name: `vgg16`, or with a checkpoint `vgg16.tv_in1k`; `hf://timm/resnet18.a1_in1k`;
            `keras_hub:PRESET` or `keras_cv:PRESET`, a backbone of those libraries.
        num_classes: of the logits; default as the weights or the paper have it. If it
            differs from the weights', the logits layer starts fresh and all else is loaded.
            0 builds the headless backbone: its last feature map, pooled if `pool` is given.
        weights: None (random), a tag, True or `imagenet` (the variant's first checkpoint),
            `hf://...`, or the path of a `.pth`, `.safetensors`, `.h5`, `.weights.h5` or `.keras`
            file, or of a run of dlzoo: its preprocessing comes along, and its logits if there are
            as many classes. For a file that says nothing of preprocessing, that of the checkpoint
            it is, by its name or hash, or that `name` has, is taken, or else, with a warning, of
            the variant's first.
        input_shape: `size`, `(height, width)` or `(height, width, channels)` in pixels.
        in_chans: image channels. With weights made for RGB, 1 sums the first kernel over its
            channels: a grey image is answered as three equal channels are, but for the first
            layer's outermost pixels where it pads. Other numbers repeat the kernel.
        features_only: return the taps, `{"C1": (batch, h/2, w/2, c), ...}`, not logits; without
            `pool` and `taps`.
        pool: None keeps the paper's head; `avg` or `max` replaces it by global pooling, `moments`
            by the mean and deviation of each map but the last, the deviation of the first
            activation at the last one's stride, and the root of the last one's mean.
        taps: with `pool`, the taps whose pooled maps are joined; default the last one.
        dropout: rate before the logits; default the paper's.
        drop_path: rate at which the last residual branch is dropped (the first ones less), where
            the architecture has it; default the paper's.
        activation: takes the place of every hidden activation but the gates of
            squeeze-and-excitation: `relu`, `gelu`, ... (a name that Keras knows).
        padding: `same` (TensorFlow's) or `torch` (symmetric), where the architecture can.
        l1, l2: factors of the penalties on every kernel, added to the loss by Keras.
        aux: build the auxiliary classifiers of the paper too. The model then gives
            `{"logits": ..., "aux1": ..., ...}`, for training from scratch.
        preprocess: overrides the normalisation that comes with the weights; for a file of your
            own, its `bgr` says which order of channels the first kernel expects.
        offline: open no socket for weights; None asks `DLZOO_OFFLINE`.
        progress: called with (bytes done, bytes in all) during a download.

    Returns:
        A `keras.Model` from float images `(batch, height, width, channels)` in 0..255 to
        float32 logits `(batch, num_classes)`; softmax or sigmoid is left to the caller.

    Raises:
        UsageError: an unknown name, or a size below the variant's minimum (before any
            download). ModelError: weights that cannot be had or do not fit.
    """
    _check(
        num_classes=(num_classes, _within(num_classes, Integral, 0)),
        in_chans=(in_chans, _within(in_chans, Integral, 1)),
        dropout=(dropout, _within(dropout, Real, 0, 1)),
        drop_path=(drop_path, _within(drop_path, Real, 0, 1)),
        l1=(l1, _within(l1, Real, 0)),
        l2=(l2, _within(l2, Real, 0)),
        padding=(padding, padding in (None, *PADDINGS)),
    )
    if preprocess and not (isinstance(preprocess, Preprocess) and min(preprocess.std) >= 1):
        raise UsageError(
            "model.option",
            f"no images in 0..255 are normalised by preprocess={preprocess!r}",
            fix="Preprocess(mean, std) in units of 0..255: 255 times those for images in 0..1",
        )
    taps = [taps] if isinstance(taps, str) else list(dict.fromkeys(taps or ()))
    path = as_path(weights)
    with offline_if(bool(offline)):  # the hub is asked for a name of its own
        variant, row = resolve(name, None if path else weights)  # type: ignore[arg-type]
    if path:
        row = row_for_file(variant, row, path, preprocess)
    shape = _input_shape(variant, row, input_shape, in_chans)
    rule = preprocess or (row.preprocess if row else replace(variant.preprocess, size=variant.size))
    classes = num_classes
    if classes is None:
        classes = row.classes if row else variant.num_classes
    classes = int(classes)  # NumPy's numbers are none to Keras and JSON
    if row and not row.classes and classes and variant.family.head and pool is None:
        raise UsageError(
            "model.no-classifier",
            f"the weights {row.tag} have nothing for the dense layers of {variant.name}",
            fix="pool='avg' puts a fresh classifier on the features, num_classes=0 none",
        )
    if aux and (features_only or not classes):
        raise UsageError(
            "model.option", "auxiliary classifiers stand beside logits, and there are none"
        )
    if features_only and (pool or taps):
        given = " and ".join(f"{k}=" for k, v in {"pool": pool, "taps": taps}.items() if v)
        raise UsageError(
            "model.option",
            f"features_only gives the maps of all taps: nothing to pool or to choose with {given}",
            fix="num_classes=0 with pool and taps gives one pooled vector",
        )
    args = {**variant.args, **_arguments(variant, drop_path=drop_path, padding=padding)}
    preset = row is not None and row.reader == "preset"  # another library loads it
    if preset:
        args["trained"] = True
    create = {
        "name": variant.name,
        "num_classes": classes,
        "input_shape": list(shape),
        "features_only": features_only,
        "pool": pool,
        "taps": taps or None,
        "dropout": dropout,
        "drop_path": drop_path,
        "activation": activation,
        "padding": padding,
        "l1": l1,
        "l2": l2,
        "aux": aux,
    }

    image = keras.Input(shape, name="image")
    x = _normalize(image, rule, shape[2])
    maps = variant.family.body(x, **args)
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
        rate = next(r for r in (dropout, variant.dropout, variant.family.dropout) if r is not None)
        outputs = _head(variant, args, image, maps, x, classes, pool, create["taps"], rate)
        if aux:
            outputs = _with_aux(variant, args, image, outputs, rate, classes)
    model = keras.Model(image, outputs, name=re.sub(r"\W+", "_", variant.name))
    model.dlzoo = made
    native_groups(model)
    if activation:
        _set_activation(model, activation)
    if l1 or l2:
        _penalise(model, keras.regularizers.L1L2(l1, l2))
    if row and not preset:
        file = path or locate(row, variant.name, offline=offline, progress=progress)
        whole = load(model, variant, row, file)
        asked = num_classes is not None and (pool or not path or row.origin == RUN)
        if not whole and not asked:
            warnings.warn(
                f"the classifier of {model.name} is untrained: {file.name} has none that fits",
                stacklevel=2,
            )
    return model


def _within(
    value: Any, kind: Any, least: float = float("-inf"), below: float = float("inf")
) -> bool:
    return value is None or (isinstance(value, kind) and least <= value < below)


def _check(**options: tuple[Any, bool]) -> None:
    """Refuse what no model can have; each option comes as (value, whether it is possible)."""
    wrong = [f"{name}={value!r}" for name, (value, possible) in options.items() if not possible]
    if wrong:
        raise UsageError(
            "model.option",
            f"impossible: {', '.join(wrong)}",
            fix="whole numbers from 1 (num_classes from 0), rates from 0 to below 1, "
            f"penalties from 0, padding {' or '.join(PADDINGS)}",
        )


def _arguments(variant: Variant, **options: Any) -> dict[str, Any]:
    """Return the options that were given and that the body of the architecture takes."""
    given = {name: value for name, value in options.items() if value is not None}
    takes = inspect.signature(variant.family.body).parameters
    unknown = [name for name in given if name not in takes and (name, given[name]) != _NO_DROP]
    if unknown:
        able = sorted({v.family.name for v in variants().values()
                       if unknown[0] in inspect.signature(v.family.body).parameters})  # fmt: skip
        raise UsageError(
            "model.option",
            f"{variant.name} has no {unknown[0]} to choose",
            fix=f"families that have: {', '.join(able)}",
        )
    return {name: value for name, value in given.items() if name in takes}


_NO_DROP = ("drop_path", 0)


def _set_activation(model: keras.Model, activation: str) -> None:
    """Change every hidden activation; gates, whose range is 0..1, stay."""
    try:
        function = keras.activations.get(activation)
    except ValueError:
        known = [name for name in dir(keras.activations) if name.islower()]
        raise UsageError(
            "model.option", f"no activation is called {activation!r}{nearest(activation, known)}"
        ) from None
    for layer in model.layers:
        old = getattr(layer, "activation", keras.activations.linear)
        if old is not keras.activations.linear and not layer.name.endswith("_gate"):
            layer.activation = function


def _penalise(model: keras.Model, regularizer: keras.regularizers.Regularizer) -> None:
    for layer in model.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is not None:
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            kind = "depthwise_regularizer" if depthwise else "kernel_regularizer"
            setattr(layer, kind, regularizer)  # for the file
            kernel.regularizer = regularizer


def _with_aux(variant: Variant, args, image, logits, rate, classes) -> dict[str, Any]:
    if not variant.family.aux:
        raise UsageError("model.option", f"{variant.name} has no auxiliary classifiers")
    whole = keras.Model(image, logits)
    layers = lambda name: whole.get_layer(name).output  # noqa: E731
    try:
        return {"logits": logits, **variant.family.aux(layers, rate, classes, **args)}
    except ValueError as error:  # of Keras: a window is larger than the map
        raise UsageError(
            "model.size",
            f"the images are too small for the auxiliary classifiers of {variant.name}",
            fix=f"input_shape={variant.size}",
        ) from error


def _normalize(x, rule: Preprocess, channels: int):
    mean, std = np.asarray(rule.mean), np.asarray(rule.std)
    if len(mean) != channels:
        if channels == 1:
            mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
        else:
            mean, std = np.resize(mean, channels), np.resize(std, channels)
    # float32 whatever the policy: 255 * scale + offset would lose two digits in float16.
    return L.Rescaling((1 / std).tolist(), (-mean / std).tolist(), dtype="float32", name=NORMALIZE)(
        x
    )


def _head(variant: Variant, args, image, maps, x, classes, pool, taps, rate):
    last = list(maps.values())[-1] if maps else x
    if pool is None and taps:
        raise UsageError(
            "model.taps", "taps= joins pooled maps, so it needs pool=", fix="pool='avg'"
        )
    if variant.family.classifier and pool is None and classes:
        return variant.family.classifier(maps, rate, classes, **args)
    papers_own = variant.family.head if pool is None else None
    if papers_own and not (maps and classes == 0):
        if None in x.shape[1:3]:
            raise UsageError(
                "model.size",
                f"the dense layers of {variant.name} need a fixed image size",
                fix=f"input_shape={variant.size}, or pool='avg' instead of these layers",
            )
        out = papers_own(maps or x, rate, **args)
    elif pool is None and classes == 0:
        out = last
    else:
        out = _pooled(variant, image, maps, pool or "avg", taps)
    if classes == 0:
        return out
    if rate and not papers_own:
        out = L.Dropout(rate, name="dropout")(out)
    return L.Dense(classes, dtype="float32", name="logits")(out)


def _pooled(variant: Variant, image, maps, pool: str, taps: list[str] | None):
    if pool not in POOLS:
        raise UsageError(
            "model.pool", f"pool={pool!r} is unknown", fix=f"{', '.join(POOLS)} or None"
        )
    unknown = [tap for tap in taps or () if tap not in maps]
    if unknown or not maps:
        raise UsageError(
            "model.taps",
            f"{variant.name} has no tap {', '.join(unknown) or 'to pool'}",
            fix=f"its taps: {', '.join(maps) or 'none'}",
        )
    chosen = list(taps or [list(maps)[-1]])
    pooled = []
    for tap in chosen:
        kind = L.GlobalMaxPooling2D if pool == "max" else L.GlobalAveragePooling2D
        value = kind(name=f"pool_{tap}")(maps[tap])
        if pool != "moments":
            pooled.append(value)
        elif tap == chosen[-1]:
            first = _first_activation(image, maps[tap])
            pooled += [_root(value)] if first is None else [_deviation(first), _root(value)]
        else:
            pooled += [ops.cast(value, "float32"), _deviation(maps[tap])]
    return pooled[0] if len(pooled) == 1 else L.Concatenate(name="features")(pooled)


POOLS = ("avg", "max", "moments")
_SMALL = 1e-2  # below it a root is nearly a line: at 0 its slope would have no bound


def _root(x):
    """Return the root with its sign, `(batch, c)` float32: the power normalisation of descriptors.

    A channel that is seldom active counts for more (Perronnin et al. 2010).
    """
    x = ops.cast(x, "float32")
    return x * ops.rsqrt(ops.absolute(x) + _SMALL)


def _deviation(feature_map):
    """Return how much each channel differs over a map: `(batch, h, w, c)` to `(batch, c)`."""
    x = ops.cast(feature_map, "float32")
    away = x - ops.mean(x, axis=(1, 2), keepdims=True)
    return _root(ops.mean(ops.square(away), axis=(1, 2)))


def _first_activation(image, feature_map):
    """Return the first activation at the stride of a map, or None if there is none before it.

    Where a network begins to compute at its last stride, it knows more of the parts of things
    and less of the classes of its training than where it ends.
    """
    model = keras.Model(image, feature_map)
    *before, last = model.layers
    strides = {name: found[1] for name, found in fields(model).items() if found}
    linear = keras.activations.linear
    for layer in before:
        active = getattr(layer, "activation", linear) is not linear
        if active and strides.get(layer.name) == strides.get(last.name):
            return layer.output
    return None


def _input_shape(variant: Variant, row: Weights | None, shape, in_chans) -> tuple:
    size = row.preprocess.size if row else variant.size
    if shape is None or isinstance(shape, Integral):
        shape = (size if shape is None else shape,) * 2
    whole = isinstance(shape, list | tuple) and all(_within(n, Integral) for n in shape)
    if not whole or len(shape) not in (2, 3):
        raise UsageError(
            "model.size",
            f"input_shape={shape!r} is no size, (height, width) or (height, width, channels)",
            fix=f"whole numbers, as in input_shape={size}",
        )
    channels = in_chans or (shape[2] if len(shape) == 3 else variant.in_chans)
    if channels is None or channels < 1:
        raise UsageError("model.size", f"input_shape={shape!r} has no number of channels")
    if in_chans and len(shape) == 3 and shape[2] != in_chans:
        raise UsageError("model.size", f"input_shape says {shape[2]} channels, in_chans {in_chans}")
    short = [side for side in shape[:2] if side is not None and side < variant.min_size]
    if short:
        raise UsageError(
            "model.size",
            f"{variant.name} needs images of at least {variant.min_size} pixels, got {short[0]}",
            fix=f"--size {size}",
        )
    return tuple(n if n is None else int(n) for n in (*shape[:2], channels))
