"""How docstrings are read for the site: an extension of griffe.

Ours name two arguments in one line where both are short (`rank: of this one. count: of all.`), and
other objects by roles (:class:`Run`). Here each argument gets a line, and roles become code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|exc):`~?([^`]+)`")


class Plain(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object, by the names that it may speak of."""
        if obj.docstring is None:
            return
        text = _ROLE.sub(r"`\1`", obj.docstring.value)
        names = _arguments(obj)
        if names:
            known = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
            inside = re.compile(rf"(?<=[.;]) +((?:{known})(?:, (?:{known}))*): ")
            text = "\n".join(_split(line, inside) for line in text.split("\n"))
        obj.docstring.value = text


def _arguments(obj: griffe.Object) -> set[str]:
    """Return the names of a function's arguments, or of a class's and its attributes."""
    if isinstance(obj, griffe.Function):
        return {parameter.name.lstrip("*") for parameter in obj.parameters}
    if isinstance(obj, griffe.Class):
        init = obj.members.get("__init__")
        own = _arguments(init) if isinstance(init, griffe.Function) else set()
        return own | {name for name in obj.members if not name.startswith("_")}
    return set()


def _split(line: str, inside: re.Pattern[str]) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    return inside.sub(rf"\n{indent}\1: ", line) if indent else line
