"""Attention and its gradient in kernels of ours: what they compute, and when they are chosen."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rewright
from attention_gradients import Gradients, gradients_of
from attention_kernels import MASKS, Score, Shape, distance, kept, numbers
from rewright.calibrate.peak import measured_peak
from rewright.ir import Graph, TensorType, Value, hint
from rewright.ir.parse import parse
from rewright.ir.show import show
from rewright.ir.work import bytes_read, flops
from test_flash_programs import ATTENDS, Heads, in_documents, sdpa, window
from through_backend import compiled

pytestmark = pytest.mark.cpu

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ODD = Shape(2, 4, 97, 130, 24, 40)
FORWARD, BACKWARD = "rw.attention", "rw.attention_backward"


def given(
    shape: Shape, dtype: torch.dtype, *read: Tensor, heads: int | None = None
) -> tuple[Tensor, ...]:
    """Queries, fewer heads of keys and values if asked for, what is read, and a gradient."""
    q, k, v = numbers(shape, dtype)
    k, v = (x[:, :heads].contiguous() for x in (k, v))
    return q, k, v, *read, torch.randn(*q.shape[:3], shape.e).to(dtype)


def check_against_eager(cases: list[Gradients]) -> None:
    """No further from float64 than twice as far as eager is."""
    far = []
    for case, found in zip(cases, gradients_of(cases), strict=True):
        eager, exact = case.eager(), case.eager(torch.float64)
        for x, one, wanted in zip(found, eager, exact, strict=True):
            if not distance(x, wanted) <= 2 * distance(one, wanted) + 1e-6:
                far.append((case.name, distance(x, wanted), distance(one, wanted)))
    assert not far


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_further_from_float64_than_eager(dtype: torch.dtype) -> None:
    """Every fourth mask in an odd shape."""
    names = list(MASKS)[DTYPES.index(dtype) :: 4]
    masks = {name: MASKS[name] for name in names}
    check_against_eager(
        [
            Gradients(name, mask.score, given(ODD, dtype, *mask.read(ODD, dtype)))
            for name, mask in masks.items()
        ]
    )


SHAPES = (
    (Shape(1, 2, 200, 200, 64, 64), None),
    (Shape(2, 2, 1, 77, 16, 32), 1),
    (Shape(1, 4, 5, 3, 8, 8), 2),
    (Shape(1, 6, 200, 65, 33, 17), 3),
    (Shape(2, 1, 100, 300, 80, 128), None),
)


def test_shapes_and_shared_keys() -> None:
    """Features that are no multiple of a step of lanes, one row or key, and heads that share
    keys, over which gradients of keys are added up."""
    causal = MASKS["causal"].score
    cases = [
        Gradients(str(tuple(shape)), causal, given(shape, torch.float32, heads=heads))
        for shape, heads in SHAPES
    ]
    check_against_eager(cases)


def test_threads_change_no_bit() -> None:
    """Whether all gradients are made at once, a head of keys at a time, or tile by tile."""
    shape = Shape(1, 6, 300, 200, 16, 16)  # a head of keys, which two threads share by its tiles
    case = Gradients("window", MASKS["window"].score, given(shape, torch.float32, heads=1))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(gradients_of([case])[0])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


# --- rows without keys --------------------------------------------------------------------------


def early(i: Tensor, j: Tensor) -> Tensor:
    """A window of 50 keys, for the first 150 rows."""
    return (j <= i) & (i - j < 50) & (i < 150)


def added(other: float) -> Score:
    def score(scores: Tensor, i: Tensor, j: Tensor) -> Tensor:
        bias = torch.zeros(len(i), len(j), dtype=scores.dtype)
        return scores + bias.masked_fill(~early(i, j), other)

    return score


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_row_that_is_masked_as_a_whole(dtype: torch.dtype) -> None:
    """It gets no gradient, and gives none, where masks are infinite; where they are the least
    number its probabilities are even, though the logarithm of their sum does not say so."""
    lowest, inputs = torch.finfo(dtype).min, given(Shape(2, 2, 300, 300, 16, 16), dtype)
    infinite = [Gradients("where", kept(early), inputs)]
    finite = [Gradients("plus, least", added(lowest), inputs)]
    live = (*inputs[:-1], inputs[-1].masked_fill(torch.arange(300)[:, None] >= 150, 0))
    exact = Gradients("live", kept(early, lowest), live)
    wanted, eager = exact.eager(torch.float64), exact.eager()
    for found in gradients_of(infinite):
        assert all(x.isfinite().all() for x in found)
        assert (found[0][:, :, 150:] == 0).all()
        for x, one, other in zip(found, eager, wanted, strict=True):
            assert distance(x, other) <= 2 * distance(one, other) + 1e-6
    check_against_eager(finite)


def test_tiles_without_a_live_score_are_never_touched() -> None:
    """Neither keys nor values of them are read, nor rows for keys that none of them sees."""
    length = 384
    second = (torch.arange(length) >= 192).long().expand(2, -1).contiguous()

    def same_document(i: Tensor, j: Tensor, ids: Tensor) -> Tensor:
        return ids[:, None, :, None] == ids[:, None, None, :]

    inputs = given(Shape(2, 1, length, length, 16, 16), torch.float32, second)
    clean = Gradients("documents", kept(same_document), inputs)
    q, k, v, ids, g = (x.clone() for x in inputs)
    for x in (q, k, v, g):
        x[:, :, 192:] = math.nan

    class Spoilt(Gradients):
        def forward(self) -> tuple[Tensor, Tensor]:
            results, sums = clean.forward()
            results[:, :, 192:] = math.nan
            return results, sums

    spoilt = Spoilt("documents", kept(same_document), (q, k, v, ids, g))
    for found, wanted in zip(*gradients_of([spoilt, clean]), strict=True):
        assert torch.equal(found[:, :, :192], wanted[:, :, :192])


# --- through torch.compile ----------------------------------------------------------------------


def step(module: nn.Module, run: Any, x: Tensor, *read: Tensor) -> list[Tensor]:
    """The result, and gradients of the input and of parameters."""
    module.zero_grad()
    x = x.detach().requires_grad_()
    out = run(x, *read)
    weight = torch.arange(out.numel()).reshape(out.shape).remainder(7).to(out.dtype)
    (out * weight).sum().backward()
    grads = (x.grad, *(p.grad for p in module.parameters()))
    return [out.detach(), *(grad.clone() for grad in grads if grad is not None)]


def check_step(module: nn.Module, run: Any, x: Tensor, *read: Tensor) -> None:
    """As near to float64 as eager."""
    twin, exact = copy.deepcopy(module), copy.deepcopy(module).double()
    found, eager = step(module, run, x, *read), step(twin, twin, x, *read)
    wanted = step(exact, exact, x.double(), *read)
    for one, other, best in zip(found, eager, wanted, strict=True):
        assert distance(one, best) <= 2 * distance(other, best) + 1e-6


def halves() -> tuple[Graph, Graph]:
    """The forward and the backward that were compiled last."""
    forward, backward = rewright.programs()[-2:]
    return forward.graph, backward.graph


def attention_in(graph: Graph) -> list[str]:
    return [n.op.name for n in graph.nodes if "attention" in n.op.name]


def are_ours() -> bool:
    forward, backward = halves()
    return attention_in(forward) == [FORWARD] and attention_in(backward) == [BACKWARD]


def largest(graph: Graph) -> int:
    """Elements of the largest value."""
    return max(hint(v.tensor.numel) for v in graph.values if isinstance(v.type, TensorType))


@pytest.mark.parametrize("name", ATTENDS)
def test_no_scores_nor_masks_are_tensors(name: str) -> None:
    """Keys that are repeated are not, either: their gradients are added up in the kernel."""
    attend, heads = ATTENDS[name]
    module, t = Heads(attend, heads), 300
    check_step(module, compiled(module, dynamic=False), torch.randn(2, t, 32))
    assert are_ours()
    for program in rewright.programs()[-2:]:
        assert largest(program.source) < t * t
        assert not any("clone" in n.op.name for n in program.graph.nodes)
    backward = next(n for n in halves()[1].nodes if n.op.name == BACKWARD)
    buffers = backward.kwarg("out")
    assert isinstance(buffers, tuple)
    elements = [hint(v.tensor.numel) for v in buffers if isinstance(v, Value)]
    assert elements == [2 * t * 64, *[2 * t * 16 * heads] * 2]


# The least float16 that is added to a score leaves it one that may count.
IN_HALVES = [(n, torch.bfloat16) for n in ("bools", "repeated", "capped")] + [
    ("bools", torch.float16)
]


@pytest.mark.parametrize(("name", "dtype"), IN_HALVES, ids=str)
def test_half_types(name: str, dtype: torch.dtype) -> None:
    attend, heads = ATTENDS[name]
    module = Heads(attend, heads).to(dtype)
    check_step(module, compiled(module, dynamic=False), torch.randn(2, 300, 32).to(dtype))
    assert are_ours()


@pytest.mark.parametrize("name", ["bools", "repeated", "capped"])
def test_lengths_may_vary(name: str) -> None:
    attend, heads = ATTENDS[name]
    module = Heads(attend, heads)
    run = compiled(module, dynamic=True)
    for t in (300, 97, 64, 411):
        check_step(module, run, torch.randn(2, t, 32))
    assert are_ours()


def test_what_memory_masks_is_looked_for_when_a_program_runs() -> None:
    module, ids = Heads(in_documents), (torch.arange(384) >= 192).long().expand(2, -1).clone()
    check_step(module, compiled(module, dynamic=False), torch.randn(2, 384, 32), ids)
    assert are_ours()


def test_a_mask_that_lies_in_memory_stays_atens() -> None:
    """All of its tiles might count, and it is there anyway."""
    module = Heads(lambda q, k, v, mask: sdpa(q, k, v, attn_mask=mask))
    mask = torch.randn(300, 300)
    check_step(module, compiled(module, dynamic=False), torch.randn(2, 300, 32), mask)
    assert not are_ours()


@pytest.mark.parametrize("is_causal", [False, True])
def test_what_atens_kernels_compute_as_well_is_theirs(is_causal: bool) -> None:
    module = Heads(lambda q, k, v: sdpa(q, k, v, is_causal=is_causal))
    check_step(module, compiled(module, dynamic=False), torch.randn(2, 300, 32))
    assert not are_ours()


def test_a_bias_that_learns_keeps_its_gradient() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = Heads(self.attend)
            self.bias = nn.Parameter(torch.randn(4, 200, 200))

        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            scores = (q @ k.mT * 0.25 + self.bias).masked_fill(~window(q.shape[2]), -math.inf)
            return torch.softmax(scores, -1) @ v

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.heads(x)
            return found

    module = Biased()
    run = torch.compile(module, backend="rewright", dynamic=False)
    x = torch.randn(2, 200, 32)
    found = step(module, run, x)
    wanted = step(module, module, x)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not are_ours()


class Twice(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.heads = Heads(ATTENDS[name][0], 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.heads(x) + self.heads(x * 0.5)
        return found


@pytest.mark.parametrize("name", ["spelled", "capped"])
def test_two_whose_results_have_one_gradient(name: str) -> None:
    module = Twice(name)
    check_step(module, compiled(module, dynamic=False), torch.randn(2, 200, 32))
    forward, backward = halves()
    assert attention_in(forward) == [FORWARD] * 2
    assert attention_in(backward) == [BACKWARD] * 2


def test_pairs_are_for_who_may_have_kernels() -> None:
    torch._dynamo.reset()
    module = Heads(ATTENDS["bools"][0])
    options: dict[str, Any] = {"passes": "canonicalize,fuse,memory"}
    run = torch.compile(module, backend="rewright", dynamic=False, options=options)
    check_step(module, run, torch.randn(2, 300, 32))
    assert not are_ours()


# --- memory -------------------------------------------------------------------------------------


class Deep(nn.Module):
    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.ModuleList(Heads(ATTENDS["bools"][0]) for _ in range(layers))
        self.mixed = nn.ModuleList(nn.Linear(64, 32) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for heads, mixed in zip(self.heads, self.mixed, strict=True):
            x = x + mixed(heads(x))
        return x.square().mean()


def gradients_within(module: nn.Module, x: Tensor, **options: Any) -> tuple[list[Tensor], int]:
    """Gradients of a step, and its peak in bytes."""
    torch._dynamo.reset()
    run = torch.compile(module, backend="rewright", options=options, fullgraph=True, dynamic=False)

    def once() -> None:
        module.zero_grad(set_to_none=True)
        run(x).backward()

    once()
    found = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    return found, measured_peak(once)


def test_a_budget_is_kept_and_attention_run_again_gives_the_same_bits() -> None:
    module, x = Deep(), torch.randn(1, 1024, 32)
    free, peak = gradients_within(module, x)
    tight, least = gradients_within(module, x, memory_budget="min")
    assert len(attention_in(halves()[1])) > 3
    assert least < 0.7 * peak
    assert all(map(torch.equal, free, tight))


def test_memory_is_linear_in_the_length() -> None:
    peaks = [gradients_within(Deep(), torch.randn(1, t, 32))[1] for t in (1024, 4096)]
    assert peaks[1] < 4.5 * peaks[0]
    assert peaks[1] < 4 * 4096 * 4096


# --- the operator -------------------------------------------------------------------------------


def test_bodies_say_what_kernels_compute() -> None:
    """Texts of both parse, the interpreter runs them, and the work that they take is what masks
    leave."""
    module = Heads(ATTENDS["grouped"][0], 2)
    run = compiled(module, dynamic=False)
    step(module, run, torch.randn(2, 300, 32))
    dense = 2 * 4 * 300 * 300 * 16 * 2
    for program, products in zip(rewright.programs()[-2:], (2, 5), strict=True):
        graph = program.source
        assert show(parse(show(graph))) == show(graph)
        (node,) = (n for n in graph.nodes if "attention" in n.op.name)
        share = hint(flops(node)) / (products * dense)
        assert 0.3 < share < 1
        assert hint(bytes_read(node)) < 4 * 4 * 300 * 300
        errors = program.errors()  # of random inputs, sums of the forward among them
        assert errors.holds


def test_a_gradient_that_is_one_number_everywhere() -> None:
    """As of a sum: it is expanded, and has strides of zero."""
    module = Heads(ATTENDS["bools"][0])
    x = torch.randn(2, 300, 32)
    run = compiled(module, dynamic=False)
    run(x).sum().backward()
    found = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    module(x).sum().backward()
    for one, p in zip(found, module.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad, rtol=1e-4, atol=1e-4)
