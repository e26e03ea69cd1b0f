"""A graph as a standalone Python script: for bug reports and for reading, not for speed.

The script needs torch alone, makes its own inputs, and works at any size its inputs have.
"""

from __future__ import annotations

import builtins
import keyword
import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch

from rewright.ir import hop_args
from rewright.ir.constant import Constant
from rewright.ir.constant_text import values_text
from rewright.ir.dims import UNKNOWN_SIZE, Dim, Size
from rewright.ir.errors import UnsupportedError
from rewright.ir.graph import Arg, Graph, Node, Value, dims_in, fresh_names, sizes_of
from rewright.ir.ops import Op, op_of_target
from rewright.ir.show import show_arg, show_loc, show_type
from rewright.ir.signature import signature
from rewright.ir.types import CPU, OtherType, ScalarType, TensorType, Type

_NORMAL: Final = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_TAKEN: Final = frozenset({*dir(builtins), *keyword.kwlist, "torch", "math", "operator", "inputs"})


def as_python(graph: Graph) -> str:
    """A script that computes `graph` on random inputs and prints its outputs.

    Large constants are replaced by random ones. Raises UnsupportedError for what torch cannot
    express.
    """
    return _Script(graph).text()


def as_function(name: str, graph: Graph) -> str:
    """A function that takes the inputs of `graph`, which has no constants, and returns the tuple of
    its outputs. It wants torch to be imported. Raises UnsupportedError as `as_python`."""
    script = _Script(graph)
    script.function(name, graph, bare=False)
    return "\n\n\n".join(script.functions)


