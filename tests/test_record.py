"""The record of a compile: what it says is so, what is written is read back, what is broken is
refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import rewright
from examples.huggingface import gpt2
from json_schema import faults
from rewright.costmodel import show_bytes
from rewright.driver import Program, compile_graph, plan_graph
from rewright.ir import ArtefactError, Kind, is_call
from rewright.ir.fx_export import to_fx
from rewright.ir.fx_import import from_fx
from rewright.ir.parse import parse
from rewright.looking import saved
from rewright.options import Options
from rewright.passes import peak_bytes
from rewright.record import Record, read, record_of, write
from rewright.report import (
    BufferRow,
    KernelRow,
    MemoryRow,
    NodeRow,
    PassRow,
    RecomputedRow,
    Report,
)

pytestmark = pytest.mark.cpu

SCHEMA = json.loads((Path(__file__).parents[1] / "docs/report-schema.json").read_text())
SIZES: dict[str, Any] = {
    "n_embd": 64,
    "n_head": 2,
    "vocab_size": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MLP = """
graph mlp(%x: f32[64, 512], %w: f32[512, 2048], %scale: f32[2048]) {
  %h = aten.mm.default(%x, %w) : f32[64, 2048] @ model.py:14
  %g = aten.gelu.default(%h) : f32[64, 2048] @ model.py:15
  %m = aten.mul.Tensor(%g, %scale) : f32[64, 2048] @ model.py:16
  %again = aten.mul.Tensor(%g, %scale) : f32[64, 2048] @ model.py:17
  %s = aten.add.Tensor(%m, %again) : f32[64, 2048] @ model.py:17
  return %s
}
"""


@pytest.fixture(scope="module")
def gpt() -> Program:
    """One layer of GPT-2, compiled."""
    model, inputs = gpt2(1, 16, n_layer=1, **SIZES)
    return rewright.optimize(model, inputs).program


def step_traces(folder: Path, **options: str) -> list[Record]:
    """The records of a training step of GPT-2: forward and backward."""
    model, (ids,) = gpt2(2, 64, n_layer=1, **SIZES)

    def loss(ids: torch.Tensor) -> torch.Tensor:
        logits = model(ids)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())

    given: dict[str, Any] = {**options, "trace": str(folder)}
    torch.compile(loss, backend="rewright", options=given)(ids).backward()
    return [read(trace) for trace in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def within(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """A step in as few bytes as can be."""
    return step_traces(tmp_path_factory.mktemp("within"), memory_budget="min")


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """A step without a budget."""
    return step_traces(tmp_path_factory.mktemp("without"))


# --- on disk --------------------------------------------------------------------------------------


def same(a: Record, b: Record) -> bool:
    """Equality of graphs says nothing of their histories."""
    histories = ([graph.history for _, graph in r.stages] for r in (a, b))
    return a == b and next(histories) == next(histories)


def test_what_is_written_is_read_back(gpt: Program, tmp_path: Path) -> None:
    record = record_of(gpt)
    assert same(read(write(record, tmp_path)), record)
    assert record.report.passes[0].name == "import" and record.stages[0][0] == "import"
    assert record.kernel_source and "def run(" in record.calls


def test_a_traced_step_is_read_back(within: list[Record], tmp_path: Path) -> None:
    for i, record in enumerate(within):
        folder = tmp_path / str(i)
        folder.mkdir()
        assert same(read(write(record, folder)), record)
    assert [record.report.graph for record in within] == ["forward", "backward"]


def test_a_plan_has_a_record_too(tmp_path: Path) -> None:
    """Nothing is built for it; constants lie beside its graphs."""
    text = MLP.replace("return %s", "%c = rw.constant(data=[1.0, 2.0]) : f32[2]\n  return %s, %c")
    record = record_of(plan_graph(parse(text), Options()))
    assert record.report.build_seconds == 0
    assert same(read(write(record, tmp_path)), record)


# --- the schema -----------------------------------------------------------------------------------


def test_reports_are_as_the_schema_has_them(
    gpt: Program, within: list[Record], without: list[Record]
) -> None:
    reports = [gpt.report, *(record.report for record in (*within, *without))]
    for report in reports:
        assert not list(faults(report.as_json(), SCHEMA, SCHEMA))


def test_the_schema_finds_faults(gpt: Program) -> None:
    """So that the test above can fail."""
    data = gpt.report.as_json()
    data["kernels"][0]["bound"] = "disk"
    data["passes"][0]["nodes"] = -1
    data["memory"]["after"][0] = 1.5
    data["buffers"][0]["placed"] = 1
    del data["nodes"][0]["loc"]
    assert list(faults(data, SCHEMA, SCHEMA)) == [
        "$.passes[0].nodes is -1, less than 0",
        "$.nodes[0] has no loc",
        "$.kernels[0].bound is 'disk', none of ['memory', 'compute', 'launch']",
        "$.buffers[0].placed is 1, no boolean",
        "$.memory.after[0] is 1.5, no integer",
    ]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (PassRow, "pass"),
        (NodeRow, "node"),
        (KernelRow, "kernel"),
        (RecomputedRow, "recomputed"),
        (BufferRow, "buffer"),
        (MemoryRow, "memory"),
    ],
)
def test_the_schema_names_every_field(row: Any, name: str) -> None:
    of = SCHEMA["$defs"][name]
    assert [f.name for f in fields(row)] == list(of["properties"]) == of["required"]


def test_the_schema_names_every_field_of_the_report() -> None:
    names = ["format", "version", *(f.name for f in fields(Report))]
    assert names == list(SCHEMA["properties"]) == SCHEMA["required"]


# --- what it says ---------------------------------------------------------------------------------


def test_calls_are_those_of_the_schedule(gpt: Program) -> None:
    report = gpt.report
    calls = [node for node in gpt.graph.nodes if is_call(node)]
    assert [row.name for row in report.kernels] == [node.name for node in calls]
    for row, node in zip(report.kernels, calls, strict=True):
        assert (row.kind == "ours") == (node.op.kind is Kind.REGION) == bool(row.function)
        assert not row.function or f"void {row.function}(" in gpt.plan.kernel_source
        assert row.low_seconds <= row.predicted_seconds <= row.high_seconds
        assert row.floor_seconds > 0 and row.who and row.measured_seconds is None
        assert row.written_bytes >= sum(v.tensor.nbytes_hint for v in node.results)
    assert report.passes[-1].calls == len(calls)


def test_every_node_of_ours_is_in_the_kernel_that_it_names(gpt: Program) -> None:
    kernels = {row.name: row for row in gpt.report.kernels}
    ours = [row for row in gpt.report.nodes if row.runs == "ours"]
    # Others were found to compute what one of these does.
    inside = [row for row in ours if row.name in kernels[row.kernel].nodes]
    assert len(inside) > 15
    for row in inside:
        kernel = kernels[row.kernel]
        # Under the name of an attention, ours may stand for ATen's, where it is quicker.
        assert row.op in kernel.ops or ("attention" in row.op and kernel.op == "rw.attention")
    tanh = next(row for row in ours if row.op == "aten.tanh.default")
    assert (tanh.type, tanh.loc) == ("f32[1, 16, 256]", "activations.py:66")
    assert "torch.tanh(" in gpt.report.sources["activations.py:66"]


def test_a_line_of_source_is_no_part_of_the_text(gpt: Program) -> None:
    assert "torch.tanh(" not in str(gpt.source)
    assert parse(str(gpt.source)) == gpt.source


def test_a_line_of_source_goes_through_fx(gpt: Program, within: list[Record]) -> None:
    """Joint graphs do, when a pass over pairs changes them."""
    there = from_fx(to_fx(gpt.source), name="main")
    codes = [[n.loc and n.loc.code for n in graph.nodes] for graph in (there, gpt.source)]
    assert codes[0] == codes[1] and all(codes[0])
    assert all(record.report.sources for record in within)


@pytest.mark.parametrize("which", ["gpt", "within", "without"])
def test_no_two_buffers_lie_in_one_place_at_a_time(
    which: str, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue(which)
    reports = [made.report] if which == "gpt" else [record.report for record in made]
    for report in reports:
        assert any(b.placed for b in report.buffers)
        placed = [b for b in report.buffers if b.offset is not None]
        assert all(b.offset is not None and b.placed for b in placed)
        for a, b in itertools.combinations(placed, 2):
            assert a.offset is not None and b.offset is not None
            apart = a.last < b.first or b.last < a.first
            assert apart or a.offset + a.nbytes <= b.offset or b.offset + b.nbytes <= a.offset


def test_bytes_at_calls_are_the_arena_and_what_has_its_own_memory(gpt: Program) -> None:
    memory, buffers = gpt.report.memory, gpt.report.buffers
    for i, nbytes in enumerate(memory.after):
        own = (b.nbytes for b in buffers if not b.placed and b.first <= i <= b.last)
        assert nbytes == memory.arena_bytes + sum(own)
    assert memory.peak_bytes == max(memory.after) == gpt.report.passes[-1].peak_bytes
    assert max(memory.before) == gpt.report.passes[0].peak_bytes == peak_bytes(gpt.source)
    assert len(memory.before) == gpt.report.passes[0].calls
    assert memory.budget_bytes is None


def test_the_peak_is_where_most_is_alive(gpt: Program) -> None:
    report = gpt.report
    alive = [
        sum(b.nbytes for b in report.buffers if b.first <= i <= b.last)
        for i, nbytes in enumerate(report.memory.after)
        if nbytes == report.memory.peak_bytes
    ]
    at = [row.name for row in report.kernels].index(report.memory.peak_at)
    assert sum(b.nbytes for b in report.buffers if b.first <= at <= b.last) == max(alive)


def test_passes_say_what_became_of_names() -> None:
    report = plan_graph(parse(MLP), Options()).report
    rows = {row.name: row for row in reversed(report.passes)}
    assert rows["cse"].renamed == {"again": ("m",)}
    assert rows["fuse"].renamed["m"] == ("s",)
    assert rows["cse"].nodes_before - rows["cse"].nodes == 1
    assert (rows["fuse"].decided, rows["fuse"].refused) == (2, 1)
    assert sum(row.decided + row.refused for row in report.passes) == len(report.decisions)
    assert [row.file for row in report.passes][:2] == ["00-import.rw", "01-decompose.rw"]


def test_options_are_those_that_were_chosen(tmp_path: Path) -> None:
    given = {"rules": "fastmath", "numerics": "fast", "trace": str(tmp_path), "fallback": "aten"}
    report = compile_graph(parse(MLP), Options.of(given)).report
    assert report.options == {"rules": "fastmath", "numerics": "fast"}
    (folder,) = tmp_path.iterdir()
    assert read(folder).report.options == report.options


# --- training steps -------------------------------------------------------------------------------


def test_a_half_within_a_budget_counts_the_step(within: list[Record]) -> None:
    forward, backward = (record.report for record in within)
    note = next(note for note in forward.notes if note.startswith("the step: peak "))
    assert note in backward.notes
    peaks = forward.memory.peak_bytes, backward.memory.peak_bytes
    assert f"-> {show_bytes(max(peaks))} " in note
    assert max(peaks) < 0.8 * max(*forward.memory.before, *backward.memory.before)
    # What the forward holds when it ends is there when the backward begins.
    assert backward.memory.before[0] > 0.8 * forward.memory.before[-1]
    for record in within:
        assert len(record.report.memory.after) == len(record.report.kernels)
        assert [row.name for row in record.report.passes][-3:] == ["fuse", "remat", "memory"]
        regions = [n for n in record.source.nodes if n.op.kind is Kind.REGION]
        assert record.source.nodes and all("attention" in n.op.name for n in regions)


def test_calls_that_run_again_are_told(within: list[Record]) -> None:
    forward, backward = within
    again = [row for row in backward.report.recomputed if row.name != row.of]
    assert again and not forward.report.recomputed
    calls = {row.name: row for row in backward.report.kernels}
    for row in again:
        assert row.kernel == row.name and row.seconds == calls[row.name].predicted_seconds > 0
        assert row.nbytes == calls[row.name].written_bytes
    said = {d.subject: d.sentence for d in backward.report.decisions if d.pass_ == "remat"}
    assert all(said[row.name].startswith(f"runs %{row.of} again, ") for row in again)


def test_what_pytorch_computes_again_is_told(without: list[Record]) -> None:
    forward, backward = without
    made = {row.name for row in forward.report.nodes}
    assert backward.report.recomputed and not forward.report.recomputed
    for row in backward.report.recomputed:
        assert row.name == row.of and row.name in made
        kernel = next(k for k in backward.report.kernels if k.name == row.kernel)
        assert row.name in kernel.nodes


def test_remat_of_one_graph_tells_what_runs_again() -> None:
    text = """
