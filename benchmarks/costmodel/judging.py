"""How far off predictions are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from rewright.costmodel.forest import Floats
from rewright.costmodel.learned import Head
from rewright.costmodel.training import Rows


@dataclass(frozen=True)
class Judged:
    """Predictions of calls that training never saw, their bounds, and which calls are known."""

    predicted: Floats
    low: Floats
    high: Floats
    known: NDArray[np.bool_]
    measured: Floats

    @staticmethod
    def of(predicted: Floats, measured: Floats) -> Judged:
        """Without bounds."""
        unknown = np.full(len(predicted), np.nan)
        return Judged(predicted, unknown, unknown, np.ones(len(predicted), bool), measured)

    def summary(self) -> dict[str, float]:
        errors = np.abs(self.predicted / self.measured - 1)
        inside = (self.low <= self.measured) & (self.measured <= self.high)
        return {
            "calls": len(errors),
            "median": float(np.median(errors)),
            "mape": float(errors.mean()),
            "bias": float(np.median(np.log(self.predicted / self.measured))),
            "p90": float(np.quantile(errors, 0.9)),
            "kendall": float(kendalltau(self.predicted, self.measured)[0]),
            "coverage": float(inside.mean()),
            "known": float(self.known.mean()),
        }


def judge(head: Head, rows: Rows) -> Judged:
    numbers = head.filled(rows.features, rows.parts, rows.operators)
    known = head.knows(rows.operators) & head.gate.admits(numbers)
    predicted, low, high = head.predict(numbers, rows.parts)
    return Judged(predicted, low, high, known, rows.seconds)


def together(parts: Sequence[Judged]) -> Judged:
    names = ("predicted", "low", "high", "known", "measured")
    return Judged(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))


def show(name: str, s: Mapping[str, float]) -> None:
    print(
        f"{name:12} {s['calls']:5.0f} calls  median {s['median']:6.1%}  mean {s['mape']:6.1%}  "
        f"bias {s['bias']:+.1%}  "
        f"p90 {s['p90']:6.1%}  tau {s['kendall']:.3f}  in bounds {s['coverage']:6.1%}  "
        f"known {s['known']:6.1%}",
        flush=True,
    )


# Pairs that differ by less say nothing about the sign.
DIFFERENT = 0.05


def saved(predicted: Floats, measured: Floats) -> dict[str, Any]:
    """Of savings as shares of the time apart."""
    differ = np.abs(measured) > DIFFERENT
    right = np.sign(predicted[differ]) == np.sign(measured[differ])
    captured = predicted[differ] / measured[differ]
    return {
        "pairs": len(measured),
        "differ": int(differ.sum()),
        "captured": float(np.median(captured)),
        "captured_quartiles": [float(q) for q in np.quantile(captured, (0.25, 0.75))],
        "sign_right": float(right.mean()),
    }


def show_savings(name: str, s: Mapping[str, Any]) -> None:
    low, high = s["captured_quartiles"]
    print(
        f"{name:12} {s['pairs']:5} pairs  saving predicted over measured: median "
        f"{s['captured']:.2f}, quartiles {low:.2f} and {high:.2f};  sign right "
        f"{s['sign_right']:.1%} of {s['differ']}",
        flush=True,
    )
