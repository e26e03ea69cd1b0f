"""The reference interpreter: every node by ATen, in order. The oracle of the tests.

In another precision (`dtype=torch.float64`) everything floating is computed in it: inputs,
constants, and whatever a node would create or convert to. What a node is stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

import torch

from rewright.ir import hop_args
from rewright.ir.bind import bind, solve
from rewright.ir.constant import Constant
from rewright.ir.dims import Dim, Size, evaluate
from rewright.ir.errors import CheckError, UnsupportedError
from rewright.ir.expand import body_of
from rewright.ir.graph import Arg, Graph, Node, Value, map_leaves, values_in
from rewright.ir.precision import Precision
from rewright.ir.signature import result_paths
from rewright.ir.storage import storage_roots
from rewright.ir.types import ScalarType, TensorType


def _dense(target: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The operator with its first arguments one run in memory along their last dimension, which
    it expects without saying so."""

    def call(*args: Any, **kwargs: Any) -> Any:
        given = (x if x.stride(-1) == 1 else x.contiguous() for x in args[:count])
        return target(*given, *args[count:], **kwargs)

    return call


_FLASH: Final = "_scaled_dot_product_flash_attention_for_cpu"
# Operators that ask more of strides than those of a stand-in tensor promise; what they compute does
# not depend on them.
_LOOSE: Final[dict[str, Callable[..., Any]]] = {
    "aten.view.default": torch.ops.aten.reshape.default,
    "aten._unsafe_view.default": torch.ops.aten.reshape.default,
    f"aten.{_FLASH}.default": _dense(getattr(torch.ops.aten, _FLASH).default, 3),
    f"aten.{_FLASH}_backward.default": _dense(
        getattr(torch.ops.aten, f"{_FLASH}_backward").default, 4
    ),
}


# What computes a node in the place of its own operator: from its operands to its results.
Reference = Callable[..., Sequence[Any]]
Watch = Callable[[Value, Any], None]


def interpret(
    graph: Graph,
    inputs: Sequence[object],
    *,
    dtype: torch.dtype | None = None,
    instead: Mapping[str, Reference] = MappingProxyType({}),
    watch: Watch | None = None,
    arena: bool = False,
) -> list[Any]:
    """Run `graph` and return its outputs; updates are written into the given inputs. Nodes that
    `instead` has by name are computed by what stands there.

    `watch` sees every result as it is made, but not those inside nested graphs. With `arena` the
    buffers of the kernel level lie where their offsets say, as they do when the graph is compiled,
    at the sizes that it was planned for; else each is a tensor of its own.

    Raises InputError when an input does not fit the signature, CheckError when a result is not of
    the type that its node declares. Strides are not checked.
    """
    precision = None if dtype is None else Precision(dtype)
    buffers = _Arena(graph) if arena else None
    with torch.no_grad(), _default_dtype(dtype):
        return _Run(graph, inputs, precision, instead=instead, watch=watch, arena=buffers).outputs()


class _Arena:
    """One block of memory for all buffers. What nobody has written yet is no number, and neither is
    what a node is about to write: a kernel may write its results before it has read all operands.
    """

    def __init__(self, graph: Graph) -> None:
        allocs = [n for n in graph.nodes if n.op.name == "rw.alloc"]
        ends = [_offset(n) + n.result.tensor.nbytes_hint for n in allocs]
        self._bytes = torch.empty(max(ends, default=0), dtype=torch.uint8)

    def place(self, node: Node, shape: list[int], strides: list[int]) -> torch.Tensor:
        type, start = node.result.tensor, _offset(node)
        window = self._bytes[start : start + type.nbytes_hint].view(type.dtype)
        return spoiled(window.as_strided(shape, strides, window.storage_offset()))


def spoiled(buffer: torch.Tensor) -> torch.Tensor:
    """The buffer, full of NaN, or of the largest numbers."""
    dtype = buffer.dtype
    whole = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    return buffer.fill_(torch.iinfo(dtype).max if whole else float("nan"))


def _offset(alloc: Node) -> int:
    offset = alloc.kwarg("offset")
    assert isinstance(offset, int)
    return offset


