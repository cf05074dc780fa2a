"""Write the examples as notebooks that open in Colab and Jupyter.

    python tools/notebooks.py [FOLDER]      # default: notebooks/; needs the extra `notebooks`

Each begins with a cell that installs dlzoo where it is missing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
INSTALL = """\
# In Colab: put a checkout of dlzoo beside this notebook first.
import importlib.util

if importlib.util.find_spec("dlzoo") is None:
    %pip install --quiet ./dlzoo"""


def notebook(example: Path) -> nbformat.NotebookNode:
    """Return an example as a notebook, checked against the format."""
    made = jupytext.read(example, fmt="py:percent")
    made.cells.insert(1, nbformat.v4.new_code_cell(INSTALL))
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"  # the same in every run
    nbformat.validate(made)
    return made


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "notebooks")
    folder.mkdir(parents=True, exist_ok=True)
    for example in EXAMPLES:
        path = folder / f"{example.stem}.ipynb"
        nbformat.write(notebook(example), path)
        print(path)


if __name__ == "__main__":
    main()
