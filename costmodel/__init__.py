"""Cost models: how long nodes of a graph take on a target, between which bounds, and why.

Passes get a `CostModel` and, when something can be run, `Tools`; the `Roofline` always exists.
"""

from rewright.costmodel.estimate import (
    NOTHING,
    Estimate,
    show_bytes,
    show_flops,
    show_seconds,
    total,
)
from rewright.costmodel.protocols import (
    CostModel,
    Tools,
    call_estimates,
    call_seconds,
    expected_seconds,
    graph_estimate,
    inputs_and_views,
)
from rewright.costmodel.reuse import Walk
from rewright.costmodel.roofline import Roofline, roof
from rewright.costmodel.sketch import Draft, Kernels, Sketch, Sketcher, sketch_region
from rewright.costmodel.timings import Timings

__all__ = [
    "NOTHING",
    "CostModel",
    "Draft",
    "Estimate",
    "Kernels",
    "Roofline",
    "Sketch",
    "Sketcher",
    "Timings",
    "Tools",
    "Walk",
    "call_estimates",
    "call_seconds",
    "expected_seconds",
    "graph_estimate",
    "inputs_and_views",
    "roof",
    "show_bytes",
    "show_flops",
    "show_seconds",
    "sketch_region",
    "total",
]
