"""Pages of the site that stand elsewhere: README and its like, and the help of the command line.

A hook of mkdocs. Links between files of the repository are those that are right there; here they
become links between pages. What has no page (a script, say) loses its link.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {  # page: file of the repository
    "index.md": "README.md",
    "results.md": "benchmarks/RESULTS.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "examples.md": "examples/README.md",
}
COMMANDS = "reference/commands.md"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    for page, source in PAGES.items():
        if (ROOT / source).is_file():
            text = (ROOT / source).read_text("utf-8")
            files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, COMMANDS, content=commands()))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a file of the repository into those of its page."""
    here = page.file.src_uri
    source = PAGES.get(here, f"docs/{here}")
    pages = {path: uri for uri, path in PAGES.items()}

    def turned(found: re.Match[str]) -> str:
        image, label, target, anchor = found.groups(default="")
        if re.match(r"[a-z]+:", target):
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        uri = pages.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
        if not uri or files.get_file_from_path(uri) is None:
            return label
        link = posixpath.relpath(uri, posixpath.dirname(here) or ".")
        return f"{image}[{label}]({link}{anchor})"

    return _LINK.sub(turned, text)


def commands() -> str:
    """Return a page with the help of every command."""
    os.environ["COLUMNS"] = "100"
    from dlzoo.cli import cli

    parts = ["# Commands\n\nExit codes and messages: [Errors](../api/errors.md).\n"]
    with click.Context(cli, info_name="dlzoo") as context:
        pending = [
            (f"dlzoo {name}", cli.get_command(context, name)) for name in sorted(cli.commands)
        ]
        while pending:
            name, command = pending.pop(0)
            if isinstance(command, click.Group):
                pending = [(f"{name} {n}", c) for n, c in command.commands.items()] + pending
                continue
            with click.Context(command, info_name=name) as own:
                parts.append(f"## {name}\n\n```text\n{command.get_help(own).strip()}\n```\n")
    return "\n".join(parts)