graph f(%x: f32[512, 512], %y: f32[512, 512]) {
  %a = aten.mm.default(%x, %y) : f32[512, 512]
  %b = aten.mm.default(%a, %y) : f32[512, 512]
  %c = aten.mm.default(%b, %y) : f32[512, 512]
  %d = aten.sum.default(%c) : f32[]
  %e = aten.add.Tensor(%a, %d) : f32[512, 512]
  return %e
}
"""
    given = {"memory_budget": "2.5MiB", "passes": "fuse{max-ops=0},memory"}
    report = plan_graph(parse(text), Options.of(given)).report
    (row,) = report.recomputed
    assert (row.name, row.of, row.nbytes) == ("a_1", "a", 1 << 20)
    assert next(row.renamed for row in report.passes if row.name == "remat") == {"a": ("a", "a_1")}
    assert report.memory.budget_bytes == 5 << 19 >= report.memory.peak_bytes


# --- only when asked ------------------------------------------------------------------------------


def test_torch_compile_makes_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*_: object) -> Report:
        raise AssertionError("a report was made")

    monkeypatch.setattr("rewright.driver.report_of", made)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU())
    torch.compile(model, backend="rewright")(torch.randn(4, 8)).sum().backward()
    (program, _) = rewright.programs()
    with pytest.raises(AssertionError, match="a report was made"):
        _ = program.report


class Quiet:
    """A machine on which nothing disturbs."""

    def __init__(self, target: object) -> None:
        """Nothing is measured beforehand."""

    def slowness(self) -> dict[str, float]:
        return {"stream": 1.0, "product": 1.0}


def test_calls_are_measured_on_request(gpt: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    from rewright.profiling import profiled

    monkeypatch.setattr("rewright.calibrate.bench.Bench", Quiet)
    report = profiled(gpt).report
    took = [row.measured_seconds for row in report.kernels]
    assert all(seconds is not None and 0 < seconds < 1 for seconds in took)
    assert report.measured_seconds is not None and 0 < report.measured_seconds < 1
    assert not list(faults(report.as_json(), SCHEMA, SCHEMA))
    assert gpt.report.measured_seconds is None


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    folder = tmp_path / "trace"
    folder.mkdir()
    return write(record_of(plan_graph(parse(MLP), Options())), folder)


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    report = json.loads((folder / "report.json").read_text())
    change(report)
    (folder / "report.json").write_text(json.dumps(report))


def refusal(folder: Path) -> str:
    with pytest.raises(ArtefactError) as refused:
        read(folder)
    return str(refused.value).replace(str(folder), "FOLDER")


def test_a_folder_of_something_else_is_refused(trace: Path) -> None:
    changed(trace, lambda report: report.pop("format"))
    assert refusal(trace).startswith(
        "FOLDER is not a trace: its report.json does not say that it is of format rewright-report\n"
        "  = help: rewright optimize MODEL --trace DIR writes one into DIR, "
    )
    (trace / "report.json").unlink()
    assert refusal(trace).startswith("FOLDER is not a trace: it has no report.json\n")


def test_another_version_is_refused(trace: Path) -> None:
    changed(trace, lambda report: report.update(version=2, rewright="9.1"))
    assert refusal(trace) == (
        "FOLDER is a trace of version 2; this Rewright reads version 1\n"
        "  = help: read it with rewright 9.1, or write it again"
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda r: r["kernels"][0].pop("op"), "in report.json the report.kernels[0] has no 'op'"),
        (lambda r: r.update(graph=7), "in report.json the report.graph is 7"),
        (lambda r: r.update(nodes={}), "in report.json the report.nodes is an object"),
        (
            lambda r: r["memory"].update(after=[True]),
            "in report.json the report.memory.after[0] is",
        ),
        (lambda r: r.update(passes=[]), "its report names no graph"),
        (lambda r: r["passes"][1].update(file="9.rw"), "there is no file FOLDER/9.rw"),
        (
            lambda r: r["passes"][1].update(file="../9.rw"),
            "its report names a file elsewhere: ../9",
        ),
    ],
)
def test_a_damaged_report_is_refused(
    trace: Path, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    changed(trace, change)
    assert refusal(trace).startswith(f"FOLDER is damaged: {why}")


def test_damaged_files_are_refused(trace: Path) -> None:
    report = (trace / "report.json").read_bytes()
    (trace / "report.json").write_bytes(report[: len(report) // 2])
    assert refusal(trace).startswith("FOLDER is damaged: report.json is no JSON: ")
    (trace / "report.json").write_bytes(report)
    (trace / "calls.py").unlink()
    assert refusal(trace).startswith("FOLDER is damaged: there is no file FOLDER/calls.py")
    text = (trace / "00-import.rw").read_text()
    (trace / "00-import.rw").write_text(text.replace("aten.gelu", "aten.gello"))
    assert "unknown operator 'aten.gello.default'" in refusal(trace)


def test_an_artefact_is_no_trace(gpt: Program, tmp_path: Path) -> None:
    from rewright.artefact import save

    assert refusal(save(gpt, None, tmp_path / "build")).startswith(
        "FOLDER is not a trace: it is an artefact\n"
    )


def test_a_folder_of_traces_names_them(trace: Path) -> None:
    above = trace.parent
    trace.rename(above / "000-forward")
    assert saved(above) == read(above / "000-forward")
    (above / "001-backward").mkdir()
    write(saved(above), above / "001-backward")
    with pytest.raises(ArtefactError) as refused:
        saved(above)
    assert str(refused.value) == (
        f"{above} holds 2 traces\n  = help: name one: {above}/000-forward, {above}/001-backward"
    )
