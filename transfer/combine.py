"""Several trained classifiers become one: averaged answers, averaged weights, the mirror image.

Whatever there is to choose is chosen by the validation photos, never by the test photos.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelError
from ..zoo import average, graph
from .classifier import Classifier, rebuild, to_probabilities

if TYPE_CHECKING:
    from ..data import Data


@dataclass(frozen=True)
class Score:
    """How good answers are on the validation photos: mean loss in nats, and accuracy."""

    loss: float
    acc: float

    def beats(self, other: Score) -> bool:
        """Say whether it has the lower loss and no lower accuracy."""
        return self.loss < other.loss and self.acc >= other.acc

    def __str__(self) -> str:
        return f"accuracy {self.acc:.1%}, loss {self.loss:.4f}"


def score(data: Data, probabilities: np.ndarray) -> Score:
    """Return how good probabilities `(n, classes)` are for the validation photos."""
    labels, p = data.labels("val"), np.clip(probabilities.astype("float64"), 1e-15, 1.0)
    if data.task == "multilabel":
        loss = -(labels * np.log(p) + (1 - labels) * np.log(np.maximum(1 - p, 1e-15))).mean()
        return Score(float(loss), float(np.mean((p > 0.5) == (labels > 0.5))))
    if data.task == "binary":
        labels = np.concatenate([1 - labels, labels], axis=1)
    loss = -(labels * np.log(p)).sum(1).mean()
    return Score(float(loss), float(np.mean(p.argmax(1) == labels.argmax(1))))


def never_mirrored() -> ModelError:
    """Return the error of averaging over mirror images where there must not be any."""
    return ModelError(
        "model.never-mirrored",
        "the images of the run must not be mirrored (letters, left and right)",
        fix="leave --tta away, or train with --flip on",
    )


def mirrored(classifier: Classifier) -> Classifier:
    """Return the classifier that averages its answers for an image and its mirror image.

    Its weights are copies. A classifier that does so already is returned as it is.

    Raises:
        ModelError: `model.never-mirrored`: it was trained on images that may not be mirrored.
    """
    if graph.built(classifier.model).copies > 1:
        return classifier
    if classifier.origin.get("flip") is False:
        raise never_mirrored()
    create = graph.built(classifier.model).create
    return _averaged([classifier], create.get("average", "probabilities"), mirror=True)


def mirrored_if_better(
    classifier: Classifier, data: Data, say: Callable[[str], None]
) -> Classifier:
    """Return `mirrored(classifier)` if that is better on the validation photos, else itself."""
    if not data.flip:
        return classifier
    plain = score(data, classifier.answers(data, "val"))
    both = mirrored(classifier)
    found = score(data, both.answers(data, "val"))
    taken = found.beats(plain)
    say(
        f"with the mirror image: validation {found}; without: {plain}; "
        + ("it is averaged in" if taken else "it is left out")
    )
    return both if taken else classifier


def together(
    members: Sequence[Classifier],
    data: Data,
    how: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Classifier, dict[str, Any]]:
    """Return one classifier made of several.

    Args:
        members: of the same classes.
        data: whose validation photos decide.
        how: `probabilities` or `logits` are averaged; `auto` takes what has the lower validation
            loss (the average of logits is the surer one, which helps where the average is less
            sure than it is right). `weights` averages the
            weights of members of one architecture, greedily: from the best one on, each
            further one stays in only if validation gets better (arXiv:2203.05482).

    Returns:
        The classifier, and what is told of it: `average`; `members`, for each loss, acc and
        whether it is `in`; `loss` and `acc` of the result.

    Raises:
        ModelError: `model.not-alike`.
    """
    check_alike(members, how)
    answers = [member.answers(data, "val") for member in members]
    scores = [score(data, each) for each in answers]
    chosen = list(range(len(members)))
    if how == "weights":
        made, chosen, reached = _soup(members, scores, data, say)
    else:
        found = {h: score(data, _mean(answers, data.task, h)) for h in average.HOWS}
        if how == "auto":
            how = min(found, key=lambda h: found[h].loss)
        reached = found[how]
        made = _averaged(members, how)
        say(f"average of {how}: validation {reached}; alone: {'; '.join(map(str, scores))}")
        if (best := min(s.loss for s in scores)) < reached.loss and len(members) > 1:
            say(f"the best member alone has a lower validation loss, {best:.4f}, than the average")
    told = [{"loss": s.loss, "acc": s.acc, "in": i in chosen} for i, s in enumerate(scores)]
    return made, {"average": how, "members": told, "loss": reached.loss, "acc": reached.acc}


def _mean(answers: Sequence[np.ndarray], task: str, how: str) -> np.ndarray:
    """Return what the average of members answers, from their probabilities `(n, classes)`."""
    if how == "probabilities":
        return np.mean(answers, axis=0)
    # softmax forgets what is the same for all classes: logarithms serve as logits
    p = np.maximum(np.stack(answers), average.TINY).astype("float64")
    if task == "multiclass":
        return to_probabilities(np.log(p).mean(0), task)
    logits = (np.log(p) - np.log(np.maximum(1 - p, 1e-7))).mean(0)
    return to_probabilities(logits[:, 1:] if task == "binary" else logits, task)


def _averaged(members: Sequence[Classifier], how: str, *, mirror: bool = False) -> Classifier:
    first = members[0]
    model = average.average([m.model for m in members], first.task, how, mirror=mirror)
    about = graph.built(model)
    rule = replace(
        first.preprocess, size=about.preprocess.size, interpolation=about.preprocess.interpolation
    )
    origin = first.origin | {"create": about.create}
    if len(members) > 1:
        origin.pop("temperature", None)  # of the first one
    return Classifier(model, first.classes, first.task, rule, origin)


def _soup(
    members: Sequence[Classifier],
    scores: Sequence[Score],
    data: Data,
    say: Callable[[str], None],
) -> tuple[Classifier, list[int], Score]:
    """Return the greedy soup, which members are in it, and what it reaches."""
    order = sorted(range(len(members)), key=lambda i: scores[i].loss)
    best = members[order[0]]
    weights, chosen, reached = best.model.get_weights(), order[:1], scores[order[0]]
    for i in order[1:]:
        share = 1 / (len(chosen) + 1)
        tried = [
            (w + share * (other - w)).astype(w.dtype) if w.dtype.kind == "f" else w
            for w, other in zip(weights, members[i].model.get_weights(), strict=True)
        ]
        model = rebuild(best.origin["create"], best.preprocess)
        model.set_weights(tried)
        candidate = Classifier(model, best.classes, best.task, best.preprocess, best.origin)
        found = score(data, candidate.answers(data, "val"))
        taken = found.beats(reached)
        say(f"weights of {len(chosen) + 1}: validation {found}; {'kept' if taken else 'left out'}")
        if taken:
            best, weights, reached = candidate, tried, found
            chosen.append(i)
    return best, chosen, reached


def _graph(member: Classifier) -> str:
    return repr((sorted(member.origin["create"].items(), key=str), member.preprocess))


def check_alike(members: Sequence[Classifier], how: str) -> None:
    """Check that members can be made one, as `together` does it; raises ModelError."""
    first = members[0]
    if how == "weights" and len(set(map(_graph, members))) > 1:
        raise ModelError(
            "model.not-alike",
            "weights can be averaged only of one architecture at one image size",
            fix="--average probabilities",
        )
    for other in members[1:]:
        for what in ("classes", "task"):
            if getattr(first, what) != getattr(other, what):
                raise ModelError("model.not-alike", f"the members differ in their {what}")
        if first.preprocess.crop != other.preprocess.crop:
            raise ModelError(
                "model.not-alike",
                f"the members see {first.preprocess.crop} and {other.preprocess.crop} of an image",
                fix="train them with one --crop",
            )
