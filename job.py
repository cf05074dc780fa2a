"""The steps of a fine-tuning run, from its settings to its metrics."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import asdict, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from . import __version__, cluster, console, files, resuming
from .config import OF_DATA, FinetuneConfig, to_toml
from .data import Data, load_data
from .data.load import is_name
from .data.table import read_csv
from .errors import (
    DataError,
    ExportError,
    Interrupted,
    ResourceError,
    UsageError,
)
from .machine import changes, environment
from .rundir import RunDir, file_stem, now, read_values, versions
from .signals import listen
from .workers import Workers
from .zoo import resolve as find_model
from .zoo.sources import is_path
from .zoo.weights import offline_if

if TYPE_CHECKING:
    from .transfer.classifier import Classifier
    from .transfer.distribute import Machine
    from .transfer.plan import Plan
    from .zoo.spec import Preprocess

T = TypeVar("T")


def may_fetch(step: Callable[..., T]) -> Callable[..., T]:
    """Let a step of a job open no connection where its settings say so; other jobs still may."""

    @wraps(step)
    def obeying(self: Job, *given: Any, **more: Any) -> T:
        with offline_if(self.config.offline):
            return step(self, *given, **more)

    return obeying


def with_data(settings: dict[str, Any], data: Any) -> dict[str, Any]:
    """Return the settings of a call from Python with what its data says of them.

    Raises:
        UsageError: `usage.data`: a setting comes too late for what `load_data` has returned.
    """
    if isinstance(data, str | Path):
        return {**settings, "data": str(data)}
    if not isinstance(data, Data):
        return settings
    # the seed is that of the training, too
    late = [name for name in OF_DATA if name != "seed" and settings.get(name) is not None]
    if late:
        raise UsageError(
            "usage.data",
            f"{late[0]}= comes too late for data that is loaded and split already",
            fix=f"load_data(..., {late[0]}=...), or give the path to both",
        )
    names = {argument: name for name, argument in OF_DATA.items()}
    found = {names.get(argument, argument): value for argument, value in data.found.items()}
    return {**found, **data.said, **settings}


class Job:
    """The steps of `finetune`, in order; each sets what the later ones need."""

    def __init__(self, config: FinetuneConfig, source: Any):
        self.config, self.source = _found_from_anywhere(config), source
        self.preset: str = config.preset  # or what `time` takes
        self.began = time.perf_counter()
        self.classifier: Classifier | None = None
        self.workers = Workers()
        self.plan: Plan
        self.rule: Preprocess

    def run(self, then: Callable[[RunDir], None] = lambda directory: None) -> RunDir:
        """Do it all, up to the metrics; `classifier` stays None if the run was finished before.

        Args:
            then: what else is to be done before the run counts as finished, and is done again
                when the run is resumed; an export that is refused does not undo the run.
        """
        from .transfer.shelf import wanted_limit

        config, workers = self.config, self.meet()
        with workers.watching():
            if workers.chief:
                wanted_limit()  # one that is no size is told before anything is made
                RunDir.check(config.out, None if config.resume == "auto" else config.name)
            self.find_model()
            self.load_data()
            self.check_same_everywhere()
            stem = file_stem(f"{config.backbone}-{self.data.name}")
            resumes = workers.chief and config.resume == "auto"
            begun = self.to_resume(stem) if resumes else None
            if found := workers.agree(_finished(begun)):
                directory = RunDir(found)
                if workers.chief:  # where it was killed between being finished and this
                    directory.let_checkpoints_go()
                console.say(f"nothing to resume: {found} is finished ({_epochs(directory)})")
                self.note_late(directory)
                return directory
            going_on = workers.agree(begun is not None and begun.begun)
            self.build(begun if going_on else None)
            if not workers.chief:
                directory = RunDir(workers.agree(None))
                self.help(directory, going_on)
                return directory
            directory = begun or RunDir.create(config.out, config.name, stem)
            workers.agree(directory.path.absolute())
            self.run_in(directory, going_on, then)
            return directory

    def run_in(self, directory: RunDir, going_on: bool, then: Callable[[RunDir], None]) -> None:
        """Do what is left, as the process that writes it to a directory."""
        refused = None
        with (
            directory,
            console.logging_to(directory.log),
            self.workers.watching(),
            _interruptible(directory),
        ):
            if going_on:
                self.note_resumed(directory)
            else:
                self.write_inputs(directory)
            self.header(directory)
            outcome = self.train(directory, resume=going_on)
            self.finish(directory, outcome)
            try:
                then(directory)
            except ExportError as error:
                refused = error
        # not before the run counts as finished: until then it may have to be resumed
        directory.let_checkpoints_go()
        self.workers.part()
        if refused:
            raise refused

    def recorded(self, directory: RunDir) -> str:
        """Return the settings as config.toml holds them.

        Data that `load_data` has split from Python are found in the same splits without it.
        """
        config = self.config
        if isinstance(self.source, Data) and config.data:
            split = {"split_file": str(directory.manifest.absolute())}
            config = config.model_copy(update=split)
        return to_toml(config)

    def help(self, directory: RunDir, going_on: bool) -> None:
        """Compute a share of it, as one of the processes that write nothing; wait for its end."""
        if not directory.json.is_file():
            raise ResourceError(
                "dist.no-shared-folder",
                f"rank {self.workers.rank} does not see the run that rank 0 has made",
                where=directory.path,
                fix="--out on a file system that all workers share",
            )
        with _interruptible(directory):
            self.train(directory, resume=going_on)
        self.workers.part()

    def meet(self) -> Workers:
        """Meet the other processes of the job; TensorFlow must not have computed anything yet."""
        if self.config.strategy in ("auto", "multiworker") and cluster.find():
            self.workers = self.machine.workers
            if not self.workers.chief:  # only the first one speaks
                console.setup(mute=True, log_format=self.config.log_format)
        return self.workers

    @cached_property
    def machine(self) -> Machine:
        """What the job computes on; the process is set up for it when this is first asked for."""
        from .transfer.distribute import prepare

        config = self.config
        return prepare(
            device=config.device,
            strategy=config.strategy,
            precision=config.precision,
            seed=config.seed,
            deterministic=config.deterministic,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the process as it was found."""
        if "machine" in vars(self):
            self.machine.leave()

    def check_same_everywhere(self) -> None:
        """See that all processes have the same photos and the same program."""
        own = {"photos": self.data.fingerprint, **versions()}
        for rank, other in enumerate(self.workers.every(own)):
            differ = [key for key in own if other[key] != own[key]]
            if differ:
                raise DataError(
                    "dist.differs",
                    f"rank {rank} has other {', '.join(differ)} than rank {self.workers.rank}",
                    fix="give all workers the same data and install the same versions",
                )

    def rehearse(self) -> dict[str, Any]:
        """Check everything and run one train and one eval step of each stage; write nothing."""
        from .transfer.fit import rehearse

        RunDir.check(self.config.out, self.config.name)
        self.find_model()
        self.load_data()
        self.build()
        with self.machine.strategy.scope():
            stages = rehearse(
                self.model, self.data, self.plan, self.rule, use_cache=self.config.cache != "off"
            )
        return {"plan": self.plan.to_dict(), "data": self.data.summary(), "stages": stages}

    @may_fetch
    def find_model(self) -> None:
        """Resolve backbone and weights, and fetch them: no data is read before they are here."""
        from .zoo.weights import locate

        config = self.config
        if config.teacher is not None:
            RunDir.open(config.teacher)
        tag: Any = {"auto": True, "none": None}.get(config.weights, config.weights)
        self.variant, self.row = find_model(config.backbone, None if is_path(tag) else tag)
        if config.weights == "auto" and not self.variant.weights:
            raise UsageError(
                "model.no-weights",
                f"{self.variant.name} has no published weights",
                fix="--weights none trains it from scratch",
            )
        self.weights: Any = tag if is_path(tag) else None
        # the checkpoint that a name may have tells what a file is like, and is not loaded
        self.named = config.backbone if self.weights else self.variant.name
        if self.weights or config.weights == "none":
            self.row = None
        self.pretrained = bool(self.row or self.weights)
        if config.size != "auto" and config.size < self.variant.min_size:
            raise UsageError(
                "model.size",
                f"{self.variant.name} needs images of at least {self.variant.min_size} pixels, "
                f"got {config.size}",
                fix=f"--size {self.variant.size}",
            )
        if self.row:
            with console.progress(f"{self.variant.name}.{self.row.tag}") as progress:
                if self.row.reader != "preset":  # such a library loads its own
                    locate(self.row, self.variant.name, progress=progress)
            self.weights = self.row.tag

    @may_fetch
    def load_data(self) -> None:
        config = self.config
        if isinstance(self.source, Data):
            self.data = copy(self.source)  # what is decided here is not for the caller's next run
        elif self.source is None:
            raise UsageError("usage.data", "no data given", fix="--data digits, or --data FOLDER")
        else:
            with console.progress("scanning images") as progress:
                self.data = load_data(self.source, **config.of_data(), progress=progress)
        self.data.settle_flip(config.flip)
        if config.tta == "on" and not self.data.flip:
            from .transfer.combine import never_mirrored

            raise never_mirrored()  # not at the end of all training
        if not self.data.splits["val"]:
            raise DataError(
                "data.no-validation",
                "training needs validation photos to know its best epoch",
                where=self.data.name,
                fix="--val-split 0.1, or put some in the split file",
            )

    def to_resume(self, stem: str) -> RunDir | None:
        """Return the run to go on with: the named one, else the newest that is the same job."""
        return resuming.find(self.config, self.data, stem)

    def note_late(self, directory: RunDir) -> None:
        """Say which settings come too late for a run that is finished."""
        if late := sorted(
            {"average", "tta"} & resuming.changed_settings(self.config, directory).keys()
        ):
            console.say(
                f"it keeps its own {' and '.join(late)}; another run of it: "
                f"dlzoo ensemble {shlex.quote(str(directory.path))} --tta on"
            )

    def note_resumed(self, directory: RunDir) -> None:
        """Record that a run goes on, and whether it can still be the same to the last bit."""
        record = directory.read()
        old, new = record.get("environment", {}), self.environment()
        if changed := changes(old, new):
            console.say(
                f"resume.not-bit-exact: {', '.join(changed)}; the run goes on, but not to the "
                "same last bit"
            )
        exact = self.config.deterministic and not changed
        past = record.get("resumed", [])
        if self.config.data:  # the photos may have moved
            files.write_text(directory.config, self.recorded(directory))
        directory.record(
            resumed=[*past, {"at": now(), "changed": changed, "bit_exact": exact}],
        )

    def environment(self) -> dict[str, Any]:
        """Return everything a result depends on, to the last bit, beside the recipe."""
        used = {name: getattr(self.machine, name) for name in ("device", "precision", "replicas")}
        return environment() | used

    def build(self, begun: RunDir | None = None) -> None:
        """Set the machine up, make the plan, and build the model it asks for.

        Args:
            begun: the run to go on with; its plan is taken as it stands.
        """
        from .transfer.plan import Plan

        config = self.config
        plan = None
        if begun and begun.plan.is_file():
            plan = read_values(begun.plan)
            self.preset = begun.read().get("preset", config.preset)
        elif config.time and self.workers.chief:
            self.build_in_time(config.time)
            if self.workers.count == 1:
                return
            plan = self.plan.to_dict()
        if plan := self.workers.agree(plan):
            self.build_for(Plan.from_dict(plan))
        else:
            self.build_for(self.make_plan(config.preset), config.preset)

    def build_in_time(self, seconds: int) -> None:
        """Take the best preset, whole or halved, that is estimated to fit."""
        from .transfer import estimate
        from .transfer.cache import Frozen
        from .transfer.freeze import frozen_part, unfreeze
        from .transfer.plan import PRESETS

        rates = None
        for name in reversed(PRESETS):
            # variables of all processes cannot be made by one
            self.build_for(self.make_plan(name), name, alone=self.workers.count > 1)
            frozen = Frozen(self.model, self.data, self.rule, augment=self.plan.augment)
            if rates is None:
                unfreeze(self.model, self.plan.stages[0].unfreeze)
                split = frozen_part(self.model)
                rates = estimate.rates(frozen, [split.at if split else "features"])
            for shown in (self.plan, self.plan.halved()):
                needed = estimate.plan(rates, frozen, shown, self.config.cache != "off")
                if needed <= seconds:
                    break
            else:
                continue
            break
        self.plan, self.preset = shown, name
        fits = "fits into" if needed <= seconds else "is the shortest there is for"
        epochs = ", ".join(f"{stage.name} {stage.epochs}" for stage in shown.stages)
        console.say(f"preset {name} ({epochs}): about {needed:,.0f} s, {fits} {seconds:,} s")

    @may_fetch
    def build_for(self, plan: Plan, preset: str | None = None, alone: bool = False) -> None:
        """Build the model that a plan asks for, and fit the plan to it.

        Args:
            preset: that the plan was made from; None: it is taken as it stands.
            alone: build it for this process only.
        """
        import keras

        from . import zoo
        from .transfer.freeze import unfreeze
        from .zoo import graph

        plan = plan.fitted(self.variant.taps)
        arguments: dict[str, Any] = {"pool": plan.pool, "taps": plan.taps}
        if self.variant.thumbnail:  # nothing to pool: it keeps the head of its paper
            arguments, plan = {}, replace(plan, taps=())
        scope = nullcontext() if alone else self.machine.strategy.scope()
        # new weights do not depend on what was built before, to see how long it would take
        keras.utils.set_random_seed(self.config.seed)
        with scope:
            self.model = zoo.create_model(
                self.named,
                num_classes=1 if self.data.task == "binary" else len(self.data.classes),
                weights=self.weights,
                input_shape=(plan.size, plan.size, 3),
                dropout=plan.dropout,
                **arguments,
            )
        kinds = {type(layer).__name__ for layer in self.model.layers}
        if preset and "BatchNormalization" not in kinds:
            plan = replace(
                self.make_plan(preset, norm=False).fitted(self.variant.taps), taps=plan.taps
            )
        for stage in plan.stages:
            unfreeze(self.model, stage.unfreeze)  # says now if there is no such group
        self.plan = plan
        self.rule = replace(graph.built(self.model).preprocess, crop=plan.crop)

    def make_plan(self, preset: str, norm: bool = True) -> Plan:
        """Return a preset with the user's settings, its size and crop decided."""
        from .transfer.plan import SCALE, chosen_of, image_size, make_plan

        config = self.config
        names = [
            "taps", "pool", "crop", "augment", "dropout", "label_smoothing", "mixup", "cutmix",
            "ema", "l1", "l2", "class_weight", "monitor", "seed", "lr", "optimizer", "schedule",
            "batch", "patience",
        ]  # fmt: skip
        settings = {
            **{name: getattr(config, name) for name in names},
            "decay": config.layer_decay,
            "train_bn": config.train_bn or None,
            "temperature": config.temperature if config.teacher else None,
        }
        plan = make_plan(
            preset,
            pretrained=self.pretrained,
            norm=norm,
            stages=config.stages,
            epochs=config.epochs,
            cache=config.cache != "off",
            overrides=settings,
        )
        size = config.size
        if size == "auto":
            side = self.data.summary()["shorter_side"]["median"]
            native = self.row.preprocess.size if self.row else self.variant.size
            scale = SCALE[preset] if self.pretrained else 1.0
            size = image_size(native, plan.size, side, self.variant.min_size, scale)
        if self.pretrained and config.epochs == config.stages == "auto":
            plan = plan.for_images(self.data.splits["train"], chosen_of(settings))
        if config.batch == "auto":
            plan = plan.scaled(
                self.machine.replicas, self.data.splits["train"], config.lr == "auto"
            )
        return replace(plan, size=size)

    def write_inputs(self, directory: RunDir) -> None:
        """Write what the run starts from, before the first step."""
        import tomli_w

        files.write_text(directory.plan, tomli_w.dumps(self.plan.to_dict()))
        files.write_text(directory.labels, files.lines_of(self.data.classes))
        self.data.write_manifest(directory.manifest)
        self.data.write_problems(directory.data_report)
        directory.record(
            data=self.data.fingerprint,
            model=self.variant.name,
            weights=self.row.tag if self.row else self.config.weights,
            preset=self.preset,
            device=self.machine.device,
            precision=self.machine.precision,
            replicas=self.machine.replicas,
            deterministic=self.config.deterministic,
            environment=self.environment(),
        )
        # last: a directory with a configuration is one that can be resumed
        files.write_text(directory.config, self.recorded(directory))

    def header(self, directory: RunDir) -> None:
        """Say in six lines what is about to happen."""
        data, plan, row = self.data, self.plan, self.row
        name, origin = self.variant.name, "random weights"
        if row:
            name = f"{name}.{row.tag}"
            digest = row.sha256 or row.sha256_prefix
            origin = f"sha256 {digest[:8]}.." if digest else f"md5 {(row.md5 or 'unknown')[:8]}.."
        elif self.weights:
            origin = str(self.weights)
        sizes = "/".join(str(n) for n in data.splits.values())
        how = "from file" if self.config.split_file else f"stratified, seed {self.config.seed}"
        stages = ", ".join(f"{s.name} {s.epochs}" for s in plan.stages)
        warned = sum(problem.action == "kept" for problem in data.problems)
        console.header(
            [
                f"dlzoo {__version__}  {name} ({origin})  ->  {len(data.classes)} classes, "
                f"{len(data):,} images ({data.skipped} skipped)",
                f"split {sizes} {how}, manifest {data.fingerprint[:8]}..  "
                f"{warned} warnings in data_report.csv",
                f"device {self.machine.words}  "
                f"images {plan.size} px, augment {plan.augment}"
                + ("" if data.flip else ", never mirrored"),
                f"plan {self.preset}: {stages} epochs at most  monitor {plan.monitor}"
                + self.of_replicas(),
                f"model {self.model.count_params():,} parameters  task {data.task}",
                f"run {directory.path}",
            ]
        )

    def of_replicas(self) -> str:
        """Return what the header says of the batches that several replicas share."""
        if self.machine.replicas == 1:
            return ""
        said = dict.fromkeys(f"{s.batch} at {s.lr:.2g}" for s in self.plan.stages)
        return f"  batch {', '.join(said)} over all replicas"

    def train(self, directory: RunDir, resume: bool):
        from .callbacks.followers import following
        from .transfer.fit import train
        from .zoo.load import as_path

        choice = {"auto": None, "on": True, "off": False}[self.config.cache]
        if file := as_path(self.config.weights):  # RUN/model/FILE, if it is of a run
            self.tell_of_photos_seen(RunDir(file.absolute().parent.parent))
        self.be_taught(directory)
        settings = self.config.model_dump(exclude_none=True)
        with following(directory.path, self.config.track, settings, console.say) as followers:
            outcome = train(
                self.model,
                self.data,
                self.plan,
                self.rule,
                folder=directory.path,
                resume=resume,
                machine=self.machine,
                use_cache=choice,
                save_every=self.config.save_every,
                deterministic=self.config.deterministic,
                halve=self.config.batch == "auto",
                followers=[*followers, console.Epochs()],
                quiet=self.config.quiet or not self.workers.chief or console.is_json(),
                say=console.say,
                log=console.log,
                bar=console.progress,
            )
            if outcome.interrupted is not None:
                raise KeyboardInterrupt
        return outcome

    def tell_of_photos_seen(self, run: RunDir) -> None:
        """Say which of the photos that judge this run have trained one that it learns from."""
        if not run.manifest.is_file():
            return
        rows = read_csv(run.manifest, ("sha256", "split"), "run.damaged")
        seen = {row["sha256"] for row in rows if row["split"] == "train"}
        counts = {split: len(seen & {r.sha256 for r in self.data.records(split)})
                  for split in ("val", "test")}  # fmt: skip
        if any(counts.values()):
            told = " and ".join(f"{n} of {self.data.splits[s]} {s}" for s, n in counts.items() if n)
            console.say(
                f"train.photos-seen: {told} photos have trained {run.path}, so accuracy on them "
                f"is too good; --split-file {run.manifest} keeps its split"
            )

    def be_taught(self, directory: RunDir) -> None:
        """Ask the teacher, if there is one, about the training photos."""
        from .transfer.classifier import Classifier
        from .transfer.distil import teach

        self.data.teacher = None
        if self.config.teacher is None:
            return
        run = RunDir.open(self.config.teacher)
        self.tell_of_photos_seen(run)
        taught = Classifier.load(run.model), self.plan.temperature
        folder = directory.path if self.workers.chief else None
        teach(self.data, *taught, folder, console.say)

    def mirrored(self, classifier: Classifier) -> Classifier:
        """Let the classifier look at the mirror image, too, if that is wanted."""
        from .transfer import combine

        if self.config.tta == "on":
            return combine.mirrored(classifier)
        if self.config.tta == "auto" and self.preset == "best":
            return combine.mirrored_if_better(classifier, self.data, console.say)
        return classifier

    def temper(self, classifier: Classifier) -> None:
        """Make the answers as sure as they are right on the validation photos."""
        from .report import calibration

        if not (self.config.calibrate and self.data.splits["val"]):
            return
        answers = classifier.answers(self.data, "val")
        found = calibration.fit(self.data.labels("val"), answers, self.data.task)
        classifier.temper(float(f"{found:.3g}"))

    def finish(self, directory: RunDir, outcome) -> None:
        """Save the classifier, then everything that tells how good it is."""
        from .report import metrics, plots, predictions
        from .transfer.classifier import Classifier
        from .zoo import graph

        data = self.data
        built = graph.built(self.model)
        origin = {
            "create": built.create,
            "backbone": self.variant.name,
            "weights": asdict(self.row) if self.row else None,
            "data": {"name": data.name, "fingerprint": data.fingerprint},
            "flip": data.flip,
        }
        classifier = Classifier(self.model, data.classes, data.task, self.rule, origin)
        self.temper(classifier)
        self.classifier = classifier = self.mirrored(classifier)
        classifier.save(directory.model)
        found: dict[str, Any] = {"val": None, "test": None}
        for split in found:
            if not data.splits[split]:
                continue
            labels, answers = data.labels(split), classifier.answers(data, split)
            found[split] = metrics.evaluate(labels, answers, data.classes, data.task)
            if split == "test":
                keys = data.keys(split)
                predictions.write(
                    directory.predictions, keys, labels, answers, data.classes, data.task
                )
        files.write_json(
            directory.metrics,
            {
                **found,
                "best": outcome.best,
                "stages": outcome.stages,
                "epochs": len(outcome.rows),
                "checkpoints": {
                    "written": len(outcome.stall),
                    "seconds": round(sum(outcome.stall), 3),
                    "longest": round(max(outcome.stall, default=0.0), 3),
                },
                "seconds": round(outcome.before + time.perf_counter() - self.began, 2),
            },
        )
        directory.plots.mkdir(exist_ok=True)
        plots.curves(outcome.rows, directory.plots / "curves.png", best=outcome.best["epoch"])
        if found["test"]:
            plots.confusion(found["test"], directory.plots / "confusion.png")


