"""The command line: each verb parses, calls one library function and prints its result.

Results go to stdout, all else to stderr. TensorFlow is loaded only by the verbs that need it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from . import __version__, answers, console, units
from .errors import DataError, GateError, ResourceError, UsageError
from .guard import COMPLETE, PROGRAM, run_command
from .options import (
    Batch,
    CompareSettings,
    Count,
    DataSettings,
    Settings,
    StageSettings,
    Verbs,
    Written,
    complete_model,
    printing,
    stack,
)

if TYPE_CHECKING:
    from .config import Resolved

run_argument = click.argument("run", metavar="RUN")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
FORMATS = "Any of savedmodel, keras, tflite, onnx."
config_options = stack(
    click.option("--config", "config_file", metavar="FILE", help="Settings in TOML."),
    click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any one setting."),
    json_option,
)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=printing(lambda ctx: f"{PROGRAM} {__version__}"),
    help="Show the version.",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def cli() -> None:
    """Fine-tune pretrained CNNs on your photos, and ship them.

    The main job: dlzoo finetune --data FOLDER_OF_CLASSES
    """


def _resolved(
    flags: dict[str, Any], sets: Sequence[str] = (), config_file: str | None = None
) -> Resolved:
    """Return the settings from everywhere; tell of variables that were meant to be some."""
    from .config import resolve, unknown_variables

    found = resolve(flags, sets, config_file, os.environ)
    console.setup(quiet=found.config.quiet, log_format=found.config.log_format)
    for line in unknown_variables(os.environ):
        console.say(line)
    return found


@cli.command(cls=Settings)
@config_options
def finetune(config_file: str | None, sets: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """Fine-tune a pretrained model on labelled photos."""
    found = _resolved(flags, sets, config_file)
    config = found.config
    if not config.data:
        raise UsageError(
            "usage",
            "no data given",
            fix="--data DIR (a folder of classes), FILE.csv, digits, flowers or tfds:NAME",
        )
    if config.verbose:
        for key, origin in found.origin.items():
            if origin != "default":
                console.say(f"{key} = {getattr(config, key)}  from {origin}")
    from . import training

    if config.dry_run:
        _rehearsed(training.finetune(config.backbone, config.data, config=config), as_json)
        return
    _finished(lambda: training.finetune(config.backbone, config.data, config=config), as_json)


@cli.command()
@run_argument
@click.option("--quiet", is_flag=True, help="Tell only errors and results.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="See finetune.")
@json_option
@click.option("--device", metavar="DEVICE", help="Another one: auto, cpu, gpu or gpu:N.")
@click.option("--strategy", metavar="STRATEGY", help="Another one: see finetune.")
def resume(run: str, as_json: bool, **changed: Any) -> None:
    """Go on with a run that was interrupted or killed."""
    from . import training

    console.setup(quiet=changed["quiet"], log_format=changed["log_format"] or "text")
    given = {key: value for key, value in changed.items() if value is not None}
    _finished(lambda: training.resume(run, **given), as_json)


@cli.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--workers", type=click.IntRange(1), default=2, help="Processes.  [default: 2]")
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND...")
def launch(workers: int, command: tuple[str, ...]) -> None:
    """Run finetune or resume as several workers on this machine."""
    from .launch import launch

    raise click.exceptions.Exit(launch(command, workers))


def _finished(make: Callable[[], Any], as_json: bool) -> None:
    """Print what a run came to, also one that missed its gate."""
    from .run import load_run

    missed = None
    try:
        run = make()
    except GateError as error:  # the run is there all the same
        missed, run = error, load_run(str(error.where))
    console.box(run.summary())
    if as_json:
        console.out_json({"run": str(run.path), **run.metrics})
    else:
        console.out(str(run.path))
    if missed:
        raise missed


def _rehearsed(found: dict[str, Any], as_json: bool) -> None:
    """Print what a dry run found out."""
    if as_json:
        console.out_json(found)
        return
    rows = [
        (s["name"], " ".join(s["groups"]), f"{s['trainable']:,}", s["cut"], s["seconds"])
        for s in found["stages"]
    ]
    console.table(rows, ["stage", "trains", ">parameters", "cached at", ">seconds at most"])


@cli.command("eval")
@run_argument
@click.option("--data", metavar="DIR", help="Other labelled photos of the same classes.")
@click.option("--split", help="train, val or test.  [default: test; with --data all photos]")
@click.option("--tta", is_flag=True, help="Average over each photo and its mirror image.")
@click.option("--fail-under", type=click.FloatRange(0, 1), metavar="0..1",
              help="Exit 9 if accuracy is below.")  # fmt: skip
@json_option
def evaluate(
    run: str,
    data: str | None,
    split: str | None,
    tta: bool,
    fail_under: float | None,
    as_json: bool,
) -> None:
    """Measure a run on its test photos or on others."""
    from .run import load_run

    metrics = load_run(run).evaluate(split, data=data, tta=tta)
    if as_json:
        console.out_json(metrics)
    else:
        console.out(f"accuracy {units.accuracy(metrics)}  macro-F1 {metrics['macro_f1']:.1%}")
    if fail_under is not None and metrics["accuracy"] < fail_under:
        raise GateError(
            "gate.fail-under", f"accuracy {metrics['accuracy']:.4f} < {fail_under}", where=run
        )


@cli.command()
@run_argument
@click.argument("photos", nargs=-1, required=True, metavar="PHOTO|DIR|-...")
@click.option("--topk", type=click.IntRange(1), default=5, help="Classes a photo.  [default: 5]")
@click.option("--format", "form", type=click.Choice(list(answers.FORMATS)), default="table")
@click.option("--strict", is_flag=True, help="Exit 3 at the end if a photo could not be read.")
@click.option("--explain", type=click.Choice(["gradcam"]), help="A picture of each: what decided.")
@click.option("--out", type=Written(folder=True), metavar="DIR",
              help="For these pictures.  [default: the run's plots/]")  # fmt: skip
@click.option("--tta", is_flag=True, help="Average over each photo and its mirror image.")
def predict(
    run: str, photos: tuple[str, ...], topk: int, form: str, strict: bool,
    explain: str | None, out: str | None, tta: bool,
) -> None:  # fmt: skip
    """Name what photos show: files, folders, or - (stdin)."""
    from .run import load_run

    if out and not explain:
        raise UsageError("usage", "--out is for pictures", fix="--explain gradcam")
    loaded = load_run(run)
    if form == "csv":
        console.out(answers.csv_head(topk, bool(explain)))
    total = bad = 0
    folder = (out or loaded.directory.plots) if explain else None
    for prediction in loaded.predict_stream(answers.photos(photos), topk, explain=folder, tta=tta):
        console.out(answers.FORMATS[form](prediction, topk, bool(explain)))
        total += 1
        bad += prediction.error is not None
    if not total:
        raise DataError("data.not-found", "no photos here", where=", ".join(photos))
    if bad and strict:
        raise DataError("data.bad-image", f"{bad} of {total} photos could not be read")


@cli.command()
@run_argument
@click.option("--to", "formats", required=True, metavar="FORMAT[,...]", help=FORMATS)
@click.option("--quantize", type=click.Choice(["fp16", "int8"]), help="A smaller tflite file.")
@click.option("--tolerance", type=float, help="Largest difference.  [default: 1e-3; fp16: 1e-2]")
@click.option("--max-drop", type=float, default=1.5, help="Points int8 may lose.  [default: 1.5]")
@click.option(
    "--batch", type=Batch(), metavar="dynamic|N", help="Images a call.  [default: dynamic]"
)
@click.option("--allow-flex", is_flag=True, help="Let tflite need TensorFlow's operations.")
@click.option("--images", metavar="DIR", help="Photos for the check; else those of the run.")
@json_option
def export(
    run: str,
    formats: str,
    quantize: str | None,
    images: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Write a checked model for use without dlzoo."""
    from .config import resolve

    found = resolve({"export": formats, "quantize": quantize}, called="--{}").config
    from .run import load_run

    photos = list(answers.photos([images])) if images else None
    if photos == []:
        raise DataError("data.not-found", "no photos here", where=images)
    parity = load_run(run).export(*found.export, images=photos, quantize=quantize, **asked)
    if as_json:
        console.out_json(parity)
        return
    for name, figures in parity.items():
        console.out(f"{name}  {figures['path']}")
        plain = {key: value for key, value in figures.items() if not isinstance(value, dict)}
        console.say(", ".join(f"{k} {v}" for k, v in plain.items() if k != "path"))
        if judged := figures.get("accuracy"):
            console.say(f"accuracy {units.change(judged)}")


