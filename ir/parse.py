"""Read the text form: from the syntax tree to a graph, giving names and types their meaning."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import torch

from rewright.ir.constant import Constant
from rewright.ir.constant_text import Number, tensor_of
from rewright.ir.dim_text import parse_size
from rewright.ir.dims import Dim, Size, Symbol
from rewright.ir.errors import ImportFailure, TextError, did_you_mean
from rewright.ir.graph import ROLES, Arg, Graph, Input, Loc, Node, Value, leaves
from rewright.ir.ops import Op, op
from rewright.ir.show import LAYOUTS, MEMORY_FORMATS, WORDS, show_type
from rewright.ir.source import Source
from rewright.ir.syntax import (
    Argument,
    CallTree,
    GraphTree,
    InputTree,
    KeywordTree,
    ListTree,
    NodeTree,
    OriginTree,
    Sizes,
    SizeTree,
    SpecialTree,
    SymbolTree,
    TypeTree,
    read,
)
from rewright.ir.types import (
    CPU,
    DTYPE_NAMES,
    DTYPES,
    OTHER_KINDS,
    SCALAR_KINDS,
    OtherType,
    ScalarType,
    TensorType,
    Type,
)

if TYPE_CHECKING:
    from lark import Token


def parse(
    text: str, *, file: str = "<text>", constants: Mapping[str, torch.Tensor] | None = None
) -> Graph:
    """The graph that `text` describes; the line naming the version may be missing.

    `file` is what messages call the text. `constants` gives by digest the tensors that lie beside
    it; those it lacks are known by digest only. Raises TextError, which points at the mistake.
    """
    source = Source(text, file)
    try:
        return _Builder(source, constants or {}).graph(read(source).graph)
    except RecursionError:
        raise TextError(f"{file} is nested too deeply") from None


@dataclass
class _Scope:
    """The values of one graph as far as it has been read."""

    tree: GraphTree
    outer: _Scope | None
    values: dict[str, Value] = field(default_factory=dict)
    places: dict[str, Token] = field(default_factory=dict)


# What PyTorch calls dtypes, for those who write that.
_TORCH_NAMES: Final = {str(d).removeprefix("torch."): name for d, name in DTYPE_NAMES.items()}
_CONTENTS: Final = ("data", "sha256")
_CONSTANTS: Final[Mapping[str, Arg]] = {"none": None, "true": True, "false": False}


class _Builder:
    """Builds one top-level graph; holds what all of its nested graphs share."""

    def __init__(self, source: Source, constants: Mapping[str, torch.Tensor]) -> None:
        self.source = source
        self.constants = constants
        self.symbols: dict[str, Size] = {}
        self.sizes: dict[str, Size] = {}
        self.ops: dict[str, Op] = {}

    def graph(self, tree: GraphTree, outer: _Scope | None = None) -> Graph:
        scope = _Scope(tree, outer)
        for symbol in tree.symbols:
            self.symbol(symbol)
        inputs = tuple([self.input(i, scope) for i in tree.inputs])
        nodes = tuple([self.node(n, scope) for n in tree.block.nodes])
        targets = {i.value for i in inputs}
        updates = [(self.value(u.target, scope), u) for u in tree.block.updates]
        stray = next((u for target, u in updates if target not in targets), None)
        if stray is not None:
            raise self.source.error(f"{stray.target} is not an input of the graph", stray.target)
        return Graph(
            self.name(tree.name),
            inputs,
            nodes,
            tuple([self.arg(a, scope) for a in tree.block.outputs]),
            tuple([(target, self.value(u.value, scope)) for target, u in updates]),
        )

    def symbol(self, tree: SymbolTree) -> None:
        name = str(tree.name)
        if name in WORDS:
            raise self.source.error(f"'{name}' is a word of the language, no symbol", tree.name)
        if name in self.symbols:
            raise self.source.error(f"symbol {name} is declared twice", tree.name)
        low = self.integer(tree.low)
        high = None if tree.high == "inf" else self.integer(tree.high)
        if high is not None and high < low:
            raise self.source.error(f"no size of {name} lies in [{low}, {high}]", tree.low)
        divisor = 1 if tree.divisor is None else self.integer(tree.divisor)
        if tree.divisor is not None and divisor < 1:
            raise self.source.error("a divisor is at least 1", tree.divisor)
        hint = None if tree.hint is None else self.integer(tree.hint)
        self.symbols[name] = Dim.of(Symbol(name, hint, low, high, divisor))

    def input(self, tree: InputTree, scope: _Scope) -> Input:
        role = "input" if tree.role is None else str(tree.role)
        if tree.role is not None and role not in ROLES:
            message = f"unknown role '{role}'{did_you_mean(role, ROLES)}"
            raise self.source.error(message, tree.role, help=f"roles are {', '.join(ROLES)}")
        value = self.define(tree.name, self.type(tree.type), scope)
        return Input(value, role, tree.mutable)

    # --- nodes

    def node(self, tree: NodeTree, scope: _Scope) -> Node:
        operator = self.op(tree.call.op)
        args, kwargs = self.arguments(tree.call, scope)
        graphs = self.graphs(tree.call, scope)
        types = [self.type(t) for t in tree.types]
        if len(types) != len(tree.results):
            message = f"{len(tree.results)} results, but types for {len(types)}"
            raise self.source.error(message, tree.types[0].kind)
        if operator.name == "rw.constant":
            kwargs = self.constant(tree, kwargs, types)
        results = tuple(
            [self.define(r, t, scope) for r, t in zip(tree.results, types, strict=True)]
        )
        return Node(operator, args, kwargs, results, graphs, *self.origin(tree.origin))

    def op(self, token: Token) -> Op:
        name = str(token)
        if name not in self.ops:
            try:
                self.ops[name] = op(name)
            except ImportFailure as error:
                raise self.source.error(error.message, token) from None
        return self.ops[name]

    def arguments(
        self, tree: CallTree, scope: _Scope
    ) -> tuple[tuple[Arg, ...], tuple[tuple[str, Arg], ...]]:
        args: list[Arg] = []
        kwargs: dict[str, Arg] = {}
        for item in tree.args:
            if isinstance(item, KeywordTree):
                key = _key(item)
                if key in kwargs:
                    raise self.source.error(f"argument '{key}' is given twice", item.key)
                kwargs[key] = self.arg(item.value, scope)
            elif kwargs:
                last = next(i.key for i in reversed(tree.args) if isinstance(i, KeywordTree))
                raise self.source.error("arguments with names come after those without", last)
            else:
                args.append(self.arg(item, scope))
        return tuple(args), tuple(kwargs.items())

    def graphs(self, tree: CallTree, scope: _Scope) -> tuple[tuple[str, Graph], ...]:
        graphs: dict[str, Graph] = {}
        for nested in tree.graphs:
            key = self.name(nested.key)
            if key in graphs:
                raise self.source.error(f"a second nested graph is called '{key}'", nested.key)
            graphs[key] = self.graph(nested.graph, scope)
        return tuple(graphs.items())

    def constant(
        self, tree: NodeTree, kwargs: tuple[tuple[str, Arg], ...], types: list[Type]
    ) -> tuple[tuple[str, Arg], ...]:
        """The arguments with `data=` or `sha256=` replaced by the constant they describe."""
        given = [i for i in tree.call.args if isinstance(i, KeywordTree) and _key(i) in _CONTENTS]
        if len(given) != 1 or len(types) != 1 or not isinstance(types[0], TensorType):
            message = 'rw.constant has data=[...] or sha256="...", and one tensor as its result'
            raise self.source.error(message, tree.call.op)
        key = _key(given[0])
        contents = dict(kwargs)[key]
        try:
            made = (
                self.loaded(str(contents), types[0])
                if key == "sha256"
                else _made(contents, types[0])
            )
        except TextError as error:
            raise self.source.error(error.message, given[0].key) from None
        return tuple([("value", made) if k == key else (k, a) for k, a in kwargs])

    def loaded(self, sha256: str, type: TensorType) -> Constant:
        data = self.constants.get(sha256)
        if data is not None and (data.dtype, tuple(data.shape)) != (type.dtype, type.shape):
            found = show_type(TensorType(data.dtype, tuple(data.shape)))
            raise TextError(f"the data of this constant is {found}, not {show_type(type)}")
        return Constant(sha256, data)

    def origin(self, tree: OriginTree) -> tuple[Loc | None, int | None, str | None]:
        seq = None if tree.seq is None else self.integer(tree.seq)
        phase = None if tree.phase is None else str(tree.phase)
        if not tree.location:
            return None, seq, phase
        if len(tree.location) == 2:
            file, line = self.string(tree.location[0]), self.integer(tree.location[1])
        else:
            file, _, digits = tree.location[0].rpartition(":")
            line = int(digits)
        return Loc(file, line), seq, phase

    # --- values

    def define(self, token: Token, type: Type, scope: _Scope) -> Value:
        name = self.value_name(token)
        if name in scope.values:
            first = scope.places[name].line
            raise self.source.error(f"{token} is defined twice, first on line {first}", token)
        value = Value(name, type)
        scope.values[name] = value
        scope.places[name] = token
        return value

    def value(self, token: Token, scope: _Scope) -> Value:
        name = self.value_name(token)
        found = scope.values.get(name)
        if found is None:
            raise self.undefined(token, scope)
        return found

    def undefined(self, token: Token, scope: _Scope) -> TextError:
        later = next((t for t in _results(scope.tree) if t == token), None)
        if later is not None:
            message = f"{token} is used before it is defined on line {later.line}"
            return self.source.error(message, token, help="nodes stand in an order they can run in")
        if scope.outer is not None and self.value_name(token) in scope.outer.values:
            help = "a nested graph sees its own inputs only; pass the value as an argument"
            return self.source.error(
                f"{token} belongs to the graph around this one", token, help=help
            )
        near = did_you_mean(str(token), [f"%{name}" for name in scope.values])
        return self.source.error(f"undefined value {token}{near}", token)

    def value_name(self, token: Token) -> str:
        return token[1:] if token[1] != '"' else self.string(token, 1)

    # --- types

    def type(self, tree: TypeTree) -> Type:
        kind = str(tree.kind)
        if tree.shape is not None:
            return self.tensor(tree)
        if kind in SCALAR_KINDS:
            return ScalarType(kind, None if tree.size is None else self.size(tree.size))
        if kind in OTHER_KINDS and tree.size is None:
            return OtherType(kind)
        if kind in DTYPES:
            message = f"a tensor type needs its shape, as in {kind}[2, 3]"
            raise self.source.error(message, tree.kind)
        near = did_you_mean(kind, (*SCALAR_KINDS, *OTHER_KINDS, *DTYPES))
        raise self.source.error(f"unknown type '{kind}'{near}", tree.kind)

    def tensor(self, tree: TypeTree) -> TensorType:
        dtype = DTYPES.get(tree.kind)
        if dtype is None:
            raise self.unknown_dtype(tree.kind)
        shape = tuple([self.size(s) for s in tree.shape or ()])
        for size, written in zip(shape, tree.shape or (), strict=True):
            if isinstance(size, int) and size < 0:
                raise self.source.error("a size cannot be negative", *_ends(written))
        strides = None if tree.strides is None else tuple([self.size(s) for s in tree.strides])
        if strides is not None and len(strides) != len(shape):
            message = f"{len(shape)} dimensions, but strides for {len(strides)}"
            raise self.source.error(message, tree.kind)
        device = CPU if tree.device is None else self.device(tree.device, str(tree.device))
        return TensorType(dtype, shape, strides, device)

    def unknown_dtype(self, token: Token) -> TextError:
        name = str(token)
        if name in _TORCH_NAMES:
            message = f"unknown dtype '{name}'; it is called '{_TORCH_NAMES[name]}' here"
            return self.source.error(message, token)
        near = did_you_mean(name, DTYPES)
        help = None if near else f"dtypes are {', '.join(DTYPES)}"
        return self.source.error(f"unknown dtype '{name}'{near}", token, help=help)

    def device(self, token: Token, name: str) -> torch.device:
        try:
            return torch.device(name)
        except RuntimeError:
            raise self.source.error(f"unknown device '{name}'", token) from None

    def size(self, tree: Sizes) -> Size:
        tokens = _tokens(tree)
        text = " ".join(tokens)
        found = self.sizes.get(text)
        if found is not None:
            return found
        for token in tokens:
            if token.type == "NAME" and token not in self.symbols:
                raise self.unknown_symbol(token)
        try:
            size = parse_size(text, self.symbols)
        except (TextError, ZeroDivisionError, ValueError):
            raise self.source.error("this is not a size", *_ends(tree)) from None
        self.sizes[text] = size
        return size

    def unknown_symbol(self, token: Token) -> TextError:
        message = f"unknown symbol '{token}'{did_you_mean(str(token), self.symbols)}"
        known = ", ".join(self.symbols) or "no symbols"
        return self.source.error(message, token, help=f"'where' declares {known}")

    # --- arguments

    def arg(self, tree: Argument, scope: _Scope) -> Arg:
        if isinstance(tree, ListTree):
            return tuple([self.arg(item, scope) for item in tree.items])
        if isinstance(tree, SizeTree):
            return self.size(tree)
        if isinstance(tree, SpecialTree):
            return self.special(tree)
        return self.atom(tree, scope)

    def atom(self, token: Token, scope: _Scope) -> Arg:
        kind = token.type
        if kind == "VALUE":
            return self.value(token, scope)
        if kind == "INT":
            return self.integer(token)
        if kind == "WORD":
            return _CONSTANTS[token]
        if kind == "FLOAT":
            return _float(token)
        return self.string(token) if kind == "STRING" else self.lone_name(token, scope)

    def lone_name(self, token: Token, scope: _Scope) -> Arg:
        """A symbol or a dtype."""
        name = str(token)
        if name in self.symbols:
            return self.symbols[name]
        if name in DTYPES:
            return DTYPES[name]
        if name in _TORCH_NAMES:
            raise self.unknown_dtype(token)
        if name in scope.values:
            raise self.source.error(f"'{name}' is no symbol", token, help=f"the value is %{name}")
        near = did_you_mean(name.lower(), (*self.symbols, *_CONSTANTS, *DTYPES))
        raise self.source.error(f"'{name}' is neither a symbol nor a dtype{near}", token)

    def special(self, tree: SpecialTree) -> Arg:
        token = tree.tokens[0]
        if tree.kind == "device":
            return self.device(token, self.string(token))
        if tree.kind == "complex":
            real, imaginary = map(_float, tree.tokens)
            return complex(real, imaginary)
        known: Mapping[str, Any] = LAYOUTS if tree.kind == "layout" else MEMORY_FORMATS
        if token not in known:
            what = tree.kind.replace("_", " ")
            raise self.source.error(f"unknown {what} '{token}'{did_you_mean(token, known)}", token)
        found: Arg = known[token]
        return found

    # --- words

    def integer(self, token: Token) -> int:
        try:
            return int(token)
        except ValueError:  # Python reads at most some thousands of digits
            raise self.source.error("this number is too long", token) from None

    def string(self, token: Token, skip: int = 0) -> str:
        try:
            text: str = json.loads(token[skip:], strict=False)
        except json.JSONDecodeError:
            help = 'escapes are those of JSON: \\" \\\\ \\n \\t \\u0041'
            raise self.source.error("unknown escape in a string", token, help=help) from None
        return text

    def name(self, token: Token) -> str:
        return self.string(token) if token.type == "STRING" else str(token)


def _float(token: Token) -> float:
    # One object for all: graphs that hold a NaN are equal only when it is the same one.
    return math.nan if token.endswith("nan") else float(token)


def _made(arg: Arg, type: TensorType) -> Constant:
    values: list[Number] = []
    for leaf in leaves(arg):
        if not isinstance(leaf, Number):
            raise TextError("data=[...] holds numbers only")
        values.append(leaf)
    return Constant.of(tensor_of(values, type))


def _results(tree: GraphTree) -> Iterable[Token]:
    return chain.from_iterable(node.results for node in tree.block.nodes)


def _tokens(tree: Sizes) -> list[Token]:
    return tree.tokens if isinstance(tree, SizeTree) else [tree]


def _ends(tree: Sizes) -> tuple[Token, Token]:
    """The first and the last token of a size."""
    tokens = _tokens(tree)
    return tokens[0], tokens[-1]


def _key(tree: KeywordTree) -> str:
    return tree.key[:-1].rstrip()
