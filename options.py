"""How verbs and options behave: suggestions, completion, and flags made from `FinetuneConfig`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from . import console, files
from .errors import nearest
from .units import parse_count


class _Helpful(click.Command):
    """Prints its help as a result is printed: a reader that goes away is no error."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = printing(lambda ctx: ctx.get_help())
        return option


class Verb(_Helpful):
    """A verb; each takes `--debug`, which `guard.run_command` looks for itself."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        help = "Show the traceback of an error."
        self.params.append(click.Option(["--debug"], is_flag=True, expose_value=False, help=help))


class Verbs(_Helpful, click.Group):
    """A group of verbs; an unknown one is answered with the nearest."""

    command_class = Verb
    group_class = type

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(f"no verb {args[0]!r}{nearest(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)


class Settings(Verb):
    """A verb that takes settings of `finetune` as options, made from `FinetuneConfig`.

    They are made on first use, so that other verbs do not wait for pydantic.

    Attributes:
        only: the settings that this verb takes; empty means all.
    """

    only: tuple[str, ...] = ()
    _made: Sequence[click.Option] = ()

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not self._made:
            from .config import FIELDS

            self._made = [_option(field) for field in self.only or FIELDS]
        return [*self._made, *super().get_params(ctx)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under the headings of the settings."""
        from .config import FIELDS, SECTIONS

        starts = {} if self.only else {field: heading for heading, field in SECTIONS.items()}
        groups: dict[str, list[tuple[str, str]]] = {}
        heading = "Settings"
        for param in self.get_params(ctx):
            heading = starts.get(param.name or "", heading) if param.name in FIELDS else "Options"
            if record := param.get_help_record(ctx):
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class DataSettings(Settings):
    """A verb that takes the settings of how data is read."""

    only: tuple[str, ...] = (
        "task",
        "val_split",
        "test_split",
        "split_file",
        "seed",
        "on_bad_image",
        "ignore_class",
        "strict_data",
    )


class StageSettings(DataSettings):
    """A verb that trains one stage and keeps nothing: what finetune takes for data and recipe."""

    only = (
        *("backbone", "weights", "preset", "data"),
        *DataSettings.only,
        *("size", "crop", "augment", "flip", "stages", "taps", "optimizer", "batch"),
        *("layer_decay", "train_bn", "class_weight", "dropout", "label_smoothing", "l1", "l2"),
        *("deterministic", "device", "precision", "cache", "offline", "quiet"),
    )


class CompareSettings(DataSettings):
    """A verb that measures backbones on photos."""

    only = (
        *("backbone", "data"),
        *DataSettings.only,
        *("size", "augment", "flip", "epochs", "lr", "optimizer", "batch"),
        *("deterministic", "device", "offline", "quiet"),
    )


class Value(click.ParamType):
    """The text of a setting; `config.resolve` checks it together with all others."""

    name = "text"
    _FILES = {
        "data": "file",
        "split_file": "file",
        "weights": "file",
        "teacher": "dir",
        "out": "dir",
    }

    def __init__(self, field: str, choices: Sequence[str]):
        self.field, self.choices = field, choices

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        if self.field == "backbone":
            return complete_model(ctx, param, incomplete)
        if self.field in self._FILES:
            return [CompletionItem(incomplete, type=self._FILES[self.field])]
        return [CompletionItem(c) for c in self.choices if c.startswith(incomplete)]


class Count(click.ParamType):
    """A number with an optional k, M or B behind it."""

    name = "count"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            return parse_count(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Batch(click.ParamType):
    """The number of images a call takes, or `dynamic` (None)."""

    name = "batch"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | None:
        if value == "dynamic":
            return None
        return click.IntRange(1).convert(value, param, ctx)


class Written(click.Path):
    """A file (or a folder) that will be written; that it can be is seen before any work is done.

    Args:
        new: a file that is there already is refused, and so is stdout (`-`).
    """

    def __init__(self, folder: bool = False, new: bool = False):
        super().__init__(file_okay=not folder, dir_okay=folder, writable=True, allow_dash=not new)
        self.new = new

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        path = Path(str(super().convert(value, param, ctx)))
        if self.new and path.exists():
            self.fail(f"{str(path)!r} is there already, and is not overwritten", param, ctx)
        if str(path) != "-" and not path.exists():
            above = path.absolute().parent
            if self.dir_okay:  # folders are made
                above = files.standing(above)
            if not files.takes_files(above):
                self.fail(f"{str(path)!r} cannot be written: see {str(above)!r}", param, ctx)
        return value


def complete_model(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the names of models that start with `incomplete`."""
    from . import zoo

    return [CompletionItem(name) for name in zoo.list_models(f"{incomplete}*")]


def printing(text: Callable[[click.Context], str]) -> Callable[..., None]:
    """Return the callback of a flag that prints something and ends there."""

    def show(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            console.out(text(ctx))
            ctx.exit()

    return show


def stack(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return one decorator for several options, shown in this order."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _option(field: str) -> click.Option:
    from . import config

    info, flag = config.FIELDS[field], f"--{field.replace('_', '-')}"
    names = [*{"quiet": ["-q"], "verbose": ["-v"]}.get(field, []), flag]
    if info.annotation is bool:
        if info.default or field not in config.OF_A_CALL:  # what a file may have switched on
            names[-1] += f"/--no-{flag[2:]}"
        return click.Option(names, is_flag=True, default=None, help=info.description)
    shown = "" if info.default in ("auto", None, []) else f" [default: {info.default}]"
    optional: dict[str, Any] = {"is_flag": False, "flag_value": "auto"} if field == "resume" else {}
    return click.Option(
        names,
        type=Value(field, config.choices(field)),
        metavar=config.form(field),
        multiple=info.default == [],
        help=f"{info.description}{shown}",
        **optional,
    )
