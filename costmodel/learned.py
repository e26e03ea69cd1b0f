"""The learned cost model: forests over features of calls, between bounds that hold.

A call is first expected to take the weighted sum of its parts, the seconds that work of each kind
would take alone. Two forests correct that in log time: one predicts how far the call lies from what
was expected (which carries over to sizes and machines it has not seen), the other the time itself.
Bounds come from forests of quantiles, widened by what held-out families of models needed
(conformalized quantile regression: Romano, Patterson, Candès, 2019; by groups of calls). A call
unlike all that the model was trained on is answered by the roofline, between its wide bounds, and
says so.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rewright.costmodel.context import Surroundings
from rewright.costmodel.estimate import NOTHING, Estimate, show_seconds, total
from rewright.costmodel.features import Features, family_of, features
from rewright.costmodel.forest import Floats, Forest
from rewright.costmodel.gpu_features import gpu_features
from rewright.costmodel.reuse import Walk
from rewright.costmodel.roofline import Roofline, call_key
from rewright.costmodel.screening import Screen, Screening, saving
from rewright.costmodel.sketch import Kernels, Sketch
from rewright.ir import Node, TensorType, Value, is_call
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
    # A feature that was the same for all calls may be off by rounding: files hold single floats.
    NARROWEST = 1e-3

    def admits(self, rows: Floats) -> NDArray[np.bool_]:
        """[n, features] -> [n]."""
        width = np.maximum(self.high - self.low, self.NARROWEST)
        scaled = (rows - self.low) / width
        inside = ((scaled >= -self.MARGIN) & (scaled <= 1 + self.MARGIN)).all(1)
        return inside & (self.distance(rows) <= self.reach)

    def distance(self, rows: Floats) -> Floats:
        """To the nearest kept call, the mean over the features."""
        width = np.maximum(self.high - self.low, self.NARROWEST)
        scaled, kept = (rows - self.low) / width, (self.kept - self.low) / width
        apart: Floats = np.abs(scaled[:, None, :] - kept[None, :, :]).mean(2).min(1)
        return apart


@dataclass(frozen=True)
class Head:
    """The model of one family of calls.

    `weights` are those of the parts, `blend` is the share of `residual` in the answer. `widen` is
    added to both bounds, by group (see `GROUPS`); `usual` is the logarithm of what calls of an
    operator usually take over what was expected; `shares` are the places of parts whose shares are
    features.
    """

    weights: Floats
    blend: float
    residual: Forest
    absolute: Forest
    low: Forest
    high: Forest
    widen: Floats
    gate: Gate
    usual: Mapping[str, float] = field(default_factory=dict)
    shares: Sequence[Sequence[int]] = ()

    def knows(self, operators: Sequence[str]) -> NDArray[np.bool_]:
        """Which operators it was trained on; kernels have none."""
        return np.array([not name or name in self.usual for name in operators])

    def filled(self, rows: Floats, parts: Floats, operators: Sequence[str]) -> Floats:
        """Features with the columns that the head itself knows."""
        return filled(rows, parts, self.weights, operators, self.usual, self.shares)

    def predict(self, rows: Floats, parts: Floats) -> tuple[Floats, Floats, Floats]:
        """Seconds and both bounds, each [n], of filled features."""
        over = self.residual.predict(rows) + np.log(parts @ self.weights)
        logs = self.blend * over + (1 - self.blend) * self.absolute.predict(rows)
        widen = self.widen[np.searchsorted(GROUPS, np.exp(logs))]
        low = np.minimum(self.low.predict(rows) - widen, 0)
        high = np.maximum(self.high.predict(rows) + widen, 0)
        return np.exp(logs), np.exp(logs + low), np.exp(logs + high)


def filled(
    rows: Floats,
    parts: Floats,
    weights: Floats,
    operators: Sequence[str] = (),
    usual: Mapping[str, float] | None = None,
    shares: Sequence[Sequence[int]] = (),
) -> Floats:
    """Features with what calls are expected to take, of operators what is usual, and the shares of
    parts in what is expected."""
    weighed = parts * weights
    expected = weighed.sum(1)
    columns = [np.log2(expected), *rows.T[1:]]
    if usual is not None and any(operators):
        columns[1] = np.array([usual.get(name, 0.0) for name in operators])
    columns += [weighed[:, list(places)].sum(1) / expected for places in shares]
    return np.stack(columns, axis=1)


class Learned:
    """A `CostModel`. Equal calls are estimated once.

    `scale` corrects the times of each family for this machine (see `rewright calibrate`).
    """

    def __init__(
        self,
        target: Target,
        heads: Mapping[str, Head],
        screen: Screen | None,
        basis: str,
        scale: Mapping[str, float] | None = None,
        surroundings: Surroundings | None = None,
    ) -> None:
        self.target, self._surroundings = target, surroundings
        self._heads, self._basis = heads, basis
        self._scale = dict(scale or {})
        of_kernels = self._scale.get("kernel", 1.0)
        self.screening = None if screen is None else Screening(target, screen, of_kernels)
        self._roofline = Roofline(target)
        self._closer: dict[tuple[tuple[Sketch, ...], Sketch], Estimate] = {}
        self._by_structure: dict[Hashable, Estimate] = {}
        self._by_identity: dict[tuple[int, int], tuple[Node, Estimate]] = {}

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

    def _estimates(self, calls: Sequence[tuple[Node, int]], held: int = 0) -> list[Estimate]:
        answers = self._roofline.estimate([node for node, _ in calls])
        by_family: dict[str, list[tuple[int, Features]]] = {}
        for place, (node, n) in enumerate(calls):
            if not is_call(node) or answers[place] is NOTHING:
                continue
            found = self._features(node, n, held)
            if found is None:
                answers[place] = self._by_roofline(answers[place], "calls")
            else:
                by_family.setdefault(found.family, []).append((place, found))
        for family, members in by_family.items():
            learned = self._of_family(self._heads[family], [f for _, f in members])
            for (place, _), answer in zip(members, learned, strict=True):
                answers[place] = answer or self._by_roofline(answers[place], _named(family))
        return answers

    def _features(self, node: Node, cold: int, held: int) -> Features | None:
        """None for a call whose family has no head, or that gives no tensor."""
        if not any(isinstance(v.type, TensorType) for v in node.results):
            return None
        if any(name == "out" for name, _ in node.kwargs):  # where memory is planned
            node = replace(node, kwargs=tuple(k for k in node.kwargs if k[0] != "out"))
        if self.target.device == "cuda":
            found = gpu_features(node, self.target)
            return found if found is not None and found.family in self._heads else None
        if family_of(node) not in self._heads:
            return None
        return features(node, self.target, cold, held)

    def _of_family(self, head: Head, rows: Sequence[Features]) -> list[Estimate | None]:
        """None for what the model does not know."""
        family = rows[0].family
        operators = [row.operator for row in rows]
        parts = np.array([row.parts for row in rows])
        numbers = head.filled(np.array([row.numbers for row in rows]), parts, operators)
        floors = [row.floor for row in rows]
        scale = self._scale.get(family, 1.0)
        known = head.knows(operators) & head.gate.admits(numbers)
        columns = zip(*head.predict(numbers, parts), known, floors, strict=True)
        return [
            self._estimate(scale * t, scale * low, scale * high, floor, family) if fits else None
            for t, low, high, fits, floor in columns
        ]

    def _estimate(
        self, seconds: float, low: float, high: float, floor: float, family: str
    ) -> Estimate:
        above = f"{seconds / floor:.2g} times its floor of {show_seconds(floor)}"
        return Estimate(
            float(seconds), float(low), float(high), (f"{above} ({_named(family)}, {self._basis})",)
        )

    def _by_roofline(self, estimate: Estimate, calls: str) -> Estimate:
        why = f"unlike the {calls} that the cost model knows, so by the roofline"
        return replace(estimate, because=(*estimate.because, why))

    def program(self, found: Walk, alone: Sequence[Estimate]) -> Estimate:
        whole = total(alone)
        if self._surroundings is None or not whole.seconds:
            return whole
        within = self._surroundings.seconds(found, [e.seconds for e in alone], self.target)
        seconds = float(within.sum()) + self._surroundings.besides(found, self.target)
        longer = seconds / whole.seconds
        return replace(whole, seconds=seconds, low=longer * whole.low, high=longer * whole.high)

    def compare(self, a: Sequence[Node], b: Sequence[Node]) -> Estimate:
        first, second = total(self.estimate(a)), total(self.estimate(b))
        why = f"{show_seconds(first.seconds)} against {show_seconds(second.seconds)}"
        difference = first - second
        return replace(difference, because=(why, *difference.because))

    # --- candidates -------------------------------------------------------------------------

    def gain(
        self, apart: Sequence[Sketch], together: Sketch, kernels: Kernels | None = None
    ) -> Estimate:
        if self.screening is None:
            return self._roofline.gain(apart, together)
        screened = self.screening.gain(apart, together)
        held = _held(apart, together)
        place = self.target.memory(held)
        crowded = any(self.target.memory(s.moved) != place for s in apart)
        if kernels is None or not (crowded or screened.low < 0 < screened.high):
            return screened
        question = tuple(apart), together
        if question not in self._closer:
            self._closer[question] = self._look_closer(kernels, held) or screened
        return self._closer[question]

    def _look_closer(self, kernels: Kernels, held: int) -> Estimate | None:
        """What joining saves by the full model; None when that would have to guess. Kernels apart
        share the caches: what is timed alone stays in them, in a program the others push it out."""
        made = kernels()
        if made is None or self.screening is None:
            return None
        *apart, whole = made
        parts = self._estimates([(node, 0) for node in apart], held)
        before = sum(e.mean for e in parts)
        after = self.estimate([whole])[0].mean
        return saving(before, before - after, self.screening.full_doubt)


def _held(apart: Sequence[Sketch], together: Sketch) -> int:
    """Bytes that kernels touch apart: what they touch together, and what lies between them."""
    between = sum(s.written for s in apart) - together.written
    return together.moved + max(0, between)


def _named(family: str) -> str:
    """A family in words, of many."""
    return {"gpu_prefill": "attention of prompts", "gpu_decode": "attention of tokens"}.get(
        family, f"{family.removeprefix('gpu_')}s"
    )


def _cold_bytes(node: Node, cold: Collection[Value]) -> int:
    if not cold:
        return 0
    return sum(v.tensor.nbytes_hint for v in dict.fromkeys(node.operands) if v in cold)
