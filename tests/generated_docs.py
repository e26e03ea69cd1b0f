"""Texts of the documentation that are made from the source. In a page they stand between marks:

    <!-- Generated from options: UPDATE_DOCS=1 rewrites it. -->
    <!-- End of options. -->

`PARTS` has what is made for each name; a name may have an argument, as in `pass fuse`.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import torch

from rewright.cli import COMMANDS, command_parser
from rewright.ir import DTYPE_NAMES
from rewright.options import option_docs
from rewright.passes import DEFAULT, Pass, passes
from rewright.passes.rules import SHIPPED, shipped
from rewright.passes.rules.domains import DOMAINS, KINDS_OF_DTYPES
from rewright.passes.rules.functions import FUNCTIONS, RuleFunction
from run_case import read_case

ROOT: Final = Path(__file__).resolve().parents[1]
WHOLE_COMPILER: Final = ROOT / "examples/whole_compiler.py"

_PART = re.compile(
    r"^<!-- Generated from (?P<name>[\w -]+): UPDATE_DOCS=1 rewrites it\. -->\n"
    r"(?P<text>.*?)^<!-- End of (?P=name)\. -->$",
    re.MULTILINE | re.DOTALL,
)


def refreshed(page: str) -> str:
    """The page with all that is generated made anew."""

    def made(found: re.Match[str]) -> str:
        name, _, argument = found["name"].partition(" ")
        part = PARTS[name]
        text = "\n".join(part(argument) if argument else part())
        opening = found[0].splitlines()[0]
        return f"{opening}\n\n{text.strip()}\n\n<!-- End of {found['name']}. -->"

    return _PART.sub(made, page)


def generated_parts(page: str) -> list[str]:
    return [found["name"] for found in _PART.finditer(page)]


# --- options and commands -------------------------------------------------------------------------


def options() -> Iterator[str]:
    yield from ("| option | default | what it says |", "| --- | --- | --- |")
    for name, default, doc in option_docs():
        yield f"| `{name}` | `{default or '-'}` | {_cell(doc)} |"


def commands() -> Iterator[str]:
    """A section for each command: how it is called, and its arguments, those of compiles apart."""
    for name, (summary, _) in COMMANDS.items():
        parser = command_parser(name)
        options = {f"--{option.replace('_', '-')}" for option, _, _ in option_docs()}
        others = {"--help", "--json"}  # which every command takes
        mine = [a for a in parser._actions if not others.intersection(a.option_strings)]
        takes_all = options <= {flag for a in mine for flag in a.option_strings}
        own = [a for a in mine if not (takes_all and options.intersection(a.option_strings))]
        yield from ("", f"## {name}", "", f"{summary[0].upper()}{summary[1:]}.", "")
        words = [_in_usage(a) for a in own if not a.option_strings]
        yield from ("```text", " ".join(["rewright", name, *words]), "```")
        if own:
            yield from ("", "| argument | what it is |", "| --- | --- |")
        yield from (f"| {_spelled(a)} | {_cell(a.help or '')} |" for a in own)
        if takes_all:
            yield from ("", "And every option of [options.md](options.md), with two dashes.")


def _in_usage(action: argparse.Action) -> str:
    name = _metavar(action)
    many = {"?": f"[{name}]", "*": f"[{name} ...]"}
    return many.get(str(action.nargs), name)


def _metavar(action: argparse.Action) -> str:
    if action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return str(action.metavar or action.dest.upper())


def _spelled(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {_metavar(action)}"
    names = action.option_strings or [""]
    return ", ".join(f"`{(name + value).strip()}`" for name in names).replace("|", r"\|")


def _cell(text: str) -> str:
    return text.replace("%%", "%").replace("|", r"\|")


# --- passes ---------------------------------------------------------------------------------------


def default_pipeline() -> Iterator[str]:
    yield from ("| | pass | what it does |", "| --- | --- | --- |")
    for place, of in enumerate((type(p) for p in DEFAULT), start=1):
        doc = inspect.cleandoc(of.__doc__ or "").split("\n\n")[0]
        yield f"| {place} | [{of.name}](passes/{of.name}.md) | {' '.join(doc.split())} |"


def our_passes() -> dict[str, type[Pass]]:
    """Every pass of Rewright's own, by name."""
    return {n: p for n, p in passes().items() if p.__module__.startswith("rewright.passes.")}


