"""`program.py` of an artefact: the call sequence with what it needs around it, as text."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import torch

from rewright.codegen import input_sizes, main_device
from rewright.codegen.python_text import python_tuple
from rewright.ir import Graph, ScalarType, TensorType, UnsupportedError, Value, op
from rewright.ir.python_dump import as_function

if TYPE_CHECKING:
    from rewright.driver import Program


def program_text(program: Program, held: Container[str], constants: Mapping[str, str]) -> str:
    """Imports, the operators and kernels it calls, the call sequence, `load()`.

    `held` names the inputs whose tensors lie in the folder; the caller passes the others.
    `constants` gives the name of each constant there. Raises UnsupportedError for operators that
    need more than torch.
    """
    calls, graph, device = program.executable.calls, program.graph, main_device(program.graph)
    bind = "" if not calls.kernels else _BIND if device.type == "cpu" else _BIND_GPU
    given = [input.value for input in graph.inputs if input.value.name not in held]
    operators = [f"{short} = {_operator(name)}" for short, name in sorted(calls.operators.items())]
    kept = [
        f"@Frozen\n{as_function(short, node.graph(name))}"
        for short, (node, name) in calls.functions.items()
    ]
    return _PROGRAM.format(
        title=graph.name,
        operators="\n".join(operators),
        kept="\n\n\n".join(kept),
        kernels=json.dumps(sorted(set(calls.kernels.values()))),
        device=device,
        elsewhere=json.dumps(dict(_elsewhere(graph, device, constants))),
        bind=bind,
        bound="    bind_kernels()\n" * bool(bind),
        around=("driver.entered(), " if bind is _BIND_GPU else "") + _WITHOUT_AUTOCAST,
        # On a GPU calls on other streams may still be at work in an arena that is kept.
        retain=device.type == "cpu",
        calls=calls.source.split('"""', 2)[2].strip(),
        inputs=json.dumps([i.value.name for i in graph.inputs]),
        given=json.dumps([value.name for value in given]),
        mutable=json.dumps([i.value.name for i in graph.inputs if i.mutable]),
        first=json.dumps(_first_shapes(given)),
        constants=json.dumps(dict(constants)),
        bounds="\n".join(f"    {line}" for line in _bounds(graph)) or "    pass",
        symbols=", ".join(input_sizes(graph)),
        layouts="\n".join(f"        {line}" for line in _layouts(given)),
    )


def _operator(name: str) -> str:
    found = op(name)
    if isinstance(found.target, torch._ops.OpOverload):
        return f"torch.ops.{name}"
    if found.namespace == "py" and found.target is not None:
        return f"{found.target.__module__.lstrip('_')}.{found.target.__name__}"
    raise UnsupportedError(f"an artefact cannot hold the higher-order {name}", who="save")


def _first_shapes(given: Iterable[Value]) -> dict[str, int]:
    """The rank of each tensor that the caller passes."""
    return {v.name: v.type.rank for v in given if isinstance(v.type, TensorType)}


