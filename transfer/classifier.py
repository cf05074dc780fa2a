"""A trained model together with everything that is needed to use it rightly."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ValidationError, field_validator

from .. import __version__, files
from ..errors import DlzooError, ModelError
from ..zoo import checkpoints
from ..zoo.from_run import JSON, WEIGHTS, not_a_run
from ..zoo.spec import Preprocess
from .distribute import in_float32, steady

if TYPE_CHECKING:
    import keras

    from ..data import Data

FORMAT = 1  # of model.json; raised when older readers would misunderstand it
CHECKED = 16  # images on which cached activations are compared with the whole model
AGREE = 2e-2  # of the largest logit; float16 activations were seen to move it by 1e-3
LABELS = "labels.txt"


class _Saved(BaseModel):
    """What model.json holds; whoever made it, it is of these types or refused."""

    format: int
    create: dict[str, Any]
    preprocess: Preprocess
    classes: tuple[str, ...]
    task: Literal["binary", "multiclass", "multilabel"]
    origin: dict[str, Any]
    versions: dict[str, str]
    weights_sha256: str
    variables_sha256: str

    @field_validator("create")
    @classmethod
    def _stays_here(cls, create: dict[str, Any]) -> dict[str, Any]:
        """Refuse what `save` never writes: to open a run must not ask the hub for anything."""
        if "hf://" in json.dumps(create):
            raise ValueError("it names a model on the hub, where a run names its architecture")
        return create


def versions() -> dict[str, str]:
    """Return the versions that a saved model depends on: dlzoo, keras, tensorflow."""
    import keras
    import tensorflow as tf

    return {"dlzoo": __version__, "keras": keras.__version__, "tensorflow": tf.__version__}


def rebuild(create: Mapping[str, Any], preprocess: Preprocess) -> keras.Model:
    """Build the graph again, with fresh weights, that `create` and `preprocess` describe."""
    from .. import zoo
    from ..zoo import average

    if "members" in create:
        return average.rebuild(dict(create))
    # JSON knows no tuples.
    wanted: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in create.items()
    }
    wanted |= {"weights": None, "preprocess": preprocess}
    return zoo.create_model(**wanted)


@dataclass(frozen=True)
class Classifier:
    """A model that knows its classes and how its images are made.

    Attributes:
        model: takes raw RGB float images `(n, size, size, 3)` in 0..255 and gives float32
            logits `(n, classes)`, or `(n, 1)` for a binary task.
        classes: names, in the order of the outputs; a binary model's logit speaks for the
            second one.
        task: `binary`, `multiclass` or `multilabel`.
        preprocess: how an image file becomes what `model` takes.
        origin: where it comes from, as JSON-able values; `create` in it are the keyword
            arguments for `zoo.create_model` that build the same graph.
    """

    model: keras.Model
    classes: tuple[str, ...]
    task: str
    preprocess: Preprocess
    origin: dict[str, Any]

    def probabilities(self, images: np.ndarray, batch: int = 32) -> np.ndarray:
        """Return the probability of each class.

        Args:
            images: RGB, `(n, size, size, 3)` in 0..255, any numeric type.
            batch: images computed at a time.

        Returns:
            float32 `(n, classes)`; rows sum to 1 unless the task is multilabel.

        Raises:
            ModelError: `model.images`, they are of another size, or of other channels.
        """
        images = np.asarray(images)
        if len(images):
            self._check_taken(images.shape[1:])
        if images.size and 0 < images.max() <= 1:
            warnings.warn(
                "the images look already scaled (their maximum is <= 1.0), but dlzoo's models take "
                "raw values in 0..255 and normalise inside: the answers would be wrong",
                stacklevel=2,
            )
        parts = [
            self._forward(images[start : start + batch].astype("float32"))
            for start in range(0, len(images), batch)
        ]
        logits = np.concatenate(parts) if parts else np.zeros((0, self.model.output_shape[-1]))
        return to_probabilities(logits, self.task)

    def answers(self, data: Data, split: str) -> np.ndarray:
        """Return the probabilities `(n, classes)` for a split, in the order of its keys.

        Where activations of all its images are in the cache, only the layers above them are
        computed; that they and the whole model agree is checked on some images. Not so with
        `--deterministic`: the last bits would tell what the cache happens to hold. What has been
        answered is remembered.
        """
        self._check_taken((self.preprocess.size, self.preprocess.size, 3))
        key = (data.fingerprint, split)
        if key not in self._answered:
            self._answered[key] = self._logits(data, split)
        return to_probabilities(self._answered[key], self.task)

    def _check_taken(self, shape: tuple[int, ...]) -> None:
        """Check that the model takes images of a shape."""
        taken = self.model.input_shape[1:]
        fits = (t in (None, n) for t, n in zip(taken, shape, strict=False))
        if len(shape) != len(taken) or not all(fits):
            fix = "dlzoo.data.pipeline.load_image(photo, classifier.preprocess) prepares them"
            if shape[-1] == 3 != taken[-1]:
                fix = "leave in_chans away: grey photos are then read as three equal channels"
            raise ModelError("model.images", f"images of {shape}, but it takes {taken}", fix=fix)

    def temper(self, temperature: float) -> None:
        """Divide the logits by a temperature, for good: no answer changes, but how sure it is.

        What follows the last layer with weights, if anything does, is a ReLU and a mean.
        """
        for variable in self.model.get_layer("logits").weights:
            variable.assign(variable / temperature)
        self.origin["temperature"] = temperature * self.origin.get("temperature", 1.0)
        for logits in self._answered.values():
            logits /= temperature

    @cached_property
    def _answered(self) -> dict[tuple[str, str], np.ndarray]:
        """The logits for splits."""
        return {}

    @cached_property
    def _above(self) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """What computes the layers above a place, traced once for all splits."""
        return {}

    def _logits(self, data: Data, split: str) -> np.ndarray:
        from ..data.pipeline import batches, surfacing
        from ..zoo import graph
        from . import engine
        from .cache import Frozen, deepest

        frozen = Frozen(self.model, data, self.preprocess)
        with surfacing(data):
            if place := None if steady() else deepest(frozen, split):
                found = frozen.activations([place], split)[place]
                if place not in self._above:
                    self._above[place] = _traced(graph.cut(self.model, place)[1])
                above = self._above[place]
                logits = np.concatenate([above(found.take(i)) for i in _slices(len(found))])
                some = np.unique(np.linspace(0, len(found) - 1, CHECKED).astype(int))
                images = batches(data, split, self.preprocess, batch=CHECKED, view=0, rows=some)
                whole = self._forward(next(iter(images))[0].numpy())
                off = np.abs(whole - logits[some]).max() / max(np.abs(whole).max(), 1.0)
                if off <= AGREE:
                    return logits
                warnings.warn(
                    f"activations from the cache are off by {off:.1e}: computing all layers",
                    stacklevel=2,
                )
            work = graph.gmacs(self.model) * data.splits[split]
            run = engine.frozen(self.model, work=work, steady=steady())
            images = batches(data, split, self.preprocess, batch=32)
            return np.concatenate([run(x.numpy())[0] for x, *_ in images])

    @cached_property
    def _forward(self) -> Callable[[np.ndarray], np.ndarray]:
        return _traced(self.model)

    def float32(self) -> Classifier:
        """Return itself, or the same classifier rebuilt in float32 if it is mixed precision.

        Raises:
            ModelError: `model.no-recipe` if it would have to be rebuilt and cannot.
        """
        import keras

        if all(layer.compute_dtype == "float32" for layer in self.model.layers):
            return self
        create = self._recipe()
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy("float32")
        try:
            model = rebuild(create, self.preprocess)
        finally:
            keras.config.set_dtype_policy(policy)
        model.set_weights(self.model.get_weights())
        return Classifier(model, self.classes, self.task, self.preprocess, self.origin)

    def save(self, directory: Path | str) -> None:
        """Write model.json, model.weights.h5 and labels.txt, each whole or not at all.

        model.json comes last and holds the hash of the weights, so that a torn save is
        refused by `load` and never answers wrongly.

        Raises:
            ModelError: `model.no-recipe` if `origin` does not say how the model is built.
        """
        import keras

        create = self._recipe()
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        # Keras insists on this ending, so `files.replacing` cannot be used.
        temporary = directory / f".{os.getpid()}.part.weights.h5"
        try:
            # Not of the model itself: with it, an optimizer it was compiled with would be saved.
            # By its name: Keras' own would count the models that this process has made.
            model = self.model
            keras.Model(model.inputs, model.outputs, name=model.name).save_weights(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            digest = files.sha256(temporary)
            temporary.replace(directory / WEIGHTS)
        finally:
            temporary.unlink(missing_ok=True)
        files.write_text(directory / LABELS, files.lines_of(self.classes))
        files.write_json(
            directory / JSON,
            {
                "format": FORMAT,
                "create": create,
                "preprocess": asdict(self.preprocess),
                "classes": list(self.classes),
                "task": self.task,
                "origin": {k: v for k, v in self.origin.items() if k != "create"},
                "versions": versions(),
                "weights_sha256": digest,
                "variables_sha256": _digest(self.model),
            },
        )

    def _recipe(self) -> dict[str, Any]:
        if "create" not in self.origin:
            raise ModelError(
                "model.no-recipe",
                "origin['create'] is missing, so the model could not be built again",
                fix="build it with create_model and pass its arguments on",
            )
        return self.origin["create"]

    @classmethod
    def load(cls, directory: Path | str) -> Classifier:
        """Return the classifier that `save` wrote to `directory`.

        Raises:
            ModelError: `model.not-a-run` if there is none, `model.hash` if the weights are
                not those saved, `model.version` if other versions of dlzoo, Keras or
                TensorFlow wrote it and this one cannot read it.
        """
        directory = Path(directory)
        if not (directory / JSON).is_file():
            raise not_a_run(directory)
        saved = _described(directory / JSON)
        if not (directory / WEIGHTS).is_file():
            raise ModelError(
                "model.not-a-run", "the weights are missing", where=directory / WEIGHTS
            )
        found, expected = files.sha256(directory / WEIGHTS), saved.weights_sha256
        if found != expected:
            raise ModelError(
                "model.hash",
                f"expected sha256 {expected[:16]}.., got {found[:16]}..: the weights are damaged",
                where=directory / WEIGHTS,
                fix="copy the whole directory again, or train again",
            )
        # Keras opens it in this process: what is in it is seen elsewhere first.
        checkpoints.check_hdf5(directory / WEIGHTS)
        try:
            outputs = 1 if saved.task == "binary" else len(saved.classes)
            if saved.create.get("num_classes", outputs) != outputs:
                raise ValueError(f"{len(saved.classes)} classes are not what the model gives")
            model = rebuild(saved.create, saved.preprocess)
            model.load_weights(directory / WEIGHTS)
            # Keras leaves what it does not find in the file as it is, with a warning at best.
            if _digest(model) != saved.variables_sha256:
                raise ValueError("Keras loaded other weights than those saved")
        except Exception as error:
            raise _unreadable(saved.format, saved.versions, directory, error) from error
        origin = saved.origin | {"create": saved.create}
        return cls(model, saved.classes, saved.task, saved.preprocess, origin)


def _described(path: Path) -> _Saved:
    """Return what a model.json says, if it is one."""
    content = path.read_bytes()
    try:
        return _Saved.model_validate_json(content)
    except ValidationError as error:
        try:  # one of a later format is no rubbish
            later = json.loads(content)
            if later["format"] > FORMAT:
                raise _unreadable(later["format"], dict(later["versions"]), path.parent, error)
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        wrong = error.errors()[0]
        place = ".".join(map(str, wrong["loc"]))[:80]
        raise ModelError(
            "model.not-a-run",
            f"not a model of dlzoo's: {place or JSON}: {wrong['msg'][:200]}",
            where=path,
        ) from None


def annotate(directory: Path | str, **facts: Any) -> None:
    """Add facts to the model.json of a saved classifier; none of them changes its answers."""
    path = Path(directory) / JSON
    files.write_json(path, json.loads(path.read_text("utf-8")) | facts)


def _slices(n: int, batch: int = 64) -> list[np.ndarray]:
    return np.split(np.arange(n), range(batch, n, batch))


def _traced(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Return what computes a model in inference mode, for batches of any size."""
    import tensorflow as tf

    # Not `model.predict`: Keras compiles that with XLA, several times slower on a CPU. And one
    # trace, of any batch: TensorFlow warns of many.
    spec = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32)
    forward = tf.function(lambda x: model(x, training=False)).get_concrete_function(spec)

    def compute(images: np.ndarray) -> np.ndarray:
        with in_float32():
            return forward(tf.constant(images)).numpy()

    return compute


