"""A kernel-level graph as Python: the sequence of calls that runs it, written to be read.

`prepare` makes the buffers of one call (once for each tuple of sizes), `run` makes the calls. The
order is the graph's, node for node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rewright.codegen.python_text import python_arg, python_names, python_size, python_tuple
from rewright.ir import (
    Arg,
    Constant,
    Dim,
    Graph,
    Kind,
    Node,
    ScalarType,
    Size,
    Symbol,
    TensorType,
    UnsupportedError,
    Value,
    out_variant,
    shares_input_storage,
    storage_roots,
    values_in,
)

ALIGNMENT = 64


@dataclass(frozen=True)
class CallSequence:
    """Python source, and the objects that its names stand for."""

    source: str
    constants: Mapping[str, Constant]
    operators: Mapping[str, str]  # name in the source -> IR operator it calls
    kernels: Mapping[str, str]  # node -> kernel


def write_calls(graph: Graph, kernels: Mapping[str, str], *, traced: bool = False) -> CallSequence:
    """The call sequence of a kernel-level graph.

    `kernels` gives the kernel of each region. `traced` adds a record of every step to a list
    called `trace`, which tests compare with the graph.
    """
    writer = _Writer(graph, kernels, traced)
    for node in graph.nodes:
        writer.node(node)
    return writer.finish()


class _Writer:
    """Lines of `prepare` and `run`, grown node by node."""

    def __init__(self, graph: Graph, kernels: Mapping[str, str], traced: bool) -> None:
        self.graph, self.kernels, self.traced = graph, kernels, traced
        self.names = python_names(v.name for v in graph.values)
        self.roots = storage_roots(graph)
        self.in_frame: set[Value] = set()
        self.local = {i.value for i in graph.inputs}
        self.allocs = [n for n in graph.nodes if n.op.name == "rw.alloc"]
        self.slots = {n.result: i for i, n in enumerate(self.allocs)}
        for buffer, value in _result_of_buffer(graph).items():
            self.names[buffer.name] = self.names[value.name]
        self.prepare: list[str] = []
        self.run: list[str] = []
        self.operators: dict[str, str] = {}
        self.constants: dict[str, Constant] = {}
        self.last_read = _last_reads(graph, self.roots)
        self.symbols = [s for s in graph.symbols if s.hint is not None]

    # --- names ------------------------------------------------------------------------------

    def name(self, value: Value) -> str:
        plain = self.names[value.name]
        return f"frame.{plain}" if value in self.in_frame else plain

    def arg(self, arg: Arg) -> str:
        return python_arg(arg, self.name)

    def args(self, node: Node, skip: Sequence[str] = ()) -> str:
        parts = [self.arg(a) for a in node.args]
        parts += [f"{k}={self.arg(a)}" for k, a in node.kwargs if k not in skip]
        return ", ".join(parts)

    def operator(self, name: str) -> str:
        short = name.replace(".", "_").removesuffix("_default")
        self.operators.setdefault(short, name)
        return short

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
            case _ if node.op.kind is Kind.REGION:
                self.region(node)
            case _:
                self.call(node)
        self.drop_inputs(node)

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
            self.delete(value)

    def delete(self, root: Value) -> None:
        """Drop every local name of a storage."""
        names = [self.names[v.name] for v, r in self.roots.items() if r == root and v in self.local]
        if names:
            self.run.append(f"del {', '.join(names)}")

    def constant(self, node: Node) -> None:
        value, data = node.result, node.kwarg("value")
        assert isinstance(data, Constant)
        self.constants[self.names[value.name]] = data
        self.in_frame.add(value)
        self.prepare.append(f"{self.name(value)} = constants[{self.names[value.name]!r}]")

    def region(self, node: Node) -> None:
        kernel = self.kernels[node.name]
        outputs = self.destinations(node)
        pointers = [*values_in(node.args), *outputs]
        fixed = [self.name(v) if v in self.in_frame else "None" for v in pointers]
        table = f"frame.p_{self.names[node.name]}"
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
            type = value.tensor
            self.local.add(value)
            self.run.append(
                f"{self.name(value)} = new({python_tuple(type.shape)}, "
                f"{python_tuple(type.layout)}, {type.dtype}, torch.device({str(type.device)!r}))"
            )
        return list(node.results)

    def call(self, node: Node) -> None:
        if shares_input_storage(node) and node.operands[0] in self.in_frame:
            self.in_frame.update(node.results)
            self.prepare.append(f"{self.targets(node)} = {self.call_text(node)}")
            return
        out = node.kwarg("out")
        if isinstance(out, tuple) and isinstance(out[0], Value):
            overload = out_variant(node.op)
            assert overload is not None
            name = f"{node.op.namespace}.{overload._schema.name.split('::')[1]}"
            operator = self.operator(f"{name}.{overload._overloadname}")
            self.in_frame.add(node.result)
            arguments = f"{self.args(node, ['out'])}, out={self.arg(out[0])}"
            self.run.append(f"{operator}({arguments.removeprefix(', ')})")
            return
        self.local.update(node.results)
        text = self.call_text(node)
        self.run.append(f"{self.targets(node)} = {text}" if node.results else text)
        self._bind_unbacked(node)

    def call_text(self, node: Node) -> str:
        return f"{self.operator(node.op.name)}({self.args(node)})"

    def targets(self, node: Node) -> str:
        names = ", ".join(self.name(v) for v in node.results)
        listed = len(node.results) > 1 or _returns_list(node)
        return f"[{names}]" if listed else names

    def _bind_unbacked(self, node: Node) -> None:
        """A size known only now gets its name from the first result that shows it."""
        for value in node.results:
            if isinstance(value.type, ScalarType) and _is_unbacked(value.type.dim):
                self.run.append(f"{value.type.dim} = {self.name(value)}")
            if isinstance(value.type, TensorType):
                self.run += [
                    f"{size} = {self.name(value)}.shape[{d}]"
                    for d, size in enumerate(value.type.shape)
                    if _is_unbacked(size)
                ]

    def drop_inputs(self, node: Node) -> None:
        """Inputs that nothing reads any more are let go: the caller may have given them up."""
        for root in self.last_read.get(id(node), ()):
            self.delete(root)

    # --- the whole --------------------------------------------------------------------------

    def finish(self) -> CallSequence:
        for target, value in self.graph.updates:
            self.run.append(f"{self.name(target)}.copy_({self.name(value)})")
        outputs = ", ".join(self.output(a) for a in self.graph.outputs)
        inputs = ", ".join(self.names[i.value.name] for i in self.graph.inputs)
        unpack = [f"{inputs}{',' if len(self.graph.inputs) == 1 else ''} = args"] if inputs else []
        names = ", ".join(s.name for s in self.symbols)
        bind = [f"{names}, = frame.symbols"] if names else []
        lines = [
            f'"""graph {self.graph.name}: {len(set(self.kernels.values()))} kernels, '
            f'{len(self.run)} steps."""',
            "",
            *self._planned(),
            "",
            "",
            "def sizes_of(args):",
            *_indented([f"return {self._sizes()}"]),
            "",
            "",
            "def prepare(sizes, device):",
            *_indented(self._frame(names)),
            *_indented(self.prepare),
            *_indented(["return frame"]),
            "",
            "",
            "def run(args, frame):",
            *_indented([*bind, *unpack, "args.clear()", *self.run, f"return [{outputs}]"]),
            "",
        ]
        return CallSequence("\n".join(lines), self.constants, self.operators, dict(self.kernels))

    def output(self, arg: Arg) -> str:
        """What is returned; a constant as a copy that the caller may write."""
        made = self.graph.producers.get(arg) if isinstance(arg, Value) else None
        is_constant = made is not None and made.op.name == "rw.constant"
        return f"{self.arg(arg)}.clone()" if is_constant else self.arg(arg)

    def _planned(self) -> list[str]:
        """The plan at the sizes seen at compile time, and what planning again needs."""
        ends = {_freed(n): i for i, n in enumerate(self.graph.nodes) if n.op.name == "rw.free"}
        of_buffer = _result_of_buffer(self.graph)
        place = {n.result: i for i, n in enumerate(self.graph.nodes) if n.op.name == "rw.alloc"}
        rows = []
        for node in self.allocs:
            value = of_buffer.get(node.result, node.result)
            last = ends.get(value, len(self.graph.nodes))
            nbytes = python_size(node.result.tensor.nbytes)
            rows.append(f"({place[node.result]}, {last}, {nbytes}, {node.kwarg('offset')}),")
        hints = python_tuple([s.hint or 0 for s in self.symbols])
        names = ", ".join(s.name for s in self.symbols)
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
            "frame.symbols = sizes",
        ]

    def _sizes(self) -> str:
        return python_tuple_text(_size_source(self.graph, s) for s in self.symbols)


