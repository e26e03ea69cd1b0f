"""Losses in parts: that the parts compute the same, what is refused, and what is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewright.backend import programs
from rewright.calibrate.peak import measured_peak
from rewright.ir import Graph
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.passes import ChunkLoss
from run_case import case_env

pytestmark = pytest.mark.cpu

ROWS, WIDTH, WORDS = 256, 32, 300

Loss = Callable[[Tensor, Tensor], Tensor]


class Head(nn.Module):
    """Hidden states to a loss over many words."""

    def __init__(self, loss: Loss, bias: bool = False, half: bool = False) -> None:
        super().__init__()
        self.loss, self.low = loss, half
        self.below, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WORDS, bias=bias)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.low):
            logits = self.head(self.below(x).tanh())
        return self.loss(logits.float(), words)


def smoothed(logits: Tensor, words: Tensor) -> Tensor:
    return F.cross_entropy(20 * (logits / 20).tanh(), words, label_smoothing=0.1)


def weighted(logits: Tensor, words: Tensor) -> Tensor:
    each = F.cross_entropy(logits, words, reduction="none", ignore_index=7)
    return (each * torch.linspace(0, 1, ROWS)).sum()


def pulled_to_zero(logits: Tensor, words: Tensor) -> Tensor:
    return F.cross_entropy(logits, words) + 1e-2 * logits.logsumexp(-1).square().mean()


def of_sequences(logits: Tensor, words: Tensor) -> Tensor:
    """As models of `transformers` spell it: cast between a view and the view back."""
    wide = logits.view(2, -1, WORDS).double().view(-1, WORDS)
    return F.cross_entropy(wide, words).float()


def step(call: Callable[..., Tensor], module: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    x, words = torch.randn(ROWS, WIDTH, requires_grad=True), torch.arange(ROWS) % WORDS
    module.zero_grad(set_to_none=True)
    loss = call(x, words)
    loss.backward()
    assert x.grad is not None
    return [loss.detach(), x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]


def compiled(module: nn.Module) -> Any:
    options: dict[str, Any] = {"memory_budget": "min"}
    return torch.compile(module, backend="rewright", options=options, fullgraph=True, dynamic=False)


def notes() -> set[str]:
    return {note for p in programs() if p.fitted is not None for note in p.fitted.notes}


@pytest.mark.parametrize(
    ("loss", "bias", "half"),
    [
        (F.cross_entropy, False, False),
        (F.cross_entropy, True, False),
        (F.cross_entropy, False, True),
        (smoothed, False, False),
        (weighted, True, False),
        (pulled_to_zero, False, False),
        (of_sequences, False, False),
    ],
)
def test_a_loss_in_parts_has_the_same_gradients(loss: Loss, bias: bool, half: bool) -> None:
    torch.manual_seed(0)
    module = Head(loss, bias, half)
    expected = step(module, module)
    found = step(compiled(module), module)
    assert any("some rows at a time" in note for note in notes())
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).norm()) <= (2e-2 if half else 2e-6) * float(b.norm())


def test_a_loss_in_parts_takes_less_than_its_logits_would() -> None:
    torch.manual_seed(0)
    module = Head(F.cross_entropy)
    ours = compiled(module)
    step(ours, module)
    assert measured_peak(lambda: step(ours, module)) < 2 * ROWS * WORDS * 4


def test_logits_that_are_returned_stay_whole() -> None:
    torch.manual_seed(0)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, WORDS, bias=False)

        def forward(self, x: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.head(x)
            return F.cross_entropy(logits, words), logits

    module = Both()
    ours = compiled(module)
    found = step(lambda x, words: ours(x, words)[0], module)
    expected = step(lambda x, words: module(x, words)[0], module)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not any("some rows at a time" in note for note in notes())


# --- graphs -------------------------------------------------------------------------------------

INSIDE = """
  %l = aten.mm.default(%h, %w) : f32[ROWS, 9]
  %p = aten._log_softmax.default(%l, 1, false) : f32[ROWS, 9]
  %y = aten.gather.default(%p, 1, %i) : f32[ROWS, 1]
