"""Attention over windows: a query looks at the keys near it and at the first few, the sinks.

Xiao et al., "Efficient streaming language models with attention sinks", arXiv 2309.17453.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from rewright.ir import (
    Graph,
    Kind,
    Node,
    OptionError,
    UnsupportedError,
    equal,
    fresh_names,
    hint,
)
from rewright.ir.loops import lower_attention
from rewright.ir.loops.tiles import kept_share
from rewright.passes.attention.backward import BACKWARD
from rewright.passes.attention.canonical import Call, Windows, as_attention, is_plain_call
from rewright.passes.attention.lower import FLASH, is_left
from rewright.passes.attention.lower import obstacle as atens_obstacle
from rewright.passes.attention.region import scale_and_bias
from rewright.passes.base import Env, Pass
from rewright.passes.emitter import Emitter

# A window that leaves nothing out.
ALL: Final = 1 << 40
# Rows that are evaluated at once.
ROWS: Final = 256


@dataclass(frozen=True)
class Window(Pass, name="window", takes="aten", gives="aten"):
    """Let every query look at the keys less than `size` away and at the first `sinks` only. It
    changes results: it is for models that were trained so, or to try what an error budget would do
    by itself.

    before:
        graph f(%q: f32[1, 2, 6, 4], %k: f32[1, 2, 6, 4], %v: f32[1, 2, 6, 4]) {
          %o, %s = aten._scaled_dot_product_flash_attention_for_cpu.default(%q, %k, %v)
            : f32[1, 2, 6, 4] strides [48, 4, 8, 1], f32[1, 2, 6] strides [12, 1, 2]
          return %o
        }
    after:
        graph f(%q: f32[1, 2, 6, 4], %k: f32[1, 2, 6, 4], %v: f32[1, 2, 6, 4]) {
          %o, %s = aten._scaled_dot_product_flash_attention_for_cpu.default(%q, %k, %v)
            : f32[1, 2, 6, 4] strides [48, 4, 8, 1], f32[1, 2, 6] strides [12, 1, 2]
          return %o
        }

    Refuses: attention that drops probabilities, or whose gradient is taken; scores that more is
    done to than scaling, a bias and a mask; other numbers of queries than of keys; sequences that
    are no longer than a window; other devices than the CPU.
    """

    size: int = 512
    sinks: int = 4

    def run(self, graph: Graph, env: Env) -> Graph:
        if self.size < 1 or self.sinks < 0:
            raise OptionError(
                f"a window has a size of 1 or more and 0 or more sinks, not {self}", who=self.name
            )
        fresh = fresh_names(v.name for v in graph.values)
        made: dict[str, Node] = {}
        said = len(env.log)
        for node in graph.nodes:
            call = call_of(node, graph)
            if isinstance(call, str):
                env.log.refuse(self.name, node.name, call)
            if not isinstance(call, Call):
                continue
            if length_of(call) <= self.size + self.sinks:
                env.log.refuse(self.name, call.result.name, "it is no longer than a window")
                continue
            kept = share_kept(call, self.size, self.sinks)
            windows = Windows(self.size, self.sinks, kept)
            made[call.node.name] = as_attention(call, Emitter(fresh, call.node), windows)
            env.log.decide(
                self.name, call.result.name, f"{kept:.0%} of its scores are left, as asked for"
            )
        if not made:
            if len(env.log) == said:
                env.log.refuse(self.name, graph.name, "there is no attention to narrow")
            return graph
        nodes = [made.get(node.name, node) for node in graph.nodes]
        return self.gave(graph.with_nodes(nodes), {name: (name,) for name in made})


def calls(graph: Graph) -> list[Call]:
    """The attention of a graph that can be narrowed."""
    found = (call_of(node, graph) for node in graph.nodes)
    return [call for call in found if isinstance(call, Call)]


def call_of(node: Node, graph: Graph) -> Call | str | None:
    """What a node of attention computes, or why it cannot be narrowed; None for other nodes."""
    if node.op.name == BACKWARD or (node.op.name == "rw.attention" and len(node.results) > 1):
        return "a gradient reads more of it than its result"
    if is_attention(node) and node.op.name not in ("rw.attention", FLASH):
        return f"{node.op} is not for the CPU, or a gradient"
    if node.op.name == FLASH:
        if not is_plain_call(node, graph):
            return "it drops probabilities, or a gradient reads more of it than its result"
        call = Call.of(node)
    elif is_left(node):
        why = atens_obstacle(node)
        if why is not None:
            return why
        known = scale_and_bias(node)
        assert known is not None
        query, key, value = node.operands[:3]
        call = Call(node, query, key, value, known[1], False, known[0])
    else:
        return None
    if not equal(call.query.tensor.shape[-2], call.key.tensor.shape[-2]):
        return "there are not as many queries as keys, so nothing says which are near"
    return call


def is_attention(node: Node) -> bool:
    return node.op.kind is Kind.CONTRACTION and "attention" in node.op.name


def length_of(call: Call) -> int:
    """Keys, at the sizes seen."""
    return hint(call.key.tensor.shape[-2])


def share_kept(call: Call, size: int, sinks: int) -> float:
    """Of the scores of a head, in tiles."""
    emit = Emitter(fresh_names(()), call.node)
    narrowed = as_attention(call, emit, Windows(size, sinks, 1.0))
    try:
        return kept_share(lower_attention(narrowed.graph("body"), "window"))
    except UnsupportedError:
        return 1.0


# --- what it gives --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention:
    """softmax(scale q k^T + bias) v, piece by piece."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    causal: bool
    scale: float

    def scores(self, heads: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
        """[B, H, R, S] of some heads, rows and keys."""
        query, key = self.query[:, heads[:, None], rows], self._of_keys(self.key, heads, keys)
        scores = _exact(query) @ key.mT * self.scale
        if self.bias is not None:
            whole = (*self.query.shape[:3], self.key.shape[2])
            bias = self.bias.expand(whole)
            scores = scores + bias[:, heads[:, None, None], rows[:, None], keys].to(scores.dtype)
        if self.causal:
            scores = scores.masked_fill(keys > rows[:, None], -torch.inf)
        return scores

    def result(self, scores: Tensor, heads: Tensor, keys: Tensor) -> Tensor:
        """[B, H, R, E] of their scores."""
        dead = scores.amax(-1, keepdim=True) == -torch.inf  # as a whole: 0, as from a kernel
        weights = scores.softmax(-1).masked_fill(dead, 0)
        return weights @ self._of_keys(self.value, heads, keys)

    def over_windows(self, sizes: Sequence[int], sinks: int) -> Tensor:
        """[B, H, T, E], where each head has a window of its own."""
        batch, count, length, _ = self.query.shape
        made = self.value.new_empty(batch, count, length, self.value.shape[-1])
        for size in dict.fromkeys(sizes):
            heads = torch.tensor([h for h, own in enumerate(sizes) if own == size])
            for first in range(0, length, ROWS):
                rows = torch.arange(first, min(first + ROWS, length))
                keys = self._looked_at(rows, size, sinks)
                scores = self.scores(heads, rows, keys)
                if size != ALL:
                    scores.masked_fill_(outside(rows, keys, size, sinks), -torch.inf)
                made[:, heads[:, None], rows] = self.result(scores, heads, keys).to(made.dtype)
        return made

    def _of_keys(self, x: Tensor, heads: Tensor, keys: Tensor) -> Tensor:
        """What heads of queries read of keys, or values."""
        own = heads // (self.query.shape[1] // x.shape[1])
        return _exact(x[:, own[:, None], keys])

    def _looked_at(self, rows: Tensor, size: int, sinks: int) -> Tensor:
        """Keys that some of the rows look at."""
        near = max(0, int(rows[0]) - size + 1)
        end = int(rows[-1]) + (1 if self.causal else size)
        return torch.cat(
            [torch.arange(min(sinks, near)), torch.arange(near, min(end, self.key.shape[2]))]
        )


def _exact(x: Tensor) -> Tensor:
    """Half types in single precision."""
    return x if x.dtype == torch.float64 else x.float()


def outside(rows: Tensor, keys: Tensor, size: int, sinks: int) -> Tensor:
    """[R, S], true for keys that are neither near nor a sink."""
    return ((rows[:, None] - keys).abs() >= size) & (keys >= sinks)
