"""From the IR to MLIR: a graph as a function of torch-mlir's `torch` dialect.

Inputs and results are `!torch.vtensor`s, inputs that may be written `!torch.tensor`s. Locations
carry names and lines of the user's source. What the dialect has no word for goes into attributes
called `rewright.*`, which other tools carry along and our importer reads.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from rewright.ir.constant import Constant
from rewright.ir.dims import Dim, Symbol
from rewright.ir.errors import ImportFailure, RewrightError, UnsupportedError
from rewright.ir.expand import expand
from rewright.ir.graph import Arg, Graph, Input, Node, Value
from rewright.ir.mlir_context import (
    VERSION,
    bindings,
    inside,
    lower_to_linalg,
    make_context,
    state_path,
)
from rewright.ir.mlir_literals import elements
from rewright.ir.mlir_operands import Operands
from rewright.ir.mlir_scalars import scalar_operator
from rewright.ir.mlir_sizes import affine, sizes_of_map, symbols_in
from rewright.ir.mlir_types import is_said, mlir_type
from rewright.ir.ops import op
from rewright.ir.show import show_type
from rewright.ir.signature import signature
from rewright.ir.symbol_sources import symbol_sources
from rewright.ir.text_files import replace_file, write_tensors
from rewright.ir.types import ScalarType, TensorType, Type

# Operators whose tensor argument may be a number for torch, and what the dialect calls them then.
_WITH_SCALARS: Final = {
    "aten.add.Tensor": "aten.add.Scalar",
    "aten.sub.Tensor": "aten.sub.Scalar",
    "aten.mul.Tensor": "aten.mul.Scalar",
    "aten.div.Tensor": "aten.div.Scalar",
}
_LARGEST: Final = 2**63 - 1


def to_mlir(graph: Graph) -> str:
    """The text of `graph` in the `torch` dialect.

    Regions are inlined. Raises ToolchainError without torch-mlir, UnsupportedError for what cannot
    be carried, naming the operator and its place in the user's source.
    """
    return _text(_module(graph))


def to_bytecode(graph: Graph) -> bytes:
    """`to_mlir` as MLIR bytecode."""
    written = io.BytesIO()
    _module(graph).operation.write_bytecode(written)
    return written.getvalue()


def save_mlir(
    graph: Graph, path: str | Path, state: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write `graph` to a `.mlir` file as text, to a `.mlirbc` file as bytecode; `state`, tensors of
    inputs by their names, to the `.safetensors` file called after it.

    Raises what `to_mlir` raises, and ArtefactError when a file cannot be written.
    """
    target = Path(path)
    data = to_bytecode(graph) if target.suffix == ".mlirbc" else f"{to_mlir(graph)}\n".encode()
    replace_file(target, lambda p: p.write_bytes(data))
    if state:
        replace_file(state_path(target), lambda p: write_tensors(dict(state), p))
    else:  # that of the file which was there before
        state_path(target).unlink(missing_ok=True)


def to_linalg(graph: Graph) -> str:
    """The text of `graph` as linalg on tensors, lowered by torch-mlir.

    What updates write is returned after the outputs. Raises what `to_mlir` raises, also for
    operators that torch-mlir does not lower.
    """
    module = _module(_functional(expand(graph)), symbols=False)
    lower_to_linalg(module)
    return _text(module)


def _module(graph: Graph, *, symbols: bool = True) -> Any:
    """A module with one function. `symbols` has it say which `?` is which size; torch-mlir cannot
    lower that."""
    ir = bindings()
    with inside(make_context()):
        module = ir.Module.create()
        with ir.InsertionPoint(module.body):
            _Exporter(ir, expand(graph), symbols=symbols).function()
        try:
            module.operation.verify()
        except ir.MLIRError as error:
            raise UnsupportedError(f"graph {graph.name} has no form in MLIR: {error}") from None
    return module


def _text(module: Any) -> str:
    text: str = module.operation.get_asm(enable_debug_info=True, use_name_loc_as_prefix=True)
    return text.rstrip()


def _functional(graph: Graph) -> Graph:
    """The same function, returning what it would write; attention as the dialect spells it."""
    written = tuple(value for _, value in graph.updates)
    inputs = tuple(dataclasses.replace(i, mutable=False) for i in graph.inputs)
    nodes = tuple(_portable(node, graph) for node in graph.nodes)
    outputs = (*graph.outputs, *written)
    return dataclasses.replace(graph, inputs=inputs, nodes=nodes, outputs=outputs, updates=())


def _portable(node: Node, graph: Graph) -> Node:
    """The node by operators that torch-mlir knows, where it lacks the node's own."""
    if node.op.name == "aten.squeeze.dims":
        # Tensors of the dialect have no strides: any reshape is a view.
        view, shape = op("aten.view.default"), node.result.tensor.shape
        return dataclasses.replace(node, op=view, args=(node.args[0], shape))
    if node.op.name != "aten._scaled_dot_product_flash_attention_for_cpu.default":
        return node
    output, sums = node.results
    if sums in graph.readers or sums in graph.returned:
        return node
    query, key, value = node.args[:3]
    args = (query, key, value, node.arg("attn_mask"), node.arg("dropout_p"), node.arg("is_causal"))
    kwargs = (("scale", node.arg("scale")),)
    called = op("aten.scaled_dot_product_attention.default")
    return dataclasses.replace(node, op=called, args=args, kwargs=kwargs, results=(output,))


