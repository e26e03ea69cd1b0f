"""Heads of attention that an error budget may narrow to windows, each by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from rewright.ir import Graph, Node, Value, fresh_names, hint
from rewright.ir.alone import alone, at_hints
from rewright.passes.attention.canonical import Call, Windows, as_attention
from rewright.passes.attention.flash import VIA
from rewright.passes.attention.lower import FLASH, atens_nodes
from rewright.passes.attention.windows import (
    ALL,
    Attention,
    calls,
    length_of,
    outside,
    share_kept,
)
from rewright.passes.base import Env
from rewright.passes.budget import FLOAT, Bid, Plan
from rewright.passes.emitter import Emitter
from rewright.passes.quantize.sensitivity import Sensitivity

SIZES: Final = (64, 128, 256, 512, 1024, 2048, 4096)
# A tile of keys: fewer sinks cost as much.
SINKS: Final = 64
# Shorter sequences have no tiles to leave out; and a window is to leave out a good part.
LEAST_LENGTH: Final = 512
MOST_KEPT: Final = 0.85
# Rows that the choices are tried on.
MOST_ROWS: Final = 256


@dataclass(frozen=True)
class HeadsSite:
    """The heads of one call of attention."""

    call: Call

    @property
    def node(self) -> Node:
        return self.call.node

    @property
    def reads(self) -> tuple[Value, ...]:
        return self.call.operands

    @property
    def count(self) -> int:
        return hint(self.call.query.tensor.shape[1])

    def usual(self) -> Node:
        """The call of ATen's kernel."""
        if self.node.op.name == FLASH:
            return self.node
        made = atens_nodes(self.node, fresh_names(()))
        return next(node for node in made if node.op.name == FLASH)

    def named(self, head: int) -> str:
        return f"{self.node.name}[{head}]"

    def attention(self, read: Sequence[Tensor]) -> Attention:
        query, key, value, *bias = read
        mask = bias[0] if bias else None
        return Attention(query, key, value, mask, self.call.causal, self.call.scale)


def heads_sites(graph: Graph) -> list[HeadsSite]:
    found = (HeadsSite(c) for c in calls(graph) if length_of(c) >= LEAST_LENGTH)
    return [s for s in found if isinstance(s.call.query.tensor.shape[1], int)]


