"""The settings of `finetune`: one typed list, from which flags, TOML and help are made.

A value comes from the first of: a flag (or Python argument), `--set`, the `--config` file, a
`DLZOO_*` variable, the preset, the default. `"auto"` leaves the choice to the preset, the
checkpoint or the machine. Values are parsed by type, never evaluated.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from .errors import UsageError, nearest
from .units import parse_seconds

Auto = Literal["auto"]
Switch = Literal["auto", "on", "off"]
Natural = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(gt=0, le=10**9)]
Rate = Annotated[float, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


def _path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _words(value: Any) -> Any:
    """Split one string at its commas; a list is taken as it is."""
    return [v.strip() for v in value.split(",") if v.strip()] if isinstance(value, str) else value


def _formats(value: Any) -> Any:
    """Split every item at its commas: `--export a,b --export c`."""
    if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        value = ",".join(value)
    return _words(value)


def _taps(value: Any) -> Any:
    return value if value == "auto" else _words(value)


def _resume(value: Any) -> Any:
    return {True: "auto", False: "off"}[value] if isinstance(value, bool) else value


def _switch(value: Any) -> Any:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _seconds(value: Any) -> Any:
    """Return the whole seconds that `90s`, `10m` or `1.5h` are; other text is left to the check."""
    try:
        return round(parse_seconds(value)) if isinstance(value, str) else value
    except (ValueError, OverflowError):
        return value


def _steps(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdigit() else value


PathText = Annotated[str, BeforeValidator(_path)]
StageText = Annotated[str, Field(pattern=r"^(auto|\w+(:[0-9]{1,6})?(,\w+(:[0-9]{1,6})?)*)$")]
StageTables = Annotated[list[dict[str, Any]], Field(max_length=100)]
# of a file; tomllib takes seconds for some of twice this size
MAX_BYTES, MAX_SETTINGS, MAX_DEPTH = 1 << 15, 500, 20
# heading in the help -> the first field below it
SECTIONS = {
    "Model": "backbone",
    "Data": "data",
    "Training": "stages",
    "Regularisation": "dropout",
    "Machine": "seed",
    "Output": "out",
    "Session": "dry_run",
}


def setting(default: Any, help: str, form: str | None = None, **rules: Any) -> Any:
    """Declare a field: its default, what it means, and what a value looks like."""
    extra: dict[str, Any] | None = {"form": form} if form else None
    return Field(default, description=help, json_schema_extra=extra, **rules)


class FinetuneConfig(BaseModel):
    """Every setting of a fine-tuning run; `dlzoo finetune --help` is made from this list."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    backbone: str = setting(
        "efficientnet_lite0",
        "model to start from, as in `dlzoo list`; several make an ensemble",
        "NAME[.TAG][,NAME...]",
    )
    weights: PathText = setting(
        "auto", "checkpoint tag, a file, a run, or none: from scratch", "TAG|FILE|RUN|none"
    )
    preset: Literal["fast", "balanced", "best"] = setting(
        "balanced", "recipe that fills in what is left on auto"
    )

    data: PathText | None = setting(
        None,
        "labelled photos",
        "digits|flowers|fashion-mnist|DIR|CSV|tfds:NAME",
        examples=["flowers"],
    )
    task: Literal["auto", "binary", "multiclass", "multilabel"] = setting(
        "auto", "what the labels mean"
    )
    val_split: Share = setting(0.1, "share of the images kept for validation")
    test_split: Share = setting(0.1, "share of the images kept for the final test")
    split_file: PathText | None = setting(
        None, "CSV of path and split, instead", "FILE", examples=["split.csv"]
    )
    on_bad_image: Literal["skip", "fail"] = setting("skip", "what an unreadable image does")
    ignore_class: Annotated[list[str], BeforeValidator(_words)] = setting(
        [], "leave this class out (may be repeated)"
    )
    strict_data: bool = setting(False, "fail where odd data is otherwise a warning")
    size: Auto | Positive = setting("auto", "image height and width in pixels")
    crop: Auto | Fraction = setting("auto", "share of the image's side the centre crop keeps")
    augment: Literal["auto", "none", "light", "medium", "strong"] = setting(
        "auto", "how much training images are varied"
    )
    flip: Annotated[Switch, BeforeValidator(_switch)] = setting(
        "auto", "mirror training images left to right"
    )

    stages: StageText | StageTables = setting(
        "auto",
        "what is trained in turn, with epochs: head:3,C5:5,all:7; in TOML also as tables",
        "auto|head:N,C5:N,...",
    )
    taps: Annotated[Auto | list[str], BeforeValidator(_taps)] = setting(
        "auto", "feature maps that the new head takes", "auto|C4,C5"
    )
    pool: Literal["auto", "avg", "max", "moments"] = setting(
        "auto", "what the head takes of them: means, maxima, or means and deviations"
    )
    epochs: Auto | Positive = setting("auto", "epochs of all stages together")
    time: Annotated[Positive | None, BeforeValidator(_seconds)] = setting(
        None, "take the best preset, and epochs, that fit into it", "10m", examples=["10m"]
    )
    lr: Auto | Rate = setting("auto", "base learning rate of stages that take steps")
    optimizer: Literal["auto", "sgd", "momentum", "nesterov", "adam", "adamw"] = setting(
        "auto", "how weights are moved"
    )
    schedule: Literal["auto", "cosine", "onecycle", "plateau", "constant"] = setting(
        "auto", "how the learning rate changes"
    )
    batch: Auto | Positive = setting("auto", "images per step")
    patience: Auto | Positive = setting("auto", "epochs without progress before stopping")
    monitor: Literal["auto", "val_loss", "val_acc"] = setting("auto", "what progress is")
    layer_decay: Auto | Fraction = setting("auto", "learning rate factor per group going down")
    train_bn: bool = setting(False, "also train BatchNorm layers and their statistics")
    class_weight: Literal["none", "balanced"] = setting(
        "none", "weigh samples by the rarity of their class"
    )
    ensemble: Auto | Annotated[int, Field(gt=0, le=100)] = setting(
        "auto", "models to train, with seeds and backbones in turn, and to make one of"
    )
    average: Literal["auto", "probabilities", "logits", "weights"] = setting(
        "auto", "what of an ensemble is averaged"
    )
    tta: Annotated[Switch, BeforeValidator(_switch)] = setting(
        "auto", "average the answer over a photo and its mirror image"
    )

    dropout: Auto | Share = setting("auto", "share of features dropped by the head")
    label_smoothing: Auto | Share = setting("auto", "softens the targets")
    mixup: Amount = setting(0.0, "mix training samples, by shares from Beta(a, a)")
    cutmix: Amount = setting(0.0, "put rectangles of others in, by shares from Beta(a, a)")
    ema: Auto | Share = setting("auto", "keep a moving average of the weights: its decay, as 0.99")
    teacher: PathText | None = setting(
        None, "run that teaches this one by its answers", "RUN", examples=["runs/best-1"]
    )
    temperature: Amount = setting(2.0, "how much a teacher's less likely answers count")
    l1: Amount = setting(0.0, "L1 penalty on trained kernels")
    l2: Amount = setting(0.0, "L2 penalty on trained kernels")

    seed: Natural = setting(0, "fixes split, order, augmentation and initial weights")
    deterministic: bool = setting(False, "the same bits again on the same machine; slower")
    device: str = setting(
        "auto", "auto, cpu, gpu or gpu:N", "DEVICE", pattern=r"^(auto|cpu|gpu(:\d+)?)$"
    )
    strategy: Literal["auto", "none", "mirrored", "multiworker", "tpu"] = setting(
        "auto", "use of several devices, or several machines"
    )
    precision: Literal["auto", "fp32", "mixed"] = setting("auto", "arithmetic of training")
    cache: Switch = setting("auto", "compute frozen layers once and keep the result")

    out: PathText = setting("runs", "folder that run directories are made in", "DIR")
    name: str | None = setting(
        None, "name of the run directory", "NAME", pattern=r"^[^/\\\x00-\x1f]{1,200}$"
    )
    export: Annotated[list[str], BeforeValidator(_formats)] = setting(
        [], "formats to export to at the end", "savedmodel,keras,tflite,onnx"
    )
    quantize: Literal["none", "fp16", "int8"] = setting(
        "none", "make exported tflite files smaller"
    )
    calibrate: bool = setting(True, "make answers as sure as they are right on validation photos")
    report: bool = setting(True, "write report.html at the end")
    fail_under: Fraction | None = setting(
        None, "exit 9 if test accuracy (0..1) is below", "FLOAT", examples=[0.9]
    )
    track: Annotated[list[Literal["mlflow", "wandb"]], BeforeValidator(_formats)] = setting(
        [], "also tell a tracking service of each epoch", "mlflow|wandb"
    )
    save_every: Annotated[
        Auto | Positive | Annotated[str, Field(pattern=r"^\d+(\.\d+)? *[smh]$")],
        BeforeValidator(_steps),
    ] = setting("auto", "training steps, or time, between two checkpoints", "auto|STEPS|TIME")
    resume: Annotated[Literal["off", "auto"], BeforeValidator(_resume)] = setting(
        "off", "go on with the run --name, or with the last one like it"
    )

    dry_run: bool = setting(False, "check data, settings and model; train one step")
    offline: bool = setting(False, "open no network connection")
    quiet: bool = setting(False, "tell only errors and results")
    log_format: Literal["text", "json"] = setting(
        "text", "what is told on stderr: lines for people, or JSON lines"
    )
    verbose: bool = setting(False, "also tell which settings are not the defaults")

    @model_validator(mode="after")
    def _together(self, info: Any) -> FinetuneConfig:
        if info.context == "partial":  # one source of several: the whole is checked later
            return self
        if self.val_split + self.test_split >= 1:
            raise ValueError("val_split and test_split leave nothing to train on")
        if self.quiet and self.verbose:
            raise ValueError("quiet and verbose exclude each other")
        if self.teacher and not self.temperature:
            raise ValueError("temperature: a teacher needs one above 0")
        if self.name in (".", ".."):
            raise ValueError("name: '.' and '..' are no names")
        return self

    def of_data(self) -> dict[str, Any]:
        """Return the settings that `load_data` takes, under its names."""
        return {argument: getattr(self, name) for name, argument in OF_DATA.items()}


