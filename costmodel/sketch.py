"""Sketches: what one kernel of some nodes would do, in numbers, without building it.

Fusion asks about thousands of candidates, each a group with one more node; so a draft of a group
grows by what is added and nothing is counted again. Sizes are taken at their hints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rewright.costmodel.facts import Facts, facts
from rewright.ir import Node, Value
from rewright.ir.loops import is_view, view_roots

Classes = tuple[int, int, int, int]
# Makes the kernels that sketches are of, as regions; None when one of them cannot be made.
Kernels = Callable[[], Sequence[Node] | None]


class Sketch(NamedTuple):
    """What a kernel does. Counts are of one run; bytes are of distinct memory.

    `rows` is 0 without reductions; `columns` is true when lanes run along rows. `work` counts
    simple operations, divisions and roots, exponentials, tangents and powers; `again` is how much
    of it, in simple operations, is done again. `read` are bytes by way: contiguous, small
    (broadcast), strided, gathered. `kept` are bytes of values that stay inside. `halves`, `doubles`
    and `integers` are bytes read or written of such types.
    """

    elements: int
    rows: int
    columns: bool
    inner: int
    nodes: int
    reductions: int
    sweeps: int
    work: tuple[int, int, int, int]
    again: int
    reads: int
    writes: int
    read: tuple[int, int, int, int]
    written: int
    strided: int
    kept: int
    halves: int
    doubles: int
    integers: int
    guarded: int

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return sum(self.read) + self.written


def weighed(simple: int, divisions: int, exponentials: int, powers: int) -> int:
    """Operations in simple ones."""
    return simple + 4 * divisions + 8 * exponentials + 16 * powers


class Draft:
    """A kernel of nodes that are added one by one, in any order. Values go by number."""

    def __init__(self) -> None:
        self.parts: list[Facts] = []
        self.leaving: set[int] = set()
        self._read: dict[int, dict[int, tuple[int, int]]] = {}
        self._made: dict[int, tuple[int, int]] = {}
        # By (elements, with rows): nodes of one space are all done as often as each other.
        self._work: dict[tuple[int, bool], Classes] = {}
        self._ways, self._widths = [0, 0, 0, 0], [0, 0, 0, 0]
        self._reads = self._written = self._kept = 0
        self._space = self._rows = self._strided = self._guarded = self._reductions = 0
        self._columns, self._sweeps = False, 1
        self._largest = (0, 0)

    def joined(self, other: Draft, leaves: Callable[[int], bool]) -> Draft:
        """One kernel of both; of the values that one makes and the other reads, those that `leaves`
        holds for are still given."""
        large, small = (self, other) if len(self.parts) >= len(other.parts) else (other, self)
        draft = large._copy()
        inner = [number for part in small.parts for number in draft.add(part)]
        for number in small.leaving:
            draft.give(number)
        for number in inner:
            if number in draft.leaving and not leaves(number):
                draft._keep(number)
        return draft

    def add(self, part: Facts) -> list[int]:
        """Add a node; returns the values that it reads of others here, or they of it."""
        inner = [read[0] for read in part.reads if not self._add_read(*read)]
        for number, nbytes, width in part.writes:
            self._made[number] = nbytes, width
            self._kept += nbytes
            if number in self._read:
                inner.append(number)
                for way, (seen, of) in self._read.pop(number).items():
                    self._count_read(way, -seen, of, -1)
        key = part.elements, part.rows > 0
        before = self._work.get(key, (0, 0, 0, 0))
        self._work[key] = tuple(map(sum, zip(before, part.work, strict=True)))  # type: ignore[assignment]
        self._add_numbers(part)
        self.parts.append(part)
        return inner

    def give(self, number: int) -> None:
        """Something outside reads that value, which is made here."""
        if number not in self.leaving:
            self.leaving.add(number)
            self._move(number, 1)

    def sketch(self) -> Sketch:
        work, again = self._work_done()
        return Sketch(
            elements=self._space,
            rows=self._rows,
            columns=self._columns,
            inner=-self._largest[1],
            nodes=len(self.parts),
            reductions=self._reductions,
            sweeps=self._sweeps,
            work=work,
            again=again,
            reads=self._reads,
            writes=len(self.leaving),
            read=(self._ways[0], self._ways[1], self._ways[2], self._ways[3]),
            written=self._written,
            strided=self._strided,
            kept=self._kept,
            halves=self._widths[0],
            doubles=self._widths[1],
            integers=self._widths[2],
            guarded=self._guarded,
        )

    def _copy(self) -> Draft:
        draft = Draft.__new__(Draft)
        draft.__dict__ = {
            name: value.copy() if isinstance(value, (list, set, dict)) else value
            for name, value in self.__dict__.items()
        }
        return draft

    def _add_read(self, number: int, way: int, nbytes: int, width: int) -> bool:
        """False for a value that is made here."""
        if number in self._made:
            return False
        ways = self._read.get(number, {})
        before, _ = ways.get(way, (0, width))
        if nbytes > before:
            # A new dictionary: copies of this draft hold the old one.
            self._read[number] = {**ways, way: (nbytes, width)}
            self._count_read(way, nbytes - before, width, before == 0)
        return True

    def _count_read(self, way: int, nbytes: int, width: int, reads: int) -> None:
        self._ways[way] += nbytes
        self._widths[width] += nbytes
        self._reads += reads

    def _keep(self, number: int) -> None:
        self.leaving.discard(number)
        self._move(number, -1)

    def _move(self, number: int, sign: int) -> None:
        """A value that is made here from the kept to the written, or back."""
        nbytes, width = self._made[number]
        self._written += sign * nbytes
        self._kept -= sign * nbytes
        self._widths[width] += sign * nbytes

    def _add_numbers(self, part: Facts) -> None:
        self._space = max(self._space, part.elements)
        self._rows = max(self._rows, part.rows)
        self._columns |= part.columns
        self._sweeps = max(self._sweeps, part.sweeps)
        self._strided += part.strided_writes
        self._guarded += part.guarded
        self._reductions += part.rows > 0
        # Of the largest nodes the shortest inner loop: that one hurts.
        self._largest = max(self._largest, (part.elements + part.rows, -part.inner))

    def _work_done(self) -> tuple[Classes, int]:
        """Operations by class, and how many of them are done again: what is small and moves into a
        larger space, and what feeds a reduction that goes over its columns several times."""
        simple = divisions = exponentials = powers = again = 0
        sweeps = self._sweeps if self._columns else 1
        for (elements, with_rows), (a, b, c, d) in self._work.items():
            times = 1 if with_rows else sweeps
            if not self._rows and 0 < elements < self._space:
                times = self._space // elements
            simple += times * a
            divisions += times * b
            exponentials += times * c
            powers += times * d
            again += (times - 1) * weighed(a, b, c, d)
        return (simple, divisions, exponentials, powers), again


class Sketcher:
    """Drafts of nodes of one graph; `root_of` gives the value behind a chain of views."""

    def __init__(self, root_of: Callable[[Value], Value]) -> None:
        self.values: list[Value] = []
        self._root_of = root_of
        self._numbers: dict[Value, int] = {}

    def draft(self, nodes: Iterable[Node], leaving: Iterable[Value]) -> Draft:
        """One kernel of `nodes` that gives the values `leaving`, which they make."""
        draft = Draft()
        for node in nodes:
            draft.add(facts(node, self._number))
        for value in leaving:
            draft.give(self._numbers[value])
        return draft

    def _number(self, value: Value) -> int:
        """Its place in `values`, of what is behind views."""
        root = self._root_of(value)
        found = self._numbers.get(root)
        if found is None:
            found = self._numbers[root] = len(self.values)
            self.values.append(root)
        return found


def sketch_region(region: Node) -> Sketch:
    """What the kernel of a region does."""
    body = region.graph("body")
    roots = view_roots(body)
    made = {v for node in body.nodes for v in node.results}
    leaving = dict.fromkeys(roots[v] for v in body.returned if roots[v] in made)
    nodes = [node for node in body.nodes if not is_view(node)]
    return Sketcher(roots.__getitem__).draft(nodes, leaving).sketch()
