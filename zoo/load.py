"""From a checkpoint file into a model: its layers by the rules of their family, shapes checked."""

from __future__ import annotations

import ast
import math
import os
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from ..errors import ModelError
from . import checkpoints
from .from_run import row_for_run, weights_of
from .graph import NORMALIZE, built, groups, sources, weighted
from .registry import variants
from .sources import is_path
from .spec import Preprocess, Variant, Weights
from .weights import row_of

Arrays = list[np.ndarray]


class _Opened(NamedTuple):
    """A checkpoint's file as a model reads it.

    Attributes:
        stored: what it has, as (name, arrays).
        place: tells where in `stored` the arrays of one of our layers are, by its name.
        find: gives a layer's arrays in Keras' order, or raises KeyError(what is missing).
        bgr: the first kernel expects blue, green, red.
    """

    stored: list[tuple[str, Arrays]]
    place: Callable[[str], list[int]]
    find: Callable[[keras.layers.Layer], Arrays]
    bgr: bool


def load(model: keras.Model, variant: Variant, row: Weights, file: Path) -> bool:
    """Load a checkpoint file into a model, whole or not at all.

    The logits are left as they are if the model has another number of classes. What more the file
    has must be of a head, or of layers above the place where the model was cut.

    Returns:
        Whether the logits are the file's.

    Raises:
        ModelError: `model.weights-mismatch`, naming the first five misfits.
    """
    layers = weighted(model.layers)
    opened = _open(variant, row, file, model)
    fresh = _fresh_logits(model, variant, row, opened)
    if fresh:
        layers = [layer for layer in layers if not layer.name.endswith("logits")]
    first = layers[0].name if layers else None
    lost = None
    wanted: list[tuple[keras.layers.Layer, Arrays]] = []
    problems = []
    for layer in layers:
        shapes = [tuple(w.shape) for w in layer.weights]
        try:
            arrays = opened.find(layer)
        except KeyError as missing:
            problems.append(f"{layer.name}: {missing.args[0]} is not in the file")
            continue
        except ValueError as misshapen:
            problems.append(f"{layer.name}: {misshapen}")
            continue
        if not all(array.dtype.kind == "f" and np.isfinite(array).all() for array in arrays):
            problems.append(f"{layer.name}: the file has integers, or numbers that are not finite")
            continue
        if layer.name == first:
            arrays, lost = _fit_channels(arrays, opened.bgr, built(model).preprocess, shapes[0])
        if len(arrays) == len(shapes):
            arrays = [_without_ones(a, shape) for a, shape in zip(arrays, shapes, strict=True)]
        found = [a.shape for a in arrays]
        if found == shapes:
            wanted.append((layer, arrays))
        else:
            problems.append(f"{layer.name}: needs {shapes}, the file has {found}")
    if problems:
        title = f"{len(problems)} of {len(layers)} layers of {variant.name} do not fit the file"
        head = {layer.name for layer in groups(model)["head"]} if variant.family.head else set()
        of_head = {line.partition(":")[0] for line in problems} <= head - {"logits"}
        raise _mismatch(variant, file, title, problems, of_head)
    if left := _left_over(model, variant, opened, fresh):
        title = f"the file has more than {variant.name} has a place for"
        raise _mismatch(variant, file, title, left)
    if lost is not None:
        _give_back(lost, wanted)
    for layer, arrays in wanted:
        layer.set_weights(arrays)
    return not fresh


def _mismatch(
    variant: Variant, file: Path, title: str, lines: list[str], of_head: bool = False
) -> ModelError:
    """Return the error with the first five misfits, and the model that the file is named after.

    Args:
        of_head: the misfits are between the maps and the logits, which pooling leaves out.
    """

    def plain(name: str) -> str:
        return re.sub(r"[\W_]", "", name.lower())

    family = [v.name for v in variants().values() if v.family is variant.family]
    named = [name for name in family if plain(name) in plain(file.name)]
    likely = max(named, key=len, default=variant.name)
    more = f"\n  and {len(lines) - 5} more" if len(lines) > 5 else ""
    return ModelError(
        "model.weights-mismatch",
        f"{title}:\n  " + "\n  ".join(lines[:5]) + more,
        where=file,
        fix=f"by its name the file is of {likely}"
        if likely != variant.name
        else "pool='avg' puts a fresh classifier on the features, without these layers"
        if of_head
        else "check that the file belongs to this model (and its number of classes)",
    )


