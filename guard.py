"""Between the shell and the verbs: every way a command can end, as a message and an exit code."""

from __future__ import annotations

import atexit
import gc
import importlib.abc
import importlib.util
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import click

from . import console, files
from .errors import BUG, CTRL_C, OK, DlzooError, UsageError, nearest, of_the_machine

PROGRAM, COMPLETE = "dlzoo", "_DLZOO_COMPLETE"
QUIET = "3"  # the level of TensorFlow's log, of 0 to 3
# Keras imports these, a third of its time, for wrappers and galleries that no verb has a use for
UNUSED = ("sklearn", "matplotlib")


def run_command(cli: click.Command, argv: Sequence[str]) -> None:
    """Run `cli` on `argv`, tell of any error, and exit with its code."""
    args = list(argv)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of photos; what matters the scan says
    warnings.showwarning = _warned
    prepare_tensorflow()
    console.setup()
    code = _guarded(lambda: _invoke(cli, args), debug="--debug" in args)
    console.flush()
    sys.exit(code)


def _warned(message: Warning | str, *_: Any, **__: Any) -> None:
    """Tell of a warning as of anything else: in the run's log, too, and in JSON where asked."""
    console.say(f"warning: {message}")


def _invoke(cli: click.Command, args: list[str]) -> int:
    # not cli.main: its ways to end on errors, Ctrl-C and closed pipes are not ours
    if instruction := os.environ.get(COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, PROGRAM, COMPLETE, instruction)
    with cli.make_context(PROGRAM, args) as context:
        cli.invoke(context)
    return OK


def _guarded(work: Callable[[], int], debug: bool) -> int:
    """Return the exit code of `work`, having told of any error."""
    try:
        return work()
    except click.exceptions.Exit as done:
        return done.exit_code
    except console.Closed:
        return OK
    except (KeyboardInterrupt, click.Abort):
        console.say("interrupted")
        return CTRL_C
    except click.exceptions.NoArgsIsHelpError as error:
        console.say(error.format_message())
        return error.exit_code
    except click.ClickException as error:
        told: DlzooError = _usage(error)
    except DlzooError as error:
        if debug:
            traceback.print_exc()
        told = error
    except Exception as error:
        if debug:
            traceback.print_exc()
        told = of_the_machine(error) or _bug(error)
    console.error(told)
    return told.exit_code


def _usage(error: click.ClickException) -> UsageError:
    """Return click's complaint in our style."""
    context: click.Context | None = getattr(error, "ctx", None)
    message = error.format_message()
    if isinstance(error, click.NoSuchOption):
        params = context.command.get_params(context) if context else []
        known = [name for param in params for name in (*param.opts, *param.secondary_opts)]
        message = f"no option {error.option_name}{nearest(error.option_name, known)}"
    return UsageError(
        "usage",
        message[:1].lower() + message[1:].rstrip("."),
        fix=f"see `{context.command_path if context else PROGRAM} --help`",
    )


def _bug(error: Exception) -> DlzooError:
    from .rundir import write_crash

    return DlzooError(
        "bug",
        f"{type(error).__name__}: {error}",
        where=write_crash(error),
        fix="this is a fault of dlzoo's: please report it with that file; --debug shows more",
        exit_code=BUG,
    )


class _LeanImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports TensorFlow, or Keras which does, once; Keras as if `UNUSED` were not installed.

    If `quiet`, the process' stderr is turned away: TensorFlow's libraries greet on file
    descriptor 2, whatever the log level, before they can be told not to; later they obey.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name not in ("tensorflow", "keras"):
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            self.real, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.real  # type: ignore[union-attr]
        away = files.stderr_away() if self.quiet else nullcontext()
        with away, _without(UNUSED), _uncollected():
            self.real.exec_module(module)


@contextmanager
def _without(packages: Iterable[str]) -> Iterator[None]:
    """Let imports of packages that are not loaded yet fail for a while."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: not to be had
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage while objects are made, by the hundred thousand, that stay to the end.

    Nor at the end: before a process is over, Python would go through all of them several times.
    """
    atexit.register(gc.freeze)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()  # now they are old, as they would be after many looks at them
        gc.enable()


def prepare_tensorflow() -> None:
    """Keep TensorFlow's chatter off stderr unless the user asks for it; make it Keras' backend."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    quiet = "TF_CPP_MIN_LOG_LEVEL" not in os.environ
    if not any(isinstance(finder, _LeanImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LeanImport(quiet))
    if quiet:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = QUIET
        for noisy in ("tensorflow", "absl"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
