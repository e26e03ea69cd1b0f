"""`rewright.optimize`: a module and example inputs in, a checked, callable program out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rewright.ir import Graph, InputError
from rewright.options import Options

if TYPE_CHECKING:
    from rewright.driver import Program
    from rewright.ir.pt2 import Bindings
    from rewright.report import Report


class Compiled:
    """An optimized module. Call it as the module; look into it through its attributes."""

    def __init__(self, program: Program, bindings: Bindings) -> None:
        self.program = program
        self.bindings = bindings

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on the module's arguments.

        Raises InputError when they do not fit what the module was optimized for.
        """
        flat = self.bindings.inputs(self.program.source, args, kwargs)
        bind(self.program.source, flat)
        return self.bindings.outputs(self.program.executable(flat))

    @property
    def graph(self) -> Graph:
        """The schedule that runs, at the kernel level; `str(graph)` is its text."""
        return self.program.graph

    @property
    def report(self) -> Report:
        return self.program.report

    def save(self, folder: str | Path) -> Path:
        """Write an artefact that runs with torch alone. Raises ArtefactError."""
        from rewright.artefact import save

        return save(self.program, self.bindings, Path(folder))


def optimize(
    module: nn.Module | torch.export.ExportedProgram | str | Path,
    example_inputs: Sequence[Any] = (),
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    **options: Any,
) -> Compiled:
    """Optimize a module for the target and build it.

    `module` is an nn.Module, an exported program or a `.pt2` file; `example_inputs` are its
    positional arguments (not needed for exported programs), `dynamic_shapes` is torch.export's.
    `options` are those of `rewright.Options`. The module's parameters are read at every call, so
    that weights changed in place count. Raises RewrightError.
    """
    from rewright.driver import compile_graph
    from rewright.ir.pt2 import load

    checked = Options.of(options)
    program: Any = module
    if isinstance(module, nn.Module):
        program = torch.export.export(
            module, tuple(example_inputs), dict(example_kwargs or {}), dynamic_shapes=dynamic_shapes
        )
    graph, bindings = load(program)
    return Compiled(compile_graph(graph, checked), bindings)


def check_inputs(graph: Graph, args: Sequence[Any]) -> None:
    """Refuse arguments whose number, dtype, rank or fixed sizes differ from the signature."""
    from rewright.ir import TensorType

    for input, arg in zip(graph.inputs, args, strict=True):
        if input.role != "input" or not isinstance(input.value.type, TensorType):
            continue
        type = input.value.type
        if not isinstance(arg, torch.Tensor):
            raise InputError(f"%{input.value.name} is a tensor, not {arg!r}")
        wanted = f"%{input.value.name} is {_spell(type.dtype, type.shape)}"
        found = _spell(arg.dtype, tuple(arg.shape))
        fits = arg.dtype == type.dtype and arg.dim() == type.rank
        if not fits or any(
            isinstance(size, int) and size != given
            for size, given in zip(type.shape, arg.shape, strict=True)
        ):
            raise InputError(
                f"{wanted}, the argument is {found}",
                help="optimize again with these inputs, or name the size in dynamic_shapes=",
            )


def _spell(dtype: torch.dtype, shape: Sequence[object]) -> str:
    from rewright.ir import DTYPE_NAMES

    return f"{DTYPE_NAMES[dtype]}[{', '.join(map(str, shape))}]"
