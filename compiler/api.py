"""`rewright.optimize`: a module and example inputs in, a checked, callable program out.
`rewright.rewrite`: the same, and a graph out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rewright.ir import Graph, ImportFailure
from rewright.options import Options

if TYPE_CHECKING:
    from rewright.driver import Program
    from rewright.explaining import Explanation
    from rewright.ir.pt2 import Bindings
    from rewright.report import Report
    from rewright.rewriting import Rewritten


class Compiled:
    """An optimized module. Call it as the module; look into it through its attributes."""

    def __init__(self, program: Program, bindings: Bindings) -> None:
        from rewright.arguments import Arguments

        self.program = program
        self.bindings = bindings
        self._arguments = Arguments(program.source)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on the module's arguments; nothing is recorded for a backward.

        Raises InputError when they do not fit what the module was optimized for.
        """
        flat = self.bindings.flatten(args, kwargs)
        return self.bindings.unflatten(self._arguments.run(self.program.executable, flat))

    @property
    def graph(self) -> Graph:
        """The schedule that runs, at the kernel level; `str(graph)` is its text."""
        return self.program.graph

    @property
    def report(self) -> Report:
        return self.program.report

    def why(self, subject: str | None = None) -> Explanation:
        """What was decided about a value ("%add"), a kernel or a pass ("fuse"), or about all;
        `str()` of it is what `rewright why` prints. Raises CheckError for an unknown name."""
        return self.program.why(subject)

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

    `module` is an nn.Module, an exported program, or a `.pt2`, `.mlir`, `.mlirbc` or `.rw` file;
    `example_inputs` are a module's positional arguments, `dynamic_shapes` is torch.export's.
    `options` are those of `rewright.Options`. The module's parameters are read at every call, so
    that weights changed in place count. Raises RewrightError.
    """
    from rewright.calibration_samples import graph_samples
    from rewright.gpu_artefact import compile_for_target

    checked = Options.of(options)
    graph, bindings = _loaded(module, example_inputs, example_kwargs, dynamic_shapes)
    samples = graph_samples(checked, graph, bindings)
    return Compiled(compile_for_target(graph, checked, samples), bindings)


def rewrite(
    module: nn.Module | torch.export.ExportedProgram | str | Path,
    example_inputs: Sequence[Any] = (),
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    **options: Any,
) -> Rewritten:
    """The graph of a module after the passes that stay among PyTorch's operators (those before
    `fuse`), for other tools: `save("model.mlir")` writes it, nothing is built.

    Arguments are those of `optimize`. Raises RewrightError.
    """
    from rewright import rewriting

    checked = Options.of(options)
    graph, bindings = _loaded(module, example_inputs, example_kwargs, dynamic_shapes)
    return rewriting.rewrite(graph, checked, bindings.state)


def _loaded(
    module: nn.Module | torch.export.ExportedProgram | str | Path,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> tuple[Graph, Bindings]:
    """The graph of whatever a user names, and how it is called."""
    from rewright.ir.pt2 import load
    from rewright.sources import MLIR_SUFFIXES, bound_by_order, load_source

    if isinstance(module, nn.Module):
        return load(export(module, args, kwargs, dynamic_shapes))
    if isinstance(module, (str, Path)) and str(module).endswith((".rw", *MLIR_SUFFIXES)):
        source = load_source(str(module))
        return source.graph, source.bindings or bound_by_order(source.graph, {})
    return load(module)


def export(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> torch.export.ExportedProgram:
    """torch.export's program of an inference. Raises ImportFailure with its reason."""
    try:
        with torch.no_grad():
            return torch.export.export(
                module, tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ImportFailure(
            f"{type(module).__name__} cannot be exported: {reason[0]}",
            help="torch.compile(backend='rewright') takes what torch.export cannot",
        ) from error
