"""Graph, Node, Value: frozen SSA over operators.

A pass never changes a graph; it returns a new one. `history` keeps each step with the names it
replaced. Sizes in arguments are `Dim`s, so symbolic arithmetic is not nodes but expressions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from rewright.ir.constant import Constant
from rewright.ir.dims import Dim, Size, Symbol, symbols_of
from rewright.ir.errors import CheckError
from rewright.ir.ops import Op
from rewright.ir.types import ScalarType, TensorType, Type


@dataclass(frozen=True, slots=True)
class Value:
    """One SSA value. Names are unique within a graph, without the leading `%` of the text."""

    name: str
    type: Type

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def tensor(self) -> TensorType:
        """The type of a tensor value. Raises CheckError for a scalar."""
        if isinstance(self.type, TensorType):
            return self.type
        raise CheckError(f"%{self.name} is not a tensor")


Literal = (
    None
    | bool
    | int
    | float
    | complex
    | str
    | torch.dtype
    | torch.device
    | torch.layout
    | torch.memory_format
)
Arg = Value | Dim | Constant | Literal | tuple["Arg", ...]


@dataclass(frozen=True, slots=True)
class Loc:
    """A line of the user's source: file name without folder, 1-based line; what stands there, where
    that is known, is not part of the text form."""

    file: str
    line: int
    code: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Node:
    """One operation. Arguments follow the schema's order, trailing defaults left out; keyword-only
    arguments are sorted by name. `graphs` are named nested graphs (region bodies, branches)."""

    op: Op
    args: tuple[Arg, ...]
    kwargs: tuple[tuple[str, Arg], ...]
    results: tuple[Value, ...]
    graphs: tuple[tuple[str, Graph], ...] = ()
    loc: Loc | None = None
    seq_nr: int | None = None
    phase: str | None = None  # "forward" | "backward" in joint graphs

    @property
    def result(self) -> Value:
        """The only result. Raises CheckError when there are none or several."""
        if len(self.results) != 1:
            raise CheckError(f"{self.op} has {len(self.results)} results, not one")
        return self.results[0]

    @property
    def name(self) -> str:
        """The name of the first result; stands for the node in messages and plans."""
        return self.results[0].name if self.results else ""

    @cached_property
    def operands(self) -> tuple[Value, ...]:
        """Every value read, in order of appearance, with repeats."""
        return tuple(values_in((*self.args, *(a for _, a in self.kwargs))))

    def kwarg(self, name: str, default: Arg = None) -> Arg:
        return next((value for key, value in self.kwargs if key == name), default)

    def arg(self, name: str) -> Arg:
        """An argument by its schema name, the schema's default when it is not given."""
        schema = self.op.schema
        if schema is None:
            return self.kwarg(name)
        for position, argument in enumerate(schema.arguments):
            if argument.name != name:
                continue
            if not argument.kwarg_only and position < len(self.args):
                return self.args[position]
            return self.kwarg(name, freeze(argument.default_value))
        raise CheckError(f"{self.op} has no argument '{name}'")

    def graph(self, name: str) -> Graph:
        return next(graph for key, graph in self.graphs if key == name)

    def replace(self, values: Mapping[Value, Arg]) -> Node:
        """The same node reading other values."""
        if not values or not any(v in values for v in self.operands):
            return self
        return dataclasses.replace(
            self,
            args=tuple(map_values(a, values) for a in self.args),
            kwargs=tuple((k, map_values(a, values)) for k, a in self.kwargs),
        )


@dataclass(frozen=True, slots=True)
class Input:
    """One input. `role`: input | param | buffer | saved | tangent | const. `mutable`: the caller
    lets us write it (then `Graph.updates` says what)."""

    value: Value
    role: str = "input"
    mutable: bool = False


ROLES = ("input", "param", "buffer", "saved", "tangent")


