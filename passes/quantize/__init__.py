"""Quantization: formats, where they fit, what they add in error, and the choice within a budget."""

from __future__ import annotations

from rewright.passes.quantize.quantize import Quantize

__all__ = ["Quantize"]
