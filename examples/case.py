"""What the factories of `examples` return, and the random state they build it under."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

Case: TypeAlias = tuple[nn.Module, tuple[Tensor, ...]]
"""A module in evaluation mode, and inputs to call it with."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` inside the block, and restore the caller's CPU random state after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
