"""The course in examples/: scripts of a page that are notebooks as well, and that run."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
each = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)


@each
def test_an_example_is_a_page_that_begins_with_what_it_is_about(example):
    text = example.read_text("utf-8")
    compile(text, example, "exec")
    cells = re.split(r"^# %%.*\n", text, flags=re.MULTILINE)
    assert cells[0] == "" and re.match(r"# # \w[^\n]+\n# \w", cells[1])
    assert len(cells) > 3 and text.count("\n") <= 90
    assert f"({example.name})" in (ROOT / "examples" / "README.md").read_text("utf-8")


@each
def test_an_example_opens_as_a_notebook(example):
    pytest.importorskip("jupytext", reason="the extra `notebooks`")
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "tools" / "notebooks.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    made = tool.notebook(example)  # the format is checked there
    kinds = [cell.cell_type for cell in made.cells]
    assert kinds[:2] == ["markdown", "code"] and made.cells[0].source.startswith("# ")
    text = "\n".join(cell.source for cell in made.cells)
    assert "# %%" not in text
    code = [line for line in example.read_text("utf-8").splitlines() if not line.startswith("#")]
    assert all(line in text for line in code)


@pytest.mark.full
@each
def test_an_example_runs_and_draws_what_it_says(example, tmp_path):
    done = subprocess.run(
        [sys.executable, example, "--quick", "--out", tmp_path / "out"],
        env=os.environ | {"DLZOO_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    named = re.findall(r'"(\w+\.(?:png|gif))"', example.read_text("utf-8"))
    made = {path.name for path in (tmp_path / "out").iterdir()}
    tables = {Path(name).with_suffix(".csv").name for name in named}  # of what a picture shows
    assert named and set(named) <= made <= {*named, *tables}
    for name in named:
        assert (tmp_path / "out" / name).stat().st_size > 5000 and f"out/{name}" in done.stdout
