"""Index arithmetic of kernels as C++ text: loop counters, hoisted offsets, where lanes lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from rewright.codegen.cpp.text import factor_text, size_text
from rewright.ir import Size, divisible, equal, product
from rewright.ir.dims import bounds
from rewright.ir.loops import Affine, Axis

LANES = 16


@dataclass
class Counter:
    """A loop variable that runs over several axes in row-major order.

    `used` collects the axes that are read by themselves and have to be taken out of it.
    """

    name: str
    axes: tuple[Axis, ...]
    used: set[str] = field(default_factory=set)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(a.name for a in self.axes)

    @property
    def count(self) -> Size:
        return product(a.size for a in self.axes)

    def part_of(self, at: Affine) -> Affine:
        """The terms of `at` that this counter moves."""
        return Affine(tuple(t for t in at.terms if t[0] in self.names))

    def factor(self, at: Affine) -> Size | None:
        """k where the terms that this counter moves are `k * counter`; 0 when there are none."""
        if not any(name in self.names for name, _ in at.terms):
            return 0
        inner, steps = at.coefficient(self.axes[-1].name), 1
        total: Size = steps
        for axis in reversed(self.axes):
            if not equal(at.coefficient(axis.name), inner * total):
                return None
            total = total * axis.size
        return inner

    def terms(self, at: Affine, moved: str = "") -> list[tuple[Size, str]]:
        """(coefficient, variable) of each term. `moved` stands for the counter itself."""
        factor = self.factor(at)
        if factor is not None:
            return [(factor, moved or self.name)] if factor != 0 else []
        found = []
        for name, coefficient in self.part_of(at).terms:
            if not moved:
                self.used.add(name)
            found.append((coefficient, self.digit(name, moved) if moved else name))
        return found

    def digit(self, name: str, counter: str) -> str:
        """The value of one axis as an expression of the counter."""
        place = [a.name for a in self.axes].index(name)
        below = product(a.size for a in self.axes[place + 1 :])
        text = counter if below == 1 else f"{counter} / {factor_text(below)}"
        return text if place == 0 else f"{text} % {factor_text(self.axes[place].size)}"

    def taken_apart(self) -> list[str]:
        """Lines that define the axes read by themselves."""
        if self.name in self.names:
            return []
        names = [a.name for a in self.axes if a.name in self.used]
        return [f"const i64 {name} = {self.digit(name, self.name)};" for name in names]


def counter(name: str, axes: Sequence[Axis]) -> Counter:
    """A counter over `axes`; a single axis counts under its own name."""
    return Counter(axes[0].name if len(axes) == 1 else name, tuple(axes))


@dataclass(frozen=True)
class Access:
    """Where the lanes of a step lie.

    Lane 0 is at `start`, each lane `step` further; None: `start` is an expression of lane `l`.
    Then `run`, if any, is how many lanes follow each other in memory before a jump, of which a
    step has at most one.
    """

    start: str
    step: Size | None
    run: str = ""


class Block:
    """The lines of one C++ block and the counter it loops over (None: the kernel itself).

    Offsets that an inner block needs and that this block's counter decides get names here.
    """

    def __init__(self, counter: Counter | None, parent: Block | None, numbers: count[int]) -> None:
        self.counter = counter
        self.parent = parent
        self.lines: list[str] = []
        self._numbers = numbers
        self._offsets: dict[Affine, str] = {}

    def text(self) -> list[str]:
        """Every line of the block: axes, offsets, then statements."""
        offsets = [f"const i64 {n} = {self.index(at)};" for at, n in self._offsets.items()]
        axes = self.counter.taken_apart() if self.counter else []
        return [*axes, *offsets, *self.lines]

    def index(self, at: Affine, moved: str = "") -> str:
        """`at` as an expression in this block. `moved` stands for this block's counter."""
        own = self.counter.terms(at, moved) if self.counter else []
        inner = self.counter.part_of(at) if self.counter else Affine()
        rest = Affine(tuple(t for t in at.terms if t not in inner.terms), at.offset)
        if self.parent is None or not rest.terms:
            return sum_text(own, rest.offset)
        return sum_text([(1, self.parent.offset(rest)), *own], 0)

    def offset(self, at: Affine) -> str:
        """The name of an offset that is computed once in this block or outside of it."""
        if self.parent is not None and not (self.counter and self.counter.part_of(at).terms):
            return self.parent.offset(at)
        if at not in self._offsets:
            text = self.index(at)
            if text.isidentifier():
                return text
            self._offsets[at] = f"o{next(self._numbers)}"
        return self._offsets[at]


def sum_text(terms: Sequence[tuple[Size, str]], offset: Size) -> str:
    """`terms` and `offset` added up; a leading minus only where nothing else can lead."""
    plus = [_product(c, name) for c, name in terms if not _negative(c)]
    minus = [_product(-c, name) for c, name in terms if _negative(c)]
    if offset != 0 or not terms:
        (minus if _negative(offset) else plus).append(
            size_text(-offset if _negative(offset) else offset)
        )
    text = " + ".join(plus)
    for part in minus:
        text += f" - {part}" if text else f"-{part}"
    return text


def _negative(size: Size) -> bool:
    return isinstance(size, int) and size < 0


def _product(coefficient: Size, name: str) -> str:
    if coefficient == 1:
        return name
    wrapped = name if name.isidentifier() else f"({name})"
    return f"{wrapped} * {factor_text(coefficient)}"


@dataclass(frozen=True)
class Place:
    """Where statements are printed: a block, and the counter that the lanes run along.

    `lanes` is None where every lane is the same element. `shift` is how many elements of the
    counter the current vector lies further, as a product's text.
    """

    block: Block
    lanes: Counter | None = None
    shift: str = ""

    def moves(self, at: Affine) -> bool:
        """True when `at` differs from lane to lane."""
        return self.lanes is not None and bool(self.lanes.part_of(at).terms)

    def access(self, at: Affine) -> Access:
        if self.lanes is None or not self.moves(at):
            return Access(self.block.index(at), 0)
        factor = self.lanes.factor(at)
        if factor is not None:
            return Access(self._shifted(self.block.index(at), factor), factor)
        if divisible(self.lanes.axes[-1].size, LANES):
            return Access(self.block.index(at), at.coefficient(self.lanes.axes[-1].name))
        return Access(self.block.index(at, f"({self.lanes.name} + l)"), None, self._run(at))

    def _run(self, at: Affine) -> str:
        """Lanes up to the end of the innermost axis, where elements of that lie side by side."""
        assert self.lanes is not None
        inner = self.lanes.axes[-1]
        if at.coefficient(inner.name) != 1 or bounds(inner.size)[0] < LANES:
            return ""
        return f"{size_text(inner.size)} - {self.lanes.name} % {factor_text(inner.size)}"

    def of_lane(self, at: Affine) -> str:
        """`at` as an expression of the lane `l`."""
        access = self.access(at)
        if access.step is None or access.step == 0:
            return access.start
        return f"{access.start} + {_product(access.step, 'l')}"

    def _shifted(self, text: str, factor: Size) -> str:
        if not self.shift:
            return text
        return f"{text} + {self.shift}" + ("" if factor == 1 else f" * {factor_text(factor)}")