@cli.command()
@run_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 is all there are.")
@click.option("--port", type=click.IntRange(0, 65535), default=8501, show_default=True)
@click.option("--name", help="In /v1/models/NAME.  [default: the folder's]")
@click.option("--max-body", metavar="20M", default="20M", show_default=True, help="Of a request.")
@click.option("--max-pixels", type=Count(), metavar="50M", default="50M", show_default=True)
@click.option("--timeout", metavar="30s", default="30s", show_default=True, help="For an answer.")
@click.option("--queue", type=click.IntRange(1), default=256, show_default=True,
              help="Images in work; with more, 503.")  # fmt: skip
@click.option("--quiet", is_flag=True, help="No line for each request.")
def serve(
    run: str, host: str, port: int, name: str | None, max_body: str, max_pixels: float,
    timeout: str, queue: int, quiet: bool,
) -> None:  # fmt: skip
    """Answer over HTTP, as TensorFlow Serving does, with a page to drop photos on.

    RUN is a run, or its model/ folder. It has no passwords: keep it behind what has.
    """
    from .serve import Limits, check_packages
    from .serve import serve as answer

    check_packages()  # before TensorFlow is loaded
    console.setup(quiet=quiet)
    try:
        body, seconds = units.parse_bytes(max_body), units.parse_seconds(timeout)
        limits = Limits(body, seconds, int(max_pixels), queue)
    except ValueError as error:
        raise UsageError("usage", str(error), fix="--max-body 20M --timeout 30s") from None
    answer(run, host=host, port=port, name=name, limits=limits, ready=console.out, say=console.say)


