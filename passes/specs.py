"""Pass specs as text: `fuse{max-ops=8,mode="x"}`, and lists of them.

This module knows the notation only: names, options and the text of values. Which options exist is
the pass's business (`passes/base.py`).
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, NoReturn

from rewright.ir import Excerpt, OptionError, TextError

_BINARY: Final = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
_UNITS: Final = {**_BINARY, "TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3, "B": 1, "": 1}
_AMOUNT: Final = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})")


class Bytes(int):
    """An amount of memory, printed in the largest unit that says it exactly: `300MiB`, `17B`."""

    def __str__(self) -> str:
        for unit, size in _BINARY.items():
            if self and self % size == 0:
                return f"{self // size}{unit}"
        return f"{int(self)}B"

    @staticmethod
    def parse(text: str) -> Bytes:
        """Read `6GiB`, `1.5GiB`, `300MB` or a plain count. Raises OptionError for anything else."""
        found = _AMOUNT.fullmatch(text.strip())
        if found is None:
            units = ", ".join(unit for unit in _UNITS if unit)
            raise OptionError(
                f"'{text}' is not an amount of memory", help=f"write 6GiB or 300MiB; units: {units}"
            )
        return Bytes(Fraction(found[1]) * _UNITS[found[2]])


@dataclass(frozen=True)
class Word:
    """A value as written: its text without quotes, and the 1-based column where it starts."""

    text: str
    column: int
    quoted: bool = False


Written = Word | tuple[Word, ...]


@dataclass(frozen=True)
class Spec:
    """A parsed spec: the pass's name and its options as written, dashes kept."""

    name: str
    options: tuple[tuple[str, Written], ...]


def parse_specs(text: str) -> tuple[Spec, ...]:
    """Read specs separated by commas. Raises TextError that points at the wrong character."""
    return _Reader(text).specs()


def show_spec(name: str, options: dict[str, object]) -> str:
    """`name{option=value,...}` with sorted options; just the name when there are none."""
    if not options:
        return name
    shown = (f"{_dashed(key)}={show_value(value)}" for key, value in sorted(options.items()))
    return f"{name}{{{','.join(shown)}}}"


def show_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, tuple):
        return f"[{','.join(show_value(item) for item in value)}]"
    return str(value)


def read_value(written: Written, type: object) -> object:
    """A value of the field type `type`. Raises ValueError with what was wanted."""
    if typing.get_origin(type) is tuple:
        if isinstance(written, Word):
            raise ValueError('a list, like ["a","b"]')
        return tuple(word.text for word in written)
    wanted, read = _READERS[type]
    if isinstance(written, tuple) or (written.quoted and type is not str):
        raise ValueError(wanted)
    try:
        return read(written.text)
    except (ValueError, KeyError, OptionError) as error:
        raise ValueError(wanted) from error


_READERS: Final[dict[object, tuple[str, Callable[[str], object]]]] = {
    bool: ("true or false", {"true": True, "false": False}.__getitem__),
    int: ("a whole number", int),
    float: ("a number", float),
    str: ("a text", str),
    Bytes: ("an amount of memory, like 6GiB", Bytes.parse),
}


def _dashed(name: str) -> str:
    return name.replace("_", "-")


_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]=,]|[^\s{}\[\]=,"]+')


class _Reader:
    """Recursive descent over the tokens of one line of text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def specs(self) -> tuple[Spec, ...]:
        found: list[Spec] = []
        while True:
            found.append(self.spec())
            if self.peek() is None:
                return tuple(found)
            self.expect(",")

    def spec(self) -> Spec:
        name = self.word("a pass name")
        return Spec(name.text, self.options() if self.peek() == "{" else ())

    def options(self) -> tuple[tuple[str, Written], ...]:
        self.expect("{")
        found: list[tuple[str, Written]] = []
        while self.peek() != "}":
            if found:
                self.expect(",")
            key = self.word("an option").text
            self.expect("=")
            found.append((key, self.value()))
        self.expect("}")
        return tuple(found)

    def value(self) -> Written:
        if self.peek() != "[":
            return self.word("a value")
        self.expect("[")
        items: list[Word] = []
        while self.peek() != "]":
            if items:
                self.expect(",")
            items.append(self.word("a value"))
        self.expect("]")
        return tuple(items)

    def word(self, wanted: str) -> Word:
        token = self.peek()
        if token is None or token in "{}[]=,":
            self.fail(wanted)
        start, self.at = self.at, self.at + len(token)
        if token.startswith('"'):
            return Word(str(json.loads(token)), start + 1, quoted=True)
        return Word(token, start + 1)

    def expect(self, token: str) -> None:
        if self.peek() != token:
            self.fail(f"'{token}'")
        self.at += 1

    def peek(self) -> str | None:
        """The next token, None at the end; moves over blanks only."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        if self.at == len(self.text):
            return None
        found = _TOKEN.match(self.text, self.at)
        if found is None:
            self.fail("a closing quote")
        return found[0]

    def fail(self, wanted: str) -> NoReturn:
        found = self.text[self.at : self.at + 1]
        raise TextError(
            f"expected {wanted}, found {repr(found) if found else 'the end'}",
            who="pipeline",
            excerpt=Excerpt("<pipeline>", 1, self.at + 1, self.text),
            help="write pass,pass{option=value}, as in canonicalize,fuse{max-ops=8}",
        )
