"""The error budget: what an answer may be off, and who spends it.

Passes bid: at a site, this choice is expected to add so much error and to take so long. One
knapsack over all sites decides, the whole graph is measured on samples that the bids have not seen,
and the choice is made again, by what was measured, until it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from torch import Tensor

from rewright.ir import OptionError

METRICS: Final = ("rel_l2", "kl", "top1")
# What is spent of the budget at first, of what the bids say; what may be measured of it, since
# other samples come out otherwise by some percent; rounds of measuring; and from which share of the
# budget on another round is not worth it.
CAUTION: Final = 0.75
SAFE: Final = 0.9
ROUNDS: Final = 6
ENOUGH: Final = 0.7
_STEPS: Final = 4000


@dataclass(frozen=True)
class ErrorBudget:
    """How far outputs may be from the float graph's: relative L2, mean KL divergence of softmax
    over the last dimension in nats, the share of rows whose largest element is another one, or what
    the user's function of (float outputs, outputs) says."""

    metric: str
    limit: float
    function: Callable[[Sequence[Tensor], Sequence[Tensor]], float] | None = None

    @staticmethod
    def of(given: object) -> ErrorBudget:
        """Read `kl<=0.03`, `top1>=0.99`, a number (of rel_l2), or (function, limit). Raises
        OptionError."""
        if isinstance(given, tuple) and len(given) == 2 and callable(given[0]):
            return ErrorBudget("function", _limit(given[1]), given[0])
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            return ErrorBudget("rel_l2", _limit(given))
        text = str(given).replace(" ", "")
        metric, sign, limit = next(
            (text.partition(s) for s in ("<=", ">=") if s in text), ("rel_l2", "<=", text)
        )
        if metric not in METRICS or (sign == ">=") != (metric == "top1"):
            raise OptionError(
                f"error_budget is not '{given}'",
                who="options",
                help="as in rel_l2<=1e-2, kl<=0.03, top1>=0.99 or (function, limit)",
            )
        number = _limit(limit)
        return ErrorBudget(metric, 1 - number if metric == "top1" else number)

    def __str__(self) -> str:
        if self.metric == "top1":
            return f"top1>={1 - self.limit:g}"
        return f"{self.metric}<={self.limit:g}"

    def error(self, exact: Sequence[Tensor], got: Sequence[Tensor]) -> float:
        """Infinite where an output is not a number and should be."""
        found = self.function(exact, got) if self.function else _METRICS[self.metric](exact, got)
        return float(found) if found == found else float("inf")

    @property
    def power(self) -> float:
        """What bids are in, and add up, goes with this power of the metric: independent errors add
        up in squares, and disagreement grows as the root of divergence."""
        return 2.0 if self.metric in ("rel_l2", "top1") else 1.0

    def allows(self, most: float) -> float:
        """The sum of bids that about meets the limit; `most` is that of all."""
        if self.metric == "function":
            return most
        return (_NATS if self.metric == "top1" else 1.0) * float(self.limit**self.power)


def _limit(given: object) -> float:
    try:
        limit = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise OptionError(f"error_budget wants a number, not '{given}'", who="options") from None
    if not 0 <= limit < float("inf"):
        raise OptionError(f"error_budget is at least 0, not {given}", who="options")
    return limit


