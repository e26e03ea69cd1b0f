"""One function or module on one input, through several backends, after compilation.

Nothing is timed before its answer is checked against float64.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.load import percent
from benchmarks.options import add_turns, parser
from benchmarks.report import print_table
from benchmarks.timing import Comparison

Function: TypeAlias = Callable[..., Any]


class WrongAnswer(Exception):
    """A backend's answer is further from float64 than eager's, by more than rounding explains."""


def options(name: str, description: str) -> argparse.ArgumentParser:
    asked = parser(name, description, ["rewright", "inductor", "eager"])
    asked.epilog = "The first backend is compared with each of the others; eager stays uncompiled."
    add_turns(asked)
    return asked


def compiled(
    function: Function, inputs: tuple[Tensor, ...], backends: Sequence[str]
) -> dict[str, partial[Any]]:
    # A second shape of the same code would otherwise be compiled with dynamic sizes.
    torch.compiler.reset()
    calls = {
        backend: function
        if backend == "eager"
        else torch.compile(function, backend=backend, dynamic=False)
        for backend in backends
    }
    return {backend: partial(call, *inputs) for backend, call in calls.items()}


def check(
    case: str,
    contestants: Mapping[str, Callable[[], Any]],
    function: Function,
    inputs: tuple[Tensor, ...],
) -> None:
    """Raise unless every answer is at most twice as far from float64 as eager's, plus 1e-6."""
    exact = in_float64(function)(*map(in_float64, inputs))
    limit = allowed(relative_l2(function(*inputs), exact))
    for backend, call in contestants.items():
        error = relative_l2(call(), exact)
        # Written so that NaN fails.
        if not error <= limit:
            raise WrongAnswer(f"{case}: {backend} is {error:.1e} off float64, over {limit:.1e}")


def allowed(eager: float) -> float:
    """How far from float64 an answer may be, where eager's is `eager`; both are relative L2."""
    return 2 * eager + 1e-6


def in_float64(x: Any) -> Any:
    if isinstance(x, nn.Module):
        return copy.deepcopy(x).double()
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def relative_l2(got: Any, exact: Any) -> float:
    pairs = list(zip(tree_leaves(got), tree_leaves(exact), strict=True))
    error = sum(float((g.double() - e).square().sum()) for g, e in pairs)
    norm = sum(float(e.square().sum()) for _, e in pairs)
    return float((error / norm) ** 0.5)


def show(name: str, results: Mapping[str, Comparison], backends: Sequence[str]) -> None:
    subject, *others = backends
    columns = [name, *backends, *(f"{subject} vs {other}" for other in others), "other load"]
    rows = [
        [
            case,
            *(duration(comparison.median(backend)) for backend in backends),
            *(str(comparison.speedup(subject, over=other)) for other in others),
            percent(comparison.other_load),
        ]
        for case, comparison in results.items()
    ]
    print_table(columns, rows)


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-2 else f"{seconds * 1e6:.1f} us"
