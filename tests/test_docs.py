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

`UPDATE_DOCS=1` rewrites what pages show, and the pages that are generated; the diff is the review.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import whole_compiler
from rewright.cli import main
from rewright.ir import DTYPE_NAMES
from rewright.options import option_docs
from rewright.passes import DEFAULT, Pass, base
from rewright.passes.rules import SHIPPED, shipped
from rewright.passes.rules.domains import DOMAINS, KINDS_OF_DTYPES
from rewright.passes.rules.functions import FUNCTIONS, RuleFunction
from run_case import read_case

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
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


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    others = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    assert others == set(re.findall(r"\]\(([\w-]+\.md)\)", index))


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


# --- pages that are generated ---------------------------------------------------------------------

GENERATED = "<!-- Generated by tests/test_docs.py from {source}: UPDATE_DOCS=1 rewrites it. -->"


def options_page() -> str:
    rows = [f"| `{name}` | `{default or '-'}` | {doc} |" for name, default, doc in option_docs()]
    return "\n".join(
        [
            "# Options",
            "",
            GENERATED.format(source="compiler/options.py"),
            "",
            "The same options serve all three doors:",
            "",
            "```text",
            'torch.compile(model, backend="rewright", options={"fallback": "error"})',
            'rewright.optimize(model, inputs, fallback="error")',
            "rewright optimize model.pt2 --fallback error",
            "```",
            "",
            "Every value is a string. An unknown name or value is an error that names the nearest",
            "known one. On the command line `_` is written `-`.",
            "",
            "| option | default | what it says |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def passes_page() -> str:
    order = ", ".join(f"[{p.name}](#{p.name})" for p in DEFAULT)
    return "\n".join(
        [
            "# Passes",
            "",
            GENERATED.format(source="the passes' docstrings and case files"),
            "",
            "A pass takes a graph and gives a graph. A pipeline is a list of passes, written",
            "`canonicalize,fuse{max-ops=8}`; `rewright optimize --passes` takes one. The default:",
            f"{order}.",
            "",
            "What a pass did and would not do, `rewright why` says in sentences.",
            *(line for p in DEFAULT for line in ("", *_pass_section(p))),
            "",
        ]
    )


def _pass_section(of: Pass) -> Iterator[str]:
    yield f"## {of.name}"
    levels = f"Takes a graph at the {of.takes} level and gives one at the {of.gives} level."
    yield from _markdown(inspect.cleandoc(type(of).__doc__ or ""))
    yield from ("", levels)
    options = fields(of) if is_dataclass(of) else ()
    if options:
        named = (f"`{f.name.replace('_', '-')}={getattr(of, f.name)}`".lower() for f in options)
        yield from ("", f"Options and their defaults: {', '.join(named)}.")
    refusals = list(_refusals(of.name))
    if refusals:
        yield from ("", "Refusals, from its case files:", "", *refusals)


def _markdown(doc: str) -> Iterator[str]:
    """Indented blocks become fenced ones; names in backticks stay."""
    for part in re.split(r"((?:^    .*\n?|^\n(?=    ))+)", doc, flags=re.MULTILINE):
        if part.startswith("    "):
            code = "\n".join(line.removeprefix("    ") for line in part.rstrip().split("\n"))
            yield from ("", "```text", code, "```")
        elif part.strip():
            yield from ("", part.strip())


def _refusals(name: str) -> Iterator[str]:
    """What the pass says when it refuses, and the law that its case states."""
    for path in sorted((ROOT / "tests/cases" / name).glob("*.rw")):
        case = read_case(path)
        for sentence in case.refusals:
            yield f"- `{sentence}`. {case.law}"


def rules_page() -> str:
    """What rules may be written with, and those that we ship."""
    kinds = [f"| `{name}` | {', '.join(map(_dtype, of))} |" for name, of in KINDS_OF_DTYPES.items()]
    domains = [f"| `{name}` | {domain.doc} |" for name, domain in DOMAINS.items()]
    questions, facts = (
        [
            f"| `{_call(f)}` | {_first_sentence(f.call)} |"
            for f in FUNCTIONS.values()
            if f.asks == asks
        ]
        for asks in (True, False)
    )
    sets = []
    for name in SHIPPED:
        texts = dict.fromkeys(str(rule) for rule in shipped(name))
        sets += ["", f"## The set {name}", "", "```text", "\n\n".join(texts), "```"]
    return "\n".join(
        [
            "# What rules are written with",
            "",
            GENERATED.format(source="passes/rules"),
            "",
            "How to write a rule is told in [rules.md](rules.md); the grammar is",
            "[`passes/rules/rules.lark`](../passes/rules/rules.lark).",
            "",
            "## Classes of dtypes",
            "",
            "A declaration names a class or a dtype. A rule is proved on these dtypes:",
            "",
            *("| class | dtypes |", "| --- | --- |"),
            *kinds,
            "",
            "## Attributes",
            "",
            *("| declared as | it is |", "| --- | --- |"),
            *domains,
            "",
            "## Questions",
            "",
            *("| question | it asks |", "| --- | --- |"),
            *questions,
            "",
            "## What can be computed",
            "",
            "`+ - * / // % **` and comparisons, on numbers and sizes, and these:",
            "",
            *("| function | it gives |", "| --- | --- |"),
            *facts,
            *sets,
            "",
        ]
    )


def _dtype(dtype: torch.dtype) -> str:
    return DTYPE_NAMES[dtype]


def _call(function: RuleFunction) -> str:
    parameters = list(inspect.signature(function.call).parameters.values())
    names = (f"{p.name}..." if p.kind is p.VAR_POSITIONAL else p.name for p in parameters)
    return f"{function.name}({', '.join(n for n in names if n != 'around')})"


def _first_sentence(call: Callable[..., Any]) -> str:
    return " ".join(inspect.cleandoc(call.__doc__ or "").split())


@pytest.mark.parametrize(
    ("name", "made"),
    [("options.md", options_page), ("passes.md", passes_page), ("rules-reference.md", rules_page)],
)
def test_generated_pages_are_up_to_date(name: str, made: Callable[[], str]) -> None:
    path = DOCS / name
    if UPDATE:
        path.write_text(made())
    assert path.read_text() == made()


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