def _relative(exact: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    off = sum(
        float((g.double() - e.double()).square().sum()) for e, g in zip(exact, got, strict=True)
    )
    norm = sum(float(e.double().square().sum()) for e in exact)
    return float((off / norm) ** 0.5) if norm else float(off > 0) * float("inf") if off else 0.0


def _divergence(exact: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """KL(exact || got) in nats, the mean over all rows of the first output."""
    p, q = (x[0].double().log_softmax(-1) for x in (exact, got))
    return float((p.exp() * (p - q)).sum(-1).mean())


def _disagreement(exact: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    return float((exact[0].argmax(-1) != got[0].argmax(-1)).double().mean())


_METRICS: Final[Mapping[str, Callable[[Sequence[Tensor], Sequence[Tensor]], float]]] = {
    "rel_l2": _relative,
    "kl": _divergence,
    "top1": _disagreement,
}


@dataclass(frozen=True)
class Bid:
    """A choice at a site: the error that it alone is expected to add, in the budget's metric,
    raised to the power in which errors add up; seconds it takes, and bytes of what it reads."""

    site: str
    choice: str
    error: float
    seconds: float
    nbytes: int

    def cost(self, objective: str) -> float:
        return self.seconds if objective == "time" else float(self.nbytes)


# Divergence, in nats, over the square of the share of rows that then disagree (measured on a
# language model of 135 million parameters: 0.0025 at 2.7 %, 0.025 at 9.5 %).
_NATS: Final = 2.8

# What leaves a site as it is.
FLOAT: Final = "float"

Plan = Mapping[str, Bid]


def knapsack(bids: Mapping[str, Sequence[Bid]], allowed: float, objective: str) -> dict[str, Bid]:
    """One bid a site, together of at most `allowed` error and of the least cost. Each site has one
    without error. A multiple-choice knapsack by dynamic programming (Dudzinski and Walukiewicz,
    "Exact methods for the knapsack problem and its generalizations", 1987), errors in steps that
    round up."""
    step = allowed / _STEPS
    best = np.zeros(_STEPS + 1)
    taken: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    for offers in bids.values():
        sums = np.full((len(offers), _STEPS + 1), np.inf)
        for row, bid in enumerate(offers):
            weight = _weight(bid, step)
            if weight <= _STEPS:
                sums[row, weight:] = best[: _STEPS + 1 - weight] + bid.cost(objective)
        taken.append(sums.argmin(0))
        best = sums.min(0)
    at, chosen = _STEPS, {}
    for (site, offers), rows in zip(reversed(list(bids.items())), reversed(taken), strict=True):
        bid = chosen[site] = offers[int(rows[at])]
        at -= _weight(bid, step)
    return {site: chosen[site] for site in bids}


def _weight(bid: Bid, step: float) -> int:
    """The error in steps, rounded up; more than there are where none is allowed."""
    if bid.error <= 0:
        return 0
    return int(np.ceil(bid.error / step)) if step > 0 else _STEPS + 1


@dataclass(frozen=True)
class Settled:
    """What was chosen, and what it comes to on held-out samples. `blocking` are the sites whose
    cheapest choices were too much, by how much of the budget each alone would take."""

    plan: Plan
    predicted: float
    measured: float
    rounds: tuple[tuple[float, float], ...] = ()
    blocking: tuple[tuple[str, float], ...] = ()

    @property
    def changed(self) -> dict[str, Bid]:
        return {site: bid for site, bid in self.plan.items() if bid.choice != FLOAT}


def settle(
    bids: Mapping[str, Sequence[Bid]],
    budget: ErrorBudget,
    objective: str,
    measured: Callable[[Plan], float],
) -> Settled:
    """The plan of least cost whose error, as measured, is within the budget; all float when there
    is none.

    What was measured corrects what is predicted next: errors interact.
    """
    power, limit = budget.power, budget.limit
    least = {site: next(b for b in offers if b.choice == FLOAT) for site, offers in bids.items()}
    best = Settled(least, 0.0, 0.0)
    most = sum(max(bid.error for bid in offers) for offers in bids.values())
    allowed, rounds, tried = CAUTION * budget.allows(most), [], set[tuple[str, ...]]()
    factor = 1.0  # of what was measured to what the bids say
    for _ in range(ROUNDS if limit > 0 else 0):
        plan = knapsack(bids, allowed, objective)
        names = tuple(bid.choice for bid in plan.values())
        spent = sum(bid.error for bid in plan.values())
        predicted = factor * (spent / budget.allows(1.0)) ** (1 / power) * limit
        if names in tried or all(name == FLOAT for name in names):
            break
        tried.add(names)
        found = measured(plan)
        rounds.append((predicted, found))
        if predicted > 0 and 0 < found < float("inf"):
            factor *= found / predicted
        if found <= SAFE * limit and _cost(plan, objective) < _cost(best.plan, objective):
            best = Settled(plan, predicted, found)
        if ENOUGH * limit <= found <= SAFE * limit:
            break
        allowed *= _correction(found, limit, power)
    blocking = _blocking(bids, best.plan, budget, most, objective)
    return Settled(best.plan, best.predicted, best.measured, tuple(rounds), blocking)


def _correction(found: float, limit: float, power: float) -> float:
    """By how much to spend otherwise after an error was measured."""
    if not found < float("inf"):
        return 0.25
    wanted = (SAFE + ENOUGH) / 2 * limit / max(found, 1e-30)
    return float(min(max(wanted**power, 0.2), 4.0))


def _cost(plan: Plan, objective: str) -> float:
    return sum(bid.cost(objective) for bid in plan.values())


def _blocking(
    bids: Mapping[str, Sequence[Bid]],
    plan: Plan,
    budget: ErrorBudget,
    most: float,
    objective: str,
) -> tuple[tuple[str, float], ...]:
    """Sites that stayed float though a choice would be cheaper, those of most error first."""
    found = []
    for site, offers in bids.items():
        cheaper = [b for b in offers if b.cost(objective) < plan[site].cost(objective)]
        if plan[site].choice == FLOAT and cheaper:
            share = min(b.error for b in cheaper) / max(budget.allows(most), 1e-30)
            found.append((site, float(share ** (1 / budget.power))))
    return tuple(sorted(found, key=lambda s: -s[1]))