class _Script:
    """Everything at the top level; hands out names, each once in the whole script."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.symbols = {symbol.name for symbol in graph.symbols}
        self.taken = fresh_names(_TAKEN | self.symbols)
        self.constants: list[str] = []
        self.functions: list[str] = []

    def fresh(self, wanted: str) -> str:
        plain = re.sub(r"[^A-Za-z0-9_]", "_", wanted)
        return self.taken(plain if plain[:1].isalpha() else f"_{plain}")

    def text(self) -> str:
        name = self.fresh(self.graph.name)
        inputs = self.function(name, self.graph, bare=False)
        parts = [self.head(), *self.functions, self.samples(inputs), _MAIN.format(name=name)]
        return "\n\n\n".join(parts)

    def head(self) -> str:
        modules = [m for m in ("math", "operator") if any(f"{m}." in f for f in self.functions)]
        imports = [f"import {module}" for module in (*modules, "torch")]
        sizes = [
            f"{s.name} = {UNKNOWN_SIZE if s.hint is None else s.hint}" for s in self.graph.symbols
        ]
        seed = ["", "torch.manual_seed(0)"]
        return "\n".join([_FIRST_LINE, *imports, *seed, *sizes, *self.constants])

    def samples(self, names: list[str]) -> str:
        """The function that makes inputs called `names`."""
        types = [input.value.type for input in self.graph.inputs]
        made = [f"    {n} = {_sample(t)}" for n, t in zip(names, types, strict=True)]
        return "\n".join(["def inputs():", *made, f"    return {_tuple(names)}"])

    def function(self, name: str, graph: Graph, *, bare: bool) -> list[str]:
        """Add the function that computes `graph`, and give the names of its inputs.

        It returns a tuple, or with `bare` its one output as it is.
        """
        body = _Body(self)
        lines = body.lines(graph, bare=bare)
        inputs = [body.names[i.value] for i in graph.inputs]
        head = f"def {name}({', '.join(inputs)}):"
        self.functions.append("\n".join([head, *(f"    {line}" for line in lines)]))
        return inputs


class _Body:
    """The statements of one function."""

    def __init__(self, script: _Script) -> None:
        self.script = script
        self.names: dict[Value, str] = {}
        self.unbound: set[str] = set()

    def lines(self, graph: Graph, *, bare: bool) -> list[str]:
        self.unbound = {symbol.name for dim in _read_sizes(graph) for symbol in dim.symbols}
        lines: list[str] = []
        for input in graph.inputs:
            self.define(input.value)
        for input in graph.inputs:
            lines += self.bind(input.value)
        for node in graph.nodes:
            lines += self.node(node)
        lines += [f"{self.names[i]}.copy_({self.names[v]})" for i, v in graph.updates]
        outputs = [self.arg(output) for output in graph.outputs]
        return [*lines, f"return {outputs[0] if bare else _tuple(outputs)}"]

    def define(self, value: Value) -> str:
        self.names[value] = self.script.fresh(value.name)
        return self.names[value]

    def bind(self, value: Value) -> Iterator[str]:
        """Reads the symbols that the function uses off the first value that shows them."""
        for place, size in _places(value.type):
            if isinstance(size, Dim) and size.is_symbol and size.text in self.unbound:
                self.unbound.remove(size.text)
                yield f"{size.text} = {self.names[value]}{place}"

    def node(self, node: Node) -> Iterator[str]:
        if node.op.name == "rw.free":
            yield f"del {', '.join(self.names[v] for v in node.operands)}"
            return
        call = self.constant(node) if node.op.name == "rw.constant" else self.call(node)
        results = [self.define(value) for value in node.results]
        paths = _paths(node)
        if paths == ((),):
            yield f"{results[0]} = {call}{_comment(node)}"
        elif all(path == (index,) for index, path in enumerate(paths)):
            targets = ", ".join(results) if len(results) > 1 else _tuple(results)
            yield f"{targets} = {call}{_comment(node)}" if results else f"{call}{_comment(node)}"
        else:
            whole = self.script.fresh("returned")
            yield f"{whole} = {call}{_comment(node)}"
            for name, path in zip(results, paths, strict=True):
                yield f"{name} = {whole}{''.join(f'[{key!r}]' for key in path)}"
        for value in node.results:
            yield from self.bind(value)

    def constant(self, node: Node) -> str:
        held, type = node.kwarg("value"), node.result.tensor
        assert isinstance(held, Constant)
        if values_text(held, type) is None:
            name = self.script.fresh(f"constant_{held.sha256[:12]}")
            self.script.constants.append(f"{name} = {_sample(type)}  # random, not the real one")
            return name
        flat = _python(tuple(held.tensor.reshape(-1).tolist()))
        made = f"torch.tensor({flat}, dtype={type.dtype}{_device(type)})"
        return made if type.rank == 1 else f"{made}.reshape({_sizes(type.shape)})"

    def call(self, node: Node) -> str:
        if node.op.name == "rw.alloc":
            type = node.result.tensor
            layout = f"{_sizes(type.shape)}, {_sizes(type.layout)}"
            return f"torch.empty_strided({layout}, dtype={type.dtype}{_device(type)})"
        if node.op.namespace == "hop":
            return self.higher_order(node)
        if node.op.dialect is not None:
            return self.region(node)
        args = [self.arg(a) for a in node.args]
        # A list of buffers is where the schedule puts results; a script makes new ones.
        named = [(key, a) for key, a in node.kwargs if key != "out" or isinstance(a, Value)]
        args += [_keyword(key, self.arg(a)) for key, a in named]
        return f"{_spelling(node.op)}({', '.join(args)})"

    def region(self, node: Node) -> str:
        assert node.op.dialect is not None
        body = node.op.dialect.body
        if body is None or isinstance(node.kwarg("out"), Value):
            raise UnsupportedError(f"{node.op} (%{node.name}) has no form in a script")
        graph = node.graph(body)
        name = self.script.fresh(f"{node.name}_{body}")
        self.script.function(name, graph, bare=len(graph.outputs) == 1)
        return f"{name}({', '.join(self.arg(a) for a in node.args)})"

    def higher_order(self, node: Node) -> str:
        bare = hop_args.bare_graphs(node)
        graphs: dict[str, _Code] = {}
        for key, graph in node.graphs:
            graphs[key] = _Code(self.script.fresh(f"{node.name}_{key}"))
            self.script.function(graphs[key], graph, bare=key in bare)
        decoded, keywords = hop_args.decode(node, lambda leaf: _Code(self.arg(leaf)), graphs)
        args = [_source(a) for a in decoded]
        args += [_keyword(key, _source(a)) for key, a in keywords.items()]
        return f"{_spelling(node.op)}({', '.join(args)})"

    def arg(self, arg: Arg) -> str:
        return _python(arg, self.names)


class _Code(str):
    """Text that is Python already."""

    __slots__ = ()


# --- text ---------------------------------------------------------------------------------------

_FIRST_LINE: Final = "# Written by Rewright. Needs torch alone; the inputs are random."
_MAIN: Final = """if __name__ == "__main__":
    for output in {name}(*inputs()):
        print(output)
