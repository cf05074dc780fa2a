"""The command line: what each verb takes, prints and exits with."""

import csv
import errno
import importlib.util
import io
import json
import os
import subprocess
import sys
import types
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import dlzoo
import numpy as np
import pytest
from dlzoo import zoo
from dlzoo.config import FIELDS
from dlzoo.errors import DataError, DivergedError, GateError, ModelError
from dlzoo.rundir import RunDir
from dlzoo.units import parse_bytes
from photos import folder
from PIL import Image


@dataclass
class Answer:
    path: str
    error: str | None = None
    top: list = field(default_factory=lambda: [("rose", 0.75), ("=tulip", 0.25)])
    explained: str | None = None


class FakeRun:
    """Stands for a run whose every photo is a rose, unless it is called bad."""

    path = Path("runs/net-data-1")
    directory = types.SimpleNamespace(plots=path / "plots")
    metrics = {"accuracy": 0.9}
    exported = None

    def summary(self):
        return "DONE test top-1 90.0 %"

    def evaluate(self, split="test", data=None, tta=False):
        ci, counts = [0.8, 0.95], {"correct": 9, "n": 10}
        return {"accuracy": 0.9, "accuracy_ci": ci, "macro_f1": 0.875, **counts, "split": split}

    def predict_stream(self, paths, topk, explain=None, tta=False):
        for path in paths:
            picture = f"{explain}/{path}.png" if explain else None
            bad = "bad" in path
            yield Answer(path, "truncated", []) if bad else Answer(path, explained=picture)

    def report(self):
        return self.path / "report.html"

    def export(self, *formats, **asked):
        self.exported = (formats, asked)
        return {name: {"path": f"runs/x/export/{name}", "max_difference": 3e-7} for name in formats}


@pytest.fixture
def run_module(monkeypatch):
    """Put a fake in the place of what makes and loads runs; `calls` are the settings it got."""
    module = types.ModuleType("dlzoo.training")
    module.calls, module.run = [], FakeRun()

    def finetune(backbone, data, *, config):
        module.calls.append(config)
        return module.run

    module.finetune, module.load_run = finetune, lambda path: module.run
    for name in ("run", "training"):
        monkeypatch.setitem(sys.modules, f"dlzoo.{name}", module)
        monkeypatch.setattr(dlzoo, name, module, raising=False)
    return module