def to_probabilities(logits: np.ndarray, task: str) -> np.ndarray:
    """Return probabilities `(n, classes)` of logits `(n, classes)`, or `(n, 1)` if binary."""
    logits = np.asarray(logits, "float64")
    if task == "multiclass":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        result = powers / powers.sum(axis=1, keepdims=True)
    else:
        # exp of a negative number cannot overflow, whatever the sign of the logit.
        small = np.exp(-np.abs(logits))
        result = np.where(logits >= 0, 1, small) / (1 + small)
        if task == "binary":
            result = np.concatenate([1 - result, result], axis=1)
    return result.astype("float32")


def _digest(model: keras.Model) -> str:
    """Return a hash of all variables, whatever the layout of the file they were in."""
    hashes = [files.sha256(np.ascontiguousarray(w).tobytes()) for w in model.get_weights()]
    return files.sha256("".join(hashes).encode())


def _unreadable(format: int, there: dict, directory: Path, error: Exception) -> DlzooError:
    """Say why a well-formed model could not be built: name the versions if they differ."""
    here = versions()
    differ = [f"{k} {there.get(k)} (here {v})" for k, v in here.items() if there.get(k) != v]
    if differ or format != FORMAT:
        text = ", ".join(differ) or f"format {format} (here {FORMAT})"
        return ModelError(
            "model.version",
            f"saved with {text}, and it cannot be read: {error}",
            where=directory,
            fix="install the versions it was saved with",
        )
    if isinstance(error, DlzooError):
        return error
    return ModelError("model.weights-mismatch", f"cannot be restored: {error}", where=directory)
