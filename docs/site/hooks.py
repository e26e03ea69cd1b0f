"""What the site needs beyond the pages as they are: mkdocs calls these functions while it builds.

The navigation is the index, `docs/README.md`, with its sections; passes have one of their own.
Pages link to files of the repository outside `docs/`, as a repository browser follows them. In the
site each such file is a page of its own, under `repository/`. The words behind the language of a
fenced block (see tests/test_docs.py) become its title, or go.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS, REPOSITORY, PASSES = "docs", "repository", "passes.md"
LANGUAGES = {".c": "c", ".h": "cpp", ".py": "python", ".toml": "toml", ".js": "js"}

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^```(\w+) (\S+)$", re.MULTILINE)
_SECTION = re.compile(r"^(\w.*):\n\n((?:[- ] .*\n?)+)", re.MULTILINE)
_PAGE = re.compile(r"^(?:- |\| (?:\d+ \| )?)\[.*?\]\(([\w/-]+\.md)\)", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#\s])")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Navigate as the index does."""
    docs = Path(config.docs_dir)
    index, passes = (docs / "README.md").read_text(), (docs / PASSES).read_text()
    sections: list[dict[str, list[str]]] = []
    for title, listed in _SECTION.findall(index):
        pages = _PAGE.findall(listed)
        sections.append({title: [page for page in pages if page != PASSES]})
        if PASSES in pages:
            sections.append({"Passes": [PASSES, *dict.fromkeys(_PAGE.findall(passes))]})
    config.nav = ["README.md", *sections]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside `docs/` that a page links to, or that such a page does."""
    root = Path(config.docs_dir).parent
    open_pages = [f"{DOCS}/{page.src_uri}" for page in files.documentation_pages()]
    seen = set(open_pages)
    while open_pages:
        path = open_pages.pop()
        for target in _targets(path, (root / path).read_text()):
            if target in seen or target.startswith(f"{DOCS}/") or not (root / target).exists():
                continue
            seen.add(target)
            files.append(File.generated(config, _uri(target), content=_shown(root, target)))
            if target.endswith(".md"):
                open_pages.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links lead to where their files are in the site."""
    here = page.file.src_uri
    path = here.removeprefix(f"{REPOSITORY}/") if _is_copied(here) else f"{DOCS}/{here}"
    folder = posixpath.dirname(path)

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[0]))
        inside = target.startswith(f"{DOCS}/")
        uri = target.removeprefix(f"{DOCS}/") if inside else _uri(target)
        return posixpath.relpath(uri, posixpath.dirname(here))

    made, last = [], 0
    for block in _FENCED.finditer(markdown):
        made += [_LINK.sub(moved, markdown[last : block.start()]), _FENCE.sub(_titled, block[0])]
        last = block.end()
    return "".join([*made, _LINK.sub(moved, markdown[last:])])


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A bar in a table is written `\\|`; in code there, Markdown for Python keeps the stroke."""
    return re.sub(r"<td.*?</td>", lambda cell: cell[0].replace(r"\|", "|"), html, flags=re.DOTALL)


def _targets(path: str, markdown: str) -> Iterator[str]:
    """What a page of the repository links to, as paths from the repository's root."""
    for link in _LINK.findall(_FENCED.sub("", markdown)):
        yield posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _is_copied(uri: str) -> bool:
    return uri.startswith(f"{REPOSITORY}/")


def _uri(target: str) -> str:
    """Where the site has a file of the repository: a page, whatever it is."""
    return f"{REPOSITORY}/{target.removesuffix('.md')}.md"


def _shown(root: Path, target: str) -> str:
    """The page of a file: Markdown as it is, a folder as a list, all else as source."""
    path = root / target
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if not p.name.startswith(("__", ".")))
        return "\n".join([f"# {target}/", "", *(f"- `{name}`" for name in names), ""])
    text = path.read_text()
    if path.suffix == ".md":
        return text
    return f"# {target}\n\n````` {LANGUAGES.get(path.suffix, 'text')}\n{text}`````\n"


def _titled(fence: re.Match[str]) -> str:
    language, word = fence.groups()
    return f'```{language} title="{word}"' if "." in word else f"```{language}"