class _Run:
    """One execution of one graph. `outer`, for a nested graph, are the symbols known around it."""

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[object],
        precision: Precision | None,
        outer: Mapping[str, int] | None = None,
        instead: Mapping[str, Reference] = MappingProxyType({}),
        *,
        watch: Watch | None = None,
        arena: _Arena | None = None,
    ) -> None:
        self._graph, self._instead = graph, instead
        self._given = inputs
        self._precision = precision
        self._watch = watch
        self._arena = arena
        exact = precision is None and outer is None
        self._sizes = {**(outer or {}), **bind(graph, inputs, exact=exact)}
        self._values: dict[Value, Any] = {}

    def outputs(self) -> list[Any]:
        for input, given in zip(self._graph.inputs, self._given, strict=True):
            self._values[input.value] = self._precise(_declared(given, input.value))
        for node, dead in zip(self._graph.nodes, _last_reads(self._graph), strict=True):
            self._node(node)
            for value in dead:
                self._values.pop(value, None)
        outputs = [self._arg(output) for output in self._graph.outputs]
        self._update()
        return outputs

    def _node(self, node: Node) -> None:
        try:
            results = self._results(node)
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            where = f" at {node.loc}" if node.loc is not None else ""
            error.add_note(f"while interpreting %{node.name} = {node.op}{where}")
            raise
        for value, result in zip(node.results, results, strict=True):
            self._learn(value, result)
        for value, result in zip(node.results, results, strict=True):
            self._check(value, result)
            self._values[value] = result
            if self._watch is not None:
                self._watch(value, result)

    def _results(self, node: Node) -> Sequence[Any]:
        if node.name in self._instead:
            return self._instead[node.name](*(self._arg(v) for v in node.operands))
        if self._arena is not None:
            for buffer in values_in(_destination(node)):
                spoiled(self._values[buffer])
        if node.op.has_body:
            return self._region(node)
        match node.op.name:
            case "rw.constant":
                return [self._constant(node)]
            case "rw.alloc":
                return [self._alloc(node)]
            case "rw.free":
                for value in node.operands:
                    del self._values[value]
                return []
        returned = self._returned(node)
        results = [self._precise(_pick(returned, path)) for path in result_paths(node)]
        return self._written(node, results)

    def _returned(self, node: Node) -> Any:
        target = _LOOSE.get(node.op.name, node.op.target)
        if target is None:
            raise UnsupportedError(f"%{node.name}: {node.op} has no reference")
        if node.op.namespace == "hop":
            graphs = {name: self._function(node, name) for name, _ in node.graphs}
            leaf = self._as_declared if hop_args.draws(node) else self._leaf
            args, kwargs = hop_args.decode(node, leaf, graphs)
            return target(*args, **kwargs)
        args = tuple(self._arg(a) for a in node.args)
        kwargs = {name: self._arg(a) for name, a in _given(node)}
        if self._precision is not None:
            return self._precision.call(node, target, args, kwargs)
        return target(*args, **kwargs)

    def _region(self, node: Node) -> Sequence[Any]:
        args = [self._arg(a) for a in node.args]
        results = _Run(body_of(node), args, self._precision, self._sizes).outputs()
        return self._written(node, results)

    def _written(self, node: Node, results: Sequence[Any]) -> Sequence[Any]:
        """The results, each in the buffer that `out=` names for it; None: a tensor of its own."""
        out = _destination(node)
        if out is None:
            return results
        buffers = out if isinstance(out, tuple) else (out,)
        return [
            result if buffer is None else self._arg(buffer).copy_(result)
            for buffer, result in zip(buffers, results, strict=True)
        ]

    def _function(self, node: Node, name: str) -> Callable[..., Any]:
        """A nested graph as something that a higher-order operator can call."""
        graph, bare = node.graph(name), name in hop_args.bare_graphs(node)

        def call(*args: object) -> Any:
            outputs = _Run(graph, args, self._precision, self._sizes).outputs()
            return outputs[0] if bare else tuple(outputs)

        return call

    def _constant(self, node: Node) -> torch.Tensor:
        constant = node.kwarg("value")
        if not isinstance(constant, Constant):
            raise CheckError(f"%{node.name}: rw.constant without a value")
        return self._precise(constant.tensor.to(node.result.tensor.device))  # type: ignore[no-any-return]

    def _alloc(self, node: Node) -> torch.Tensor:
        type = node.result.tensor
        shape, strides = ([self._size(s) for s in sizes] for sizes in (type.shape, type.layout))
        if self._arena is not None:
            return self._arena.place(node, shape, strides)
        dtype = self._leaf(type.dtype)
        return torch.empty_strided(shape, strides, dtype=dtype, device=type.device)

    def _update(self) -> None:
        """Updates happen at once: what another one would overwrite is copied first."""
        if not self._graph.updates:
            return
        roots = storage_roots(self._graph)
        inputs = (i.value for i in self._graph.inputs)
        given: dict[Value, Any] = dict(zip(inputs, self._given, strict=True))
        targets = [target for target, _ in self._graph.updates]
        values = [
            self._values[v].clone() if roots[v] in targets else self._values[v]
            for _, v in self._graph.updates
        ]
        for target, value in zip(targets, values, strict=True):
            given[target].copy_(value)

    # --- arguments ----------------------------------------------------------------------------

    def _arg(self, arg: Arg) -> Any:
        return map_leaves(arg, self._leaf)

    def _leaf(self, arg: Arg) -> Any:
        if isinstance(arg, Value):
            if arg not in self._values:
                raise CheckError(f"%{arg.name} is read before it is made, or after it was freed")
            return self._values[arg]
        if isinstance(arg, Dim):
            return self._size(arg)
        if isinstance(arg, torch.dtype) and self._precision is not None:
            return self._precision.dtype_for(arg)
        return arg

    def _as_declared(self, arg: Arg) -> Any:
        """As `_leaf`, in the types of the graph: random numbers depend on them."""
        found = self._leaf(arg)
        if isinstance(arg, Value) and isinstance(arg.type, TensorType):
            return found.to(arg.type.dtype)
        return arg if isinstance(arg, torch.dtype) else found

    def _size(self, size: Size) -> int:
        try:
            return evaluate(size, self._sizes)
        except KeyError as error:
            raise CheckError(f"nothing before says what {error.args[0]} is") from error

    def _precise(self, value: Any) -> Any:
        return value if self._precision is None else self._precision.convert(value)

    # --- results ------------------------------------------------------------------------------

    def _learn(self, value: Value, result: Any) -> None:
        """Symbols that only a result decides: the rows of `nonzero`, the value of `item`."""
        for size, actual in _sizes(value, result):
            solution = solve(size, actual, self._sizes) if isinstance(size, Dim) else None
            if solution is not None:
                self._sizes[solution[0]] = solution[1]

    def _check(self, value: Value, result: Any) -> None:
        if isinstance(value.type, TensorType) and result is not None:
            self._check_tensor(value, value.type, result)
        for size, actual in _sizes(value, result):
            if actual != self._size(size):
                raise CheckError(f"%{value.name} has a size {actual} where {size} is declared")

    def _check_tensor(self, value: Value, type: TensorType, result: Any) -> None:
        if not isinstance(result, torch.Tensor):
            raise CheckError(f"%{value.name} is not a tensor")
        wanted = type.dtype if self._precision is None else self._precision.dtype_for(type.dtype)
        if result.dtype != wanted or result.ndim != type.rank:
            raise CheckError(
                f"%{value.name} is declared {wanted} of rank {type.rank}, "
                f"but came out {result.dtype} of rank {result.ndim}"
            )


