"""What the zoo knows about a model, as plain frozen data: no TensorFlow, no Keras here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Preprocess:
    """How a checkpoint wants its images: it belongs to the weights, not to the architecture.

    The normalisation (`mean`, `std`) is a layer inside the model, so models take raw RGB in
    0..255; `size`, `crop` and `interpolation` tell the data pipeline how to make the image.

    Attributes:
        mean: per channel (R, G, B), in units of 0..255.
        std: per channel standard deviation (not variance), in units of 0..255.
        bgr: the first kernel expects blue, green, red. It is turned round when the weights
            are loaded, so that every model takes RGB.
        size: height and width in pixels of the image the accuracy was measured at.
        crop: the shorter side is resized to `size / crop`, then the centre is cut out.
        interpolation: `bilinear`, `bicubic`, `lanczos3` or `nearest`; anti-aliased.
    """

    mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # of ImageNet
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    bgr: bool = False
    size: int = 224
    crop: float = 0.875
    interpolation: str = "bilinear"

    def resized(self, size: int, crop: float | None = None) -> Preprocess:
        """Return the same rule for another image size (and crop)."""
        return replace(self, size=size, crop=self.crop if crop is None else crop)


@dataclass(frozen=True)
class Weights:
    """One checkpoint of one variant.

    Attributes:
        tag: names it, as in `vgg16.keras_in1k`.
        uri: `https://...`, `pkg://package/path` (a file inside an installed pip package) or
            `file://...`.
        sha256: of the file, if known. md5: what the origin publishes, checked as well. At
            least one of them, or `sha256_prefix`, is given for anything downloaded.
        sha256_prefix: the leading digits that torchvision puts into the file's name.
        pip: the package that carries a `pkg://` file.
        reader: how the file names its layers: `torch` (a state dict of torchvision), `timm` (a
            state dict of timm), `keras` (HDF5 of keras.applications) or `preset` (another
            library loads it).
        licence: SPDX identifier of the weights. origin: who trained them, in words.
        classes: of its logits; 0 if the file has no classifier.
        top1, top5: ImageNet validation accuracy in percent, as published.
        epsilon: of the normalisation layers it was trained with, where the graph has a smaller
            one: the difference is added to the moving variances, which gives the same numbers.
    """

    tag: str
    uri: str
    preprocess: Preprocess
    reader: str
    licence: str
    origin: str
    sha256: str | None = None
    sha256_prefix: str | None = None
    md5: str | None = None
    pip: str | None = None
    classes: int = 1000
    top1: float | None = None
    top5: float | None = None
    epsilon: float | None = None


@dataclass(frozen=True)
class Family:
    """An architecture: how its body is built, and what its variants share.

    Attributes:
        name: of the family, lower snake case.
        body: `body(x, **args) -> taps`: takes the normalised image tensor and returns
            `{"C1": tensor, ..., "C5": tensor}`, by growing stride.
        head: `head(taps, dropout, **args) -> features`: the paper's layers between the taps
            and the last dropout and logits. None: global average pooling of the last tap.
        classifier: `classifier(taps, dropout, classes, **args) -> logits`: where these are not a
            dense layer on features; its layer with weights is called `logits`.
        aux: `aux(layers, dropout, classes, **args) -> {"aux1": logits, ...}`: the paper's
            auxiliary classifiers; `layers` gives a layer's output by its name.
        dropout: rate before the logits in the paper's training, unless a variant says another.
        paper: `arXiv:...` or a citation. year: of the paper.
        torch_name: maps one of our layer names to the prefix of its tensors in a torch state
            dict: `torch_name(layer, **args) -> "features.0"`.
        torch_rename: a pattern and what takes its place in the names of older torch files.
        timm_name: as `torch_name`, for the state dicts of timm.
        keras_name: maps a layer name to the layer's name in a keras.applications file; a name
            with `#3` means the third layer of its kind, with `:1` one array of a layer.
        keras_rule: `keras_rule(layers) -> (mean, std) or None`: how images are normalised, where
            layers of a Keras file hold that; `layers` are `(name, arrays)`.
        unread: a pattern of names in files that no model here has, such as auxiliary heads.
    """

    name: str
    body: Callable[..., dict[str, Any]]
    paper: str
    year: int
    head: Callable[..., Any] | None = None
    classifier: Callable[..., Any] | None = None
    aux: Callable[..., dict[str, Any]] | None = None
    dropout: float = 0.0
    torch_name: Callable[..., str] | None = None
    torch_rename: tuple[str, str] | None = None
    timm_name: Callable[..., str] | None = None
    keras_name: Callable[..., str] = field(
        default=lambda layer, **_: "predictions" if layer == "logits" else layer
    )
    keras_rule: Callable[..., tuple[tuple[float, ...], tuple[float, ...]] | None] | None = None
    unread: str | None = None


@dataclass(frozen=True)
class Variant:
    """One member of a family, one row of its file.

    Attributes:
        name: as given to `create_model`.
        family: what it belongs to.
        args: given to the family's body and head.
        params: trainable and frozen parameters with the classic 1,000-class head (or
            `num_classes`), counted. gmacs: 10^9 multiply-accumulates of one image at
            `size`, counted over convolutions and dense layers.
        taps: channels of each tap, `{"C1": 64, ...}`; the stride of `Ci` is 2^i.
        keras, torchvision, timm: the same graph there, if any: a call such as
            `MobileNet(alpha=0.25)`, and the names of models.
        size: default height and width in pixels. min_size: smallest that works.
        in_chans: channels of the image. num_classes: of the default head.
        weights: the known checkpoints, the default one first.
        preprocess: the normalisation used without weights.
        dropout: rate before the logits, where the family's is not its own.
    """

    name: str
    family: Family
    args: Mapping[str, Any]
    params: int
    gmacs: float
    taps: Mapping[str, int]
    size: int = 224
    min_size: int = 32
    in_chans: int = 3
    num_classes: int = 1000
    weights: tuple[Weights, ...] = ()
    preprocess: Preprocess = Preprocess()
    dropout: float | None = None
    keras: str | None = None
    torchvision: str | None = None
    timm: str | None = None

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(w.tag for w in self.weights)

    @property
    def thumbnail(self) -> bool:
        """Whether it is made for images too small for the taps of a photograph."""
        return self.size < 32
