"""Write docs/RELIABILITY.md: what can go wrong, what happens then, and the test that shows it.

    python tools/reliability.py [JUNIT.xml ...]

The numbers come from the names of the tests (`test_fault_05_...`, `test_pain_07_...`); ids, exit
codes and lines are those that the tests in tests/faults record while they run. They are run
unless the report of such a run (pytest -o junit_family=xunit1 --junitxml) is given.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "RELIABILITY.md"
LONGEST = 180  # characters of a line that are shown

FAULTS = {
    1: "the photos are not there, or a file is where a folder should be: said, nothing is made",
    2: "no class folders: the tree that is needed is shown",
    3: "one class only: said",
    4: "an empty class, or fewer than three images: said, with the class to leave out",
    5: "cut short, empty or no image at all: skipped and reported; too many of them: an error",
    6: "another format than the name says: decoded by content, with a warning",
    7: "CMYK, grey, 16 bits, palette, alpha, animation: RGB, the same in training and predict",
    8: "turned by EXIF: set upright everywhere",
    9: "20,000 x 20,000 pixels: skipped by the header, never decoded",
    10: "a hostile archive: refused, nothing is written outside",
    11: "one image in two splits or under two labels: one split, a warning, an error if wanted",
    12: "any name works; two that differ in case only: said",
    13: "system files, checkpoints of notebooks, links that go round: ignored with a note",
    14: "no right to read: the file is skipped, the folder is an error",
    15: "a file vanishes while training: three more tries, then named",
    16: "the photos changed since the checkpoint",
    17: "an unknown backbone: the nearest name is suggested",
    18: "too small an image size: said before any download",
    19: "no network: the address, the place for the file, and what works without it",
    20: "killed half way through a download: the next one goes on, nothing partial is loaded",
    21: "another hash than published: put aside, fetched once more, then refused",
    22: "two processes download one file: one does, both have it",
    23: "a hostile weights file: refused, nothing in it is run, memory stays bounded",
    24: "weights of another model: the first five misfits, and no part is loaded",
    25: "out of memory with an automatic batch",
    26: "out of memory with a given batch",
    27: "the loss is no number, or never leaves chance",
    28: "a signal while training",
    29: "killed at any time",
    30: "killed while a checkpoint is written",
    31: "a damaged checkpoint",
    32: "a full disk at a checkpoint",
    33: "the output cannot be written, or the name is taken: said before the photos are read",
    34: "two processes on one run: the second is told who has it",
    35: "resumed with other settings",
    36: "resumed under other versions",
    37: "resumed although finished",
    38: "one replica or worker dies",
    39: "an export needs a package that is missing: said at the start, with the pip line",
    40: "an export answers otherwise than the model: refused, and kept as `.rejected`",
    41: "one unreadable photo of a thousand: its row says so, the others are right",
    42: "no terminal, no reader, any locale, no home: no traceback, no control codes",
    43: "several mistakes in one configuration: all are told, with their lines",
    44: "a class or file named like a formula or markup: escaped in every table",
}
PAINS = {
    1: "preprocessing differs between training, predict and export",
    2: "an export answers otherwise",
    3: "classes in another order in another split",
    4: "class names are lost",
    5: "BatchNorm is destroyed on unfreezing",
    6: "`trainable` has no effect",
    7: "a leaky or one-sided split",
    8: "files are silently ignored",
    9: "odd folders become classes",
    10: "two replicas train otherwise than one device",
    11: "early stopping watches nothing",
    12: "int8 loses accuracy unnoticed",
    13: "the best weights are forgotten between stages",
    14: "resuming overwrites the best with worse",
    15: "the state of callbacks is not kept",
    16: "a checkpoint is half written",
    17: "Ctrl-C loses the best weights",
    18: "epochs are counted wrongly in later stages",
    19: "training ends early for lack of data",
    20: "a model of another version fails obscurely",
    21: "a frozen layer cannot be loaded again",
    22: "no way back from an export to training",
    23: "an artefact runs code, or needs ours",
    24: "SavedModel by the way that fails",
    25: "LiteRT by the way that fails",
    26: "augmentation inside the exported graph",
    27: "ONNX breaks with Keras 3",
    28: "mixed precision cannot be exported",
    29: "LiteRT silently needs Flex",
    30: "the batch size is frozen or free unasked",
    31: "several machines do not work with Keras 3",
    32: "several workers race when saving",
    33: "TPUs are fragile",
    34: "BatchNorm differs by replica",
    35: "weights cannot be downloaded",
    36: "a release of Keras breaks weights",
    37: "a corrupt image ends the run, unnamed",
    38: "prepared data still needs a network",
    39: "the installation rots",
    40: "the GPU is silently not used",
    41: "memory grows from fit to fit",
    42: "grey, transparent or 16-bit images",
    43: "class weights are ignored",
    44: "VGG collapses at the usual learning rate",
    45: "two learning-rate policies fight",
    46: "no learning rates by layer",
    47: "no learning-rate finder",
    48: "Grad-CAM on a nested backbone",
    49: "not reproducible in spite of seeds",
    50: "logs break pipes",
    51: "augmentation is the bottleneck",
}
GAPS = {
    ("pain", 14): "by the tests of fault 29: killed anywhere, the same history and best weights",
    ("pain", 15): "by the tests of fault 29",
    ("pain", 16): "by the tests of faults 30 and 31",
    ("pain", 17): "by the tests of fault 28",
    ("pain", 27): "tested where the extra `onnx` is installed (tests/unit/test_export.py)",
    ("pain", 33): "TPUs are not promised: the code has not run on one",
    ("pain", 51): "a figure and not a behaviour: benchmarks/RESULTS.md",
}
REMARKS = {
    ("pain", 36): "by hand: `make test-oldest`, and Python 3.11, 3.12 and 3.13; no weekly run",
    ("pain", 39): "no weekly run against new releases and Colab's versions",
    ("pain", 41): "1.6 % over nine stages, once each depth was trained (benchmarks/memory.py); "
    "what stays is TensorFlow's, which keeps the graph of every training step for good unless told",
    ("pain", 44): "rates go by BatchNorm or none, not by backbone; VGG16's published weights and "
    "the flowers were not at hand",
}

Number = tuple[str, int]


def numbers(name: str) -> list[Number]:
    """Return what a test's name claims: `test_pain_05_06_x` is of the pains 5 and 6."""
    found = re.findall(r"(?<=_)(fault|pain)_((?:\d\d_)+)", name)
    return [(kind, int(n)) for kind, many in found for n in many.split("_") if n]


