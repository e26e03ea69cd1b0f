"""Nodes of an fx graph in the place of one, with fake values like those around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx


def opened(
    joint: fx.GraphModule,
    is_whole: Callable[[fx.Node], bool],
    take_apart: Callable[[fx.Node], None],
) -> fx.GraphModule:
    """The graph with some of its nodes in parts; the very one when it has none."""
    found = [node for node in joint.graph.nodes if is_whole(node)]
    for node in found:
        take_apart(node)
    if found:
        joint.recompile()
    return joint


class FxEmitter:
    """Makes nodes before one, of whose phase and source they are."""

    def __init__(self, like: fx.Node) -> None:
        self._like = like

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        with self._like.graph.inserting_before(self._like):
            made = self._like.graph.call_function(target, args, kwargs)
        given = (a.meta["val"] if isinstance(a, fx.Node) else a for a in args)
        made.meta = {k: v for k, v in self._like.meta.items() if k != "tensor_meta"}
        made.meta["val"] = target(*given, **kwargs)
        return made
