"""Softmax of rows that are looped over: largest element and sum of exponentials in one reading.

Each lane keeps the largest element so far and the sum of the exponentials relative to it, which is
scaled where a larger element comes (Milakov and Gimelshein, arXiv 1805.02867, algorithm 3); lanes
come together at the end. That is another order of the sum than two readings give, and the order
belongs to the node: both reductions have to be one node's own, which then has them wherever it is
looped over. A sum whose largest element is another node's stays as it is, since it must not depend
on what it is fused with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from rewright.codegen.triton.primitives import functions_of
from rewright.ir.loops import Apply, Let, Reduce, Ref, Stage, Term, needed

_FUNCTIONS: Final = """
def with_exponential(x, top, total):
    now = larger(top, x)
    smaller_one = libdevice.exp(-tl.abs(x - top))
    total = tl.where(x > top, total * smaller_one + 1.0, total + smaller_one)
    return now, tl.where(now == float("-inf"), 0.0, total)

def sum_of_exponentials(top_parts, total_parts, top):
    return tl.sum(total_parts * libdevice.exp(top_parts - top), 1, keep_dims=True)
"""

ONLINE: Final = functions_of(_FUNCTIONS)


def online(stages: Sequence[Stage]) -> tuple[tuple[Stage, ...], Mapping[str, Reduce]]:
    """The stages without the sums that come with a largest element, and these by its name."""
    tops: dict[str, Reduce] = {}
    sums: dict[str, Reduce] = {}
    left: list[Stage] = []
    for stage in stages:
        if stage.per == "column":
            lets = {s.name: s.term for s in stage.body if isinstance(s, Let)}
            reduces = [s for s in stage.body if isinstance(s, Reduce)]
            found = {top: s for s in reduces if (top := _top_of(s, lets, tops)) is not None}
            sums |= found
            rest = [s for s in stage.body if s not in found.values()]
            stage = replace(stage, body=tuple(needed(rest, set()))) if found else stage
            tops |= {s.name: s for s in reduces if s.how == "max"}
        if stage.body:
            left.append(stage)
    return tuple(left), sums


def _top_of(reduce: Reduce, lets: Mapping[str, Term], tops: Mapping[str, Reduce]) -> str | None:
    """The name of the largest `x` where `reduce` is the sum of exp(x - largest) of its node."""
    if reduce.how != "sum":
        return None
    match _followed(reduce.term, lets):
        case Apply(name="exp", args=(shifted,)):
            match _followed(shifted, lets):
                case Apply(name="sub", args=(Ref() as x, Ref(name=name))):
                    top = tops.get(name)
                    if top is not None and top.origin == reduce.origin and top.term == x:
                        return name
    return None


def _followed(term: Term, lets: Mapping[str, Term]) -> Term:
    return lets.get(term.name, term) if isinstance(term, Ref) else term
