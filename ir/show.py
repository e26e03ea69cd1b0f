"""Print the text form: canonical, deterministic, one node a line. `ir/text.lark` is its grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch

from rewright.ir.constant import Constant
from rewright.ir.constant_text import number_text, values_text
from rewright.ir.dims import Dim, Symbol
from rewright.ir.errors import UnsupportedError
from rewright.ir.graph import ROLES, Arg, Graph, Input, Loc, Node, Value
from rewright.ir.types import (
    CPU,
    DTYPE_NAMES,
    DTYPES,
    OTHER_KINDS,
    SCALAR_KINDS,
    ScalarType,
    TensorType,
    Type,
)

VERSION: Final = 1
WIDTH: Final = 100

LAYOUTS: Final[dict[str, torch.layout]] = {
    str(layout).removeprefix("torch."): layout
    for layout in vars(torch).values()
    if isinstance(layout, torch.layout)
}
MEMORY_FORMATS: Final[dict[str, torch.memory_format]] = {
    "preserve": torch.preserve_format,
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}
PHASES: Final = ("forward", "backward")

# Words that mean something where a symbol's name may stand.
WORDS: Final = frozenset(
    {"none", "true", "false", "inf", "nan", "max", "min"}
    | {"device", "layout", "memory_format", "complex"}
    | set(DTYPES)
)
# Words that may follow a call, where the name of a nested graph stands too.
_AFTER_CALL: Final = frozenset({"seq", "update", "return", *PHASES})

_plain_value = re.compile(r"[A-Za-z0-9_.]+").fullmatch
_plain_name = re.compile(r"[A-Za-z_][A-Za-z0-9_]*").fullmatch
_plain_file = re.compile(r"[A-Za-z0-9_.<>/+-]+").fullmatch


def show(graph: Graph, *, header: bool = True) -> str:
    """The canonical text of `graph`, without a line break at its end.

    `header` says whether the line naming the version comes first, as files have it. Raises
    UnsupportedError for what the text form has no words for.
    """
    lines = [f"rewright {VERSION}"] if header else []
    where = [_symbol(symbol) for symbol in graph.symbols]
    lines.append(_block(lines, f"graph {_name(graph.name)}", graph, where, ""))
    return "\n".join(lines)


def show_node(node: Node, indent: str = "") -> str:
    """One node, as it stands in the text of its graph at that indent."""
    lines: list[str] = []
    _node(lines, node, indent)
    return "\n".join(lines)


def show_type(type: Type) -> str:
    """A type, as `f16[B0, 512]`."""
    if isinstance(type, TensorType):
        text = f"{_dtype(type.dtype)}[{', '.join(map(str, type.shape))}]"
        if type.strides is not None:
            text += f" strides [{', '.join(map(str, type.strides))}]"
        return text if type.device == CPU else f"{text} on {type.device}"
    dim = type.dim if isinstance(type, ScalarType) else None
    if type.kind not in (SCALAR_KINDS if isinstance(type, ScalarType) else OTHER_KINDS):
        raise UnsupportedError(f"no type is called '{type.kind}' in the text form")
    return type.kind if dim is None else f"{type.kind}({dim})"


def show_arg(arg: Arg) -> str:
    """One argument or output."""
    printer = _PRINTERS.get(arg.__class__)
    if printer is None:
        raise UnsupportedError(f"an argument of type {arg.__class__.__name__} has no text form")
    return printer(arg)


# --- blocks -------------------------------------------------------------------------------------


def _block(lines: list[str], head: str, graph: Graph, where: list[str], indent: str) -> str:
    """Append all of a graph but its last line, and return that."""
    _header(lines, head, [_input(i) for i in graph.inputs], where, indent)
    inner = f"{indent}  "
    for node in graph.nodes:
        _node(lines, node, inner)
    for target, value in graph.updates:
        lines.append(f"{inner}update {_value(target)} <- {_value(value)}")
    outputs = ", ".join(map(show_arg, graph.outputs))
    lines.append(f"{inner}return {outputs}" if outputs else f"{inner}return")
    return f"{indent}}}"


def _header(lines: list[str], head: str, inputs: list[str], where: list[str], indent: str) -> None:
    """On one line; else each input on its own; when that is not enough, each symbol too."""
    symbols = f" where {', '.join(where)}" if where else ""
    line = f"{head}({', '.join(inputs)}){symbols} {{"
    if len(line) <= WIDTH or not inputs:
        lines.append(line)
        return
    lines.append(f"{head}(")
    lines.extend(_column(inputs, indent))
    line = f"{indent}){symbols} {{"
    if len(line) <= WIDTH:
        lines.append(line)
        return
    lines.append(f"{indent}) where")
    lines.extend(_column(where, indent))
    lines.append(f"{indent}{{")


def _column(items: list[str], indent: str) -> Iterable[str]:
    last = len(items) - 1
    return (f"{indent}    {item}{'' if i == last else ','}" for i, item in enumerate(items))


def _input(input: Input) -> str:
    if input.role not in ROLES:
        raise UnsupportedError(f"an input's role is one of {ROLES}, not '{input.role}'")
    role = "" if input.role == "input" else f" {input.role}"
    mutable = " mutable" if input.mutable else ""
    return f"{_value(input.value)}: {show_type(input.value.type)}{role}{mutable}"


def _symbol(symbol: Symbol) -> str:
    if not _plain_name(symbol.name) or symbol.name in WORDS:
        raise UnsupportedError(f"a symbol cannot be called '{symbol.name}' in the text form")
    high = "inf" if symbol.high is None else symbol.high
    hint = "" if symbol.hint is None else f" hint {symbol.hint}"
    divisor = "" if symbol.divisor == 1 else f" divisor {symbol.divisor}"
    return f"{symbol.name} in [{symbol.low}, {high}]{hint}{divisor}"


def _node(lines: list[str], node: Node, indent: str) -> None:
    results = ", ".join([_value(v) for v in node.results])
    line = f"{indent}{results} = " if results else indent
    line += f"{node.op.name}({', '.join(_arguments(node))})"
    for key, graph in node.graphs:
        line = _block(lines, f"{line} {_graph_names(key, graph)}", graph, [], indent)
    if results:
        line += f" : {', '.join([show_type(v.type) for v in node.results])}"
    lines.append(line + _origin(node))


def _graph_names(key: str, graph: Graph) -> str:
    shown = json.dumps(key) if key in _AFTER_CALL else _name(key)
    return shown if graph.name == key else f"{shown} {_name(graph.name)}"


def _origin(node: Node) -> str:
    text = ""
    if node.loc is not None:
        text += f" @ {show_loc(node.loc)}"
    if node.seq_nr is not None:
        text += f" seq {node.seq_nr}"
    if node.phase is not None:
        if node.phase not in PHASES:
            raise UnsupportedError(f"a node's phase is one of {PHASES}, not '{node.phase}'")
        text += f" {node.phase}"
    return text


def show_loc(loc: Loc) -> str:
    """A place in the user's source, on one line whatever the file is called."""
    file = loc.file if _plain_file(loc.file) else json.dumps(loc.file)
    return f"{file}:{loc.line}"


