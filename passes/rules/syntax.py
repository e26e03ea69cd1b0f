"""The syntax tree of a file of rules: what `rules.lark` says, before names mean anything.

Tokens keep their places, so that later complaints can point. lark is imported on first use.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

if TYPE_CHECKING:
    from lark import Lark, Token

    from rewright.ir.source import Source

# A lone token is a value, a meta variable, a name, a number, a word or a string.
Tree: TypeAlias = "Token | CallTree | FunctionTree | ListTree | EitherTree | ManyTree | KeywordTree"


class CallTree(NamedTuple):
    op: Token  # or a meta variable
    arguments: list[Tree]


class FunctionTree(NamedTuple):
    """A function, or an operator: `-` of one or two, `==`, `not`."""

    name: Token
    arguments: list[Tree]


class ListTree(NamedTuple):
    items: list[Tree]


class EitherTree(NamedTuple):
    options: list[Tree]


class ManyTree(NamedTuple):
    name: Token


class KeywordTree(NamedTuple):
    key: Token  # with its `=`
    value: Tree


class DimTree(NamedTuple):
    """`rest`: any number of dimensions; `size` is None for a bare `...`."""

    size: Tree | None
    rest: bool


class TensorTree(NamedTuple):
    name: Token
    kind: Token
    dims: list[DimTree] | None


class AttributeTree(NamedTuple):
    name: Token
    kind: Token
    arguments: list[Tree]


class BindTree(NamedTuple):
    results: list[Token]
    term: Tree
    like: Token | None


class ChoiceTree(NamedTuple):
    label: Token | None
    term: Tree


class VariantTree(NamedTuple):
    name: Token
    choices: list[ChoiceTree]


class RuleTree(NamedTuple):
    name: Token
    variants: list[VariantTree]
    kind: Token
    given: list[TensorTree | AttributeTree]
    match: list[BindTree]
    when: list[Tree]
    give: list[BindTree]


def read(source: Source) -> list[RuleTree]:
    """The rules of a text. Raises TextError with what was expected at the first mistake."""
    from lark import UnexpectedInput

    from rewright.passes.rules.syntax_errors import explain

    try:
        return cast("list[RuleTree]", parser().parse(source.text))
    except UnexpectedInput as error:
        raise explain(error, source) from None


@cache
def parser() -> Lark:
    """The parser; what it returns is a list of `RuleTree`."""
    from lark import Lark

    grammar = files("rewright.passes.rules").joinpath("rules.lark").read_text(encoding="utf-8")
    actions = cast(Any, _Actions())  # lark asks for a Transformer, and calls any object's methods
    return Lark(grammar, parser="lalr", lexer="contextual", transformer=actions)


class _Actions:
    """One method a rule of the grammar, called with what the rule's parts became."""

    def start(self, parts: list[Any]) -> list[RuleTree]:
        return parts

    def rule(self, parts: list[Any]) -> RuleTree:
        name, variants, kind, *rest = parts
        kinds: dict[str, list[Any]] = {"given": [], "match": [], "when": [], "give": []}
        for what, content in rest:
            kinds[what] += content
        return RuleTree(name, variants, kind, **kinds)

    def variants(self, parts: list[Any]) -> list[VariantTree]:
        return parts

    def variant(self, parts: list[Any]) -> VariantTree:
        return VariantTree(parts[0], parts[1:])

    def choice(self, parts: list[Any]) -> ChoiceTree:
        return ChoiceTree(parts[0] if len(parts) == 2 else None, parts[-1])

    def tensor(self, parts: list[Any]) -> tuple[str, list[TensorTree]]:
        return "given", [TensorTree(parts[0], parts[1], parts[2] if len(parts) == 3 else None)]

    def attribute(self, parts: list[Any]) -> tuple[str, list[AttributeTree]]:
        return "given", [AttributeTree(parts[0], parts[1], parts[2:])]

    def dims(self, parts: list[Any]) -> list[DimTree]:
        return parts

    def dim(self, parts: list[Any]) -> DimTree:
        rest = getattr(parts[-1], "type", None) == "REST"
        return DimTree(None if rest and len(parts) == 1 else parts[0], rest)

    def match(self, parts: list[Any]) -> tuple[str, list[BindTree]]:
        return "match", _binds(parts)

    def give(self, parts: list[Any]) -> tuple[str, list[BindTree]]:
        return "give", _binds(parts)

    def bind(self, parts: list[Any]) -> BindTree:
        like = parts.pop()[1] if type(parts[-1]) is tuple else None
        return BindTree(parts[:-1], parts[-1], like)

    def like(self, parts: list[Any]) -> tuple[str, Token]:
        return "like", parts[0]

    def when(self, parts: list[Any]) -> tuple[str, list[Tree]]:
        return "when", parts

    def compare(self, parts: list[Any]) -> FunctionTree:
        return FunctionTree(parts[1], [parts[0], parts[2]])

    sum = term = compare

    def minus(self, parts: list[Any]) -> FunctionTree:
        return FunctionTree(parts[0], parts[1:])

    negation = minus

    def call(self, parts: list[Any]) -> CallTree:
        return CallTree(parts[0], parts[1:])

    def function(self, parts: list[Any]) -> FunctionTree:
        return FunctionTree(parts[0], parts[1:])

    def either(self, parts: list[Any]) -> EitherTree:
        return EitherTree(parts)

    def items(self, parts: list[Any]) -> ListTree:
        return ListTree(parts)

    def keyword(self, parts: list[Any]) -> KeywordTree:
        return KeywordTree(*parts)

    def many(self, parts: list[Any]) -> ManyTree:
        return ManyTree(parts[0])


def _binds(parts: list[Any]) -> list[BindTree]:
    """A lone expression is what the whole rule is about; it has no name."""
    return parts if type(parts[0]) is BindTree else [BindTree([], parts[0], None)]
