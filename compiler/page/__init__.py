"""One HTML page a compile: everything in one file, nothing loaded from anywhere.

The page is a template, a style sheet and scripts that lie here as files, and the data of a record.
Nothing of a model is ever part of the markup: names and source text reach the page as packed JSON,
and its scripts put them there as text.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rewright.page.payload import packed, payload_of

if TYPE_CHECKING:
    from rewright.record import Record

__all__ = ["page", "payload_of"]

HERE: Final = Path(__file__).parent
# In this order they are one script.
SCRIPTS: Final = (
    *("dom", "numbers", "model", "links", "tree", "layout", "camera", "paint", "view"),
    *("details", "graph", "overview", "memory", "roofline", "kernels", "decisions", "code"),
    *("sources", "main"),
)


def page(record: Record) -> str:
    """The page of a record, as text."""
    style, script = style_text(), script_text()
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; "
        f"script-src {_digest(script)}"
    )
    parts = {
        "policy": policy,
        "title": escape(f"{record.report.graph}: a compile"),
        "style": style,
        "script": script,
        "data": packed(payload_of(record)),
    }
    text = (HERE / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"<!--{name}-->", part)
    return text


@cache
def style_text() -> str:
    return (HERE / "page.css").read_text(encoding="utf-8")


@cache
def script_text() -> str:
    """All scripts as one module; each begins with a comment that says what it is about."""
    return "\n".join((HERE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)


def _digest(text: str) -> str:
    """What the browser compares an inline script or style with, before it lets it act."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
