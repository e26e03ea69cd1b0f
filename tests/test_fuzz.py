"""The fuzzer: a short run of it, what it draws, and that it finds what is wrong."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

import rewright.codegen.cpp
from drawn_graphs import wide_graphs
from drawn_inputs import inputs_for, sizes_of_runs
from fuzz.case_text import CASES, case_text, read_graph
from fuzz.check import check
from fuzz.isolated import Trouble, isolated
from fuzz.known import KNOWN, is_off
from fuzz.search import Failure, Search
from fuzz.through_torch import check_through_torch
from rewright.ir import Graph, Kind, TensorType, Value, storage_roots
from rewright.ir.dims import evaluate
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.ir.show import show
from rewright.passes import Env
from run_case import read_case

TESTS = Path(__file__).parent
DRAWN = 300
COMPILED = 40
THROUGH_TORCH = 4


@cache
def drawn() -> tuple[Graph, ...]:
    """The graphs of the first numbers, as the fuzzer draws them."""
    return tuple(draw(number) for number in range(DRAWN))


def draw(number: int) -> Graph:
    found: list[Graph] = []

    def keep(graph: Graph) -> None:
        found.append(graph)

    Search(wide_graphs(off=is_off), keep).run(number)
    return found[-1] if found else Graph("empty", (), (), ())


# --- a short run --------------------------------------------------------------------------------


@pytest.mark.cpu
@pytest.mark.slow
def test_drawn_graphs_compute_what_they_say() -> None:
    for graph in drawn()[:COMPILED]:
        check(graph)


@pytest.mark.cpu
@pytest.mark.slow
def test_drawn_graphs_are_the_same_by_torch_compile() -> None:
    for graph in drawn()[:THROUGH_TORCH]:
        check_through_torch(graph)


@pytest.mark.cpu
@pytest.mark.slow
def test_the_command_searches_until_the_time_is_up() -> None:
    run = fuzz("--seconds", "1", "--workers", "1", "--seed", "1")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 workers for 1 s, seed 1" in run.stdout
    assert run.stdout.splitlines()[-1] == "in all: 1 graphs checked, 0 failures"


@pytest.mark.cpu
@pytest.mark.slow
def test_graphs_that_were_found_work_unless_they_are_known_to_fail() -> None:
    """A known failure that works by now is no longer one: take it out of `fuzz/known.py`."""
    paths = sorted(CASES.glob("*.rw"))
    said = dict(line.split(": ", 1) for line in fuzz(*map(str, paths)).stdout.splitlines())
    failing = {Path(name).stem for name, what in said.items() if what != "right"}
    assert len(said) == len(paths)
    assert failing == set(KNOWN)


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fuzz", *arguments],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
    )


def test_what_is_known_to_fail_is_a_case() -> None:
    assert set(KNOWN) <= {path.stem for path in CASES.glob("*.rw")}
    for path in CASES.glob("*.rw"):
        law = path.read_text().splitlines()[0]
        assert law.startswith("# ") and law.endswith(".")
        assert parse(show(read_graph(path))) == read_graph(path)


# --- what is drawn ------------------------------------------------------------------------------

FAMILIES = {
    "pointwise": "neg.default add.Tensor mul.Tensor div.Tensor pow.Tensor_Scalar clamp.default",
    "integers": "bitwise_and.Tensor bitwise_not.default div.Tensor_mode remainder.Scalar",
    "choosing": "where.self masked_fill.Scalar lt.Scalar ge.Tensor logical_and.default",
    "views": "view.default permute.default expand.default slice.Tensor select.int unfold.default "
    "diagonal.default split.Tensor unbind.int squeeze.dim unsqueeze.default transpose.int",
    "indexing": "index.Tensor gather.default index_select.default embedding.default",
    "writing": "index_put.default scatter_add.default slice_scatter.default select_scatter.default",
    "joins": "cat.default stack.default constant_pad_nd.default flip.default roll.default "
    "repeat.default tril.default triu.default",
    "reductions": "sum.dim_IntList mean.dim amax.default prod.dim_int any.default all.dim "
    "var_mean.correction var.correction std.correction argmax.default cumsum.default "
    "logsumexp.default linalg_vector_norm.default",
    "norms": "_softmax.default _log_softmax.default native_layer_norm.default "
    "_fused_rms_norm.default",
    "products": "mm.default addmm.default bmm.default linear.default",
    "creations": "arange.default full.default full_like.default",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_drawn(family: str) -> None:
    seen = {node.op.name for graph in drawn() for node in graph.nodes}
    assert not [name for name in FAMILIES[family].split() if f"aten.{name}" not in seen]


def types() -> Iterator[TensorType]:
    return (v.tensor for graph in drawn() for v in graph.values)


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    ],
)
def test_every_dtype_is_drawn(dtype: torch.dtype) -> None:
    assert any(type.dtype == dtype for type in types())


def test_all_kinds_of_sizes_and_strides_are_drawn() -> None:
    shapes = [type.shape for type in types()]
    assert any(0 in shape for shape in shapes) and any(1 in shape for shape in shapes)
    assert any(graph.symbols for graph in drawn()) and not all(g.symbols for g in drawn())
    inputs = [i.value for graph in drawn() for i in graph.inputs]
    assert any(v.name.endswith("_off") for v in inputs)
    assert any(0 in v.tensor.layout for v in inputs)
    assert any(not v.tensor.is_contiguous for v in inputs)


def test_outputs_that_share_memory_are_drawn() -> None:
    roots = [(graph, storage_roots(graph)) for graph in drawn()]
    inputs = [{i.value for i in graph.inputs} for graph in drawn()]
    assert any(r[v] in own for (g, r), own in zip(roots, inputs, strict=True) for v in g.outputs)  # type: ignore[index]
    assert any(len(set(graph.outputs)) < len(graph.outputs) for graph in drawn())
    assert any(graph.updates for graph in drawn())


def test_graphs_are_large_enough_to_tell_something() -> None:
    counts = sorted(len(graph.nodes) for graph in drawn())
    assert counts[len(counts) // 2] >= 6 and counts[-1] >= 15
    assert any(node.op.kind is Kind.CONTRACTION for graph in drawn() for node in graph.nodes)


def test_drawn_graphs_say_what_they_are_and_run() -> None:
    """In their own types, at all sizes, on the same numbers after a round trip as text."""
    for graph in drawn():
        for sizes in sizes_of_runs(graph):
            inputs = inputs_for(graph, sizes)
            again = inputs_for(parse(show(graph)), sizes)
            assert all(map(_same, inputs, again))
            for value, found in zip(graph.outputs, interpret(graph, inputs), strict=True):
                assert isinstance(value, Value)
                shape, strides = value.tensor.shape, value.tensor.layout
                assert found.shape == tuple(evaluate(s, sizes) for s in shape)
                assert found.stride() == tuple(evaluate(s, sizes) for s in strides)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.nan_to_num(9), b.nan_to_num(9)) and a.stride() == b.stride()


# --- what is found ------------------------------------------------------------------------------

NUMBERS = 30


@pytest.mark.cpu
@pytest.mark.slow
def test_a_wrong_kernel_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums that are differences: the least graph that shows it is a sum."""
    honest = rewright.codegen.cpp.emit

    def wrong(*args: object, **kwargs: object) -> str:
        return re.sub(r"\badd\(", "sub(", honest(*args, **kwargs))  # type: ignore[arg-type]

    monkeypatch.setattr(rewright.codegen.cpp, "emit", wrong)
    graphs = wide_graphs(off=is_off, symbolic=False, families=["pointwise"])
    search = Search(graphs, examined_here, seconds=8)
    failure = next(filter(None, map(search.run, range(NUMBERS))))
    assert len(failure.graph.nodes) <= 2
    assert "off by" in failure.trouble.what
    text = case_text(failure)
    graph = parse(text)
    assert graph == failure.graph and examined_here(graph) is not None
    monkeypatch.undo()
    assert examined_here(graph) is None


