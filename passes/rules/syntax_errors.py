"""What to say about a file of rules that the grammar does not accept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rewright.ir import TextError
from rewright.ir.source import Source
from rewright.ir.syntax_errors import Vocabulary, mistake
from rewright.ir.syntax_errors import explain as explain_with
from rewright.passes.rules.syntax import parser

if TYPE_CHECKING:
    from lark import UnexpectedInput

_MISTAKES: Final = (
    mistake(
        "KIND FOR",
        expected="'exact', 'reassociating' or 'approximate'",
        help="a rule says how equal its two sides are: the same bits, or in real arithmetic",
    ),
    mistake(
        "RULE",
        found="OP NAME VALUE",
        expected="the rule's name",
        help="names are words with dashes, as permute-of-permute",
    ),
    mistake(
        "GIVE WHEN",
        found="RBRACE",
        expected="'give'",
        help="a rule ends in 'give' and what takes the place of the match",
    ),
    mistake(
        "MATCH",
        found="WHEN GIVE",
        expected="'match'",
        help="declarations come first, then match, when, give",
    ),
    mistake(
        "WHEN GIVE",
        found="COLON",
        help="declarations come before 'match'",
    ),
)
_EXPRESSION: Final = frozenset({"VALUE", "NAME", "INT", "FLOAT", "STRING", "OP", "LPAR"})
_NAMES: Final = {
    "VALUE": "a value such as %x",
    "NAME": "a name",
    "INT": "a whole number",
    "FLOAT": "a number",
    "STRING": "a string",
    "OP": "an operator such as aten.add.Tensor",
    "META": "a choice such as $op",
    "RULE": "the rule's name",
    "KIND": "'exact', 'reassociating' or 'approximate'",
    "LABEL": "a label",
    "COMPARE": "a comparison",
    "$END": "the end of the text",
}
_SAID_WITH_EXPRESSIONS: Final = frozenset({"MINUS", "LSQB", "WORD", "META", "NOT", "KEY"})
_VOCABULARY: Final = Vocabulary(
    parser,
    _MISTAKES,
    (
        ("an expression", _EXPRESSION | _SAID_WITH_EXPRESSIONS - {"NOT", "KEY"}),
        ("an expression", _EXPRESSION),
    ),
    _NAMES,
    frozenset({"PLUS", "MINUS", "TIMES", "REST", "COMPARE"}),
)


def explain(error: UnexpectedInput, source: Source) -> TextError:
    """The message for a syntax error in a file of rules."""
    return explain_with(error, source, _VOCABULARY)
