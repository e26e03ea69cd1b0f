"""Passes: graph to graph, by name, with options that print and parse back.

A pass is a frozen dataclass; a `Pipeline` is a list of them; `Env` is all they may use.
"""

from __future__ import annotations

from rewright.passes.attention import Attention, FlashAttention, LowerAttention, Window
from rewright.passes.base import Env, Pass, passes
from rewright.passes.canonicalize import Canonicalize
from rewright.passes.chunk import ChunkLoss
from rewright.passes.cse import Cse
from rewright.passes.dce import Dce
from rewright.passes.decompose import Decompose
from rewright.passes.fold import Fold
from rewright.passes.fuse import Fuse
from rewright.passes.libraries import (
    ChannelsLast,
    Convolutions,
    Epilogues,
    Freeze,
    Libraries,
    MergeProducts,
)
from rewright.passes.log import Decision, DecisionLog
from rewright.passes.memory import PlanMemory, held, held_bytes, peak_bytes
from rewright.passes.move import Move
from rewright.passes.pipeline import EVERY_STAGE, Pipeline, PipelineResult, Stage
from rewright.passes.quantize import Quantize
from rewright.passes.remat import Remat
from rewright.passes.rules import Rules
from rewright.passes.specs import Bytes

DEFAULT = (
    Decompose(),
    ChannelsLast(),
    Canonicalize(),
    Fold(),  # before Cse, which then sees equal constants
    Cse(),  # before Rules, which then find one value where it was computed several times
    Rules(),
    Attention(),
    FlashAttention(),
    LowerAttention(),
    Fold(),  # what attention made of masks
    Cse(),
    Libraries(),
    Epilogues(),
    Dce(),
    Fuse(),
    PlanMemory(),
)

__all__ = [
    "DEFAULT",
    "EVERY_STAGE",
    "Attention",
    "Bytes",
    "Canonicalize",
    "ChannelsLast",
    "ChunkLoss",
    "Convolutions",
    "Cse",
    "Dce",
    "Decision",
    "DecisionLog",
    "Decompose",
    "Env",
    "Epilogues",
    "FlashAttention",
    "Fold",
    "Freeze",
    "Fuse",
    "Libraries",
    "LowerAttention",
    "MergeProducts",
    "Move",
    "Pass",
    "Pipeline",
    "PipelineResult",
    "PlanMemory",
    "Quantize",
    "Remat",
    "Rules",
    "Stage",
    "Window",
    "held",
    "held_bytes",
    "passes",
    "peak_bytes",
]