def tests() -> dict[Number, list[str]]:
    """Return the tests of each number, as `file::name`."""
    found = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE):
            for number in numbers(name):
                found[number].append(f"{path.relative_to(ROOT).as_posix()}::{name}")
    return dict(found)


def seen(reports: Iterable[Path]) -> dict[Number, list[tuple[str, str]]]:
    """Return (exit code, line) as the tests recorded them; one for each id of a message."""
    found: dict[Number, dict[str, tuple[str, str]]] = defaultdict(dict)
    for case in (case for report in reports for case in ET.parse(report).iter("testcase")):
        if not numbers(case.get("name")):
            continue
        if case.find("failure") is not None or case.find("error") is not None:
            raise SystemExit(f"{case.get('name')} failed: no page is written")
        for note in case.iter("property"):
            code, _, line = note.get("value").partition(" ")
            for number in numbers(case.get("name")):
                found[number].setdefault(_id(line) or code, (code, line))
    return {number: list(lines.values()) for number, lines in found.items()}


def _id(line: str) -> str | None:
    match = re.match(r"error\[([\w.-]+)\]", line)
    return match and match[1]


def _code(text: str) -> str:
    """Return text as code inside a table."""
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 2]} …"
    return "`` {} ``".format(text.replace("|", "\\|"))


def rows(kind: str, titles: dict[int, str], lines: dict[Number, list[tuple[str, str]]]):
    """Yield the rows of a table in Markdown."""
    proofs = tests()
    for n, title in titles.items():
        number = kind, n
        ids = [f"`{_id(line)}` ({code})" if _id(line) else f"({code})"
               for code, line in lines.get(number, ())]  # fmt: skip
        shown = [_code(line) for _, line in lines.get(number, ())]
        where = defaultdict(list)
        for proof in proofs.get(number, ()):
            file, _, name = proof.partition("::")
            where[file.removeprefix("tests/")].append(f"`{name}`")
        cells = [
            f"{file.removeprefix('tests/')}: {', '.join(names)}" for file, names in where.items()
        ]
        note = GAPS.get(number) or REMARKS.get(number)
        cells += [f"*{note}*"] if note else []
        yield f"| {n} | {title} | {', '.join(ids)} | {'<br>'.join(shown)} | {'; '.join(cells)} |"


