"""Whether results are what they should be: as near to float64 as the same graph run by ATen.

The error is relative, in L2, and may be twice that of ATen in the graph's own types, plus 1e-6 (a
unit or two in the last place where there are half types). Where that is not enough, the graph is
asked how much it depends on rounding at all: its intermediate values are moved by a unit in the
last place, at random, and the largest error that this makes counts as ATen's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

FLOOR: Final = 1e-6
# Beyond this nothing is left of a number but its size; whatever comes out is as good.
HOPELESS: Final = 0.25
# What float64 leaves of ones that cancel, in each element.
CANCELLED: Final = 1e-15


class Mismatch(Exception):
    """Another result than the graph says."""


@dataclass(frozen=True)
class Run:
    """What one run gave: results (outputs, then inputs as they were left), flat."""

    results: Sequence[Any]

    @property
    def aliases(self) -> list[int | None]:
        """For each tensor the first result that shares its memory; None for one without any."""
        addresses = [_address(x) for x in self.results]
        return [None if a is None else addresses.index(a) for a in addresses]


def compare(
    ours: Run,
    own: Run,
    wide: Run,
    floors: Sequence[float],
    shaken: Callable[[], Iterable[Run]],
) -> None:
    """Raises Mismatch. `own` is ATen in the graph's types, `wide` in float64; `floors` are what
    each result may be off by in any case; `shaken` makes runs like `own`, moved at random."""
    if len(ours.results) != len(own.results):
        raise Mismatch(f"{len(ours.results)} results, not {len(own.results)}")
    loose = []
    for place, (a, b, e) in enumerate(zip(ours.results, own.results, wide.results, strict=True)):
        _compare_types(place, a, b)
        if isinstance(b, Tensor) and not is_near(a, b, e, floors[place]):
            loose.append(place)
    if ours.aliases != own.aliases:
        raise Mismatch(f"results share memory as {ours.aliases}, not as {own.aliases}")
    if not loose:
        return
    runs = list(shaken())
    for place in loose:
        a, b, e = ours.results[place], own.results[place], wide.results[place]
        natural = max((error(r.results[place], e) for r in runs), default=0.0)
        if not natural < HOPELESS:
            continue
        allowed = 2 * max(natural, error(b, e)) + floors[place]
        if not error(a, e) <= allowed:
            raise Mismatch(f"result {place} {_difference(a, b, e, allowed)}")


def _compare_types(place: int, ours: Any, own: Any) -> None:
    if not isinstance(own, Tensor) or not isinstance(ours, Tensor):
        if type(ours) is not type(own) or ours != own:
            raise Mismatch(f"result {place} is {ours!r}, not {own!r}")
        return
    if _looks(ours) != _looks(own):
        raise Mismatch(f"result {place} is {_looks(ours)}, not {_looks(own)}")
    if not own.is_floating_point() and not torch.equal(ours, own):
        raise Mismatch(f"result {place} is {_some(ours)}, not {_some(own)}")


def is_near(ours: Tensor, own: Tensor, wide: Tensor, floor: float) -> bool:
    if not own.is_floating_point():
        return True
    return error(ours, wide) <= 2 * error(own, wide) + floor


def error(found: Tensor, wide: Tensor) -> float:
    """Relative L2 distance; infinite where infinities and NaN are not at the same places."""
    found, wide = found.double(), wide.double()
    finite = wide.isfinite()
    here, there = (x.masked_fill(finite, 0) for x in (found, wide))
    if not torch.equal(found.isfinite(), finite) or not torch.allclose(here, there, equal_nan=True):
        return math.inf
    distance = float((found - wide)[finite].norm())
    size = float(wide[finite].norm())
    nothing = CANCELLED * math.sqrt(wide.numel())
    return 0.0 if distance <= nothing else distance / size if size else math.inf


def _looks(x: Tensor) -> str:
    """Dtype, sizes, and the strides that matter."""
    shape, strides = tuple(x.shape), x.stride()
    steps = [step for size, step in zip(shape, strides, strict=True) if size > 1]
    told = "" if x.numel() == 0 else f" with strides {steps}"
    return f"{x.dtype} of sizes {list(shape)}{told}"


def _address(x: Any) -> int | None:
    return x.untyped_storage().data_ptr() if isinstance(x, Tensor) and x.numel() else None


def _difference(ours: Tensor, own: Tensor, wide: Tensor, allowed: float) -> str:
    return (
        f"is off by {error(ours, wide):.2g} (ATen by {error(own, wide):.2g}, allowed "
        f"{allowed:.2g}): {_some(ours)}, not {_some(wide)}"
    )


def _some(x: Tensor) -> str:
    """The first few elements."""
    numbers = [f"{n:.6g}" for n in x.detach().double().flatten()[:6].tolist()]
    return f"[{', '.join(numbers)}{', ...' if x.numel() > 6 else ''}]"
