"""The one exception base and its families.

A message says who refused, where in the text (with a caret), what was wanted, what was found and
what to do. It starts in lower case and needs no traceback to be understood.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Excerpt:
    """A place in a text: 1-based line and column, the line itself, how many characters to mark."""

    file: str
    line: int
    column: int
    text: str
    width: int = 1
    label: str = ""

    def __str__(self) -> str:
        gutter = " " * len(str(self.line))
        mark = " " * (self.column - 1) + "^" * max(self.width, 1)
        label = f" {self.label}" if self.label else ""
        return (
            f"{gutter}--> {self.file}:{self.line}:{self.column}\n"
            f"{gutter} |\n"
            f"{self.line} | {self.text}\n"
            f"{gutter} | {mark}{label}"
        )


class RewrightError(Exception):
    """Base of everything Rewright raises on purpose.

    `who` is the pass, option or file kind that refuses; `excerpt` points into the text; `help`
    says what to do.
    """

    def __init__(
        self,
        message: str,
        *,
        who: str | None = None,
        excerpt: Excerpt | None = None,
        help: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.who = who
        self.excerpt = excerpt
        self.help = help

    def __str__(self) -> str:
        head = f"[{self.who}] {self.message}" if self.who else self.message
        parts = [head]
        if self.excerpt is not None:
            parts.append(str(self.excerpt))
        if self.help is not None:
            parts.append(f"  = help: {self.help}")
        return "\n".join(parts)


class TextError(RewrightError):
    """A text (`.rw`, pass spec, dimension, budget) does not parse."""


class CheckError(RewrightError):
    """A graph breaks the rules of its level."""


class ImportFailure(RewrightError):
    """A model or file cannot be brought into the IR."""


class UnsupportedError(RewrightError):
    """A construct is legal but something was asked for that we cannot do with it."""


class OptionError(RewrightError):
    """An option, pass or target name is unknown, or its value has the wrong form."""


class BudgetError(RewrightError):
    """A stated budget cannot be met."""


class InputError(RewrightError):
    """A compiled program was called with arguments that do not fit its signature."""


class ToolchainError(RewrightError):
    """A compiler is missing or failed."""


class ArtefactError(RewrightError):
    """An output folder or a saved program cannot be used."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'remat'?`, or an empty string when nothing known is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