# settings that `load_data` takes, and what they are called there
OF_DATA = {
    **{name: name for name in ("task", "val_split", "test_split", "split_file", "seed")},
    **{"on_bad_image": "on_bad_image", "ignore_class": "ignore_classes", "strict_data": "strict"},
}
FIELDS: dict[str, FieldInfo] = FinetuneConfig.model_fields
# may be others when a run is resumed: no weight depends on them, but for the last bits of those
# that another machine computes, which is told; of photos, content and split are compared
NOT_TRAINING = {
    "data", "split_file", "out", "save_every", "export", "quantize", "fail_under", "device",
    "strategy", "track", "average", "tta",
}  # fmt: skip
# other variables that begin with DLZOO_; the last is what `dlzoo launch` tells its workers
NO_SETTINGS = ("HOME", "CACHE_LIMIT", "BESIDE")
# what belongs to one call and not to the recipe: never written to config.toml
OF_A_CALL = ("name", "report", "resume", "dry_run", "offline", "quiet", "log_format",
             "verbose")  # fmt: skip


def form(field: str) -> str:
    """Return what a field's value looks like: `auto|INT`, `none|light|medium|strong`."""
    extra = FIELDS[field].json_schema_extra
    return str(extra["form"]) if isinstance(extra, dict) else _form(FIELDS[field].annotation)


