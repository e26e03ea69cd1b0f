"""From the IR to torch.fx: a GraphModule that runs, and that `from_fx` reads back."""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from rewright.ir import hop_args
from rewright.ir.constant import Constant
from rewright.ir.dim_fold import fold
from rewright.ir.dims import Dim, Size, Symbol
from rewright.ir.errors import UnsupportedError
from rewright.ir.expand import expand
from rewright.ir.fx_sizes import symbolic_int
from rewright.ir.graph import Arg, Graph, Node, Value, map_leaves
from rewright.ir.signature import result_paths
from rewright.ir.storage import storage_roots
from rewright.ir.symbol_sources import symbol_sources
from rewright.ir.types import OtherType, ScalarType, TensorType, Type

aten = torch.ops.aten


def to_fx(graph: Graph, *, regions: bool = False) -> fx.GraphModule:
    """A module that takes the graph's inputs and returns the tuple of its outputs.

    Updates are written into the inputs at the end. Regions are inlined (`expand`), those that name
    their kernel only unless `regions`, which stay calls; sizes are computed from the inputs'
    shapes, nested graphs become submodules. Nodes carry `meta["val"]`.
    """
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily():
        inlined = expand(graph, lambda node: not (regions and node.kwarg("via")))
        return _Exporter(inlined, Traced()).module()


def _parameter(name: str) -> str:
    """A name that Python takes, as of `0.weight`."""
    plain = re.sub(r"\W", "_", name)
    return plain if plain.isidentifier() and not keyword.iskeyword(plain) else f"arg_{plain}"


class _Exporter:
    """One walk over a graph without regions; `_made` says which fx node a value is."""

    def __init__(self, graph: Graph, traced: Traced, *, bare: bool = False) -> None:
        self._graph = graph
        self._traced = traced
        self._bare = bare
        self._fx = fx.Graph()
        self._root = torch.nn.Module()
        self._submodules: dict[str, Graph] = {}
        self._made: dict[Value, fx.Node] = {}
        self._sizes: dict[Size, int | fx.Node] = {}
        self._sources = symbol_sources(graph)

    def module(self) -> fx.GraphModule:
        for input in self._graph.inputs:
            placeholder = self._fx.placeholder(_parameter(input.value.name))
            self._put(input.value, placeholder)
        for node in self._graph.nodes:
            self._node(node)
        outputs = tuple(self._arg(output) for output in self._graph.outputs)
        self._updates()
        self._fx.output(outputs[0] if self._bare else outputs)
        return fx.GraphModule(self._root, self._fx, self._graph.name)

    def _node(self, node: Node) -> None:
        match node.op.name:
            case "rw.constant":
                self._constant(node)
            case "rw.alloc":
                self._alloc(node)
            case "rw.free":
                return
            case _ if node.op.has_body:
                self._region(node)
            case _ if node.op.target is None:
                raise UnsupportedError(f"%{node.name}: {node.op} has no form in torch.fx")
            case _:
                self._call(node)

    def _constant(self, node: Node) -> None:
        data = node.kwarg("value")
        if not isinstance(data, Constant):
            raise UnsupportedError(f"%{node.name}: a constant without data")
        target = f"_tensor_constant{sum(1 for _ in self._root.buffers())}"
        self._root.register_buffer(target, data.tensor)
        self._put(node.result, self._fx.create_node("get_attr", target, name=node.name))

    def _alloc(self, node: Node) -> None:
        type = node.result.tensor
        shape, strides = ([self._size(s) for s in sizes] for sizes in (type.shape, type.layout))
        kwargs = {"dtype": type.dtype, "device": type.device}
        call = self._create(aten.empty_strided.default, (shape, strides), kwargs, node.name)
        self._put(node.result, call)

    def _call(self, node: Node) -> None:
        if node.op.namespace == "hop":
            graphs = {name: self._submodule(node, name) for name, _ in node.graphs}
            args, kwargs = hop_args.decode(node, self._leaf, graphs)
        else:
            args = tuple(self._arg(a) for a in node.args)
            kwargs = {name: self._arg(a) for name, a in node.kwargs}
        paths = result_paths(node)
        call = self._create(node.op.target, args, kwargs, node.name if paths == ((),) else None)
        call.meta |= _origin(node)
        parts: dict[hop_args.Path, fx.Node] = {(): call}
        for value, path in zip(node.results, paths, strict=True):
            self._put(value, self._part(parts, path, value.name))
        if paths != ((),):
            call.meta["val"] = _nested([self._made[v].meta["val"] for v in node.results], paths)

    def _region(self, node: Node) -> None:
        from rewright.ir.fx_regions import REGION, told

        operands = [self._made[v] for v in dict.fromkeys(node.operands)]
        text, sizes = told(node)
        args = (text, operands, [self._size(size) for size in sizes])
        call = self._create(REGION, args, {}, None)
        call.meta |= _origin(node)
        for place, value in enumerate(node.results):
            self._put(value, self._create(operator.getitem, (call, place), {}, value.name))
        call.meta["val"] = [self._made[v].meta["val"] for v in node.results]

    def _part(self, parts: dict[hop_args.Path, fx.Node], path: hop_args.Path, name: str) -> fx.Node:
        """The fx node of a part of what a call returns; `parts` holds those already made."""
        for depth in range(1, len(path) + 1):
            here = path[:depth]
            if here not in parts:
                whole = parts[here[:-1]]
                called = name if depth == len(path) else None
                parts[here] = self._create(operator.getitem, (whole, here[-1]), {}, called)
        return parts[path]

    def _submodule(self, node: Node, name: str) -> fx.Node:
        graph = node.graph(name)
        target = re.sub(r"\W", "_", name)
        while self._submodules.get(target, graph) is not graph:
            target += "_"
        if target not in self._submodules:
            bare = name in hop_args.bare_graphs(node)
            inner = _Exporter(expand(graph), self._traced, bare=bare)
            self._root.add_module(target, inner.module())
            self._submodules[target] = graph
        return self._fx.create_node("get_attr", target)

    def _updates(self) -> None:
        """Updates happen at once: what another one would overwrite is copied first."""
        roots = storage_roots(self._graph)
        targets = {target for target, _ in self._graph.updates}
        sources = []
        for target, value in self._graph.updates:
            source = self._made[value]
            if value != target and roots[value] in targets:
                source = self._create(aten.clone.default, (source,), {}, None)
                source.meta["val"] = self._traced.value(value.type)
            sources.append(source)
        for (target, _), source in zip(self._graph.updates, sources, strict=True):
            copy = self._create(aten.copy_.default, (self._made[target], source), {}, None)
            copy.meta["val"] = self._made[target].meta["val"]

    # --- arguments ----------------------------------------------------------------------------

    def _arg(self, arg: Arg) -> Any:
        return map_leaves(arg, self._leaf)

    def _leaf(self, arg: Arg) -> object:
        if isinstance(arg, Value):
            return self._made[arg]
        return self._size(arg) if isinstance(arg, Dim) else arg

    def _size(self, size: Size) -> int | fx.Node:
        if isinstance(size, int):
            return size
        if size not in self._sizes:
            self._sizes[size] = fold(size, self._symbol, self._compute)
        return self._sizes[size]

    def _symbol(self, name: str) -> int | fx.Node:
        source = self._sources.get(name)
        if source is None or source.value not in self._made:
            raise UnsupportedError(f"graph {self._graph.name}: nothing says what {name} is")
        at = self._made[source.value]
        if source.axis is not None:
            read = (at, source.axis)
            at = self._create(aten.sym_size.int, read, {}, None)
            at.meta["val"] = self._traced.size(source.size)
        if source.size.is_symbol:
            return at
        multiple = self._compute(operator.sub, (at, source.rest))
        return self._compute(operator.floordiv, (multiple, source.factor))

    def _compute(
        self, function: Callable[..., Any], operands: tuple[int | fx.Node, ...]
    ) -> int | fx.Node:
        node = self._create(function, operands, {}, None)
        node.meta["val"] = function(*(_traced(operand) for operand in operands))
        return node

    def _create(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None
    ) -> fx.Node:
        return self._fx.create_node("call_function", target, args, kwargs, name)

    def _put(self, value: Value, node: fx.Node) -> None:
        node.meta["val"] = self._traced.value(value.type)
        self._made[value] = node


