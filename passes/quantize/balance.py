"""Outliers moved from activations into weights, where they cost less.

One channel of large activations makes the unit of its whole row large, and leaves few steps to the
others. Dividing the channel, and multiplying the weights that meet it, changes no product (Xiao et
al., "SmoothQuant", ICML 2023, section 4, whose strength of migration is 1/2 here). Factors are
powers of two, so that floats lose nothing by it either, short of the ends of their range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

# Factors are from 2^-MOST to 2^MOST, and not below 1 in float16: a channel that was quiet in
# calibration and is loud later would be multiplied beyond its range.
MOST: Final = 8
# From which factor on, beside the usual one, a channel sticks out.
STICKS_OUT: Final = 4


def balance(read: Tensor, weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
    """f32[K], what each channel of `read` [M, K], which is a `dtype` in the program, is divided by,
    and `weights` [N, K] of all layers that read it are multiplied by; None where no channel sticks
    out."""
    largest = read.detach().float().abs().amax(0)
    heaviest = torch.stack([w.detach().float().abs().amax(0) for w in weights]).amax(0)
    ratio = largest / heaviest
    known = ratio.isfinite() & (ratio > 0)
    if not bool(known.any()):
        return None
    steps = ratio.log2() / 2
    steps = torch.where(known, (steps - steps[known].median()).round(), 0.0)
    factors = steps.clamp(0 if dtype == torch.float16 else -MOST, MOST).exp2()
    return None if float(factors.max()) < STICKS_OUT else factors
