"""The roofline model: a call takes as long as its arithmetic or its memory traffic, whichever is
longer, and what a call costs besides. It always exists and needs no data.

Traffic runs at the speed of the innermost memory that holds all of it (Williams, Waterman,
Patterson: Roofline, 2009, with the cache levels of the target). Estimate and bounds are stated
multiples of the roof; the upper bound finds nothing in a cache.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from rewright.costmodel.estimate import (
    NOTHING,
    Estimate,
    show_bytes,
    show_flops,
    show_seconds,
    total,
)
from rewright.costmodel.reuse import Walk
from rewright.costmodel.sketch import Kernels, Sketch
from rewright.ir import (
    DTYPE_NAMES,
    Kind,
    Node,
    Symbol,
    TensorType,
    Value,
    hint,
    node_key,
    symbols_of,
)
from rewright.ir.dims import UNKNOWN_SIZE
from rewright.ir.target import Target
from rewright.ir.work import bytes_read, bytes_written, flops, is_call


@dataclass(frozen=True)
class Spread:
    """How many times the roof the work of a call takes: hardly less, usually, hardly more."""

    fastest: float
    typical: float
    slowest: float


# Of 142,968 bf16 GEMMs measured on A100, H100 and H200 (aiconfigurator 0.12, NVIDIA), 99.99 % lie
# between these bounds, and the medians at 1.0 to 1.2 times the estimate. On CPUs, whose peaks are
# measured, large products come to 1.0 to 1.3 times the roof, small ones to 2.
CONTRACTION: Final = Spread(0.8, 1.3, 3.0)
# Blocks that a causal mask hides in part are computed whole.
ATTENTION: Final = Spread(0.8, 1.3, 5.0)
STREAMING: Final = Spread(0.6, 1.2, 4.0)
UNKNOWN: Final = Spread(0.5, 2.0, 20.0)

_SPREADS: Final = {
    Kind.CONTRACTION: CONTRACTION,
    Kind.POINTWISE: STREAMING,
    Kind.REDUCTION: STREAMING,
    Kind.INDEX: STREAMING,
    Kind.CREATION: STREAMING,
    Kind.REGION: STREAMING,
}
# Elementwise code has few multiply-adds, long chains and conversions: what it reaches of the peak.
ELEMENTWISE: Final = 0.25
# A call with nothing to do takes between 0.4 and four times what calls usually cost.
_QUICKEST_CALL: Final = 0.4
_SLOWEST_CALL: Final = 4.0
# How far off a size may be that is known only at run time.
_DATA_DEPENDENT: Final = 10.0


class Roofline:
    """A `CostModel`. Equal calls are estimated once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._by_structure: dict[Hashable, Estimate] = {}
        # Graphs share most of their nodes with the graphs they were made from. The node is kept, as
        # its identity is the key.
        self._by_identity: dict[int, tuple[Node, Estimate]] = {}

    def estimate(self, nodes: Sequence[Node], cold: Collection[Value] = ()) -> list[Estimate]:
        """`cold` changes nothing: the upper bound finds nothing in a cache anyhow."""
        return [self._estimate(node) for node in nodes]

    def gain(
        self, apart: Sequence[Sketch], together: Sketch, kernels: Kernels | None = None
    ) -> Estimate:
        """Bytes that are moved once less and launches that fall away, against work that is done
        again. Memory is the slowest there is, as what lies between kernels may be anywhere."""
        target = self.target
        saved = sum(s.moved for s in apart) - together.moved
        again = together.again - sum(s.again for s in apart)
        rate = ELEMENTWISE * target.peak(torch.float32)
        launches = (len(apart) - 1) * target.launch_seconds
        seconds = saved / target.bandwidth + launches - again / rate
        why = f"{show_bytes(saved)} less, {show_flops(again)} more"
        return Estimate(seconds, seconds - launches, seconds + launches, (why,))

    def program(self, found: Walk, alone: Sequence[Estimate]) -> Estimate:
        return total(alone)

    def compare(self, a: Sequence[Node], b: Sequence[Node]) -> Estimate:
        first, second = total(self.estimate(a)), total(self.estimate(b))
        difference = first - second
        why = f"{show_seconds(first.seconds)} against {show_seconds(second.seconds)}"
        return replace(difference, because=(why, *difference.because))

    def _estimate(self, node: Node) -> Estimate:
        seen = self._by_identity.get(id(node))
        if seen is not None:
            return seen[1]
        key = call_key(node)
        found = self._by_structure.get(key)
        if found is None:
            found = self._by_structure[key] = roofline(node, self.target)
        self._by_identity[id(node)] = node, found
        return found


