"""What frozen layers compute, kept on disk: once for each image and view, in this run and the next.

With everything below a tap frozen, the tap's output is a constant of the image. It is computed
once by a fast engine, kept as float16, and found again by what it depends on: the layers and
their weights, how the image is made, the view, and the content of the image file. So another
head, another learning rate, another split or ten more photos cost what is new in them and
nothing else. How it lies on disk is the matter of `shelf`.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np

from .. import files
from ..data import Data
from ..data import augment as augmentation
from ..data.pipeline import (
    Part,
    batches,
    identities,
    permutation,
    sample_weights,
    surfacing,
    untuned,
)
from ..errors import UsageError
from ..workers import Workers
from ..zoo import graph
from ..zoo.spec import Preprocess
from .engine import Engine
from .engine import frozen as fastest
from .shelf import Located, Shelf, let_go, make_room, root

FORMAT = 2  # of shelves, and of everything between an image file and what the network is given
MAPPED = 64 << 20  # bytes of shards that a process maps before it lets go of them
MAPPED_AROUND = 64 << 10  # what the system maps for the sake of one byte


class Activations:
    """Outputs of a frozen network for the images of a split, in their order.

    Attributes:
        shape: of one activation.
        labels: float32 `(n, k)`. weights: float32 `(n,)`, of the images.
        views: how many variants of each image there are; view 0 is the plain one.
    """

    def __init__(
        self,
        shards: Sequence[np.ndarray],
        places: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
    ):
        self._shards, self._places = shards, places  # int64 (views, n, 2): shard, row
        self.shape = tuple(shards[0].shape[1:])
        self.labels, self.weights, self.views = labels, weights, len(places)
        self._mapped = 0  # bytes of the shards that may count as memory of this process

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return the plain activations of some images as one float32 array."""
        return self.take(np.arange(len(self))[rows])

    def take(self, indices: np.ndarray, views: np.ndarray | int = 0) -> np.ndarray:
        """Return float32 `(len(indices), ...)`: image `indices[i]` in its view `views[i]`."""
        found = np.empty((len(indices), *self.shape), "float32")
        place = self._places[views, indices]
        for shard in np.unique(place[:, 0]):
            here = np.flatnonzero(place[:, 0] == shard)
            found[_span(here)] = self._shards[shard][_span(place[here, 1])]
            self._mapped += len(here) * max(found[:1].nbytes // 2, MAPPED_AROUND)
            if self._mapped > MAPPED:
                self._mapped = 0
                let_go(self._shards)
        return found

    def batches(
        self,
        batch: int,
        *,
        seed: int = 0,
        epochs: int = 1,
        start_epoch: int = 0,
        start_step: int = 0,
        shuffle: bool = False,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        part: Part | None = None,
    ):
        """Return a tf.data.Dataset of (activation, label, weight), epoch after epoch.

        The order is a permutation from (seed, epoch), and image i shows view i + epoch: so
        every epoch is known without those before it.

        Args:
            mixup, cutmix: see `data.augment.mixed` (on activations: arXiv:1806.05236); pooled
                ones have nothing that could be cut out, and are mixed only.
            part: only what this replica computes of each batch, and two values more, see
                `data.pipeline.batches`.
        """
        import tensorflow as tf

        n, steps = len(self), math.ceil(len(self) / batch)

        def gather(at):
            epoch, step = divmod(int(at), steps)
            order = permutation(n, seed, epoch) if shuffle else np.arange(n)
            chosen = order[step * batch : (step + 1) * batch]
            share: list[Any] = []
            if part:
                count = np.float32(len(chosen))
                chosen, real = part.cut(chosen, batch)
                share = [real, count]
            x = self.take(chosen, (chosen + epoch) % self.views if shuffle else 0)
            return x, self.labels[chosen], self.weights[chosen], *share

        def load(at):
            rows = part.most(batch) if part and part.same else None
            shapes: list[tuple] = [(rows, *self.shape), (rows, self.labels.shape[1]), (rows,)]
            shapes += [(rows,), ()] if part else []
            found = tf.numpy_function(gather, [at], [tf.float32] * len(shapes))
            for values, shape in zip(found, shapes, strict=True):
                values.set_shape(shape)
            return tuple(found)

        first = start_epoch * steps + start_step
        dataset = tf.data.Dataset.range(first, epochs * steps).map(load, num_parallel_calls=2)
        cutmix = cutmix if len(self.shape) == 3 else 0.0
        mixed = augmentation.mixed(dataset, mixup, seed, first, cutmix=cutmix)
        return untuned(mixed.prefetch(4))


class EveryView:
    """Activations with every view as rows: the plain ones, then all second views, and so on.

    Attributes:
        labels, weights: of the rows.
    """

    def __init__(self, activations: Activations):
        self._of = activations
        self.labels = np.tile(activations.labels, (activations.views, 1))
        self.weights = np.tile(activations.weights, activations.views)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return some rows as one float32 array."""
        views, images = np.divmod(np.arange(len(self))[rows], len(self._of))
        return self._of.take(images, views)


def _span(indices: np.ndarray) -> np.ndarray | slice:
    """Return indices that follow one another as a slice, with which NumPy takes half the time."""
    first, last = int(indices[0]), int(indices[-1])
    if last - first == len(indices) - 1 and (np.diff(indices) == 1).all():
        return slice(first, last + 1)
    return indices


@dataclass
class Speed:
    """What a pass cost: images computed, seconds in all, and those spent waiting for images."""

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def __str__(self) -> str:
        rate = self.images / max(self.seconds, 1e-9)
        return (
            f"{self.images:,} images, {self.seconds:.1f} s, {rate:.0f} img/s "
            f"({self.waited / max(self.seconds, 1e-9):.0%} waiting for images)"
        )


class Frozen:
    """The frozen layers of a model, how images are made for them, and what they give.

    Args:
        model: from `create_model`. The layers below a place must not train while the
            activations of that place are in use; where they may have, `look_again`.
        data: images. rule: how they are made.
        augment: level of the views after the first.
        batch: images computed at a time.
        steady: take the same engine each time, not the one that is faster just now or for so much
            work, and what it gave alone: the bits are the same whatever has been cleared.
        hold: the images of a pass will be wanted again.
        workers: the processes that compute what lacks together; each then has all of it.
        leave: called with the number of images after each batch, and with none while another
            process is waited for; raises to give up.
        say: told who is being waited for.
        bar: gives, for a label, a context in which (done, total) images are shown.

    Attributes:
        speed: what has been computed so far.
    """

    def __init__(
        self,
        model: keras.Model,
        data: Data,
        rule: Preprocess,
        *,
        augment: str = "none",
        batch: int = 32,
        steady: bool = False,
        hold: bool = True,
        workers: Workers | None = None,
        leave: Callable[[int], None] = lambda images: None,
        say: Callable[[str], None] = lambda line: None,
        bar: Callable[[str], Any] = lambda label: nullcontext(lambda done, total: None),
    ):
        self.bar, self._tell = bar, lambda images: None
        self.model, self.data, self.rule = model, data, rule
        self.augment, self.batch, self.steady, self.hold = augment, batch, steady, hold
        self.leave, self.say = leave, say
        self.workers = workers or Workers()
        self.speed = Speed()
        self._bottoms: dict[str, keras.Model] = {}
        self._digests: dict[str, str] = {}
        self._shelves: dict[Path, Shelf] = {}
        self._engines: dict[Any, Engine] = {}

    def bottom(self, place: str) -> keras.Model:
        """Return the model up to a place: a tap or `features`."""
        if place not in self._bottoms:
            self._bottoms[place], _ = graph.cut(self.model, place)
        return self._bottoms[place]

    def layers(self, place: str) -> str:
        """Return the `digest` of the layers up to a place, which takes a while for large ones."""
        if place not in self._digests:
            self._digests[place] = digest(self.bottom(place))
        return self._digests[place]

    def look_again(self) -> None:
        """Forget what the layers were: some may have trained."""
        self._digests.clear()

    def shelf(self, place: str, view: int) -> Shelf:
        """Return where the activations of a place and view are kept."""
        level = augmentation.level(self.augment) if view else None
        # without a level there is but the one view, whatever its number
        how = {"view": view, "flip": self.data.flip, **asdict(level)} if level else None
        rule = {key: getattr(self.rule, key) for key in ("size", "crop", "interpolation")}
        layers = self.layers(place)
        facts = {"format": FORMAT, "rule": rule, "view": how, "layers": layers}
        facts |= {"steady": True} if self.steady else {}
        folder = root() / files.sha256(json.dumps(facts, sort_keys=True).encode())[:32]
        if folder not in self._shelves:
            about = {"model": self.model.name, "place": place, "view": view, **rule}
            about |= {"augment": self.augment if level else "none", "layers": layers}
            shape = tuple(self.bottom(place).output.shape[1:])
            self._shelves[folder] = Shelf(folder, shape, about)
        return self._shelves[folder]

    def shelves(self, places: Iterable[str], views: int = 1) -> dict[tuple[str, int], Shelf]:
        """Return the shelves of some places and views."""
        return {(place, v): self.shelf(place, v) for place in places for v in range(views)}

    def missing(
        self, places: Iterable[str], splits: Iterable[str], views: Sequence[int] = (0,)
    ) -> int:
        """Return how many images x views, the plain one or these, would have to be computed."""
        every = self.shelves(places, max(views) + 1)
        lacking = sum(
            int((~np.all([s.holds(ids) for (_, v), s in every.items() if v == view], axis=0)).sum())
            for ids in (identities(self.data, split) for split in splits)
            for view in views
        )
        return max(self.workers.every(lacking))

    def room(self, wanted: Iterable[tuple[Iterable[str], int, Sequence[int]]]) -> bool:
        """Say whether activations can be kept, all of them; older ones, but not those of these
        places and views, may have to go.

        Args:
            wanted: places, how many images times views each of them lacks, and which views.
        """
        size, keep = 0, list[Path]()
        for places, images, views in wanted:
            every = self.shelves(places, max(views) + 1)
            shapes = [shelf.shape for (_, view), shelf in every.items() if not view]
            size += images * sum(2 * math.prod(shape) for shape in shapes)
            keep += [shelf.folder for shelf in every.values()]
        found = not size or make_room(size, keep)
        return all(self.workers.every(found))

    @contextmanager
    def passing(self, label: str, images: int) -> Iterator[None]:
        """Show how far the computing of so many images is, and start counting its speed anew."""
        self.speed = Speed()
        with self.bar(label) if images else nullcontext(lambda done, total: None) as tell:
            self._tell = lambda done: tell(min(done, images), images)
            try:
                yield
            finally:
                self._tell = lambda done: None

    def engine(self, places: Sequence[str], work: float | None = None) -> Engine:
        """Return the engine that computes some places in one pass."""
        return self._engine({place: self.layers(place) for place in places}, work)

    def activations(
        self,
        places: Sequence[str],
        split: str,
        *,
        views: int = 1,
        weights: np.ndarray | None = None,
        work: float | None = None,
    ) -> dict[str, Activations]:
        """Return the activations of a split at some places, computing what is not there yet.

        Args:
            places: taps or `features`; what lacks at several is computed in one pass.
            split: `train`, `val` or `test`. views: of each image.
            weights: of the classes, see `data.pipeline.class_weights`.
            work: GMACs to be computed in all, see `engine.frozen`.

        Raises:
            ResourceError: `resource.disk`; what was computed so far is kept.
        """
        ids, shelves = identities(self.data, split), self.shelves(places, views)
        # what was found is mapped, and stays readable where others clear the shelves meanwhile
        held = [
            self._fill({p: shelves[p, view] for p in places}, split, ids, view, work)
            for view in range(views)
        ]
        labels = self.data.targets(split)
        of_images = sample_weights(self.data, split, weights)
        found = {}
        for place in places:
            shards: list[np.ndarray] = []
            where = []
            for some, at in (of_view[place] for of_view in held):
                where.append(at + [len(shards), 0])
                shards += some
            found[place] = Activations(shards, np.stack(where), labels, of_images)
        return found

    def _fill(
        self, shelves: dict[str, Shelf], split: str, ids: np.ndarray, view: int, work: float | None
    ) -> dict[str, Located]:
        """Compute for one view what is not on the shelves; return where all of it is."""
        with ExitStack() as held:
            for shelf in sorted(shelves.values(), key=lambda s: s.folder):  # one order for all
                if self._writes and not shelf.holds(ids).all():
                    held.enter_context(shelf.writing(self._waiting, self._leave_alone))
            self.workers.every(None)  # those that write have their locks
            # what was waited for may be there now
            lacking = {p: ~s.holds(ids) for p, s in shelves.items()}
            if self.workers.count > 1:  # on the shelves of any of them
                every = self.workers.gather(np.stack(list(lacking.values()))[None])
                lacking = {p: np.any(every[:, i], axis=0) for i, p in enumerate(lacking)}
            lacking = {p: missing for p, missing in lacking.items() if missing.any()}
            if lacking:
                rows = np.flatnonzero(np.any(list(lacking.values()), axis=0))
                rows = np.sort(rows[np.unique(ids[rows], return_index=True)[1]])  # copies, once
                self._compute({p: shelves[p] for p in lacking}, split, ids, rows, view, work)
            self.workers.every(None)  # all is written
            found = {p: shelf.locate(ids) for p, shelf in shelves.items()}
            # what was there without being computed, and so is not locked, may have gone meanwhile
            there = self.workers.every(all(found.values()))
        if not all(there):
            return self._fill(shelves, split, ids, view, work)
        for shelf in shelves.values():
            shelf.touch()
        return {p: at for p, at in found.items() if at}

    @cached_property
    def _writes(self) -> bool:
        """Whether this process writes the shelves: the first of those that have them in common."""
        if self.workers.count == 1:
            return True
        path = root() / "id"  # no other folder of shelves has the same
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(path, uuid.uuid4().hex)
        self.workers.every(None)  # they may all have written it: all read the last one
        homes = self.workers.every(path.read_text("utf-8"))
        return homes.index(homes[self.workers.rank]) == self.workers.rank

    def _compute(self, shelves: dict[str, Shelf], split, ids, rows, view, work) -> None:
        run = self._engine({place: s.about["layers"] for place, s in shelves.items()}, work)
        # each process takes its share, of one length, and is told what the others computed
        workers, writes = self.workers, self._writes
        share = -(-len(rows) // workers.count)
        whole = np.resize(rows, (workers.count, share))
        new = np.arange(whole.size).reshape(whole.shape) < len(rows)  # the rest comes twice
        rows = whole[workers.rank]
        images_of = batches(
            self.data,
            split,
            self.rule,
            batch=self.batch,
            augment=self.augment,
            view=view,
            rows=rows,
            hold=self.hold,
        )
        writers = [shelf.writer() for shelf in shelves.values()]
        began = mark = time.perf_counter()
        done = 0
        try:
            with surfacing(self.data):
                for images, *_ in images_of:
                    self.speed.waited += time.perf_counter() - mark
                    answers = run(images.numpy())
                    here = np.s_[:, done : done + len(images)]
                    computed = whole[here][new[here]]
                    for writer, values in zip(writers, answers, strict=True):
                        values = workers.gather(values)[new[here].ravel()]
                        if writes:
                            writer.add(ids[computed], values)
                    done += len(images)
                    self._tell(self.speed.images + done * workers.count)
                    self.leave(len(images))
                    mark = time.perf_counter()
        finally:
            for writer in writers:
                writer.close()
            self.speed.images += min(done * workers.count, whole.size)
            self.speed.seconds += time.perf_counter() - began

    def _engine(self, layers: dict[str, str], work: float | None) -> Engine:
        key = tuple(layers.items())
        if key not in self._engines:
            outputs = [self.bottom(place).output for place in layers]
            bottom = keras.Model(self.model.input, outputs, name=self.model.name)
            work = None if self.steady else work
            self._engines[key] = fastest(bottom, batch=self.batch, work=work, steady=self.steady)
        return self._engines[key]

    def _waiting(self) -> None:
        self.say("waiting for another process that computes the same activations")

    def _leave_alone(self) -> None:
        if self.workers.count == 1:  # several leave together, and the others cannot be asked now
            self.leave(0)


def deepest(frozen: Frozen, split: str) -> str | None:
    """Return the deepest place at which all plain images of a split are in the cache."""
    try:
        about = graph.built(frozen.model)
        if about.copies > 1 or about.members > 1:  # its maps are not those of one image
            return None
        places = ("features", *reversed(graph.taps(frozen.model)))
    except UsageError:  # not a model of the zoo
        return None
    for place in places:
        try:
            if not frozen.missing([place], [split]):
                return place
        except UsageError:  # no cut can be made there
            continue
    return None


def digest(bottom: keras.Model) -> str:
    """Return a hash of the layers of a model and of all their weights."""
    # how a layer would train changes nothing of what it gives
    training = dict.fromkeys(("trainable", "synchronized"))
    layers = [[type(layer).__name__, {**layer.get_config(), **training}] for layer in bottom.layers]
    inner = json.dumps([layers, _links(bottom)], sort_keys=True, default=str).encode()
    parts = [inner, *(np.ascontiguousarray(w).tobytes() for w in bottom.get_weights())]
    return files.sha256("".join(files.sha256(part) for part in parts).encode())


def _links(model: keras.Model) -> list[Any]:
    """Return which layer takes what, by name."""
    return [
        [layer.name, [source.name for source in graph.sources(layer)]]
        for layer in model.layers
        if not isinstance(layer, keras.layers.InputLayer)
    ]
