"""The learned cost model: forests over features of calls, between bounds that hold.

The prediction of a call is the mean of two forests in log time: one predicts how far the call lies
above its floor (which carries over to sizes and machines it has not seen), the other the time
itself. Bounds come from forests of quantiles, widened by what held-out families of models needed
(conformalized quantile regression: Romano, Patterson, Candès, 2019; by groups of calls). A call
unlike all that the model was trained on is answered by the roofline, between its wide bounds, and
says so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rewright.costmodel.estimate import NOTHING, Estimate, show_seconds, total
from rewright.costmodel.features import Features, features, sketch_features
from rewright.costmodel.forest import Floats, Forest
from rewright.costmodel.roofline import Roofline, call_key
from rewright.costmodel.sketch import Sketch
from rewright.ir import Node, Value, is_call
from rewright.ir.target import Target

# Calls are grouped by what they take: to 10 us, 100 us, 1 ms, and longer.
GROUPS: Final = (1e-5, 1e-4, 1e-3)


@dataclass(frozen=True)
class Gate:
    """What a head was trained on: the span of every feature, and calls spread over all of them.

    Out of it is what leaves the span by more than `margin` of its width, or lies farther than
    `reach` from every kept call (in features scaled to one unit).
    """

    low: Floats
    high: Floats
    kept: Floats
    reach: float

    MARGIN = 0.1

    def admits(self, rows: Floats) -> NDArray[np.bool_]:
        """[n, features] -> [n]."""
        width = np.maximum(self.high - self.low, 1e-6)
        scaled = (rows - self.low) / width
        inside = ((scaled >= -self.MARGIN) & (scaled <= 1 + self.MARGIN)).all(1)
        return inside & (self.distance(rows) <= self.reach)

    def distance(self, rows: Floats) -> Floats:
        """To the nearest kept call, the mean over the features."""
        width = np.maximum(self.high - self.low, 1e-6)
        scaled, kept = (rows - self.low) / width, (self.kept - self.low) / width
        apart: Floats = np.abs(scaled[:, None, :] - kept[None, :, :]).mean(2).min(1)
        return apart


@dataclass(frozen=True)
class Head:
    """The model of one family of calls.

    `widen` is added to both bounds, by group (see `GROUPS`); `usual` is the logarithm of what calls
    of an operator usually take over their floor.
    """

    residual: Forest
    absolute: Forest
    low: Forest
    high: Forest
    widen: Floats
    gate: Gate
    usual: Mapping[str, float] = field(default_factory=dict)

    def knows(self, operators: Sequence[str]) -> NDArray[np.bool_]:
        """Which operators it was trained on; kernels have none."""
        return np.array([not name or name in self.usual for name in operators])

    def predict(self, rows: Floats, floors: Floats) -> tuple[Floats, Floats, Floats]:
        """Seconds and both bounds, each [n]."""
        logs = (self.residual.predict(rows) + np.log(floors) + self.absolute.predict(rows)) / 2
        widen = self.widen[np.searchsorted(GROUPS, np.exp(logs))]
        low = np.minimum(self.low.predict(rows) - widen, 0)
        high = np.maximum(self.high.predict(rows) + widen, 0)
        return np.exp(logs), np.exp(logs + low), np.exp(logs + high)


def filled(rows: Floats, operators: Sequence[str], usual: Mapping[str, float]) -> Floats:
    """Features with the first column of operators filled in."""
    named = np.array([bool(name) for name in operators])
    found = np.array([usual.get(name, 0.0) for name in operators])
    first = np.where(named, found, rows[:, 0])
    return np.concatenate((first[:, None], rows[:, 1:]), axis=1)


class Learned:
    """A `CostModel`. Equal calls are estimated once.

    `scale` corrects the times of each family for this machine (see `rewright calibrate`).
    """

    def __init__(
        self,
        target: Target,
        heads: Mapping[str, Head],
        screen: Forest | None,
        basis: str,
        scale: Mapping[str, float] | None = None,
    ) -> None:
        self.target = target
        self._heads, self._screen, self._basis = heads, screen, basis
        self._scale = dict(scale or {})
        self._roofline = Roofline(target)
        self._by_structure: dict[Hashable, Estimate] = {}
        self._by_identity: dict[tuple[int, int], tuple[Node, Estimate]] = {}
        self._screened: dict[Sketch, float] = {}

    # --- calls ------------------------------------------------------------------------------

    def estimate(self, nodes: Sequence[Node], cold: Collection[Value] = ()) -> list[Estimate]:
        bytes_cold = [_cold_bytes(node, cold) for node in nodes]
        keys = [(id(node), n) for node, n in zip(nodes, bytes_cold, strict=True)]
        new = {
            key: (node, n)
            for key, node, n in zip(keys, nodes, bytes_cold, strict=True)
            if key not in self._by_identity
        }
        self._add(new)
        return [self._by_identity[key][1] for key in keys]

    def _add(self, new: Mapping[tuple[int, int], tuple[Node, int]]) -> None:
        """Estimate nodes that nobody asked about before, all of a family at once."""
        structures: dict[Hashable, tuple[Node, int]] = {}
        of: dict[tuple[int, int], Hashable] = {}
        for key, (node, n) in new.items():
            of[key] = structure = (call_key(node), n)
            if structure not in self._by_structure:
                structures.setdefault(structure, (node, n))
        found = self._estimates(list(structures.values()))
        self._by_structure.update(zip(structures, found, strict=True))
        for key, (node, _) in new.items():
            self._by_identity[key] = node, self._by_structure[of[key]]

    def _estimates(self, calls: Sequence[tuple[Node, int]]) -> list[Estimate]:
        answers = self._roofline.estimate([node for node, _ in calls])
        by_family: dict[str, list[tuple[int, Features]]] = {}
        for place, (node, n) in enumerate(calls):
            if is_call(node) and node.results:
                found = features(node, self.target, n)
                by_family.setdefault(found.family, []).append((place, found))
        for family, members in by_family.items():
            for (place, _), answer in zip(
                members, self._of_family(family, [f for _, f in members]), strict=True
            ):
                if answer is not None:
                    answers[place] = answer
                elif answers[place] is not NOTHING:
                    answers[place] = self._by_roofline(answers[place], family)
        return answers

    def _of_family(self, family: str, rows: Sequence[Features]) -> list[Estimate | None]:
        """None for what the model does not know."""
        head = self._heads.get(family)
        if head is None:
            return [None] * len(rows)
        operators = [row.operator for row in rows]
        numbers = filled(np.array([row.numbers for row in rows]), operators, head.usual)
        floors = np.array([row.floor for row in rows])
        scale = self._scale.get(family, 1.0)
        known = head.knows(operators) & head.gate.admits(numbers)
        columns = zip(*head.predict(numbers, floors), known, floors, strict=True)
        return [
            self._estimate(scale * t, scale * low, scale * high, floor, family) if fits else None
            for t, low, high, fits, floor in columns
        ]

    def _estimate(
        self, seconds: float, low: float, high: float, floor: float, family: str
    ) -> Estimate:
        above = f"{seconds / floor:.2g} times its floor of {show_seconds(floor)}"
        return Estimate(
            float(seconds), float(low), float(high), (f"{above} ({family}s, {self._basis})",)
        )

    def _by_roofline(self, estimate: Estimate, family: str) -> Estimate:
        why = f"unlike the {family}s that the model was trained on, so by the roofline"
        return replace(estimate, because=(*estimate.because, why))

    def compare(self, a: Sequence[Node], b: Sequence[Node]) -> Estimate:
        first, second = total(self.estimate(a)), total(self.estimate(b))
        why = f"{show_seconds(first.seconds)} against {show_seconds(second.seconds)}"
        difference = first - second
        return replace(difference, because=(why, *difference.because))

    # --- candidates -------------------------------------------------------------------------

    def screen(self, sketches: Sequence[Sketch]) -> list[float]:
        """Seconds of kernels, by the small forest; equal ones are computed once."""
        new = [s for s in dict.fromkeys(sketches) if s not in self._screened]
        if new:
            found = [sketch_features(s, self.target) for s in new]
            floors = np.array([f.floor for f in found])
            seconds = floors * self._scale.get("kernel", 1.0)
            if self._screen is not None:
                seconds *= np.exp(self._screen.predict(np.array([f.numbers for f in found])))
            self._screened.update(zip(new, seconds.tolist(), strict=True))
        return [self._screened[s] for s in sketches]

    def gain(self, apart: Sequence[Sketch], together: Sketch) -> Estimate:
        *parts, whole = self.screen([*apart, together])
        saved, doubt = sum(parts) - whole, DOUBT * math.hypot(*parts, whole)
        why = f"{show_seconds(sum(parts))} apart, {show_seconds(whole)} together"
        return Estimate(saved, saved - doubt, saved + doubt, (why,))


# The relative error of screening, of each kernel.
DOUBT: Final = 0.08


def _cold_bytes(node: Node, cold: Collection[Value]) -> int:
    if not cold:
        return 0
    return sum(v.tensor.nbytes_hint for v in dict.fromkeys(node.operands) if v in cold)