def _elsewhere(
    graph: Graph, device: torch.device, constants: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Inputs and constants that lie on another device than the program's buffers."""
    made = [n.result for n in graph.nodes if n.op.name == "rw.constant"]
    named = [(i.value.name, i.value) for i in graph.inputs]
    for name, value in (*named, *zip(constants.values(), made, strict=True)):
        if isinstance(value.type, TensorType) and value.type.device != device:
            yield name, str(value.type.device)


def _bounds(graph: Graph) -> Iterator[str]:
    """Checks of the sizes, and of the Python numbers that were fixed."""
    known = input_sizes(graph)
    for symbol in graph.symbols:
        if symbol.name not in known:
            continue
        high = "" if symbol.high is None else f" <= {symbol.high}"
        divides = f" and {symbol.name} % {symbol.divisor} == 0" if symbol.divisor > 1 else ""
        wanted = f"{symbol.low} <= {symbol.name}{high}{divides}"
        yield f"if not ({wanted}):"
        yield f'    raise ValueError(f"wanted {wanted}, not {symbol.name} = {{{symbol.name}}}")'


def _layouts(given: Iterable[Value]) -> Iterator[str]:
    for value in given:
        type = value.type
        if isinstance(type, TensorType):
            shape, strides = python_tuple(type.shape), python_tuple(type.layout)
            yield f"{value.name!r}: ({type.dtype}, {shape}, {strides}),"
        elif isinstance(type, ScalarType) and type.dim is not None:
            yield f"{value.name!r}: {type.dim},"


_WITHOUT_AUTOCAST: Final = "torch.autocast(DEVICE.type, enabled=False)"

_BIND: Final = """\
def bind_kernels():
    library = loading["library"](HERE / "kernels.so")
    for name in KERNELS:
        function = getattr(library, name)
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        function.restype = None
        globals()[name] = function


"""

_BIND_GPU: Final = """\
def bind_kernels():
    global driver
    driver, launches = runpy.run_path(str(HERE / "driver.py"))["kernels_in"](HERE, DEVICE)
    globals().update(launches)


"""

_PROGRAM: Final = '''"""graph {title} as Python: `load()` gives a function of the model's inputs.

Written by rewright; needs torch, nothing else.
"""

import ctypes
import math
import operator
import pathlib
import runpy

import torch

HERE = pathlib.Path(__file__).resolve().parent
runtime, loading = (runpy.run_path(str(HERE / f"{{name}}.py")) for name in ("runtime", "loading"))
Frame, Frames, Frozen = (runtime[name] for name in ("Frame", "Frames", "Frozen"))
laid_out, new, own = (runtime[name] for name in ("laid_out", "new", "own"))
place_again = runtime["place_again"]

{operators}

{kept}

DEVICE = torch.device("{device}")
ELSEWHERE = {elsewhere}
KERNELS = {kernels}
INPUTS = {inputs}
GIVEN = {given}
MUTABLE = {mutable}
RANKS = {first}
CONSTANTS = {constants}  # by their names in tensors.safetensors
constants = {{}}


{calls}


def check_bounds({symbols}):
{bounds}


def layouts({symbols}):
    return {{
{layouts}
    }}


{bind}def load(verify=True):
    """A function that takes the model's inputs and returns its outputs as a list.

    Raises RuntimeError when a file is not as it was written (`verify` compares digests too), and
    when this machine lacks what the kernels need.
    """
    loading["opened"](HERE, verify=verify)
{bound}    tensors = loading["read_tensors"](HERE / "tensors.safetensors")
    tensors = loading["on_device"](tensors, DEVICE, ELSEWHERE)
    constants.update({{name: tensors[held] for name, held in CONSTANTS.items()}})
    state = {{name: tensors[name] for name in INPUTS if name not in GIVEN}}
    frames = Frames(lambda sizes: prepare(sizes, DEVICE), retain={retain})

    @torch.no_grad()
    def call(*inputs):
        if len(inputs) != len(GIVEN):
            raise TypeError(f"takes {{len(GIVEN)}} inputs: {{', '.join(GIVEN)}}")
        given = dict(zip(GIVEN, inputs))
        for name, rank in RANKS.items():
            if not isinstance(given[name], torch.Tensor) or given[name].dim() != rank:
                raise TypeError(f"{{name}} is a tensor of {{rank}} dimensions")
        args = [given[n] if n in given else state[n] for n in INPUTS]
        sizes = sizes_of(args)
        check_bounds(*sizes)
        for name, wanted in layouts(*sizes).items():
            home = torch.device(ELSEWHERE.get(name, DEVICE))
            args[INPUTS.index(name)] = loading["fitted"](name, given[name], wanted, home)
        written = [(given[n], args[INPUTS.index(n)]) for n in MUTABLE if n in given]
        with {around}:
            frame = frames.take(sizes)
            try:
                return run(args, frame)
            finally:
                frames.put(sizes, frame)
                for arg, used in written:
                    if used is not arg:
                        arg.copy_(used)

    return call
'''
