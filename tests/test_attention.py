"""Attention is found by what it computes, in whatever way it is spelled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_spellings import SPELLINGS, Spelling
from rewright.costmodel import Roofline
from rewright.ir import Graph, Target
from rewright.ir.check import check
from rewright.ir.interpret import interpret
from rewright.passes import Attention, Canonicalize, Cse, Env, LowerAttention, Pipeline, Rules
from spellings import traced

B, H, T, S, D = 2, 4, 5, 7, 8
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def env() -> Env:
    target = Target.parse("cpu:avx2")
    return Env(cost=Roofline(target), target=target)


def inputs_of(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, H, T, D), (B, H, S, D), (B, H, S, D))
    return tuple(torch.randn(s, generator=generator).to(dtype) for s in shapes)


def graph_of(spelling: Spelling, inputs: tuple[Tensor, ...]) -> Graph:
    return traced(spelling, inputs)


def recognized(graph: Graph, env: Env) -> Graph:
    steps = (Canonicalize(), Cse(), Rules(), Attention())
    return Pipeline(steps).run(graph, env, check=True).graph


def lowered(graph: Graph, env: Env) -> Graph:
    return Pipeline((LowerAttention(),)).run(graph, env, check=True).graph


def count(graph: Graph, part: str) -> int:
    return sum(part in node.op.name for node in graph.nodes)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_spelling_is_found(name: str, dtype: torch.dtype) -> None:
    inputs = inputs_of(dtype)
    graph, around = graph_of(SPELLINGS[name], inputs), env()
    found = recognized(graph, around)
    assert count(found, "rw.attention") == 1, [str(d) for d in around.log]
    assert count(found, "bmm") == 0
    (wanted,) = interpret(graph, inputs, dtype=torch.float64)
    (exact,) = interpret(found, inputs, dtype=torch.float64)
    assert error(exact, wanted) < 1e-12
    # As it runs, no further from float64 than eager is.
    (ours,), (eager,) = interpret(lowered(found, around), inputs), interpret(graph, inputs)
    assert error(ours, wanted) <= 2 * error(eager, wanted) + 1e-6


@pytest.mark.parametrize("name", SPELLINGS)
def test_all_but_soft_caps_run_as_one_operator(name: str) -> None:
    around = env()
    graph = lowered(recognized(graph_of(SPELLINGS[name], inputs_of()), around), around)
    if name == "softcap":
        assert any("more is done to its scores" in d.sentence for d in around.log)
        return
    assert count(graph, "_scaled_dot_product_flash_attention_for_cpu") == 1
    assert count(graph, "bmm") == count(graph, "_softmax") == 0


def test_keys_that_come_transposed() -> None:
    """pytorch/pytorch#195320: with as many keys as features nothing but the product tells them
    apart."""

    def transposed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k * D**-0.5, -1) @ v

    q, _, v = inputs_of()
    for keys in (S, D):
        k = torch.randn(B, H, D, keys)
        values = v[:, :, :keys] if keys <= S else torch.randn(B, H, keys, D)
        graph, around = graph_of(transposed, (q, k, values)), env()
        found = recognized(graph, around)
        assert count(found, "rw.attention") == 1
        (wanted,) = interpret(graph, (q, k, values), dtype=torch.float64)
        (ours,) = interpret(lowered(found, around), (q, k, values))
        assert error(ours, wanted) < 1e-6


def test_probabilities_that_others_read_stay() -> None:
    def weights_too(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.softmax(q @ k.mT, -1)
        return weights @ v, weights

    around = env()
    graph = graph_of(weights_too, inputs_of())  # type: ignore[arg-type]
    assert recognized(graph, around).nodes
    assert count(recognized(graph, around), "rw.attention") == 0
    assert any("leaves the graph" in d.sentence for d in around.log)


def test_a_softmax_over_rows_is_no_attention() -> None:
    def over_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT, -2) @ v

    around = env()
    assert count(recognized(graph_of(over_rows, inputs_of()), around), "rw.attention") == 0


def test_numbers_that_replace_scores_must_drown_them() -> None:
    """-10 instead of a score is not the score less 10."""

    def nearly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.ones(T, S, dtype=torch.bool).tril()
        return torch.softmax((q @ k.mT).masked_fill(~mask, -10.0), -1) @ v

    inputs, around = inputs_of(), env()
    graph = graph_of(nearly, inputs)
    found = recognized(graph, around)
    (wanted,) = interpret(graph, inputs, dtype=torch.float64)
    assert error(interpret(found, inputs, dtype=torch.float64)[0], wanted) < 1e-12
    assert count(lowered(found, around), "flash") == 0


def test_attention_through_torch_compile() -> None:
    module = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval()

    class Spelled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                part.view(2, 9, 4, 8).transpose(1, 2)
                for part in torch.nn.functional.linear(
                    x, self.inner.in_proj_weight, self.inner.in_proj_bias
                ).chunk(3, -1)
            )
            return SPELLINGS["huggingface"](q, k, v).transpose(1, 2).reshape(2, 9, 32)

    x = torch.randn(2, 9, 32)
    spelled = Spelled()
    import rewright

    compiled = rewright.optimize(spelled, (x,))
    assert any("flash" in node.op.name for node in compiled.graph.nodes)
    torch.testing.assert_close(compiled(x), spelled(x))


def test_symbolic_sizes() -> None:
    from rewright.ir.parse import parse
    from rewright.ir.show import show

    graph = parse(
        """graph f(%q: f32[B0, 8, B1, 4], %k: f32[B0, 8, B1, 4], %v: f32[B0, 8, B1, 4])
          where B0 in [1, 64] hint 2, B1 in [1, 512] hint 6 {
          %a = aten.view.default(%q, [B0*8, B1, 4]) : f32[B0*8, B1, 4]
          %t = aten.permute.default(%k, [0, 1, 3, 2])
            : f32[B0, 8, 4, B1] strides [32*B1, 4*B1, 1, 4]
          %b = aten.view.default(%t, [B0*8, 4, B1]) : f32[B0*8, 4, B1] strides [4*B1, 1, 4]
          %s = aten.bmm.default(%a, %b) : f32[B0*8, B1, B1]
          %w = aten.view.default(%s, [B0, 8, B1, B1]) : f32[B0, 8, B1, B1]
          %m = aten.mul.Tensor(%w, 0.5) : f32[B0, 8, B1, B1]
          %p = aten._softmax.default(%m, -1, false) : f32[B0, 8, B1, B1]
          %e = aten.view.default(%p, [B0*8, B1, B1]) : f32[B0*8, B1, B1]
          %c = aten.view.default(%v, [B0*8, B1, 4]) : f32[B0*8, B1, 4]
          %o = aten.bmm.default(%e, %c) : f32[B0*8, B1, 4]
          %r = aten.view.default(%o, [B0, 8, B1, 4]) : f32[B0, 8, B1, 4]
          return %r
        }"""
    )
    around = env()
    found = lowered(recognized(graph, around), around)
    check(found, "aten")
    assert parse(show(found)) == found
    assert count(found, "flash") == 1
    inputs = [torch.randn(3, 8, 5, 4) for _ in range(3)]
    torch.testing.assert_close(interpret(found, inputs), interpret(graph, inputs))
