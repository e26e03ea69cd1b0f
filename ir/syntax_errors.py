"""What to say about a text that the grammar does not accept: in its words, not the parser's.

A mistake is known by what the parser could go on with and what it found instead. (lark's own
`match_examples` also compares how much came before, so the same mistake would read differently in
the second line.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from rewright.ir.errors import TextError
from rewright.ir.show import VERSION
from rewright.ir.source import Source
from rewright.ir.syntax import parser

if TYPE_CHECKING:
    from lark import Lark, UnexpectedInput

END: Final = "$END"


class Mistake(NamedTuple):
    """A common mistake: every terminal of `could` would do, one of `found` came instead (any, when
    it is empty), and the code before ends in one of `after` (anything, when it is empty).

    `expected` replaces the list of what would do.
    """

    could: frozenset[str]
    found: frozenset[str]
    after: str
    expected: str | None
    help: str | None


def mistake(
    could: str, found: str = "", after: str = "", expected: str | None = None, help: str = ""
) -> Mistake:
    return Mistake(frozenset(could.split()), frozenset(found.split()), after, expected, help)


@dataclass(frozen=True)
class Vocabulary:
    """How messages about one language speak. `groups` are terminals that appear together, under one
    name, larger sets first; `unsaid` may follow almost anything, so that naming it would hide what
    was really missing."""

    parser: Callable[[], Lark]
    mistakes: tuple[Mistake, ...]
    groups: tuple[tuple[str, frozenset[str]], ...]
    names: Mapping[str, str]
    unsaid: frozenset[str]

    def terminal(self, name: str) -> str:
        found = self.names.get(name)
        return found or f"'{self.parser().get_terminal(name).pattern.value}'"


# What a word may be taken for where no word can stand.
_WORD: Final = "NAME KIND ROLE DEVICE_NAME"

# The first that applies speaks.
MISTAKES: Final = (
    mistake(
        "RETURN",
        found="RBRACE $END",
        expected="'return'",
        help="a graph ends in 'return' and its outputs, of which there may be none",
    ),
    mistake(
        "VALUE OP RETURN",
        found=f"{_WORD} EQUAL",
        expected="a node",
        help="nodes are written %a = aten.neg.default(%x) : f32[2, 3]",
    ),
    mistake("VALUE RETURN", found="KEY", expected="'%' before the name of a value"),
    mistake("VALUE", found=_WORD, expected="'%' before the name of a value"),
    mistake(
        "COLON NAME",
        found="LPAR",
        after=")",
        expected="the name of the nested graph",
        help="as in rw.fused(%x) body(%t: f32[2]) { ... } : f32[2]",
    ),
    mistake(
        "COLON",
        after=")}",
        expected="a result type after ':'",
        help="a node with results ends in their types, as in ': f32[2, 3]'",
    ),
    mistake(
        "COLON",
        found=f"COMMA RPAR {_WORD}",
        expected="':' and a type",
        help="inputs are written %x: f32[2, 3]",
    ),
    mistake(
        "EQUAL COMMA",
        found="COLON",
        help="types stand at the end, as in %a = aten.neg.default(%x) : f32[2, 3]",
    ),
    mistake(
        "RBRACE COMMA",
        found="VALUE OP UPDATE RETURN",
        help="'return' is the last line of a graph; ',' separates its outputs",
    ),
    mistake("IN", expected="bounds", help="sizes are bounded as in B0 in [1, 64], B1 in [2, inf]"),
    mistake("GRAPH REWRIGHT", expected="'rewright 1' or 'graph'", help="a text is one graph"),
    mistake("INT", found="GRAPH", expected="the version", help="write rewright 1"),
    mistake("RPAR", found="COMMA", after="0123456789", help="lists are written [1, 2]"),
)

# Terminals that appear together, under one name; larger sets first.
_GROUPS: Final[tuple[tuple[str, frozenset[str]], ...]] = (
    ("an argument", frozenset({"VALUE", "INT", "FLOAT", "STRING", "WORD", "NAME", "LSQB"})),
    ("a size", frozenset({"INT", "NAME", "LPAR", "MINUS", "MAX", "MIN"})),
    ("a node", frozenset({"VALUE", "OP"})),
    ("a name", frozenset({"NAME", "STRING"})),
)
# What may start an argument too.
_OTHER_ARGUMENTS: Final = frozenset(
    {"LPAR", "MINUS", "MAX", "MIN", "DEVICE", "LAYOUT", "MEMORY_FORMAT", "COMPLEX", "KEY"}
)
_NAMES: Final[Mapping[str, str]] = {
    "VALUE": "a value such as %x",
    "INT": "an integer",
    "FLOAT": "a number",
    "STRING": "a string",
    "NAME": "a name",
    "OP": "an operator such as aten.add.Tensor",
    "KIND": "a type such as f32[2, 3]",
    "ROLE": "a role",
    "LOCATION": "a place such as model.py:14",
    "DEVICE_NAME": "a device such as cuda:0",
    "PHASE": "'forward' or 'backward'",
    "INF": "'inf'",
    END: "the end of the text",
}
_TEXT: Final = Vocabulary(parser, MISTAKES, _GROUPS, _NAMES, frozenset({"OPERATOR", "MINUS"}))
_MOST_NAMED: Final = 6
_FOUND_WIDTH: Final = 30
_BRACKETS: Final = {"(": ")", "[": "]", "{": "}"}
_CLOSING: Final = frozenset({"RPAR", "RSQB", "RBRACE"})
# What shows, when it comes too early, that a bracket was forgotten.
_AFTER_BRACKET: Final = _CLOSING | {"COLON", "LBRACE", "RETURN", "EQUAL", "AT"}
_CODE: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"?|#[^\n]*|[()\[\]{}]|[^\s#"()\[\]{}]+')


def check_version(source: Source) -> None:
    """Refuse a text of another version before its grammar can be misread."""
    match = re.match(r"(?:\s|#[^\n]*(?:\n|$))*rewright\s+(\d+)", source.text)
    if match is None or match[1] == str(VERSION):
        return
    excerpt = source.excerpt(match.start(1), len(match[1]))
    message = f"this text is of version {match[1]}; this Rewright reads version {VERSION}"
    raise TextError(message, excerpt=excerpt)


class _Stop(NamedTuple):
    """Where the parser stopped: what it could go on with, what it found, the code before."""

    could: frozenset[str]
    terminal: str  # of a foreign character: empty
    found: str
    start: int
    code: list[re.Match[str]]

    @property
    def last(self) -> str:
        return self.code[-1][0][-1] if self.code else ""

    @property
    def end(self) -> int:
        """One past the last character of the code before."""
        return self.code[-1].end() if self.code else 0


def explain(error: UnexpectedInput, source: Source, vocabulary: Vocabulary = _TEXT) -> TextError:
    """The message for a syntax error: what was expected and found, where, and how to mend it."""
    stop = _stop(error, source.text)
    if stop.found == '"':
        return TextError("a string is not closed", excerpt=source.excerpt(stop.start))
    # Where something is missing at the end of a line, point there, not at what comes next.
    crosses = "\n" in source.text[stop.end : stop.start]
    ends_early = stop.terminal == END or (crosses and not {"RETURN", END} & stop.could)
    known = next((m for m in vocabulary.mistakes if _applies(m, stop)), None)
    help = known.help if known else ""
    if not help and (ends_early or stop.terminal in _AFTER_BRACKET) and stop.could & _CLOSING:
        help = _unclosed(source, stop.code)
    if stop.found == "'":
        help = "strings are written in double quotes"
    expected = (known and known.expected) or _list(stop.could, vocabulary)
    return TextError(
        f"expected {expected}, found {_quoted(stop.found)}",
        excerpt=source.excerpt(stop.end if ends_early else stop.start, len(stop.found)),
        help=help or None,
    )


def _stop(error: UnexpectedInput, text: str) -> _Stop:
    from lark import UnexpectedToken

    could = frozenset(error.interactive_parser.accepts())  # type: ignore[no-untyped-call]
    start = error.pos_in_stream or 0
    terminal, found = "", text[start : start + 1]
    if isinstance(error, UnexpectedToken):
        terminal, found = error.token.type, str(error.token)
    if terminal == END:
        start = len(text)
    code = [m for m in _CODE.finditer(text, 0, start) if m[0][0] != "#"]
    return _Stop(could, terminal, found, start, code)


def _applies(mistake: Mistake, stop: _Stop) -> bool:
    return (
        mistake.could <= stop.could
        and (not mistake.found or stop.terminal in mistake.found)
        and (not mistake.after or (stop.last != "" and stop.last in mistake.after))
    )


def _quoted(found: str) -> str:
    if not found:
        return _NAMES[END]
    shown = found if len(found) <= _FOUND_WIDTH else f"{found[:_FOUND_WIDTH]}..."
    return f'"{shown}"' if "'" in shown else f"'{shown}'"


def _unclosed(source: Source, code: list[re.Match[str]]) -> str:
    """Names the innermost open bracket."""
    opened: list[re.Match[str]] = []
    for match in code:
        if match[0] in _BRACKETS:
            opened.append(match)
        elif match[0] in _BRACKETS.values() and opened:
            opened.pop()
    if not opened:
        return ""
    place = source.excerpt(opened[-1].start())
    return f"'{opened[-1][0]}' at {place.line}:{place.column} is not closed"


def _list(could: frozenset[str], vocabulary: Vocabulary) -> str:
    left = set(could - vocabulary.unsaid) or set(could)
    names = []
    for name, group in vocabulary.groups:
        if group <= could and group & left:
            names.append(name)
            left -= group | (_OTHER_ARGUMENTS if name == "an argument" else frozenset())
    names += sorted(vocabulary.terminal(terminal) for terminal in left)
    if len(names) > _MOST_NAMED:
        names = [*names[:_MOST_NAMED], "something else"]
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