"""


def _python(arg: Arg, names: Mapping[Value, str] | None = None) -> str:
    if isinstance(arg, Value):
        return (names or {})[arg]
    if isinstance(arg, tuple):
        return f"[{', '.join(_python(a, names) for a in arg)}]"
    if isinstance(arg, float) and not math.isfinite(arg):
        return f'float("{arg}")'
    if isinstance(arg, complex):
        return f"complex({_python(arg.real)}, {_python(arg.imag)})"
    return f"torch.{show_arg(arg)}" if isinstance(arg, torch.device) else repr(arg)


def _source(value: object) -> str:
    """Decoded arguments of a higher-order operator, whose leaves are code already."""
    if isinstance(value, _Code):
        return value
    if isinstance(value, tuple):
        return _tuple([_source(item) for item in value])
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_source(item)}' for key, item in value.items())}}}"
    return _spelling(op_of_target(value))


def _tuple(items: Sequence[str]) -> str:
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


def _sizes(sizes: tuple[Size, ...]) -> str:
    return _tuple([str(size) for size in sizes])


def _keyword(key: str, value: str) -> str:
    return f'**{{"{key}": {value}}}' if keyword.iskeyword(key) else f"{key}={value}"


def _spelling(op: Op) -> str:
    """How a script calls an operator."""
    if op.namespace == "py":
        return _function(op)
    _, _, path = op.name.partition("hop.")
    parts = ["higher_order", path] if path else op.name.split(".")
    text = "torch.ops"
    for part in parts:
        text = f'getattr({text}, "{part}")' if keyword.iskeyword(part) else f"{text}.{part}"
    return text


def _function(op: Op) -> str:
    name = getattr(op.target, "__name__", "")
    if getattr(builtins, name, None) is op.target:
        return name
    module = next(m for m in (operator, math, torch) if getattr(m, name, None) is op.target)
    return f"{module.__name__}.{name}"


def _paths(node: Node) -> tuple[hop_args.Path, ...]:
    """Where each result lies in what the call returns."""
    if node.op.namespace == "hop":
        return tuple(hop_args.paths(node))
    called = signature(node.op)
    if len(node.results) == 1 and not (called and called.returns_list):
        return ((),)
    return tuple((index,) for index in range(len(node.results)))


def _comment(node: Node) -> str:
    """Types and place, which no line break may leave."""
    text = ", ".join(show_type(value.type) for value in node.results)
    if node.loc is not None:
        text += f"  {show_loc(node.loc)}"
    return f"  # {text.strip()}" if text else ""


def _read_sizes(graph: Graph) -> Iterator[Dim]:
    """The sizes that the statements of a function mention."""
    for node in graph.nodes:
        yield from dims_in((node.args, *(a for _, a in node.kwargs)))
        if node.op.name == "rw.alloc":
            yield from dims_in(tuple(sizes_of(node.result.type)))
    yield from dims_in(graph.outputs)


def _places(type: Type) -> Iterator[tuple[str, Size | None]]:
    """Sizes that a value shows, each with how to read it off."""
    if isinstance(type, TensorType):
        yield from ((f".shape[{index}]", size) for index, size in enumerate(type.shape))
    elif isinstance(type, ScalarType):
        yield "", type.dim


# --- inputs -------------------------------------------------------------------------------------


def _sample(type: Type) -> str:
    """An expression for a value of this type."""
    if isinstance(type, OtherType):
        return "torch.Generator()" if type.kind == "generator" else "None"
    if isinstance(type, ScalarType):
        return str(type.dim) if type.dim is not None else f"{type.kind}(1)"
    if type.strides is None:
        return _sample_contiguous(type, _sizes(type.shape))
    flat = _sample_contiguous(type, _sizes((type.storage_elements,)))
    return f"{flat}.as_strided({_sizes(type.shape)}, {_sizes(type.strides)})"


def _sample_contiguous(type: TensorType, shape: str) -> str:
    """Integers are ones: a fair index, divisor and mask alike."""
    if type.dtype in _NORMAL:
        return f"torch.randn({shape}, dtype={type.dtype}{_device(type)})"
    if type.dtype == torch.bool:
        return f"(torch.rand({shape}{_device(type)}) < 0.5)"
    if type.dtype.is_floating_point or type.dtype.is_complex:
        return f"torch.randn({shape}{_device(type)}).to({type.dtype})"
    return f"torch.ones({shape}, dtype={type.dtype}{_device(type)})"


def _device(type: TensorType) -> str:
    return "" if type.device == CPU else f', device="{type.device}"'
