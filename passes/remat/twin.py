"""What `ir/native/remat.c` does, in Python, move for move: it serves where there is no compiler,
and shows that the C means what it says.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from .problem import Order, Problem

if TYPE_CHECKING:
    from .anneal import Settings

BLOCKS, DEPTH, MOST_ADDED, TRIES, NEAR = 64, 24, 96, 24, 96
MOST_WANTED, MOST_EXCHANGED = 3, 3
NOTABLE: Final = 1e-5
_WORD: Final = (1 << 64) - 1


class _Chance:
    """xorshift64* (Vigna, 2016)."""

    def __init__(self, seed: int) -> None:
        self.state = (2 * seed + 1) & _WORD

    def next(self) -> int:
        x = self.state
        x ^= x >> 12
        x ^= (x << 25) & _WORD
        x ^= x >> 27
        self.state = x
        return (x * 2685821657736338717) & _WORD

    def below(self, n: int) -> int:
        return (self.next() >> 32) * n >> 32

    def uniform(self) -> float:
        return (self.next() >> 11) * (1.0 / 9007199254740992.0)


@dataclass(frozen=True)
class _Change:
    """A step that was put into a slot, or taken out of it."""

    step: int
    slot: int
    put: bool


class _State:
    """Steps in slots. Of each value `events` are the slots that make and read it, doubled, those
    that make it odd."""

    def __init__(self, problem: Problem, settings: Settings, slots: int) -> None:
        self.steps, self.problem, self.settings = problem.steps, problem, settings
        self.slots, self.chance = slots, _Chance(settings.seed)
        self.slot = [-1] * slots
        self.events: list[list[int]] = [[] for _ in problem.sizes]
        self.runs = [0] * len(problem.steps)
        self.filled: list[int] = []
        self.place: dict[int, int] = {}
        self.live = np.zeros(slots, np.int64)
        self.seconds = self.limit = 0.0
        self.changes: list[_Change] = []
        self.added = 0

    # --- lifetimes --------------------------------------------------------------------------

    def count(self, value: int, sign: int) -> None:
        """Add all lifetimes of a value, or take them away."""
        events, size = self.events[value], sign * self.problem.sizes[value]
        made = [i for i, e in enumerate(events) if e & 1]
        for i, end in zip(made, [*made[1:], len(events)], strict=False):
            last = events[end - 1] >> 1
            if value in self.problem.kept:
                last = events[i] >> 1 if i else self.slots - 1
            self.live[events[i] >> 1 : last + 1] += size

    def touch(self, step: int, slot: int, put: bool) -> None:
        """Put a step into an empty slot, or take it out."""
        it = self.steps[step]
        reads = dict.fromkeys(it.reads)
        for value, event in [
            *((v, 2 * slot) for v in reads),
            *((v, 2 * slot + 1) for v in it.makes),
        ]:
            self.count(value, -1)
            if put:
                insort(self.events[value], event)
            else:
                self.events[value].remove(event)
            self.count(value, 1)
        sign = 1 if put else -1
        self.live[slot] += sign * it.workspace
        self.runs[step] += sign
        self.slot[slot] = step if put else -1
        self.seconds += sign * it.seconds
        if put:
            self.place[slot] = len(self.filled)
            self.filled.append(slot)
            return
        last, own = self.filled.pop(), self.place.pop(slot)
        if last != slot:
            self.filled[own] = last
            self.place[last] = own

    def put(self, step: int, slot: int) -> None:
        self.touch(step, slot, True)
        self.changes.append(_Change(step, slot, True))

    def take(self, slot: int) -> None:
        step = self.slot[slot]
        self.touch(step, slot, False)
        self.changes.append(_Change(step, slot, False))

    def undo(self) -> None:
        while self.changes:
            change = self.changes.pop()
            self.touch(change.step, change.slot, not change.put)

    # --- moves ------------------------------------------------------------------------------

    def is_last(self, value: int, place: int) -> bool:
        """True when an event is the last one of its lifetime."""
        events = self.events[value]
        return place + 1 == len(events) or bool(events[place + 1] & 1)

    def again_before(self, value: int, slot: int, peak: int, patience: float, depth: int) -> bool:
        step, chance = self.problem.maker[value], self.chance
        if not self.steps[step].again or depth == DEPTH or self.added == MOST_ADDED:
            return False
        at = next(
            (t for t in range(slot - 1, max(-1, slot - NEAR - 1), -1) if self.slot[t] < 0), -1
        )
        if at <= peak or self.seconds + self.steps[step].seconds > self.limit:
            return False
        self.added += 1
        self.put(step, at)
        sizes = self.problem.sizes
        for read in dict.fromkeys(self.steps[step].reads):
            events = self.events[read]
            own = bisect_left(events, 2 * at)
            if own == 0:
                return False
            is_kept = read in self.problem.kept
            if not self.is_last(read, own) or is_kept or events[own - 1] >> 1 > peak:
                continue
            if sizes[read] * patience <= sizes[value] * chance.uniform():
                continue
            if not self.again_before(read, at, peak, patience, depth + 1):
                return False
        return True

    def held_for(self, value: int, slot: int) -> int:
        events = self.events[value]
        after = bisect_left(events, 2 * slot)
        if after in (0, len(events)) or events[after] & 1 or value in self.problem.kept:
            return -1
        return -1 if events[after] >> 1 == slot else events[after] >> 1

    def drop_over(self, peak: int) -> bool:
        sizes = self.problem.sizes
        found, wanted = -1, 1 + self.chance.below(MOST_WANTED)
        for _ in range(TRIES):
            if not wanted:
                break
            value = self.chance.below(len(sizes))
            if not sizes[value] or self.held_for(value, peak) < 0:
                continue
            if found < 0 or sizes[value] > sizes[found]:
                found = value
            wanted -= 1
        if found < 0:
            return False
        patience = 0.5 + 4 * self.chance.uniform()
        return self.again_before(found, self.held_for(found, peak), peak, patience, 0)

    def needed_at(self, slot: int) -> int:
        first = self.slots
        for value in self.steps[self.slot[slot]].makes:
            made, *after = self.events[value][:2]
            if made == 2 * slot + 1 and after and not after[0] & 1:
                first = min(first, after[0] >> 1)
        return first

    def ready_at(self, step: int) -> int:
        made = (self.events[value][0] >> 1 for value in self.steps[step].reads)
        return max(made, default=-1) + 1

    def take_again(self, slot: int, depth: int) -> bool:
        step = self.slot[slot]
        if self.runs[step] < 2 or self.needed_at(slot) < self.slots:
            return False
        self.take(slot)
        for read in dict.fromkeys(self.steps[step].reads) if depth < DEPTH else ():
            events = self.events[read]
            group = bisect_left(events, 2 * slot) - 1
            while group >= 0 and not events[group] & 1:
                group -= 1
            if group < 0 or not self.is_last(read, group):
                continue
            made = events[group] >> 1
            kept = self.problem.kept
            others = (v for v in self.steps[self.problem.maker[read]].makes if v not in kept)
            places = ((v, bisect_left(self.events[v], 2 * made)) for v in others)
            if read not in kept and all(self.is_last(*place) for place in places):
                self.take_again(made, depth + 1)
        return True

    def take_some(self) -> bool:
        for _ in range(TRIES):
            slot = self.filled[self.chance.below(len(self.filled))]
            if self.runs[self.slot[slot]] > 1:
                return self.take_again(slot, 0)
        return False

    def exchange_some(self) -> bool:
        if not self.take_some():
            return False
        for _ in range(MOST_EXCHANGED):
            if self.live.max() <= self.settings.budget:
                break
            if not self.drop_over(int(self.live.argmax())):
                return False
        return True

    def add_some(self) -> bool:
        step = self.slot[self.filled[self.chance.below(len(self.filled))]]
        slot = self.chance.below(self.slots)
        if not self.steps[step].again or self.slot[slot] >= 0 or slot < self.ready_at(step):
            return False
        if self.seconds + self.steps[step].seconds > self.limit:
            return False
        self.put(step, slot)
        return True

    def shift_some(self) -> bool:
        slot = self.filled[self.chance.below(len(self.filled))]
        step = self.slot[slot]
        far = int(math.exp(self.chance.uniform() * math.log(self.slots)))
        to = slot + (far if self.chance.next() >> 63 else -far)
        if not 0 <= to < self.slots or self.slot[to] >= 0:
            return False
        if not self.ready_at(step) <= to < self.needed_at(slot):
            return False
        self.take(slot)
        self.put(step, to)
        return True

    def some_peak(self) -> int:
        if self.chance.next() >> 63:
            return int(self.live.argmax())
        block = self.chance.below(BLOCKS)
        part = self.live.reshape(BLOCKS, -1)[block]
        if part.max() <= self.settings.budget:
            return int(self.live.argmax())
        return block * len(part) + int(part.argmax())

    def move(self) -> bool:
        which = self.chance.uniform()
        self.changes.clear()
        self.added = 0
        if which < 0.25:
            return self.drop_over(self.some_peak())
        if which < 0.65:
            return self.take_some() if which < 0.40 else self.exchange_some()
        return self.shift_some() if which < 0.95 else self.add_some()

    def fits(self) -> bool:
        return bool(self.live.max() <= self.settings.budget)

    def worth(self) -> float:
        budget = float(self.settings.budget)
        over = float(self.live.max()) - budget
        found = math.log(self.seconds)
        if over <= 0:
            return found
        total = 0.0
        for peak in self.live.reshape(BLOCKS, -1).max(1).tolist():
            if peak > self.settings.budget:
                total += (peak - budget) / budget
        return found + self.settings.stiff * (over / budget + total / BLOCKS)

    def order(self) -> list[int]:
        return [step for step in self.slot if step >= 0]


def anneal_slowly(problem: Problem, order: Order, settings: Settings, slots: int) -> list[int]:
    """The best order found, of those within the budget if there are any."""
    state = _State(problem, settings, slots)
    apart = slots / (len(order) + 1)
    for i, step in enumerate(order):
        state.put(step, int((i + 1) * apart))
    best, now = list(order), state.worth()
    least, best_fits, moves = now, state.fits(), settings.moves
    cooling = math.log(settings.cold / settings.hot)
    for n in range(moves):
        heat = settings.hot * math.exp(cooling * n / moves)
        limit = now - heat * math.log(state.chance.uniform() + 1e-300)
        state.limit = math.exp(limit)
        if not state.move():
            state.undo()
            continue
        then = state.worth()
        if then > limit:
            state.undo()
            continue
        now, fits = then, state.fits()
        if fits > best_fits or (fits == best_fits and now < least - NOTABLE):
            least, best_fits, best = now, fits, state.order()
    return state.order() if state.fits() >= best_fits and now < least else best
