"""Faults 17, 18, 33, 34, 39, 42 and 43, which end before any training."""

import json
import os
import subprocess
import sys
import threading
from importlib import util
from pathlib import Path

import pytest
from dlzoo import files
from dlzoo.rundir import RunDir

COMMAND = [sys.executable, "-m", "dlzoo"]
HOLDER = """
import sys, time
from dlzoo.rundir import RunDir
with RunDir.open(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def dlzoo(*argv, **environment):
    """Run `dlzoo ...` in a process of its own, without a terminal."""
    return subprocess.run(
        [*COMMAND, *map(str, argv)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )


def forbid_writing(monkeypatch):
    """Let the system say of every folder that it may not be written to, also to root."""
    asked = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode, **kw: not mode & os.W_OK and asked(path, mode, **kw)
    )


@pytest.mark.parametrize("argv", [["finetune", "--data", "no/such", "--backbone"], ["info"]])
def test_fault_17_an_unknown_backbone_suggests_the_nearest(refused, argv):
    assert "did you mean 'vgg16'?" in refused("model.unknown", 2, *argv, "vgg61")


def test_fault_18_too_small_an_image_is_said_before_any_download(refused, monkeypatch, tmp_path):
    """And before the photos are looked for."""
    monkeypatch.setattr("dlzoo.zoo.weights.locate", None)  # calling it would be a bug: exit 1
    told = refused(
        *("model.size", 2, "finetune", "--backbone", "inception_v3", "--size", "64"),
        *("--data", "no/such", "--out", tmp_path / "runs"),
    )
    assert "needs images of at least 75 pixels, got 64" in told
    refused("model.size", 2, "info", "inception_v3", "--size", "64")


def test_fault_33_a_taken_name_fails_before_the_data_is_looked_at(tmp_path, refused):
    run = RunDir.create(tmp_path, "mine", "net-data")
    assert os.listdir(run.path) == ["run.json"]
    argv = ("finetune", "--data", "no/such", "--out", tmp_path, "--name", "mine")
    refused("run.exists", 5, *argv)


def test_fault_33_an_output_that_cannot_be_a_folder(tmp_path, refused):
    (tmp_path / "file").write_text("mine")
    argv = ("finetune", "--data", "no/such", "--out", tmp_path / "file" / "runs")
    assert "is no folder" in refused("resource.permission", 5, *argv)


def test_fault_33_a_read_only_output(tmp_path, refused, monkeypatch):
    forbid_writing(monkeypatch)
    argv = ("finetune", "--data", "no/such", "--out", tmp_path / "runs")
    assert "not writable" in refused("resource.permission", 5, *argv)


def test_fault_34_two_processes_on_one_run(tmp_path, raises):
    run = RunDir.create(tmp_path, None, "net-data")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, run.path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        before = run.json.read_bytes()
        with raises("resource.locked", 5) as caught, run:
            raise AssertionError("both hold it")
        assert f"locked by pid {holder.pid}" in caught.value.message
        assert run.json.read_bytes() == before
        holder.kill()  # as a power cut would: the lock must not stay
        holder.wait()
        with run:
            assert run.read()["pid"] == os.getpid()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_fault_39_a_missing_package_is_found_at_the_start(tmp_path, refused, monkeypatch):
    real = util.find_spec
    missing = ("tf2onnx", "onnxruntime")
    monkeypatch.setattr(util, "find_spec", lambda n, *a: None if n in missing else real(n, *a))
    argv = ("finetune", "--data", "no/such", "--out", tmp_path / "runs", "--export", "onnx")
    told = refused("export.package", 2, *argv)
    assert "tf2onnx" in told and "onnxruntime" in told
    assert 'pip install "dlzoo[onnx]"' in told


def test_fault_39_an_unknown_format_is_found_at_the_start(tmp_path, refused):
    argv = ("finetune", "--data", "no/such", "--out", tmp_path / "runs", "--export")
    assert "savedmodel" in refused("export.format", 2, *argv, "savedmodle")
    refused("export.format", 2, "export", "no/such", "--to", "savedmodle")


@pytest.mark.parametrize(
    "argv", [["list"], ["config", "show"], ["finetune", "--help"], ["-h"], ["--version"]]
)
def test_fault_42_a_reader_that_went_away(argv):
    read, write = os.pipe()
    os.close(read)
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [*COMMAND, *argv], stdout=write, stderr=subprocess.PIPE, env=buffered, timeout=60
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_result_that_finds_no_room_is_an_error_and_a_remark_is_not():
    """Nobody takes half a list for a whole one; and for a line on stderr no training ends."""
    argv = [*COMMAND, "list", "vgg1*"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == 5
        assert done.stderr.startswith("error[resource.disk]: No space left on device\n")
        argv = [*COMMAND, "config", "show", "--json"]
        remark = {**os.environ, "DLZOO_PRSET": "is told on stderr"}
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=full, env=remark, timeout=60)
        assert done.returncode == 0 and json.loads(done.stdout)


@pytest.mark.parametrize("stream", [">&-", "2>&-", "<&-"])
def test_fault_42_a_stream_that_was_never_open(stream):
    line = f"{sys.executable} -m dlzoo list vgg16 {stream}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("vgg16" in done.stdout) == (stream != ">&-")


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}])
def test_fault_42_without_a_terminal_in_any_locale(tmp_path, seen, locale):
    (tmp_path / "r\u00f6sen.toml").write_text('data = "r\u00f6sen \U0001f339"\n', encoding="utf-8")
    done = dlzoo("config", "show", "--config", tmp_path / "r\u00f6sen.toml", **locale)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    wrong = dlzoo("config", "show", "--set", "data\u00f6=1", **locale)
    assert wrong.returncode == 2
    assert "error[config.invalid]" in wrong.stderr and "\x1b" not in wrong.stderr
    seen(wrong.stderr, wrong.returncode)


def test_fault_42_a_name_that_is_no_text_comes_out_as_it_went_in(tmp_path):
    done = subprocess.run(
        [*COMMAND, "config", "init", b"r\xf6sen.toml"],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        timeout=60,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", b"r\xf6sen.toml\n")
    assert os.listdir(os.fsencode(tmp_path)) == [b"r\xf6sen.toml"]


def test_fault_42_a_home_that_cannot_be_written(tmp_path):
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/x", "TMPDIR": str(tmp_path)}
    nowhere["DLZOO_HOME"] = ""  # the tests' own
    done = dlzoo("info", "vgg16", "--brief", **nowhere)
    assert (done.returncode, done.stderr) == (0, "")
    assert [entry.startswith("dlzoo-") for entry in os.listdir(tmp_path)] == [True]


def test_a_user_without_a_home_gets_no_folder_called_tilde(tmp_path, monkeypatch):
    """Such as a number that a container is started with, and that its passwd does not know."""

    def unknown(user):
        raise KeyError(user)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    for name in ("HOME", "XDG_CACHE_HOME", "DLZOO_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert files.home().parent == tmp_path
    monkeypatch.setenv("DLZOO_HOME", "~/mine")
    assert files.home().parent == tmp_path
    assert [entry.startswith("dlzoo-") for entry in os.listdir()] == [True]


def test_fault_42_tensorflow_does_not_chatter_and_stderr_is_there_afterwards():
    quiet = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    code = (
        "import gc, sys\nfrom dlzoo.cli import main\n"
        "try:\n    main(['doctor'])\nfinally:\n"
        "    unused = {'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "    import sklearn.metrics, matplotlib.pyplot\n"
        "    print('still here', *unused, gc.isenabled(), gc.get_freeze_count(), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=quiet, timeout=120
    )
    # garbage is looked for again, in all that there is
    assert (done.returncode, done.stderr) == (0, "still here True 0\n")
    assert "device auto" in done.stdout


@pytest.mark.parametrize("no_color", [None, "1"])
def test_fault_42_colours_are_for_terminals_only(no_color):
    import pty

    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
    environment |= {"TERM": "xterm"} | ({"NO_COLOR": no_color} if no_color else {})
    leader, follower = pty.openpty()
    shown = bytearray()

    def read():
        try:
            while chunk := os.read(leader, 1024):
                shown.extend(chunk)
        except OSError:  # how a terminal says that it was closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    done = subprocess.run([*COMMAND, "finetun"], stderr=follower, env=environment, timeout=60)
    os.close(follower)
    reader.join(10)
    os.close(leader)
    assert done.returncode == 2
    assert b"did you mean 'finetune'?" in shown
    assert (b"\x1b[" in shown) == (no_color is None)


def test_fault_43_all_problems_of_a_configuration_at_once(tmp_path, refused):
    path = tmp_path / "my.toml"
    path.write_text('backbone = "vgg16"\nepocs = 3\n\nlr = "fast"\nbatch = 0\n')
    told = refused("config.invalid", 2, "finetune", "--data", "no/such", "--config", path)
    assert "error[config.invalid]: 3 problems" in told
    assert f"{path}:2: unknown setting 'epocs'; did you mean 'epochs'?" in told
    assert f"{path}:4: lr = 'fast': should be 'auto' or a valid number" in told
    assert f"{path}:5: batch = 0: should be 'auto' or greater than 0" in told
