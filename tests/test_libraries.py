"""Library calls: references of oneDNN's operators, races that decide which library runs what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rewright.calibrate import race as racing
from rewright.calibrate.host import host
from rewright.calibrate.tools import BenchTools
from rewright.costmodel import Roofline
from rewright.costmodel.features import FAMILIES, family_of, features
from rewright.ir import Graph, hint
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.ir.work import flops
from rewright.passes import DecisionLog, Env, Libraries
from rewright.passes.libraries.products import MOST_WORK, Product, contestants
from rewright.sources import random_inputs
from run_case import NoTools

PRODUCT = parse(
    """
    graph f(%x: f32[128, 128], %w: f32[64, 128], %b: f32[64]) {
      %t = aten.permute.default(%w, [1, 0]) : f32[128, 64] strides [1, 128]
      %y = aten.addmm.default(%b, %x, %t) : f32[128, 64]
      return %y
    }
    """
)


class Takes(NoTools):
    """`Tools` by which torch's own calls take a second, and oneDNN's `seconds`."""

    def __init__(self, onednn: float | None) -> None:
        self.onednn, self.asked = onednn, 0

    def race(self, calls: Sequence[Graph]) -> list[float] | None:
        self.asked += 1
        assert [len(call.nodes) for call in calls] == [1, 1]
        return None if self.onednn is None else [1.0, self.onednn]


def chosen(onednn: float | None, graph: Graph = PRODUCT) -> tuple[list[str], DecisionLog]:
    target = host()
    env = Env(Roofline(target), target, Takes(onednn))
    return [n.op.name for n in Libraries().run(graph, env).nodes], env.log


def test_the_quicker_library_is_called() -> None:
    assert chosen(0.5)[0][-1] == "mkldnn._linear_pointwise.default"
    for onednn in (0.99, 2.0):
        names, log = chosen(onednn)
        assert names[-1] == "aten.addmm.default"
        assert "oneDNN takes" in str(log.about("%y")[0])
    assert chosen(None)[0][-1] == "aten.addmm.default"


class Multiplies(NoTools):
    """Products take less than convolutions."""

    def race(self, calls: Sequence[Graph]) -> list[float]:
        slides = [n.op.name for n in calls[0].nodes] == ["aten.convolution.default"]
        return [9.0] if slides else [1.0, 2.0]


@pytest.mark.parametrize("strides", ["[256, 1, 16, 1]", "[256, 256, 16, 1]", "[256, 7, 16, 1]"])
def test_one_filter_of_a_pixel_is_a_product_and_keeps_its_strides(strides: str) -> None:
    graph = parse(
        f"""
        graph f(%x: f32[2, 128, 16, 16] strides [32768, 1, 2048, 128], %w: f32[1, 128, 1, 1]) {{
          %y = aten.convolution.default(%x, %w, none, [1, 1], [0, 0], [1, 1], false, [0, 0], 1)
            : f32[2, 1, 16, 16] strides {strides}
          return %y
        }}
        """
    )
    target = host()
    made = Libraries().run(graph, Env(Roofline(target), target, Multiplies()))
    assert made.outputs[0] == graph.outputs[0]
    assert ("aten.mm.default" in [n.op.name for n in made.nodes]) == ("7" not in strides)
    x, w = random_inputs(graph)
    torch.testing.assert_close(interpret(made, [x, w])[0], F.conv2d(x, w))


def test_nothing_is_chosen_where_nothing_can_be_measured() -> None:
    target = host()
    assert Libraries().run(PRODUCT, Env(Roofline(target), target)) is PRODUCT


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_contestants_compute_the_same(left: bool, right: bool, bias: bool) -> None:
    usual, onednn = contestants(Product(5, 7, 3, left, right, bias))
    addend, a, b = torch.randn(3), torch.randn(5, 7), torch.randn(7, 3)
    a, b = a.t().contiguous().t() if left else a, b.t().contiguous().t() if right else b
    for graph, given in (
        (usual, [addend, a, b] if bias else [a, b]),
        (onednn, [a, b.t(), addend] if bias else [a, b.t()]),
    ):
        assert [i.value.tensor.layout for i in graph.inputs] == [x.stride() for x in given]
        (found,) = interpret(graph, given)
        torch.testing.assert_close(found, a @ b + (addend if bias else 0))


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_both_calls_look_alike_to_the_cost_model(right: bool, bias: bool) -> None:
    """Which is quicker is measured; nothing else is known of oneDNN's."""
    target = host()
    usual, onednn = (g.nodes[0] for g in contestants(Product(64, 96, 32, False, right, bias)))
    expected, found = (
        dict(zip(FAMILIES["product"], features(n, target).numbers, strict=True))
        for n in (usual, onednn)
    )
    assert found == pytest.approx(expected, rel=0.1)


def test_a_race_is_run_over_a_part_of_a_large_product() -> None:
    whole = Product(256, 768, 50257, False, True, False)
    cut = whole.cut()
    assert 2 * cut.m * cut.k * cut.n <= MOST_WORK and (cut.m, cut.k) == (256, 768)
    small = Product(128, 64, 64, True, False, True)
    assert small.cut() == small


@pytest.mark.learned
def test_races_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRIGHT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    calls = contestants(Product(64, 64, 64, False, True, True))
    tools = BenchTools(host(), tmp_path / "model.npz", 0.0)
    found = tools.race(calls)
    assert found is not None and all(1e-7 < seconds < 1e-2 for seconds in found)
    (record,) = tmp_path.rglob("*.race")
    stored, _, _ = record.read_bytes().partition(b"]")
    assert json.loads(stored + b"]") == found
    monkeypatch.setattr(racing, "_timed", None)
    assert tools.race(calls) == found