@dataclass(frozen=True)
class Roof:
    """What a call cannot do without, in seconds: its arithmetic at `rate` (in words, `of`), its
    traffic at the `bandwidth` of the `memory` that holds it, and what a call costs besides."""

    work: int
    moved: int
    rate: float
    of: str
    bandwidth: float
    memory: str
    call: float
    spread: Spread

    @property
    def compute_seconds(self) -> float:
        return self.work / self.rate

    @property
    def memory_seconds(self) -> float:
        return self.moved / self.bandwidth

    @property
    def seconds(self) -> float:
        """Of the work alone."""
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def floor(self) -> float:
        """Of the work and the call."""
        return self.call + self.seconds

    @property
    def bound(self) -> str:
        """What most of the time goes to: launch, compute or memory."""
        if self.call > self.spread.typical * self.seconds:
            return "launch"
        return "compute" if self.compute_seconds > self.memory_seconds else "memory"

    @property
    def because(self) -> str:
        if self.bound == "launch":
            return f"{show_seconds(self.call)} a call, {show_seconds(self.seconds)} of work"
        if self.bound == "compute":
            return f"{show_flops(self.work)} at {show_flops(self.rate)}/s ({self.of})"
        return f"{show_bytes(self.moved)} at {show_bytes(self.bandwidth)}/s ({self.memory})"


def roof(node: Node, target: Target) -> Roof:
    """Of a node that is a call."""
    work, moved = hint(flops(node)), hint(bytes_read(node) + bytes_written(node))
    rate, of = _rate(node, target)
    memory, bandwidth = target.memory(moved)
    ours = node.op.kind is Kind.REGION
    call = target.launch_seconds if ours else target.dispatch_seconds
    return Roof(work, moved, rate, of, bandwidth, memory, call, _spread(node))


def roofline(node: Node, target: Target) -> Estimate:
    """The estimate of one node, computed anew."""
    if not is_call(node):
        return NOTHING
    found = roof(node, target)
    spread, call = found.spread, found.call
    cold = max(found.compute_seconds, found.moved / target.bandwidth)
    known = Estimate(
        spread.typical * found.seconds + call,
        spread.fastest * found.seconds + _QUICKEST_CALL * call,
        spread.slowest * cold + _SLOWEST_CALL * call,
        (f"{found.bound} bound: {found.because}",),
    )
    return _widened(node, known)


def _spread(node: Node) -> Spread:
    if is_attention(node):
        return ATTENTION
    return _SPREADS.get(node.op.kind, UNKNOWN)


def is_attention(node: Node) -> bool:
    """True for a library's attention, and for a kernel of ours."""
    if node.op.name in ("rw.attention", "rw.attention_backward"):
        return True
    return node.op.kind is Kind.CONTRACTION and "attention" in node.op.name


def _rate(node: Node, target: Target) -> tuple[float, str]:
    """Operations a second, and in which type."""
    tensors = list(_tensors(node))
    if node.op.name == "rw.quantized_linear":
        return 2 * target.peak(torch.float32), "int8"
    multiplies = node.op.kind is Kind.CONTRACTION or node.op.name == "rw.convolution"
    if tensors and (multiplies or is_attention(node)):
        dtype = tensors[0].dtype
        return target.peak(dtype), DTYPE_NAMES[dtype]
    doubles = any(t.dtype is torch.float64 for t in tensors)
    dtype = torch.float64 if doubles else torch.float32
    return ELEMENTWISE * target.peak(dtype), f"elementwise, {DTYPE_NAMES[dtype]}"


def _widened(node: Node, known: Estimate) -> Estimate:
    """What the model cannot know, said and taken into the bounds."""
    if node.op.kind not in _SPREADS:
        known = replace(known, because=(*known.because, f"no figures for {node.op}"))
    unseen = [s.name for s in _symbols(node) if s.hint is None]
    if not unseen:
        return known
    why = f"{', '.join(unseen)} taken as {UNKNOWN_SIZE}, known only at run time"
    low, high = known.low / _DATA_DEPENDENT, known.high * _DATA_DEPENDENT
    return replace(known, low=low, high=high, because=(*known.because, why))


def _symbols(node: Node) -> tuple[Symbol, ...]:
    return symbols_of(size for type in _tensors(node) for size in type.shape)


def _tensors(node: Node) -> Iterator[TensorType]:
    values = (*node.operands, *node.results)
    return (v.type for v in values if isinstance(v.type, TensorType))


def call_key(node: Node) -> Hashable:
    """Equal for nodes that compute the same thing from operands of the same types."""
    place = {value: i for i, value in enumerate(dict.fromkeys(node.operands))}

    def of_value(value: Value) -> Hashable:
        return place[value], value.type

    return node_key(node, of_value)