@pytest.mark.parametrize(
    ("argv", "heavy"),
    [
        (["--help"], ("tensorflow", "keras", "numpy", "pydantic", "rich")),
        (["finetune", "--help"], ("tensorflow", "keras", "numpy", "rich")),
        (["list"], ("tensorflow", "keras", "numpy")),
        (["info", "vgg16", "--brief"], ("tensorflow", "keras")),
        (["config", "show"], ("tensorflow", "keras", "numpy")),
        (["completion", "zsh"], ("tensorflow", "keras", "numpy")),
    ],
)
def test_what_needs_no_tensorflow_loads_none(argv, heavy):
    code = (
        "import sys\nfrom dlzoo.cli import main\n"
        f"try:\n    main({argv})\nexcept SystemExit as done:\n    assert done.code == 0\n"
        f"sys.exit(', '.join(sorted(set({heavy}) & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "dlzoo", "--version"], capture_output=True)
    assert (done.returncode, done.stdout) == (0, f"dlzoo {dlzoo.__version__}\n".encode())


def test_finetune_takes_every_setting(call, run_module):
    code, _, errors = call(
        *("finetune", "--data", "photos", "--label-smoothing", "0.2", "--train-bn", "--resume"),
        *("--ignore-class", "a", "--ignore-class", "b", "--export", "savedmodel", "-q"),
    )
    assert (code, errors) == (0, "")
    config = run_module.calls[0]
    assert (config.data, config.label_smoothing, config.train_bn) == ("photos", 0.2, True)
    assert (config.resume, config.quiet, config.ignore_class) == ("auto", True, ["a", "b"])
    help = call("finetune", "--help")[1]
    assert all(f"--{name.replace('_', '-')}" in help for name in FIELDS)


def test_finetune_takes_settings_from_everywhere(call, run_module, tmp_path, monkeypatch):
    (tmp_path / "my.toml").write_text('epochs = 4\nlr = 0.1\ntrain_bn = true\ndata = "photos"\n')
    monkeypatch.setenv("DLZOO_BATCH", "7")
    call("finetune", "--config", tmp_path / "my.toml", "--set", "lr=0.2", "--no-train-bn")
    config = run_module.calls[0]
    assert (config.epochs, config.lr, config.batch, config.train_bn) == (4, 0.2, 7, False)


def test_variables_that_are_no_settings_are_told(call, run_module, monkeypatch):
    """A misspelt one would be no setting, without a word; those of dlzoo's own are none of them."""
    for name in ("HOME", "CACHE_LIMIT", "BESIDE", "OFFLINE", "BATCH"):
        monkeypatch.setenv(f"DLZOO_{name}", {"BATCH": "7", "OFFLINE": "1"}.get(name, "/x"))
    monkeypatch.setenv("MY_DLZOO_X", "1")
    assert call("config", "show")[2] == ""
    monkeypatch.setenv("DLZOO_PRSET", "fast")
    code, out, errors = call("config", "show", "--json")
    assert code == 0 and json.loads(out)["preset"]["value"] == "balanced"
    assert errors == (
        "the variable DLZOO_PRSET is set, but dlzoo knows none of that name; "
        "did you mean 'DLZOO_PRESET'?\n"
    )
    errors = call("finetune", "--data", "digits", "--log-format", "json")[2]
    assert "DLZOO_PRSET" in json.loads(errors.splitlines()[0])["text"]


def test_a_warning_is_a_line_like_any_other(call, run_module, monkeypatch):
    def load_run(path):
        warnings.warn(f"{path} is odd", stacklevel=2)
        return run_module.run

    def finetune(*_, **__):
        return load_run("b")

    monkeypatch.setattr(run_module, "load_run", load_run)
    monkeypatch.setattr(run_module, "finetune", finetune)
    assert "warning: runs/x is odd\n" in call("predict", "runs/x", "a.jpg")[2].splitlines(True)
    lines = call("finetune", "--data", "digits", "--log-format", "json")[2].splitlines()
    assert json.loads(lines[0])["text"] == "warning: b is odd"


def test_pictures_that_explain_are_asked_for_and_named(call, run_module):
    explain = ("predict", "runs/x", "a.jpg", "bad.jpg", "--explain", "gradcam")
    out = call(*explain)[1]
    assert out.splitlines()[0].endswith("  runs/net-data-1/plots/a.jpg.png")
    rows = call(*explain, "--format", "jsonl", "--out", "here")[1].splitlines()
    assert json.loads(rows[0])["explained"] == "here/a.jpg.png"
    assert "explained" not in json.loads(rows[1])
    out = call(*explain, "--format", "csv", "--out", "here")[1]
    pictures = [row["explained"] for row in csv.DictReader(io.StringIO(out))]
    assert pictures == ["here/a.jpg.png", ""]
    code, _, errors = call("predict", "runs/x", "a.jpg", "--out", "here")
    assert code == 2 and "--explain gradcam" in errors


def test_report_prints_the_page_and_opens_it(call, run_module, monkeypatch):
    import webbrowser

    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url))
    assert call("report", "runs/x") == (0, "runs/net-data-1/report.html\n", "")
    assert opened == []
    code, out, errors = call("report", "runs/x", "--open")
    assert (code, out) == (0, "runs/net-data-1/report.html\n") and "no browser" in errors
    assert opened[0].startswith("file:///") and opened[0].endswith("/report.html")


def test_finetune_prints_the_run_and_tells_the_rest_on_stderr(call, run_module):
    told = (0, "runs/net-data-1\n", "DONE test top-1 90.0 %\n")
    assert call("finetune", "--data", "digits") == told
    code, out, _ = call("finetune", "--data", "digits", "--json")
    assert (code, json.loads(out)) == (0, {"run": "runs/net-data-1", "accuracy": 0.9})