def pass_doc(name: str) -> Iterator[str]:
    of = our_passes()[name]
    yield from _markdown(inspect.cleandoc(of.__doc__ or ""))
    yield from ("", f"Takes a graph at the {of.takes} level and gives one at the {of.gives} level.")


def refusals(name: str) -> Iterator[str]:
    """What the pass says when it refuses, and the law that its case states."""
    for path in sorted((ROOT / "tests/cases" / name).glob("*.rw")):
        case = read_case(path)
        for sentence in case.refusals:
            yield f"- `{sentence}`. {case.law}"


def _markdown(doc: str) -> Iterator[str]:
    """Indented blocks become fenced ones; names in backticks stay."""
    for part in re.split(r"((?:^    .*\n?|^\n(?=    ))+)", doc, flags=re.MULTILINE):
        if part.startswith("    "):
            code = "\n".join(line.removeprefix("    ") for line in part.rstrip().split("\n"))
            yield from ("", "```text", code, "```")
        elif part.strip():
            yield from ("", part.strip())


# --- rules ----------------------------------------------------------------------------------------


def rule_language() -> Iterator[str]:
    """What rules may be written with."""
    yield from ("## Classes of dtypes", "")
    yield from ("A declaration names a class or a dtype. A rule is proved on these dtypes:", "")
    yield from ("| class | dtypes |", "| --- | --- |")
    yield from (f"| `{n}` | {', '.join(map(_dtype, of))} |" for n, of in KINDS_OF_DTYPES.items())
    yield from ("", "## Attributes", "", "| declared as | it is |", "| --- | --- |")
    yield from (f"| `{name}` | {domain.doc} |" for name, domain in DOMAINS.items())
    yield from ("", "## Questions", "", "| question | it asks |", "| --- | --- |")
    yield from _functions(asks=True)
    yield from ("", "## What can be computed", "")
    yield from ("`+ - * / // % **` and comparisons, on numbers and sizes, and these:", "")
    yield from ("| function | it gives |", "| --- | --- |")
    yield from _functions(asks=False)


def rule_sets() -> Iterator[str]:
    for name in SHIPPED:
        texts = dict.fromkeys(str(rule) for rule in shipped(name))
        yield from ("", f"## The set {name}", "", "```text", "\n\n".join(texts), "```")


def _functions(*, asks: bool) -> Iterator[str]:
    for f in FUNCTIONS.values():
        if f.asks == asks:
            yield f"| `{_call(f)}` | {' '.join(inspect.cleandoc(f.call.__doc__ or '').split())} |"


def _dtype(dtype: torch.dtype) -> str:
    return DTYPE_NAMES[dtype]


def _call(function: RuleFunction) -> str:
    parameters = list(inspect.signature(function.call).parameters.values())
    names = (f"{p.name}..." if p.kind is p.VAR_POSITIONAL else p.name for p in parameters)
    return f"{function.name}({', '.join(n for n in names if n != 'around')})"


# --- the compiler in one file ---------------------------------------------------------------------


def whole_compiler() -> Iterator[str]:
    """The example as a text with code in it: the comment at the head of a section is its text."""
    head, *sections = re.split(r"^# --- (.*?) -+\n", WHOLE_COMPILER.read_text(), flags=re.MULTILINE)
    yield from ("```python", head.strip(), "```")
    for title, section in zip(sections[::2], sections[1::2], strict=True):
        said = re.match(r"(?:#.*\n)*", section)
        assert said is not None
        words = " ".join(line.removeprefix("#").strip() for line in said[0].splitlines())
        number, _, name = title.partition(". ")
        yield from ("", f"### {number}. {name}", "", words.strip(), "")
        yield from ("```python", section[said.end() :].strip(), "```")


PARTS: Final[dict[str, Callable[..., Iterator[str]]]] = {
    "commands": commands,
    "default-pipeline": default_pipeline,
    "options": options,
    "pass": pass_doc,
    "refusals": refusals,
    "rule-language": rule_language,
    "rule-sets": rule_sets,
    "whole-compiler": whole_compiler,
}
