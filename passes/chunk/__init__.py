"""A loss over rows, with its gradient, some rows at a time."""

from rewright.passes.chunk.chunk import ChunkLoss

__all__ = ["ChunkLoss"]