def test_a_dry_run_prints_its_stages(call, run_module):
    stage = {"name": "top", "groups": ["C5", "head"], "trainable": 1234, "cut": "C4"}
    found = {"plan": {}, "data": {}, "stages": [{**stage, "loss": 1.5, "seconds": 12.5}]}
    run_module.finetune = lambda *_, **__: found
    code, out, errors = call("finetune", "--data", "digits", "--dry-run")
    assert (code, errors) == (0, "")
    assert out.splitlines()[1].split() == ["top", "C5", "head", "1,234", "C4", "12.5"]
    assert json.loads(call("finetune", "--data", "digits", "--dry-run", "--json")[1]) == found


def test_finetune_prints_its_run_also_when_the_gate_is_missed(call, run_module):
    def finetune(*_, **__):
        raise GateError("gate.fail-under", "accuracy 0.9 < 0.95", where="runs/net-data-1")

    run_module.finetune = finetune
    code, out, errors = call("finetune", "--data", "digits", "--fail-under", "0.95")
    assert (code, out) == (9, "runs/net-data-1\n")
    assert errors.startswith("DONE test top-1") and "error[gate.fail-under]" in errors


def test_verbose_tells_what_is_not_default(call, run_module, monkeypatch):
    monkeypatch.setenv("DLZOO_BATCH", "7")
    errors = call("finetune", "--data", "digits", "-v")[2]
    assert "batch = 7  from DLZOO_BATCH" in errors and "seed" not in errors


def test_finetune_without_data_says_what_data_can_be(call, run_module):
    code, out, errors = call("finetune")
    assert (code, out) == (2, "")
    assert "error[usage]: no data given" in errors and "digits" in errors


def test_eval_prints_the_figures_and_keeps_the_gate(call, run_module):
    text = "accuracy 90.0% (9/10, 95 % CI 80.0-95.0)  macro-F1 87.5%\n"
    assert call("eval", "runs/x")[:2] == (0, text)
    assert json.loads(call("eval", "runs/x", "--json", "--split", "val")[1])["split"] == "val"
    assert call("eval", "runs/x", "--fail-under", "0.9")[0] == 0
    code, out, errors = call("eval", "runs/x", "--fail-under", "0.91")
    assert (code, out) == (9, text)
    assert "error[gate.fail-under]: accuracy 0.9000 < 0.91" in errors
    assert call("eval", "runs/x", "--fail-under", "90")[0] == 2  # no gate is missed: none is there


def test_predict_keeps_the_order_and_tells_bad_photos(call, run_module):
    code, out, errors = call("predict", "runs/x", "b.jpg", "bad.jpg", "a.jpg")
    assert (code, errors) == (0, "")
    assert out.splitlines() == [
        "b.jpg  rose 75.0%  =tulip 25.0%",
        "bad.jpg  error: truncated",
        "a.jpg  rose 75.0%  =tulip 25.0%",
    ]
    code, strict, errors = call("predict", "runs/x", "b.jpg", "bad.jpg", "a.jpg", "--strict")
    assert (code, strict) == (3, out)
    assert "error[data.bad-image]: 1 of 3 photos" in errors


def test_predict_writes_csv_that_a_spreadsheet_may_open(call, run_module):
    out = call("predict", "runs/x", "a,b.jpg", "bad.jpg", "--format", "csv", "--topk", "2")[1]
    rows = list(csv.reader(io.StringIO(out)))
    head = ["path", "error", "label1", "probability1", "label2", "probability2"]
    assert rows[0] == head
    assert rows[1] == ["a,b.jpg", "", "rose", "0.750000", "'=tulip", "0.250000"]
    assert rows[2] == ["bad.jpg", "truncated", "", "", "", ""]
    out = call("predict", "runs/x", "a.jpg", "--format", "csv")[1]  # there are two classes
    assert [len(row) for row in csv.reader(io.StringIO(out))] == [12, 12]
    for odd in ("a\nb.jpg", "a\rb.jpg", 'a"b.jpg'):
        out = call("predict", "runs/x", odd, "--format", "csv")[1]
        assert list(csv.reader(io.StringIO(out, newline="")))[1][0] == odd


def test_predict_writes_json_lines(call, run_module):
    out = call("predict", "runs/x", "bad.jpg", "a.jpg", "--format", "jsonl")[1]
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows[0] == {"path": "bad.jpg", "error": "truncated", "top": []}
    assert rows[1]["top"][0] == {"label": "rose", "probability": 0.75}