@dataclass(frozen=True)
class Step:
    """What one pass did: its spec, and old name -> new names (empty: removed)."""

    spec: str
    renamed: tuple[tuple[str, tuple[str, ...]], ...] = ()
    seconds: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class Graph:
    """A function: inputs, nodes in a valid order, outputs, and updates (input <- value).

    Equality is over signature, nodes, types, attributes and constant digests; not over history.
    """

    name: str
    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Arg, ...]
    updates: tuple[tuple[Value, Value], ...] = ()
    history: tuple[Step, ...] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        from rewright.ir.show import show

        return show(self)

    @cached_property
    def producers(self) -> Mapping[Value, Node]:
        return {value: node for node in self.nodes for value in node.results}

    @cached_property
    def readers(self) -> Mapping[Value, tuple[Node, ...]]:
        """Nodes that read each value, in order, each once. Outputs and updates are not nodes."""
        found: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.operands):
                found.setdefault(value, []).append(node)
        return {value: tuple(nodes) for value, nodes in found.items()}

    @cached_property
    def returned(self) -> frozenset[Value]:
        """Values that leave the graph: outputs and the right-hand sides of updates."""
        return frozenset((*values_in(self.outputs), *(v for _, v in self.updates)))

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """Every symbol, in order of first appearance."""
        return symbols_of(self._sizes())

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """Inputs, then results in order."""
        results = (value for node in self.nodes for value in node.results)
        return (*(i.value for i in self.inputs), *results)

    def _sizes(self) -> Iterator[Size]:
        """Every size, in the order of the text: nested graphs come between arguments and types."""
        for input in self.inputs:
            yield from sizes_of(input.value.type)
        for node in self.nodes:
            yield from dims_in((node.args, *(a for _, a in node.kwargs)))
            for _, graph in node.graphs:
                yield from graph._sizes()
            for value in node.results:
                yield from sizes_of(value.type)
        yield from dims_in(self.outputs)

    def value(self, name: str) -> Value:
        """The value called `name` (with or without `%`). Raises CheckError with the nearest."""
        from rewright.ir.errors import did_you_mean

        wanted = name.removeprefix("%")
        for value in self.values:
            if value.name == wanted:
                return value
        near = did_you_mean(f"%{wanted}", [f"%{v.name}" for v in self.values])
        raise CheckError(f"no value '%{wanted}' in graph {self.name}{near}")

    def with_step(self, step: Step) -> Graph:
        return dataclasses.replace(self, history=(*self.history, step))

    def with_nodes(self, nodes: Iterable[Node]) -> Graph:
        return dataclasses.replace(self, nodes=tuple(nodes))

    def substitute(self, values: Mapping[Value, Arg]) -> Graph:
        """Every reader reads the replacement; chains (a -> b, b -> c) are followed."""
        if not values:
            return self
        final = {value: _follow(value, values) for value in values}
        return dataclasses.replace(
            self,
            nodes=tuple(node.replace(final) for node in self.nodes),
            outputs=tuple(map_values(a, final) for a in self.outputs),
            updates=tuple((target, _value(map_values(v, final))) for target, v in self.updates),
        )


def leaves(arg: object) -> Iterator[object]:
    """Every non-tuple element of nested arguments, left to right."""
    if isinstance(arg, tuple):
        for item in arg:
            yield from leaves(item)
    else:
        yield arg


def values_in(arg: object) -> Iterator[Value]:
    """Every `Value` of nested arguments, left to right."""
    return (leaf for leaf in leaves(arg) if isinstance(leaf, Value))


def dims_in(arg: object) -> Iterator[Dim]:
    """Every `Dim` of nested arguments, left to right."""
    return (leaf for leaf in leaves(arg) if isinstance(leaf, Dim))


def map_values(arg: Arg, values: Mapping[Value, Arg]) -> Arg:
    if isinstance(arg, Value):
        return values.get(arg, arg)
    if isinstance(arg, tuple):
        return tuple(map_values(a, values) for a in arg)
    return arg


def map_leaves(arg: Arg, change: Callable[[Arg], object]) -> object:
    """`arg` with every leaf changed; tuples become lists, as torch's operators want them."""
    if isinstance(arg, tuple):
        return [map_leaves(a, change) for a in arg]
    return change(arg)


def freeze(arg: object) -> Arg:
    """Lists to tuples, all the way down. Every NaN becomes one object, so that equal graphs stay
    equal: Python holds a NaN equal only to itself, the same object."""
    if isinstance(arg, (list, tuple)):
        return tuple(freeze(a) for a in arg)
    if isinstance(arg, float) and arg != arg:
        return math.nan
    return arg  # type: ignore[return-value]


def sizes_of(type: Type) -> Iterator[Size]:
    if isinstance(type, TensorType):
        yield from type.shape
        yield from type.strides or ()
    elif isinstance(type, ScalarType) and type.dim is not None:
        yield type.dim


def fresh_names(taken: Iterable[str]) -> Callable[[str], str]:
    """A function that makes names not yet taken: `x`, `x_1`, `x_2` ..."""
    used = set(taken)
    counts: dict[str, int] = {}

    def fresh(stem: str) -> str:
        name = stem
        while name in used:
            counts[stem] = counts.get(stem, 0) + 1
            name = f"{stem}_{counts[stem]}"
        used.add(name)
        return name

    return fresh


def _follow(value: Value, values: Mapping[Value, Arg]) -> Arg:
    result: Arg = values[value]
    while isinstance(result, Value) and result in values:
        result = values[result]
    return result


def _value(arg: Arg) -> Value:
    if isinstance(arg, Value):
        return arg
    raise CheckError("an update's right-hand side must be a value")
