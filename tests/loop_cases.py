"""Functions that one kernel computes, or that none does, with inputs to try them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

aten = torch.ops.aten
Case = tuple[Callable[..., Any], tuple[Tensor, ...]]


def floats(*shape: int) -> Tensor:
    """Numbers away from zero, so that no comparison hangs on the last bit."""
    count = int(torch.tensor(shape).prod()) if shape else 1
    return (torch.sin(torch.arange(count, dtype=torch.float32) * 1.7) + 1.2).reshape(shape)


def integers(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return (torch.arange(int(torch.tensor(shape).prod())) * 7 % 11 - 4).to(dtype).reshape(shape)


def masks(*shape: int) -> Tensor:
    return integers(*shape) > 0


def vector_norm(order: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.linalg.vector_norm(x - 1.2, order, 1) + 1


VIEWS: dict[str, Case] = {
    "permute": (lambda x: (x * 2).permute(2, 0, 1) + 1, (floats(3, 4, 5),)),
    "transpose": (lambda x: (x * 2).transpose(0, -1) + 1, (floats(3, 4, 5),)),
    "reshape splits": (lambda x: (x * 2).view(6, 2, 2) + 1, (floats(3, 8),)),
    "reshape merges": (lambda x: (x * 2).view(24) + 1, (floats(3, 8),)),
    "reshape splits and merges": (lambda x: (x * 2).view(2, 12) + 1, (floats(4, 6),)),
    "reshape of a transpose": (lambda x: (x * 2).t().reshape(12) + 1, (floats(3, 4),)),
    "heads": (
        lambda x: (x * 2).view(2, 3, 4, 5).transpose(1, 2).reshape(8, 15) + 1,
        (floats(2, 3, 20),),
    ),
    "expand": (lambda x: (x * 2).expand(4, 3, 5) + 1, (floats(3, 1),)),
    "unsqueeze and squeeze": (
        lambda x: (x * 2).unsqueeze(1).squeeze(2).unsqueeze(-1) + 1,
        (floats(3, 1, 4),),
    ),
    "squeeze of everything": (lambda x: (x * 2).squeeze() + 1, (floats(1, 3, 1),)),
    "squeeze of a number": (lambda x: (x * 2).squeeze(0) + 1, (floats(),)),
    "slice with a step": (lambda x: (x * 2)[1:7:2] + 1, (floats(8, 5),)),
    "slice from the end": (lambda x: (x * 2)[:, -3:] + 1, (floats(8, 5),)),
    "slice before the start": (lambda x: (x * 2)[-20:] + 1, (floats(8, 5),)),
    "slice beyond the end": (lambda x: (x * 2)[:, 2:99] + 1, (floats(8, 5),)),
    "slice of a slice": (lambda x: (x * 2)[1:][2:-1] + 1, (floats(8, 5),)),
    "diagonal": (lambda x: (x * 2).diagonal() + 1, (floats(4, 5),)),
    "diagonal of a stack": (lambda x: (x * 2).diagonal(-1, 0, 2) + 1, (floats(4, 3, 5),)),
    "windows": (lambda x: (x * 2).unfold(1, 3, 2) + 1, (floats(4, 8),)),
    "slice, then reshape": (lambda x: (x * 2)[:, 2:6].reshape(16, 2) + 1, (floats(8, 8),)),
    "slice inside a row": (lambda x: (x * 2).view(8)[5:7] + 1, (floats(2, 4),)),
    "select": (lambda x: (x * 2)[1] + (x * 2)[-2], (floats(8, 5),)),
    "split": (lambda x: torch.split(x * 2, 3, 1)[1] + 1, (floats(8, 6),)),
    "split in unequal parts": (
        lambda x: torch.split(x * 2, [1, 3, 2], 1)[1] * torch.split(x, [2, 3, 1], 1)[1],
        (floats(8, 6),),
    ),
    "unbind": (lambda x: (x * 2).unbind(1)[4] + 1, (floats(8, 5),)),
    "strided input": (lambda x, y: x * y + 1, (floats(4, 3).t(), floats(3, 8)[:, ::2])),
    "expanded input": (lambda x: x * 2 + 1, (floats(3, 1).expand(3, 4),)),
    "outputs in two orders": (lambda x: (x * 2, (x * 2).t() + 1), (floats(4, 3),)),
    "rows in two orders": (
        lambda x: (x.permute(1, 0, 2).sum(2), x.sum(2) * 2),
        (floats(4, 3, 5),),
    ),
}

REDUCTIONS: dict[str, Case] = {
    "last": (lambda x: (x * 2).sum(2) + 1, (floats(8, 5, 3),)),
    "last, kept": (lambda x: (x * 2).sum(2, keepdim=True) + x, (floats(8, 5, 3),)),
    "first": (lambda x: (x * 2).sum(0) + 1, (floats(8, 5, 3),)),
    "middle": (lambda x: (x * 2).sum(1) + 1, (floats(8, 5, 3),)),
    "outer two": (lambda x: (x * 2).sum((0, 2)) + 1, (floats(8, 5, 3),)),
    "negative": (lambda x: (x * 2).mean((-1, -3), keepdim=True) + 1, (floats(8, 5, 3),)),
    "all": (lambda x: (x * 2).sum() + 1, (floats(8, 5, 3),)),
    "long rows": (lambda x: (x * 2).sum(1) + 1, (floats(3, 40),)),
    "mean": (lambda x: x - x.mean(-1, keepdim=True), (floats(8, 5),)),
    "extremes": (lambda x: x.amax(1) - x.amin(1), (floats(8, 5, 3),)),
    "product": (lambda x: x.prod(1) + 1, (floats(4, 5, 3),)),
    "two over one": (lambda x: (x.sum(1), (x * x).sum(1)), (floats(4, 5),)),
    "three deep": (
        lambda x: (x - x.mean(1, True)).square().mean(1, True).rsqrt() * x,
        (floats(4, 5),),
    ),
    "variance": (lambda x: x.var(1) + 1, (floats(8, 5),)),
    "standard deviation": (lambda x: x.std(0, correction=0) + 1, (floats(8, 5),)),
    "moments": (lambda x: torch.var_mean(x, 1, correction=2), (floats(8, 5),)),
    "moments of all": (lambda x: torch.var_mean(x), (floats(8, 5),)),
    "half a correction": (lambda x: x.var(1, correction=0.5), (floats(8, 5),)),
    "of another dtype": (lambda x: x.sum(1, dtype=torch.float64), (floats(8, 5),)),
    "of a transpose": (lambda x: (x * 2).t().sum(0) + 1, (floats(3, 4),)),
    "over parts of a dimension": (
        lambda x: x.view(4, 2, 3).sum((1, 2)) + (x * 2).sum(1),
        (floats(4, 6),),
    ),
    "over permuted parts": (
        lambda x: x.view(4, 2, 3).permute(0, 2, 1).sum((1, 2)) + (x * 2).sum(1),
        (floats(4, 6),),
    ),
    "columns of one, rows of another": (lambda x: (x.sum(1), x.sum(0)), (floats(5, 5),)),
    "rows as another shape": (lambda x: x.sum(1).view(2, 2) + 1, (floats(4, 6),)),
    "one place of each row": (lambda x: (x * 2).softmax(1)[:, 2] + 1, (floats(4, 6),)),
    "a mean spread out again": (
        lambda x: (x.mean(1, True).expand(4, 4) * 2, x.t().mean(1)),
        (floats(4, 4),),
    ),
    "as many rows as columns": (lambda x, y: (x.sum(1), y * 2), (floats(4, 4), floats(4))),
    "of what is broadcast": (lambda x: (x + 1).expand(4, 5).sum(1) + 1, (floats(4, 1),)),
    "of one element": (lambda x, y: x.sum(1, True) + y.mean(1, True), (floats(4, 1), floats(4, 5))),
    "of a joined value": (
        lambda x, y: torch.cat([x, y * 2], 1).sum(1),
        (floats(4, 3), floats(4, 2)),
    ),
    "of a padded value": (lambda x: pad(x, (1, 2), value=3.0).amax(1), (floats(4, 5),)),
}

NORMS: dict[str, Case] = {
    "logsumexp": (lambda x: (x * 2).logsumexp(1) + x.logsumexp(1, True)[:, 0], (floats(8, 5),)),
    "logsumexp of infinities": (
        lambda x: (x / 0).logsumexp(1) + (-x / 0).logsumexp(1),
        (floats(8, 5),),
    ),
    **{
        f"vector norm of order {order}": (
            vector_norm(order),
            (floats(8, 5),),
        )
        for order in (0, 0.5, 1, 2, 3, float("inf"), -float("inf"))
    },
    "softmax last": (lambda x: (x * 2).softmax(-1) + 1, (floats(8, 5),)),
    "softmax first": (lambda x: (x * 2).softmax(0) + 1, (floats(8, 5),)),
    "softmax middle": (lambda x: (x * 2).softmax(1) + 1, (floats(8, 5, 3),)),
    "softmax of a number": (lambda x: (x * 2).softmax(0), (floats(),)),
    "softmax, transposed": (lambda x: x.softmax(1).t() + 1, (floats(4, 6),)),
    "log softmax": (lambda x: (x * 2).log_softmax(1) + 1, (floats(8, 5, 3),)),
    "softmax backward": (
        lambda g, y: aten._softmax_backward_data(g * 2, y, 1, torch.float32) + 1,
        (floats(8, 5, 3), floats(8, 5, 3)),
    ),
    "log softmax backward": (
        lambda g, y: aten._log_softmax_backward_data(g * 2, y, -1, torch.float32) + 1,
        (floats(8, 5), floats(8, 5)),
    ),
    "layer norm": (
        lambda x, w, b: aten.native_layer_norm(x * 2, [5, 3], w, b, 1e-5),
        (floats(8, 5, 3), floats(5, 3), floats(5, 3)),
    ),
    "layer norm without weights": (
        lambda x: aten.native_layer_norm(x * 2, [3], None, None, 1e-5),
        (floats(8, 5, 3),),
    ),
    "layer norm without bias": (
        lambda x, w: aten.native_layer_norm(x + w, [3], w, None, 1e-5)[0] * 2,
        (floats(8, 3), floats(3)),
    ),
    "rms norm": (
        lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w,
        (floats(8, 5, 3), floats(3)),
    ),
    "batch norm": (
        lambda x, w, b, m, v: aten._native_batch_norm_legit_no_training(x, w, b, m, v, 0.1, 1e-5)[
            0
        ],
        (floats(2, 3, 4, 4), *(floats(3) for _ in range(4))),
    ),
    "masked softmax": (
        lambda x, m: torch.where(m, x, float("-inf")).softmax(-1),
        (floats(3, 4, 5), masks(4, 5) | (torch.arange(5) == 0)),
    ),
}

INDEXING: dict[str, Case] = {
    "cat of equals": (lambda x, y: torch.cat([x * 2, y + 1], 1) * 3, (floats(8, 6), floats(8, 6))),
    "cat of unequals": (lambda x, y: torch.cat([x * 2, y], -1) * 3, (floats(8, 6), floats(8, 3))),
    "cat of three": (lambda x, y: torch.cat([x, y, x]) + 1, (floats(2, 3), floats(4, 3))),
    "cat with an empty one": (lambda x, y: torch.cat([x, y]) * 3, (floats(8, 6), floats(0))),
    "cat of views": (
        lambda x: torch.cat([x * 2, (x + 1).view(4, 2, 3).transpose(1, 2).reshape(4, 6)], 1),
        (floats(4, 6),),
    ),
    "cat of cats": (
        lambda x, y: torch.cat([torch.cat([x, y], 1), torch.cat([y, x], 1)]) + 1,
        (floats(2, 3), floats(2, 2)),
    ),
    "part of a cat": (
        lambda x, y: torch.cat([x * 2, y + 1], 1)[:, 6:] + torch.cat([x, y], 1)[:, 3:9],
        (floats(8, 6), floats(8, 6)),
    ),
    "cat of dtypes": (lambda x, y: torch.cat([x, y]), (floats(3), integers(4))),
    "rotate half": (
        lambda x, c, s: x * c + torch.cat([-x[..., 4:], x[..., :4]], -1) * s,
        (floats(2, 3, 8), floats(3, 8), floats(3, 8)),
    ),
    "stack": (
        lambda x, y: torch.stack([x * 2, y, x + y], 1) + torch.stack([x, y, y], -2),
        (floats(4, 5), floats(4, 5)),
    ),
    "flip": (lambda x: (x * 2).flip(0, -1) + x.flip(1), (floats(4, 5),)),
    "roll": (lambda x: (x * 2).roll((1, -2), (0, 1)) + x.roll(3, 1), (floats(4, 5),)),
    "roll by nothing": (lambda x: (x * 2).roll((5, 1), (1, 0)) + 1, (floats(4, 5),)),
    "roll of nothing": (lambda x: (x * 2).roll(1, 1) + 1, (floats(4, 0),)),
    "repeat": (lambda x: (x * 2).repeat(3, 1, 2) + 1, (floats(4, 5),)),
    "repeat of a row": (lambda x, y: x.repeat(4, 1) * y, (floats(6), floats(4, 6))),
    "pad": (lambda x: pad(x * 2, (1, 2, 0, 3), value=5.0) + 1, (floats(4, 5),)),
    "crop": (lambda x: pad(x * 2, (-1, 2)) + 1, (floats(4, 5),)),
    "triangles": (lambda x: (x * 2).tril(1) + x.triu(-1), (floats(4, 5),)),
    "triangle of a stack": (lambda x: x.tril(-1) * 2, (floats(3, 4, 4),)),
    "slice scatter": (
        lambda x, y: torch.slice_scatter(x * 2, y + 1, 1, 1, 4) * 2,
        (floats(4, 5), floats(4, 3)),
    ),
    "slice scatter at the end": (
        lambda x, y: torch.slice_scatter(x * 2, y, 0, -2, 99),
        (floats(4, 5), floats(2, 5)),
    ),
    "select scatter": (
        lambda x, y: torch.select_scatter(x * 2, y + 1, 1, -2) * 2,
        (floats(4, 5), floats(4)),
    ),
    "slice backward": (
        lambda y: aten.slice_backward(y * 2, [4, 5], 1, -3, 9, 1) + 1,
        (floats(4, 3),),
    ),
    "select backward": (
        lambda y: aten.select_backward(y * 2, [4, 5], 1, -2) + 1,
        (floats(4),),
    ),
    "counting": (
        lambda x: (
            x
            + torch.arange(5) * 2
            + torch.arange(1, 6)
            + torch.arange(0.5, 5.5, 1.0)
            + torch.arange(10, 0, -2)
        ),
        (floats(4, 5),),
    ),
    "filling": (
        lambda x: (
            x
            + torch.full((5,), 0.5)
            + torch.ones(4, 1)
            + x.new_zeros(5)
            + x.new_full((1,), 3)
            + aten.full([5], 2.7, dtype=torch.int64)
        ),
        (floats(4, 5),),
    ),
}

DTYPES: dict[str, Case] = {
    "integers": (lambda x, y: (x * 3 - y).sum(1) // 2, (integers(4, 5), integers(4, 5))),
    "small integers": (
        lambda x: (x * 100 + 3).sum(1) + (x * 100).amax(1),
        (integers(4, 5, dtype=torch.int8),),
    ),
    "truth of numbers": (
        lambda x, y: (torch.logical_and(x, y), torch.logical_xor(x, y > 0), torch.logical_not(y)),
        (floats(4, 5).round(), integers(4, 5)),
    ),
    "masks": (lambda x, y: ((x & y) | ~x, (x ^ y).sum(1)), (masks(4, 5), masks(5))),
    "any of numbers": (lambda x: (x - 1.2).round().any(1), (floats(8, 5),)),
    "any of bytes": (
        lambda x: (x.any(1), x.all(1)),
        (integers(8, 5).clamp(0).to(torch.uint8),),
    ),
    "any of one byte": (lambda x: x.any(1) + 1, (torch.full((3, 1), 5, dtype=torch.uint8),)),
    "all": (lambda x: ((x > 1).all(), (x > 1).any()), (floats(8, 5),)),
    "extremes of masks": (lambda x: x.amax(1) ^ x.amin(1), (masks(8, 5),)),
    "comparing": (lambda x, y: torch.where(x > y, x, y) * (x != y), (floats(4, 5), floats(5))),
    "converting": (
        lambda x: x.to(torch.int32).to(torch.float64) + (x > 1).to(torch.float32),
        (floats(4, 5),),
    ),
}

SIZES: dict[str, Case] = {
    "a number": (lambda x: x * 2 + 1, (floats(),)),
    "reducing a number": (lambda x: (x * 2).sum() + x.amax(), (floats(),)),
    "ones everywhere": (lambda x: (x * 2).sum(1) + x.mean(0), (floats(1, 1, 4),)),
    "last of one": (lambda x: (x * 2).sum(-1) + x.squeeze(-1), (floats(4, 4, 1),)),
    "nothing": (lambda x: x * 2 + 1, (floats(0, 4),)),
    "no rows": (lambda x: (x * 2).sum(1) + 1, (floats(0, 4),)),
    "no columns": (lambda x: (x * 2).sum(1) + 1, (floats(4, 0),)),
    "neither": (lambda x: (x * 2).sum(1) + 1, (floats(0, 0),)),
    "nothing to softmax": (lambda x: (x * 2).softmax(1) + 1, (floats(0, 4),)),
    "nothing in other strides": (
        lambda x: (x.exp(), x.sum(1, True) + x),
        (floats(1).expand(5, 0),),
    ),
    "an empty part": (lambda x, y: torch.cat([x * 2, y], 1) + 1, (floats(4, 0), floats(4, 3))),
}

CASES = {
    f"{group}: {name}": case
    for group, cases in {
        "view": VIEWS,
        "reduction": REDUCTIONS,
        "norm": NORMS,
        "index": INDEXING,
        "dtype": DTYPES,
        "size": SIZES,
    }.items()
    for name, case in cases.items()
}

# --- sizes known only at run time ---------------------------------------------------------------

# A function, the shapes that it is seen with, and others that its nest must serve.
DYNAMIC: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...], tuple[Any, ...]]] = {
    "pointwise": (lambda x, y: (x + y).relu() * 2, ((7, 12), (12,)), (((3, 5), (5,)),)),
    "softmax": (lambda x: (x * 2).softmax(1) + 1, ((7, 12),), (((3, 5),), ((2, 33),))),
    "norm": (
        lambda x, w: aten.native_layer_norm(x * 2, [12], w, None, 1e-5),
        ((7, 3, 12), (12,)),
        (((3, 5, 12), (12,)),),
    ),
    "variance": (lambda x: torch.var_mean(x, 1, correction=3), ((7, 12),), (((3, 2),), ((2, 5),))),
    "centred": (lambda x: x - x.mean(), ((7, 12),), (((3, 5),),)),
    "merged": (lambda x: (x * 2).reshape(-1, 12).sum(1), ((7, 5, 12),), (((3, 4, 12),),)),
    "merged and kept": (
        lambda x: ((x * 2).reshape(-1, 12).sum(0), x * 2),
        ((7, 5, 12),),
        (((3, 4, 12),),),
    ),
    "end of a row": (lambda x: (x * 2)[:, -2:] + 1, ((7, 5),), (((3, 4),), ((2, 2),))),
    "joined": (lambda x, y: torch.cat([x, y + 1], 1), ((7, 5), (7, 9)), (((3, 4), (3, 2)),)),
    "joined to itself": (lambda x: torch.cat([x, -x], 1) * 2, ((7, 5),), (((3, 4),),)),
    "rotated": (
        lambda x: torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1),
        ((7, 8),),
        (((3, 4),), ((2, 6),)),
    ),
    "triangle": (lambda x: (x * 2).tril(), ((7, 5),), (((3, 4),), ((4, 3),))),
    "counted": (
        lambda x: x + torch.arange(x.shape[1]) + torch.full((x.shape[0], 1), x.shape[1]),
        ((7, 5),),
        (((3, 4),),),
    ),
    "padded": (lambda x: pad(x, (0, 64 - x.shape[1]), value=5.0), ((4, 5),), (((3, 64),),)),
    "last": (lambda x: x[:, -1] + x[:, x.shape[1] // 2], ((4, 5),), (((3, 4),), ((2, 3),))),
    "written": (
        lambda x, y: torch.slice_scatter(x, y, 1, 1, x.shape[1] - 1),
        ((4, 5), (4, 3)),
        (((3, 4), (3, 2)),),
    ),
}

# --- what no kernel computes --------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], str]] = {
    "mixed reshape": (
        lambda x, y: (x * 2).view(4, 3) + (y.t() * 3).reshape(4, 3),
        (floats(3, 4), floats(3, 4)),
        "a reshape mixes dimensions that share no common factor",
    ),
    "reshape of a shifted slice": (
        lambda x: x.expand(2, 8)[:, 1:7].reshape(12)[1:9].view(4, 2) + (x * 2).view(4, 2),
        (floats(8),),
        "a reshape of a shifted slice is not affine",
    ),
    "reductions across each other": (
        lambda x: x.softmax(1).sum(0),
        (floats(8, 8),),
        "%_softmax is a reduction that is read across its rows",
    ),
    "reductions of other sizes": (
        lambda x: (x.sum(1), x.view(2, 10).sum(1).expand(4, 2).t()[:, :2].reshape(4) + 1),
        (floats(4, 5),),
        "%sum_2 reduces 10 elements, its kernel 5",
    ),
    "reductions in other orders": (
        lambda x: (x.sum(1), x.sum(0)),
        (floats(32, 32),),
        "%sum_2 adds up in another order than its kernel",
    ),
    "a joined reduction": (
        lambda x, y: torch.cat([x.softmax(1), y.softmax(1)], 1)[:, 2:7] + 1,
        (floats(4, 5), floats(4, 5)),
        "%_softmax is a reduction that is read behind a condition",
    ),
    "outputs of unequal sizes": (
        lambda x: (x * 2, x[0] + 1),
        (floats(4, 5),),
        "%add has not as many elements as its kernel",
    ),
    "a strided write": (
        lambda x, y: torch.slice_scatter(x, y, 1, 0, 4, 2),
        (floats(4, 5), floats(4, 2)),
        "%slice_scatter writes a strided slice",
    ),
    "a gather": (
        lambda x, i: torch.gather(x, 1, i) + 1,
        (floats(4, 5), integers(4, 5).clamp(0, 4)),
        "aten.gather.default has no loop form",
    ),
}

# --- orders of reductions -----------------------------------------------------------------------

ORDERS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, str]] = {
    "rows": (lambda x: x.sum(1), floats(4, 64), "lanes"),
    "short rows": (lambda x: x.sum(1), floats(4, 8), "columns"),
    "columns": (lambda x: x.sum(0), floats(64, 4), "columns"),
    "everything": (lambda x: x.sum(), floats(2, 3), "lanes"),
    "planes": (lambda x: x.sum((1, 2)), floats(4, 7, 7), "lanes"),
    "rows behind a one": (lambda x: x.sum((1, 2)), floats(4, 64, 1), "lanes"),
    "planes of a batch": (lambda x: x.sum((0, 2, 3)), floats(2, 3, 8, 8), "lanes"),
    "odd planes of a batch": (lambda x: x.sum((0, 2, 3)), floats(2, 3, 7, 7), "columns"),
    "channels last": (
        lambda x: x.sum((0, 2, 3)),
        floats(2, 3, 8, 8).to(memory_format=torch.channels_last),
        "columns",
    ),
    "rows of a transpose": (lambda x: x.sum(0), floats(4, 64).t(), "lanes"),
    "columns of a transpose": (lambda x: x.sum(1), floats(64, 64).t(), "columns"),
    "expanded": (lambda x: x.sum(1), floats(4, 1).expand(4, 64), "columns"),
}
