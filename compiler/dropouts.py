"""Dropouts of a training step in parts, so that their results need not be kept for the gradient.

`native_dropout` draws a mask and applies it in one operator, which may not run twice: what it
makes is kept, four bytes an element. In parts the mask alone is drawn, and may be kept as one byte;
applying it is elementwise, fuses with what is around it, and can be done again, to the same bits.
"""

from __future__ import annotations

from operator import getitem
from typing import Final

import torch
from torch import fx

from rewright import fx_emitter
from rewright.fx_emitter import FxEmitter
from rewright.torch_compat import is_checkpointed

_ATEN: Final = torch.ops.aten


def opened(joint: fx.GraphModule) -> fx.GraphModule:
    """The joint graph with its dropouts in parts; the very one when it has none."""
    return fx_emitter.opened(joint, _is_dropout, _open)


def _is_dropout(node: fx.Node) -> bool:
    """True for one that drops as torch does on the CPU; on GPUs the operator draws otherwise."""
    if node.target != _ATEN.native_dropout.default or node.args[2] is not True:
        return False
    x = node.args[0]
    assert isinstance(x, fx.Node)
    value = x.meta["val"]
    is_own = value.device.type == "cpu" and value.is_floating_point()
    return is_own and not is_checkpointed(node) and all(u.target is getitem for u in node.users)


def _open(node: fx.Node) -> None:
    """x * mask * scale, with the scale rounded to the type of x, as the operator has it."""
    x, p, _ = node.args
    assert isinstance(x, fx.Node) and isinstance(p, (int, float))
    dtype, kept = x.meta["val"].dtype, 1 - p
    scale = torch.tensor(1 / kept if kept else 0.0, dtype=dtype).item()
    emit = FxEmitter(node)
    place = emit(_ATEN.empty_like.default, x, dtype=torch.bool)
    mask = emit(_ATEN.bernoulli.p, place, kept)
    result = emit(_ATEN.mul.Tensor, emit(_ATEN.mul.Tensor, x, mask), scale)
    for user in list(node.users):
        user.replace_all_uses_with((result, mask)[user.args[1]])  # type: ignore[index]
        node.graph.erase_node(user)
    node.graph.erase_node(node)
