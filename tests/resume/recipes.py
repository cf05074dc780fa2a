"""Varied recipes, each known by its seed, with moments to be killed at and ways to go on.

What a recipe holds is drawn from what a user may ask for; all sizes are small, so that one is
compared in seconds. Some are refused by dlzoo, or diverge: then nothing is compared.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nursery

PHOTOS = 48
WAIT = 600  # seconds that a start may take
STOPPED = 75  # by a signal, with a checkpoint
REFUSED = (2, 4, 6)  # settings that do not go together; it diverged
KINDS = {"multiclass": 4, "binary": 2, "multilabel": 3}  # classes


@dataclass(frozen=True)
class Cut:
    """One death, and what happens before the next start.

    Attributes:
        at: lets the process die. way: how it is gone on with. moves: `run`, `photos`.
    """

    at: partial
    way: str
    moves: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """Settings of `finetune`, the kind of photos, what it learns from, and its deaths."""

    kind: str
    settings: dict[str, Any]
    learns: tuple[str, ...]  # of `weights` and `teacher`: those that are a finished run
    cuts: list[Cut]

    def __str__(self) -> str:
        at = [
            f"{c.at.func.__name__}{(*c.at.args, *c.at.keywords)} {c.way} {' '.join(c.moves)}"
            for c in self.cuts
        ]
        return f"{self.kind} {self.learns} {self.settings}\n  {'; '.join(at)}"


def draw(seed: int) -> Recipe:
    """Return the recipe of a seed."""
    rng = random.Random(seed)

    def maybe(share: float, **values: Any) -> dict[str, Any]:
        """Return one value for each setting, in this share of the recipes."""
        chosen = {name: rng.choice(some) for name, some in values.items()}
        return chosen if rng.random() < share else {}

    kind = rng.choice([*KINDS, "multiclass"])
    learns = tuple(name for name in ("weights", "teacher") if rng.random() < 0.25)
    groups = rng.sample(["head", "C4", "C3", "all"], rng.choice([1, 2, 2, 3]))
    settings = {
        "backbone": rng.choice(["tiny", "steady"]),
        "preset": rng.choice(["fast", "balanced"]),
        "stages": ",".join(f"{group}:{rng.randint(1, 2)}" for group in groups),
        "taps": rng.choice([["C4"], ["C3", "C4"]]),
        "batch": rng.choice(["auto", 8, 8, 8]),
        "augment": rng.choice(["auto", "none", "light", "medium", "strong"]),
        "cache": rng.choice(["auto", "on", "off"]),
        "seed": rng.randrange(100),
        "save_every": rng.choice([1, 2, 3, 7]),
        "train_bn": rng.random() < 0.5,
        "dropout": rng.choice(["auto", 0.0, 0.3]),
        "lr": rng.choice(["auto", 0.02]),
        "patience": rng.choice(["auto", 1, 2]),
        "optimizer": rng.choice(["auto", "sgd", "momentum", "nesterov", "adam", "adamw"]),
        **maybe(0.5, schedule=["cosine", "onecycle", "plateau", "constant"]),
        **maybe(0.3, mixup=[0.2]),
        **maybe(0.3, cutmix=[0.5]),
        **maybe(0.3, ema=[0.9]),
        **maybe(0.3, label_smoothing=[0.1]),
        **maybe(0.3, l2=[1e-3]),
        **maybe(0.2, l1=[1e-4]),
        **maybe(0.3, class_weight=["balanced"]),
        **maybe(0.3, layer_decay=[0.7]),
        **maybe(0.4, monitor=["val_loss", "val_acc"]),
        **maybe(0.2, flip=["on", "off"]),
        **maybe(0.2, pool=["avg", "moments"]),
        **maybe(0.15, precision=["mixed"]),
        **maybe(0.25, tta=["auto", "on"]),
        **maybe(0.2, ensemble=[2, 3], average=["auto", "probabilities", "logits", "weights"]),
        **maybe(0.15, time=[1, 3600]),
        **maybe(0.2, export=[["keras"]]),
        **maybe(0.1, calibrate=[False]),
        **maybe(0.1, report=[True]),
    }
    if rng.random() < 0.5:  # tables tell more of a stage than a text does
        settings["stages"] = [
            {
                "name": f"stage {group}",
                "unfreeze": group,
                "epochs": rng.randint(1, 2),
                "lr": 0.02,
                "batch": rng.choice([8, 16]),
                "views": rng.randint(1, 3),
                "patience": rng.randint(1, 2),
                "optimizer": rng.choice(["lbfgs"] * 3 * (group == "head") + ["adam", "momentum"]),
                "schedule": rng.choice(["cosine", "onecycle", "plateau", "constant"]),
            }
            for group in groups
        ]
        for name in ("batch", "lr", "patience", "optimizer", "schedule"):
            if rng.random() < 0.8:
                settings.pop(name, None)
    step = partial(nursery.at_step, rng.randint(1, 4))
    moments = [
        *(partial(nursery.at_step, n) for n in range(2, 8)),
        *(partial(nursery.before_stage, n) for n in (1, 2, 3)),
        partial(nursery.in_validation, rng.randint(1, 3)),
        partial(nursery.after_epoch, rng.randint(1, 3)),
        partial(nursery.in_save, rng.randint(1, 3), rng.randint(1, 6)),
        partial(nursery.in_cache, "add", rng.randint(1, 2)),
        partial(nursery.in_cache, "close", rng.randint(1, 2)),
        partial(nursery.signalled, signal.SIGTERM, rng.randint(1, 9)),
        *(partial(nursery.in_finish, where) for where in ("save", "predictions", "plots")),
        partial(nursery.in_finish, "metrics", rng.randint(1, 2)),
        partial(nursery.in_finish, "save", after=True),
        partial(nursery.in_finish, "finished", after=rng.random() < 0.5),
    ]
    for where, asked in (
        ("teacher", "teacher" in learns),
        ("members", "ensemble" in settings),
        ("export", "export" in settings),
        ("report", "report" in settings),
    ):
        moments += [partial(nursery.in_finish, where)] * 3 * asked
    cuts = [
        Cut(
            at,
            rng.choice(["finetune", "resume", "resume", "command"]),
            tuple(m for m in ("run", "photos") if rng.random() < 0.2),
        )
        for at in (step, *rng.sample(moments, rng.choice([1, 1, 2])))[-3:]
    ]
    if rng.random() < 0.5:
        cuts.reverse()
    return Recipe(kind, settings, learns, cuts)


def photos(root: Path, kind: str) -> Path:
    """Write the photos of a kind, more of some classes than of others; return the source."""
    from PIL import Image

    images, _ = nursery.photos()
    classes, rows = KINDS[kind], ["path,label"]
    for i, image in enumerate(images[:PHOTOS]):
        label = i % classes if i % 5 else 0
        image[..., 1] //= label + 1
        folder = root / ("photos" if kind == "multilabel" else f"class{label}")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
        more = f"|class{(label + 1) % classes}" if i % 3 else ""
        rows.append(f"photos/{i}.png,class{label}{more}")
    if kind != "multilabel":
        return root
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root / "labels.csv"


def learnt_from(base: Path, recipe: Recipe) -> Path:
    """Return a finished run of the same kind of photos and the same backbone."""
    backbone = recipe.settings["backbone"]
    out = base / f"earlier-{recipe.kind}-{backbone}"
    if not (out / "run" / "metrics.json").is_file():
        source = photos(out / "photos", recipe.kind)
        settings = {"backbone": backbone, "stages": "all:1", "home": base / "home"}
        assert nursery.run(out, data=str(source), **settings) == 0, nursery.said(out)
    return out / "run"


def compare(base: Path, seed: int) -> dict[str, Any]:
    """Do a recipe undisturbed and with its deaths.

    Args:
        base: folder for both, which several recipes may share.

    Returns:
        How often it was `killed`, and why it was `refused`, if it was not carried out at all.

    Raises:
        AssertionError: it did not go on, or not to the same; the recipe, and what was printed.
    """
    recipe, here = draw(seed), base / f"recipe-{seed}"
    shutil.rmtree(here, ignore_errors=True)
    learns = {name: str(learnt_from(base, recipe)) for name in recipe.learns}
    settings = {**recipe.settings, **learns}
    whole, out = here / "whole", here / "cut"
    source = photos(here / "photos", recipe.kind)
    of_whole = str(photos(here / "photos-of-whole", recipe.kind))
    if code := nursery.run(whole, wait=WAIT, data=of_whole, home=base / "home", **settings):
        assert code in REFUSED, f"{recipe}\n{nursery.said(whole)}"
        return {"killed": 0, "refused": nursery.said(whole).strip().splitlines()[-2:]}
    home = here / "home" if seed % 2 else base / "home"
    killed, goes_on = 0, {"data": str(source), **settings}
    for cut in (*recipe.cuts, None):
        at = (cut.at,) if cut else ()
        code = nursery.run(out, *at, wait=WAIT, home=home, **goes_on)
        allowed = (0, STOPPED, -signal.SIGKILL) if cut else (0,)
        assert code in allowed, f"{recipe}\nexit {code}\n{nursery.said(out)}"
        if not cut:
            break
        killed += code != 0
        if "run" in cut.moves:
            out = out.rename(out.with_name(f"{out.name}-moved"))
        moved = {}
        if "photos" in cut.moves:
            folder = here / source.relative_to(here).parts[0]
            folder = folder.rename(folder.with_name(f"{folder.name}-moved"))
            source = folder.joinpath(*source.relative_to(here).parts[1:])
            moved = {"data": str(source)}
        goes_on = _way(cut.way, out, moved) or {"data": str(source), **settings}
    one, other = _came_to(whole), _came_to(out)
    different = [name for name in one if one[name] != other[name]]
    left = [p.name for p in (out / "run").rglob("*") if ".part" in p.name or "ckpt" in p.name]
    assert not different + left, f"{recipe}\n{different} {left}\n{nursery.said(out)}"
    shutil.rmtree(here)
    return {"killed": killed, "refused": None}


def _way(way: str, out: Path, moved: dict[str, str]) -> dict[str, Any] | None:
    """Return how a child goes on with the run alone; None where that is not possible."""
    if way == "finetune" or not (out / "run" / "config.toml").is_file():
        return None  # where it had not begun, it is begun
    if way == "command":  # which knows of no other photos
        return None if moved else {"job": nursery.command}
    return {"job": nursery.resume, "quiet": True, "report": False, **moved}


def _came_to(out: Path) -> dict[str, Any]:
    figures = json.loads((out / "run" / "metrics.json").read_text())
    return nursery.result(out) | {name: figures[name] for name in ("val", "test", "best")}
