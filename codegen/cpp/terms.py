"""Terms and statements of the loop IR as lines of C++ over vectors of 16 lanes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from rewright.codegen.cpp.index import Access, Place
from rewright.codegen.cpp.text import STORAGE, VECTOR, factor_text, number_text, size_text
from rewright.ir import Size
from rewright.ir.loops import (
    Affine,
    Apply,
    Convert,
    Inside,
    Let,
    Load,
    Number,
    Position,
    Ref,
    Round,
    Store,
    Term,
    Within,
)

# What simd.h calls a primitive where it has another name, by the type of the operands.
OF_NUMBERS: Final = {f"bit_{name}": f"bitwise_{name}" for name in ("and", "or", "xor", "not")}
OF_MASKS: Final = {f"bit_{name}": f"logical_{name}" for name in ("and", "or", "xor", "not")}


@dataclass(frozen=True)
class Guard:
    """When a read may happen: `condition` for all lanes alike ("" always), lanes from the largest
    of `low` to the smallest of `high`, and `each`, conditions on lane `l`."""

    condition: str
    low: tuple[str, ...]
    high: tuple[str, ...]
    each: tuple[str, ...]


@dataclass(frozen=True)
class Printer:
    """Prints what is evaluated at one place. `names` gives identifiers to buffers, `refs` the text
    of scalars that are not variables of their own name. Contiguous reads of the buffers `ahead`
    also ask for what follows."""

    place: Place
    names: Mapping[str, str]
    refs: Callable[[str], str]
    ahead: frozenset[str] = frozenset()

    # --- statements -----------------------------------------------------------------------------

    def let(self, statement: Let) -> str:
        type = VECTOR[statement.term.dtype]
        return f"const {type} {statement.name} = {self.term(statement.term)};"

    def store(self, statement: Store) -> str:
        access, name = self.place.access(statement.at), self.names[statement.buffer]
        value = self.refs(statement.value.name)
        if access.step == 0:
            return f"store({_at(name, access.start)}, {value}, 1);"
        if access.step == 1:
            return f"store({_at(name, access.start)}, {value}, n);"
        if access.step is not None:
            step = size_text(access.step)
            return f"store_strided({_at(name, access.start)}, {value}, {step}, n);"
        index = _lane_function(access.start)
        if access.run:
            return f"store_across({name}, {value}, {access.run}, n, {index});"
        return f"store_each({name}, {value}, n, {index});"

    # --- terms ----------------------------------------------------------------------------------

    def term(self, term: Term) -> str:
        match term:
            case Ref(name=name):
                return self.refs(name)
            case Number():
                return splat(term)
            case Load():
                return self._load(term)
            case Position():
                return self._position(term)
            case Inside():
                return self._inside(self._guard(term.guards))
            case Apply():
                return self._apply(term)
            case Convert():
                return f"cast<{STORAGE[term.dtype]}>({self.term(term.arg)})"
            case Round():
                return f"round_to<{STORAGE[term.storage]}>({self.term(term.arg)})"
        raise AssertionError(f"unknown term {term}")

    def _apply(self, term: Apply) -> str:
        names = OF_MASKS if term.args[-1].dtype == torch.bool else OF_NUMBERS
        name = names.get(term.name, term.name)
        return f"{name}({', '.join(self.term(a) for a in term.args)})"

    def _position(self, position: Position) -> str:
        access, type = self.place.access(position.at), STORAGE[position.dtype]
        if access.step is None:
            return f"positions_each<{type}>({_lane_function(access.start)})"
        if access.step == 0:
            return f"splat<{type}>({access.start})"
        return f"positions<{type}>({access.start}, {size_text(access.step)})"

    # --- reads ----------------------------------------------------------------------------------

    def _load(self, load: Load) -> str:
        name = self.names[load.buffer]
        access, guard = self.place.access(load.at), self._guard(load.guards)
        moves = bool(guard.low or guard.each)
        if not moves:
            text = self._plain(name, access, "load_ahead" if load.buffer in self.ahead else "load")
            zero = f"{VECTOR[load.dtype]}{{}}"
            return f"({guard.condition} ? {text} : {zero})" if guard.condition else text
        if access.step == 1 and not guard.each:
            low, high = _bounds(guard)
            return f"load_window({_at(name, access.start)}, {low}, {high}, n)"
        index = _lane_function(self.place.of_lane(load.at))
        where = _lane_function(self._of_lane(load.guards))
        return f"load_where({name}, n, {index}, {where})"

    def _plain(self, name: str, access: Access, load: str) -> str:
        if access.step is None:
            index = _lane_function(access.start)
            if access.run:
                return f"load_across({name}, {access.run}, n, {index})"
            return f"load_each({name}, n, {index})"
        at = _at(name, access.start)
        if access.step == 0:
            return f"broadcast({at})"
        return f"{load}({at}, n)" if access.step == 1 else f"load_strided({at}, {_step(access)}, n)"

    def _inside(self, guard: Guard) -> str:
        if guard.each:
            bounds = zip(guard.low, guard.high, strict=True)
            windows = [f"within(l, {low}, {high})" for low, high in bounds]
            conditions = [c for c in (guard.condition, *windows, *guard.each) if c]
            return f"mask_each({_lane_function(' && '.join(conditions))})"
        if guard.low:
            low, high = _bounds(guard)
            return f"window({low}, {high})"
        return f"splat({guard.condition or 'true'})"

    def _guard(self, guards: Sequence[Within]) -> Guard:
        """Sort guards by how they move with the lanes."""
        conditions: list[str] = []
        low: list[str] = []
        high: list[str] = []
        each: list[str] = []
        for guard in guards:
            step = self.place.access(guard.at).step
            if step == 0:
                conditions.append(self._of_lane((guard,)))
            elif step == 1:
                low.append(self._until(guard.low, guard.at))
                high.append(self._until(guard.high, guard.at))
            else:
                each.append(self._of_lane((guard,)))
        return Guard(" && ".join(conditions), tuple(low), tuple(high), tuple(each))

    def _until(self, bound: Size, at: Affine) -> str:
        """Lanes left until `at` reaches `bound`."""
        return self.place.access(at.scaled(-1).shifted(bound)).start

    def _of_lane(self, guards: Sequence[Within]) -> str:
        """All of `guards` as a condition on lane `l`."""
        return " && ".join(
            f"within({self.place.of_lane(g.at)}, {size_text(g.low)}, {size_text(g.high)})"
            for g in guards
        )


def splat(number: Number) -> str:
    """The number in every lane."""
    return f"splat<{STORAGE[number.dtype]}>({number_text(number.value, number.dtype)})"


def _bounds(guard: Guard) -> tuple[str, str]:
    low, high = guard.low[0], guard.high[0]
    for other_low, other_high in zip(guard.low[1:], guard.high[1:], strict=True):
        low, high = f"size_max({low}, {other_low})", f"size_min({high}, {other_high})"
    return low, f"({guard.condition} ? {high} : 0)" if guard.condition else high


def _at(name: str, start: str) -> str:
    return name if start == "0" else f"{name} + {start}"


def _step(access: Access) -> str:
    assert access.step is not None
    return factor_text(access.step)


def _lane_function(text: str) -> str:
    return f"[=](i64 l) {{ return {text}; }}"
