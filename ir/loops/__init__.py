"""The loop IR: regions as loop nests over typed scalars, before any choice of schedule."""

from rewright.ir.loops.affine import Affine, Axis
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
    indices_of,
    subterms,
)
from rewright.ir.loops.operators import OPERATORS
from rewright.ir.loops.reductions import order_of, reduced_count, reduced_dims
from rewright.ir.loops.rough import is_costly, rough_nanoseconds
from rewright.ir.loops.views import VIEWS, is_view, view_roots

__all__ = [
    "OPERATORS",
    "VIEWS",
    "Affine",
    "Apply",
    "Axis",
    "Buffer",
    "Convert",
    "Inside",
    "Let",
    "Load",
    "Nest",
    "Number",
    "Order",
    "Position",
    "Reduce",
    "Ref",
    "Round",
    "Stage",
    "Statement",
    "Store",
    "Term",
    "Within",
    "indices_of",
    "is_costly",
    "is_view",
    "lower",
    "needed_nodes",
    "order_of",
    "reduced_count",
    "reduced_dims",
    "rough_nanoseconds",
    "subterms",
    "view_roots",
]