def python_tuple_text(parts: Iterable[str]) -> str:
    listed = list(parts)
    return f"({', '.join(listed)}{',' if len(listed) == 1 else ''})"


def _size_source(graph: Graph, symbol: Symbol) -> str:
    """An expression over `args` that gives the symbol's value."""
    for i, input in enumerate(graph.inputs):
        type = input.value.type
        if isinstance(type, ScalarType) and _is(type.dim, symbol):
            return f"int(args[{i}])"
        if isinstance(type, TensorType):
            for d, size in enumerate(type.shape):
                if _is(size, symbol):
                    return f"args[{i}].shape[{d}]"
    raise UnsupportedError(f"no input shows the size {symbol.name}")


def _is_unbacked(size: Size | None) -> bool:
    return isinstance(size, Dim) and size.is_symbol and size.symbols[0].hint is None


def _is(size: Size | None, symbol: Symbol) -> bool:
    return isinstance(size, Dim) and size.is_symbol and size.symbols[0] == symbol


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _subject(node: Node) -> str:
    return node.name or ", ".join(v.name for v in node.operands)


def _returns_list(node: Node) -> bool:
    schema = node.op.schema
    return schema is not None and len(schema.returns) == 1 and "[]" in str(schema.returns[0].type)


def _freed(node: Node) -> Value:
    return node.operands[0]


def _result_of_buffer(graph: Graph) -> dict[Value, Value]:
    found: dict[Value, Value] = {}
    for node in graph.nodes:
        out = node.kwarg("out")
        if isinstance(out, tuple):
            found.update(
                (b, v) for b, v in zip(out, node.results, strict=True) if isinstance(b, Value)
            )
    return found


def _end(alloc: Node) -> int:
    offset = alloc.kwarg("offset")
    assert isinstance(offset, int)
    return -(-(offset + alloc.result.tensor.nbytes_hint) // ALIGNMENT) * ALIGNMENT


def _last_reads(graph: Graph, roots: Mapping[Value, Value]) -> dict[int, list[Value]]:
    """Node -> inputs whose storage nothing reads after it."""
    inputs = {i.value for i in graph.inputs}
    kept = {roots[v] for v in graph.returned} | {t for t, _ in graph.updates}
    kept |= {roots[v] for v in values_in(graph.outputs)}
    last: dict[Value, Node] = {}
    for node in graph.nodes:
        for value in node.operands:
            last[roots[value]] = node
    found: dict[int, list[Value]] = {}
    for value, node in last.items():
        if value in inputs and value not in kept and isinstance(value.type, TensorType):
            found.setdefault(id(node), []).append(value)
    return found
