"""One order of the steps and one numbering of the values for all ways to write a problem down, so
that what is found depends on neither names nor the order in which a graph was built."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

from .problem import Problem


def canonical_order(problem: Problem) -> list[int]:
    """The steps in an order in which they can run: of those that can, the one that leaves the least
    memory held, then by what computes it and what it is for. Only steps that are the same in all
    that may stand in either order."""
    keys = _keys(problem)
    readers = _readers(problem)
    left = [len(of) for of in readers]
    missing = [len(set(step.reads)) for step in problem.steps]

    def entry(i: int) -> tuple[int, bytes, int]:
        step, size = problem.steps[i], problem.sizes
        frees = sum(size[v] for v in set(step.reads) if left[v] == 1 and v not in problem.kept)
        makes = sum(size[v] for v in step.makes if left[v] or v in problem.kept)
        return makes - frees, keys[i], i

    done = [False] * len(problem.steps)
    ready = [entry(i) for i, count in enumerate(missing) if not count]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        *_, i = heapq.heappop(ready)
        if done[i]:
            continue
        done[i] = True
        order.append(i)
        for value in problem.steps[i].makes:
            for reader in readers[value]:
                missing[reader] -= 1
                if not missing[reader]:
                    heapq.heappush(ready, entry(reader))
        for value in set(problem.steps[i].reads):
            left[value] -= 1
            if left[value] == 1:
                last = next(reader for reader in readers[value] if not done[reader])
                if not missing[last]:
                    heapq.heappush(ready, entry(last))
    return order


def reordered(problem: Problem, order: Sequence[int]) -> Problem:
    """The same problem with its steps in that order and values numbered as they are made."""
    made = [value for i in order for value in problem.steps[i].makes]
    number = {value: new for new, value in enumerate(made)}
    steps = (problem.steps[i] for i in order)
    return Problem(
        tuple(
            replace(
                step,
                reads=tuple(number[v] for v in step.reads),
                makes=tuple(number[v] for v in step.makes),
            )
            for step in steps
        ),
        tuple(problem.sizes[value] for value in made),
        frozenset(number[value] for value in problem.kept),
    )


def _readers(problem: Problem) -> list[list[int]]:
    readers: list[list[int]] = [[] for _ in problem.sizes]
    for i, step in enumerate(problem.steps):
        for value in dict.fromkeys(step.reads):
            readers[value].append(i)
    return readers


def _keys(problem: Problem) -> list[bytes]:
    """A digest of each step, all before it and all after it."""
    place = {value: n for step in problem.steps for n, value in enumerate(step.makes)}
    before: list[bytes] = []
    for step in problem.steps:
        made = ((problem.sizes[v], v in problem.kept) for v in step.makes)
        own = repr((step.seconds, step.workspace, step.again, *made)).encode()
        reads = ((before[problem.maker[v]], place[v]) for v in step.reads)
        before.append(_digest(own, *(key + bytes([n % 256]) for key, n in reads)))
    after: list[list[bytes]] = [[] for _ in problem.steps]
    keys = [b""] * len(problem.steps)
    for i in reversed(range(len(problem.steps))):
        keys[i] = _digest(before[i], *sorted(after[i]))
        for n, value in enumerate(problem.steps[i].reads):
            use = _digest(keys[i], bytes([n % 256, place[value] % 256]))
            after[problem.maker[value]].append(use)
    return keys


def _digest(*parts: bytes) -> bytes:
    return blake2b(b"".join(parts), digest_size=12).digest()
