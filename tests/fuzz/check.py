"""One graph: its text, its passes, its kernels; and, for a part, all of it by torch.compile."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch

from drawn_inputs import inputs_for, sizes_of_runs
from fuzz.compare import Mismatch, Run, compare
from fuzz.shaken import floors, shaken
from rewright.costmodel import Roofline
from rewright.driver import Program, compile_graph, target_of
from rewright.ir import Graph
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.ir.show import show
from rewright.options import Options
from rewright.passes import DEFAULT, Env, Pipeline


def check(graph: Graph) -> None:
    """Raises when the graph, compiled, is not what it says: Mismatch, or whatever goes wrong."""
    text = show(graph)
    if parse(text) != graph or show(parse(text)) != text:
        raise Mismatch("the graph's text does not come back as the graph")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = compile_graph(graph, Options())
    if program.plan.note is not None:
        raise Mismatch(f"no kernels: {program.plan.note}")
    for sizes in sizes_of_runs(graph):
        _check_run(graph, program, sizes)


def _check_run(graph: Graph, program: Program, sizes: Mapping[str, int]) -> None:
    own = interpreted(graph, sizes, None)
    wide = interpreted(graph, sizes, torch.float64)
    first, second = _called(graph, program, sizes), _called(graph, program, sizes)
    try:
        compare(first, own, wide, floors(graph), lambda: shaken(graph, sizes))
    except Mismatch as mismatch:
        where = f" at {_spell(graph, sizes)}" if graph.symbols else ""
        raise Mismatch(f"{mismatch}{where}") from None
    for place, (a, b) in enumerate(zip(first.results, second.results, strict=True)):
        if isinstance(a, torch.Tensor) and not _same_bits(a, b):
            raise Mismatch(f"result {place} is another one when the program runs again")


def interpreted(graph: Graph, sizes: Mapping[str, int], dtype: torch.dtype | None) -> Run:
    inputs = inputs_for(graph, sizes)
    if dtype is not None:
        inputs = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    outputs = interpret(graph, inputs, dtype=dtype)
    return Run([*outputs, *inputs])


def _called(graph: Graph, program: Program, sizes: Mapping[str, int]) -> Run:
    inputs = inputs_for(graph, sizes)
    return Run([*program.executable(list(inputs)), *inputs])


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b) or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _spell(graph: Graph, sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{s.name}={sizes[s.name]}" for s in graph.symbols)


def first_wrong_pipeline(graph: Graph) -> str | None:
    """The passes up to the first that fails, or leaves a graph that says something else; None when
    there is no such pass, and so the kernels or the call sequence are wrong."""
    sizes = sizes_of_runs(graph)[0]
    expected = interpreted(graph, sizes, None)
    target = target_of(Options())
    env, current = Env(cost=Roofline(target), target=target), graph
    for count, step in enumerate(DEFAULT, 1):
        try:
            current = Pipeline((step,)).run(current, env).graph
            found = interpreted(current, sizes, None)
        except Exception:  # whatever it says, it should not have
            return str(Pipeline(DEFAULT[:count]))
        pairs = zip(found.results, expected.results, strict=True)
        if any(isinstance(a, torch.Tensor) and not _same_bits(a, b) for a, b in pairs):
            return str(Pipeline(DEFAULT[:count]))
    return None
