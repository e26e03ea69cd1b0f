"""A kernel-level graph as Python: the sequence of calls that runs it, written to be read.

`prepare` makes the buffers of one call (once for each tuple of sizes), `run` makes the calls. The
order is the graph's, node for node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from rewright.codegen.callees import callee, fills_large, function_names, operator_names
from rewright.codegen.input_sizes import input_sizes
from rewright.codegen.python_text import python_arg, python_names, python_tuple
from rewright.codegen.runtime import Frame
from rewright.codegen.storages import (
    kept_storages,
    last_reads,
    read_by_kernels,
    result_of_buffer,
    windows_of,
)
from rewright.ir import (
    Arg,
    Constant,
    Dim,
    Graph,
    Kind,
    Node,
    ScalarType,
    Size,
    TensorType,
    Value,
    leaves,
    op_of_target,
    shares_input_storage,
    storage_roots,
    symbols_of,
    values_in,
)
from rewright.ir.hop_args import decode
from rewright.ir.signature import result_paths
from rewright.ir.storage import keeps_operands

ALIGNMENT = 64

# Attributes of a frame that are no buffers.
_FRAME_NAMES: Final = (*dir(Frame), *Frame.__annotations__)


@dataclass(frozen=True)
class CallSequence:
    """Python source, and the objects that its names stand for."""

    source: str
    constants: Mapping[str, Constant]
    operators: Mapping[str, str]  # name in the source -> IR operator it calls
    kernels: Mapping[str, str]  # node -> kernel
    functions: Mapping[str, tuple[Node, str]]  # name in the source -> a node's nested graph


def write_calls(graph: Graph, kernels: Mapping[str, str], *, traced: bool = False) -> CallSequence:
    """The call sequence of a kernel-level graph.

    `kernels` gives the kernel of each region. `traced` adds a record of every step to a list
    called `trace`, which tests compare with the graph.
    """
    writer = _Writer(graph, kernels, traced)
    writer.drop(writer.unread())
    for node in graph.nodes:
        writer.node(node)
    return writer.finish()


class _Writer:
    """Lines of `prepare` and `run`, grown node by node."""

    def __init__(self, graph: Graph, kernels: Mapping[str, str], traced: bool) -> None:
        self.graph, self.kernels, self.traced = graph, kernels, traced
        self.sizes = input_sizes(graph)
        self.operators = operator_names(graph)
        self.functions = function_names(graph)
        self.names = self._names()
        self.roots = storage_roots(graph)
        self.windows = windows_of(self.roots)
        self.in_frame: set[Value] = set()
        self.local = {i.value for i in graph.inputs}
        self.allocs = [n for n in graph.nodes if n.op.name == "rw.alloc"]
        self.slots = {n.result: i for i, n in enumerate(self.allocs)}
        self.of_buffer = result_of_buffer(graph)
        self.prepare: list[str] = []
        self.run: list[str] = []
        self.constants: dict[str, Constant] = {}
        self.last_read = last_reads(graph, self.roots)
        self.in_kernels = read_by_kernels(graph, self.roots)
        saved = (i.value for i in graph.inputs if i.role in ("saved", "tangent"))
        self.run += self._laid_out(saved)

    # --- names ------------------------------------------------------------------------------

    def _names(self) -> dict[str, str]:
        """Python names of values. A buffer goes by the name of what is written into it."""
        symbols = (s.name for s in self.graph.symbols)
        called = (*self.operators.values(), *self.kernels.values(), *self.functions.values())
        names = python_names(
            (v.name for v in self.graph.values), (*called, *symbols, *_FRAME_NAMES)
        )
        for buffer, value in result_of_buffer(self.graph).items():
            names[buffer.name] = names[value.name]
        return names

    def name(self, value: Value) -> str:
        plain = self.names[value.name]
        return f"frame.{plain}" if value in self.in_frame else plain

    def arg(self, arg: Arg) -> str:
        return python_arg(arg, self.name)

    def args(self, node: Node) -> str:
        name = self.read_by(node)
        parts = [python_arg(a, name) for a in node.args]
        parts += [f"{k}={python_arg(a, name)}" for k, a in node.kwargs if k != "out"]
        return ", ".join(parts)

    def read_by(self, node: Node) -> Callable[[Value], str]:
        return self.lasting if keeps_operands(node) else self.name

    def lasting(self, value: Value) -> str:
        """A value for somebody who keeps it longer than the frame keeps its buffer."""
        copied = ".clone()" if self.roots[value] in self.in_frame else ""
        return f"{self.name(value)}{copied}"

    # --- nodes ------------------------------------------------------------------------------

    def node(self, node: Node) -> None:
        if self.traced:
            self.run.append(f"trace.append(({node.op.name!r}, {_subject(node)!r}))")
        match node.op.name:
            case "rw.alloc":
                self.alloc(node)
            case "rw.free":
                self.free(node.operands[0])
            case "rw.constant":
                self.constant(node)
            case "rw.frozen":
                self.frozen(node)
            case _ if node.op.kind is Kind.REGION:
                self.region(node)
            case _:
                self.call(node)
        self.drop(self.last_read.get(id(node), ()))

    def alloc(self, node: Node) -> None:
        slot, type = self.slots[node.result], node.result.tensor
        self.in_frame.add(node.result)
        shape, strides = python_tuple(type.shape), python_tuple(type.layout)
        self.prepare.append(
            f"{self.name(node.result)} = frame.place(offsets[{slot}], {shape}, {strides}, "
            f"{type.dtype})"
        )

    def free(self, value: Value) -> None:
        if value not in self.in_frame:
            self.drop([value])

    def drop(self, storages: Iterable[Value]) -> None:
        """Let go of storages: of every local name that is a window of one."""
        windows = (v for storage in storages for v in self.windows[storage])
        names = [self.names[v.name] for v in windows if v in self.local]
        if names:
            self.run.append(f"del {', '.join(names)}")

    def constant(self, node: Node) -> None:
        value, data = node.result, node.kwarg("value")
        assert isinstance(data, Constant)
        self.constants[self.names[value.name]] = data
        self.in_frame.add(value)
        self.prepare.append(f"{self.name(value)} = constants[{self.names[value.name]!r}]")

    def frozen(self, node: Node) -> None:
        self.local.update(node.results)
        names = ", ".join(self.name(v) for v in node.results)
        self.run.append(f"[{names}] = {self.functions[id(node), 'body']}({self.args(node)})")
        self.run += self._laid_out(node.results)

    def region(self, node: Node) -> None:
        kernel = self.kernels[node.name]
        outputs = self.destinations(node)
        pointers = [*values_in(node.args), *outputs]
        fixed = [self.name(v) if v in self.in_frame else "None" for v in pointers]
        table = f"frame.tables[{node.name!r}]"
        self.prepare.append(f"{table} = frame.pointers({', '.join(fixed)})")
        self.run.append(f"p = {table}")
        self.run += [
            f"p[{i}] = {self.name(v)}.data_ptr()"
            for i, v in enumerate(pointers)
            if v not in self.in_frame
        ]
        self.run.append(f"{kernel}(p, frame.sizes)")

    def destinations(self, node: Node) -> list[Value]:
        """Where each result goes: a buffer of the frame, or a new tensor made here."""
        out = node.kwarg("out")
        buffers = out if isinstance(out, tuple) else (None,) * len(node.results)
        for value, buffer in zip(node.results, buffers, strict=True):
            if isinstance(buffer, Value):
                self.in_frame.add(value)
                continue
            self.local.add(value)
            self.run.append(f"{self.name(value)} = {_new(value.tensor)}")
        return list(node.results)

    def call(self, node: Node) -> None:
        if self._is_fixed_view(node):
            self.in_frame.update(node.results)
            self.prepare.append(f"{self.targets(node)} = {self.call_text(node)}")
            return
        out = node.kwarg("out")
        if isinstance(out, tuple) and isinstance(out[0], Value):
            self.in_frame.add(node.result)
            self.run.append(self.call_into(node, self.arg(out[0])))
            return
        self.local.update(node.results)
        if fills_large(node):
            name = self.name(node.result)
            self.run.append(f"{name} = {_new(node.result.tensor)}")
            self.run.append(self.call_into(node, name))
            return
        self.run += self.assignment(node)
        self._bind_sizes(node)
        if not shares_input_storage(node):
            self.run += self._laid_out(node.results)

    def call_into(self, node: Node, name: str) -> str:
        """The call that writes its result where a name says."""
        arguments = f"{self.args(node)}, out={name}"
        return f"{self.operators[callee(node)]}({arguments.removeprefix(', ')})"

    def _is_fixed_view(self, node: Node) -> bool:
        """True for a view that stays where it is for as long as the frame lives."""
        if not shares_input_storage(node) or node.operands[0] not in self.in_frame:
            return False
        sizes = symbols_of(a for a in _leaves(node) if isinstance(a, Dim))
        return all(s.name in self.sizes for s in sizes)

    def call_text(self, node: Node) -> str:
        name = self.operators[node.op.name]
        if node.op.namespace != "hop":
            return f"{name}({self.args(node)})"
        functions = {graph: _Text(self.functions[id(node), graph]) for graph, _ in node.graphs}
        read = self.read_by(node)
        args, kwargs = decode(node, lambda arg: _Text(python_arg(arg, read)), functions)
        parts = [self._spelled(a) for a in args]
        parts += [f"{k}={self._spelled(a)}" for k, a in kwargs.items()]
        return f"{name}({', '.join(parts)})"

    def _spelled(self, arg: object) -> str:
        """Arguments of a higher-order operator, whose leaves are text or operators."""
        if isinstance(arg, _Text):
            return arg
        if isinstance(arg, tuple):
            return python_tuple(self._spelled(a) for a in arg)
        if isinstance(arg, dict):
            return "{" + ", ".join(f"{k!r}: {self._spelled(a)}" for k, a in arg.items()) + "}"
        return self.operators[op_of_target(arg).name]

    def targets(self, node: Node) -> str:
        names = ", ".join(self.name(v) for v in node.results)
        return names if result_paths(node) == ((),) else f"[{names}]"

    def assignment(self, node: Node) -> Iterator[str]:
        """The call, and its results by name."""
        paths = result_paths(node)
        if not paths:
            yield self.call_text(node)
        elif paths == ((),) or paths == tuple((i,) for i in range(len(paths))):
            yield f"{self.targets(node)} = {self.call_text(node)}"
        else:
            yield f"returned = {self.call_text(node)}"
            for value, path in zip(node.results, paths, strict=True):
                yield f"{self.name(value)} = returned{''.join(f'[{key!r}]' for key in path)}"
            yield "del returned"

    def _bind_sizes(self, node: Node) -> None:
        """A size known only now gets its name from the first result that shows it."""
        for value in node.results:
            if isinstance(value.type, ScalarType) and self._is_late(value.type.dim):
                self.run.append(f"{value.type.dim} = {self.name(value)}")
            if isinstance(value.type, TensorType):
                self.run += [
                    f"{size} = {self.name(value)}.shape[{d}]"
                    for d, size in enumerate(value.type.shape)
                    if self._is_late(size)
                ]

    def _laid_out(self, values: Iterable[Value]) -> Iterator[str]:
        """Kernels read by the strides and dtypes in the graph. What ATen returns, and autograd
        hands from the forward to the backward, may have others where torch's shape functions are
        mistaken, or where they were asked about another device."""
        for value in values:
            if not isinstance(value.type, TensorType):
                continue
            if value in self.in_kernels or value.type.device.type != "cpu":
                name, type = self.name(value), value.type
                yield f"{name} = laid_out({name}, {python_tuple(type.layout)}, {type.dtype})"

    def _is_late(self, size: Size | None) -> bool:
        return isinstance(size, Dim) and size.is_symbol and size.text not in self.sizes

    # --- the whole --------------------------------------------------------------------------

    def finish(self) -> CallSequence:
        self.run += self.updates()
        outputs = ", ".join(self.output(a) for a in self.graph.outputs)
        owned = ["owned = {}"] if any(map(self.constant_behind, self.graph.outputs)) else []
        inputs = ", ".join(self.names[i.value.name] for i in self.graph.inputs)
        unpack = [f"{inputs}{',' if len(self.graph.inputs) == 1 else ''} = args"] if inputs else []
        names = ", ".join(self.sizes)
        bind = [f"{names}, = frame.symbols"] if names else []
        lines = [
            f'"""graph {self.graph.name}: {len(set(self.kernels.values()))} kernels, '
            f'{len(self.run)} steps."""',
            "",
            *self._planned(names),
            "",
            "",
            "def sizes_of(args):",
            *_indented([f"return {python_tuple(self.sizes.values())}"]),
            "",
            "",
            "def prepare(sizes, device):",
            *_indented(self._frame(names)),
            *_indented(self.prepare),
            *_indented(["return frame"]),
            "",
            "",
            "def run(args, frame):",
            *_indented([*bind, *unpack, "args.clear()", *self.run, *owned, f"return [{outputs}]"]),
            "",
        ]
        source = "\n".join(lines)
        kernels = dict(self.kernels)
        operators = {text: name for name, text in self.operators.items()}
        of_id = {id(node): node for node in self.graph.nodes}
        functions = {text: (of_id[i], graph) for (i, graph), text in self.functions.items()}
        return CallSequence(source, self.constants, operators, kernels, functions)

    def updates(self) -> Iterator[str]:
        """Updates happen at once: what another one would overwrite is copied first."""
        targets = {target for target, _ in self.graph.updates}
        sources: list[str] = []
        copies: list[str] = []
        for target, value in self.graph.updates:
            source = self.name(value)
            if value != target and self.roots[value] in targets:
                source, copies = f"copies[{len(copies)}]", [*copies, f"{source}.clone()"]
            sources.append(f"{self.name(target)}.copy_({source})")
        if copies:
            yield f"copies = [{', '.join(copies)}]"
        yield from sources

    def output(self, arg: Arg) -> str:
        """What is returned; a window of a constant as a copy that the caller may write."""
        constant = self.constant_behind(arg)
        return self.arg(arg) if constant is None else f"own({self.arg(arg)}, owned, {constant!r})"

    def constant_behind(self, arg: Arg) -> str | None:
        """The constant that an output is, or is a window of."""
        root = self.roots[arg] if isinstance(arg, Value) else None
        made = None if root is None else self.graph.producers.get(root)
        return made.name if made is not None and made.op.name == "rw.constant" else None

    def unread(self) -> list[Value]:
        """Inputs that nothing reads."""
        read = {self.roots[v] for n in self.graph.nodes for v in n.operands}
        kept = kept_storages(self.graph, self.roots)
        return [i.value for i in self.graph.inputs if i.value not in read | kept]

    def _planned(self, names: str) -> list[str]:
        """The plan at the sizes seen at compile time, and what planning again needs."""
        freed = {n.operands[0]: i for i, n in enumerate(self.graph.nodes) if n.op.name == "rw.free"}
        place = {n.result: i for i, n in enumerate(self.graph.nodes) if n.op.name == "rw.alloc"}
        rows = []
        for node in self.allocs:
            value = self.of_buffer.get(node.result, node.result)
            last = freed.get(value, len(self.graph.nodes))
            nbytes = node.result.tensor.nbytes
            rows.append(f"({place[node.result]}, {last}, {nbytes}, {node.kwarg('offset')}),")
        hints = python_tuple(s.hint or 0 for s in self.graph.symbols if s.name in self.sizes)
        total = max((_end(n) for n in self.allocs), default=0)
        return [
            f"HINTS = {hints}",
            f"ARENA_BYTES = {total}",
            "",
            "",
            f"def intervals({names}):",
            *_indented(["return [", *_indented(rows), "]"]),
        ]

    def _frame(self, names: str) -> list[str]:
        unpack = [f"{names}, = sizes"] if names else []
        return [
            *unpack,
            f"planned = intervals({names})",
            "offsets, nbytes = [slot[3] for slot in planned], ARENA_BYTES",
            "if sizes != HINTS:",
            f"    offsets, nbytes = place_again(planned, {ALIGNMENT})",
            "frame = Frame(nbytes, device, sizes)",
        ]


class _Text(str):
    """An expression, among arguments that are still objects."""


def _leaves(node: Node) -> Iterator[object]:
    """Everything that a view's call and results are made of."""
    yield from leaves((node.args, *(a for _, a in node.kwargs)))
    for value in node.results:
        if isinstance(value.type, TensorType):
            yield from value.type.shape


def _new(type: TensorType) -> str:
    """A tensor of its own."""
    device = "" if type.device.type == "cpu" else f", torch.device({str(type.device)!r})"
    return f"new({python_tuple(type.shape)}, {python_tuple(type.layout)}, {type.dtype}{device})"


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _subject(node: Node) -> str:
    return node.name or ", ".join(v.name for v in node.operands)


def _end(alloc: Node) -> int:
    offset = alloc.kwarg("offset")
    assert isinstance(offset, int)
    return -(-(offset + alloc.result.tensor.nbytes_hint) // ALIGNMENT) * ALIGNMENT
