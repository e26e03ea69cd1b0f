"""The loop IR: regions as loop nests over typed scalars, before any choice of schedule."""

from rewright.ir.loops.affine import Affine, Axis
from rewright.ir.loops.attention import JOIN, AttentionNest, Place, Run, lower_attention, zeros_of
from rewright.ir.loops.attention_backward import AttentionBackwardNest, lower_attention_backward
from rewright.ir.loops.convolution import (
    FILTER_STEP,
    SUM,
    ConvolutionNest,
    filter_steps,
    is_bias,
    lower_convolution,
)
from rewright.ir.loops.lower import lower, needed_nodes
from rewright.ir.loops.nest import (
    Apply,
    Buffer,
    Convert,
    Inside,
    Let,
    Load,
    Nest,
    Number,
    Order,
    Position,
    Reduce,
    Ref,
    Round,
    Stage,
    Statement,
    Store,
    Term,
    Within,
    computes_in,
    indices_of,
    loads,
    needed,
    reads,
    subterms,
)
from rewright.ir.loops.operators import OPERATORS
from rewright.ir.loops.quantized import QuantizedNest, lower_quantized
from rewright.ir.loops.reductions import order_of, reduced_count, reduced_dims
from rewright.ir.loops.rough import is_costly, rough_nanoseconds
from rewright.ir.loops.views import VIEWS, is_view, view_roots

# What a kernel is made from.
AnyNest = Nest | AttentionNest | AttentionBackwardNest | ConvolutionNest | QuantizedNest

__all__ = [
    "FILTER_STEP",
    "JOIN",
    "OPERATORS",
    "SUM",
    "VIEWS",
    "Affine",
    "AnyNest",
    "Apply",
    "AttentionBackwardNest",
    "AttentionNest",
    "Axis",
    "Buffer",
    "Convert",
    "ConvolutionNest",
    "Inside",
    "Let",
    "Load",
    "Nest",
    "Number",
    "Order",
    "Place",
    "Position",
    "QuantizedNest",
    "Reduce",
    "Ref",
    "Round",
    "Run",
    "Stage",
    "Statement",
    "Store",
    "Term",
    "Within",
    "computes_in",
    "filter_steps",
    "indices_of",
    "is_bias",
    "is_costly",
    "is_view",
    "loads",
    "lower",
    "lower_attention",
    "lower_attention_backward",
    "lower_convolution",
    "lower_quantized",
    "needed",
    "needed_nodes",
    "order_of",
    "reads",
    "reduced_count",
    "reduced_dims",
    "rough_nanoseconds",
    "subterms",
    "view_roots",
    "zeros_of",
]