class Heads:
    """What may become of the heads of a graph."""

    def __init__(self, found: Sequence[HeadsSite], env: Env) -> None:
        self._sites, self._env = found, env
        self._kept: dict[object, float] = {}
        self._seconds: dict[object, Mapping[int, float]] = {}

    # --- bids -----------------------------------------------------------------------------------

    def bids(self, found: Sequence[Sensitivity]) -> dict[str, list[Bid]]:
        """For each head, what each window takes and adds."""
        bids: dict[str, list[Bid]] = {}
        for site in self._sites:
            seconds = self._times(site)
            errors: dict[tuple[int, int], float] = {}
            for of in found:
                for key, error in _errors(site, of, list(seconds)).items():
                    errors[key] = errors.get(key, 0.0) + error / len(found)
            for head in range(site.count):
                name = site.named(head)
                offers = [
                    Bid(name, named(size), errors[head, size], seconds[size], 0)
                    for size in seconds
                    if size != ALL and errors[head, size] < torch.inf
                ]
                dense = Bid(name, FLOAT, 0.0, seconds[ALL], 0)
                bids[name] = [dense, *sorted(offers, key=lambda bid: bid.error)]
        return bids

    def _times(self, site: HeadsSite) -> Mapping[int, float]:
        """Seconds that a head takes, by the size of its window."""
        call = site.call
        types = tuple(v.tensor for v in call.operands)
        key = types, call.causal, call.scale
        if key not in self._seconds:
            self._seconds[key] = self._timed(site)
        return self._seconds[key]

    def _timed(self, site: HeadsSite) -> Mapping[int, float]:
        """In ATen's kernel; over all keys and over the smallest window in one of ours. What lies
        between goes by the share of scores."""
        shares = {size: self._share(site, size) for size in (*SIZES, ALL)}
        whole = shares[ALL]
        sizes = [size for size, share in shares.items() if share <= MOST_KEPT * whole]
        if not sizes:
            return {ALL: 0.0}
        least = sizes[0]
        calls = [site.usual(), *map(site_kernel(site), (ALL, least))]
        graphs = [alone(at_hints(call)) for call in calls]
        tools = self._env.tools
        found = None if tools is None else tools.race(graphs)
        if found is None:
            found = [e.seconds for e in self._env.cost.estimate([g.nodes[0] for g in graphs])]
        now, dense, narrow = (seconds / site.count for seconds in found)
        slope = max(0.0, dense - narrow) / max(whole - shares[least], 1e-9)
        times = {size: narrow + slope * (shares[size] - shares[least]) for size in sizes}
        return {ALL: min(now, dense), **{s: t for s, t in times.items() if t < min(now, dense)}}

    def _share(self, site: HeadsSite, size: int) -> float:
        key = length_of(site.call), site.call.causal, site.call.bias, size
        if key not in self._kept:
            self._kept[key] = share_kept(site.call, size, SINKS)
        return self._kept[key]

    # --- plans ----------------------------------------------------------------------------------

    def instead(self, plan: Plan) -> dict[str, Callable[..., Sequence[Any]]]:
        """What gives the results of narrowed calls when the graph is interpreted, by node."""
        return {s.node.name: _attended(s, sizes) for s, sizes in self._narrowed(plan)}

    def applied(self, plan: Plan, fresh: Callable[[str], str]) -> dict[str, list[Node]]:
        """The nodes that stand for narrowed calls, by node."""
        made = {}
        for site, sizes in self._narrowed(plan):
            emit = Emitter(fresh, site.node)
            kept = sum(self._share(site, size) for size in sizes) / len(sizes)
            told = emit.constant(torch.tensor(sizes))
            as_attention(site.call, emit, Windows(told, SINKS, kept))
            made[site.node.name] = emit.nodes
        return made

    def _narrowed(self, plan: Plan) -> list[tuple[HeadsSite, list[int]]]:
        found = []
        for site in self._sites:
            choices = [plan[site.named(head)].choice for head in range(site.count)]
            if any(choice != FLOAT for choice in choices):
                found.append((site, [size_of(choice) for choice in choices]))
        return found


def is_head(site: str) -> bool:
    return site.endswith("]")


def named(size: int) -> str:
    return f"window {size}+{SINKS}"


def size_of(choice: str) -> int:
    return ALL if choice == FLOAT else int(choice.split()[1].split("+")[0])


def site_kernel(site: HeadsSite) -> Callable[[int], Node]:
    """The call as a kernel of ours, with one window for all heads."""

    def made(size: int) -> Node:
        emit = Emitter(fresh_names(()), site.node)
        share = share_kept(site.call, size, SINKS)
        node = as_attention(site.call, emit, Windows(size, SINKS, share))
        return dataclasses.replace(node, kwargs=(*node.kwargs, ("via", VIA)))

    return made


def _errors(site: HeadsSite, of: Sensitivity, sizes: Sequence[int]) -> dict[tuple[int, int], float]:
    """What each window at each head does to the outputs."""
    attention = site.attention(of.read[site.node.name])
    length, count = attention.query.shape[2], attention.key.shape[2]
    step = -(-length // MOST_ROWS)
    rows, keys = torch.arange(0, length, step), torch.arange(count)
    found = {}
    for head in range(site.count):
        heads = torch.tensor([head])
        dense = attention.scores(heads, rows, keys)
        exact = attention.result(dense, heads, keys)
        for size in sizes:
            if size != ALL:
                narrow = dense.masked_fill(outside(rows, keys, size, SINKS), -torch.inf)
                change = attention.result(narrow, heads, keys) - exact
                part = slice(None), slice(head, head + 1), slice(None, None, step)
                found[head, size] = of.error(site.node.name, change, part, step)
    return found


def _attended(site: HeadsSite, sizes: Sequence[int]) -> Callable[..., Sequence[Any]]:
    others = site.node.results[1:]

    def call(*read: Tensor) -> Sequence[Any]:
        result = site.attention(read).over_windows(sizes, SINKS)
        unread = (result.new_zeros(result.shape[:3], dtype=v.tensor.dtype) for v in others)
        return (result, *unread)

    return call
