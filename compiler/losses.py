"""Losses of a training step: what of them is worth keeping for the gradient.

The logarithms of all classes are made of the scores and of two numbers a row, and a loss reads one
of them. In one piece they are kept for the gradient, which takes writing them; in parts the
partitioner may keep the two numbers and have the kernel of the gradient make them again, to the
same bits.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import fx

from rewright import fx_emitter
from rewright.fx_emitter import FxEmitter

_ATEN: Final = torch.ops.aten


def opened(joint: fx.GraphModule) -> fx.GraphModule:
    """The joint graph with the logarithms of softmax in parts where a loss reads few of them; the
    very one when it has no such loss."""
    return fx_emitter.opened(joint, _is_loss, _open)


def _is_loss(node: fx.Node) -> bool:
    if node.target != _ATEN._log_softmax.default or node.meta["val"].ndim == 0:
        return False
    if node.meta["val"].device.type != "cpu":  # kernels of GPUs sum in an order of their own
        return False
    x, dim, _ = node.args
    assert isinstance(x, fx.Node) and isinstance(dim, int)
    # In parts half types would be rounded more often.
    is_wide = x.meta["val"].dtype in (torch.float32, torch.float64)
    readers = _readers(node)
    gradient = [r for r in readers if r.target == _ATEN._log_softmax_backward_data.default]
    reads = [r for r in readers if r.target == _ATEN.gather.default and _is_along(r, dim)]
    is_all = bool(gradient and reads) and len(gradient) + len(reads) == len(readers)
    return is_all and is_wide and x.meta["val"].is_contiguous()


def _readers(node: fx.Node) -> list[fx.Node]:
    """What reads a node, itself or through aliases."""
    aliases = [r for r in node.users if r.target in (_ATEN.alias.default, _ATEN.detach.default)]
    others = [r for r in node.users if r not in aliases]
    return others + [r for alias in aliases for r in _readers(alias)]


def _is_along(read: fx.Node, dim: int) -> bool:
    """True for a read of some elements of each row."""
    source, index = (read.args[place].meta["val"] for place in (0, 2))  # type: ignore[union-attr]
    along = dim % source.ndim
    assert isinstance(read.args[1], int)
    others = [d for d in range(source.ndim) if d != along]
    is_same = all(source.shape[d] == index.shape[d] for d in others)
    return read.args[1] % source.ndim == along and is_same


def _open(node: fx.Node) -> None:
    """x - max - log(sum(exp(x - max))), in the order of our kernels: what is read by itself."""
    x, dim, _ = node.args
    before = FxEmitter(node)
    top = before(_ATEN.amax.default, x, [dim], True)
    centred = before(_ATEN.sub.Tensor, x, top)
    powers = before(_ATEN.exp.default, centred)
    total = before(_ATEN.log.default, before(_ATEN.sum.dim_IntList, powers, [dim], True))
    for read in _readers(node):
        if read.target == _ATEN.gather.default:
            emit = FxEmitter(read)
            here = emit(_ATEN.gather.default, x, *read.args[1:])
            found = emit(_ATEN.sub.Tensor, emit(_ATEN.sub.Tensor, here, top), total)
            read.replace_all_uses_with(found)
            node.graph.erase_node(read)
        else:
            _open_gradient(read, x, top, total)
    _erase(node)


def _erase(node: fx.Node) -> None:
    """With its aliases, which nothing reads any more."""
    for alias in list(node.users):
        _erase(alias)
    node.graph.erase_node(node)


def _open_gradient(node: fx.Node, x: Any, top: fx.Node, logarithm: fx.Node) -> None:
    """grad - exp(out) * sum(grad), where `out` is made here of the scores and what is kept."""
    grad, _, dim, _ = node.args
    emit = FxEmitter(node)
    out = emit(_ATEN.sub.Tensor, emit(_ATEN.sub.Tensor, x, top), logarithm)
    total = emit(_ATEN.sum.dim_IntList, grad, [dim], True)
    whole = emit(_ATEN.mul.Tensor, emit(_ATEN.exp.default, out), total)
    node.replace_all_uses_with(emit(_ATEN.sub.Tensor, grad, whole))
    node.graph.erase_node(node)
