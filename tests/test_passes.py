"""Passes as objects: specs, registration, pipelines, logs, and the examples in their docstrings."""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import dataclass

import pytest
import torch

from rewright.ir import CheckError, Graph, OptionError, TextError
from rewright.ir.parse import parse
from rewright.passes import Bytes, DecisionLog, Env, Pass, Pipeline, base, passes
from rewright.passes.dtypes import holds
from run_case import INEXACT, case_env, check_numbers, text

GRAPH = """
graph f(%x: f32[4]) {
  %a = aten.sin.default(%x) : f32[4]
  %b = aten.sin.default(%x) : f32[4]
  %c = aten.add.Tensor(%a, %b) : f32[4]
  return %c
}
"""


@dataclass(frozen=True)
class Every(Pass, name="test-every", takes="aten", gives="aten"):
    """A pass with an option of each type."""

    budget: Bytes
    count: int = 8
    scale: float = 0.5
    strict: bool = False
    mode: str = "fast"
    only_ops: tuple[str, ...] = ()

    def run(self, graph: Graph, env: Env) -> Graph:
        return graph


@dataclass(frozen=True)
class Break(Pass, name="test-break", takes="aten", gives="fused"):
    """A pass that removes what is still read."""

    def run(self, graph: Graph, env: Env) -> Graph:
        return graph.with_nodes(graph.nodes[1:])


@dataclass(frozen=True)
class Forget(Pass, name="test-forget", takes="aten", gives="aten"):
    """A pass that drops what draws random numbers."""

    def run(self, graph: Graph, env: Env) -> Graph:
        return graph.with_nodes(n for n in graph.nodes if "rand" not in n.op.name)


TEST_PASSES = {name: base._PASSES.pop(name) for name in ("test-every", "test-break", "test-forget")}


