"""Fusion: chains of pointwise, view, reduction, normalization and softmax nodes become regions."""

from rewright.passes.fuse.fuse import Fuse

__all__ = ["Fuse"]
