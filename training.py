"""The calls that make a run: finetune, ensemble and resume, from settings to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import console
from .averaging import make_job, of_runs
from .config import FinetuneConfig, resolve
from .errors import DataError, DlzooError, ExportError, GateError, ResumeError, UsageError
from .job import Job, with_data
from .run import Run
from .rundir import RunDir, read_values
from .units import change

SHARE, LEAST, MOST = 0.05, 2.0, 15.0  # of the seconds of a run: for its robustness


def finetune(
    backbone: str = "efficientnet_lite0",
    data: Any = None,
    *,
    config: FinetuneConfig | None = None,
    **settings: Any,
) -> Any:
    """Fine-tune a backbone on labelled images, evaluate it and keep everything in a run.

    Args:
        backbone: a name of the zoo, perhaps with a tag. data: a source for `load_data`, or
            what it returned; settings that are its arguments are given to it then.
        config: all settings, checked. settings: or some of them by name, see
            `dlzoo.config.FinetuneConfig`.

    Returns:
        The finished :class:`Run`. With `dry_run=True` nothing is written, and what would be
        done is returned as a dictionary.

    Raises:
        DlzooError: whatever went wrong, with its id, a remedy and an exit code.
    """
    if config is None:
        given = with_data({**settings, "backbone": backbone}, data)
        config = resolve(given, called="{}=").config
    elif settings:
        raise UsageError("usage.config", "give config= or single settings, not both")
    console.setup(quiet=config.quiet, log_format=config.log_format)
    with make_job(config, data if data is not None else config.data) as job:
        return job.rehearse() if config.dry_run else _carried_out(job, config)


def ensemble(
    *runs: Path | str | Run,
    average: str = "auto",
    tta: str | bool = "off",
    out: Path | str | None = None,
    name: str | None = None,
    **settings: Any,
) -> Run:
    """Make one model of several finished runs; the result is a run like any other.

    Args:
        runs: of the same photos in the same splits; of one or of several backbones.
        average: `probabilities`, `logits`, `auto` (of these what the validation photos like
            better) or `weights` (a greedy soup of runs of one backbone, arXiv:2203.05482).
        tta: `on`: average over each image and its mirror image, too; one run may be given then.
            `auto`: if the validation photos say so.
        out, name: of the new run directory; default: beside the first run.
        settings: of the call, as for `finetune`: quiet, report, export, fail_under.

    Raises:
        UsageError: `ensemble.few`, `ensemble.unfinished`, `ensemble.data`. ModelError:
            `model.not-alike`. DlzooError: as `finetune` does.
    """
    found = [run if isinstance(run, Run) else Run(run) for run in runs]
    if not found:
        raise UsageError("ensemble.few", "no run was given", fix="dlzoo ensemble RUN RUN")
    first = found[0]
    names = [str(read_values(run.directory.config)["backbone"]) for run in found]
    given: dict[str, Any] = {
        **settings,
        "average": average,
        "tta": tta,
        "backbone": ",".join(dict.fromkeys(names)),
        "ensemble": len(found),
        "out": out or first.path.absolute().parent,
        "name": name,
        "resume": "off",
        "split_file": first.directory.manifest.absolute(),
    }
    config = resolve(given, config_file=first.directory.config, called="{}=").config
    console.setup(quiet=config.quiet, log_format=config.log_format)
    with of_runs([run.directory for run in found], first.data, config) as job:
        return _carried_out(job, config)


def _carried_out(job: Job, config: FinetuneConfig) -> Run:
    """Do a job, ship and report its result."""

    def ship(directory: RunDir) -> None:
        run, refused = _run_of(job, directory), None
        try:
            _export(run, config)
        except ExportError as error:  # the report tells of it
            refused = error
        if config.report:
            _report(run)
        if refused:
            raise refused

    run = _run_of(job, job.run(then=ship))
    if job.classifier is None and job.workers.chief:  # it was finished before
        _export(run, config)
    _gate(run, config.fail_under)
    return run


def _export(run: Run, config: FinetuneConfig) -> None:
    """Write the exports that are wanted and are not there: those before a kill are."""
    if not config.export:
        return
    from .export import Options, file_name

    quantize = None if config.quantize == "none" else config.quantize
    names = {form: file_name(form, Options(quantize=quantize)) for form in config.export}
    if lacking := [f for f, name in names.items() if not (run.directory.export / name).exists()]:
        for figures in run.export(*lacking, quantize=quantize).values():
            judged = figures.get("accuracy")
            more = f"  accuracy {change(judged)}" if judged else ""
            console.say(f"exported {figures['path']}{more}")


def _run_of(job: Job, directory: RunDir) -> Run:
    """Return the run that a job made, with the model and data it holds already."""
    run = Run(directory.path, job.data)
    if job.classifier:
        run.__dict__["classifier"] = job.classifier  # fills the cached property
    return run


def resume(path: Path | str, **settings: Any) -> Run:
    """Go on with a run that was killed or interrupted, from its newest checkpoint.

    Args:
        path: of the run directory. settings: those of the call alone, such as `quiet`.

    Returns:
        The finished :class:`Run`; one that was finished already is returned as it is.

    Raises:
        DataError: `run.no-data`, the run was made from data in memory: call `finetune` again
            with the data and `resume="auto"`.
        DlzooError: as `finetune` does.
    """
    directory = RunDir.open(path)
    if not directory.begun:
        raise ResumeError(
            "resume.no-valid-checkpoint",
            "the run never began",
            where=directory.path,
            fix="remove it and start it again",  # its name is taken
        )
    place = {"out": str(directory.path.parent), "name": directory.path.name, "resume": "auto"}
    split = read_values(directory.config).get("split_file") or ""
    if Path(split).name == directory.manifest.name and not Path(split).is_file():
        place["split_file"] = str(directory.manifest)  # its own, which has moved with the run
    config = resolve({**place, **settings}, config_file=directory.config, called="{}=").config
    if not config.data:
        raise DataError(
            "run.no-data",
            "the run was made from data in memory",
            where=directory.path,
            fix='call finetune again with the data, name= and resume="auto"',
        )
    return finetune(config=config)


def _report(run: Run) -> None:
    """Make the report of a run that has just finished; that it fails is no fault of the run."""
    seconds = min(MOST, max(LEAST, SHARE * run.metrics["seconds"]))
    try:
        with console.progress("making the report"):
            run.report(seconds=seconds)
    except Exception as error:
        reason = (
            error.message if isinstance(error, DlzooError) else f"{type(error).__name__}: {error}"
        )
        console.say(f"no report was made: {reason}; try again with: dlzoo report {run.path}")


def _gate(run: Run, wanted: float | None) -> None:
    """Fail a run that is not good enough; it is kept all the same."""
    test = run.metrics["test"]
    if wanted is not None and (test is None or test["accuracy"] < wanted):
        got = f"{test['accuracy']:.4f}" if test else "no test photos"
        raise GateError("gate.fail-under", f"accuracy {got} < {wanted}", where=run.path)