@cli.command()
@run_argument
@click.option("--open", "show", is_flag=True, help="Show it in the browser.")
@click.option("--code", type=Written(), help="Write plain Keras that does the same, instead.")
def report(run: str, show: bool, code: str | None) -> None:
    """Write report.html of a finished run anew: figures, photos, doubts, exports."""
    from .run import load_run

    if code:
        from .files import write_text

        text = load_run(run).as_code()
        if code == "-":
            console.out(text, end="")
        else:
            write_text(code, text)
            console.out(code)
        return
    path = load_run(run).report()
    console.out(str(path))
    if show:
        import webbrowser

        if not webbrowser.open(path.absolute().as_uri()):
            console.say("no browser was found here")


@cli.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--average",
    type=click.Choice(["auto", "probabilities", "logits", "weights"]),
    default="auto",
    help="Of what; weights: of one backbone.  [default: auto, by validation photos]",
)
@click.option(
    "--tta", type=click.Choice(["auto", "on", "off"]), default="off",
    help="Average over mirror images, too.  [default: off]",
)  # fmt: skip
@click.option("--out", metavar="DIR", help="Folder of the new run.  [default: of the first]")
@click.option("--name", metavar="NAME", help="Of the new run.")
@click.option("--quiet", is_flag=True, help="Tell only errors and results.")
@json_option
def ensemble(runs: tuple[str, ...], as_json: bool, **asked: Any) -> None:
    """Make one model of several finished runs; it is a run like any other."""
    from . import training

    console.setup(quiet=asked["quiet"])
    _finished(lambda: training.ensemble(*runs, **asked), as_json)


@cli.command("lr-find", cls=StageSettings)
@click.option("--stage", metavar="head|C5|all", help="What trains.  [default: as the preset]")
@click.option("--low", type=float, default=1e-6, help="First learning rate.  [default: 1e-6]")
@click.option("--high", type=float, default=1.0, help="Last learning rate.  [default: 1]")
@click.option("--steps", type=int, default=100, help="From the one to the other.  [default: 100]")
@click.option("--plot", type=Written(), help="Draw loss against learning rate: .png.")
@config_options
def lr_find(
    config_file: str | None, sets: tuple[str, ...], as_json: bool, stage: str | None,
    low: float, high: float, steps: int, plot: str | None, **flags: Any,
) -> None:  # fmt: skip
    """Look for a learning rate by a range test; nothing is kept."""
    config = _resolved(flags, sets, config_file).config
    from .explore import lr_find

    found = lr_find(
        data=config.data, config=config, stage=stage, low=low, high=high, steps=steps, plot=plot
    )
    if as_json:
        console.out_json(found)
    else:
        answers.rates(found)


@cli.command(cls=CompareSettings)
@click.argument("runs", nargs=-1, metavar="[RUN...]")
@click.option("--backbones", metavar="NAME,...", help="Which of these for the photos?")
@click.option("--init", metavar="imagenet,none", help="What pretrained weights are worth.")
@click.option("--images", type=int, help="Training photos at most, with --init.  [default: 800]")
@click.option("--plot", type=Written(), help="Draw it: .png (with --init also .csv).")
@config_options
def compare(
    runs: tuple[str, ...], backbones: str | None, init: str | None, images: int | None,
    plot: str | None, config_file: str | None, sets: tuple[str, ...], as_json: bool, **flags: Any,
) -> None:  # fmt: skip
    """Compare finished runs, backbones on your photos, or first weights."""
    config = _resolved(flags, sets, config_file).config
    from .explore import compare as measure
    from .starts import IMAGES

    found = measure(
        *runs, backbones=backbones, init=init, data=config.data, images=images or IMAGES,
        plot=plot, config=config,
    )  # fmt: skip
    if as_json:
        console.out_json(found)
    else:
        answers.compared(found)


