"""The shortest plan of a part of a graph, proven: what the fuse pass is measured against.

A plan that can run is a sequence of kernels, and what has run after each is a set of nodes that
holds all that its nodes need. So the shortest plan is a shortest path over such sets (dynamic
programming over ideals; of the chains with branches that models are made of there are few).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

# Kernels that are looked at before a part is given up.
MOST: Final = 50_000


@dataclass(frozen=True)
class Part:
    """Nodes that may share kernels, numbered in an order that runs; sets of them are bits.

    `needs[n]` are the nodes that must run before `n`, all of them; `apart[n]` those of them between
    which and `n` something else runs; `near[n]` those with which `n` shares what it reads or makes.
    `seconds` says what a kernel of a set takes, infinity where there is none.
    """

    needs: tuple[int, ...]
    apart: tuple[int, ...]
    near: tuple[int, ...]
    seconds: Callable[[int], float]

    @property
    def all(self) -> int:
        return (1 << len(self.needs)) - 1


@dataclass(frozen=True)
class Best:
    seconds: float
    kernels: tuple[int, ...]


def judge(part: Part, kernels: Sequence[int]) -> float:
    """What a plan takes: infinity when it leaves out a node, has one twice, or cannot run."""
    done, left = 0, list(kernels)
    if sum(kernels) != part.all or any(a & b for a in kernels for b in kernels if a is not b):
        return math.inf
    while left:
        ready = [k for k in left if all(part.needs[n] & ~(done | k) == 0 for n in bits(k))]
        if not ready:
            return math.inf
        done |= ready[0]
        left.remove(ready[0])
    if any(part.apart[n] & kernel for kernel in kernels for n in bits(kernel)):
        return math.inf
    return sum(part.seconds(kernel) for kernel in kernels)


def best(part: Part, most: int = MOST) -> Best | None:
    """The shortest plan whose kernels each hold together by what they share; None when more than
    `most` kernels would have to be looked at."""
    layers: list[dict[int, tuple[float, int]]] = [{} for _ in range(len(part.needs) + 1)]
    layers[0][0] = 0.0, 0
    looked = 0
    for layer in layers:
        for done, (seconds, _) in layer.items():
            for kernel in _kernels(part, done):
                looked += 1
                if looked > most:
                    return None
                after, taken = done | kernel, seconds + part.seconds(kernel)
                there = layers[after.bit_count()]
                if taken < there.get(after, (math.inf, 0))[0]:
                    there[after] = taken, kernel
    return _way(part, layers)


def _way(part: Part, layers: Sequence[dict[int, tuple[float, int]]]) -> Best:
    done, kernels = part.all, list[int]()
    while done:
        kernels.append(layers[done.bit_count()][done][1])
        done &= ~kernels[-1]
    return Best(layers[-1][part.all][0], tuple(reversed(kernels)))


def _kernels(part: Part, done: int) -> Iterator[int]:
    """Every kernel that can run next. With a node it holds all that this needs and has not run."""
    found = set[int]()
    todo = [k for n in bits(part.all & ~done) if (k := _with(part, done, 0, n))]
    while todo:
        kernel = todo.pop()
        if kernel in found:
            continue
        found.add(kernel)
        if _reached(part, kernel & -kernel, kernel) == kernel:
            yield kernel
        near = _near(part, kernel) & ~done & ~kernel
        todo += [k for n in bits(near) if (k := _with(part, done, kernel, n))]


def _with(part: Part, done: int, kernel: int, node: int) -> int:
    """A kernel with a node and all that this needs; 0 when something must run in between."""
    grown = kernel | 1 << node | part.needs[node] & ~done
    return 0 if any(part.apart[n] & grown for n in bits(grown)) else grown


def _reached(part: Part, start: int, kernel: int) -> int:
    """What of a kernel hangs together with `start`."""
    while (grown := start | _near(part, start) & kernel) != start:
        start = grown
    return start


def _near(part: Part, nodes: int) -> int:
    near = 0
    for n in bits(nodes):
        near |= part.near[n]
    return near


def bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
