"""What is trained, in which order, and how: stages, plans and the three presets.

A plan is plain data. It is written to the run as `plan.toml`, which `--config` takes back.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from ..errors import UsageError

AUTO = "auto"
STEPS_OF_EPOCH = 20  # at least, when batches grow
Count = Annotated[int, Field(gt=0, le=10**9)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Stage:
    """One `fit` with its own set of trainable layers.

    Attributes:
        name: shown to people, and the `stage` column of metrics.csv.
        unfreeze: the shallowest group that is trained, with all above it: `head`, a tap such
            as `C5` (the layers between C4 and C5), or `all`.
        epochs: at most; early stopping may end the stage before.
        lr: base learning rate at batch `batch`.
        optimizer: `sgd`, `momentum`, `nesterov`, `adam`, `adamw`; or `lbfgs`, which fits the last
            layer alone to convergence (see `probe`) and knows no epochs and no learning rate.
        schedule: `cosine` (with warm-up), `onecycle`, `plateau` or `constant`.
        warmup: share of the stage's steps in which the learning rate rises (cosine).
        decay: factor on the learning rate from each group to the one below it.
        weight_decay: decoupled from the gradient, on kernels.
        batch: images a step.
        views: augmented variants of each training image that are kept as activations, the
            plain one among them; 1 is no augmentation.
        patience: epochs without a better validation value before the stage ends.
    """

    name: str
    unfreeze: str = "head"
    epochs: Count = 10
    lr: Amount = 1e-3
    optimizer: str = "adamw"
    schedule: str = "cosine"
    warmup: Amount = 0.1
    decay: Amount = 1.0
    weight_decay: Amount = 0.0
    batch: Count = 32
    views: Count = 1
    patience: Count = 5


@dataclass(frozen=True)
class Plan:
    """The whole recipe.

    Attributes:
        stages: in order.
        size: image height and width in pixels; 0: as the checkpoint has it.
        crop: share of the shorter side that is kept.
        taps: feature maps whose pooled values the head takes; empty: the paper's own head.
        pool: how they are pooled, see `zoo.create_model`.
        dropout: before the logits. label_smoothing: 0..1.
        mixup: alpha of the Beta distribution that images (or their activations) are mixed by; 0
            is none. cutmix: the same for rectangles of images (or of maps).
        ema: decay of a moving average of the weights, which is then what is measured and kept; 0
            is none.
        augment: `none`, `light`, `medium` or `strong`.
        temperature: of a teacher's answers; 0: there is no teacher.
        l1, l2: penalties on the trained kernels.
        class_weight: `none` or `balanced`.
        monitor: what decides on best and early stopping: `val_loss` or `val_acc`.
        train_bn: let BatchNorm layers train and update their statistics.
        seed: of order, augmentation and new weights.
    """

    stages: tuple[Stage, ...]
    size: int = 0
    crop: float = 0.875
    taps: tuple[str, ...] = ("C5",)
    pool: str = "avg"
    dropout: float = 0.2
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    augment: str = "none"
    temperature: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    class_weight: str = "none"
    monitor: str = "val_loss"
    train_bn: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.stages:
            raise UsageError("plan.empty", "a plan needs at least one stage")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise UsageError(
                "plan.stage-twice", f"two stages have one name: {', '.join(names)[:200]}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain TOML values."""
        plain = asdict(self)
        plain["taps"] = list(self.taps)
        plain["stages"] = [asdict(stage) for stage in self.stages]
        return plain

    def for_images(self, images: int, chosen: Container[str] = ()) -> Plan:
        """Return the plan with more views, more epochs and an average where there are few images.

        With few of them a head gains by augmented ones, which then take seconds; deep stages
        need more epochs than a preset has for as many steps as get beyond the head that was
        fitted before. Where even those are few, a moving average of the weights takes out what
        few validation images cannot tell apart.

        Args:
            images: of the training split. chosen: settings that are the user's, and stay.
        """
        as_they_are = self.augment == "none" and "augment" in chosen
        views = 1 if as_they_are else min(1 + MORE_IMAGES // images, MOST_VIEWS)

        def steps(stage: Stage) -> int:
            return -(-images // stage.batch)

        def suited(stage: Stage) -> Stage:
            if stage.unfreeze == "head" or stage.views > 1:  # the same views: computed together
                stage = replace(stage, views=max(stage.views, views))
            if stage.unfreeze == "head":
                return stage
            epochs = max(stage.epochs, min(MOST_EPOCHS, -(-STEPS // steps(stage))))
            if epochs > stage.epochs and "patience" not in chosen:
                # where the rate falls to the end, the last epochs are mostly the best
                patience = epochs if stage.schedule in ("cosine", "onecycle") else epochs // 3
                stage = replace(stage, patience=max(stage.patience, patience))
            return replace(stage, epochs=epochs)

        stages = tuple(map(suited, self.stages))
        deep = [stage for stage in stages if stage.unfreeze != "head"]
        few = any(MOST_EPOCHS * steps(stage) < STEPS for stage in deep)
        augment = "light" if views > 1 and self.augment == "none" else self.augment
        ema = EMA_OF_FEW if few and "ema" not in chosen else self.ema
        return replace(self, stages=stages, augment=augment, ema=ema)

    def halved(self) -> Plan:
        """Return the plan with half of the epochs and views of each stage, rounded up."""

        def shorter(stage: Stage) -> Stage:
            return replace(stage, epochs=-(-stage.epochs // 2), views=-(-stage.views // 2))

        return replace(self, stages=tuple(map(shorter, self.stages)))

    def scaled(self, replicas: int, images: int, rates: bool = True) -> Plan:
        """Return the plan for so many replicas: each step has more images, and goes further.

        The batch is multiplied by the replicas, or by as much as leaves an epoch
        `STEPS_OF_EPOCH` steps. The learning rate grows with it for gradient descent
        (arXiv:1706.02677), with its square root for Adam (arXiv:2205.10287).

        Args:
            images: of an epoch. rates: also the learning rates; else they stay.
        """

        def larger(stage: Stage) -> Stage:
            factor = max(1, min(replicas, images // (STEPS_OF_EPOCH * stage.batch)))
            if stage.optimizer == LBFGS:
                return stage
            of_rate = factor**0.5 if stage.optimizer.startswith("adam") else factor
            lr = stage.lr * of_rate if rates else stage.lr
            return replace(stage, batch=stage.batch * factor, lr=lr)

        return replace(self, stages=tuple(map(larger, self.stages)))

    def fitted(self, taps: Iterable[str]) -> Plan:
        """Return the plan for a network that lacks a map of stride 32: C5 is then its last one."""
        known = list(taps)
        if not known or "C5" in known:
            return self
        wanted = self.taps
        if not set(wanted) <= set(known):  # the last ones, as many
            wanted = tuple(known[-len(wanted) :])
        stages = tuple(
            replace(s, unfreeze=known[-1]) if s.unfreeze == "C5" else s for s in self.stages
        )
        return replace(self, taps=wanted, stages=stages)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Plan:
        """Return the plan that `to_dict` gave.

        Raises:
            UsageError: `plan.unknown` naming a key that no plan has, `plan.stages` for a stage
                with a value of another kind.
        """
        plain = dict(plain)
        stages = tuple(map(_stage, plain.pop("stages")))
        taps = tuple(plain.pop("taps", ("C5",)))
        return cls(stages=stages, taps=taps, **_known(cls, plain))


def _stage(table: dict[str, Any]) -> Stage:
    """Return the stage that a table of plan.toml, or of a configuration, describes."""
    try:
        return TypeAdapter(Stage).validate_python(_known(Stage, table))
    except ValidationError as error:
        wrong = error.errors()[0]
        raise UsageError(
            "plan.stages",
            f"a stage's {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}",
            fix="plan.toml of a run shows what a stage looks like",
        ) from None


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    unknown = set(values) - {f.name for f in fields(kind)}
    if unknown:
        raise UsageError(
            "plan.unknown", f"{kind.__name__} has no {', '.join(sorted(unknown))[:200]}"
        )
    return values


PRESETS = ("fast", "balanced", "best")
MEMBERS = {"fast": 1, "balanced": 1, "best": 3}  # models that are averaged
# Networks that were trained on random crops see things larger than in whole photos: they do
# better with images somewhat larger than those of their training (arXiv:1906.06423).
SCALE = {"fast": 1.0, "balanced": 1.0, "best": 9 / 7}

# The recipes, as measured in benchmarks/RESULTS.md. Learning rates are for networks with
# BatchNorm; without it (VGG, AlexNet) the deeper stages take a tenth (`NO_NORM`).
LBFGS = "lbfgs"
HEAD = Stage("head", "head", epochs=1, optimizer=LBFGS)
OF_STEPS = ("lr", "optimizer", "schedule")  # what says nothing to a head that is solved
IN_STEPS = ("mixup", "cutmix", "ema", "dropout")  # nor these: they change each step
NOT_SOLVED = ("l1", "l2", "temperature")  # with which a head is not one that can be solved
# where the head is more than one layer, or has penalties of the user's
HEAD_BY_STEPS = Stage("head", epochs=60, lr=2e-3, weight_decay=1e-2, batch=128, patience=12)
# at twice that rate, layers lose what they know when images are unlike ImageNet's (digits)
TOP = Stage(
    "top", "C5", epochs=5, lr=5e-4, warmup=0.2, decay=0.7, weight_decay=1e-2, batch=32, views=4
)
TOP_LONG = replace(TOP, epochs=6, views=6)
ALL = Stage("all", "all", epochs=6, lr=3e-4, decay=0.7, weight_decay=1e-2, batch=32)
STEPS, MOST_EPOCHS = 460, 30  # a deep stage has so many steps, or so many epochs
MORE_IMAGES, MOST_VIEWS = 2000, 6  # a head's views are so many images more, or so many
EMA_OF_FEW = 0.97
NO_NORM = 0.1
TAPS = ("C4", "C5")
# C3 helps as well, where nothing but the head trains: what trains C5 alone is cut at C4, and such
# a cut gives a head nothing of C3
TAPS_OF_HEAD = ("C3", *TAPS)
SCRATCH = Stage("all", "all", epochs=30, lr=1e-3, weight_decay=1e-3, batch=32, patience=10)


def head_by_steps(stage: Stage, counted: bool = False) -> Stage:
    """Return the stage that trains by steps what `HEAD` would solve, with what a user chose.

    Args:
        counted: its epochs are the user's, also where they are as many as `HEAD` has.
    """
    ours = asdict(HEAD)
    chosen = {key: value for key, value in asdict(stage).items() if value != ours[key]}
    if counted:
        chosen["epochs"] = stage.epochs
    return replace(HEAD_BY_STEPS, **chosen)


def preset(name: str, *, pretrained: bool = True) -> tuple[tuple[Stage, ...], dict[str, Any]]:
    """Return the stages and the plan's other settings of a preset.

    Args:
        name: `fast` trains the head on features computed once; `balanced` also trains the
            last group on cached activations; `best` does so with larger and more varied images,
            for several models that are averaged (`MEMBERS`).
        pretrained: False: everything is trained from the start, in one stage.
    """
    if name not in PRESETS:
        raise UsageError("plan.preset", f"there is no preset {name!r}", fix=", ".join(PRESETS))
    if not pretrained:
        epochs = {"fast": 10, "balanced": 30, "best": 90}[name]
        return (replace(SCRATCH, epochs=epochs),), {"augment": "light", "train_bn": True}
    stages = {"fast": (HEAD,), "balanced": (HEAD, TOP), "best": (HEAD, TOP_LONG)}[name]
    augment = {"fast": "none", "balanced": "light", "best": "medium"}[name]
    rest = {"label_smoothing": 0.1, "dropout": 0.3, "pool": "moments", "crop": 1.0}
    # Not the loss: a head that was fitted to convergence has a lower one than deeper stages that
    # answer more photos rightly, since dropout and varied images make those less sure.
    rest["monitor"] = "val_acc"
    return stages, {"augment": augment, "taps": TAPS, **rest}


def parse_stages(text: str, known: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Return the stages that `head:3,C5:5,all:7` means.

    What is not said (learning rate, schedule, ...) comes from the stage of the preset that
    unfreezes the same, else from the one that unfreezes next to it.

    Raises:
        UsageError: `plan.stages` for a text that cannot be read.
    """
    found = []
    for item in text.split(","):
        unfreeze, _, epochs = item.strip().partition(":")
        if not unfreeze or not re.fullmatch("([1-9][0-9]{0,5})?", epochs):
            raise UsageError(
                "plan.stages", f"cannot read the stage {item!r}", fix="--stages head:3,C5:5,all:7"
            )
        like = next((s for s in (*known, HEAD, TOP, ALL) if s.unfreeze == unfreeze), TOP)
        name = unfreeze if like.unfreeze != unfreeze else like.name
        stage = replace(like, name=name, unfreeze=unfreeze)
        found.append(replace(stage, epochs=int(epochs)) if epochs else stage)
    return tuple(found)


def chosen_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that are a user's; `auto` and None are left to the preset."""
    return {key: value for key, value in settings.items() if value not in (AUTO, None)}


def make_plan(
    name: str,
    *,
    pretrained: bool = True,
    norm: bool = True,
    stages: Any = AUTO,
    epochs: Any = AUTO,
    cache: bool = True,
    overrides: dict[str, Any],
) -> Plan:
    """Return a preset with the user's settings put over it.

    Args:
        name: of the preset. pretrained: whether weights are loaded.
        norm: whether the network has BatchNorm; without it deep stages go slower.
        stages: `auto`, a text for `parse_stages`, or a list of tables as in plan.toml.
        epochs: `auto`, or how many in all; they are shared out as the preset's.
        cache: whether frozen layers may be computed once; without that no head is solved.
        overrides: fields of :class:`Plan` or :class:`Stage` (for every stage); `auto` is
            left to the preset.
    """
    chosen, rest = preset(name, pretrained=pretrained)
    if isinstance(stages, str) and stages != AUTO:
        chosen = parse_stages(stages, chosen)
    elif not isinstance(stages, str):
        chosen = tuple(map(_stage, stages))
    if not norm and isinstance(stages, str):  # tables say themselves how fast
        chosen = tuple(s if s.unfreeze == "head" else replace(s, lr=s.lr * NO_NORM) for s in chosen)
    given = chosen_of(overrides)
    own = {f.name for f in fields(Plan)}
    for_stages = {key: given.pop(key) for key in list(given) if key not in own}
    for_head = {key: value for key, value in for_stages.items() if key not in OF_STEPS}
    solved = [s.optimizer == LBFGS for s in chosen]
    solvable = cache and not any(map(given.get, NOT_SOLVED))
    # Who chooses how steps are taken wants steps. Where there are deeper stages theirs are meant,
    # but for a head that was given epochs.
    in_steps = isinstance(stages, str) and any(map(given.get, IN_STEPS))  # plan.toml has them all
    wants = for_head != for_stages or in_steps
    by_steps = [
        is_solved and (not solvable or (wants and (all(solved) or s.epochs != HEAD.epochs)))
        for s, is_solved in zip(chosen, solved, strict=True)
    ]
    counted = epochs != AUTO or "head:" in stages  # a table of a solved head counts nothing
    if epochs != AUTO:
        chosen = _share_out(chosen, int(epochs))
    chosen = tuple(
        head_by_steps(s, counted) if steps else s for s, steps in zip(chosen, by_steps, strict=True)
    )
    chosen = tuple(
        replace(s, **_known(Stage, for_head if s.optimizer == LBFGS else for_stages))
        for s in chosen
    )
    if all(stage.unfreeze == "head" for stage in chosen):
        if rest.get("taps") == TAPS:
            rest["taps"] = TAPS_OF_HEAD
        # on features computed once it sees nothing of this but in views; tables say how many
        if isinstance(stages, str) and given.get("augment", "none") != "none":
            chosen = tuple(replace(s, views=max(s.views, TOP.views)) for s in chosen)
    if "taps" in given:
        given["taps"] = tuple(given["taps"])
    return Plan(stages=chosen, **{**rest, **_known(Plan, given)})


def image_size(native: int, wanted: int, side: int, smallest: int, scale: float = 1.0) -> int:
    """Return the image size in pixels for photos whose shorter side is `side` (median).

    Images far smaller than the network's own size gain little from being blown up to it, and
    cost as much as large ones.

    Args:
        native: of the checkpoint. wanted: by the preset; 0: `native`, times `scale`.
        smallest: that the network can take.
    """
    enough = max(MIN_SIZE, -(-int(side * 1.6) // 32) * 32)
    wanted = wanted or (native if scale == 1 else round(native * scale / 32) * 32)
    return max(smallest, min(wanted, enough) if native > MIN_SIZE else native)


MIN_SIZE = 96  # pixels; the last map of a stride-32 network is then 3 x 3


def _share_out(stages: tuple[Stage, ...], epochs: int) -> tuple[Stage, ...]:
    """Give `epochs` to the stages in proportion to theirs, every stage at least one."""
    if epochs < len(stages):
        raise UsageError(
            "plan.epochs",
            f"{len(stages)} stages cannot share {epochs} epochs",
            fix="--stages says which stages there are",
        )
    total = sum(stage.epochs for stage in stages)
    shares = [max(1, epochs * stage.epochs // total) for stage in stages]
    while sum(shares) != epochs:
        step = 1 if sum(shares) < epochs else -1
        shares[shares.index(max(shares))] += step
    return tuple(replace(s, epochs=n) for s, n in zip(stages, shares, strict=True))