def test_exif_that_is_broken_is_no_matter_for_stderr(call, tmp_path, recwarn):
    root = folder(tmp_path / "p", each=3)
    image = Image.new("RGB", (8, 9), "red")
    image.save(root / "rose" / "odd.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert call("data", "check", root)[0] == 0 and not recwarn.list


def test_predict_of_a_photo_on_stdin_is_no_bug(call, run_module, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("JFIF\0\x10\n\0"))
    code, _, errors = call("predict", "runs/x", "-")
    assert code == 2 and "stdin holds no list of files" in errors


def test_predict_takes_folders_and_stdin(call, run_module, tmp_path, monkeypatch):
    for name in ("b.jpg", "in/c.png", "a.JPG", "notes.txt", ".hidden/d.jpg", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr(sys, "stdin", io.StringIO("x y.jpg\n\nz.jpg\r\n"))
    out = call("predict", "runs/x", tmp_path, "-", "--format", "jsonl")[1]
    paths = [json.loads(line)["path"] for line in out.splitlines()]
    inside = [str(tmp_path / name) for name in ("a.JPG", "b.jpg", "in/c.png")]
    assert paths == [*inside, "x y.jpg", "z.jpg"]


def test_predict_without_photos_is_an_error(call, run_module, tmp_path):
    assert call("predict", "runs/x", tmp_path)[0] == 3
    assert call("predict", "runs/x")[0] == 2


def test_a_name_with_control_characters_does_not_reach_the_terminal(call, run_module):
    assert call("predict", "runs/x", "a\n\x1b[31mb.jpg")[1].startswith(r"a\n\x1b[31mb.jpg  ")


def test_export_prints_where_it_is_and_its_parity(call, run_module, monkeypatch):
    code, out, errors = call("export", "runs/x", "--to", "savedmodel", "--tolerance", "1e-4")
    assert (code, out) == (0, "savedmodel  runs/x/export/savedmodel\n")
    assert "max_difference 3e-07" in errors
    default = {"images": None, "quantize": None, "max_drop": 1.5, "batch": None}
    default |= {"tolerance": 1e-4, "allow_flex": False}
    assert run_module.run.exported == (("savedmodel",), default)
    judged = {"float": 0.95, "quantized": 0.9375, "n": 80}
    figures = {"path": "x", "max_difference": 0.1, "accuracy": judged}
    with monkeypatch.context() as changed:
        changed.setattr(run_module.run, "export", lambda *_, **__: {"tflite": figures})
        told = call("export", "runs/x", "--to", "tflite", "--quantize", "int8")[2]
    assert "accuracy 95.0% -> 93.8% on 80 validation photos" in told
    flags = ["--quantize", "int8", "--max-drop", "2", "--batch", "8", "--allow-flex"]
    assert call("export", "runs/x", "--to", "keras,tflite", *flags)[0] == 0
    asked = default | {"quantize": "int8", "max_drop": 2, "batch": 8, "allow_flex": True}
    assert run_module.run.exported == (("keras", "tflite"), asked | {"tolerance": None})
    assert call("export", "runs/x", "--to", "tflite", "--batch", "dynamic")[0] == 0
    assert run_module.run.exported[1]["batch"] is None
    for wrong in (["--batch", "0"], ["--batch", "some"], ["--quantize", "int4"]):
        assert call("export", "runs/x", "--to", "tflite", *wrong)[0] == 2
    assert call("export", "runs/x", "--to", "savedmodel", "--quantize", "int8")[0] == 2
    out = call("export", "runs/x", "--to", "savedmodel", "--json")[1]
    assert json.loads(out)["savedmodel"]["max_difference"] == 3e-7


def test_list_filters(call):
    names = [line.split()[0] for line in call("list", "vgg1?")[1].splitlines()]
    assert names == ["name", "vgg11", "vgg13", "vgg16", "vgg19"]
    models = json.loads(call("list", "--max-params", "10M", "--pretrained", "--json")[1])["models"]
    assert {"efficientnet_lite0", "mobilenet_v2"} <= {m["name"] for m in models}
    assert all(m["params"] <= 10e6 and m["weights"] for m in models)
    assert call("list", "nothing*") == (0, "", "no model matches\n")
    assert call("list", "--max-params", "many")[0] == 2


def test_info_shows_weights_and_taps(call):
    code, out, _ = call("info", "mobilenet_v2")
    assert code == 0
    assert ["C5", "1280", "32", "7"] in [line.split()[:4] for line in out.splitlines()]
    assert "keras_in1k" in out and "Apache-2.0" in out
    about = json.loads(call("info", "vgg16", "--brief", "--json")[1])
    assert about["params"] == zoo.info("vgg16")["params"]
    assert {w["here"] for w in about["weights"]} <= {True, False}


def test_fetch_prints_where_the_weights_are(call):
    code, out, _ = call("fetch", "efficientnet_lite0")
    assert code == 0 and Path(out.strip()).is_file()
    assert call("fetch", "lenet5")[0] == 2


def test_data_without_a_name_cannot_be_fetched(call, tmp_path):
    assert call("data", "fetch", "digits") == (0, "digits: always here\n", "")
    code, _, errors = call("data", "fetch", tmp_path)
    assert code == 2 and "no name of data" in errors
    code, _, errors = call("data", "fetch", "tfds:never_heard_of", "--offline")
    assert code == 3 and "error[data.offline]" in errors


def test_data_check_and_split_read_the_photos(call, tmp_path):
    for i in range(20):
        path = tmp_path / "photos" / ("ab"[i % 2]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i * 9, 255 - i * 9, 40 * (i % 5))).save(path)
    shares = ("--val-split", "0.2", "--test-split", "0.3")
    code, out, _ = call("data", "check", tmp_path / "photos", *shares, "--json")
    assert (code, json.loads(out)["splits"]) == (0, {"train": 10, "val": 4, "test": 6})
    assert "20 images" in call("data", "check", tmp_path / "photos")[1]
    assert call("data", "check", tmp_path / "photo")[0] == 3
    (report := tmp_path / "odd.csv").write_text("of an earlier look")
    asked = ("--report", report)
    assert call("data", "check", tmp_path / "photos", *asked, "--ignore-class", "c")[0] == 2
    assert report.read_text() == "of an earlier look"  # nothing was read that could be told of
    assert call("data", "check", tmp_path / "photos", *asked)[0] == 0
    assert report.read_text() == "path,reason,action\n"
    out = ("--out", tmp_path / "s.csv")
    code, said, _ = call("data", "split", tmp_path / "photos", *shares, "--seed", "5", *out)
    assert (code, said) == (0, f"{tmp_path / 's.csv'}\n")
    taken = dlzoo.load_data(tmp_path / "photos", split_file=tmp_path / "s.csv")
    made = dlzoo.load_data(tmp_path / "photos", val_split=0.2, test_split=0.3, seed=5)
    assert taken.fingerprint == made.fingerprint
    before = (tmp_path / "s.csv").read_bytes()
    code, _, errors = call("data", "split", tmp_path / "photos", *out)
    assert code == 2 and "is there already" in errors
    assert (tmp_path / "s.csv").read_bytes() == before


def test_config_show_says_where_values_come_from(call, tmp_path):
    (tmp_path / "c.toml").write_text('seed = 3\n[[stages]]\nname = "top"\n')
    out = call("config", "show", "--config", tmp_path / "c.toml", "--lr", "0.1")[1]
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["seed"] == ["3", f"{tmp_path / 'c.toml'}:1"]
    assert (rows["lr"], rows["batch"]) == (["0.1", "--lr"], ["auto", "default"])
    assert rows["stages"][:2] == ['{"name":', '"top"}']
    shown = json.loads(call("config", "show", "--lr", "0.1", "--json")[1])
    assert shown["lr"] == {"value": 0.1, "from": "--lr"}


def test_config_init_writes_a_file_once(call, tmp_path):
    path = tmp_path / "my.toml"
    assert call("config", "init", path)[:2] == (0, f"{path}\n")
    assert call("config", "show", "--config", path)[0] == 0
    path.write_text("seed = 1\n")
    code, _, errors = call("config", "init", path)
    assert (code, path.read_text()) == (2, "seed = 1\n")
    assert "config.exists" in errors
    assert "# epochs = " in call("config", "init", "-")[1]
    assert call("config", "init", tmp_path / "no" / "x.toml")[0] == 5


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(call, shell):
    code, out, _ = call("completion", shell)
    assert code == 0 and "_DLZOO_COMPLETE" in out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("dlzoo info vgg1", "vgg16"),
        ("dlzoo finetune --backbone mob", "mobilenet_v2"),
        ("dlzoo finetune --augment st", "strong"),
        ("dlzoo finetune --label", "--label-smoothing"),
        ("dlzoo pre", "predict"),
    ],
)
def test_completion_knows_verbs_options_choices_and_models(call, monkeypatch, words, found):
    monkeypatch.setenv("_DLZOO_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert f"plain,{found}" in call()[1].splitlines()


def test_doctor_tells_what_would_be_used(call):
    code, out, _ = call("doctor", "--json")
    found = json.loads(out)
    assert (code, found["problems"], found["backend"]) == (0, [], "tensorflow")
    assert found["weights"]["efficientnet_lite0"] is True
    assert found["device"] == ("gpu" if found["gpus"] else "cpu")
    assert {"lite", "onnx", "serve", "mlflow", "wandb"} <= found["extras"].keys()


@pytest.mark.parametrize("kept", [True, False])
def test_doctor_tells_where_each_start_compiles_everything_again(call, monkeypatch, tmp_path, kept):
    file = Path(importlib.util.find_spec("tensorflow").origin)
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    if kept:
        (cached := Path(importlib.util.cache_from_source(file))).parent.mkdir(parents=True)
        cached.touch()
    said = next(x for x in call("doctor")[1].splitlines() if x.startswith("start "))
    assert ("compileall" in said) != kept


def test_doctor_fails_where_nothing_can_work(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    code, out, errors = call("doctor")
    assert code == 5
    assert "keras backend" in out
    assert "error[doctor.problem]: TensorFlow or Keras cannot be imported" in errors


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["finetun"], "no verb 'finetun'; did you mean 'finetune'?"),
        (["finetune", "--epocs", "3"], "no option --epocs; did you mean '--epochs'?"),
        (["config", "shwo"], "no verb 'shwo'; did you mean 'show'?"),
        (["eval"], "missing argument 'RUN'"),
        (["predict", "r", "p", "--format", "xml"], "'xml' is not one of"),
        (["predict", "r", "p", "--topk", "0"], "0 is not in the range"),
        (["info", "vgg61"], "did you mean 'vgg16'?"),
        (["info", "lenet5", "--plot", "/no/x.svg"], "'/no/x.svg' cannot be written: see '/no'"),
        (["report", "r", "--code", "/"], "'/' is a directory"),
        (["data", "check", "digits", "--report", "/no/x.csv"], "cannot be written"),
        (
            ["predict", "r", "p", "--explain", "gradcam", "--out", "/dev/null/x"],
            "cannot be written",
        ),
    ],
)
def test_a_wrong_command_line_is_answered_in_our_style(call, argv, said):
    code, out, errors = call(*argv)
    assert (code, out) == (2, "")
    assert errors.startswith("error[") and said in errors
    assert "  fix:   " in errors and "Traceback" not in errors


