"""Attention: recognized by what it computes, kept as one operator, lowered to what is fastest."""

from __future__ import annotations

from rewright.passes.attention.flash import FlashAttention
from rewright.passes.attention.lower import LowerAttention
from rewright.passes.attention.pair import AttentionPairs
from rewright.passes.attention.recognize import Attention
from rewright.passes.attention.training import FlashAttentionPairs
from rewright.passes.attention.windows import Window

__all__ = [
    "Attention",
    "AttentionPairs",
    "FlashAttention",
    "FlashAttentionPairs",
    "LowerAttention",
    "Window",
]