def test_races_of_kernels_of_ours_go_by_their_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    library = contestants(Product(64, 64, 64, False, True, True))
    ours = parse("""rewright 1
graph f(%x: f32[4]) {
  %y = rw.fused(%x) body(%x: f32[4]) {
    %y = aten.relu.default(%x) : f32[4]
    return %y
  } : f32[4]
  return %y
}
""")
    before = racing._name(library), racing._name([ours])
    monkeypatch.setattr(racing, "all_headers", lambda: "another header")
    after = racing._name(library), racing._name([ours])
    assert before[0] == after[0] and before[1] != after[1]


@pytest.mark.learned
def test_races_on_a_busy_machine_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWRIGHT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("os.getloadavg", lambda: (1e3, 1e3, 1e3))
    monkeypatch.setattr(racing, "_here", {})
    calls = contestants(Product(64, 64, 64, False, True, True))
    tools = BenchTools(host(), tmp_path / "model.npz", 0.0)
    found = tools.race(calls)
    assert found is not None and not list(tmp_path.rglob("*.race"))
    monkeypatch.setattr(racing, "_timed", None)
    assert tools.race(calls) == found  # in this process all compiles choose alike


@pytest.mark.learned
def test_what_does_not_run_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise NotImplementedError("mkldnn::_linear_pointwise")

    monkeypatch.setenv("REWRIGHT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(racing, "_timed", fail)
    calls = contestants(Product(64, 64, 64, False, True, True))
    assert BenchTools(host(), tmp_path / "model.npz", 0.0).race(calls) is None


CONVOLUTION = "f32[2, 8, 6, 6] strides [288, 1, 48, 8]"
OPERATORS = {
    "linear": """
    graph f(%x: f32[4, 6], %w: f32[5, 6], %b: f32[5]) {
      %y = mkldnn._linear_pointwise.default(%x, %w, %b, "leaky_relu", [0.5], "") : f32[4, 5]
      return %y
    }
    """,
    "gelu": """
    graph f(%x: f32[4, 6], %w: f32[5, 6], %b: f32[5]) {
      %y = mkldnn._linear_pointwise.default(%x, %w, %b, "gelu", [], "tanh") : f32[4, 5]
      return %y
    }
    """,
    "linear_binary": """
    graph f(%x: f32[4, 6], %o: f32[4, 5], %w: f32[5, 6], %b: f32[5]) {
      %y = mkldnn._linear_pointwise.binary(%x, %o, %w, %b, "mul") : f32[4, 5]
      return %y
    }
    """,
    "convolution": f"""
    graph f(%x: {CONVOLUTION}, %w: f32[4, 2, 3, 3], %b: f32[4]) {{
      %y = mkldnn._convolution_pointwise.default(
        %x, %w, %b, [1, 1], [2, 2], [1, 1], 4, "hardtanh", [0.0, 6.0], ""
      ) : f32[2, 4, 3, 3] strides [36, 1, 12, 4]
      return %y
    }}
    """,
    "convolution_binary": f"""
    graph f(%x: {CONVOLUTION}, %o: {CONVOLUTION}, %w: f32[8, 8, 3, 3], %b: f32[8]) {{
      %y = mkldnn._convolution_pointwise.binary(
        %x, %o, %w, %b, [1, 1], [1, 1], [1, 1], 1, "add", none, "relu", [], ""
      ) : {CONVOLUTION}
      return %y
    }}
    """,
}


@pytest.mark.parametrize("name", OPERATORS)
def test_references_of_onednn(name: str) -> None:
    """The operator agrees with its reference in float64, and its work is counted."""
    graph = parse(OPERATORS[name])
    torch.manual_seed(0)
    inputs = random_inputs(graph)
    (found,) = interpret(graph, inputs)
    (exact,) = interpret(graph, inputs, dtype=torch.float64)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(found, exact.float(), rtol=1e-4, atol=1e-5)
    (node,) = graph.nodes
    family = family_of(node)
    assert family == ("product" if "linear" in node.op.name else "convolution")
    assert len(features(node, host()).numbers) == len(FAMILIES[family])
    multiplied = hint(node.result.tensor.numel) * 2 * (6 if family == "product" else 18)
    assert hint(flops(node)) >= multiplied


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(128, 256), nn.Linear(256, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(F.gelu(self.up(x)))
        return y


def test_a_model_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, also with sizes that change, where oneDNN wins every race."""
    monkeypatch.setattr(BenchTools, "race", lambda self, calls: [1.0, 0.5])
    torch.manual_seed(0)
    model, exact = Mlp(), Mlp().double()
    exact.load_state_dict(model.state_dict())
    compiled = torch.compile(model, backend="rewright", dynamic=True)
    for rows in (96, 200):
        x = torch.randn(rows, 128)
        compiled(x).square().sum().backward()
        exact(x.double()).square().sum().backward()
        for ours, its in zip(model.parameters(), exact.parameters(), strict=True):
            assert ours.grad is not None and its.grad is not None
            assert float((ours.grad - its.grad).norm() / its.grad.norm()) < 2e-6
        model.zero_grad()
        exact.zero_grad()


def test_a_build_without_onednn_keeps_torchs_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewright.passes.libraries.products.is_available", lambda: False)
    assert chosen(0.5)[0][-1] == "aten.addmm.default"
