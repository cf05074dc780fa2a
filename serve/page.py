"""The one page of a service, and the policy that lets nothing run but what is in it."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import NamedTuple


class Page(NamedTuple):
    """The HTML, and its Content-Security-Policy."""

    html: str
    policy: str


def render(name: str) -> Page:
    """Return the page for a model of this name; its style and script are inside, by their hash."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    css, script = ((here / f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined
    )
    html = environment.get_template("page.html").render(name=name, css=css, script=script)
    rules = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(css),
        "img-src": "blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return Page(html, "; ".join(f"{rule} {value}" for rule, value in rules.items()))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
