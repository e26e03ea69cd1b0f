"""What `ir/native/pack.c` does, in Python, node for node: it serves where there is no compiler, and
shows that the C means what it says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from .problem import Found

FEW: Final = 3
_FAR: Final = (1 << 63) - 1


class Slab(NamedTuple):
    """A buffer of `size` bytes in the sections first <= s < last."""

    size: int
    first: int
    last: int

    @property
    def sections(self) -> range:
        return range(self.first, self.last)

    def meets(self, other: Slab) -> bool:
        return self.first < other.last and other.first < self.last


class _Part(NamedTuple):
    buffers: list[int]
    first: int
    last: int

    @property
    def sections(self) -> range:
        return range(self.first, self.last)


class _State:
    """By buffer `offsets` to `alike`, by section `floor` to `choices`, as in the C."""

    def __init__(self, slabs: Sequence[Slab], sections: int, capacity: int, nodes: int) -> None:
        self.slabs, self.capacity, self.allowed, self.nodes = slabs, capacity, nodes, 0
        count = len(slabs)
        self.offsets, self.base, self.least = [0] * count, [0] * count, [0] * count
        self.placed, self.refused, self.lifted = [False] * count, [False] * count, [False] * count
        self.alike: list[int | None] = [None] * count
        self.floor, self.rest, self.joined = [0] * sections, [0] * sections, [0] * sections
        self.highest: list[int | None] = [None] * sections
        self.top, self.second, self.owner = [0] * sections, [0] * sections, [-1] * sections
        self.lowest, self.next, self.choices = [0] * sections, [0] * sections, [0] * sections
        last: dict[Slab, int] = {}
        for b, slab in enumerate(slabs):
            self.alike[b] = last.get(slab)
            last[slab] = b
            for t in slab.sections:
                self.rest[t] += slab.size
                self.joined[t] += t + 1 < slab.last

    # --- inference ------------------------------------------------------------------------------

    def is_exchangeable(self, b: int) -> bool:
        slab, alike = self.slabs[b], self.alike[b]
        below = self.highest[slab.first]
        if alike is not None and not self.placed[alike]:
            return True
        if below is None or below < b or self.floor[slab.first] != self.base[b]:
            return False
        return self.slabs[below].sections == slab.sections

    def least_top_beside(self, b: int) -> int:
        return min(
            self.second[t] if self.owner[t] == b else self.top[t] for t in self.slabs[b].sections
        )

    def find_tops(self, part: _Part, level: int) -> None:
        for t in part.sections:
            self.top[t], self.second[t], self.owner[t] = _FAR, _FAR, -1
        for b in part.buffers:
            self.least[b] = max(self.base[b], level)
            top = self.least[b] + self.slabs[b].size
            for t in self.slabs[b].sections:
                if top < self.top[t]:
                    self.top[t], self.second[t], self.owner[t] = top, self.top[t], b
                else:
                    self.second[t] = min(self.second[t], top)

    def is_within_reach(self, part: _Part) -> bool:
        reach = {t: self.floor[t] for t in part.sections}
        for t in part.sections:
            self.lowest[t] = _FAR
        for b in part.buffers:
            for t in self.slabs[b].sections:
                self.lowest[t] = min(self.lowest[t], self.least[b])
                reach[t] = max(reach[t], self.least[b]) + self.slabs[b].size
        return max(reach.values()) <= self.capacity

    def is_in_the_way(self, part: _Part, b: int) -> bool:
        top = self.base[b] + self.slabs[b].size
        others = (a for a in part.buffers if a != b and self.least[a] < top)
        return any(self.slabs[a].meets(self.slabs[b]) for a in others)

    def infer(self, part: _Part) -> bool:
        """False: no solution agrees with what has been decided."""
        for b in part.buffers:
            self.lifted[b] = self.refused[b] or self.is_exchangeable(b)
        level = min((self.base[b] for b in part.buffers if not self.lifted[b]), default=_FAR)
        if level == _FAR:
            return False
        self.find_tops(part, level)
        lifted = [b for b in part.buffers if self.lifted[b]]
        for b in lifted:
            self.least[b] = max(self.least[b], self.least_top_beside(b))
            if self.least[b] == _FAR:
                return False
        part.buffers.sort(key=lambda b: (self.least[b], b))
        return self.is_within_reach(part) and all(self.is_in_the_way(part, b) for b in lifted)

    # --- decisions ------------------------------------------------------------------------------

    def is_next(self, b: int) -> bool:
        sections = self.slabs[b].sections
        return not self.lifted[b] and all(self.lowest[t] >= self.least[b] for t in sections)

    def count_choices(self, part: _Part) -> int:
        """The lowest buffer that is next; how many of them each section has is written down."""
        for t in part.sections:
            self.choices[t], self.next[t] = 0, _FAR
        ready = [b for b in part.buffers if self.is_next(b)]
        for b in part.buffers:
            is_ready = b in ready
            otherwise = self.least_top_beside(b) if is_ready else _FAR
            for t in self.slabs[b].sections:
                if self.least[b] > self.lowest[t]:
                    self.next[t] = min(self.next[t], self.least[b])
                    continue
                is_counted = is_ready and self.choices[t] >= 0
                self.choices[t] = self.choices[t] + 1 if is_counted else -1
                self.next[t] = min(self.next[t], otherwise)
        return ready[0]

    def urgent_section(self, part: _Part) -> int | None:
        urgent = [
            t
            for t in part.sections
            if 1 <= self.choices[t] <= FEW and self.next[t] > self.capacity - self.rest[t]
        ]
        return min(urgent, key=lambda t: (self.choices[t], self.lowest[t]), default=None)

    def choose(self, part: _Part) -> tuple[list[int], bool]:
        """Buffers to try at their bases, and whether one of them lies there in all solutions."""
        first = self.count_choices(part)
        section = self.urgent_section(part)
        if section is None:
            return [first], False
        living = (b for b in part.buffers if section in self.slabs[b].sections)
        return [b for b in living if self.least[b] == self.lowest[section]], True

    # --- search ---------------------------------------------------------------------------------

    def pieces(self, buffers: Sequence[int], sections: range, first: int, last: int) -> list[_Part]:
        """`buffers` in sections first <= s < last, cut after those of `sections` that nothing to be
        placed joins to the next."""
        cuts = [t + 1 for t in sections if not self.joined[t] and t + 1 < last]
        found = []
        for start, stop in zip([first, *cuts], [*cuts, last], strict=True):
            held = [
                b for b in buffers if start <= self.slabs[b].first and self.slabs[b].last <= stop
            ]
            if held:
                found.append(_Part(held, start, stop))
        return found

    def place(self, part: _Part, b: int) -> Found:
        slab = self.slabs[b]
        top = self.base[b] + slab.size
        before = [(a, self.base[a], self.refused[a]) for a in part.buffers]
        under = [(t, self.floor[t], self.highest[t]) for t in slab.sections]
        self.placed[b], self.offsets[b] = True, self.base[b]
        for a in part.buffers:
            if a != b and self.slabs[a].meets(slab) and self.base[a] < top:
                self.base[a], self.refused[a] = top, False
        for t in slab.sections:
            self.floor[t], self.highest[t] = top, b
            self.rest[t] -= slab.size
            self.joined[t] -= t + 1 < slab.last
        others = [a for a in part.buffers if a != b]
        within = range(slab.first, slab.last - 1)
        found = self.search_all(self.pieces(others, within, part.first, part.last))
        for t, floor, highest in under:
            self.floor[t], self.highest[t] = floor, highest
            self.rest[t] += slab.size
            self.joined[t] += t + 1 < slab.last
        for a, base, refused in before:
            self.base[a], self.refused[a] = base, refused
        self.placed[b] = False
        return found

    def search_all(self, parts: Sequence[_Part]) -> Found:
        for part in parts:
            found = self.search(part)
            if found is not Found.FITS:
                return found
        return Found.FITS

    def search(self, part: _Part) -> Found:
        tried: list[int] = []
        found, one_of_them = Found.FAILS, False
        while found is Found.FAILS and not one_of_them:
            if self.nodes == self.allowed:
                found = Found.ENDED
                break
            self.nodes += 1
            if not self.infer(part):
                break
            chosen, one_of_them = self.choose(part)
            for b in chosen:
                found = self.place(part, b)
                self.refused[b] = True
                tried.append(b)
                if found is not Found.FAILS:
                    break
        for b in tried:
            self.refused[b] = False
        return found


def pack_slowly(
    slabs: Sequence[Slab], sections: int, capacity: int, nodes: int
) -> tuple[Found, list[int], int]:
    """How the search ended, the offsets where it found some, and the nodes it took."""
    state = _State(slabs, sections, capacity, nodes)
    with _room_for(len(slabs)):
        pieces = state.pieces(range(len(slabs)), range(sections), 0, sections)
        found = state.search_all(pieces)
    return found, state.offsets, state.nodes


@contextmanager
def _room_for(buffers: int) -> Iterator[None]:
    """Three calls deep for each buffer placed."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 4 * buffers)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
