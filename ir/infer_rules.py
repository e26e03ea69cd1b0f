"""What single operators give: views, creations, reductions, joins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import torch

from rewright.ir.dims import Dim, Size, equal, exact_div, product
from rewright.ir.errors import CheckError, UnsupportedError
from rewright.ir.graph import Arg, Node, Value
from rewright.ir.infer import Rule, elementwise_strides
from rewright.ir.infer_args import (
    dim_at,
    dims_at,
    fresh,
    moving_dim,
    sizes_at,
    strided,
    tensor_at,
)
from rewright.ir.infer_contractions import CONTRACTIONS
from rewright.ir.promotion import dtype_of
from rewright.ir.types import CPU, TensorType, Type, channels_last_strides, contiguous_strides

# --- views --------------------------------------------------------------------------------------


def _same(node: Node) -> tuple[Type, ...]:
    return (tensor_at(node, 0),)


def _permute(node: Node) -> tuple[Type, ...]:
    x = tensor_at(node, 0)
    order = [dim_at(d, x.rank) for d in sizes_at(node, "dims")]
    if sorted(order) != list(range(x.rank)):
        raise CheckError(f"{tuple(order)} is not an order of {x.rank} dimensions")
    return strided(x, [x.shape[d] for d in order], [x.layout[d] for d in order])


def _transpose(node: Node) -> tuple[Type, ...]:
    x = tensor_at(node, 0)
    order = list(range(x.rank))
    a, b = (dim_at(node.args[i], x.rank) for i in (1, 2))
    if x.rank:
        order[a], order[b] = order[b], order[a]
    return strided(x, [x.shape[d] for d in order], [x.layout[d] for d in order])


def _t(node: Node) -> tuple[Type, ...]:
    x = tensor_at(node, 0)
    if x.rank > 2:
        raise CheckError(f"t takes a matrix, not {x.rank} dimensions")
    return strided(x, x.shape[::-1], x.layout[::-1])


def _expand(node: Node) -> tuple[Type, ...]:
    x, wanted = tensor_at(node, 0), sizes_at(node, "size")
    missing = len(wanted) - x.rank
    if missing < 0:
        raise CheckError(f"{x.rank} dimensions do not expand to {len(wanted)}")
    shape: list[Size] = list(wanted)
    strides: list[Size] = [0] * missing
    for d, (size, stride) in enumerate(zip(x.shape, x.layout, strict=True), missing):
        if isinstance(wanted[d], int) and wanted[d] == -1:
            shape[d] = size
        stays = equal(shape[d], size)
        if not stays and size != 1:
            raise CheckError(f"a size {size} does not expand to {shape[d]}")
        strides.append(stride if stays else 0)
    # What is new in front steps over all that it repeats, which is nothing.
    return strided(x, shape, strides)


def _unsqueeze(node: Node) -> tuple[Type, ...]:
    x = tensor_at(node, 0)
    d = dim_at(node.args[1], x.rank + 1)
    step = x.shape[d] * x.layout[d] if d < x.rank else 1
    return strided(x, (*x.shape[:d], 1, *x.shape[d:]), (*x.layout[:d], step, *x.layout[d:]))


def _squeeze(node: Node) -> tuple[Type, ...]:
    x = tensor_at(node, 0)
    listed = dims_at(node, "dim", x.rank) if "dim" in node.op.argument_names else range(x.rank)
    kept = [d for d in range(x.rank) if d not in listed or x.shape[d] != 1]
    return strided(x, [x.shape[d] for d in kept], [x.layout[d] for d in kept])


def _select(node: Node) -> tuple[Type, ...]:
    x = tensor_at(node, 0)
    d = moving_dim(node.args[1], x.rank)
    return strided(x, (*x.shape[:d], *x.shape[d + 1 :]), (*x.layout[:d], *x.layout[d + 1 :]))


def _slice(node: Node) -> tuple[Type, ...]:
    x = tensor_at(node, 0)
    d = moving_dim(node.arg("dim"), x.rank)
    size, step = x.shape[d], node.arg("step")
    if not isinstance(step, int):
        raise UnsupportedError("a slice whose step is known only at run time", who="infer")
    start = _bound(node.arg("start"), size, 0)
    count = _bound(node.arg("end"), size, size) - start
    if isinstance(count, int):
        count = max(count, 0)
    taken = count if step == 1 else (count + step - 1) // step
    return strided(
        x,
        (*x.shape[:d], taken, *x.shape[d + 1 :]),
        (*x.layout[:d], x.layout[d] * step, *x.layout[d + 1 :]),
    )


def _bound(place: Arg, size: Size, default: Size) -> Size:
    """An end of a slice, counted from the front and inside the dimension."""
    if place is None:
        return default
    if isinstance(place, int) and place >= 2**62:
        return size
    if isinstance(place, int) and isinstance(size, int):
        return min(max(place + size if place < 0 else place, 0), size)
    if isinstance(place, int) and place < 0:
        return size + place
    if not isinstance(place, (int, Dim)):
        raise UnsupportedError("a bound of a slice is not a size", who="infer")
    return place


def _view(node: Node, *, copies: bool = False) -> tuple[Type, ...]:
    x = tensor_at(node, 0)
    name = "shape" if node.op.name == "aten.reshape.default" else "size"
    shape = _completed(sizes_at(node, name), x.numel)
    strides = view_strides(x, shape)
    if strides is not None:
        return strided(x, shape, strides)
    if copies:
        return fresh(x, shape)
    raise CheckError("no view of these strides has the wanted shape")


def _completed(shape: tuple[Size, ...], numel: Size) -> tuple[Size, ...]:
    """The shape with its -1 filled in. Raises CheckError when it has other elements."""
    unknown = [d for d, size in enumerate(shape) if isinstance(size, int) and size == -1]
    known = product(size for d, size in enumerate(shape) if d not in unknown)
    if unknown:
        rest = exact_div(numel, known)
        if rest is None or len(unknown) > 1:
            raise CheckError(f"{numel} elements do not fill {known} times anything")
        return tuple(rest if d in unknown else size for d, size in enumerate(shape))
    if not equal(known, numel):
        raise CheckError(f"{numel} elements are not {known}")
    return shape


def view_strides(x: TensorType, shape: tuple[Size, ...]) -> tuple[Size, ...] | None:
    """Strides of `x` seen in another shape of as many elements; None when only a copy has it.

    Dimensions of `x` that are one run in memory are cut anew (torch's `computeStride`).
    """
    if x.strides is None or x.numel == 0:
        return contiguous_strides(shape)
    if shape == x.shape:
        return x.strides
    runs = _runs(x)
    strides: list[Size] = []
    places = list(shape)
    for size, step in runs:
        rest = size
        while places and not (equal(rest, 1) and places[-1] != 1):
            taken = places[-1]
            left = exact_div(rest, taken)
            if left is None:
                return None
            strides.append(step)
            step, rest = step * taken, left
            places.pop()
        if not equal(rest, 1):
            return None
    while places and places[-1] == 1:
        strides.append(step if runs else 1)
        places.pop()
    return None if places else tuple(reversed(strides))


def _runs(x: TensorType) -> list[tuple[Size, Size]]:
    """(elements, step) of what lies at one step in memory, innermost first."""
    runs: list[tuple[Size, Size]] = []
    for size, stride in reversed(list(zip(x.shape, x.layout, strict=True))):
        if size == 1:
            continue
        if runs and equal(stride, runs[-1][0] * runs[-1][1]):
            runs[-1] = (runs[-1][0] * size, runs[-1][1])
        else:
            runs.append((size, stride))
    return runs or [(1, 1)]


def _rearranged(node: Node) -> tuple[Type, ...]:
    """New tensors that keep the order of dimensions in memory."""
    x = tensor_at(node, 0)
    return (TensorType(x.dtype, x.shape, elementwise_strides([x], x.shape), x.device),)


# --- creations ----------------------------------------------------------------------------------


def _full(node: Node) -> tuple[Type, ...]:
    dtype, device = node.kwarg("dtype"), node.kwarg("device", CPU)
    value = node.arg("fill_value")
    if dtype is None:
        dtype = dtype_of(value)
    if not isinstance(dtype, torch.dtype) or not isinstance(device, torch.device):
        raise UnsupportedError(f"{node.op} without a dtype", who="infer")
    return (TensorType(dtype, sizes_at(node, "size"), None, device),)


def _new(node: Node) -> tuple[Type, ...]:
    """A tensor of other sizes, and otherwise like the first operand where nothing else is said."""
    x = tensor_at(node, 0)
    dtype, device = node.kwarg("dtype", x.dtype), node.kwarg("device", x.device)
    assert isinstance(dtype, torch.dtype) and isinstance(device, torch.device)
    return (TensorType(dtype, sizes_at(node, "size"), None, device),)


# --- reductions ---------------------------------------------------------------------------------


def _reduction(
    node: Node, dtype_of: Callable[[Node, torch.dtype], torch.dtype], results: int = 1
) -> tuple[Type, ...]:
    x = tensor_at(node, 0)
    has_dims = "dim" in node.op.argument_names
    dims = dims_at(node, "dim", x.rank) if has_dims else tuple(range(x.rank))
    keeps = has_dims and bool(node.arg("keepdim"))
    shape = [1 if d in dims else s for d, s in enumerate(x.shape) if keeps or d not in dims]
    return fresh(x, shape, dtype_of(node, x.dtype)) * results


def _extreme_and_place(node: Node) -> tuple[Type, ...]:
    (values,) = _reduction(node, _kept)
    assert isinstance(values, TensorType)
    return values, values.with_dtype(torch.int64)


def _summed(node: Node, dtype: torch.dtype) -> torch.dtype:
    asked = node.kwarg("dtype")
    if isinstance(asked, torch.dtype):
        return asked
    is_wide = dtype.is_floating_point or dtype.is_complex or "mean" in node.op.name
    return dtype if is_wide else torch.int64


def _kept(node: Node, dtype: torch.dtype) -> torch.dtype:
    return dtype


def _floating(node: Node, dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype.is_floating_point else torch.get_default_dtype()


def _truth(node: Node, dtype: torch.dtype) -> torch.dtype:
    return torch.uint8 if dtype is torch.uint8 else torch.bool


def _gather(node: Node) -> tuple[Type, ...]:
    x, index = tensor_at(node, 0), tensor_at(node, 2)
    if index.rank != x.rank or index.dtype not in (torch.int64, torch.int32):
        raise CheckError(f"an index {index} does not gather from {x}")
    return fresh(x, index.shape)


def _softmax(node: Node) -> tuple[Type, ...]:
    x = tensor_at(node, 0)
    return fresh(x, x.shape, torch.float32 if node.args[2] is True else None)


def _layer_norm(node: Node) -> tuple[Type, ...]:
    """Statistics are f32 for half types only when the parameters are f32 already."""
    x, normalized = tensor_at(node, 0), len(sizes_at(node, "normalized_shape"))
    kept = x.rank - normalized
    statistics = (*x.shape[:kept], *[1] * normalized)
    weight = node.arg("weight")
    dtype = weight.tensor.dtype if isinstance(weight, Value) else x.dtype
    statistic = fresh(x, statistics, dtype)
    return (*fresh(x, x.shape), *statistic, *statistic)


def _rms_norm(node: Node) -> tuple[Type, ...]:
    x, normalized = tensor_at(node, 0), len(sizes_at(node, "normalized_shape"))
    statistics = (*x.shape[: x.rank - normalized], *[1] * normalized)
    wide = torch.float32 if x.dtype.itemsize < 4 else x.dtype
    return (*fresh(x, x.shape), *fresh(x, statistics, wide))


# --- joins --------------------------------------------------------------------------------------


def _cat(node: Node) -> tuple[Type, ...]:
    listed = node.args[0]
    if not isinstance(listed, tuple) or not listed:
        raise CheckError(f"{node.op} joins nothing")
    types = [v.tensor for v in listed if isinstance(v, Value)]
    x, d = types[0], moving_dim(node.arg("dim"), types[0].rank)
    if any(t.rank != x.rank or t.dtype != x.dtype for t in types):
        raise UnsupportedError("joins of several ranks or dtypes", who="infer")
    is_last = _joins_channels_last(types)
    for other in types[1:]:
        if not all(
            equal(a, b) for i, (a, b) in enumerate(zip(x.shape, other.shape, strict=True)) if i != d
        ):
            raise CheckError(f"{x.shape} and {other.shape} do not join along {d}")
    total: Size = 0
    for other in types:
        total = total + other.shape[d]
    shape = (*x.shape[:d], total, *x.shape[d + 1 :])
    strides = channels_last_strides(shape) if is_last else None
    return (TensorType(x.dtype, shape, strides, x.device),)


def _joins_channels_last(types: Sequence[TensorType]) -> bool:
    """True for a join of images that all lie channels last: it does so too.

    Raises UnsupportedError for those that torch may take for either."""
    if types[0].rank < 4 or any(map(_is_by_rows, types)):
        return False
    if not all(t.rank == 4 and t.layout == channels_last_strides(t.shape) for t in types):
        raise UnsupportedError("joins that may keep channels last", who="infer")
    return True


def _is_by_rows(type: TensorType) -> bool:
    """True where torch suggests rows for what is made of a tensor of rank 4 or more: it lies so, or
    the last dimension lies inside the channels', as in heads of a larger matrix."""
    channel, last = type.layout[1], type.layout[-1]
    if isinstance(channel, int) and isinstance(last, int) and last < channel:
        return True
    return type.layout == contiguous_strides(type.shape)


_REDUCTIONS: Final[dict[str, Rule]] = {
    **{
        f"aten.{kind}": partial(_reduction, dtype_of=_summed)
        for kind in ("sum.default", "sum.dim_IntList", "mean.default", "mean.dim")
    },
    **{
        f"aten.{kind}": partial(_reduction, dtype_of=_kept)
        for kind in ("amax.default", "amin.default", "max.default", "min.default")
    },
    "aten.max.dim": _extreme_and_place,
    "aten.min.dim": _extreme_and_place,
    "aten.logsumexp.default": partial(_reduction, dtype_of=_floating),
    "aten.var.correction": partial(_reduction, dtype_of=_kept),
    "aten.std.correction": partial(_reduction, dtype_of=_kept),
    "aten.var_mean.correction": partial(_reduction, dtype_of=_kept, results=2),
    **{
        f"aten.{kind}.{form}": partial(_reduction, dtype_of=_truth)
        for kind in ("any", "all")
        for form in ("default", "dim", "dims")
    },
}

RULES: Final[dict[str, Rule]] = {
    "aten.alias.default": _same,
    "aten.detach.default": _same,
    "aten.permute.default": _permute,
    "aten.transpose.int": _transpose,
    "aten.t.default": _t,
    "aten.expand.default": _expand,
    "aten.unsqueeze.default": _unsqueeze,
    "aten.squeeze.default": _squeeze,
    "aten.squeeze.dim": _squeeze,
    "aten.squeeze.dims": _squeeze,
    "aten.select.int": _select,
    "aten.slice.Tensor": _slice,
    "aten.view.default": _view,
    "aten._unsafe_view.default": _view,
    "aten.reshape.default": partial(_view, copies=True),
    "aten.flip.default": _rearranged,
    "aten.tril.default": lambda node: fresh(tensor_at(node, 0), tensor_at(node, 0).shape),
    "aten.triu.default": lambda node: fresh(tensor_at(node, 0), tensor_at(node, 0).shape),
    "aten.full.default": _full,
    **{f"aten.new_{name}.default": _new for name in ("zeros", "ones", "full")},
    "aten._softmax.default": _softmax,
    "aten._log_softmax.default": _softmax,
    "aten.native_layer_norm.default": _layer_norm,
    "aten._fused_rms_norm.default": _rms_norm,
    "aten.cat.default": _cat,
    "aten.gather.default": _gather,
    **_REDUCTIONS,
    **CONTRACTIONS,
}
