"""A soft clip, `limit * tanh(x / limit)`: an operator of its own for PyTorch, and what Rewright
needs to fuse it, to simplify it and to count it."""

from .operator import softclip

__all__ = ["softclip"]