@contextmanager
def _interruptible(directory: RunDir) -> Iterator[None]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into an error that says how to go on."""

    def leave(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    restore = listen(("SIGTERM", "SIGHUP"), leave)
    try:
        yield
    except KeyboardInterrupt:
        from .callbacks.checkpoint import Checkpoints

        steps = Checkpoints(directory.checkpoints).steps()
        raise Interrupted(
            "train.interrupted",
            f"stopped; saved after {steps[-1]} steps"
            if steps
            else "stopped before the first checkpoint; what was computed of the photos is kept",
            where=directory.path,
            fix=f"go on with: {_command(directory)}",
        ) from None
    finally:
        restore()


def _command(directory: RunDir) -> str:
    """Return what goes on with a run: its command, or what to change in a call from Python."""
    about = directory.read()
    if about["argv"][0] != "dlzoo":
        if "members" in about:  # a call of `ensemble` begins anew
            return f"dlzoo.resume({str(directory.path)!r})"
        return 'the same call with resume="auto"'
    return shlex.join(["dlzoo", "resume", str(directory.path)])


def _found_from_anywhere(config: FinetuneConfig) -> FinetuneConfig:
    """Return the settings with whole paths, since a run is gone on with from any folder."""
    paths: dict[str, str | None] = {"split_file": config.split_file, "teacher": config.teacher}
    if config.data and not is_name(config.data):
        paths["data"] = config.data
    if is_path(config.weights):
        paths["weights"] = config.weights
    whole = {key: Path(path).expanduser() for key, path in paths.items() if path}
    there = {key: str(path.absolute()) for key, path in whole.items() if path.exists()}
    return config.model_copy(update=there)


def _finished(begun: RunDir | None) -> str | None:
    """Return where a run is that has nothing left to do."""
    done = begun is not None and begun.read()["status"] == "finished"
    return str(begun.path) if begun and done else None


def _epochs(directory: RunDir) -> str:
    """Return `15/15 epochs`: those that ran, of those that ran; early stopping is an end, too."""
    done = read_values(directory.metrics)["epochs"]
    return f"{done}/{done} epochs"