class _Exporter:
    """One walk over a graph without regions."""

    def __init__(self, ir: Any, graph: Graph, *, symbols: bool) -> None:
        self._ir = ir
        self._graph = graph
        self._with_symbols = symbols
        self._operands = Operands(ir, symbol_sources(graph))
        self._made = self._operands.made
        self._symbols: dict[str, Any] = {}
        self._arguments: dict[Value, Any] = {}

    def function(self) -> None:
        ir, graph = self._ir, self._graph
        inputs = [self._type(i.value.type, mutable=i.mutable) for i in graph.inputs]
        unknown = ir.FunctionType.get(inputs, [])
        attributes = {
            "sym_name": ir.StringAttr.get(graph.name),
            "function_type": ir.TypeAttr.get(unknown),
            "arg_attrs": ir.ArrayAttr.get([self._input_facts(i) for i in graph.inputs]),
            "rewright.version": self._integer(VERSION),
        }
        function = ir.Operation.create("func.func", attributes=attributes, regions=1)
        places = [ir.Location.name(i.value.name) for i in graph.inputs]
        block = function.regions[0].blocks.append(*inputs, arg_locs=places)
        with ir.InsertionPoint(block):
            results = self._body(block)
        known = ir.FunctionType.get(inputs, [result.type for result in results])
        function.attributes["function_type"] = ir.TypeAttr.get(known)

    def _body(self, block: Any) -> list[Any]:
        for symbol in self._graph.symbols if self._with_symbols else ():
            self._symbols[symbol.name] = self._declare(symbol)
        for input, argument in zip(self._graph.inputs, block.arguments, strict=True):
            self._arguments[input.value] = argument
            made = argument
            if input.mutable:
                kind = mlir_type(input.value.type)
                made = self._operands.create("torch.copy.to_vtensor", [argument], kind)
            self._put(input.value, made)
        for node in self._graph.nodes:
            try:
                with self._line(node):
                    self._node(node)
            except RewrightError as error:
                raise _located(error, node) from None
        for target, value in self._graph.updates:
            written = [self._made[value], self._arguments[target]]
            self._ir.Operation.create("torch.overwrite.tensor.contents", [], written)
        results = [self._output(output) for output in self._graph.outputs]
        self._ir.Operation.create("func.return", [], results)
        return results

    def _output(self, output: Arg) -> Any:
        if isinstance(output, tuple):
            raise UnsupportedError(f"graph {self._graph.name} returns a list, which MLIR has not")
        return self._operands.of(output)

    # --- facts --------------------------------------------------------------------------------

    def _input_facts(self, input: Input) -> Any:
        ir = self._ir
        facts = {"rewright.name": ir.StringAttr.get(input.value.name)}
        if input.role != "input":
            facts["rewright.role"] = ir.StringAttr.get(input.role)
        if not self._is_said(input.value.type):
            facts["rewright.type"] = ir.StringAttr.get(show_type(input.value.type))
        return ir.DictAttr.get(facts)

    def _facts(self, node: Node) -> dict[str, Any]:
        """What the dialect does not say about a node."""
        ir = self._ir
        facts: dict[str, Any] = {}
        if not all(self._is_said(v.type) for v in node.results):
            shown = [ir.StringAttr.get(show_type(v.type)) for v in node.results]
            facts["rewright.types"] = ir.ArrayAttr.get(shown)
        if len(node.results) > 1:
            names = [ir.StringAttr.get(v.name) for v in node.results]
            facts["rewright.names"] = ir.ArrayAttr.get(names)
        if node.seq_nr is not None:
            facts["rewright.seq"] = self._integer(node.seq_nr)
        if node.phase is not None:
            facts["rewright.phase"] = ir.StringAttr.get(node.phase)
        return facts

    def _is_said(self, type: Type) -> bool:
        if not is_said(type):
            return False
        if not isinstance(type, TensorType) or not _is_symbolic(type):
            return True
        symbols = symbols_in(type.shape)
        map = affine(type.shape, symbols)
        if map is None:
            return False
        sizes = {s.name: Dim.of(s) for s in self._graph.symbols}
        try:
            return sizes_of_map(map, [sizes[name] for name in symbols]) == type.shape
        except ImportFailure:
            return False

    def _integer(self, value: int) -> Any:
        return self._ir.IntegerAttr.get(self._ir.IntegerType.get_signless(64), value)

    def _type(self, type: Type, *, mutable: bool = False) -> Any:
        return self._ir.Type.parse(mlir_type(type, mutable=mutable))

    def _line(self, node: Node) -> Any:
        if node.loc is None:
            return self._ir.Location.unknown()
        return self._ir.Location.file(node.loc.file, node.loc.line, 0)

    def _name(self, node: Node) -> Any:
        line = self._line(node)
        return self._ir.Location.name(node.name, line) if node.name else line

    # --- symbols and values -------------------------------------------------------------------

    def _declare(self, symbol: Symbol) -> Any:
        high = _LARGEST if symbol.high is None else symbol.high
        facts = {
            "symbol_name": self._ir.StringAttr.get(symbol.name),
            "min_val": self._integer(symbol.low),
            "max_val": self._integer(high),
        }
        if symbol.hint is not None:
            facts["rewright.hint"] = self._integer(symbol.hint)
        if symbol.divisor != 1:
            facts["rewright.divisor"] = self._integer(symbol.divisor)
        return self._operands.create("torch.symbolic_int", [], "!torch.int", facts)

    def _put(self, value: Value, made: Any) -> None:
        """Remember a value; say which sizes its `?`s are."""
        self._made[value] = made
        if not self._with_symbols or not isinstance(value.type, TensorType):
            return
        if not _is_symbolic(value.type):
            return
        names = symbols_in(value.type.shape)
        map = affine(value.type.shape, names)
        if map is not None:
            self._ir.Operation.create(
                "torch.bind_symbolic_shape",
                [],
                [made, *(self._symbols[name] for name in names)],
                {"shape_expressions": self._ir.AffineMapAttr.get(map)},
            )

    # --- nodes --------------------------------------------------------------------------------

    def _node(self, node: Node) -> None:
        if node.op.name == "rw.constant":
            self._constant(node)
        elif node.graphs or node.op.target is None or node.op.namespace == "hop":
            raise UnsupportedError("it has no form in MLIR")
        elif node.op.namespace == "py":
            operands = [self._operands.of(arg) for arg in node.args]
            self._emit(node, scalar_operator(node.op.name, node.args), operands)
        else:
            self._operator(node)

    def _constant(self, node: Node) -> None:
        data = node.kwarg("value")
        if not isinstance(data, Constant):
            raise UnsupportedError("a constant without data")
        type = mlir_type(node.result.type)
        facts = {"value": elements(data.tensor, node.name), **self._facts(node)}
        with self._name(node):
            made = self._operands.create("torch.vtensor.literal", [], type, facts)
        self._put(node.result, made)

    def _operator(self, node: Node) -> None:
        assert node.op.schema is not None
        arguments = node.op.schema.arguments
        name = node.op.name
        if name in _WITH_SCALARS and _is_number(node.args[1]):
            name = _WITH_SCALARS[name]
            wanted = [a.type for a in op(name).schema.arguments]  # type: ignore[union-attr]
        else:
            wanted = [a.type for a in arguments]
        operands = [
            self._operands.of(node.arg(argument.name), type)
            for argument, type in zip(arguments, wanted, strict=True)
        ]
        self._emit(node, f"torch.{name.removesuffix('.default')}", operands)

    def _emit(self, node: Node, name: str, operands: list[Any]) -> None:
        """The operation `name`; one that the dialect lacks, or types otherwise, by way of the
        dialect's `torch.operator`."""
        ir = self._ir
        known = signature(node.op)
        is_list = known is not None and known.returns_list
        types = [self._type(value.type) for value in node.results]
        results = [ir.Type.parse("!torch.list<vtensor>")] if is_list else types
        facts = self._facts(node)
        if name != f"torch.{node.op.name.removesuffix('.default')}":
            facts["rewright.op"] = ir.StringAttr.get(node.op.name)
        with self._name(node):
            made = self._verified(name, results, operands, facts)
            if made is None:
                named = {"name": ir.StringAttr.get(name), **facts}
                made = self._verified("torch.operator", results, operands, named)
        if made is None:
            raise UnsupportedError("its arguments or results have no form in MLIR")
        values = made.results
        if is_list:
            values = ir.Operation.create("torch.prim.ListUnpack", types, list(values)).results
        for value, result in zip(node.results, values, strict=True):
            self._put(value, result)

    def _verified(
        self, name: str, results: list[Any], operands: list[Any], facts: Mapping[str, Any]
    ) -> Any:
        """The operation, or None when the dialect does not take it."""
        ir = self._ir
        if not ir.Context.current.is_registered_operation(name):
            return None
        made = ir.Operation.create(name, results, operands, dict(facts))
        try:
            made.verify()
        except ir.MLIRError:
            made.erase()
            return None
        return made


def _is_symbolic(type: TensorType) -> bool:
    return any(isinstance(size, Dim) for size in type.shape)


def _is_number(arg: Arg) -> bool:
    return isinstance(arg, bool | int | float | Dim) or (
        isinstance(arg, Value) and isinstance(arg.type, ScalarType)
    )


def _located(error: RewrightError, node: Node) -> UnsupportedError:
    """The error, saying which node and which line of the user's source it is about."""
    where = f" at {node.loc}" if node.loc is not None else ""
    message = f"node '{node.name}' ({node.op.name}){where}: {error.message}"
    return UnsupportedError(message, who=error.who or "mlir", help=error.help)
