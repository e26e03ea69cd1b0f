"""The page of a compile: all of the record is in it, nothing else is loaded, no name is markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest

from rewright.calibrate.profile import Profile
from rewright.cli import main
from rewright.driver import Program, plan_graph
from rewright.ir import Graph, Kind, Node
from rewright.ir.parse import parse
from rewright.ir.show import show_node
from rewright.options import Options
from rewright.page import HERE, SCRIPTS, page, payload_of
from rewright.page.folds import Block, Fold, folds
from rewright.record import Record, record_of, write

NAMES = ("op", "kind", "names", "types", "reads", "loc", "phase", "text", "body")
HOSTILE = "</script><img src=x onerror=alert(1)><!--data-->&amp;'\\\""


def layers(count: int, tail: str = "") -> str:
    """A graph of `count` equal blocks of six nodes, each with parameters of its own."""
    params = "".join(f", %h.{i}.w: f32[8, 8] param, %h.{i}.b: f32[8] param" for i in range(count))
    lines, last = [], "x"
    for i in range(count):
        lines += [
            f"  %n{i} = aten.sin.default(%{last}) : f32[4, 8] @ block.py:{10 + i}",
            f"  %t{i} = aten.permute.default(%h.{i}.w, [1, 0]) : f32[8, 8] strides [1, 8]",
            f"  %a{i} = aten.addmm.default(%h.{i}.b, %n{i}, %t{i}) : f32[4, 8] @ block.py:21",
            f"  %g{i} = aten.gelu.default(%a{i}) : f32[4, 8] @ block.py:22",
            f"  %m{i} = aten.mul.Tensor(%g{i}, 0.5) : f32[4, 8] @ block.py:23",
            f"  %r{i} = aten.add.Tensor(%m{i}, %{last}) : f32[4, 8] @ block.py:24",
        ]
        last = f"r{i}"
    body = "\n".join(lines)
    return f"rewright 1\ngraph stack(%x: f32[4, 8]{params}) {{\n{body}\n{tail}  return %{last}\n}}"


def compiled(text: str, **options: Any) -> Record:
    return record_of(plan_graph(parse(text), Options.of(options)))


@pytest.fixture(scope="module")
def record() -> Record:
    return compiled(layers(4))


@pytest.fixture(scope="module")
def payload(record: Record) -> dict[str, Any]:
    return payload_of(record)


# --- the data -------------------------------------------------------------------------------------


def stages(payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the page draws of each stage."""
    last: dict[str, Any] = {}
    for stage in payload["stages"]:
        last = last if stage.get("same") else stage
        yield last


def row(payload: dict[str, Any], number: int) -> dict[str, Any]:
    return dict(zip(NAMES, payload["rows"][number], strict=True))


def facts(node: Node) -> dict[str, Any]:
    return {
        "op": node.op.name,
        "kind": node.op.kind.value,
        "names": [v.name for v in node.results],
        "reads": list(dict.fromkeys(v.name for v in node.operands)),
        "loc": str(node.loc or ""),
        "phase": node.phase or "",
    }


def test_every_node_of_every_stage_is_there(record: Record, payload: dict[str, Any]) -> None:
    seen = 0
    for (_, graph), stage in zip(record.stages, stages(payload), strict=True):
        rows = [row(payload, number) for number in stage["rows"]]
        for node, found in zip(graph.nodes, rows, strict=True):
            assert facts(node).items() <= found.items()
            seen += 1
            if node.op.kind is Kind.REGION:
                inner = [row(payload, number) for number in found["body"]["rows"]]
                for within, shown in zip(node.graph("body").nodes, inner, strict=True):
                    assert facts(within).items() <= shown.items()
                    seen += 1
    assert seen > 17 * 20


def test_what_is_read_was_made_before(record: Record, payload: dict[str, Any]) -> None:
    """So the edges that the page draws are those of the graph: inside kernels too."""
    for stage in stages(payload):
        made = {name for name, _, _ in stage["inputs"]}
        for number in stage["rows"]:
            found = row(payload, number)
            assert made.issuperset(found["reads"])
            if found["body"] is not None:
                body = found["body"]
                assert made.issuperset(body["given"])
                assert len(body["given"]) == len(body["inputs"])
                inside = set(body["inputs"])
                for inner in (row(payload, n) for n in body["rows"]):
                    assert inside.issuperset(inner["reads"])
                    inside.update(inner["names"])
                assert inside.issuperset(body["outputs"])
                assert len(body["outputs"]) == len(found["names"])
            made.update(found["names"])
        assert made.issuperset(stage["returned"])


def test_the_text_of_a_stage_can_be_put_together(record: Record, payload: dict[str, Any]) -> None:
    for (_, graph), stage in zip(record.stages, stages(payload), strict=True):
        texts = [row(payload, number)["text"] for number in stage["rows"]]
        assert "\n".join([stage["head"], *texts, stage["tail"]]) == str(graph)


