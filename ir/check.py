"""The checks of a graph: what holds at every level, and what each level allows.

A graph that passes is SSA in an order that can run, says the truth about types, and holds only what
its level may hold. Messages name the node, what was wanted and what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from rewright.ir.check_storage import check_storage
from rewright.ir.dims import Dim, Symbol
from rewright.ir.effects import effect_of, effects_of, runs_as
from rewright.ir.errors import CheckError, OptionError, did_you_mean
from rewright.ir.fault import Fault
from rewright.ir.graph import Arg, Graph, Node, Value, leaves, sizes_of
from rewright.ir.ops import Effect, Kind, Op
from rewright.ir.show import show_type
from rewright.ir.types import ScalarType, TensorType


@dataclass(frozen=True)
class Level:
    """What graphs between two passes may hold.

    `dialect` names the levels whose `rw.*` operators are allowed; `also` are rules for the whole
    graph. Every level takes ATen, functional, with effects other than mutation.
    """

    name: str
    dialect: tuple[str, ...]
    also: tuple[Callable[[Graph], None], ...] = ()

    @property
    def has_storage(self) -> bool:
        """Buffers are allocated, written by `out=`, and freed."""
        return "kernel" in self.dialect


LEVELS: Final[Mapping[str, Level]] = {
    level.name: level
    for level in (
        Level("aten", ("aten",)),
        Level("fused", ("aten", "fused")),
        Level("kernel", ("aten", "fused", "kernel"), also=(check_storage,)),
    )
}


def check(graph: Graph, level: str) -> None:
    """Raises CheckError, pointing at the node, when `graph` breaks a rule of its level."""
    found = LEVELS.get(level)
    if found is None:
        raise OptionError(f"no level '{level}'{did_you_mean(level, LEVELS)}", who="check")
    try:
        _Checker(graph, found, {}).run()
        for rule in found.also:
            rule(graph)
    except Fault as fault:
        raise fault.located(graph) from None


def check_effects(before: Graph, after: Graph) -> None:
    """Raises CheckError when nodes with an effect were dropped, repeated, merged or reordered on
    the way from one graph to the other."""
    old, new = _effects(before), _effects(after)
    for effect in Effect:
        ran, runs = old.get(effect, []), new.get(effect, [])
        if ran == runs:
            continue
        raise CheckError(
            f"nodes with the effect {effect.value} keep their number and order: they were "
            f"{', '.join(ran) or 'none'}, and are {', '.join(runs) or 'none'}"
        )


def _effects(graph: Graph) -> dict[Effect, list[str]]:
    """What runs with each effect, in order."""
    found: dict[Effect, list[str]] = {}
    for node in graph.nodes:
        if node.op.has_body:
            for inner, names in _effects(node.graph("body")).items():
                found.setdefault(inner, []).extend(names)
        elif node.op.kind is not Kind.STORAGE:
            for effect in effects_of(node):
                found.setdefault(effect, []).append(runs_as(node))
    return found


class _Checker:
    """One walk over one graph; `symbols` are those that the graph around it has defined."""

    def __init__(self, graph: Graph, level: Level, symbols: Mapping[str, Symbol]) -> None:
        self.graph = graph
        self.level = level
        self.values: dict[str, Value] = {}
        self.symbols = dict(symbols)

    def run(self) -> None:
        for input in self.graph.inputs:
            self.define(input.value, None)
            self.declare(_symbols(sizes_of(input.value.type)), None)
        for node in self.graph.nodes:
            self.node(node)
        for leaf in leaves(self.graph.outputs):
            if isinstance(leaf, Value):
                self.read(leaf, None, "the graph returns")
            elif isinstance(leaf, Dim):
                self.known(leaf.symbols, None)
        self.updates()

    def node(self, node: Node) -> None:
        _check_operator(node, self.level)
        for leaf in _leaves(node):
            if isinstance(leaf, Value):
                if self.values.get(leaf.name) is not leaf:
                    self.read(leaf, node, f"{_spell(node)} reads")
            elif isinstance(leaf, Dim):
                self.known(leaf.symbols, node)
        for _, graph in node.graphs:
            inner = LEVELS["aten"] if node.op.has_body else self.level
            _Checker(graph, inner, self.symbols).run()
        if node.op.has_body:
            _check_region(node)
        for result in node.results:
            self.define(result, node)
            self.result(result, node)

    # --- values

    def define(self, value: Value, node: Node | None) -> None:
        if value.name in self.values:
            raise Fault(
                f"%{value.name} is defined twice", node, help="names are unique within a graph"
            )
        self.values[value.name] = value

    def read(self, value: Value, node: Node | None, reader: str) -> None:
        found = self.values.get(value.name)
        if found is None:
            defined = any(v.name == value.name for v in self.graph.values)
            why = "only defined after it" if defined else "not defined in the graph"
            raise Fault(f"{reader} %{value.name}, which is {why}", node, value.name)
        if found != value:
            raise Fault(
                f"{reader} %{value.name} as {show_type(value.type)}, but it is defined as "
                f"{show_type(found.type)}",
                node,
                value.name,
            )

    # --- symbols

    def result(self, value: Value, node: Node) -> None:
        """A number defines the symbol that it is, a tensor those that nobody saw before."""
        if isinstance(value.type, TensorType) and not _is_symbolic(value.type):
            return
        symbols = _symbols(sizes_of(value.type))
        is_number = isinstance(value.type, ScalarType)
        fresh = [s for s in symbols if is_number or s.hint is None]
        self.declare(fresh, node)
        self.known(symbols, node)

    def declare(self, symbols: Iterable[Symbol], node: Node | None) -> None:
        for symbol in symbols:
            self.symbols.setdefault(symbol.name, symbol)
        self.known(symbols, node)

    def known(self, symbols: Iterable[Symbol], node: Node | None) -> None:
        for symbol in symbols:
            found = self.symbols.get(symbol.name)
            where = "the graph" if node is None else _spell(node)
            if found is None:
                raise Fault(
                    f"{where} has a size {symbol.name} that no input shows and no node defines",
                    node,
                )
            if found != symbol:
                raise Fault(
                    f"{where} knows other facts about the size {symbol.name} than the rest of the "
                    f"graph: {_facts(symbol)}, not {_facts(found)}",
                    node,
                )

    # --- updates

    def updates(self) -> None:
        inputs = {i.value: i for i in self.graph.inputs}
        updated: set[Value] = set()
        for target, value in self.graph.updates:
            name = f"%{target.name}"
            self.read(value, None, f"the update of {name} reads")
            input = inputs.get(target)
            if input is None:
                raise Fault(f"{name} is updated, but it is not an input")
            if not input.mutable:
                raise Fault(f"{name} is updated, but it is not a mutable input")
            if target in updated:
                raise Fault(f"{name} is updated twice")
            updated.add(target)
            if _shown(value) != _shown(target):
                raise Fault(
                    f"{name} is {show_type(target.type)} and is updated with %{value.name}, which "
                    f"is {show_type(value.type)}: shape, dtype and device must be the same"
                )


# --- one node -----------------------------------------------------------------------------------


def _check_operator(node: Node, level: Level) -> None:
    """The operator belongs to the level, and is called as its schema says."""
    op = node.op
    if op.dialect is not None and op.dialect.level not in level.dialect:
        raise Fault(
            f"{_spell(node)} belongs to the {op.dialect.level} level, but the graph is at the "
            f"{level.name} level",
            node,
        )
    if op.effect is Effect.MUTATION and op.kind is not Kind.STORAGE:
        raise Fault(f"{_spell(node)} writes one of its arguments; graphs are functional", node)
    calling = _calling(op)
    if calling is not None:
        _check_call(node, calling, level)
    elif op.dialect is None and op.namespace == "py":
        _check_results(node, 1)


@dataclass(frozen=True)
class Calling:
    """What a schema says of calls: names in order, those without default, number of results."""

    positional: tuple[str, ...]
    keywords: frozenset[str]
    required: tuple[str, ...]
    results: int | None  # None: a list of any length


@cache
def _calling(op: Op) -> Calling | None:
    if op.schema is None:
        return None
    arguments, returns = op.schema.arguments, op.schema.returns
    is_list = len(returns) == 1 and returns[0].type.kind() == "ListType"
    return Calling(
        positional=tuple(a.name for a in arguments if not a.kwarg_only),
        keywords=frozenset(a.name for a in arguments),
        required=tuple(a.name for a in arguments if not a.has_default_value()),
        results=None if is_list else len(returns),
    )


def _check_call(node: Node, calling: Calling, level: Level) -> None:
    given = calling.positional[: len(node.args)]
    if len(node.args) > len(calling.positional):
        raise Fault(
            f"{_spell(node)} has {len(node.args)} arguments by position, and takes at most "
            f"{len(calling.positional)}",
            node,
        )
    named = [name for name, _ in node.kwargs if not (name == "out" and level.has_storage)]
    for name in named:
        if name not in calling.keywords or name in given:
            raise Fault(f"{_spell(node)} has no argument '{name}' left to give by name", node)
    missing = [name for name in calling.required if name not in given and name not in named]
    if missing:
        raise Fault(f"{_spell(node)} is called without its argument '{missing[0]}'", node)
    if calling.results is not None:
        _check_results(node, calling.results)


def _check_results(node: Node, wanted: int) -> None:
    if len(node.results) != wanted:
        raise Fault(f"{_spell(node)} has {len(node.results)} results, and returns {wanted}", node)


def _check_region(node: Node) -> None:
    """Operands and results are those of the body, and running the body does nothing else."""
    dialect = node.op.dialect
    name = dialect.body if dialect is not None else None
    body = next((graph for key, graph in node.graphs if key == name), None)
    if body is None:
        raise Fault(f"{_spell(node)} has no graph '{name}' that says what it computes", node)
    _check_pairs(node, "operands", node.args, [i.value for i in body.inputs])
    _check_pairs(node, "results", node.results, body.outputs)
    if body.updates:
        raise Fault(f"the body of {_spell(node)} updates %{body.updates[0][0].name}", node)
    for inner in body.nodes:
        effect = effect_of(inner)
        if effect is not Effect.NONE:
            raise Fault(
                f"{_spell(node)} holds {_spell(inner)}, which has an effect ({effect.value})", node
            )


def _check_pairs(node: Node, what: str, own: Iterable[Arg], inner: Iterable[Arg]) -> None:
    outside, inside = list(own), list(inner)
    if len(outside) != len(inside):
        raise Fault(f"{_spell(node)} has {len(outside)} {what}, and its body {len(inside)}", node)
    for a, b in zip(outside, inside, strict=True):
        if not isinstance(a, Value) or not isinstance(b, Value):
            raise Fault(f"the {what} of {_spell(node)} and of its body must be values", node)
        if a.type != b.type:
            raise Fault(
                f"among the {what} of {_spell(node)}, %{a.name} is {show_type(a.type)}, but in "
                f"its body %{b.name} is {show_type(b.type)}",
                node,
                a.name,
            )


# --- words and sizes ----------------------------------------------------------------------------


def _spell(node: Node) -> str:
    """`%c (aten.add.Tensor)`."""
    return f"%{node.name} ({node.op})" if node.results else str(node.op)


def _facts(symbol: Symbol) -> str:
    high = "inf" if symbol.high is None else symbol.high
    hint = "" if symbol.hint is None else f" hint {symbol.hint}"
    divisor = "" if symbol.divisor == 1 else f" divisor {symbol.divisor}"
    return f"in [{symbol.low}, {high}]{hint}{divisor}"


def _shown(value: Value) -> object:
    """What an update must agree in; strides may differ."""
    type = value.type
    return (type.dtype, type.shape, type.device) if isinstance(type, TensorType) else type


def _leaves(node: Node) -> Iterator[Arg]:
    todo: list[Arg] = [*node.args, *(a for _, a in node.kwargs)]
    for arg in todo:
        if isinstance(arg, tuple):
            todo.extend(arg)
        else:
            yield arg


def _is_symbolic(type: TensorType) -> bool:
    return any(isinstance(size, Dim) for size in (*type.shape, *(type.strides or ())))


def _symbols(sizes: Iterable[object]) -> list[Symbol]:
    return [symbol for size in sizes if isinstance(size, Dim) for symbol in size.symbols]
