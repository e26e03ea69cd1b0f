"""Repeated blocks of a schedule: the layers of a model, seen again in its graph.

A block is a stretch of nodes that comes several times in a row: the same operators on the same
types with the same attributes, whatever the values are called. Stretches of a valid order are
convex, so each can be drawn as one box.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rewright.ir import Graph, Kind, Node

SHORTEST: Final = 6  # nodes of a block; less is as quickly read unfolded
DEEPEST: Final = 4  # numbers in the name of a parameter: layers within layers

_VALUE: Final = re.compile(r'%(?:"(?:[^"\\]|\\.)*"|[\w.]+)')
_ORIGIN: Final = re.compile(
    r'(?: @ (?:"(?:[^"\\]|\\.)*"|\S+):\d+)?(?: seq \d+)?(?: forward| backward)?$', re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """Nodes `start` to `stop` (exclusive) of a graph, what to call them, and blocks within."""

    start: int
    stop: int
    label: str
    inside: tuple[Fold, ...] = ()

    def as_json(self) -> list[Any]:
        return [self.start, self.stop, self.label, [fold.as_json() for fold in self.inside]]


@dataclass(frozen=True)
class Fold:
    """Blocks that follow each other and are alike."""

    blocks: tuple[Block, ...]

    def as_json(self) -> list[list[Any]]:
        return [block.as_json() for block in self.blocks]


@dataclass(frozen=True)
class _Run:
    """`count` periods of `period` nodes from `start` on, and what repeats within the first."""

    start: int
    period: int
    count: int
    inside: tuple[_Run, ...]

    @property
    def stop(self) -> int:
        return self.start + self.period * self.count


def folds(graph: Graph, texts: Sequence[str]) -> list[Fold]:
    """The repeated blocks of a graph, in order; `texts` are those of its nodes.

    Allocations count for nothing: they may lie within a block or between two.
    """
    places = [i for i, node in enumerate(graph.nodes) if node.op.kind is not Kind.STORAGE]
    numbers: dict[str, int] = {}
    keys = np.array([numbers.setdefault(_key(texts[i]), i) for i in places], np.int64)
    nodes = [graph.nodes[i] for i in places]
    found = _runs(keys, _crossing(nodes), 0, len(keys))
    inputs = {i.value.name for i in graph.inputs}
    reads = [inputs.intersection(v.name for v in node.operands) for node in nodes]
    return [_fold(run, 0, reads, places) for run in found]


def _key(text: str) -> str:
    """What nodes that do the same have in common: all but names, and places in the source."""
    return _VALUE.sub("%", _ORIGIN.sub("", text))


def _crossing(nodes: Sequence[Node]) -> list[int]:
    """For each place between nodes, how many values are made before and read behind it."""
    made = {value: at for at, node in enumerate(nodes) for value in node.results}
    last = {value: at for at, node in enumerate(nodes) for value in node.operands if value in made}
    change = [0] * (len(nodes) + 2)
    for value, at in last.items():
        change[made[value] + 1] += 1
        change[at + 1] -= 1
    return [int(total) for total in np.cumsum(change)]


def _runs(keys: NDArray[np.int64], cuts: Sequence[int], start: int, stop: int) -> Iterator[_Run]:
    """The run that folds the most nodes away, between those on either side of it.

    Where a run could begin at several places, it begins where the fewest values cross.
    """
    best = _best(keys[start:stop])
    if best is None:
        return
    first, period, matched = best
    count = matched // period
    spare = range(start + first, start + first + matched - count * period + 1)
    begin = min(spare, key=lambda place: cuts[place])
    inside = tuple(_runs(keys, cuts, begin, begin + period))
    run = _Run(begin, period, count, inside)
    yield from _runs(keys, cuts, start, run.start)
    yield run
    yield from _runs(keys, cuts, run.stop, stop)


def _best(keys: NDArray[np.int64]) -> tuple[int, int, int] | None:
    """Start, period and length of the stretch whose repeats are the most nodes."""
    best, most = None, 0
    for period in range(SHORTEST, len(keys) // 2 + 1):
        same = keys[:-period] == keys[period:]
        if np.count_nonzero(same) < max(period, most):
            continue
        edges = np.flatnonzero(np.diff(np.concatenate(([0], same.view(np.int8), [0]))))
        for begin, end in edges.reshape(-1, 2).tolist():
            folded = (end - begin) // period * period
            if folded > most:
                best, most = (begin, period, end - begin + period), folded
    return best


# --- blocks, by nodes of the graph --------------------------------------------------------------


def _fold(run: _Run, shift: int, reads: Sequence[set[str]], places: Sequence[int]) -> Fold:
    """A run, moved by `shift` nodes, since what repeats within a block does so in all of them.

    `reads` are the inputs of the graph that each node reads.
    """
    starts = [run.start + shift + i * run.period for i in range(run.count)]
    labels = _labels([set().union(*reads[start : start + run.period]) for start in starts])
    return Fold(
        tuple(
            Block(
                places[start],
                places[start + run.period - 1] + 1,
                label,
                tuple(_fold(i, start - run.start, reads, places) for i in run.inside),
            )
            for start, label in zip(starts, labels, strict=True)
        )
    )


def _labels(blocks: Sequence[set[str]]) -> list[str]:
    """`transformer.h.3` where most parameters that only this block reads are called so, else its
    number among its like."""
    often = Counter(name for names in blocks for name in names)
    own = [sorted(name for name in names if often[name] == 1) for names in blocks]
    for depth in range(1, DEEPEST + 1):
        found = [_most_common(_stem(name, depth) for name in names) for names in own]
        if all(found) and len(set(found)) == len(found):
            return found
    return [f"block {number} of {len(blocks)}" for number in range(1, len(blocks) + 1)]


def _stem(name: str, depth: int) -> str:
    """`h.3` of `h.3.mlp.0.weight`, `h.3.mlp.0` at depth 2: up to the last of so many numbers."""
    words = name.split(".")
    numbers = [at for at, word in enumerate(words[:-1]) if word.isdigit()]
    return ".".join(words[: numbers[depth - 1] + 1]) if len(numbers) >= depth else ""


def _most_common(stems: Iterable[str]) -> str:
    counted = Counter(filter(None, stems)).most_common(1)
    return counted[0][0] if counted else ""
