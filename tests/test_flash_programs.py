"""Programs with attention in kernels of ours: when they are chosen, at which sizes they are right,
and what takes memory beside them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rewright
from attention_kernels import Shape, distance, numbers
from rewright.ir import Graph, TensorType, hint, product
from rewright.ir.loops import AttentionNest
from rewright.passes import peak_bytes
from through_backend import compiled, the_program

Attend = Callable[..., Tensor]
OURS: Final = "rw.attention"
ATENS: Final = "aten._scaled_dot_product_flash_attention_for_cpu.default"
sdpa = F.scaled_dot_product_attention


def window(t: int) -> Tensor:
    i = torch.arange(t)
    return (i <= i[:, None]) & (i[:, None] - i < 64)


def floats(q: Tensor) -> Tensor:
    """The window as it is added to scores."""
    t = q.shape[2]
    bias = torch.zeros(t, t, dtype=q.dtype)
    return bias.masked_fill(~window(t), torch.finfo(q.dtype).min)[None, None]


def repeated(x: Tensor, times: int) -> Tensor:
    """`repeat_kv` of transformers."""
    b, h, t, d = x.shape
    return x[:, :, None].expand(b, h, times, t, d).reshape(b, h * times, t, d)


def spelled(q: Tensor, k: Tensor, v: Tensor, cap: float = 0.0) -> Tensor:
    k, v = (repeated(x, q.shape[1] // x.shape[1]) for x in (k, v))
    scores = torch.matmul(q, k.transpose(2, 3)) * q.shape[-1] ** -0.5
    scores = torch.tanh(scores / cap) * cap if cap else scores
    weights = torch.softmax(scores + floats(q), -1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(weights, v)


def in_documents(q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    return sdpa(q, k, v, attn_mask=ids[:, None, :, None] == ids[:, None, None, :])


# How heads attend, and how many heads of keys and values there are for four of queries.
ATTENDS: Final[Mapping[str, tuple[Attend, int]]] = {
    "bools": (lambda q, k, v: sdpa(q, k, v, attn_mask=window(q.shape[2])), 4),
    "floats": (lambda q, k, v: sdpa(q, k, v, attn_mask=floats(q)), 4),
    "grouped": (lambda q, k, v: sdpa(q, k, v, window(q.shape[2]), enable_gqa=True), 2),
    "spelled": (spelled, 4),
    "repeated": (spelled, 2),
    "capped": (lambda q, k, v: spelled(q, k, v, 5.0), 2),
}


class Heads(nn.Module):
    """Attention with its projections, as models have it."""

    def __init__(self, attend: Attend, heads: int = 4, width: int = 16) -> None:
        super().__init__()
        self.attend, self.width = attend, width
        sizes = (4 * width, heads * width, heads * width)
        self.projections = nn.ModuleList(nn.Linear(32, size) for size in sizes)

    def forward(self, x: Tensor, *read: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (p(x).view(b, t, -1, self.width).transpose(1, 2) for p in self.projections)
        return self.attend(q, k, v, *read).transpose(1, 2).reshape(b, t, -1)


@torch.no_grad()
def check_module(module: nn.Module, run: Callable[..., Tensor], *inputs: Tensor) -> None:
    """As near to float64 as eager."""
    exact = [x.double() if x.is_floating_point() else x for x in inputs]
    wanted = copy.deepcopy(module).double()(*exact)
    eager = module(*inputs)
    assert distance(run(*inputs), wanted) <= 2 * distance(eager, wanted) + 1e-6


def calls(graph: Graph) -> list[str]:
    return [n.op.name for n in graph.nodes if "attention" in n.op.name]


def largest(graph: Graph) -> int:
    """Elements of the largest value of a program."""
    tensors = [v.type for v in graph.values if isinstance(v.type, TensorType)]
    return max(hint(type.numel) for type in tensors)


def said(program: Any) -> str:
    """What was decided about attention."""
    return "\n".join(str(d) for d in program.plan.log if "attention]" in str(d))


@pytest.mark.parametrize("name", ATTENDS)
def test_masks_of_positions_are_no_tensors(name: str) -> None:
    attend, heads = ATTENDS[name]
    module, t = Heads(attend, heads), 300
    check_module(module, compiled(module, dynamic=False), torch.randn(2, t, 32))
    program = the_program()
    assert calls(program.graph) == [OURS], said(program)
    assert "of its tiles are kept" in said(program)
    assert largest(program.graph) < t * t
    assert not any("clone" in n.op.name or "reshape" in n.op.name for n in program.graph.nodes)


# The least float16 that is added to a score leaves it one that may count.
IN_HALVES: Final = (
    *((name, torch.bfloat16) for name in ATTENDS),
    *((name, torch.float16) for name in ("bools", "grouped", "capped")),
)


@pytest.mark.parametrize(("name", "dtype"), IN_HALVES, ids=str)
def test_half_types_have_kernels_too(name: str, dtype: torch.dtype) -> None:
    attend, heads = ATTENDS[name]
    module = Heads(attend, heads).to(dtype)
    check_module(module, compiled(module, dynamic=False), torch.randn(2, 300, 32, dtype=dtype))
    assert calls(the_program().graph) == [OURS], said(the_program())


@pytest.mark.parametrize("name", ATTENDS)
def test_lengths_may_vary(name: str) -> None:
    attend, heads = ATTENDS[name]
    module = Heads(attend, heads)
    run = compiled(module, dynamic=True)
    for t in (300, 97, 64, 411):
        check_module(module, run, torch.randn(2, t, 32))
    assert calls(the_program().graph) == [OURS], said(the_program())
    assert largest(the_program().graph) < 300 * 300


@pytest.mark.parametrize("is_causal", [False, True])
def test_what_atens_kernel_computes_as_well_is_its(is_causal: bool) -> None:
    module = Heads(lambda q, k, v: sdpa(q, k, v, is_causal=is_causal))
    check_module(module, compiled(module, dynamic=False), torch.randn(2, 300, 32))
    assert calls(the_program().graph) == [ATENS]
    assert "ATen's kernel computes as much" in said(the_program())


def test_wide_heads_are_atens() -> None:
    module = Heads(ATTENDS["bools"][0], width=264)
    check_module(module, compiled(module, dynamic=False), torch.randn(1, 200, 32))
    assert calls(the_program().graph) == [ATENS]
    assert "its heads are wider than 256" in said(the_program())


def test_what_memory_masks_is_looked_for_when_a_program_runs() -> None:
    module = Heads(in_documents)
    x, ids = torch.randn(2, 384, 32), (torch.arange(384) >= 192).long().expand(2, -1).clone()
    run = compiled(module, dynamic=False)
    check_module(module, run, x, ids)
    assert calls(the_program().graph) == [OURS]
    assert "which looks for masked tiles" in said(the_program())
    x[:, 192:] = math.nan
    with torch.no_grad():
        assert run(x, ids)[:, :192].isfinite().all()


def test_a_window_takes_no_memory_of_its_own() -> None:
    t = 4096
    optimized = rewright.optimize(Heads(ATTENDS["bools"][0]), (torch.randn(1, t, 32),))
    assert calls(optimized.graph) == [OURS]
    # Queries, keys, values, and the result.
    assert peak_bytes(optimized.graph) <= 4 * 4 * t * 64 < t * t


# --- results ------------------------------------------------------------------------------------

# What becomes of a result [B, 4, T, E]; a part of it, more than it, or all of it.
COPIES: Final[Mapping[str, Callable[[Tensor], Any]]] = {
    "rows first": lambda x: x.permute(2, 0, 1, 3).contiguous(),
    "features first": lambda x: x.permute(3, 2, 0, 1).contiguous(),
    "first rows": lambda x: x.permute(2, 0, 1, 3)[:5].contiguous(),
    "first features": lambda x: x.permute(3, 0, 1, 2)[:5].contiguous(),
    "last rows": lambda x: x.permute(2, 0, 1, 3)[-5:].contiguous(),
    "one row": lambda x: x.permute(2, 0, 1, 3)[0].contiguous(),
    "repeated": lambda x: x.expand(3, -1, -1, -1).contiguous(),
    "halves": lambda x: [half.contiguous() for half in x.chunk(2, -1)],
}


class Copied(nn.Module):
    def __init__(self, then: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.then = then

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return self.then(sdpa(q, k, v, attn_mask=window(q.shape[2])))


def writes_what_there_is(nest: AttentionNest) -> bool:
    (made,) = nest.outputs
    axes = (*nest.batch, nest.row, nest.width)
    return hint(made.type.numel) == hint(product(axis.size for axis in axes))


@pytest.mark.parametrize("name", COPIES)
def test_what_a_result_is_copied_to(name: str) -> None:
    """Kernels write all of a copy and nothing beside it, or leave the copy to others."""
    given, module = numbers(Shape(1, 4, 300, 300, 16, 16)), Copied(COPIES[name])
    optimized = rewright.optimize(module, given)
    nests = [n for n in optimized.program.plan.kernels.nests if isinstance(n, AttentionNest)]
    assert all(map(writes_what_there_is, nests))
    torch.testing.assert_close(optimized(*given), module(*given))
    assert calls(optimized.graph) == [OURS], said(optimized.program)


def test_operands_may_have_any_names() -> None:
    """Those of the kernels' own vocabulary too."""

    class Named(nn.Module):
        def forward(self, matrix: Tensor, block: Tensor, known: Tensor, along: Tensor) -> Tensor:
            return sdpa(matrix, block, known, attn_mask=along[:, None, None])

    given = (*numbers(Shape(2, 1, 200, 300, 16, 16)), torch.rand(2, 300) < 0.5)
    optimized = rewright.optimize(Named(), given)
    assert calls(optimized.graph) == [OURS]
    torch.testing.assert_close(optimized(*given), Named()(*given))


