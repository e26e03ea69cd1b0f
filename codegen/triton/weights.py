"""What kernels of attention do besides their scores: weights of a tile relative to the largest
score so far (Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135), and the way
from one run of tiles to the next."""

from __future__ import annotations

from typing import Final

from rewright.codegen.triton.primitives import functions_of

_FUNCTIONS: Final = """
def weights_of(score, top, total):
    now = tl.maximum(top, tl.max(score, 1, keep_dims=True))
    base = tl.where(now == float("-inf"), 0.0, now)
    weights = tl.exp(score - base)
    factor = tl.exp(top - base)
    return weights, factor, now, total * factor + tl.sum(weights, 1, keep_dims=True)

def first_tile(tile, where, start, end):
    return tl.min(tl.where(where & (tile >= start), tile, end))

def any_tile(where):
    return tl.max(where.to(tl.int32)) != 0
"""

ATTENTION: Final = functions_of(_FUNCTIONS)