def test_stages_that_change_nothing_are_held_once(payload: dict[str, Any]) -> None:
    assert sum("same" in stage for stage in payload["stages"]) >= 5
    assert all(set(stage) == {"spec", "same"} for stage in payload["stages"] if "same" in stage)


def test_kernels_decisions_and_buffers_are_the_reports(
    record: Record, payload: dict[str, Any]
) -> None:
    report = record.report.as_json()
    assert payload["report"] == report
    assert len(report["kernels"]) == len(record.report.kernels) > 4
    assert len(report["decisions"]) > 4
    assert payload["kernels"] == record.kernel_source != ""
    assert payload["calls"] == record.calls
    assert len(payload["beforeCalls"]) == len(report["memory"]["before"])
    held = {b["name"] for b in payload["before"]}
    assert held == {n.name for n in record.source.nodes} - {f"t{i}" for i in range(4)}


def test_roofs_are_those_of_the_target(record: Record) -> None:
    text = layers(1).replace("f32[", "f16[")
    roofs = payload_of(compiled(text, target="cpu:avx2"))["roofs"]
    assert [name for name, _ in roofs["bytes"]] == ["L2", "L3", "main memory"]
    assert dict(roofs["flops"])["f64"] == dict(roofs["flops"])["f32"] / 2
    foreign = replace(record, report=replace(record.report, target="cpu:of-another-machine"))
    assert payload_of(foreign)["roofs"] is None


# --- repeated blocks ------------------------------------------------------------------------------


def found_in(text: str) -> list[Fold]:
    graph = parse(text)
    return folds(graph, [show_node(node) for node in graph.nodes])


def test_layers_are_found_and_called_by_their_parameters() -> None:
    (fold,) = found_in(layers(4))
    assert fold.blocks == tuple(Block(6 * i, 6 * i + 6, f"h.{i}") for i in range(4))


def test_blocks_without_names_are_numbered() -> None:
    (fold,) = found_in(re.sub(r"%h\.(\d)\.(\w)", r"%\2\1", layers(3)))
    assert [b.label for b in fold.blocks] == ["block 1 of 3", "block 2 of 3", "block 3 of 3"]


def test_what_stands_around_the_layers_stays_outside() -> None:
    before = "  %s = aten.cos.default(%x) : f32[4, 8]\n  %n0 ="
    text = layers(3, "  %after = aten.tanh.default(%r2) : f32[4, 8]\n").replace("  %n0 =", before)
    (fold,) = found_in(text)
    assert [(b.start, b.stop) for b in fold.blocks] == [(1, 7), (7, 13), (13, 19)]


def test_a_layer_of_another_type_is_no_repeat() -> None:
    assert not found_in(layers(1))
    different = layers(2).replace("%g1 = aten.gelu.default(%a1)", "%g1 = aten.relu.default(%a1)")
    assert not found_in(different)


def test_repeats_within_blocks_are_found() -> None:
    """Eight blocks of one width, then eight of another, twice: two blocks that hold two runs."""
    lines, last = [], "x"
    for number, width in enumerate((2, 3, 2, 3)):
        for step in range(6):
            for op in ("sin", "cos", "tan", "exp", "erf", "abs", "neg"):
                name = f"{op}_{number}_{step}"
                lines.append(f"  %{name} = aten.{op}.default(%{last}) : f32[{width}]")
                last = name
        wider = f"aten.constant_pad_nd.default(%{last}, [0, {1 if width == 2 else -1}])"
        lines.append(f"  %p{number} = {wider} : f32[{5 - width}]")
        last = f"p{number}"
    body = "\n".join(lines)
    found = found_in(f"rewright 1\ngraph f(%x: f32[2]) {{\n{body}\n  return %{last}\n}}")
    (outer,) = found
    assert [(b.start, b.stop) for b in outer.blocks] == [(0, 86), (86, 172)]
    for block in outer.blocks:
        assert [len(fold.blocks) for fold in block.inside] == [6, 6]
        starts = [b.start - block.start for fold in block.inside for b in fold.blocks]
        assert starts == [*range(0, 42, 7), *range(43, 85, 7)]


def test_blocks_lie_in_order_and_hold_the_same(record: Record) -> None:
    """At every stage, allocations or not."""
    for _, graph in record.stages:
        end = 0
        for fold in folds(graph, [show_node(node) for node in graph.nodes]):
            for block in fold.blocks:
                assert end <= block.start < block.stop <= len(graph.nodes)
                end = block.stop
            ops = [Counter(computed(graph, b)) for b in fold.blocks]
            assert all(counted == ops[0] for counted in ops)


def computed(graph: Graph, block: Block) -> list[str]:
    nodes = graph.nodes[block.start : block.stop]
    return [n.op.name for n in nodes if n.op.kind is not Kind.STORAGE]


