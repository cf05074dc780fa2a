"""Run directories: made once, never overwritten, and run.json says how it ended."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from dlzoo import files
from dlzoo.errors import DivergedError, Interrupted, ResourceError, UsageError
from dlzoo.rundir import RunDir, write_crash


def make(out, name=None, stem="net-data"):
    return RunDir.create(out, name, stem, argv=["dlzoo", "finetune"])


def test_runs_are_numbered_and_the_newest_has_the_highest(tmp_path):
    out = tmp_path / "deep" / "runs"
    assert [make(out).path.name for _ in range(3)] == ["net-data-1", "net-data-2", "net-data-3"]
    shutil.rmtree(out / "net-data-1")
    assert make(out).path.name == "net-data-4"
    assert make(out, stem="net").path.name == "net-1"


def test_processes_that_start_together_get_runs_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: make(tmp_path).path, range(24)))
    assert len(set(paths)) == 24


@pytest.mark.parametrize("stem", ["vgg16-../../etc", "a b\n\u00e9/c", "-", "x" * 300, "C:\\photos"])
def test_any_name_of_data_gives_a_plain_folder(tmp_path, stem):
    path = make(tmp_path, stem=stem).path
    assert path.parent == tmp_path
    assert path.is_dir() and len(path.name) < 120
    assert not set(path.name) & set("/\\\n :")


def test_a_name_is_taken_once_and_the_first_run_stays_as_it_is(tmp_path):
    first = make(tmp_path, "mine")
    before = first.json.read_bytes()
    with pytest.raises(ResourceError) as caught:
        make(tmp_path, "mine")
    assert caught.value.id == "run.exists"
    assert "--resume" in caught.value.hint
    assert first.json.read_bytes() == before


def test_a_run_knows_its_command_versions_and_files(tmp_path):
    run = make(tmp_path)
    about = run.read()
    assert about["status"] == "created"
    assert about["argv"] == ["dlzoo", "finetune"]
    assert {"dlzoo", "python", "keras", "tensorflow", "numpy"} <= set(about["versions"])
    assert RunDir.open(run.path).history == run.path / "metrics.csv"


def test_a_run_that_ends_well_is_finished(tmp_path):
    with make(tmp_path) as run:
        assert (run.read()["status"], run.read()["pid"]) == ("running", os.getpid())
        run.record(device="cpu")
    about = run.read()
    assert (about["status"], about["exit"], about["device"]) == ("finished", 0, "cpu")
    assert about["created"] <= about["started"] <= about["ended"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (DivergedError("train.diverged", "lr 0.1"), "failed", 6),
        (Interrupted("train.interrupted", "saved"), "interrupted", 75),
        (KeyboardInterrupt(), "interrupted", 130),
        (ZeroDivisionError("oops"), "failed", 1),
    ],
)
def test_a_run_that_ends_badly_says_how(tmp_path, error, status, code):
    run = make(tmp_path)
    with pytest.raises(type(error)), run:
        raise error
    assert (run.read()["status"], run.read()["exit"]) == (status, code)
    crash = run.path / "crash.txt"
    assert crash.exists() == (code == 1)
    if code == 1:
        assert "ZeroDivisionError: oops" in crash.read_text()
        assert write_crash(error) == crash  # told once, where it is


def test_a_run_can_be_continued_after_it_ended(tmp_path):
    run = make(tmp_path)
    with pytest.raises(KeyboardInterrupt), run:
        raise KeyboardInterrupt
    with RunDir.open(run.path) as again:
        assert again.read()["exit"] is None
    assert run.read()["status"] == "finished"


def test_a_full_disk_at_the_end_does_not_hide_the_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(DivergedError), make(tmp_path):
        monkeypatch.setattr(files, "write_json", full)
        raise DivergedError("train.diverged", "lr 0.1")


def test_run_json_is_replaced_as_a_whole(tmp_path):
    run = make(tmp_path)
    before = run.json.read_bytes()
    with pytest.raises(TypeError):
        run.record(model=object())
    assert run.json.read_bytes() == before
    assert json.loads(before) == run.read()
    assert os.listdir(run.path) == ["run.json"]


def test_what_is_no_run_is_told_with_the_nearest(tmp_path):
    make(tmp_path)
    with pytest.raises(UsageError, match=r"did you mean 'net-data-1'") as caught:
        RunDir.open(tmp_path / "net-data1")
    assert (caught.value.id, caught.value.exit_code) == ("run.not-found", 2)


def test_too_little_space_is_found_at_the_start(tmp_path):
    with pytest.raises(ResourceError, match=r"need [\d,]+ MB, free [\d,]+ MB") as caught:
        RunDir.check(tmp_path / "runs", need=1 << 60)
    assert caught.value.id == "resource.disk"
    assert not (tmp_path / "runs").exists()


def test_what_a_killed_process_was_writing_is_taken_away(tmp_path):
    run = RunDir.create(tmp_path, "run", "x")
    (part := run.path / "ckpt" / ".step-00000003.1.part").mkdir(parents=True)
    for stale in (run.path / ".metrics.csv.1.part", part / "model.npz"):
        stale.write_text("half")
    (run.path / "notes.part").write_text("the user's")
    with run:
        names = {path.name for path in run.path.rglob("*")}
    assert names == {"run.json", ".lock", "ckpt", "notes.part"}


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, "\udcff"])
def test_a_damaged_file_of_a_run_is_named(tmp_path, content):
    run = RunDir.create(tmp_path, "run", "x")
    run.json.write_text(content, errors="surrogateescape")
    with pytest.raises(UsageError, match=r"run\.damaged.*run\.json cannot be read") as caught:
        run.read()
    assert caught.value.where == str(run.json)


def test_a_value_that_a_run_does_not_tell_is_named_with_its_file(tmp_path):
    run = RunDir.create(tmp_path, "run", "x")
    run.json.write_text('{"status": "finished"}')
    about = run.read()
    assert about == {"status": "finished"} and about.get("data") is None
    with pytest.raises(UsageError, match=r"run\.damaged.*run\.json says no 'data'") as caught:
        about["data"]
    assert caught.value.where == str(run.json)