def test_without_a_verb_the_help_is_shown(call):
    code, out, errors = call()
    assert (code, out) == (2, "") and "Commands:" in errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("data.one-class", "one class", fix="more"), 3),
        (ModelError("model.offline", "no network"), 4),
        (DivergedError("train.diverged", "lr 0.1 at step 37"), 6),
    ],
)
def test_an_error_is_its_text_and_its_code(call, run_module, error, code):
    def finetune(*_, **__):
        raise error

    run_module.finetune = finetune
    assert call("finetune", "--data", "x") == (code, "", error.render() + "\n")
    assert "Traceback" in call("finetune", "--data", "x", "--debug")[2]


def test_a_bug_leaves_its_traceback_in_a_file(call, run_module, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_module.finetune = lambda *_, **__: 1 / 0
    code, out, errors = call("finetune", "--data", "x")
    assert (code, out) == (1, "")
    assert "error[bug]: ZeroDivisionError" in errors and "Traceback" not in errors
    (crash,) = tmp_path.iterdir()
    assert str(crash) in errors
    assert "Traceback" in crash.read_text() and "tensorflow" in crash.read_text()
    assert "Traceback" in call("--debug", "finetune", "--data", "x")[2]


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        ("No DNN in stream executor.\n\t [[{{node stem_conv_1/convolution}}]]", "nvidia-smi"),
        ("CUDA_ERROR_OUT_OF_MEMORY: out of memory", "nvidia-smi"),
        (None, "--size"),
    ],
)
def test_too_little_memory_is_no_bug(call, run_module, tmp_path, words, fix):
    """Not that of a training step, which is known; here a GPU is full of another program's."""

    def finetune(*_, **__):
        with RunDir.create(tmp_path / "runs", "a", "a"):
            raise RuntimeError(words) if words else MemoryError

    run_module.finetune = finetune
    code, out, errors = call("finetune", "--data", "x")
    assert (code, out) == (5, "") and "error[resource.oom]: " in errors and fix in errors
    assert "Traceback" not in errors and "[[{{node" not in errors
    run = RunDir.open(tmp_path / "runs" / "a")
    assert run.read()["exit"] == 5 and not (run.path / "crash.txt").exists()


