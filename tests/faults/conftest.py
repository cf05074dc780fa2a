"""What the tests of faults share: a command that must fail and change nothing, and one odd run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import filelock
import pytest
from dlzoo import files
from odd import odd_photos, train_odd


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Keep what is cached from one test to the next apart."""
    monkeypatch.setenv("DLZOO_HOME", str(tmp_path / "home"))


def contents(root: Path) -> dict[str, str]:
    """Return what lies below a folder, the cache of `own_home` apart: path to hash, or target."""
    found = {}
    for folder, folders, names in os.walk(root):
        if folder == str(root) and "home" in folders:
            folders.remove("home")
        for path in (Path(folder, name) for name in (*folders, *names)):
            real = path.is_file() and not path.is_symlink()
            found[str(path)] = files.sha256(path) if real else str(path.lstat().st_mode)
    return found


@pytest.fixture
def refused(call, seen, tmp_path):
    """Give `refused(id, code, *argv)`: `dlzoo ARGV` ends so, and changes nothing. Returns stderr.

    Everything in the test's folder is compared, so no run was begun and none was touched.
    """

    def run(id, code, *argv):
        before = contents(tmp_path)
        got, out, errors = call(*argv)
        told = [line for line in errors.splitlines() if line.startswith("error[")]
        assert (got, out) == (code, ""), errors
        assert told and told[-1].startswith(f"error[{id}]: "), errors
        assert "Traceback" not in errors
        assert contents(tmp_path) == before
        seen(told[-1], code)
        return errors

    return run


@pytest.fixture(scope="session")
def odd_run(tmp_path_factory):
    """Give an `odd.OddRun`, one for all processes; tests that change something take a copy."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    made = place / "odd.pickle"
    with filelock.FileLock(place / "odd.lock"):
        if not made.exists():
            run = train_odd(odd_photos(place / "odd" / "photos"), place / "odd" / "runs")
            made.write_bytes(pickle.dumps(run))
    return pickle.loads(made.read_bytes())