@pytest.fixture(autouse=True)
def passes_of_these_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known by name here only: messages elsewhere list all passes that there are."""
    monkeypatch.setattr(base, "_PASSES", {**base._PASSES, **TEST_PASSES})


# --- specs


@pytest.mark.parametrize(
    "spec",
    [
        "test-every{budget=6GiB}",
        'test-every{budget=17B,count=-3,mode="a,b}=\\"c",scale=1e-09,strict=true}',
        'test-every{budget=1536KiB,only-ops=["aten.add.Tensor","aten.mm.default"]}',
        "dce",
        "fold{limit=16}",
    ],
)
def test_specs_round_trip(spec: str) -> None:
    assert str(Pass.parse(spec)) == spec
    assert Pass.parse(str(Pass.parse(spec))) == Pass.parse(spec)


def test_defaults_are_not_printed_and_options_are_sorted() -> None:
    parsed = Pass.parse("test-every{ strict = true, count=8, budget=1GiB }")
    assert str(parsed) == "test-every{budget=1GiB,strict=true}"


@pytest.mark.parametrize(
    ("text", "amount", "printed"),
    [
        ("6GiB", 6 << 30, "6GiB"),
        ("1.5 GiB", 3 << 29, "1536MiB"),
        ("300MB", 300_000_000, "300000000B"),
        ("512", 512, "512B"),
        ("0", 0, "0B"),
    ],
)
def test_amounts_of_memory(text: str, amount: int, printed: str) -> None:
    assert Bytes.parse(text) == amount
    assert str(Bytes.parse(text)) == printed
    assert Bytes.parse(printed) == amount


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("test-evry", "no pass named 'test-evry'; did you mean 'test-every'?"),
        ("test-every{bugdet=1}", "[test-every] no option 'bugdet'; did you mean 'budget'?"),
        ("test-every{budget=1,budget=2}", "[test-every] option 'budget' is given twice"),
        ("test-every", "[test-every] option 'budget' is missing"),
        ("test-every{budget=lots}", "wants an amount of memory, like 6GiB"),
        ("test-every{budget=1,count=many}", "option 'count' wants a whole number"),
        ("test-every{budget=1,strict=yes}", "option 'strict' wants true or false"),
        ("test-every{budget=1,only-ops=a}", "option 'only-ops' wants a list"),
        ("dce{x=1}", "it takes none"),
        ("dce,dce", "is a list of passes, not one"),
    ],
)
def test_wrong_options_are_named(spec: str, message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)):
        Pass.parse(spec)


@pytest.mark.parametrize(
    ("spec", "column", "wanted"),
    [
        ("", 1, "a pass name"),
        ("dce,", 5, "a pass name"),
        ("dce cse", 5, "','"),
        ("fold{limit}", 11, "'='"),
        ("fold{limit=", 12, "a value"),
        ('fold{limit="3}', 12, "a closing quote"),
    ],
)
def test_syntax_errors_point(spec: str, column: int, wanted: str) -> None:
    with pytest.raises(TextError, match=re.escape(f"expected {wanted}, found")) as caught:
        Pipeline.parse(spec)
    assert caught.value.excerpt is not None
    assert caught.value.excerpt.column == column


# --- pipelines


def test_pipelines_round_trip() -> None:
    spec = "canonicalize,fold{limit=3},cse,dce"
    assert str(Pipeline.parse(spec)) == spec


def test_levels_must_fit() -> None:
    with pytest.raises(OptionError, match="takes a graph at the aten level, but test-break"):
        Pipeline.parse("test-break,dce")


def test_a_run_keeps_stages_history_and_snapshots() -> None:
    graph = parse(GRAPH)
    result = Pipeline.parse("cse,dce").run(graph, case_env(), snapshots={"cse"})
    assert [(s.spec, s.before, s.after) for s in result.stages] == [("cse", 3, 2), ("dce", 2, 2)]
    assert [s.snapshot is not None for s in result.stages] == [True, False]
    assert [s.spec for s in result.graph.history] == ["cse", "dce"]
    assert result.graph.history[0].renamed == (("b", ("a",)),)
    assert all(s.seconds >= 0 for s in result.graph.history)


def test_a_check_names_the_pass_that_broke_the_graph() -> None:
    with pytest.raises(CheckError, match=re.escape("[test-break] left a graph that breaks")):
        Pipeline.parse("test-break").run(parse(GRAPH), case_env(), check=True)


def test_a_check_names_the_pass_that_lost_an_effect() -> None:
    graph = parse("graph f(%x: f32[4]) { %a = aten.rand_like.default(%x) : f32[4] return %x }")
    with pytest.raises(CheckError, match=r"\[test-forget\].*nodes with the effect rng"):
        Pipeline.parse("test-forget").run(graph, case_env(), check=True)


def test_the_environment_turns_checks_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRIGHT_CHECK", "0")
    Pipeline.parse("test-break").run(parse(GRAPH), case_env())
    monkeypatch.setenv("REWRIGHT_CHECK", "1")
    with pytest.raises(CheckError):
        Pipeline.parse("test-break").run(parse(GRAPH), case_env())


def test_passes_that_find_nothing_return_the_same_graph() -> None:
    graph = parse("graph f(%x: f32[4]) { %a = aten.sin.default(%x) : f32[4] return %a }")
    for name in ("canonicalize", "cse", "dce", "fold"):
        assert Pass.parse(name).run(graph, case_env()) is graph


def test_the_log_keeps_order_and_says_things_once() -> None:
    log = DecisionLog()
    log.refuse("cse", "b", "no")
    log.decide("fuse", "a", "yes")
    log.refuse("cse", "b", "no")
    assert [str(d) for d in log] == ["[cse] %b: no", "[fuse] %a: yes"]
    assert [d.subject for d in log.refusals] == ["b"]
    assert log.about("%a") == tuple(log)[1:]


# --- docstrings


@pytest.mark.parametrize("name", [n for n in passes() if not n.startswith("test-")])
def test_docstring_is_a_before_and_an_after(name: str) -> None:
    doc = inspect.cleandoc(passes()[name].__doc__ or "")
    block = r"((?:    [^\n]*\n)+)"
    found = re.search(rf"^before:\n{block}after:\n{block}", doc + "\n", re.MULTILINE)
    assert found, f"the docstring of {name} shows no before and after"
    before, after = (textwrap.dedent(part).strip() for part in found.groups())
    graph = parse(before)
    result = Pass.parse(name).run(graph, case_env())
    assert text(graph) == text(parse(before))
    assert text(result) == text(parse(after))  # long lines are broken in docstrings
    check_numbers(graph, result, exact=not INEXACT.search(name))


# --- exactness of casts

SMALL = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int16]
SMALL += [torch.int8, torch.uint8, torch.bool]
WIDE = [torch.float64, torch.float32, torch.int64, torch.int32]


EXACT = [(wide, narrow) for wide in SMALL + WIDE for narrow in SMALL if holds(wide, narrow)]


@pytest.mark.parametrize(("wide", "narrow"), EXACT, ids=str)
def test_holds_means_there_and_back_is_nothing(wide: torch.dtype, narrow: torch.dtype) -> None:
    every = torch.arange(2 ** (8 * narrow.itemsize), dtype=torch.int32)
    bits = torch.uint8 if narrow.itemsize == 1 else torch.int16
    numbers = every.to(torch.bool) if narrow == torch.bool else every.to(bits).view(narrow)
    back = numbers.to(wide).to(narrow)
    assert torch.equal(back.isnan(), numbers.isnan())
    solid = ~numbers.isnan()
    assert torch.equal(back[solid].view(bits), numbers[solid].view(bits))


def test_holds_refuses_what_loses_bits() -> None:
    assert not holds(torch.float16, torch.bfloat16)
    assert not holds(torch.bfloat16, torch.float16)
    assert not holds(torch.float32, torch.int32)
    assert not holds(torch.uint8, torch.int8)
    assert not holds(torch.float8_e5m2, torch.float8_e4m3fn)
