"""What README and the guide show works: commands exist with these options, programs run."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import click
import dlzoo
import numpy as np
import pytest
from dlzoo import cli
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Snippet(NamedTuple):
    kind: str
    text: str


def snippets(page: Path, *kinds: str) -> list[Snippet]:
    found = [Snippet(*each) for each in FENCE.findall(page.read_text("utf-8"))]
    return [each for each in found if each.kind in kinds]


def commands(text: str) -> list[list[str]]:
    """Return the words of each line of a shell snippet that calls dlzoo."""
    lines = text.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        for name in ("srun", "nice"):
            words = words[words[0] == name :] if words else words
        while words and "=" in words[0]:
            words = words[1:]
        if words and words[0] == "dlzoo":
            found.append(words[1:])
    return found


LINES = {
    f"{page.name}: {' '.join(words)}": words
    for page in PAGES
    for snippet in snippets(page, "sh", "console", "bash")
    for words in commands(snippet.text)
}


@pytest.mark.parametrize("line", LINES)
def test_each_command_exists_with_these_options(line):
    words, command = list(LINES[line]), cli.cli
    context = click.Context(command, info_name="dlzoo")
    while isinstance(command, click.Group):
        name, words = words[0], words[1:]
        command = command.get_command(context, name)
        assert command is not None, name
    parsed = command.make_context(command.name, words, parent=context).params
    if command.name == "launch":
        inner = cli.cli.get_command(context, parsed["command"][0])
        inner.make_context(inner.name, list(parsed["command"][1:]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_name_what_there_is(page):
    for snippet in snippets(page, "python"):
        for node in ast.walk(ast.parse(snippet.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dlzoo"):
                module = __import__(node.module, fromlist=["x"])
                assert all(hasattr(module, alias.name) for alias in node.names), ast.dump(node)
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "dlzoo":
                assert hasattr(dlzoo, node.attr), node.attr


@pytest.mark.full
@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_a_page_of_the_guide_can_be_followed(page, tmp_path):
    """Each of its snippets in turn, in a folder with photos, by the shell and by Python."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("daisy", "rose", "tulip")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(24):
            image = rng.integers(60, 90, (64, 72, 3), np.uint8)
            image[..., number] += 110
            Image.fromarray(image).save(tmp_path / "photos" / name / f"{i}.jpg")
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if page.stem == "training":  # compares two runs that a reader would have
        for name in ("first", "second"):
            train = ["dlzoo", "finetune", "--data", "photos", "--preset", "fast", "--name", name]
            subprocess.run([*train, "--no-report"], cwd=tmp_path, env=env, check=True)
    program = ""
    for kind, text in snippets(page, "sh", "python"):
        if kind == "python":  # goes on with what the program has so far
            program += text
            run = [sys.executable, "-c", program]
        elif text.startswith("dlzoo serve"):  # it does not end; tests/unit/test_serve.py
            continue
        else:
            run = ["sh", "-ec", text]
        done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


def test_the_plain_fit_of_the_readme_runs(tmp_path, monkeypatch):
    """With few epochs, on numbers in place of images."""
    import keras

    (text,) = (each.text for each in snippets(PAGES[0], "python") if "Resume(" in each.text)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse", run_eagerly=True)
    numbers = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    monkeypatch.chdir(tmp_path)
    given = {"model": model, "images": numbers, "labels": numbers[:, :1]}
    exec(text.replace("epochs=20", "epochs=2, verbose=0"), given)
    assert given["resume"].epoch == given["kept"][1].epochs_seen == 2
