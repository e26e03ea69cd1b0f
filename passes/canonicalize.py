"""Clean-up that never changes a number: copies, casts and views that do nothing, or do in two
steps what takes one. It knows nothing of arithmetic: `x + 0` is not `x` when x is -0.0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rewright.ir import Graph, Node, Value
from rewright.passes.aliases import Aliases
from rewright.passes.base import Env, Pass
from rewright.passes.casts import CASTS, skip_widening
from rewright.passes.creations import LIKE, full_like
from rewright.passes.dce import names_of, split_dead
from rewright.passes.sweep import Change, Producer, Sweep
from rewright.passes.views import (
    PERMUTES,
    RESHAPES,
    VIEW,
    compose_permutes,
    plain_view,
    undo_reshape,
    view_of_reshape,
)


@dataclass(frozen=True)
class Canonicalize(Pass, name="canonicalize", takes="aten", gives="aten"):
    """Remove casts, copies and views that do nothing, and join chains of them; filled tensors
    no longer read what they are shaped like.

    before:
        graph f(%x: f32[2, 3]) {
          %a = aten.t.default(%x) : f32[3, 2] strides [1, 3]
          %b = aten.t.default(%a) : f32[2, 3]
          %c = aten.sin.default(%b) : f32[2, 3]
          return %c
        }
    after:
        graph f(%x: f32[2, 3]) {
          %c = aten.sin.default(%x) : f32[2, 3]
          return %c
        }

    Refuses: to make an output share storage with an input or with another output, where it did
    not before. Types of what remains never change, strides included.
    """

    def run(self, graph: Graph, env: Env) -> Graph:
        aliases, sweep = Aliases(graph), Sweep(graph)
        sweep.run(lambda node: self._rewrite(node, sweep, aliases, env))
        changed = sweep.graph()
        kept, dropped = split_dead(changed)
        if not dropped:
            return graph if changed is graph else self.gave(changed, sweep.renamed())
        gone = dict.fromkeys(names_of(dropped), ())
        return self.gave(changed.with_nodes(kept), {**sweep.renamed(), **gone})

    def _rewrite(self, node: Node, sweep: Sweep, aliases: Aliases, env: Env) -> Change:
        for rule in RULES.get(node.op.name, ()):
            change = rule(node, sweep.producer)
            if isinstance(change, Node):
                return change
            if change is None:
                continue
            why = aliases.obstacle(node.result, change)
            if why is None:
                aliases.substitute(node.result, change)
                return (change,)
            env.log.refuse(self.name, node.name, why)
        return None


def nothing_changes(node: Node, producer: Producer) -> Value | None:
    """f(x) -> x, for an f that, giving the type it takes, gives the numbers it takes."""
    source = node.args[_SOURCE.get(node.op.name, 0)]
    if not isinstance(source, Value) or source.type != node.result.type:
        return None
    return None if node.kwarg("pin_memory") else source


_SOURCE: Final = {"aten.copy.default": 1}

# Copies, and views that start where their input starts; a slice as long as its input does too.
_IDENTITIES: Final = (
    *CASTS,
    *RESHAPES,
    *PERMUTES,
    "aten.clone.default",
    "aten.copy.default",
    "aten.lift_fresh_copy.default",
    "aten.lift_fresh.default",
    "aten.alias.default",
    "aten.detach.default",
    "aten.contiguous.default",
    "aten.expand.default",
    "aten.slice.Tensor",
    "aten._reshape_alias.default",
    "aten.view.dtype",
)

Rule = Callable[[Node, Producer], Node | Value | None]


def _rules() -> dict[str, tuple[Rule, ...]]:
    """The rules to try on each operator, in order."""
    more: dict[str, tuple[Rule, ...]] = {
        **dict.fromkeys(CASTS, (skip_widening,)),
        **dict.fromkeys(RESHAPES, (undo_reshape,)),
        **dict.fromkeys(PERMUTES, (compose_permutes,)),
        VIEW: (undo_reshape, view_of_reshape),
        "aten._unsafe_view.default": (undo_reshape, plain_view),
        "aten.reshape.default": (undo_reshape, plain_view),
    }
    rules = {name: (nothing_changes, *more.get(name, ())) for name in _IDENTITIES}
    return {**rules, **dict.fromkeys(LIKE, (full_like,))}


RULES: Final = _rules()