def examined_here(graph: Graph) -> Trouble | None:
    try:
        check(graph)
    except Exception as error:
        return Trouble(type(error).__name__, str(error))
    return None


def test_a_case_file_says_what_to_do(tmp_path: Path) -> None:
    failure = Failure(17, some_graph(), Trouble("kind", "result 0 is 1, not 2"))
    path = tmp_path / "found.rw"
    path.write_text(case_text(failure))
    assert "result 0 is 1, not 2" in path.read_text()
    assert "--seed 17" in path.read_text()
    assert read_graph(path) == failure.graph


def test_a_pass_that_is_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rewright.passes.dce import Dce

    def wrong(self: Dce, graph: Graph, env: Env) -> Graph:
        return dataclasses.replace(graph, outputs=(graph.inputs[0].value,))

    graph = some_graph()
    monkeypatch.setattr(Dce, "run", wrong)
    path = tmp_path / "found.rw"
    path.write_text(case_text(Failure(17, graph, Trouble("kind", "wrong"))))
    assert read_case(path).pipeline.endswith(",dce")


def some_graph() -> Graph:
    return parse(
        """graph f(%x0: f32[4]) {
          %a = aten.sin.default(%x0) : f32[4]
          return %a
        }"""
    )


def test_a_crash_and_a_hang_are_results() -> None:
    def crash(graph: Graph) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    assert isolated(crash, some_graph()) == Trouble(
        "crash SIGKILL", "it ends the process by SIGKILL"
    )
    assert isolated(lambda graph: None, some_graph()) is None
    hang = isolated(lambda graph: time.sleep(60), some_graph(), seconds=0.5)
    assert hang is not None and hang.kind == "hang"