def page(lines: dict[Number, list[tuple[str, str]]]) -> str:
    """Return the whole page."""
    faults, pains = ("\n".join(rows(*of, lines)) for of in (("fault", FAULTS), ("pain", PAINS)))
    return TEXT.format(faults=faults, pains=pains)


TEXT = """\
# What can go wrong, and what happens then

Written by `python tools/reliability.py`; do not edit. Each row names the tests that show it. Lines
are those that the tests saw, cut after a while; an error also tells where it is and
how to mend it. What a failing command must not do is change anything: those tests compare all files
before and after.

## Kill and resume

`make test-resume` (tests/resume) runs the whole job in real processes, ends them by SIGKILL, starts
them again, and compares all weights, metrics.csv without times and predictions_test.csv, byte for
byte, with a run that nobody disturbed. The network has convolutions, BatchNorm that trains, dropout
and augmentation; 3 stages of 2 epochs of 5 steps, a checkpoint every 3 steps, `--deterministic`.

| | what is done | what must come of it |
|---|---|---|
| T0 | nothing | the same |
| T1 | one thing is left out when going on: optimizer slots, sums of metrics, dropout's seeds, BatchNorm's statistics, weights, the step, the schedule, the best model, the history | NOT the same |
| T2 | killed at 18 moments: first and last steps, in validation, between stages, while activations are computed, while the model, figures, predictions and plots are written, in an export; and before each fsync, link and rename of a checkpoint | the same, nothing left over |
| T2b | killed every 2 to 25 steps until it is done, 20 seeds | the same, at most 3 checkpoints |
| T2c | other recipes, drawn by a seed from what can be set (tests/resume/recipes.py), killed up to three times; gone on with by the same call, by `dlzoo.resume` or by the command, the run or the photos moved in between | the same |
| T4 | a checkpoint every 1, 7, 100 steps; 1 or 8 images made at once | the same |
| T5 | each file of the newest checkpoint cut short, changed or gone; all of them | the one before is used; exit 7, nothing touched |
| T6 | a full disk (a limit on file sizes) | exit 5, goes on from the last good one |
| T6 | memory that runs out (as TensorFlow says it) behind a checkpoint of the stage, in a run that was killed before and is killed after | the stage begins again with half of the batch; the same |
| T7 | SIGTERM, SIGINT once and twice, SIGHUP, in each stage and in validation | saved within a step, exit 75, the same in the end |
| T8 | two replicas on one machine, killed twice; one of two workers, and the first one, killed, gone on with by one, two and three; SIGTERM to one of two | the others end within a minute with 75, all at one step; the same figures to 1e-5, weights to 2e-5 |

That no sample is skipped or repeated is not looked at by itself: one that were would change the
weights (T1, the step). Workers are processes of one machine. Figures are in
[benchmarks/RESULTS.md](../benchmarks/RESULTS.md).

## Faults and bad input

| # | fault: what happens | id (exit code) | seen | test, or why there is none |
|---|---|---|---|---|
{faults}

## What users of other tools suffer from

| # | complaint | id (exit code) | seen | test, or why there is none |
|---|---|---|---|---|
{pains}
"""  # noqa: E501


def main() -> None:
    """Run the tests unless their report is given, and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        given = [Path(name) for name in sys.argv[1:]]
        if not given:
            report = Path(folder) / "junit.xml"
            command = [sys.executable, "-m", "pytest", "tests/resume", "tests/faults"]
            command += ["-o", "junit_family=xunit1", f"--junitxml={report}"]
            command += ["--ignore=tests/faults/test_reliability.py"]
            subprocess.run(command, cwd=ROOT, check=True)
        PAGE.write_text(page(seen(given or [report])), "utf-8")


if __name__ == "__main__":
    main()