"""


def graph_of(*lines: str, outputs: str, rows: int | str = 128, inside: str = INSIDE) -> Graph:
    text = "\n".join((inside.strip("\n"), *lines)).replace("ROWS", str(rows))
    where = f" where {rows} in [2, inf] hint 128" if isinstance(rows, str) else ""
    inputs = f"%h: f32[{rows}, 4], %w: f32[4, 9], %i: i64[{rows}, 1]"
    return parse(f"graph f({inputs}){where} {{\n{text}\n  return {outputs}\n}}")


def compared(found: Graph, graph: Graph) -> None:
    """In float64, on random inputs."""
    generator = torch.Generator().manual_seed(0)
    (rows, width), (_, words) = (i.value.tensor.shape for i in graph.inputs[:2])
    assert isinstance(rows, int) and isinstance(width, int) and isinstance(words, int)
    inputs = [
        torch.randn(rows, width, generator=generator),
        torch.randn(width, words, generator=generator),
        torch.randint(words, (rows, 1), generator=generator),
    ]
    pairs = zip(*(interpret(g, inputs, dtype=torch.float64) for g in (found, graph)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)


def test_parts_are_added_up_and_joined() -> None:
    graph = graph_of(
        "%d = aten._log_softmax_backward_data.default(%p, %p, 1, f32) : f32[ROWS, 9]",
        "%b = aten.sum.dim_IntList(%d, [0], true) : f32[1, 9]",
        "%t = aten.permute.default(%d, [1, 0]) : f32[9, ROWS] strides [1, 9]",
        "%dw = aten.mm.default(%t, %h) : f32[9, 4]",
        outputs="%y, %b, %dw",
        rows=200,
    )
    found = ChunkLoss(chunks=3).run(graph, case_env())
    assert found is not graph
    assert all(v.tensor.shape != (200, 9) for n in found.nodes for v in n.results)
    compared(found, graph)


def test_what_reads_a_sum_over_all_rows_waits_for_all_parts() -> None:
    graph = graph_of(
        "%s = aten.sum.dim_IntList(%p, [0], true) : f32[1, 9]",
        "%q = aten.mul.Tensor(%p, %s) : f32[ROWS, 9]",
        "%r = aten.sum.dim_IntList(%q, [1], false) : f32[ROWS]",
        outputs="%y, %r",
    )
    found = ChunkLoss().run(graph, case_env())
    assert found is not graph
    compared(found, graph)


def test_two_losses_of_the_same_logits_are_parted_once() -> None:
    graph = graph_of(
        "%o = aten._log_softmax.default(%l, 1, false) : f32[ROWS, 9]",
        "%z = aten.sum.dim_IntList(%o, [1], false) : f32[ROWS]",
        outputs="%y, %z",
    )
    env = case_env()
    compared(ChunkLoss().run(graph, env), graph)
    assert len([d for d in env.log if d.pass_ == "chunk-loss"]) == 1


def test_sums_in_half_precision_are_added_up_in_single() -> None:
    inside = INSIDE + "  %d = aten.mul.Tensor(%p, %p) : f32[ROWS, 9]\n"
    lines = (
        "%e = aten._to_copy.default(%d, dtype=bf16) : bf16[ROWS, 9]",
        "%k = aten._to_copy.default(%h, dtype=bf16) : bf16[ROWS, 4]",
        "%t = aten.permute.default(%e, [1, 0]) : bf16[9, ROWS] strides [1, 9]",
        "%dw = aten.mm.default(%t, %k) : bf16[9, 4]",
    )
    graph = graph_of(*lines, outputs="%y, %dw", rows=512, inside=inside)
    found = ChunkLoss().run(graph, case_env())
    added = [n.result.tensor.dtype for n in found.nodes if n.op.name == "aten.add.Tensor"]
    assert added == [torch.float32] * 7
    compared(found, graph)


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (graph_of(outputs="%y, %l"), "%l is returned"),
        (graph_of(outputs="%y", rows=100), "100 rows are too few to part"),
        (graph_of(outputs="%y", rows="B"), "no table of known sizes"),
        (
            graph_of(
                "%v = aten.view.default(%l, [2, 64, 9]) : f32[2, 64, 9]",
                "%s = aten.sum.dim_IntList(%v, [2], false) : f32[2, 64]",
                outputs="%y, %s",
            ),
            "aten.view.default of %v is not known to keep rows apart",
        ),
        (
            graph_of(
                "%s = aten._softmax.default(%l, 0, false) : f32[ROWS, 9]",
                "%r = aten.sum.dim_IntList(%s, [1], false) : f32[ROWS]",
                outputs="%y, %r",
            ),
            "aten._softmax.default of %s works along the rows",
        ),
    ],
)
def test_what_cannot_be_parted_is_refused_with_a_reason(graph: Graph, why: str) -> None:
    env = case_env()
    assert ChunkLoss().run(graph, env) is graph
    (said,) = [d.sentence for d in env.log if d.pass_ == "chunk-loss"]
    assert why in said