def _declared(given: Any, value: Value) -> Any:
    """Higher-order operators may pass integers of another width to a nested graph."""
    if not isinstance(value.type, TensorType) or given.dtype == value.type.dtype:
        return given
    return given if given.is_floating_point() or given.is_complex() else given.to(value.type.dtype)


def _sizes(value: Value, result: Any) -> Iterator[tuple[Size, int]]:
    """The declared sizes of a result, and what they came out as; none for one left undefined."""
    if result is None:
        return
    if isinstance(value.type, TensorType):
        yield from zip(value.type.shape, result.shape, strict=False)
    elif isinstance(value.type, ScalarType) and value.type.dim is not None:
        yield value.type.dim, result


def _last_reads(graph: Graph) -> list[list[Value]]:
    """For each node the values that nothing reads after it."""
    last: dict[Value, int] = {}
    for index, node in enumerate(graph.nodes):
        last |= dict.fromkeys((*node.results, *node.operands), index)
    dead: list[list[Value]] = [[] for _ in graph.nodes]
    for value, index in last.items():
        if value not in graph.returned:
            dead[index].append(value)
    return dead


def _destination(node: Node) -> Arg:
    """The buffers that the kernel level adds to any operator; None where there are none."""
    return None if "out" in node.op.argument_names else node.kwarg("out")


def _given(node: Node) -> Iterator[tuple[str, Arg]]:
    """Arguments by name, without the buffers that the kernel level adds to any operator."""
    known = node.op.argument_names
    return ((name, a) for name, a in node.kwargs if name != "out" or name in known)


def _pick(returned: Any, path: hop_args.Path) -> Any:
    for key in path:
        returned = returned[key]
    return returned


@contextmanager
def _default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """What creation and division of integers give; torch keeps one for the whole process."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(before if dtype is None else dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
