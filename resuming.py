"""Which run a job goes on with: one that has the same settings and the same photos."""

from __future__ import annotations

import tempfile
import tomllib
from collections import Counter
from pathlib import Path

from .config import NOT_TRAINING, FinetuneConfig, to_toml
from .data import Data
from .data.table import read_csv
from .errors import DlzooError, ResumeError
from .rundir import RunDir, read_values


def find(config: FinetuneConfig, data: Data, stem: str) -> RunDir | None:
    """Return the run to go on with: the named one, else the newest that is the same job."""
    out, name = Path(config.out), config.name
    if name:
        if not (out / name / "run.json").is_file():
            return None
        directory = RunDir.open(out / name)
        if directory.begun:
            check_same(config, data, directory)
        return directory
    found = sorted(out.glob(f"{stem}-*/run.json"), key=lambda p: p.stat().st_mtime)
    for path in reversed(found):
        directory = RunDir.open(path.parent)
        if not directory.begun:
            continue
        try:
            check_same(config, data, directory)
        except (DlzooError, OSError):
            continue
        return directory
    return None


def check_same(config: FinetuneConfig, data: Data, directory: RunDir) -> None:
    """Refuse to go on under other settings or with other photos."""
    changed = changed_settings(config, directory)
    if told := [f"{key} {was}" for key, was in changed.items() if key not in NOT_TRAINING]:
        raise ResumeError(
            "resume.config-changed",
            ", ".join(told),
            where=directory.config,
            fix="resume with the settings of the run, or give another --name",
        )
    if directory.read().get("data") != data.fingerprint:
        came, went = changed_rows(data, directory)
        raise ResumeError(
            "resume.data-changed",
            f"+{came} -{went}: the photos, labels or split are not those of the run",
            where=directory.manifest,
            fix="bring the photos back, or start a new run with another --name",
        )


def changed_settings(config: FinetuneConfig, directory: RunDir) -> dict[str, str]:
    """Return the settings that are others than a run's, sorted, each with `OLD -> NEW`."""
    old, new = read_values(directory.config), tomllib.loads(to_toml(config))
    return {
        key: f"{old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def changed_rows(data: Data, directory: RunDir) -> tuple[int, int]:
    """Return how many photos came to those of a run, and how many went; one that changed is
    both.
    """
    with tempfile.TemporaryDirectory() as folder:
        data.write_manifest(now := Path(folder) / "now.csv")
        before, after = (
            Counter(tuple(row.values()) for row in read_csv(path, (), "run.damaged"))
            for path in (directory.manifest, now)
        )
    return (after - before).total(), (before - after).total()
