"""The `rw.*` operators: what torch has no operator for.

Every operator above the kernel level says what it computes through a nested graph (its body) or a
reference function; one without a meaning does not exist here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rewright.ir.ops import Effect, Kind


@dataclass(frozen=True)
class DialectFacts:
    """Declaration of one `rw.*` operator. `body` names the nested graph that is its meaning."""

    name: str
    kind: Kind
    doc: str
    effect: Effect = Effect.NONE
    body: str | None = None
    level: str = "aten"


_DECLARATIONS: Final = (
    DialectFacts(
        "rw.constant",
        Kind.CREATION,
        "A tensor known at compile time: `data=` small values in line, or `sha256=` its digest.",
    ),
    DialectFacts(
        "rw.attention",
        Kind.REGION,
        "Attention of queries [B, H, T, D] to keys [B, H, S, D] and values [B, H, S, E], with a "
        "bias [B, H, T, S] when there is a fourth operand; a second result are the logarithms of "
        "the sums of exponentials [B, H, T]; `body` is its formula.",
        body="body",
    ),
    DialectFacts(
        "rw.attention_backward",
        Kind.REGION,
        "Gradients of queries, keys and values, from that of the result of an `rw.attention`, its "
        "operands, and both its results, which come last; `body` is its formula, which computes "
        "probabilities again.",
        body="body",
    ),
    DialectFacts(
        "rw.convolution",
        Kind.REGION,
        "Images [N, C, H, W] that lie channels last by packed filters [O / 16, height, width, C or "
        "1, 16], with a bias [O] or without, and another image for what follows, or none; `body` "
        "is its formula.",
        body="body",
    ),
    DialectFacts(
        "rw.quantized_linear",
        Kind.REGION,
        "x [M, K] times a weight [N, K] in the format `format`: packed, with scales, for int8 with "
        "sums of its rows [N], and with a bias [N] or without; `body` is its formula.",
        body="body",
    ),
    DialectFacts(
        "rw.frozen",
        Kind.OTHER,
        "What is computed of parameters once, and again only when one of them is another tensor or "
        "was written to; `body` says what. Results may lie in a layout of a library, of which only "
        "the sizes are told.",
        body="body",
    ),
    DialectFacts(
        "rw.fused",
        Kind.REGION,
        "One kernel: computes its nested graph `body` on its operands, bit for bit.",
        body="body",
        level="fused",
    ),
    DialectFacts(
        "rw.alloc",
        Kind.STORAGE,
        "A buffer: at `offset` bytes of the arena, or a tensor of its own when there is no offset.",
        effect=Effect.MUTATION,
        level="kernel",
    ),
    DialectFacts(
        "rw.free",
        Kind.STORAGE,
        "The value's storage is not read again.",
        effect=Effect.MUTATION,
        level="kernel",
    ),
)

DIALECT: Final[dict[str, DialectFacts]] = {d.name: d for d in _DECLARATIONS}