_ASIDE = re.compile(r"num_batches_tracked$|^optimizer").search  # notes of the training


def _left_over(model: keras.Model, variant: Variant, opened: _Opened, fresh: bool) -> list[str]:
    """Name what the file has and the model has not, unless the model was made to leave it out.

    If it was made without the file's head, matrices (1x1 convolutions too) and vectors may be
    left, whatever they are called: a larger body would leave kernels of more pixels.
    """
    axes = 2 if fresh or "logits" not in {layer.name for layer in model.layers} else 0

    def left(layers: list[keras.layers.Layer]) -> list[str]:
        used = set()
        for layer in ["logits", *(layer.name for layer in weighted(layers))]:
            with suppress(KeyError, ValueError):  # files of this kind have no name for it
                used |= {*opened.place(layer)}
        return [
            name
            for i, (name, arrays) in enumerate(opened.stored)
            if i not in used
            and not _ASIDE(name)
            and any(sum(n != 1 for n in array.shape) > axes for array in arrays)
        ]

    return left(model.layers) and left(_whole(variant).layers)


def _whole(variant: Variant) -> keras.Model:
    """Build the network with all it can have; its variables take no memory and hold no values."""
    from .build import create_model

    with keras.StatelessScope(initialize_variables=False):
        return create_model(variant.name, aux=variant.family.aux is not None)