@cli.command("list")
@click.argument("pattern", nargs=-1)
@click.option("--pretrained", is_flag=True, default=None, help="Only models with weights.")
@click.option("--max-params", type=Count(), metavar="10M", help="Only models up to this size.")
@click.option("--max-gmacs", type=float, metavar="G", help="Only models up to this cost.")
@click.option("--min-top1", type=float, metavar="PERCENT", help="Of some ImageNet weights.")
@click.option("--licence", metavar="SPDX", help='Of some weights, as in "Apache*".')
@click.option("--family", metavar="NAME", help='As in "resnet".')
@click.option("--taps", metavar="C3,C5", help="Only models that have these feature maps.")
@json_option
def list_(pattern: tuple[str, ...], taps: str | None, as_json: bool, **filters: Any) -> None:
    """List the models; PATTERN as in "resnet*"."""
    from . import about, zoo

    wanted = [tap.strip() for tap in taps.split(",")] if taps else None
    names = zoo.list_models(pattern or None, taps=wanted, **filters)
    if as_json:
        console.out_json({"models": [zoo.info(name) for name in names]})
    elif names:
        about.listing(names)
    else:
        console.say("no model matches")


@cli.command()
@click.argument("name", shell_complete=complete_model)
@click.option("--brief", is_flag=True, help="Only what is known without building the model.")
@click.option("--size", type=click.IntRange(1), help="Of the image in pixels.")
@click.option("--plot", type=Written(), help="Draw the architecture: .svg, .png or .pdf.")
@json_option
def info(name: str, brief: bool, size: int | None, plot: str | None, as_json: bool) -> None:
    """Show what is known of a model: figures, weights, taps, every layer."""
    from . import about, zoo
    from .doctor import is_here

    found = zoo.info(name)
    variant, _ = zoo.resolve(name)
    for shown, row in zip(found["weights"], variant.weights, strict=True):
        shown["here"] = is_here(row)
    if plot or not brief:
        model = zoo.create_model(variant.name, input_shape=size)
    if not brief:
        found |= about.anatomy(model)
    if as_json:
        console.out_json(found)
    else:
        about.facts(found)
        if not brief:
            if found["taps"]:
                about.taps(found)
            about.layers(found)
    if plot:
        from .report.architecture import draw

        draw(model, plot)
        console.say(f"drawn: {plot}")


@cli.command()
@click.argument("backbone", shell_complete=complete_model)
@click.option("--offline", is_flag=True, help="Only look whether they are here.")
def fetch(backbone: str, offline: bool) -> None:
    """Get a model's weights now, to work without a network later."""
    from . import zoo
    from .zoo import weights

    with weights.offline_if(offline):
        variant, row = zoo.resolve(backbone, True)
        assert row is not None  # True asks for one
        with console.progress(f"{variant.name}.{row.tag}") as progress:
            path = weights.locate(row, variant.name, progress=progress)
    console.out(str(path))


@cli.group(cls=Verbs)
def data() -> None:
    """Look at labelled photos, split them, or get some, before training."""


@data.command(cls=DataSettings)
@click.argument("source")
@click.option("--report", type=Written(), help="Write every odd file and the reason: .csv.")
@json_option
def check(source: str, report: str | None, as_json: bool, **flags: Any) -> None:
    """Read every photo and report counts, splits and problems."""
    config = _resolved(flags).config
    from .data import load_data
    from .data.catalogue import write_problems

    try:
        loaded = load_data(source, **config.of_data())
    except DataError as error:  # then the list is needed most
        if report:
            write_problems(report, error.problems)
        raise
    if report:
        loaded.write_problems(report)
    if as_json:
        console.out_json(loaded.summary())
        return
    with contextlib.redirect_stdout(io.StringIO()) as text:
        loaded.check()
    console.out(text.getvalue(), end="")


@data.command("fetch")
@click.argument("source")
@click.option("--offline", is_flag=True, help="Only look whether it is here.")
def fetch_data(source: str, offline: bool) -> None:
    """Get flowers, fashion-mnist or tfds:NAME now, to work without a network later."""
    from .data.load import fetch
    from .zoo.weights import offline_if

    with offline_if(offline):
        console.out(str(fetch(source) or f"{source}: always here"))


