"""The documentation as a reader opens it, from a folder: search finds pages, nothing complains, and
nothing is asked of the network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from browser.devtools import Browser, chromium
from test_site import site

FOUND: Final = chromium()
pytestmark = pytest.mark.skipif(
    FOUND is None, reason="there is no chromium: apt-get install chromium"
)

__all__ = ["site"]


@pytest.fixture
def browser() -> Iterator[Browser]:
    assert FOUND is not None
    opened = Browser(FOUND, 1400, 880)
    yield opened
    opened.close()


def test_search_works_from_a_folder(browser: Browser, site: Path) -> None:
    browser.send("Page.navigate", url=(site / "passes/fuse.html").as_uri())
    browser.settle(2.0)
    browser.run("document.querySelector('.md-search__input').focus()")
    browser.type("topological")
    browser.settle(2.0)
    links = "[...document.querySelectorAll('.md-search-result__link')].map((a) => a.href)"
    found = browser.run(links)
    assert any("passes/fuse.html" in link for link in found), json.dumps(browser.complaints())
    assert browser.complaints() == []
    assert all(url.startswith(("file://", "about:", "data:")) for url in browser.requests())