# --- the page -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(record: Record) -> str:
    return page(record)


def held_by(text: str) -> dict[str, Any]:
    """The data that a page carries."""
    (data,) = re.findall(r'<script type="application/octet-stream" id="data">([^<]*)<', text)
    held: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(data)))
    return held


def test_the_page_carries_the_data(text: str, payload: dict[str, Any]) -> None:
    assert held_by(text) == json.loads(json.dumps(payload))


def test_the_page_loads_nothing(text: str) -> None:
    addresses = set(re.findall(r"\w+://[^\s\"'<>)`]*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert not re.search(r"<script[^>]*\ssrc|<link[^>]*stylesheet|@import|url\(|@font-face", text)
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|EventSource|importScripts)\b", text)
    assert "default-src 'none'" in text


def test_only_the_pages_own_script_and_style_may_act(text: str) -> None:
    """The policy names them by digests of what stands between the tags."""
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    (script,) = re.findall(r'<script type="module">(.*?)</script>', text, re.DOTALL)
    for inline in (style, script):
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in text


def test_markup_is_never_made_of_text() -> None:
    script = "".join((HERE / f"{name}.js").read_text() for name in SCRIPTS)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", script)


def test_no_name_is_markup() -> None:
    quoted = json.dumps(HOSTILE)
    text = f"""rewright 1
graph {quoted}(%{quoted}: f32[4]) {{
  %a = aten.sin.default(%{quoted}) : f32[4] @ {quoted}:7
  return %a
}}"""
    record = compiled(text)
    made = page(record)
    assert "<img" not in made
    assert made.count("<script") == made.count("</script>") == 2
    assert f"<title>{escape(HOSTILE)}: a compile</title>" in made
    assert held_by(made)["report"]["graph"] == HOSTILE
    assert held_by(made)["stages"][0]["inputs"][0][0] == HOSTILE


def test_all_scripts_are_in_the_page_and_define_a_name_once() -> None:
    """They are one module: a name at its top stands for one thing."""
    assert {path.stem for path in HERE.glob("*.js")} == set(SCRIPTS)
    script = "\n".join((HERE / f"{name}.js").read_text() for name in SCRIPTS)
    names = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", script, re.MULTILINE)
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert "</script" not in script and "<!--" not in script


# --- the command ----------------------------------------------------------------------------------


def test_a_page_is_written_of_a_model_and_of_its_trace(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They show the same, but for what passes took."""
    model, trace = tmp_path / "stack.rw", tmp_path / "trace"
    model.write_text(layers(4))
    trace.mkdir()
    write(record, trace)
    pages = [tmp_path / "model.html", tmp_path / "trace.html"]
    for source, output in zip((model, trace), pages, strict=True):
        assert main(["report", str(source), "-o", str(output)]) == 0
        assert capsys.readouterr() == (f"wrote {output}\n", "")
    of_model, of_trace = (held_by(output.read_text()) for output in pages)
    assert of_trace == json.loads(json.dumps(payload_of(record)))
    assert of_model["rows"] == of_trace["rows"]
    assert of_model["stages"] == of_trace["stages"]


def test_json_says_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stack.rw").write_text(layers(1))
    output = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "stack.rw"), "-o", str(output), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"graph": "stack", "page": str(output), "bytes": output.stat().st_size}


@pytest.mark.cpu
def test_calls_are_timed_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who times them is tested elsewhere."""

    def profiled(program: Program, inputs: list[Any]) -> Program:
        assert [tuple(i.shape) for i in inputs] == [(4, 8), (8, 8), (8,)]
        steps = {node.name: 2e-6 for node in program.graph.nodes}
        return replace(program, profile=Profile(0.0, steps, 1e-4))

    monkeypatch.setattr("rewright.profiling.profiled", profiled)
    (tmp_path / "stack.rw").write_text(layers(1))
    output = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "stack.rw"), "-o", str(output), "--profile"]) == 0
    report = held_by(output.read_text())["report"]
    assert report["measured_seconds"] == 1e-4
    assert [kernel["measured_seconds"] for kernel in report["kernels"]] == [2e-6] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trace", "-o", "nowhere/page.html"], "there is no folder nowhere"),
        (["trace", "-o", "trace"], "trace is a folder"),
        (["trace", "--profile"], "trace is a trace, of a compile that is done"),
        (["trace", "--numerics", "fast"], "trace is a trace, of a compile that is done"),
        (["empty"], "empty is not a trace"),
    ],
)
def test_what_cannot_be_done_is_said(
    record: Record,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("trace", "empty"):
        (tmp_path / folder).mkdir()
    write(record, tmp_path / "trace")
    assert main(["report", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err
    assert not list(tmp_path.glob("*.html"))
