"""Faults of BEHAVIOUR.md section 4 that end before any training: 17, 33, 34, 39, 42, 43."""

import os
import subprocess
import sys
import threading

import pytest
from dlzoo.errors import ResourceError
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
def test_fault_17_an_unknown_backbone_suggests_the_nearest(argv):
    done = dlzoo(*argv, "vgg61")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error[model.unknown]" in done.stderr and "did you mean 'vgg16'?" in done.stderr


def test_fault_33_a_taken_name_fails_before_the_data_is_looked_at(tmp_path):
    run = RunDir.create(tmp_path, "mine", "net-data")
    before = run.json.read_bytes()
    done = dlzoo("finetune", "--data", "no/such", "--out", tmp_path, "--name", "mine")
    assert (done.returncode, done.stdout) == (5, "")
    assert "error[run.exists]" in done.stderr
    assert run.json.read_bytes() == before
    assert os.listdir(run.path) == ["run.json"]


def test_fault_33_an_output_that_cannot_be_a_folder_fails_before_the_data_is_looked_at(tmp_path):
    (tmp_path / "file").write_text("mine")
    done = dlzoo("finetune", "--data", "no/such", "--out", tmp_path / "file" / "runs")
    assert (done.returncode, done.stdout) == (5, "")
    assert "error[resource.permission]" in done.stderr and "is no folder" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_fault_33_a_read_only_output_is_found(tmp_path, monkeypatch):
    forbid_writing(monkeypatch)
    with pytest.raises(ResourceError) as caught:
        RunDir.check(tmp_path / "runs")
    assert (caught.value.id, caught.value.exit_code) == ("resource.permission", 5)
    assert not (tmp_path / "runs").exists()


def test_fault_34_two_processes_on_one_run(tmp_path):
    run = RunDir.create(tmp_path, None, "net-data")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, run.path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        before = run.json.read_bytes()
        with pytest.raises(ResourceError, match=f"locked by pid {holder.pid}") as caught, run:
            raise AssertionError("both hold it")
        assert (caught.value.id, caught.value.exit_code) == ("resource.locked", 5)
        assert run.json.read_bytes() == before
        holder.kill()  # as a power cut would: the lock must not stay
        holder.wait()
        with run:
            assert run.read()["pid"] == os.getpid()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_fault_39_a_format_that_cannot_be_written_is_found_at_the_start(tmp_path):
    done = dlzoo("finetune", "--data", "no/such", "--export", "savedmodle", "--out", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error[export.format]" in done.stderr and "savedmodel" in done.stderr
    assert dlzoo("export", "no/such", "--to", "savedmodle").returncode == 2
    assert os.listdir(tmp_path) == []


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


@pytest.mark.parametrize("stream", [">&-", "2>&-", "<&-"])
def test_fault_42_a_stream_that_was_never_open(stream):
    line = f"{sys.executable} -m dlzoo list vgg16 {stream}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("vgg16" in done.stdout) == (stream != ">&-")


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}])
def test_fault_42_without_a_terminal_in_any_locale(tmp_path, locale):
    (tmp_path / "r\u00f6sen.toml").write_text('data = "r\u00f6sen \U0001f339"\n', encoding="utf-8")
    done = dlzoo("config", "show", "--config", tmp_path / "r\u00f6sen.toml", **locale)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    wrong = dlzoo("config", "show", "--set", "data\u00f6=1", **locale)
    assert wrong.returncode == 2
    assert "error[config.invalid]" in wrong.stderr and "\x1b" not in wrong.stderr


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


def test_fault_42_tensorflow_does_not_chatter_and_stderr_is_there_afterwards():
    quiet = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    code = (
        "import sys\nfrom dlzoo.cli import main\n"
        "try:\n    main(['doctor'])\nfinally:\n    print('still here', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=quiet, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "still here\n")
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


def test_fault_43_all_problems_of_a_configuration_at_once(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('backbone = "vgg16"\nepocs = 3\n\nlr = "fast"\nbatch = 0\n')
    done = dlzoo("finetune", "--data", "no/such", "--config", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error[config.invalid]: 3 problems" in done.stderr
    assert f"{path}:2: unknown setting 'epocs'; did you mean 'epochs'?" in done.stderr
    assert f"{path}:4: lr = 'fast': should be 'auto' or a valid number" in done.stderr
    assert f"{path}:5: batch = 0: should be 'auto' or greater than 0" in done.stderr
