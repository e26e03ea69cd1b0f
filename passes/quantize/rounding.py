"""Which way weights of few bits are rounded, so that what they compute is off least.

Rounding each weight to the nearest step errs least in the weights, not in the results. One after
the other, columns are rounded, and what that does to the results is made up for in those that are
still to come (Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ", ICLR 2023, Algorithm 1; columns of
large activations first, as their code has it). Scales stay those of rounding to the nearest, so
that a layer's rounding is told by how many steps each weight is moved from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

# What is added to the diagonal of a Hessian, in shares of its mean, where at least as many rows as
# columns were seen; of fewer less can be told, and the share goes up with the cube of what misses.
DAMPING: Final = 0.02
# Columns whose errors are handed on to all later ones together.
BLOCK: Final = 128


@dataclass
class Curvature:
    """The second derivative of a layer's squared error by a row of weights, f64[K, K], from what
    the layer read: `rows` of it so far."""

    sums: Tensor
    rows: int = 0

    @staticmethod
    def of(columns: int) -> Curvature:
        return Curvature(torch.zeros(columns, columns, dtype=torch.float64))

    def add(self, read: Tensor) -> Curvature:
        """With what was read besides, [..., K]."""
        rows = read.detach().reshape(-1, read.shape[-1]).double()
        self.sums.addmm_(rows.T, rows)
        self.rows += len(rows)
        return self

    @property
    def damping(self) -> float:
        missing = max(1.0, len(self.sums) / max(1, self.rows))
        return DAMPING * missing**3


def moved_steps(weight: Tensor, seen: Curvature, group: int, largest: float) -> Tensor:
    """i8[N, K]: how many steps each weight of f32 [N, K] is rounded beyond its nearest one, where
    each `group` of a row has a scale of its own, by which its largest magnitude becomes `largest`.

    All zeros where what was seen is no number, or a weight is none.
    """
    rows, columns = weight.shape
    scale = weight.reshape(rows, -1, group).abs().amax(-1) / largest
    scale = scale.repeat_interleave(group, 1)
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    nearest = (weight * inverse).round().clamp(-largest, largest)
    order = seen.sums.diagonal().argsort(descending=True, stable=True)
    factor = _inverse_factor(seen.sums[order][:, order], seen.damping)
    if factor is None or not bool(scale.isfinite().all()):
        return torch.zeros(rows, columns, dtype=torch.int8)
    rounded = torch.empty_like(weight)
    rounded[:, order] = _in_order(
        weight[:, order], scale[:, order], inverse[:, order], factor, largest
    )
    return (rounded - nearest).to(torch.int8)


def _inverse_factor(curvature: Tensor, damping: float) -> Tensor | None:
    """f32, upper triangular: Cholesky's factor of the inverse."""
    damped, diagonal = curvature.clone(), curvature.diagonal()
    damped.diagonal().add_(torch.where(diagonal == 0, 1.0, damping * diagonal.mean()))
    lower, wrong = torch.linalg.cholesky_ex(damped)
    if int(wrong) != 0 or not bool(lower.isfinite().all()):
        return None
    inverse = torch.cholesky_inverse(lower)
    upper, wrong = torch.linalg.cholesky_ex(inverse, upper=True)
    return None if int(wrong) != 0 else upper.float()


def _in_order(
    weight: Tensor, scale: Tensor, inverse: Tensor, factor: Tensor, largest: float
) -> Tensor:
    """Integers of columns, each rounded after what those before it have done was made up for."""
    left, rounded = weight.clone(), torch.empty_like(weight)
    for begin in range(0, weight.shape[1], BLOCK):
        end = min(begin + BLOCK, weight.shape[1])
        errors = torch.empty(len(weight), end - begin)
        for at in range(begin, end):
            column = left[:, at]
            steps = (column * inverse[:, at]).round().clamp(-largest, largest)
            rounded[:, at] = steps
            error = (column - steps * scale[:, at]) / factor[at, at]
            left[:, at:end].addr_(error, factor[at, at:end], alpha=-1)
            errors[:, at - begin] = error
        left[:, end:].addmm_(errors, factor[begin:end, end:], alpha=-1)
    return rounded
