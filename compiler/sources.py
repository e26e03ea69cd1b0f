"""What a command line names: a `.pt2` file, a `.rw` text, MLIR, or `pkg.mod:factory`."""

from __future__ import annotations

import dataclasses
import importlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from rewright.ir import CheckError, Graph, ImportFailure, ScalarType, Symbol, TensorType, evaluate

if TYPE_CHECKING:
    from rewright.ir.pt2 import Bindings

# Text and bytecode.
MLIR_SUFFIXES: Final = (".mlir", ".mlirbc")


@dataclass(frozen=True)
class Source:
    """A graph to work on. `bindings` holds its parameters and calling convention when it came from
    a module; `eager` is that module; `args` and `kwargs` are example inputs when there are any."""

    graph: Graph
    bindings: Bindings | None = None
    eager: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_examples(self) -> bool:
        return bool(self.args or self.kwargs)

    def inputs(self) -> list[Any]:
        """Inputs of the graph: the examples, else random ones."""
        if self.bindings is not None and self.has_examples:
            return self.bindings.flatten(self.args, self.kwargs)
        made = random_inputs(self.graph)
        if self.bindings is None:
            return made
        state = self.bindings.state
        names = (input.value.name for input in self.graph.inputs)
        return [state.get(name, random) for name, random in zip(names, made, strict=True)]


def load_source(spec: str) -> Source:
    """Read what `spec` names. Raises ImportFailure, TextError or CheckError, and ToolchainError
    where torch-mlir is missing."""
    if spec.endswith(".rw"):
        return from_text(Path(spec))
    if spec.endswith(MLIR_SUFFIXES):
        return from_mlir(Path(spec))
    if ":" in spec and not Path(spec).exists():
        return from_factory(spec)
    return from_program(Path(spec))


def from_text(path: Path) -> Source:
    """A graph at the aten level."""
    from rewright.ir.text_files import load_text

    graph = load_text(path)
    try:
        _check(graph)
    except CheckError as error:
        raise _in_file(error, path) from None
    return Source(graph)


def from_mlir(path: Path) -> Source:
    """The function of an MLIR file in the `torch` dialect, with the parameters beside it."""
    from rewright.ir.mlir_import import load_mlir, load_state

    graph = load_mlir(path)
    _check(graph)
    state = load_state(path, graph)
    return Source(graph, bound_by_order(graph, state) if state else None)


def bound_by_order(graph: Graph, state: Mapping[str, torch.Tensor]) -> Bindings:
    """A call takes the inputs that are no `state` in order, and gives a tuple."""
    from torch.utils import _pytree as pytree

    from rewright.ir.pt2 import Bindings

    names = tuple(input.value.name for input in graph.inputs)
    taken = tuple(name for name in names if name not in state)
    in_spec = pytree.tree_structure((taken, {}))
    return Bindings(names, state, in_spec, pytree.tree_structure(tuple(graph.outputs)))


def _check(graph: Graph) -> None:
    """Raises CheckError for a graph that would compute nonsense: files may say anything."""
    from rewright.ir.check import check
    from rewright.ir.check_types import check_types

    check(graph, "aten")
    check_types(graph)


def _in_file(error: CheckError, path: Path) -> CheckError:
    """The error with its excerpt from the file, where the file has that very line."""
    lines = path.read_text().splitlines()
    found = error.excerpt
    if found is None or found.text not in lines:
        return error
    excerpt = dataclasses.replace(found, file=str(path), line=1 + lines.index(found.text))
    return CheckError(error.message, who=error.who, excerpt=excerpt, help=error.help)


def from_program(path: Path) -> Source:
    from rewright.ir.pt2 import load, read_program

    program = read_program(path)
    graph, bindings = load(program, name=path.stem)
    args, kwargs = program.example_inputs or ((), {})
    return Source(graph, bindings, program.module(), tuple(args), dict(kwargs))


def from_factory(spec: str) -> Source:
    """`pkg.mod:factory`, a function that gives (module, inputs)."""
    from rewright.api import export
    from rewright.ir.pt2 import load

    module, inputs = made_by(spec)
    with torch_kept_quiet():
        program = export(module, inputs)
    graph, bindings = load(program, name=spec.rpartition(":")[2])
    return Source(graph, bindings, module, inputs)


def made_by(spec: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The module and the inputs that a factory gives. Raises ImportFailure."""
    if ":" not in spec:
        raise ImportFailure(
            f"'{spec}' names no factory", help="write pkg.mod:factory, giving (module, inputs)"
        )
    made = _call_factory(spec)
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise ImportFailure(
            f"{spec} gave {type(made).__name__}, not a pair of a module and its inputs",
            help="return (module, (input, ...))",
        )
    module, inputs = made
    return module, tuple(inputs)


@contextmanager
def torch_kept_quiet() -> Iterator[None]:
    """torch.export prints pages, and logs, before it raises what says the same."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


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

        known = [n for n in vars(module) if not n.startswith("_")]
        raise ImportFailure(f"{module_name} has no function '{name}'{did_you_mean(name, known)}")
    return factory()


def random_inputs(graph: Graph, seed: int = 0) -> list[Any]:
    """Inputs of a graph's types: normal numbers, zeros and ones, coin flips. Sizes are those seen
    at compile time, small ones where none was seen."""
    generator = torch.Generator().manual_seed(seed)
    sizes = small_sizes(graph)
    made: list[Any] = []
    for input in graph.inputs:
        type = input.value.type
        if isinstance(type, ScalarType):
            made.append(evaluate(type.dim, sizes) if type.dim is not None else 1)
        elif isinstance(type, TensorType):
            made.append(_random(type, sizes, generator))
        else:
            made.append(None)
    return made


def small_sizes(graph: Graph) -> dict[str, int]:
    """A value for each symbol: the one that was seen at compile time, or a small one."""
    return {symbol.name: _some_size(symbol) for symbol in graph.symbols}


def _some_size(symbol: Symbol) -> int:
    if symbol.hint is not None:
        return symbol.hint
    size = max(2 * symbol.divisor, symbol.low)
    return size if symbol.high is None else min(size, symbol.high)


def _random(type: TensorType, sizes: Mapping[str, int], generator: torch.Generator) -> torch.Tensor:
    shape = [evaluate(s, sizes) for s in type.shape]
    strides = [evaluate(s, sizes) for s in type.layout]
    reached = (evaluate(type.storage_elements, sizes),)  # fewer than indices when dims are expanded
    if type.dtype.is_floating_point or type.dtype.is_complex:
        values = torch.randn(reached, generator=generator).to(type.dtype)
    elif type.dtype == torch.bool:
        values = torch.rand(reached, generator=generator) < 0.5
    else:
        values = torch.randint(0, 2, reached, generator=generator).to(type.dtype)
    return values.to(type.device).as_strided(shape, strides)