def test_a_bias_made_of_diamonds_is_looked_at_once() -> None:
    """Each step reads the one before twice: walking every path would not end."""

    class Diamonds(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            i = torch.arange(q.shape[2])
            bias = (i[:, None] - i[None]).float()
            for _ in range(40):
                bias = bias * 0.5 + bias * 0.25
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    inputs = tuple(torch.randn(1, 2, 128, 16) for _ in range(3))
    model = Diamonds()
    torch.testing.assert_close(rewright.optimize(model, inputs)(*inputs), model(*inputs))


@pytest.mark.cpu
def test_a_bias_of_rank_three() -> None:
    """PyTorch exports it in parts, with zeros in rows that see no key."""
    q, k, v = numbers(Shape(2, 4, 130, 130, 16, 16))
    bias = torch.randn(4, 130, 130)
    bias[:, 50:60] = -math.inf
    bias[:, :, 64:] = -math.inf

    class Biased(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
            return sdpa(q, k, v, attn_mask=bias)

    optimized = rewright.optimize(Biased(), (q, k, v, bias))
    assert calls(optimized.graph) in ([OURS], [ATENS])  # whichever is quicker here
    found, wanted = optimized(q, k, v, bias), sdpa(q, k, v, attn_mask=bias[None])
    assert (found[:, :, 50:60] == 0).all()
    torch.testing.assert_close(found, wanted)