def choices(field: str) -> list[str]:
    """Return the words that a field's value may be; empty where it is not a choice."""
    return _choices(FIELDS[field].annotation)


def _form(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "|".join(args)
    if args:  # a union, a list, or an annotated type
        parts = args[:1] if origin is Annotated else args
        return "|".join(_form(a) for a in parts if a is not type(None))
    return {int: "INT", float: "FLOAT", bool: ""}.get(kind, "TEXT")


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [c for a in get_args(kind) if not isinstance(a, FieldInfo) for c in _choices(a)]


@dataclass(frozen=True)
class Resolved:
    """A checked configuration and, for each field, where its value came from."""

    config: FinetuneConfig
    origin: dict[str, str]


def resolve(
    flags: Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
    config_file: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    *,
    called: str = "--{}",
) -> Resolved:
    """Merge all sources into one checked configuration.

    Args:
        flags: values by field name; None and empty tuples count as not given.
        sets: `key=value` texts, the later of two wins.
        config_file: TOML, one key a setting.
        env: variables, of which `DLZOO_<FIELD>` are read. None: none.
        called: how `flags` are named to the user; `{}` is the field.

    Raises:
        UsageError: `config.not-found`, or `config.invalid` with every problem of all
            sources, line numbers for the file, and the nearest name for an unknown one.
            `export.format`, `export.package` or `export.quantize` for what cannot be written,
            `track.package` for a service whose package is missing.
    """
    flag_values = {k: v for k, v in (flags or {}).items() if v is not None and v != ()}
    set_values, problems = _read_sets(sets)
    file_values, lines = _read_toml(config_file)

    def flag_name(key: str) -> str:
        return called.format(key.replace("_", "-") if called.startswith("-") else key)

    sources: list[tuple[dict[str, Any], Callable[[str], str], bool]] = [
        (_read_env(env or {}), lambda k: f"DLZOO_{k.upper()}", False),
        (file_values, lambda k: f"{config_file}:{lines[k]}", True),
        (set_values, lambda k: f"--set {k}", False),
        (flag_values, flag_name, False),
    ]
    values: dict[str, Any] = {}
    origin = dict.fromkeys(FIELDS, "default")
    for given, where, strict in sources:
        checked, wrong = _check(given, where, strict)
        problems += wrong
        values |= checked
        origin |= {key: where(key) for key in checked}
    if not problems:
        try:
            config = FinetuneConfig.model_validate(values)
            _check_packages(config)
            return Resolved(config, origin)
        except ValidationError as error:
            problems = [str(e["msg"]).removeprefix("Value error, ") for e in error.errors()]
    if len(problems) > 1:
        problems = [f"{len(problems)} problems", *problems]
    raise UsageError(
        "config.invalid",
        "\n  ".join(problems),
        fix="`dlzoo finetune --help` lists every setting; in TOML write _ for -",
    )


def _check_packages(config: FinetuneConfig) -> None:
    """Raise now what would else end a run after two hours."""
    if config.export or config.quantize != "none":
        from .export import check_formats

        check_formats(config.export, None if config.quantize == "none" else config.quantize)
    for name in config.track:
        if util.find_spec(name) is None:
            raise UsageError(
                "track.package", f"{name} is not installed", fix=f'pip install "dlzoo[{name}]"'
            )


def _check(
    given: Mapping[str, Any], where: Callable[[str], str], strict: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return the typed values of one source and its problems, one line each."""
    try:
        parsed = FinetuneConfig.model_validate(dict(given), strict=strict, context="partial")
        return {key: getattr(parsed, key) for key in given}, []
    except ValidationError as error:
        found: dict[str, list[Any]] = {}
        for item in error.errors(include_url=False):
            found.setdefault(str(item["loc"][0]), []).append(item)
    return {}, [f"{where(k)}: {_problem(k, given[k], found[k])}" for k in given if k in found]


def _problem(key: str, value: Any, items: list[Any]) -> str:
    if key not in FIELDS:
        return f"unknown setting {_shown(key)}{nearest(key, FIELDS)}"
    if any(item["type"] == "string_pattern_mismatch" for item in items):
        return f"{key} = {_shown(value)}: should be {form(key)}"
    rules = (re.sub("^Input should be |, (unable|got).*", "", item["msg"]) for item in items)
    hint = nearest(value, choices(key)) if isinstance(value, str) else ""
    return f"{key} = {_shown(value)}: should be {' or '.join(dict.fromkeys(rules))}{hint}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _read_sets(sets: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    values, problems = {}, []
    for text in sets:
        key, equals, value = text.partition("=")
        if equals:
            values[key.strip().replace("-", "_")] = value.strip()
        else:
            problems.append(f"--set {text}: should be key=value")
    return values, problems


def _read_toml(path: Path | str | None) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the values of a TOML file and the line each key stands on."""
    if path is None:
        return {}, {}
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes are no list of settings")
        text = content.decode()
        raw = _sound(tomllib.loads(text))
    except OSError as error:
        raise UsageError(
            "config.not-found", f"cannot read the configuration: {error.strerror}", where=path
        ) from None
    except UnicodeDecodeError:
        raise UsageError("config.invalid", "the file is not UTF-8 text", where=path) from None
    except (ValueError, RecursionError) as error:  # tomllib raises both, too
        raise UsageError("config.invalid", f"not TOML: {error}", where=path) from None
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if found := re.match(r"\s*\[*\s*[\"']?([^\"'=.\]]+?)[\"']?\s*[=.\]]", line[:500]):
            lines.setdefault(found[1], number)
    return (
        {key.replace("-", "_"): value for key, value in raw.items()},
        {key.replace("-", "_"): lines.get(key, 1) for key in raw},
    )


def _sound(raw: dict[str, Any]) -> dict[str, Any]:
    """Return what a TOML file holds, if there is little of it; raises ValueError otherwise."""
    if len(raw) > MAX_SETTINGS:
        raise ValueError(f"it has {len(raw):,} settings")
    level: list[Any] = [raw]
    for _ in range(MAX_DEPTH):
        if any(isinstance(value, int) and abs(value) >= 2**63 for value in level):
            raise ValueError("it holds a number of more than 64 bits")
        inner = [v for v in level if isinstance(v, dict | list)]
        level = [w for v in inner for w in (v.values() if isinstance(v, dict) else v)]
    if level:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return raw


def _read_env(env: Mapping[str, str]) -> dict[str, str]:
    """Return the settings among the variables; other `DLZOO_*` (as HOME) are not settings."""
    names = {f"DLZOO_{key.upper()}": key for key in FIELDS}
    return {names[name]: value for name, value in env.items() if name in names and value}


def unknown_variables(env: Mapping[str, str]) -> list[str]:
    """Return a line for each `DLZOO_*` variable that nothing reads, with the nearest name."""
    known = {*NO_SETTINGS, *(key.upper() for key in FIELDS)}
    lines = []
    for name in sorted(env):
        start, _, key = name.partition("DLZOO_")
        if not start and key and key not in known and env[name]:
            hint = nearest(key.upper(), known).replace(" mean '", " mean 'DLZOO_")
            lines.append(f"the variable {name} is set, but dlzoo knows none of that name{hint}")
    return lines


def to_toml(config: FinetuneConfig) -> str:
    """Return the recipe as TOML that `--config` takes back: all but what is of one call."""
    import tomli_w

    values = config.model_dump(exclude_none=True, exclude=set(OF_A_CALL))
    return tomli_w.dumps(values)


def template() -> str:
    """Return a TOML file with every setting explained and commented out at its default."""
    import tomli_w

    lines = ["# Settings of `dlzoo finetune --config FILE`; remove a # to set one."]
    for key, field in FIELDS.items():
        if key not in OF_A_CALL:
            value = (field.examples or [field.default])[0]
            what = f" ({form(key)})" if form(key) else ""
            lines += [
                "",
                f"# {field.description}{what}",
                "# " + tomli_w.dumps({key: value}).strip(),
            ]
    return "\n".join(lines) + "\n"
