"""Names to models: the table every lookup, filter and listing reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from typing import Any

from ..errors import UsageError, nearest
from ..units import parse_count
from .sources import find, is_foreign
from .spec import Family, Preprocess, Variant, Weights

_VARIANTS: dict[str, Variant] = {}


def family(
    name: str, body: Callable[..., dict[str, Any]], *, paper: str, year: int, **rules: Any
) -> Callable[..., Variant]:
    """Declare a family and return the function that adds one variant to it.

    Args:
        name, body, paper, year, rules: the fields of :class:`~dlzoo.zoo.spec.Family`.

    Returns:
        `add(name, *, params, gmacs, taps, weights=(), **args)`: fields of
        :class:`~dlzoo.zoo.spec.Variant` by name (`taps` also as the channels of C1, C2, ...);
        what is left are arguments of the body.
    """
    spec = Family(name=name, body=body, paper=paper, year=year, **rules)
    known = {field.name for field in fields(Variant)} - {"family", "args"}

    def add(
        name: str,
        *,
        taps: Mapping[str, int] | Iterable[int],
        weights: Iterable[Weights] = (),
        **row: Any,
    ) -> Variant:
        if not isinstance(taps, Mapping):
            taps = {f"C{i}": channels for i, channels in enumerate(taps, start=1)}
        args = {key: row.pop(key) for key in [*row] if key not in known}
        variant = Variant(name, spec, args, taps=taps, weights=tuple(weights), **row)
        if name in _VARIANTS:
            raise ValueError(f"the model {name!r} is registered twice")
        if len(set(variant.tags)) != len(variant.tags):
            raise ValueError(f"the model {name!r} has two checkpoints of one tag")
        _VARIANTS[name] = variant
        return variant

    return add


FIRST = (True, "imagenet")  # what asks for a variant's first checkpoint


def variants() -> Mapping[str, Variant]:
    """Return all registered variants by name."""
    return _VARIANTS


def resolve(name: str, tag: str | bool | None = None) -> tuple[Variant, Weights | None]:
    """Return the variant and checkpoint that `name` means.

    Args:
        name: `vgg16`, or with a checkpoint `vgg16.tv_in1k`; or a foreign one (sources.py).
        tag: names the checkpoint if `name` does not; True, or `imagenet` as in keras.applications,
            takes the variant's first.

    Raises:
        UsageError: `model.unknown`, `model.unknown-weights` or `model.no-weights`, with the
            nearest name.
    """
    if is_foreign(name) or is_foreign(tag):
        return find(name, tag, _VARIANTS)
    arch, _, in_name = str(name).partition(".")
    variant = _VARIANTS.get(arch)
    if variant is None:
        raise UsageError(
            "model.unknown",
            f"no model is called {name!r}{nearest(arch, _VARIANTS)}",
            fix="`dlzoo list` shows every name",
        )
    if in_name and tag and tag not in (in_name, *FIRST):
        raise UsageError(
            "model.unknown-weights", f"{name} names weights of its own, and {tag!r} are asked for"
        )
    tag = in_name or tag
    if not tag:
        return variant, None
    if tag in FIRST:
        if not variant.weights:
            raise UsageError(
                "model.no-weights",
                f"{arch} has no published weights",
                fix="weights=None (on the command line: --weights none) trains from scratch",
            )
        return variant, variant.weights[0]
    for weights in variant.weights:
        if weights.tag == tag:
            return variant, weights
    # resnet50.tv_in1k: torchvision's form of a network has a name of its own
    others = [f"{v.name}.{tag}" for v in _VARIANTS.values() if tag in v.tags]
    alike = [other for other in others if other.startswith(f"{arch}_")]
    raise UsageError(
        "model.unknown-weights",
        f"{arch} has no weights called {tag!r}{nearest(str(tag), variant.tags)}",
        fix=f"did you mean {', '.join(alike)}?"
        if alike
        else f"known: {', '.join(variant.tags) or 'none'}",
    )


def list_models(
    pattern: str | Iterable[str] | None = None,
    *,
    family: str | Iterable[str] | None = None,
    pretrained: bool | None = None,
    max_params: float | str | None = None,
    max_gmacs: float | str | None = None,
    min_top1: float | str | None = None,
    licence: str | Iterable[str] | None = None,
    taps: str | Iterable[str] | None = None,
) -> list[str]:
    """Return the names of the models that pass every filter, in natural order.

    Args:
        pattern: shell wildcards, one or several: `"resnet*"`.
        family: family names. pretrained: with (True) or without (False) known weights.
        max_params: upper bound of the parameter count, also as `"10M"`.
        max_gmacs: of 10^9 multiply-accumulates at the default size.
        min_top1: ImageNet top-1 in percent of at least one checkpoint.
        licence: SPDX identifiers, wildcards allowed and case ignored, of at least one checkpoint;
            with `min_top1` one checkpoint must have both.
        taps: feature maps it must have, one or several: `["C3", "C5"]`.

    Raises:
        UsageError: `model.family` or `model.taps`, with the nearest name; `model.option`.
    """

    def matches(value: str, wanted: str | Iterable[str] | None) -> bool:
        return wanted is None or any(fnmatchcase(value, w) for w in many(wanted))

    def many(wanted: str | Iterable[str]) -> list[str]:
        return [wanted] if isinstance(wanted, str) else list(wanted)

    pattern, family, licence = (w and many(w) for w in (pattern, family, licence))
    licence = licence and [wanted.lower() for wanted in licence]
    try:
        limits = [None if n is None else parse_count(str(n))
                  for n in (max_params, max_gmacs, min_top1)]  # fmt: skip
    except ValueError as error:
        raise UsageError("model.option", str(error)) from None
    params, gmacs, top1 = limits
    taps = set(many(taps or ()))
    known = {tap for variant in _VARIANTS.values() for tap in variant.taps}
    for tap in sorted(taps - known):
        raise UsageError(
            "model.taps",
            f"no model has a tap {tap!r}{nearest(tap, known)}",
            fix=f"known: {', '.join(sorted(known))}",
        )
    families = {variant.family.name for variant in _VARIANTS.values()}
    for wanted in family or ():
        if not any(fnmatchcase(name, wanted) for name in families):
            raise UsageError(
                "model.family",
                f"no family {wanted!r}{nearest(wanted, families)}",
                fix=f"known: {', '.join(sorted(families))}",
            )
    found = []
    for variant in _VARIANTS.values():
        checkpoints = [
            w
            for w in variant.weights
            if matches(w.licence.lower(), licence) and (top1 is None or (w.top1 or 0) >= top1)
        ]
        if (
            matches(variant.name, pattern)
            and matches(variant.family.name, family)
            and (pretrained is None or bool(variant.weights) == pretrained)
            and (params is None or variant.params <= params)
            and (gmacs is None or variant.gmacs <= gmacs)
            and (checkpoints or (top1 is None and licence is None))
            and variant.taps.keys() >= taps
        ):
            found.append(variant.name)
    return sorted(found, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    import re

    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name) if p]


# What the common training programs normalise with, in units of 0..255.
IMAGENET = Preprocess()
HALF = Preprocess((127.5,) * 3, (127.5,) * 3)  # to -1..1
CAFFE = Preprocess((123.68, 116.779, 103.939), (1.0,) * 3, bgr=True)


def torchvision(
    file: str,
    top1: float | None,
    top5: float | None,
    *,
    tag: str = "tv_in1k",
    size: int = 224,
    resize: int = 256,
    rule: Preprocess = IMAGENET,
    interpolation: str = "bilinear",
    origin: str = "torchvision, trained on ImageNet-1k",
    licence: str = "BSD-3-Clause",
    **more: Any,
) -> Weights:
    """Return the row of a torchvision checkpoint `NAME-HASH.pth`.

    Args:
        top1, top5: accuracy in percent.
        tag: `tv_in1k` for the first recipe, `tv2_in1k` for V2.
        size, resize: of the centre crop, and of the shorter side before it, in pixels.
        rule: holds mean and std.
    """
    return Weights(
        tag=tag,
        uri=f"https://download.pytorch.org/models/{file}",
        sha256_prefix=file.rsplit("-", 1)[1].removesuffix(".pth"),
        preprocess=replace(rule, size=size, crop=size / resize, interpolation=interpolation),
        reader="torch",
        licence=licence,
        origin=origin + (" (recipe V2)" if tag.startswith("tv2") else ""),
        top1=top1,
        top5=top5,
        **more,
    )


def keras_applications(
    path: str,
    digest: str | None,
    top1: float | None,
    top5: float | None,
    *,
    rule: Preprocess,
    size: int = 224,
    origin: str,
    tag: str = "keras_in1k",
    licence: str = "Apache-2.0",
    host: str = "https://storage.googleapis.com/tensorflow/keras-applications",
    **more: Any,
) -> Weights:
    """Return the row of a keras.applications file with its classification head.

    Args:
        path: below `host`. digest: the MD5 or SHA-256 that Keras has of the file, if any.
        top1, top5: accuracy in percent. rule: holds mean, std and channel order.
        size: of the image in pixels.
    """
    return Weights(
        tag=tag,
        uri=f"{host}/{path}",
        md5=digest if digest and len(digest) == 32 else None,
        sha256=digest if digest and len(digest) == 64 else None,
        preprocess=rule.resized(size),
        reader="keras",
        licence=licence,
        origin=f"{origin}; published by keras.applications",
        top1=top1,
        top5=top5,
        **more,
    )


def torchvision_v2(file: str, top1: float, top5: float) -> Weights:
    """Return the row of a checkpoint of torchvision's recipe V2 at 224 pixels."""
    return torchvision(file, top1, top5, tag="tv2_in1k", resize=232)


def keras_by_size(
    path: str,
    accuracies: Mapping[int, tuple[float, float]],
    digests: Mapping[int, str] | None = None,
    **more: Any,
) -> list[Weights]:
    """Return the rows of a network that keras.applications publishes for several image sizes.

    Args:
        path: with `{size}` in it. accuracies: top-1 and top-5 by image size in pixels, the
            default size first. digests: hashes by size, where there are any.
    """
    default = next(iter(accuracies))
    return [
        keras_applications(
            path.format(size=size),
            (digests or {}).get(size),
            *accuracy,
            size=size,
            tag="keras_in1k" if size == default else f"keras_{size}_in1k",
            **more,
        )
        for size, accuracy in accuracies.items()
    ]
