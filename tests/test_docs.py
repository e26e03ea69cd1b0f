"""The documentation is run. In README.md and every page of `docs/`, blocks run from top to bottom
in a folder of the page's own:

    ```text mlp.rw        is written to that file, whatever its language
    ```console            every `$ ` line is run and prints what stands below it
    ```console sample     is run too, but what it prints is the machine's, and not compared
    ```python             is executed, all blocks of a page in one namespace
    ```text output        is what the python block before it prints

Before they are compared, both texts lose what the machine decides: a number with a unit of time or
speed, a ratio, one in e-notation, and the number of a line of Python become `#`, and any run of
blanks one blank. In what a page shows, `...` stands for any text.

`UPDATE_DOCS=1` rewrites what pages show, and what is generated in them (`generated_docs.py`); the
diff is the review.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import whole_compiler
from generated_docs import ROOT, generated_parts, our_passes, refreshed, refusals
from rewright.cli import main
from rewright.passes import base

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
UPDATE = os.environ.get("UPDATE_DOCS") == "1"

BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MACHINE = re.compile(
    r"""
    \d[\d.]*(?:e[-+]\d+)? \s? (?:ns|us|ms|s|x|GB/s|GFLOP/s)\b   # 1.5 ms, 1.02x
    | \d[\d.]*e[-+]\d+                                          # 2.41e-07
    | (?<=\.py:)\d+                                             # modeling_gpt2.py:571
    """,
    re.VERBOSE,
)

# Another torch exports other graphs.
TORCH = re.findall(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
as_written = pytest.mark.skipif(
    torch.__version__.split("+")[0] != TORCH, reason=f"the pages show what torch {TORCH} does"
)
every_page = pytest.mark.parametrize(
    "page", PAGES, ids=[p.relative_to(ROOT).as_posix() for p in PAGES]
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the word behind it, its text, and where that stands."""

    language: str
    tag: str
    text: str
    start: int
    end: int


def blocks(page: str) -> Iterator[Block]:
    for found in BLOCK.finditer(page):
        language, tag, text = found.groups()
        yield Block(language, tag or "", text, *found.span(3))


# --- running a page -------------------------------------------------------------------------------


class Reader:
    """Somebody who types in a page from top to bottom."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.namespace: dict[str, Any] = {"__name__": "page"}
        self.printed = ""

    def read(self, block: Block) -> str | None:
        """What the block should have shown; None for one that shows nothing."""
        if "." in block.tag:
            Path(block.tag).write_text(block.text)
        elif block.language == "console":
            shown = "".join(map(self.answer, commands(block.text)))
            return None if block.tag == "sample" else shown
        elif block.language == "python":
            self.capsys.readouterr()
            exec(compile(block.text, "<page>", "exec"), self.namespace)
            self.printed = self.capsys.readouterr().out
        elif block.tag == "output":
            return self.printed
        return None

    def answer(self, command: str) -> str:
        """The command and all that it prints, errors last, in whole lines."""
        words = shlex.split(command)
        if words[0] == "rewright":
            said = self.rewright(words[1:])
        else:
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            said = done.stdout
        return f"$ {command}\n{said}" + ("\n" if said and not said.endswith("\n") else "")

    def rewright(self, arguments: list[str]) -> str:
        self.capsys.readouterr()
        code = main(arguments)
        printed = self.capsys.readouterr()
        assert code == 2 if printed.err.startswith("error: ") else code in (0, 1), printed.err
        return printed.out + printed.err


def commands(text: str) -> list[str]:
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


def plain(text: str) -> str:
    """The text without what the machine decides."""
    return re.sub(r"[ \t]+", " ", MACHINE.sub("#", text)).strip()


def agrees(shown: str, found: str) -> bool:
    parts = [re.escape(part.strip()) for part in plain(shown).split("...")]
    return re.fullmatch(r"\s*.*?\s*".join(parts), plain(found), re.DOTALL) is not None


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a page does to the process ends with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(base, "_PASSES", dict(base._PASSES))
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.cpu
@as_written
@pytest.mark.usefixtures("own_folder")
@every_page
def test_a_page_shows_what_happens(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader, text = Reader(capsys), page.read_text()
    if UPDATE:
        text = refreshed(text)
    wrong = []
    for block in blocks(text):
        found = reader.read(block)
        if found is not None and not agrees(block.text, found):
            wrong.append((block, found))
    if UPDATE:
        for block, found in reversed(wrong):
            text = text[: block.start] + found.rstrip("\n") + "\n" + text[block.end :]
        page.write_text(text)
        return
    assert not wrong, "\n".join(f"--- shown\n{b.text}--- found\n{f}" for b, f in wrong)


@every_page
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", BLOCK.sub("", page.read_text()))
    inside = [link for link in links if "://" not in link]
    assert not [link for link in inside if not (page.parent / link).exists()]


@pytest.mark.parametrize(("index", "folder"), [("README.md", "."), ("passes.md", "passes")])
def test_the_index_names_every_page(index: str, folder: str) -> None:
    named = re.findall(r"\]\(([\w/-]+\.md)[)#]", (DOCS / index).read_text())
    pages = {path.relative_to(DOCS).as_posix() for path in (DOCS / folder).glob("*.md")}
    assert pages - {index} <= set(named)


@pytest.mark.parametrize(
    ("shown", "found", "same"),
    [
        ("time 1.5 ms", "time   20.3 us", True),
        ("error 2e-07 (1.1x)", "error 3.4e-08 (0.97x)", True),
        ("a\n...\nz", "a\nb\nc\nz", True),
        ("peak 1.5 MiB", "peak 1.6 MiB", False),
        ("3 nodes", "4 nodes", False),
    ],
)
def test_what_the_machine_decides_is_not_compared(shown: str, found: str, same: bool) -> None:
    assert agrees(shown, found) == same


# --- what is generated ----------------------------------------------------------------------------


@every_page
def test_what_is_generated_is_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert UPDATE or text == refreshed(text)


def test_a_mark_without_an_end_is_seen() -> None:
    marks = [text.count("<!-- Generated from ") for text in map(Path.read_text, PAGES)]
    assert marks == [len(generated_parts(text)) for text in map(Path.read_text, PAGES)]


@pytest.mark.parametrize("name", our_passes())
def test_every_pass_has_a_page(name: str) -> None:
    """Of its own, with its docstring, its refusals, and every option at its default."""
    page = (DOCS / "passes" / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    said = [f"pass {name}", *([f"refusals {name}"] if list(refusals(name)) else [])]
    assert generated_parts(page) == said
    assert re.findall(r"^\| `([\w-]+)` \| (.+?) \|", page, re.MULTILINE) == _options(name)


def _options(name: str) -> list[tuple[str, str]]:
    of = our_passes()[name]
    if not is_dataclass(of):
        return []
    defaults = ((f.name.replace("_", "-"), getattr(of, f.name)) for f in fields(of))
    return [(option, f"`{str(value).lower() or '-'}`") for option, value in defaults]


# --- the compiler in one file ---------------------------------------------------------------------


@pytest.mark.cpu
def test_the_whole_compiler_fits_in_a_file_and_is_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole_compiler.main()
    printed = capsys.readouterr().out
    assert "rw.fused(%h, %r)" in printed
    assert "void kernel_e(" in printed
    assert printed.endswith("0 of 5120 numbers differ from eager\n")