def _without_ones(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Fit an array that differs by axes of length one: a 1x1 convolution is a dense layer."""
    same = [n for n in array.shape if n != 1] == [n for n in shape if n != 1]
    return array.reshape(shape) if same else array


def _fresh_logits(model: keras.Model, variant: Variant, row: Weights, opened: _Opened) -> bool:
    """Say whether the logits have other classes, or other features, than the checkpoint's.

    A user's file may have other classes than the row says.
    """
    if "logits" not in {layer.name for layer in model.layers}:
        return False
    pool, taps = (built(model).create[option] for option in ("pool", "taps"))
    own = variant.family.head or variant.family.classifier
    pooled_anew = pool and (own or pool != "avg")
    logits = model.get_layer("logits")
    if pooled_anew or taps or logits.units == row.classes:
        return bool(pooled_anew or taps)
    try:
        sizes = [array.size for array in opened.find(logits)]
    except (KeyError, ValueError):
        return True
    return sizes != [math.prod(w.shape) for w in logits.weights]


def _open(variant: Variant, row: Weights, file: Path, model: keras.Model) -> _Opened:
    """Read a file, and find out how it names the layers of the model."""
    family = variant.family
    unread = re.compile(family.unread or "(?!)").search
    ours = [layer.name for layer in weighted(model.layers)]
    if row.reader != "keras":
        tensors = checkpoints.read_torch(file)
        if family.torch_rename:
            old, new = family.torch_rename
            tensors = {re.sub(old, new, name): tensor for name, tensor in tensors.items()}
        stored = [(name, [array]) for name, array in tensors.items() if not unread(name)]
        _check_size(model, variant, row, stored, file)
        rename = _naming(variant, row, ours[0], tensors, file)
        flattened = _flattened(model)
        places: dict[str, list[int]] = {}
        for i, (name, _) in enumerate(stored):
            for owner in (name, name.rpartition(".")[0]):
                places.setdefault(owner, []).append(i)

        def in_torch(layer):
            return places.get(rename(layer, **variant.args), [])

        def from_torch(layer):
            prefix = rename(layer.name, **variant.args)
            return checkpoints.torch_arrays(
                type(layer).__name__, prefix, tensors, flattened=flattened.get(layer.name)
            )

        return _Opened(stored, in_torch, _with_epsilon(from_torch, row), row.preprocess.bgr)

    content = [
        (name.rpartition("/")[2], name, a) for name, a in checkpoints.read_keras(file, empty=True)
    ]
    of_the_zoo = any(short == NORMALIZE for short, *_ in content)
    stored = [(name, arrays) for short, name, arrays in content if arrays and not unread(short)]
    _check_size(model, variant, row, stored, file)
    index = _names_in(stored)
    if of_the_zoo:  # where kernels take RGB already
        return _Opened(
            stored,
            lambda layer: [index[layer]],
            lambda layer: stored[index[layer.name]][1],
            bgr=False,
        )
    other = _other_form(variant)
    if other and other.keras and not variant.keras:
        raise _wrong_form(variant, other, "Keras", file)
    names = {layer: family.keras_name(layer, **variant.args) for layer in ours}
    left = {*range(len(stored))} - {index.get(name.partition(":")[0]) for name in names.values()}
    if "logits" in names and names["logits"] not in index and len(left) == 1:
        index[names["logits"]] = left.pop()  # "probs", "fc1000", "Logits": its name varies
    if any("#" in name or name.partition(":")[0] not in index for name in names.values()):
        index = _by_position(variant, stored) or index  # a number is no name to rely on

    def in_keras(layer):
        name = names.get(layer) or family.keras_name(layer, **variant.args)
        return [index[name.partition(":")[0]]]

    def from_keras(layer):
        arrays = stored[in_keras(layer.name)[0]][1]
        _, _, part = names[layer.name].partition(":")
        return [arrays[int(part)]] if part else arrays

    return _Opened(stored, in_keras, _with_epsilon(from_keras, row), row.preprocess.bgr)


def _other_form(variant: Variant) -> Variant | None:
    """Return the network of the same layers that TensorFlow, or torchvision, pads otherwise."""
    plain = variant.name.removesuffix("_tv")
    return variants().get(plain if plain != variant.name else f"{plain}_tv")


def _wrong_form(variant: Variant, other: Variant, whose: str, file: Path) -> ModelError:
    return ModelError(
        "model.weights-mismatch",
        f"the file names its layers as {whose} does, and {variant.name} pads and normalises "
        "otherwise: the weights would fit, and the answers be wrong",
        where=file,
        fix=f"the same network as {whose} has it: {other.name}",
    )


def _with_epsilon(find, row: Weights):
    """Let `find` add to the moving variances what the graph's epsilon lacks of the checkpoint's."""

    def found(layer):
        arrays = find(layer)
        if row.epsilon and isinstance(layer, keras.layers.BatchNormalization):
            arrays = [*arrays[:-1], arrays[-1] + np.float32(row.epsilon - layer.epsilon)]
        return arrays

    return found


def _naming(variant: Variant, row: Weights, layer: str, tensors: dict[str, np.ndarray], file: Path):
    """Return the rule, torchvision's or timm's, that the file names a layer by."""
    family, other = variant.family, _other_form(variant)
    known = [rule for rule in (family.torch_name, family.timm_name) if rule]
    if not known:
        raise ModelError(
            "model.weights-mismatch",
            f"it is not known how a torch file names the layers of {variant.name}",
            where=file,
            fix="give a Keras .h5 file",
        )
    for rule in known:
        prefix = rule(layer, **variant.args)
        if prefix in tensors or f"{prefix}.weight" in tensors:
            break
    else:
        return known[0]
    if row.reader == "timm":  # the hub says which form it is
        return rule
    of_timm = rule is family.timm_name
    if other and not of_timm and other.torchvision and not variant.torchvision:
        raise _wrong_form(variant, other, "torchvision", file)
    if other and other.timm and not variant.timm and rule is not family.torch_name:
        raise _wrong_form(variant, other, "timm", file)
    twin = other.timm if other else None
    if not twin and (variant.timm or "").startswith("tf_"):
        other, twin = None, str(variant.timm).removeprefix("tf_")
    if of_timm and variant.timm and twin and not file.name.startswith(variant.timm):
        warnings.warn(
            f"timm names the layers of its {variant.timm} and {twin} alike, and {file.name} "
            "is taken for the first. If it is of the other, answers are wrong: "
            + (f"use {other.name}" if other else "that is no model of the zoo"),
            stacklevel=5,
        )
    return rule


def _names_in(stored: list) -> dict[str, int]:
    """Map every name that a layer of a Keras file can be meant by to its place in the list.

    Those are: its path with `_` for `/`; the last part of the path, if no other layer has it, also
    without the model's name where all layers begin with it (`convnext_tiny_`); and for names that
    Keras counted up, `conv2d#3`: the third smallest number, whatever it is.
    """
    paths = [path for path, _ in stored]
    shorts = [path.rpartition("/")[2] for path in paths]
    index = {path.replace("/", "_"): i for i, path in enumerate(paths)}
    index |= {short: i for i, short in enumerate(shorts) if shorts.count(short) == 1}
    shared = os.path.commonprefix(shorts)  # noqa: RUF071, of letters is meant
    shared = shared[: shared.rfind("_") + 1]
    index |= {short.removeprefix(shared): i for i, short in enumerate(shorts) if shared}
    counted: dict[str, list[tuple[int, int]]] = {}
    for i, short in enumerate(shorts):
        if found := _COUNTED.fullmatch(short):
            counted.setdefault(found[1], []).append((int(found[2] or 0), i))
    for base, entries in counted.items():
        index |= {f"{base}#{rank}": i for rank, (_, i) in enumerate(sorted(entries), start=1)}
    return index


def _by_position(variant: Variant, stored: list) -> dict[str, int] | None:
    """Map names to places for a file that calls its layers otherwise, as Keras itself does.

    Keras' model of today is built, and its layers with weights are taken to be those of the file
    in their order. Returns None unless their number and every shape agree.
    """
    if variant.keras is None:
        return None
    reference = keras_model(variant.keras, weights=None)
    layers = [inner for la in reference.layers for inner in weighted(getattr(la, "layers", [la]))]
    skip = re.compile(variant.family.unread or "(?!)").search
    layers = [layer for layer in layers if not skip(layer.name)]
    shapes = [[tuple(w.shape) for w in layer.weights] for layer in layers]
    if shapes != [[array.shape for array in arrays] for _, arrays in stored]:
        return None
    return _names_in([(layer.name, ()) for layer in layers])


def keras_model(call: str, **options: Any) -> keras.Model:
    """Return what `MobileNet(alpha=0.25)`, as in `Variant.keras`, builds in keras.applications."""
    tree = ast.parse(call, mode="eval").body
    name, given = (tree.func, tree.keywords) if isinstance(tree, ast.Call) else (tree, [])
    arguments = {str(argument.arg): ast.literal_eval(argument.value) for argument in given}
    return getattr(keras.applications, ast.unparse(name))(**arguments, **options)


_WIDEST = 8192  # no classifier takes more features

_COUNTED = re.compile(r"(conv2d|batch_normalization|dense)(?:_(\d+))?")


def _check_size(
    model: keras.Model, variant: Variant, row: Weights, stored: list[tuple[str, Arrays]], file: Path
) -> None:
    """Refuse a file with larger kernels than the model has parameters: a larger model's.

    A dense layer on a flattened map has more of them for larger images.
    """
    held = sum(array.size for _, arrays in stored for array in arrays if array.ndim > 1)
    more = max(row.classes - variant.num_classes, 0) * _WIDEST
    if held > max(variant.params, model.count_params()) + more:
        raise ModelError(
            "model.weights-mismatch",
            f"the file holds {held:,} parameters, {variant.name} has {variant.params:,}",
            where=file,
            fix="check that the file belongs to this model",
        )


def _flattened(model: keras.Model) -> dict[str, tuple[int, int, int]]:
    """Map each dense layer behind a `Flatten` layer to the shape of the map it flattens."""
    found = {}
    for dense in model.layers:
        below = dense if isinstance(dense, keras.layers.Dense) else None
        while below is not None:
            below = sources(below)[0]
            if isinstance(below, keras.layers.Flatten) and len(below.input.shape) == 4:
                found[dense.name] = tuple(below.input.shape[1:])
            if not isinstance(below, keras.layers.Dropout):
                below = None
    return found


def _fit_channels(
    arrays: Arrays, bgr: bool, rule: Preprocess, shape: tuple[int, ...]
) -> tuple[Arrays, np.ndarray | None]:
    """Turn a BGR kernel round, and adapt a kernel for RGB to another number of channels.

    Returns:
        The arrays, and what a grey image loses: a constant for each of the layer's outputs.
    """
    kernel, *rest = arrays
    if kernel.ndim != 4:
        return arrays, None
    if bgr:
        kernel = kernel[:, :, ::-1]
    lost = None
    channels, wanted = kernel.shape[2], shape[2]
    if channels == 3 and wanted == 1:
        # The model normalises with the mean of the channels' means and deviations: weigh each
        # channel so that a grey image excites the kernel as its three equal channels would.
        mean, std = np.resize(rule.mean, 3), np.resize(rule.std, 3)
        lost = np.einsum("hwio,i->o", kernel, (mean.mean() - mean) / std)
        kernel = (kernel * (std.mean() / std)[:, None]).sum(2, keepdims=True)
    elif channels == 3 and wanted != 3:
        kernel = kernel[:, :, np.arange(wanted) % 3] * (3 / wanted)
    return [np.ascontiguousarray(kernel, dtype="float32"), *rest], lost


def _give_back(lost: np.ndarray, wanted: list[tuple[keras.layers.Layer, Arrays]]) -> None:
    """Add what the first layer loses to its bias, or to the normalisation right behind it."""
    first, arrays = wanted[0]
    if len(arrays) == 2:
        arrays[1] = arrays[1] + lost
        return
    for layer, behind in wanted[1:2]:
        if isinstance(layer, keras.layers.BatchNormalization) and sources(layer) == [first]:
            behind[-2] = behind[-2] - lost  # the moving mean


def as_path(weights: object) -> Path | None:
    """Take `weights` as a file, or a run, if it looks like one; say so if it is not there."""
    if not is_path(weights):
        return None
    if "://" in str(weights):
        raise ModelError(
            "model.uri",
            "weights of your own are a file here, and no address",
            where=weights,
            fix="download it, check where it comes from, and give its path",
        )
    path = Path(weights).expanduser()
    if path.is_dir():
        return weights_of(path)
    if not path.is_file():
        raise ModelError("model.file-missing", "there is no such weights file", where=path)
    return path


def row_for_file(
    variant: Variant, row: Weights | None, path: Path, given: Preprocess | None = None
) -> Weights:
    """Return the row of a user's file: that of the checkpoint it is, or is stored like.

    Args:
        row: the checkpoint that the user named, if any.
        given: the preprocessing that the user named, if any.
    """
    if of_run := row_for_run(variant, path):
        return of_run
    reader = "keras" if path.suffix in (".h5", ".hdf5", ".keras") else "torch"
    same = [row] if row else [w for w in variant.weights if w.reader == reader]
    if published := row_of(path, same):
        return replace(published, tag=path.name)
    made = (
        same[0]
        if same
        else Weights(
            tag=path.name,
            uri=path.as_uri() if path.is_absolute() else str(path),
            preprocess=replace(variant.preprocess, size=variant.size),
            reader=reader,
            licence="unknown",
            origin="a local file",
            classes=variant.num_classes,
        )
    )
    rule = made.preprocess
    if given:
        rule = replace(rule, bgr=given.bgr)  # the file is the user's, and so are its kernels
    elif read := _rule_in(variant, path, reader):
        mean, std = read
        if not (np.allclose(mean, rule.mean, 1e-3) and np.allclose(std, rule.std, 1e-3)):
            rule = replace(rule, mean=mean, std=std)
    elif row is None:
        known = " or ".join(f"{variant.name}.{w.tag}" for w in same)
        order = ", blue first," if rule.bgr else ""
        warnings.warn(
            f"{path.name} does not say how images were normalised; mean {rule.mean}, std "
            f"{rule.std}{order} are taken{f', as of {same[0].tag}' if same else ''}. If it was "
            f"otherwise, answers are wrong: {f'name {known}, or ' if same else ''}give preprocess=",
            stacklevel=3,
        )
    return replace(made, tag=path.name, preprocess=rule)


def _rule_in(variant: Variant, path: Path, reader: str):
    """Return the mean and deviation that a Keras file of some families holds, or None."""
    if reader != "keras" or not variant.family.keras_rule:
        return None
    return variant.family.keras_rule(
        [
            (name.rpartition("/")[2], arrays)
            for name, arrays in checkpoints.read_keras(path, empty=True)
        ]
    )