@pytest.mark.parametrize(
    ("number", "id"),
    [
        (errno.ENOSPC, "resource.disk"),
        (errno.EROFS, "resource.permission"),
        (errno.EACCES, "resource.permission"),
    ],
)
def test_what_cannot_be_written_is_no_bug(call, run_module, tmp_path, number, id):
    def finetune(*_, **__):
        with RunDir.create(tmp_path / "runs", "a", "a"):
            raise OSError(number, os.strerror(number), "some/file")

    run_module.finetune = finetune
    code, out, errors = call("finetune", "--data", "x")
    assert (code, out) == (5, "")
    assert f"error[{id}]: {os.strerror(number)}\n  where: some/file\n  fix: " in errors
    run = RunDir.open(tmp_path / "runs" / "a")
    assert run.read()["exit"] == 5 and not (run.path / "crash.txt").exists()


def test_ctrl_c_ends_with_its_code(call, run_module):
    def finetune(*_, **__):
        raise KeyboardInterrupt

    run_module.finetune = finetune
    assert call("finetune", "--data", "x") == (130, "", "interrupted\n")


def test_what_earlier_runs_computed_is_listed_and_cleared(call, tmp_path, monkeypatch):
    from dlzoo.transfer import shelf

    monkeypatch.setenv("DLZOO_HOME", str(tmp_path))
    about = {"model": "net", "place": "C4", "view": 0, "augment": "none", "size": 64}
    for number, name in enumerate(("old", "new")):
        kept = shelf.Shelf(tmp_path / "activations" / name, (50,), about)
        with kept.writing(lambda: None):
            writer = kept.writer()
            writer.add(np.arange(9, dtype="uint64"), np.ones((9, 50), "float32"))
            writer.close()
        os.utime(kept.folder / "about.json", (number, number))
    code, out, err = call("cache", "list")
    assert code == 0 and out.count("net") == 2 and "C4" in out and "GB of at most" in err
    size = sum(path.stat().st_size for path in (tmp_path / "activations" / "new").iterdir())
    assert call("cache", "clear", "--down-to", str(size))[0] == 0
    assert [e["path"].name for e in shelf.entries()] == ["new"]
    assert json.loads(call("cache", "list", "--json")[1])["entries"][0]["images"] == 9
    for nothing in ("much", ""):  # such as of a variable that is not set
        assert call("cache", "clear", "--down-to", nothing)[0] == 2 and shelf.entries()
    assert call("cache", "clear")[0] == 0 and not shelf.entries()


@pytest.mark.parametrize(
    ("text", "size"), [("20G", 20 << 30), ("1.5 MB", 3 << 19), ("7", 7), ("2kib", 2048)]
)
def test_sizes_have_units(text, size):
    assert parse_bytes(text) == size
