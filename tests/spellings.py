"""What people write that rules recognize: for each rule a function as it stands in somebody's
code, of one tensor, traced to ATen the way the backend does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rewright.ir import Graph
from rewright.ir.decompositions import Table, decomposition_table
from rewright.ir.fx_import import from_fx

Function = Callable[..., Tensor | tuple[Tensor, ...]]

aten = torch.ops.aten
_DEFAULT: Final[Table] = {}


def _norm(x: Tensor) -> tuple[Tensor, Tensor]:
    mean = x.mean(-1, keepdim=True)
    return x - mean, ((x - mean) * (x - mean)).mean(-1, keepdim=True)


def layer_norm(x: Tensor) -> Tensor:
    centred, variance = _norm(x)
    return centred * torch.rsqrt(variance + 1e-5)


def layer_norm_with_scale(x: Tensor) -> Tensor:
    return torch.native_layer_norm(x, [6], None, None, 1e-5)[0] * x[0, 0]


def rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def softmax(x: Tensor) -> Tensor:
    e = torch.exp(x - x.amax(-1, keepdim=True))
    return e / e.sum(-1, keepdim=True)


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


def channel_scale(x: Tensor) -> Tensor:
    weight = torch.arange(27.0).reshape(3, 1, 3, 3)
    scale = torch.arange(3.0).reshape(3, 1, 1)
    return F.conv2d(x[:, None], weight) * scale


def channel_scale_and_bias(x: Tensor) -> Tensor:
    weight = torch.arange(27.0).reshape(3, 1, 3, 3)
    scale = torch.arange(3.0)
    return F.conv2d(x[:, None], weight, scale + 1) * scale.reshape(3, 1, 1)


def channel_shift(x: Tensor) -> Tensor:
    weight = torch.arange(27.0).reshape(3, 1, 3, 3)
    return F.conv2d(x[:, None], weight) + torch.arange(3.0).reshape(3, 1, 1)


def projections(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = x[0]
    return rows @ torch.arange(24.0).reshape(6, 4), rows @ torch.arange(12.0).reshape(6, 2)


SPELLINGS: Final[Mapping[str, Function]] = {
    # views
    "permute-of-permute": lambda x: x.permute(1, 2, 0).permute(1, 0, 2).sin(),
    "permute-to-itself": lambda x: x.permute(0, 1, 2).sin(),
    "transpose-is-a-permute": lambda x: x.transpose(1, 2).sin(),
    "permute-of-ones-is-a-view": lambda x: x[:, None].permute(0, 2, 1, 3).sin(),
    "t-is-a-permute": lambda x: aten.t(x[0]).sin(),
    "view-of-view": lambda x: x.view(4, 30).view(2, 2, 30).sin(),
    "view-to-itself": lambda x: x.view(4, 5, 6).sin(),
    "reshape-is-a-view": lambda x: aten._unsafe_view(x, [20, 6]).sin(),
    "expand-to-itself": lambda x: x.expand(4, 5, 6).sin(),
    "expand-of-expand": lambda x: x[:, :1].expand(4, 3, 6).expand(2, 4, 3, 6).sin(),
    "squeeze-of-unsqueeze": lambda x: x.unsqueeze(1).squeeze(1).sin(),
    "unsqueeze-of-squeeze": lambda x: aten.unsqueeze(aten.squeeze.dim(x[:1], 0), 0).sin(),
    "alias-is-nothing": lambda x: aten.alias(x).sin(),
    "slice-of-everything": lambda x: aten.slice(x, 1, 0, 5).sin(),
    "slice-of-slice": lambda x: x[1:][:2].sin(),
    "select-of-slice": lambda x: x[1:][0].sin(),
    "select-of-unsqueeze": lambda x: x[None][0].sin(),
    "select-of-expand": lambda x: x[:1].expand(3, 5, 6)[1].sin(),
    "view-of-unsqueeze": lambda x: x.unsqueeze(1).view(4, 30).sin(),
    "view-of-squeeze": lambda x: aten.squeeze.dim(x[:1], 0).view(30).sin(),
    "unsqueeze-of-view": lambda x: x.view(4, 30).unsqueeze(1).sin(),
    "squeeze-of-view": lambda x: aten.squeeze.dim(x.view(4, 1, 30), 1).sin(),
    "squeeze-of-nothing": lambda x: aten.squeeze.dim(x, 1).sin(),
    # casts
    "conversion-is-a-cast": lambda x: torch.ops.prims.convert_element_type(x, torch.float16).sin(),
    "cast-to-itself": lambda x: aten._to_copy(x, dtype=torch.float32).sin(),
    "cast-through-wider": lambda x: x.half().float().bfloat16().sin(),
    "integer-cast-through-wider": lambda i: i.int().long().float().sin(),
    "cast-and-back": lambda x: x.double().float().sin(),
    "cast-between-views": lambda x: x.view(-1).double().view(x.shape).sin(),
    "clone-is-nothing": lambda x: x.clone().sin(),
    "copy-over-all": lambda x: aten.copy(x, x.sin()).cos(),
    "cast-of-filled": lambda x: x * torch.full((6,), 2.0).half(),
    "mask-of-a-number": lambda x: torch.where((x > 0).int() != 0, x, x.sin()),
    # creations
    "zeros-like": lambda x: torch.zeros_like(x.sin()) - x,
    "ones-like": lambda x: x.sin().new_ones([6]) - x,
    "full-like": lambda x: torch.full_like(x.sin(), 0.5) - x,
    # joins
    "cat-of-one": lambda x: torch.cat([x], 1).sin(),
    "cat-of-cat-in-front": lambda x: torch.cat([torch.cat([x, x.cos()]), x.sin()]),
    "cat-of-cat-behind": lambda x: torch.cat([x.sin(), torch.cat([x, x.cos()])]),
    "cat-of-neighbours": lambda x: torch.cat([x[:, :2], x[:, 2:]], 1).sin(),
    "flip-of-flip": lambda x: x.flip(1).flip(1).sin(),
    # algebra
    "mul-by-one": lambda x: (x * 1).sin(),
    "div-by-one": lambda x: (x / 1.0).sin(),
    "sub-zero": lambda x: (x - 0).sin(),
    "add-zero-to-integers": lambda i: (i + 0).abs(),
    "power-of-one": lambda x: (x**1).sin(),
    "square-is-a-product": lambda x: x.sin() ** 2,
    "inverse-power-is-a-reciprocal": lambda x: x**-1,
    "power-of-zero": lambda x: x.sin() ** 0 + x,
    "neg-of-neg": lambda x: torch.neg(-x).sin(),
    "mul-by-minus-one": lambda x: x.sin() * -1,
    "add-of-neg": lambda x: x.sin() + -x,
    "sub-of-neg": lambda x: x.sin() - (-x),
    "neg-times-neg": lambda x: (-x) * (-x.sin()),
    "scaled-neg": lambda x: (-x) * 3.0,
    "neg-of-scaled": lambda x: -(x * 3.0),
    "even-of-neg": lambda x: torch.cos(-x),
    "div-by-a-power-of-two": lambda x: x.sin() / 8.0,
    "twice-is-once": lambda x: x.relu().relu(),
    "relu-of-abs": lambda x: x.abs().relu(),
    "not-of-not": lambda x: torch.where(~~(x > 0), x, x.sin()),
    "bits-not-of-not": lambda i: ~~i + 1,
    "of-two-equals": lambda x: torch.maximum(x, x).sin(),
    "not-of-equal": lambda x: torch.logical_not(x == x.sin()),
    "where-of-equals": lambda x: torch.where(x > 0, x, x).sin(),
    "where-not": lambda x: torch.where(torch.logical_not(x > 0), x.sin(), x),
    "where-of-where": lambda x: (lambda m: torch.where(m, torch.where(m, x, x.sin()), x.cos()))(
        x > 0
    ),
    "where-of-other-where": lambda x: (
        lambda m: torch.where(m, x, torch.where(m, x.sin(), x.cos()))
    )(x > 0),
    "fill-of-fill": lambda x: (lambda m: x.masked_fill(m, 1.0).masked_fill(m, 2.0))(x > 0),
    "clamp-at-zero-is-relu": lambda x: x.clamp_min(0),
    "rsub-is-sub": lambda x: aten.rsub.Tensor(x, x.sin()),
    "clamp-without-upper": lambda x: aten.clamp(x, -1.0),
    "clamp-without-lower": lambda x: aten.clamp(x, None, 1.0),
    # reductions
    "sum-without-its-dimension": lambda x: aten.squeeze.dim(x.sum(1, keepdim=True), 1),
    "mean-without-its-dimension": lambda x: aten.squeeze.dim(x.mean(1, keepdim=True), 1),
    "sum-with-its-dimension": lambda x: x.sum(1).unsqueeze(1),
    "mean-with-its-dimension": lambda x: x.mean(1).unsqueeze(1),
    "extreme-of-extreme": lambda x: x.amax(1, keepdim=True).amax(2, keepdim=True),
    "sum-of-sum": lambda x: x.sum(1, keepdim=True).sum(2, keepdim=True),
    "sum-of-neg": lambda x: (-x).sum(1),
    "sum-of-scaled": lambda x: (x * 3.0).sum(1),
    "sum-of-expanded": lambda x: x[:, :1].expand(4, 3, 6).sum(1, keepdim=True),
    "mean-is-a-sum-divided": lambda x: x.sum(-1) / x.shape[-1],
    "variance-is-spelled-out": lambda x: ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1),
    # normalization
    "silu": lambda x: x * torch.sigmoid(x),
    "silu-by-division": lambda x: x / (1 + torch.exp(-x)),
    "sigmoid-is-spelled-out": lambda x: 1 / (1 + torch.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu-tanh": gelu_tanh,
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "hardswish": lambda x: x * torch.clamp(x + 3, 0, 6) / 6,
    "relu-by-choice": lambda x: torch.where(x > 0, x, 0.0),
    "leaky-relu-by-choice": lambda x: torch.where(x > 0, x, x * 0.01),
    "softmax": softmax,
    "softmax-of-shifted": lambda x: torch.softmax(x - x.amax(-1, keepdim=True), -1),
    "softmax-of-shifted-by-max": lambda x: torch.softmax(x - x.max(-1, keepdim=True).values, -1),
    "log-softmax-of-softmax": lambda x: torch.log(torch.softmax(x, -1)),
    "log-softmax-by-logsumexp": lambda x: x - torch.logsumexp(x, -1, keepdim=True),
    "cross-entropy": lambda x: torch.nn.functional.cross_entropy(x[0], torch.arange(5)),
    "exp-of-log-softmax": lambda x: torch.exp(torch.log_softmax(x, -1)),
    "logsumexp-is-spelled-out": lambda x: torch.log(torch.exp(x).sum(-1)),
    "inverse-root": lambda x: torch.reciprocal(torch.sqrt(x.abs() + 1)),
    "division-by-a-root": lambda x: x / torch.sqrt(x.abs() + 1),
    "root-of-power": lambda x: (x.abs() + 1) ** 0.5,
    "layer-norm": layer_norm,
    "layer-norm-with-scale": layer_norm_with_scale,
    "layer-norm-with-shift": lambda x: (
        aten.native_layer_norm(x, [6], x[0, 0], None, 1e-5)[0] + x[0, 1]
    ),
    "rms-norm": rms_norm,
    "rms-norm-with-scale": lambda x: rms_norm(x) * x[0, 0],
    # products of matrices
    "bias-into-addmm": lambda x: x[0] @ x[1].T + x[0, 0, :5],
    "matrix-into-addmm": lambda x: x[0] @ x[1].T + (x[2] @ x[3].T).sin(),
    "scale-into-addmm": lambda x: torch.addmm(x[0, 0, :5], x[0] * 3.0, x[1].T),
    "scale-before-mm": lambda x: (x[0, :2] * 3.0) @ x[1, :2].T,
    "scale-after-mm": lambda x: (x[0, :, :2] @ x[1, :, :2].T) * 3.0,
    "transposes-through-mm": lambda x: (x[0].T @ x[1, :, :5].T).T.contiguous(),
    "chain-from-the-right": lambda x: (x[0, :, :1] @ x[1, :1]) @ x[2].T[:, :1],
    "chain-from-the-left": lambda x: x[0, :1] @ (x[1].T @ x[2]),
    "batch-with-one-matrix": lambda x: torch.bmm(x, x[0].T.expand(4, 6, 5)),
    "batch-of-one": lambda x: torch.bmm(x[:1], x[1:2].mT),
    "shared-input-mm": projections,
    "common-left-factor": lambda x: (
        x[0] @ torch.arange(24.0).reshape(6, 4) + x[0] @ torch.arange(24.0, 48.0).reshape(6, 4)
    ),
    "common-left-factor-of-many-rows": lambda x: (
        x[0, :, :3] @ x[1, :, :3].T + x[0, :, :3] @ x[2, :, :3].T
    ),
    "column-scale-into-weight": lambda x: (
        (x[0] @ torch.arange(24.0).reshape(6, 4)) * torch.arange(4.0)
    ),
    "channel-scale-into-convolution": channel_scale,
    "channel-scale-and-bias-into-convolution": channel_scale_and_bias,
    "channel-shift-into-convolution": channel_shift,
    # arithmetic of real numbers
    "add-zero": lambda x: (x + 0.0).sin(),
    "scaled-twice": lambda x: x * 3.0 * 5.0,
    "shifted-twice": lambda x: x + 3.0 + 5.0,
    "division-by-a-number": lambda x: x / 3.0,
    "neg-of-difference": lambda x: -(x - x.sin()),
    "difference-and-back": lambda x: (lambda s: x - s + s)(x.sin()).cos(),
    "times-reciprocal": lambda x: x * torch.reciprocal(x.abs() + 1),
    "exp-of-log": lambda x: torch.log(torch.exp(x)).sin(),
    "product-of-exps": lambda x: torch.exp(x) * torch.exp(x.sin()),
    "root-of-square": lambda x: torch.sqrt(x * x),
    "common-factor": lambda x: x.sin() * x + x.cos() * x,
}


def inputs_of(name: str) -> tuple[Tensor, ...]:
    """One tensor [4, 5, 6]; of integers for those whose argument is called `i`."""
    generator = torch.Generator().manual_seed(0)
    names = SPELLINGS[name].__code__.co_varnames
    if names[:1] == ("i",):
        return (torch.randint(-9, 9, (4, 5, 6), generator=generator),)
    return (torch.randn(4, 5, 6, generator=generator),)


def traced(function: Function, inputs: Sequence[Tensor], table: Table | None = _DEFAULT) -> Graph:
    """The graph of a function, its composite operators taken apart by `table`, as the backend does
    it when none is given."""

    def listed(*args: Tensor) -> list[Tensor]:
        found = function(*args)
        return list(found) if isinstance(found, tuple) else [found]

    if table is _DEFAULT:
        table = decomposition_table()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(x) for x in inputs]
        module = make_fx(listed, decomposition_table=table)(*fakes)  # type: ignore[arg-type]
    return from_fx(module, name="spelling")
