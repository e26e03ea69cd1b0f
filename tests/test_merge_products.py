"""Products that read the same matrix, in one: numbers, sizes, weights that change or are shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import rewright
from rewright.backend import programs
from rewright.calibrate.host import host
from rewright.costmodel import Roofline
from rewright.ir import Graph, hint
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.passes import Env, MergeProducts
from rewright.passes.libraries.merge import MARGIN
from rewright.sources import random_inputs
from run_case import LastWins, NoTools

PRODUCTS = parse(
    """
    graph f(%x: f32[128, 128], %v: f32[128, 64] param, %w: f32[128, 32] param, %b: f32[32] param) {
      %a = aten.mm.default(%x, %v) : f32[128, 64]
      %c = aten.mm.default(%x, %w) : f32[128, 32]
      %d = aten.exp.default(%a) : f32[128, 64]
      %e = aten.neg.default(%c) : f32[128, 32]
      return %d, %e
    }
    """
)


class Block(nn.Module):
    """Attention with two query heads to a key, a gated function, one weight that is read twice."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(64, n, bias=bias) for n in (64, 32, 32))
        self.out = nn.Linear(64, 64, bias=bias)
        self.gate, self.up = (nn.Linear(64, 160, bias=bias) for _ in range(2))
        self.down = nn.Linear(160, 64, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (m(x).view(b, t, -1, 16).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, 64))
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return x @ self.up.weight.t()


@pytest.fixture
def merges(monkeypatch: pytest.MonkeyPatch) -> None:
    """One product is the quicker whatever the machine."""
    won = LastWins()
    monkeypatch.setattr("rewright.calibrate.tools.race", lambda calls, target: won.race(calls))


def block(bias: bool) -> Block:
    torch.manual_seed(0)
    return Block(bias).eval()


def frozen(model: nn.Module, dynamic: bool | None = False) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, backend="rewright", dynamic=dynamic, options={"freeze": True})


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def is_as_exact(found: Tensor, model: nn.Module, x: Tensor) -> bool:
    """Against float64, as eager is."""
    with torch.no_grad():
        eager, exact = model(x), model.double()(x.double())
        model.float()
    return error(found, exact) <= 2 * error(eager, exact) + 1e-6


def columns(graph: Graph) -> list[int]:
    """How many columns each product has, in order."""
    named = ("aten.mm", "aten.addmm", "mkldnn._linear_pointwise")
    made = [n for n in graph.nodes if n.op.name.startswith(named)]
    return [hint(n.result.tensor.shape[-1]) for n in made]


# --- models -------------------------------------------------------------------------------------


@pytest.mark.cpu
@pytest.mark.usefixtures("merges")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_projections_and_gates_are_one_product_each(bias: bool, dynamic: bool) -> None:
    model = block(bias)
    call = frozen(model, dynamic)
    for batch, length in ((2, 64), (3, 50)):
        x = torch.randn(batch, length, 64)
        with torch.no_grad():
            found = call(x)
        assert is_as_exact(found, model, x)
    assert columns(programs()[-1].graph) == [128, 64, 320, 64, 160]


@pytest.mark.cpu
@pytest.mark.usefixtures("merges")
def test_changed_weights_are_noticed() -> None:
    model = block(bias=True)
    call, x = frozen(model), torch.randn(2, 64, 64)
    with torch.no_grad():
        before = call(x).clone()
        for parameter in (model.k.weight, model.v.bias, model.up.weight):
            parameter.mul_(2.0)
            after = call(x).clone()
            assert not torch.equal(after, before)
            assert error(after, model(x).double()) <= 1e-5
            before = after


@pytest.mark.cpu
@pytest.mark.usefixtures("merges")
def test_an_artefact_holds_each_weight_once(tmp_path: Path) -> None:
    model, x = block(bias=True), torch.randn(2, 64, 64)
    program = rewright.optimize(torch.export.export(model, (x,)), freeze=True)
    assert columns(program.graph) == [128, 64, 320, 64, 160]
    assert error(program(x), model(x).double().detach()) <= 1e-5
    program.save(tmp_path)
    held = [t for path in tmp_path.rglob("*.safetensors") for t in load_file(path).values()]
    assert sum(t.numel() for t in held) == sum(p.numel() for p in model.parameters())


# --- decisions ----------------------------------------------------------------------------------


class Takes(NoTools):
    """`Tools` by which products take a second apart, and `seconds` in one."""

    def __init__(self, seconds: float) -> None:
        self.seconds_in_one = seconds

    def race(self, calls: Sequence[Graph]) -> list[float]:
        half = len(calls) // 2
        sizes = [sum(columns(call)) for call in calls]
        assert sizes == [96] * len(calls)
        assert [len(columns(call)) for call in calls] == [2] * half + [1] * half
        return [1.0] * half + [self.seconds_in_one] * half


@pytest.mark.parametrize(("seconds", "number"), [(0.9, 1), (1 - MARGIN / 2, 2), (1.1, 2)])
def test_what_is_quicker_is_taken(seconds: float, number: int) -> None:
    env = Env(Roofline(host()), host(), Takes(seconds))
    merged = MergeProducts().run(PRODUCTS, env)
    assert len(columns(merged)) == number
    told = [str(d) for d in env.log.about("%a")]
    assert any("in one they take" in line for line in told) == (number == 2)
    given = random_inputs(PRODUCTS)
    for found, wanted in zip(interpret(merged, given), interpret(PRODUCTS, given), strict=True):
        torch.testing.assert_close(found, wanted)


def test_nothing_is_merged_where_nothing_can_be_measured() -> None:
    assert MergeProducts().run(PRODUCTS, Env(Roofline(host()), host())) is PRODUCTS
    assert MergeProducts().run(PRODUCTS, Env(Roofline(host()), host(), NoTools())) is PRODUCTS
