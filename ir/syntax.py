"""The syntax tree of the text form: what `ir/text.lark` says, before names and types mean anything.

Tokens keep their places, so that later complaints can point. lark is imported on first use.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from rewright.ir.source import Source

if TYPE_CHECKING:
    from lark import Lark, Token

# A lone token is an integer or a name.
Sizes: TypeAlias = "Token | SizeTree"
# A lone token is a value, a number, a string, a name, or one of none, true, false.
Argument: TypeAlias = "Token | SizeTree | ListTree | SpecialTree"


class SizeTree(NamedTuple):
    """A size expression, flat: how its operators bind is for `dim_text` to say."""

    tokens: list[Token]


class ListTree(NamedTuple):
    items: list[Argument]


class SpecialTree(NamedTuple):
    """`device("cuda:0")`, `layout(strided)`, `memory_format(preserve)`, `complex(1.0, 2.0)`."""

    kind: str
    tokens: list[Token]


class KeywordTree(NamedTuple):
    key: Token  # with its `=`
    value: Argument


class TypeTree(NamedTuple):
    """`shape` is None for what is not a tensor; `size` is a scalar's."""

    kind: Token
    shape: list[Sizes] | None = None
    strides: list[Sizes] | None = None
    device: Token | None = None
    size: Sizes | None = None


class InputTree(NamedTuple):
    name: Token
    type: TypeTree
    role: Token | None
    mutable: bool


class SymbolTree(NamedTuple):
    name: Token
    low: Token
    high: Token
    hint: Token | None
    divisor: Token | None


class OriginTree(NamedTuple):
    location: list[Token]  # `model.py:14` in one token, or a string and an integer; may be empty
    seq: Token | None
    phase: Token | None


class CallTree(NamedTuple):
    op: Token
    args: list[Argument | KeywordTree]
    graphs: list[NestedTree]


class NodeTree(NamedTuple):
    results: list[Token]
    call: CallTree
    types: list[TypeTree]
    origin: OriginTree


class UpdateTree(NamedTuple):
    target: Token
    value: Token


class BlockTree(NamedTuple):
    nodes: list[NodeTree]
    updates: list[UpdateTree]
    outputs: list[Argument]


class GraphTree(NamedTuple):
    name: Token
    inputs: list[InputTree]
    symbols: list[SymbolTree]
    block: BlockTree


class NestedTree(NamedTuple):
    key: Token
    graph: GraphTree


class FileTree(NamedTuple):
    version: Token | None
    graph: GraphTree


def read(source: Source) -> FileTree:
    """The syntax tree of a text. Raises TextError with what was expected at the first mistake."""
    from lark import UnexpectedInput

    from rewright.ir.syntax_errors import check_version, explain

    check_version(source)
    try:
        return cast(FileTree, parser().parse(source.text))
    except UnexpectedInput as error:
        raise explain(error, source) from None


@cache
def parser() -> Lark:
    """The parser; what it returns is a `FileTree`."""
    from lark import Lark

    grammar = files("rewright.ir").joinpath("text.lark").read_text(encoding="utf-8")
    actions = cast(Any, _Actions())  # lark asks for a Transformer, and calls any object's methods
    return Lark(grammar, parser="lalr", lexer="contextual", transformer=actions)


class _Actions:
    """One method a rule of the grammar, called with what the rule's parts became."""

    def start(self, parts: list[Any]) -> FileTree:
        version = parts[0] if len(parts) == 2 else None
        return FileTree(version, parts[-1])

    def version(self, parts: list[Any]) -> Token:
        return cast("Token", parts[0])

    def graph(self, parts: list[Any]) -> GraphTree:
        name, inputs, *where, block = parts
        return GraphTree(name, inputs, where[0] if where else [], block)

    def nested(self, parts: list[Any]) -> NestedTree:
        key, inputs, block = parts[0], parts[-2], parts[-1]
        name = parts[1] if len(parts) == 4 else key
        return NestedTree(key, GraphTree(name, inputs, [], block))

    def inputs(self, parts: list[Any]) -> list[InputTree]:
        return parts

    def input(self, parts: list[Any]) -> InputTree:
        words = {token.type: token for token in parts[2:]}
        return InputTree(parts[0], parts[1], words.get("ROLE"), "MUTABLE" in words)

    def where(self, parts: list[Any]) -> list[SymbolTree]:
        return parts

    def symbol(self, parts: list[Any]) -> SymbolTree:
        name, low, high, *facts = parts
        known = dict(facts)
        return SymbolTree(name, low, high, known.get("hint"), known.get("divisor"))

    def hint(self, parts: list[Any]) -> tuple[str, Token]:
        return "hint", parts[0]

    def divisor(self, parts: list[Any]) -> tuple[str, Token]:
        return "divisor", parts[0]

    def block(self, parts: list[Any]) -> BlockTree:
        nodes = [part for part in parts if type(part) is NodeTree]
        return BlockTree(nodes, parts[len(nodes) : -1], parts[-1])

    def node(self, parts: list[Any]) -> NodeTree:
        return NodeTree(*parts)

    def effect(self, parts: list[Any]) -> NodeTree:
        return NodeTree([], parts[0], [], parts[1])

    def update(self, parts: list[Any]) -> UpdateTree:
        return UpdateTree(*parts)

    def returns(self, parts: list[Any]) -> list[Argument]:
        return parts

    def results(self, parts: list[Any]) -> list[Token]:
        return parts

    def types(self, parts: list[Any]) -> list[TypeTree]:
        return parts

    def origin(self, parts: list[Any]) -> OriginTree:
        if not parts:
            return _NOWHERE
        location = parts.pop(0) if type(parts[0]) is list else []
        words = {token.type: token for token in parts}
        return OriginTree(location, words.get("INT"), words.get("PHASE"))

    def location(self, parts: list[Any]) -> list[Token]:
        return parts

    def call(self, parts: list[Any]) -> CallTree:
        graphs = [part for part in parts if type(part) is NestedTree]
        return CallTree(parts[0], parts[1 : len(parts) - len(graphs)], graphs)

    def keyword(self, parts: list[Any]) -> KeywordTree:
        return KeywordTree(*parts)

    def items(self, parts: list[Any]) -> ListTree:
        return ListTree(parts)

    def device(self, parts: list[Any]) -> SpecialTree:
        return SpecialTree("device", parts)

    def layout(self, parts: list[Any]) -> SpecialTree:
        return SpecialTree("layout", parts)

    def memory_format(self, parts: list[Any]) -> SpecialTree:
        return SpecialTree("memory_format", parts)

    def complex(self, parts: list[Any]) -> SpecialTree:
        return SpecialTree("complex", parts)

    def tensor(self, parts: list[Any]) -> TypeTree:
        kind, shape, *rest = parts
        strides = rest[0] if rest and type(rest[0]) is list else None
        device = rest[-1] if rest and rest[-1] is not strides else None
        return TypeTree(kind, shape, strides, device)

    def scalar(self, parts: list[Any]) -> TypeTree:
        return TypeTree(parts[0], size=parts[1] if len(parts) == 2 else None)

    def shape(self, parts: list[Any]) -> list[Sizes]:
        return parts

    def strides(self, parts: list[Any]) -> list[Sizes]:
        return cast("list[Sizes]", parts[0])

    def place(self, parts: list[Any]) -> Token:
        return cast("Token", parts[0])

    def size(self, parts: list[Any]) -> SizeTree:
        return SizeTree(parts)


_NOWHERE = OriginTree([], None, None)