# --- arguments ----------------------------------------------------------------------------------


def _arguments(node: Node) -> list[str]:
    shown = [show_arg(arg) for arg in node.args]
    for key, arg in node.kwargs:
        if not _plain_name(key):
            raise UnsupportedError(f"{node.op} has an argument called '{key}', which is no name")
        if isinstance(arg, Constant):
            shown.append(_constant(node, key, arg))
        else:
            shown.append(f"{key}={show_arg(arg)}")
    return shown


def _constant(node: Node, key: str, constant: Constant) -> str:
    if (node.op.name, key) != ("rw.constant", "value"):
        raise UnsupportedError(f"{node.op} holds a constant; only rw.constant may")
    values = values_text(constant, node.result.type)
    return f'sha256="{constant.sha256}"' if values is None else f"data={values}"


def _value(value: Value) -> str:
    return f"%{value.name}" if _plain_value(value.name) else f"%{json.dumps(value.name)}"


def _name(name: str) -> str:
    return name if _plain_name(name) else json.dumps(name)


def _dtype(dtype: torch.dtype) -> str:
    name = DTYPE_NAMES.get(dtype)
    if name is None:
        raise UnsupportedError(f"{dtype} has no name in the text form")
    return name


def _items(items: tuple[Arg, ...]) -> str:
    return f"[{', '.join(map(show_arg, items))}]"


_FORMAT_NAMES: Final = {format: name for name, format in MEMORY_FORMATS.items()}

_PRINTERS: Final[Mapping[type, Callable[[Any], str]]] = {
    Value: _value,
    Dim: str,
    tuple: _items,
    type(None): lambda _: "none",
    bool: number_text,
    int: str,
    float: number_text,
    complex: number_text,
    str: json.dumps,
    torch.dtype: _dtype,
    torch.device: lambda device: f'device("{device}")',
    torch.layout: lambda layout: f"layout({str(layout).removeprefix('torch.')})",
    torch.memory_format: lambda format: f"memory_format({_FORMAT_NAMES[format]})",
}