class Traced:
    """Stand-ins for values, as tracing would have left them in `meta["val"]`."""

    def __init__(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        self._env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self._env)
        self._symbols: dict[Symbol, torch.SymInt] = {}
        self._sizes: dict[Dim, int | torch.SymInt] = {}

    def value(self, type: Type) -> object:
        match type:
            case TensorType():
                return self._tensor(type)
            case ScalarType(kind="int", dim=size) if size is not None:
                return self.size(size)
            case ScalarType(kind=kind):
                return getattr(self._env, f"create_unbacked_sym{kind}")()
            case OtherType(kind="none"):
                return None
            case OtherType(kind="generator"):
                return torch.Generator()
        return object()

    def size(self, size: Size) -> int | torch.SymInt:
        if isinstance(size, int):
            return size
        if size not in self._sizes:
            self._sizes[size] = self._build(size)
        return self._sizes[size]

    def _build(self, size: Dim) -> int | torch.SymInt:
        symbols = {s.name: s for s in size.symbols}

        def symbol(name: str) -> torch.SymInt:
            known = symbols[name]
            if known not in self._symbols:
                self._symbols[known] = symbolic_int(known, self._env)
            return self._symbols[known]

        return fold(size, symbol, lambda function, operands: function(*operands))

    def _tensor(self, type: TensorType) -> torch.Tensor:
        from torch._subclasses.fake_tensor import FakeTensor

        shape, strides = ([self.size(s) for s in sizes] for sizes in (type.shape, type.layout))
        storage = torch.empty_strided(shape, strides, dtype=type.dtype, device="meta")
        return FakeTensor(self.mode, storage, type.device)


def _traced(operand: int | fx.Node) -> Any:
    return operand.meta["val"] if isinstance(operand, fx.Node) else operand


def _nested(values: list[object], paths: tuple[hop_args.Path, ...]) -> object:
    """The structure in which each value lies at its path."""
    if paths == ((),):
        return values[0]
    keys = dict.fromkeys(path[0] for path in paths)
    parts = {}
    for key in keys:
        inside = [(v, p[1:]) for v, p in zip(values, paths, strict=True) if p[0] == key]
        parts[key] = _nested([v for v, _ in inside], tuple(p for _, p in inside))
    if any(isinstance(key, str) for key in keys):
        return parts
    return tuple(parts.values()) if paths else None


def _origin(node: Node) -> dict[str, object]:
    """What `from_fx` reads back of where a node comes from."""
    origin: dict[str, object] = {}
    if node.loc is not None:
        place = f'File "{node.loc.file}", line {node.loc.line}, in forward'
        origin["stack_trace"] = f"{place}\n    {node.loc.code}"
    if node.seq_nr is not None:
        origin["seq_nr"] = node.seq_nr
    if node.phase is not None:
        origin["partitioner_tag"] = f"is_{node.phase}"
    return origin
