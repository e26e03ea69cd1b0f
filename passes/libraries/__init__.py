"""What libraries compute, and how they like it: who multiplies, how images lie, what is done to
results while they lie in registers."""

from __future__ import annotations

from rewright.passes.libraries.channels_last import ChannelsLast
from rewright.passes.libraries.choose import Libraries
from rewright.passes.libraries.convolutions import Convolutions
from rewright.passes.libraries.epilogues import Epilogues
from rewright.passes.libraries.freeze import Freeze
from rewright.passes.libraries.merge import MergeProducts

__all__ = ["ChannelsLast", "Convolutions", "Epilogues", "Freeze", "Libraries", "MergeProducts"]
