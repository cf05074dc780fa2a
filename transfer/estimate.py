"""How long a stage will take, either way: frozen layers computed once, or in every epoch.

Measured is how fast this machine runs the frozen layers of this network, in Keras and on the
engine, on one batch (which the engine's check needs anyway). The rest is counted: a training
step of a layer costs three times its forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..data.pipeline import batches, surfacing
from ..zoo import graph
from .cache import Frozen
from .freeze import Split, frozen_part, unfreeze
from .plan import LBFGS, Plan, Stage

BACKWARD = 3.0  # cost of a training step over that of a forward pass
FIXED = 15.0  # seconds: loading TensorFlow, converting, measuring the result


@dataclass(frozen=True)
class Rates:
    """10^9 multiply-accumulates a second, forward: in Keras, and on the engine."""

    keras: float
    engine: float


@dataclass(frozen=True)
class Estimate:
    """Seconds of a stage: frozen layers computed once and kept, or live in every epoch."""

    cached: float
    live: float

    @property
    def seconds(self) -> float:
        """What it takes the faster way."""
        return min(self.cached, self.live)

    def __str__(self) -> str:
        way = "cached" if self.cached <= self.live else "live"
        return (
            f"about {self.cached:,.0f} s with frozen layers computed once, {self.live:,.0f} s "
            f"with all in every epoch: {way}"
        )


def rates(frozen: Frozen, places: Sequence[str]) -> Rates:
    """Measure both on a batch of the training images."""
    engine = frozen.engine(places)
    if not engine.seconds:
        with surfacing(frozen.data):
            images, *_ = next(
                iter(batches(frozen.data, "train", frozen.rule, batch=frozen.batch, view=0))
            )
        engine.measure(images.numpy())
    cost = engine.batch * max(graph.gmacs(frozen.bottom(place)) for place in places)
    return Rates(cost / engine.seconds["keras"], cost / engine.seconds[engine.name])


def stage(
    rates: Rates, split: Split, stage: Stage, images: Mapping[str, int], missing: int
) -> Estimate:
    """Estimate a stage if all its epochs are needed.

    Args:
        split: where the network is cut for it. images: in each split.
        missing: images x views that are not in the cache yet.
    """
    below, above = graph.gmacs(split.bottom), graph.gmacs(split.top)
    if stage.optimizer == LBFGS:  # a second or two
        once = missing * below / rates.engine
        return Estimate(once, once)
    epoch = images["train"] * BACKWARD + images["val"]
    trained = stage.epochs * epoch * above / rates.keras
    again = stage.epochs * (images["train"] + images["val"]) * below / rates.keras
    return Estimate(missing * below / rates.engine + trained, again + trained)


def plan(rates: Rates, frozen: Frozen, plan: Plan, use_cache: bool = True) -> float:
    """Estimate a whole run in seconds, if all its epochs are needed.

    Args:
        use_cache: False: no stage computes frozen layers once.
    """
    images, total = frozen.data.splits, FIXED
    passed = 0  # views of the training images that an earlier stage's pass takes for all places
    for each in plan.stages:
        unfreeze(frozen.model, each.unfreeze, train_bn=plan.train_bn)
        split = frozen_part(frozen.model)
        if split and not use_cache:
            total += stage(rates, split, each, images, missing=0).live
            continue
        if split is None:
            steps = each.epochs * (BACKWARD * images["train"] + images["val"])
            total += steps * graph.gmacs(frozen.model) / rates.keras
            continue
        missing = 0
        if new := range(passed, each.views):
            missing = frozen.missing([split.at], ["train"], new)
        if not passed:
            missing += frozen.missing([split.at], ["val", "test"])
        passed = max(passed, each.views)
        total += stage(rates, split, each, images, missing).seconds
    return total