@data.command("split", cls=DataSettings)
@click.argument("source")
@click.option("--out", type=Written(new=True), default="split.csv", show_default=True)
def split_data(source: str, out: str, **flags: Any) -> None:
    """Write which photo is in which split, for --split-file; nothing is trained."""
    config = _resolved(flags).config
    from .data import load_data

    loaded = load_data(source, **config.of_data())
    loaded.write_manifest(out)
    console.say("/".join(f"{n:,} {name}" for name, n in loaded.splits.items()))
    console.out(out)


@cli.group(cls=Verbs)
def cache() -> None:
    """See and clear what frozen layers have computed for earlier runs."""


@cache.command("list")
@json_option
def list_cache(as_json: bool) -> None:
    """List what is kept, and how much room it takes."""
    from .transfer import shelf

    entries, limit = shelf.entries(), shelf.limit()
    if as_json:
        plain = [{**entry, "path": str(entry["path"])} for entry in entries]
        console.out_json({"entries": plain, "limit": limit})
        return
    rows = [
        (
            entry.get("model"),
            entry.get("place"),
            entry.get("view"),
            entry.get("augment"),
            entry.get("size"),
            f"{entry['images']:,}",
            f"{entry['bytes'] / 1e6:,.0f}",
            datetime.fromtimestamp(entry["used"]).strftime("%Y-%m-%d %H:%M"),
        )
        for entry in entries
    ]
    heads = ["model", "up to", ">view", "augment", ">px", ">images", ">MB", "last used"]
    console.table(rows, heads)
    total = sum(entry["bytes"] for entry in entries)
    console.say(f"{total / 1e9:.2f} GB of at most {limit / 1e9:.2f} GB in {shelf.root()}")


@cache.command()
@click.option("--down-to", metavar="SIZE", help="Keep this much, as in 5G: the last used.")
def clear(down_to: str | None) -> None:
    """Remove it; what a run is writing just now stays."""
    from .transfer import shelf

    try:
        left = 0 if down_to is None else units.parse_bytes(down_to)
    except ValueError as error:
        raise UsageError("usage.size", str(error), where="--down-to", fix="5G, 500M") from None
    console.out(f"{shelf.clear(left) / 1e9:.2f} GB removed")


@cli.group("config", cls=Verbs)
def config_() -> None:
    """See and write the settings of finetune."""


@config_.command(cls=Settings)
@config_options
def show(config_file: str | None, sets: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """Show each setting and where its value comes from."""
    found = _resolved(flags, sets, config_file)
    values = found.config.model_dump()
    if as_json:
        rows = {key: {"value": value, "from": found.origin[key]} for key, value in values.items()}
        console.out_json(rows)
        return
    cells = [(key, _text(value), found.origin[key]) for key, value in values.items()]
    console.table(cells, ["setting", "value", "from"])


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(v if isinstance(v, str) else console.as_json(v) for v in value) or "-"
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@config_.command()
@click.argument("file", default="dlzoo.toml")
def init(file: str) -> None:
    """Write every setting, explained, to FILE (dlzoo.toml; - for stdout)."""
    from .config import template

    if file == "-":
        console.out(template(), end="")
        return
    try:
        with open(file, "x", encoding="utf-8") as out:  # noqa: PTH123
            out.write(template())
    except FileExistsError:
        raise UsageError("config.exists", "not overwritten", where=file) from None
    except OSError as error:
        raise ResourceError("resource.permission", str(error.strerror), where=file) from None
    console.out(file)


@cli.command()
@click.argument("run", required=False, metavar="[RUN]")
@json_option
def doctor(run: str | None, as_json: bool) -> None:
    """Check the machine and say what dlzoo would use of it.

    With a RUN: also whether it could be made again here, to the same last bit.
    """
    from .doctor import examine, render, repeatable

    reasons = repeatable(run) if run else []
    found = examine() | ({"run": {"repeatable": not reasons, "reasons": reasons}} if run else {})
    if as_json:
        console.out_json(found)
    else:
        for topic, text in render(found):
            console.out(f"{topic:14} {text}")
        if run:
            said = (
                f"not to the last bit: {'; '.join(reasons)}" if reasons else "to the same last bit"
            )
            console.out(f"{'run again':14} {said}")
    if found["problems"]:
        raise ResourceError("doctor.problem", "\n  ".join(found["problems"]))


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script: eval "$(dlzoo completion bash)"."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None  # click knows the three
    console.out(found(cli, {}, PROGRAM, COMPLETE).source())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with one of the codes of :mod:`dlzoo.errors`."""
    if argv is None:
        sys.argv[0] = PROGRAM  # what run.json tells, and what resumes the run
    run_command(cli, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
