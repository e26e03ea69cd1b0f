"""From torch.fx to the IR: functional ATen graphs, as AOTAutograd, make_fx and torch.export make.

Only what a graph says is read (`meta["val"]`, `stack_trace`, `seq_nr`, partitioner tags), never the
data of an input. Size arithmetic disappears into `Dim`s, `getitem` into results, the final `copy_`s
of AOTAutograd into `Graph.updates`. Any other mutation is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final

import torch
from torch import fx

from rewright.ir import hop_args
from rewright.ir.dims import Dim
from rewright.ir.errors import ImportFailure
from rewright.ir.fx_node import (
    attribute,
    attribute_role,
    constant_of,
    is_guard,
    is_joint,
    loc_of,
    phase_of,
    returns_bare,
    trace,
    untraced,
)
from rewright.ir.fx_sizes import SizeTable
from rewright.ir.graph import (
    Arg,
    Graph,
    Input,
    Node,
    Value,
    freeze,
    fresh_names,
    leaves,
    sizes_of,
    values_in,
)
from rewright.ir.ops import PYTHON_FUNCTIONS, Kind, Op, op, op_of_target
from rewright.ir.signature import normalize, signature
from rewright.ir.types import ScalarType, TensorType

aten = torch.ops.aten

# Reads of sizes that are expressions over symbols once the graph is traced.
_SIZE_READS: Final = frozenset(
    {
        aten.sym_size.int,
        aten.sym_stride.int,
        aten.sym_numel.default,
        aten.sym_storage_offset.default,
        aten.sym_is_contiguous.default,
    }
)
# Those that types tell: a place in storage stands in none.
_TOLD_BY_TYPES: Final = _SIZE_READS - {aten.sym_storage_offset.default}
# What a type says already.
_SILENT: Final = frozenset({aten._assert_tensor_metadata.default})
# Operators that write running statistics without their schema saying so: the positions of
# `running_mean` and of the flag that makes them do it.
_HIDDEN_WRITES: Final[dict[str, tuple[str, str]]] = {
    "aten.batch_norm.default": ("running_mean", "training"),
    "aten.native_batch_norm.default": ("running_mean", "training"),
    "aten.cudnn_batch_norm.default": ("running_mean", "training"),
    "aten.miopen_batch_norm.default": ("running_mean", "training"),
    "aten.instance_norm.default": ("running_mean", "use_input_stats"),
}
# Arguments that say which gradients to compute.
_MASKS: Final = frozenset({"output_mask", "grad_input_mask"})
_LITERALS: Final = frozenset(
    {type(None), bool, int, float, complex, str}
    | {torch.dtype, torch.device, torch.layout, torch.memory_format}
)


def from_fx(
    gm: fx.GraphModule, *, name: str = "graph", roles: Sequence[str] | None = None
) -> Graph:
    """Import a functional ATen graph.

    `roles` gives the role of each placeholder, in order (all "input" when None). Parameters and
    buffers that the module itself holds become inputs after the placeholders, with roles "param"
    and "buffer"; `attributes(gm)` gives the tensors to pass for them. Other tensors it holds (the
    literals of the user's code) become `rw.constant`s. Raises ImportFailure, naming the node, for
    what has no form in the IR.
    """
    return import_graph(gm, name, SizeTable(), roles)


def import_graph(
    gm: fx.GraphModule, name: str, sizes: SizeTable, roles: Sequence[str] | None = None
) -> Graph:
    """`from_fx` with the symbols of an enclosing import."""
    importer = _Importer(gm, sizes, roles)
    for node in gm.graph.nodes:
        try:
            importer.take(node)
        except ImportFailure as failure:
            raise _located(failure, node) from failure.__cause__
    return importer.graph(name)


def attributes(gm: fx.GraphModule) -> dict[str, torch.Tensor]:
    """The parameters and buffers that `from_fx` makes inputs, by input name, in their order."""
    found: dict[str, tuple[str, torch.Tensor]] = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr" and node.target not in found:
            held = attribute(gm, node.target)
            if isinstance(held, torch.Tensor) and attribute_role(node, held) is not None:
                found[node.target] = (node.name, held)
    return dict(found.values())


class _Importer:
    """One walk over one fx graph; `_read` says what each fx node is to those that read it."""

    def __init__(
        self, gm: fx.GraphModule, sizes: SizeTable, roles: Sequence[str] | None = None
    ) -> None:
        self._gm = gm
        self._sizes = sizes
        self._roles = roles
        self._is_joint = is_joint(gm)
        self._fresh = fresh_names(n.name for n in gm.graph.nodes)
        self._read: dict[fx.Node, Any] = {}
        self._inputs: list[Input] = []
        self._held: list[Input] = []
        self._graphs: dict[str, Graph] = {}
        self._attributes: dict[str, Value] = {}
        self._nodes: list[Node] = []
        self._outputs: tuple[Arg, ...] = ()
        self._updates: dict[Value, Value] = {}
        self._writes: list[tuple[int, Value, str]] = []
        # Which fx nodes are the storage of an input; which of them show another type by now.
        self._storage: dict[Value, list[fx.Node]] = {}
        self._stale: dict[fx.Node, str] = {}

    def take(self, node: fx.Node) -> None:
        match node.op:
            case "placeholder":
                self._placeholder(node)
            case "get_attr":
                self._get_attr(node)
            case "call_function":
                self._call(node)
            case "output":
                flat = torch.utils._pytree.tree_leaves(node.args[0])
                self._outputs = tuple(self._arg(leaf) for leaf in flat)
            case "call_module" if is_guard(attribute(self._gm, str(node.target))):
                return
            case _:
                raise ImportFailure(
                    f"it calls {node.target!r}, which is no ATen operator",
                    help="trace the module with torch.export.export or make_fx first",
                )

    def graph(self, name: str) -> Graph:
        self._refuse_stale_views()
        inputs = (
            Input(i.value, i.role, mutable=i.value in self._updates)
            for i in (*self._inputs, *self._held)
        )
        updates = tuple(self._updates.items())
        return Graph(name, tuple(inputs), self._kept(), self._outputs, updates)

    def _kept(self) -> tuple[Node, ...]:
        """The nodes without arithmetic on numbers that only led to sizes, which say it again."""
        read = set(values_in((self._outputs, *self._updates.values())))
        kept = []
        for node in reversed(self._nodes):
            if node.op.namespace != "py" or node.result in read or _defines_size(node):
                read.update(node.operands)
                kept.append(node)
        return tuple(reversed(kept))

    # --- inputs and attributes ----------------------------------------------------------------

    def _placeholder(self, node: fx.Node) -> None:
        if "val" not in node.meta:
            raise untraced()
        traced = node.meta["val"]
        value = Value(node.name, self._sizes.type(traced))
        role = "input" if self._roles is None else self._roles[len(self._inputs)]
        self._inputs.append(Input(value, role))
        self._storage[value] = [node]
        self._read[node] = self._as_read(traced, value)

    def _get_attr(self, node: fx.Node) -> None:
        target = str(node.target)
        held = attribute(self._gm, target)
        if isinstance(held, fx.GraphModule):
            self._read[node] = hop_args.graph_reference(target)
            if target not in self._graphs:
                self._graphs[target] = import_graph(held, target, self._sizes)
        elif isinstance(held, torch.Tensor):
            if target not in self._attributes:
                self._attributes[target] = self._tensor_attribute(node, held)
            value = self._attributes[target]
            if value in self._storage:
                self._storage[value].append(node)
            self._read[node] = self._updates.get(value, value)
        else:
            raise ImportFailure(f"attribute '{target}' is a {type(held).__name__}, not a tensor")

    def _tensor_attribute(self, node: fx.Node, held: torch.Tensor) -> Value:
        value = Value(node.name, self._sizes.type(node.meta.get("val", held)))
        role = attribute_role(node, held)
        if role is not None:
            self._held.append(Input(value, role))
            self._storage[value] = []
            return value
        contiguous = Value(node.name, TensorType(held.dtype, tuple(held.shape), None, held.device))
        constant = (("value", constant_of(held)),)
        self._nodes.append(Node(op("rw.constant"), (), constant, (contiguous,)))
        return contiguous

    # --- calls --------------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> None:
        target = node.target
        if target is operator.getitem and isinstance(self._of(node.args[0]), tuple | dict):
            self._read[node] = self._of(node.args[0])[node.args[1]]
        elif target in _SIZE_READS or not isinstance(target, torch._ops.OperatorBase):
            self._scalar(node)
        elif target is aten.copy_.default and self._updated(node) is not None:
            self._update(node)
        elif isinstance(target, torch._ops.HigherOrderOperator):
            self._higher_order(node, target)
        elif getattr(target, "namespace", None) == "rewright":
            self._region(node)
        elif target not in _SILENT:
            self._operator(node)

    def _region(self, node: fx.Node) -> None:
        """What `to_fx` made of a region."""
        from rewright.ir.fx_regions import region_of

        text, operands, sizes = (self._arg(a) for a in node.args)
        region = region_of(str(text), list(values_in(operands)), list(leaves(sizes)))
        self._emit(node, region.op, region.args, region.kwargs, self._traced(node), region.graphs)

    def _operator(self, node: fx.Node) -> None:
        called = _op(node.target)
        args = tuple([self._arg(a) for a in node.args])
        kwargs = {k: self._arg(a) for k, a in node.kwargs.items()} if node.kwargs else {}
        args, keywords = normalize(called, args, kwargs)
        refuse_mutation(called, args, dict(keywords))
        known = signature(called)
        silent = known is not None and known.returns == 0
        traced = None if silent else _unmasked(called, args, self._traced(node))
        self._emit(node, called, args, keywords, traced)

    def _higher_order(self, node: fx.Node, target: torch._ops.HigherOrderOperator) -> None:
        args = tuple(self._arg(a) for a in node.args)
        kwargs = {k: self._arg(a) for k, a in node.kwargs.items()}
        used = {str(n.target): n for n in node.all_input_nodes if self._is_graph(n)}
        bare = tuple(k for k in used if returns_bare(attribute(self._gm, k)))
        traced = self._traced(node)
        kwargs |= hop_args.returns_keyword(traced) | ({hop_args.BARE: bare} if bare else {})
        graphs = tuple((k, self._graphs[k]) for k in used)
        self._emit(node, _op(target), args, tuple(sorted(kwargs.items())), traced, graphs)

    def _scalar(self, node: fx.Node) -> None:
        """Arithmetic on sizes vanishes; other arithmetic on numbers becomes a `py.*` node."""
        if "val" not in node.meta and node.target not in _NUMBER_FUNCTIONS:
            raise ImportFailure(f"it calls {_spell(node.target)}, which is no ATen operator")
        traced = self._traced(node)
        if isinstance(traced, bool | int | float):
            self._read[node] = traced
            return
        if isinstance(traced, torch.SymInt):
            size = self._sizes.size(traced)
            if node.target in _TOLD_BY_TYPES or not self._must_define(size):
                self._read[node] = size
                return
        elif not isinstance(traced, torch.SymFloat | torch.SymBool):
            raise ImportFailure(f"it calls {_spell(node.target)}, which is no ATen operator")
        args = tuple(self._arg(a) for a in node.args)
        self._emit(node, _op(node.target), args, (), traced)

    def _must_define(self, size: object) -> bool:
        """True when an integer that is no size expression is computed here first."""
        if not isinstance(size, Dim) or not size.is_symbol or not size.text.startswith("u"):
            return False
        results = (value for node in self._nodes for value in node.results)
        known = (*(i.value for i in self._inputs), *results)
        return all(size not in sizes_of(value.type) for value in known)

    def _emit(
        self,
        node: fx.Node,
        called: Op,
        args: tuple[Arg, ...],
        kwargs: tuple[tuple[str, Arg], ...],
        traced: object,
        graphs: tuple[tuple[str, Graph], ...] = (),
    ) -> None:
        if isinstance(traced, list | tuple | dict):
            results, read = self._results(node, traced)
        elif traced is None:
            results, read = (), None
        else:
            result = Value(node.name, self._sizes.type(traced))
            results, read = (result,), self._as_read(traced, result)
        self._read[node] = read
        loc = loc_of(node.meta.get("stack_trace"))
        number = node.meta.get("seq_nr") if self._is_joint else None
        phase = phase_of(node.meta) if self._is_joint else None
        self._nodes.append(Node(called, args, kwargs, results, graphs, loc, number, phase))

    # --- results and arguments ----------------------------------------------------------------

    def _results(self, node: fx.Node, traced: object) -> tuple[tuple[Value, ...], Any]:
        """The flat results of a node that returns several, and what its readers read."""
        if isinstance(node.target, torch._ops.OpOverload) and _is_nested(traced):
            raise ImportFailure("it returns lists inside a tuple")
        values: list[Value] = []

        def give(item: object, path: tuple[object, ...]) -> Any:
            if isinstance(item, dict):
                return {key: give(part, (*path, key)) for key, part in item.items()}
            if isinstance(item, list | tuple):
                return tuple([give(part, (*path, i)) for i, part in enumerate(item)])
            # The first goes by the node's name; a reader knows "getitem_7" for nothing.
            later = self._fresh(".".join([node.name, *map(str, path)])) if values else node.name
            values.append(Value(later, self._sizes.type(item)))
            return self._as_read(item, values[-1])

        read = give(traced, ())
        return tuple(values), read

    def _as_read(self, traced: object, value: Value) -> Any:
        """What stands for a value where it is read: a literal or a size when that is all it is."""
        if traced is None or isinstance(traced, bool | int | float | str):
            return traced
        if isinstance(traced, torch.SymInt) and isinstance(value.type, ScalarType):
            return value.type.dim
        return value

    def _arg(self, arg: Any) -> Arg:
        kind = type(arg)
        if kind is fx.Node:
            return self._of(arg)  # type: ignore[no-any-return]
        if kind in _LITERALS:
            return freeze(arg)
        if isinstance(arg, list | tuple):
            return tuple([self._arg(a) for a in arg])
        if isinstance(arg, torch.SymInt):
            return self._sizes.size(arg)
        if isinstance(arg, dict):
            return hop_args.dict_argument({str(k): self._arg(a) for k, a in arg.items()})
        if isinstance(arg, torch._ops.OpOverload | torch._ops.HigherOrderOperator):
            return hop_args.operator_reference(arg)
        raise ImportFailure(f"a {kind.__name__} cannot be an argument")

    def _of(self, node: Any) -> Any:
        if node in self._stale:
            raise ImportFailure(
                f"%{node.name} is read after '{self._stale[node]}' overwrote it with another type"
            )
        return self._read[node]

    def _is_graph(self, node: fx.Node) -> bool:
        return node.op == "get_attr" and str(node.target) in self._graphs

    def _traced(self, node: fx.Node) -> Any:
        if "val" in node.meta:
            return node.meta["val"]
        return trace(node)

    # --- updates ------------------------------------------------------------------------------

    def _updated(self, node: fx.Node) -> Value | None:
        """The input that a `copy_` writes, when it writes an input."""
        target = node.args[0]
        if not isinstance(target, fx.Node):
            return None
        return next((v for v, names in self._storage.items() if target in names), None)

    def _update(self, node: fx.Node) -> None:
        """An input takes a value; whoever reads the input later reads that value."""
        target = self._updated(node)
        value = self._arg(node.args[1])
        if target is None or not isinstance(value, Value):
            raise ImportFailure(f"it copies {value!r}, which is not a tensor, into an input")
        self._updates[target] = value
        self._writes.append((len(self._nodes), target, node.name))
        self._storage[target].append(node)
        fits = _shape_and_dtype(value) == _shape_and_dtype(target)
        for name in self._storage[target]:
            self._read[name] = value
            if not fits:
                self._stale[name] = node.name

    def _refuse_stale_views(self) -> None:
        """A view taken before an input was written, and read after, would show the old data."""
        for position, target, write in self._writes:
            views = {target}
            for index, node in enumerate(self._nodes):
                stale = next((v for v in node.operands if v in views), None)
                if stale is not None and index >= position:
                    raise ImportFailure(
                        f"%{node.name} reads %{stale.name}, a view of %{target.name}, "
                        f"after '{write}' wrote %{target.name}",
                        help="functionalize the graph first",
                    )
                if stale is not None and node.op.kind is Kind.VIEW:
                    views.update(node.results)


def _is_nested(traced: object) -> bool:
    return isinstance(traced, list | tuple) and any(isinstance(t, list | tuple) for t in traced)


def _defines_size(node: Node) -> bool:
    return isinstance(node.result.type, ScalarType) and node.result.type.dim is not None


def _shape_and_dtype(value: Value) -> object:
    if isinstance(value.type, TensorType):
        return value.type.dtype, value.type.shape, value.type.device
    return value.type


def refuse_mutation(called: Op, args: tuple[Arg, ...], kwargs: Mapping[str, Arg]) -> None:
    """Raises ImportFailure for a call that writes its arguments."""
    known = signature(called)
    if known is not None and known.is_mutable:
        raise ImportFailure(
            f"{called} writes one of its arguments",
            help="functionalize the graph first: torch.export's run_decompositions() or "
            "torch.func.functionalize",
        )
    if called.name not in _HIDDEN_WRITES or known is None:
        return
    named = {**dict(zip(known.positional, args, strict=False)), **kwargs}
    statistics, flag = _HIDDEN_WRITES[called.name]
    if named.get(statistics) is not None and named.get(flag) is not False:
        raise ImportFailure(f"{called} writes its running statistics")


def _unmasked(called: Op, args: tuple[Arg, ...], traced: Any) -> Any:
    """What a backward operator returns, without the gradients that its mask leaves out."""
    place = next((i for i, n in enumerate(called.argument_names) if n in _MASKS), len(args))
    mask = args[place] if place < len(args) else ()
    if not isinstance(mask, tuple) or not isinstance(traced, tuple | list):
        return traced
    kept = (*mask, *(True for _ in traced[len(mask) :]))
    return tuple(item if keep else None for item, keep in zip(traced, kept, strict=True))


@cache
def _op(target: Callable[..., Any]) -> Op:
    return op_of_target(target)


def _spell(target: object) -> str:
    return getattr(target, "__name__", None) or repr(target)


_NUMBER_FUNCTIONS: Final = frozenset(PYTHON_FUNCTIONS.values())


def _located(failure: ImportFailure, node: fx.Node) -> ImportFailure:
    """The failure, saying which node and which line of the user's source it is about."""
    loc = loc_of(node.meta.get("stack_trace"))
    called = f" ({_spell_call(node)})" if node.op == "call_function" else ""
    where = f" at {loc}" if loc is not None else ""
    message = f"node '{node.name}'{called}{where}: {failure.message}"
    return ImportFailure(message, who=failure.who or "import", help=failure.help)


def _spell_call(node: fx.Node) -> str:
    try:
        return _op(node.target).name
    except ImportFailure:
        return _spell(node.target)
