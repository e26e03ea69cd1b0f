"""The one place that decides what may be dropped, merged, repeated or moved.

Everybody who removes, shares, recomputes or reorders nodes asks here, never `op.effect`: a node
can be better than its operator (attention with no dropout draws nothing) or worse (a region that
holds a random operator is random).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from rewright.ir.graph import Node
from rewright.ir.ops import Effect, op

# Those that also say what becomes of a state that they read: the same without it, which has only
# the first results.
_STATELESS: Final[Mapping[str, str]] = {
    "aten._native_batch_norm_legit_functional.default": "aten._native_batch_norm_legit.no_stats"
}


def effect_of(node: Node) -> Effect:
    """What running this node does besides computing: the first of its effects, for messages and
    for those who ask whether there is one."""
    return next(iter(effects_of(node)), Effect.NONE)


def effects_of(node: Node) -> tuple[Effect, ...]:
    """All that running this node does besides computing, nested graphs included: a branch is the
    host's, and what it holds may draw and send as well."""
    own = node.op.effect
    if own is Effect.RNG and _draws_nothing(node):
        own = Effect.NONE
    inner = (e for _, graph in node.graphs for n in graph.nodes for e in effects_of(n))
    return tuple(dict.fromkeys(e for e in (own, *inner) if e is not Effect.NONE))


def runs_as(node: Node) -> str:
    """The operator whose effect a node has: on the CPU dropout draws the numbers of a Bernoulli
    distribution, for as many elements, and does no more than compute with them."""
    name = node.op.name
    drops = name == "aten.native_dropout.default" and node.results[0].tensor.device.type == "cpu"
    return "aten.bernoulli.p" if drops else name


def may_drop(node: Node) -> bool:
    """True when nobody can tell that the node did not run, once its results are not read.

    A random operator may not go: it would shift the numbers that the ones after it draw.
    """
    return effect_of(node) is Effect.NONE


def may_merge(a: Node, b: Node) -> bool:
    """True when running `a` alone does what running both does, given that they compute the same."""
    return effect_of(a) is Effect.NONE and effect_of(b) is Effect.NONE


def may_repeat(node: Node) -> bool:
    """True when a second run gives the same values and does nothing else."""
    return effect_of(node) is Effect.NONE


def without_state(node: Node) -> Node:
    """The node as it may run a second time, though what it updates has been written since: without
    the results that are the update. Most nodes are that as they are."""
    other = _STATELESS.get(node.op.name)
    if other is None or node.arg("training") is not True:
        return node
    stateless = op(other)
    assert stateless.schema is not None
    args = tuple(node.arg(name) for name in stateless.argument_names)
    results = node.results[: len(stateless.schema.returns)]
    return dataclasses.replace(node, op=stateless, args=args, kwargs=(), results=results)


def ordered(node: Node) -> bool:
    """True when the node must keep its place among the nodes of its effect."""
    return effect_of(node) is not Effect.NONE


def _draws_nothing(node: Node) -> bool:
    """A random operator called so that it draws no number: outside training, or never dropping."""
    names = node.op.argument_names
    if "dropout_p" in names and node.arg("dropout_p") == 0:
        return True
    return any(name in names and node.arg(name) is False for name in ("train", "training"))
