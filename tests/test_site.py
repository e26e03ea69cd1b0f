"""The documentation as a site: it builds without a warning, its navigation holds every page, every
link and anchor in it leads somewhere, and its pages fetch nothing from the network."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

pytest.importorskip("material", reason="the site needs pip install 'rewright[docs]'")

ROOT = Path(__file__).resolve().parents[1]
# What a browser loads by itself; a link that the reader may follow is no such thing.
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What a page loads, where it leads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        self.classes.update(given.get("class", "").split())
        if tag in LOADED and LOADED[tag] in given and given.get("rel") != "canonical":
            self.loads.append(given[LOADED[tag]])
        elif tag == "a" and "href" in given:
            self.links.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder))
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if not line.startswith("INFO ")]
    assert done.returncode == 0 and said == [], done.stderr
    return folder


@cache
def parsed(path: Path) -> Page:
    return Page(path.read_text())


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def broken(path: Path) -> Iterator[str]:
    """Links of a page that lead nowhere."""
    for link in parsed(path).links:
        target, anchor = urldefrag(link)
        if "://" in target or target.startswith("mailto:"):
            continue
        found = path.parent / unquote(target) if target else path
        anchors = parsed(found).anchors if found.suffix == ".html" and found.is_file() else set()
        if not found.is_file() or (anchor and unquote(anchor) not in anchors):
            yield link


def test_every_page_is_in_the_navigation(site: Path) -> None:
    home = parsed(site / "index.html")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert {"README.html": "index.html"}.get(name, name) in home.links


def test_links_and_anchors_lead_somewhere(site: Path) -> None:
    # The page that a server shows for what it has not: its links are for a server's root.
    wrong = {p.name: list(broken(p)) for p in pages(site) if p.name != "404.html"}
    assert not {name: links for name, links in wrong.items() if links}


def test_files_outside_the_documentation_are_pages_of_the_site(site: Path) -> None:
    assert "repository/ir/text.lark.html" in parsed(site / "index.html").links
    first = (ROOT / "ir/text.lark").read_text().splitlines()[0]
    shown = re.sub("<.*?>", "", (site / "repository/ir/text.lark.html").read_text())
    assert html.escape(first, quote=False) in shown


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for path in pages(site):
        page = parsed(path)
        assert not [address for address in page.loads if "//" in address]
        assert "mermaid" not in page.classes  # the theme would fetch what draws them


def test_stylesheets_load_nothing_from_elsewhere(site: Path) -> None:
    sheets = [path.read_text() for path in site.rglob("*.css")]
    assert sheets and not [sheet for sheet in sheets if re.search(r"url\(.?(http|//)", sheet)]


def test_search_has_its_index_in_the_site(site: Path) -> None:
    index = (site / "search/search_index.js").read_text()
    assert index.startswith("var __index = ") and "passes/fuse.html" in index
    assert parsed(site / "index.html").loads.count("site/iframe-worker.js") == 1


def test_the_words_behind_a_language_become_titles(site: Path) -> None:
    shown = (site / "cli.html").read_text()
    assert '<span class="filename">mlp.rw</span>' in shown
    assert "```" not in shown and "[NODE|KERNEL|PASS]" in shown
