"""What a command line names: a `.pt2` file, a `.rw` text, or `pkg.mod:factory`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rewright.ir import Graph, ImportFailure

if TYPE_CHECKING:
    from rewright.ir.pt2 import Bindings


@dataclass(frozen=True)
class Source:
    """A graph to work on. `bindings` holds its parameters and calling convention when it came from
    a module; `eager` is that module; `inputs` are example inputs when the source names any."""

    graph: Graph
    bindings: Bindings | None = None
    eager: Callable[..., Any] | None = None
    inputs: tuple[Any, ...] = ()


def load_source(spec: str) -> Source:
    """Read what `spec` names. Raises ImportFailure or TextError."""
    if spec.endswith(".rw"):
        from rewright.ir.text_files import load_text

        return Source(load_text(Path(spec)))
    if ":" in spec and not Path(spec).exists():
        return from_factory(spec)
    return _from_program(spec)


def _from_program(spec: str) -> Source:
    from rewright.ir.pt2 import load, read_program

    program = read_program(Path(spec))
    graph, bindings = load(program)
    args, kwargs = program.example_inputs or ((), {})
    if kwargs:
        return Source(graph, bindings, program.module())
    return Source(graph, bindings, program.module(), tuple(args))


def from_factory(spec: str) -> Source:
    """`pkg.mod:factory`, a function that gives (module, inputs)."""
    made = _call_factory(spec)
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise ImportFailure(
            f"{spec} gave {type(made).__name__}, not a pair of a module and its inputs",
            help="return (module, (input, ...))",
        )
    from rewright.ir.pt2 import load

    module, inputs = made
    graph, bindings = load(export(module, tuple(inputs)))
    return Source(graph, bindings, module, tuple(inputs))


def export(module: nn.Module, inputs: Sequence[Any]) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module, tuple(inputs))


def _call_factory(spec: str) -> object:
    module_name, _, name = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ImportFailure(f"cannot import {module_name}: {error}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        from rewright.ir import did_you_mean

        raise ImportFailure(
            f"{module_name} has no function '{name}'{did_you_mean(name, dir(module))}"
        )
    return factory()


def random_inputs(graph: Graph, seed: int = 0) -> list[Any]:
    """Inputs of a graph's types, sizes at the hints: normal numbers, small integers, coin flips."""
    from rewright.ir import ScalarType, TensorType, hint

    generator = torch.Generator().manual_seed(seed)
    made: list[Any] = []
    for input in graph.inputs:
        type = input.value.type
        if isinstance(type, ScalarType):
            made.append(hint(type.dim) if type.dim is not None else 1)
        elif isinstance(type, TensorType):
            made.append(_random(type, generator))
        else:
            made.append(None)
    return made


def _random(type: Any, generator: torch.Generator) -> torch.Tensor:
    from rewright.ir import hint

    shape = [hint(s) for s in type.shape]
    if type.dtype.is_floating_point or type.dtype.is_complex:
        values = torch.randn(shape, generator=generator).to(type.dtype)
    elif type.dtype == torch.bool:
        values = torch.rand(shape, generator=generator) < 0.5
    else:
        values = torch.randint(0, 4, shape, generator=generator).to(type.dtype)
    strides = [hint(s) for s in type.layout]
    return torch.empty_strided(shape, strides, dtype=type.dtype).copy_(values)
