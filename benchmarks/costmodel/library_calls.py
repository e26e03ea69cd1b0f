"""Products, convolutions and attention at random sizes: odd ones, long and narrow ones, every type.

    python -m benchmarks.costmodel.library_calls COUNT CALLS

appends COUNT of them to CALLS. Models have few distinct ones, at sizes that are mostly round.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

from benchmarks.costmodel.lines import append_lines
from rewright.calibrate.bench import measurable_cold
from rewright.calibrate.corpus import Call
from rewright.calibrate.suite import call_text
from rewright.ir.parse import parse

TYPES: Final = ("f32", "bf16", "f16", "f64")
ODDS: Final = (0.62, 0.2, 0.08, 0.1)
FLASH: Final = "aten._scaled_dot_product_flash_attention_for_cpu"
# What a call may compute and hold.
MOST_WORK: Final = {"f32": 2e9, "f64": 1e9, "bf16": 1e9, "f16": 5e7, "i8": 2e9}
MOST_ELEMENTS: Final = 1 << 23


def size(draw: Random, low: int, high: int) -> int:
    """Log-uniform; half of the time a multiple of 16, where that is possible."""
    n = round(math.exp(draw.uniform(math.log(low), math.log(high))))
    return max(low, n // 16 * 16) if n >= 16 and draw.random() < 0.5 else n


def tensor(dtype: str, shape: Sequence[int], turned: bool = False) -> str:
    """The type's text; `turned` exchanges the last two dimensions in memory."""
    text = f"{dtype}[{', '.join(map(str, shape))}]"
    if not turned:
        return text
    *outer, m, _ = shape
    steps = [math.prod(shape[i + 1 :]) for i in range(len(outer))]
    return f"{text} strides [{', '.join(map(str, (*steps, 1, m)))}]"


def product(draw: Random) -> str | None:
    dtype = draw.choices(TYPES, ODDS)[0]
    kind = draw.choice(("mm", "mm", "mm", "addmm", "addmm", "bmm", "bmm", "baddbmm", "_int_mm"))
    if kind == "_int_mm":
        m, n, k = size(draw, 17, 1024), size(draw, 16, 2048) // 8 * 8, size(draw, 16, 2048) // 8 * 8
        inputs = [f"i8[{m}, {k}]", tensor("i8", (k, n), draw.random() < 0.5)]
        return call_text(inputs, "aten._int_mm.default(%a0, %a1)", [f"i32[{m}, {n}]"])
    batched = kind in ("bmm", "baddbmm")
    batch = size(draw, 1, 96) if batched else 1
    top = 600 if batched else 4096
    m, n, k = size(draw, 1, min(top, 2048)), size(draw, 2, top), size(draw, 2, top)
    elements = batch * max(m * k, k * n, m * n)
    if 2 * batch * m * n * k > MOST_WORK[dtype] or elements > MOST_ELEMENTS:
        return None
    lead = (batch,) if batched else ()
    left = tensor(dtype, (*lead, m, k), draw.random() < 0.2)
    right = tensor(dtype, (*lead, k, n), draw.random() < 0.45)
    result = [tensor(dtype, (*lead, m, n))]
    if kind == "addmm":
        return call_text(
            [f"{dtype}[{n}]", left, right], "aten.addmm.default(%a0, %a1, %a2)", result
        )
    if kind == "baddbmm":
        bias = tensor(dtype, (batch, 1, n))
        line = "aten.baddbmm.default(%a0, %a1, %a2, alpha=0.125, beta=1.0)"
        return call_text([bias, left, right], line, result)
    return call_text([left, right], f"aten.{kind}.default(%a0, %a1)", result)


def convolution(draw: Random) -> str | None:
    dtype = draw.choices(TYPES[:3], (0.75, 0.15, 0.1))[0]
    images, pixels = size(draw, 1, 8), size(draw, 7, 160)
    taps = draw.choice((1, 1, 2, 3, 3, 3, 4, 5, 7))
    stride = taps if taps in (2, 4) else draw.choice((1, 1, 1, 2))
    channels = size(draw, 3, 512)
    form = draw.choice(("full", "full", "full", "depthwise", "grouped"))
    groups = {"full": 1, "depthwise": channels, "grouped": draw.choice((2, 4, 8))}[form]
    channels = channels // groups * groups
    if channels == 0:
        return None
    filters = channels if form == "depthwise" else max(1, size(draw, 8, 512) // groups) * groups
    padding = taps // 2 if taps % 2 else 0
    out = (pixels + 2 * padding - taps) // stride + 1
    work = 2 * images * filters * out * out * channels // groups * taps * taps
    if out < 1 or work > MOST_WORK[dtype] or images * max(channels, filters) * pixels**2 > 1 << 22:
        return None
    last = draw.random() < 0.35
    x, y = (
        _image(dtype, (images, depth, size, size), last)
        for depth, size in ((channels, pixels), (filters, out))
    )
    w, b = f"{dtype}[{filters}, {channels // groups}, {taps}, {taps}]", f"{dtype}[{filters}]"
    form_of = f"[{stride}, {stride}], [{padding}, {padding}], [1, 1], false, [0, 0], {groups}"
    biased = draw.random() < 0.5
    if draw.random() < 0.35:
        sizes = f"[{filters}]" if biased else "none"
        wanted = f"[{str(draw.random() < 0.8).lower()}, true, {str(biased).lower()}]"
        line = f"aten.convolution_backward.default(%a0, %a1, %a2, {sizes}, {form_of}, {wanted})"
        return call_text([y, x, w], line, [x, w, b]) if "false" not in wanted else None
    inputs = [x, w, b] if biased else [x, w]
    bias = "%a2" if biased else "none"
    return call_text(inputs, f"aten.convolution.default(%a0, %a1, {bias}, {form_of})", [y])


def _image(dtype: str, shape: tuple[int, int, int, int], last: bool) -> str:
    """A tensor of [images, channels, height, width]; `last` has the channels of a pixel side by
    side."""
    _, channels, height, width = shape
    steps = (channels * height * width, 1, width * channels, channels)
    text = tensor(dtype, shape)
    return f"{text} strides [{', '.join(map(str, steps))}]" if last else text


def attention(draw: Random) -> str | None:
    dtype = draw.choices(TYPES, (0.7, 0.15, 0.05, 0.1))[0]
    batch, heads = size(draw, 1, 8), size(draw, 1, 12)
    width = draw.choice((8, 16, 24, 32, 48, 64, 80, 128))
    queries = size(draw, 1, 640)
    keys = queries if draw.random() < 0.8 else size(draw, 1, 640)
    if 4 * batch * heads * queries * keys * width > MOST_WORK[dtype]:
        return None
    interleaved = draw.random() < 0.6
    q, k = (_heads(dtype, (batch, heads, n, width), interleaved) for n in (queries, keys))
    out = _heads(dtype, (batch, heads, queries, width), True)
    wide = "f64" if dtype == "f64" else "f32"
    sums = f"{wide}[{batch}, {heads}, {queries}] strides [{queries * heads}, 1, {heads}]"
    causal = queries == keys and draw.random() < 0.35
    masked = not causal and draw.random() < 0.4
    mask = [tensor(dtype, (batch, 1, queries, keys))] if masked else []
    if draw.random() < 0.3:
        inputs = [out, q, k, k, out, sums, *mask]
        flags = f"%a0, %a1, %a2, %a3, %a4, %a5, 0.0, {str(causal).lower()}, "
        line = f"{FLASH}_backward.default({flags}{'attn_mask=%a6, ' * masked}scale=0.125)"
        return call_text(inputs, line, [q, k, k])
    flags = "0.0, true, " if causal else ""
    line = f"{FLASH}.default(%a0, %a1, %a2, {flags}{'attn_mask=%a3, ' * masked}scale=0.125)"
    return call_text([q, k, k, *mask], line, [out, sums])


def _heads(dtype: str, shape: tuple[int, int, int, int], interleaved: bool) -> str:
    """A tensor of [batch, heads, length, width]; `interleaved` has the heads of a position side by
    side."""
    _, heads, length, width = shape
    steps = (length * heads * width, width, heads * width, 1)
    text = tensor(dtype, shape)
    return f"{text} strides [{', '.join(map(str, steps))}]" if interleaved else text


KINDS: Final = (product, product, product, convolution, convolution, attention)


def drawn(count: int) -> Iterator[dict[str, Any]]:
    """`count` rows; a fifth of those with large weights read them from memory."""
    draw, made = Random(0), 0
    while made < count:
        kind = KINDS[made % len(KINDS)]
        text = kind(draw)
        if text is None:
            continue
        cold: tuple[int, ...] = ()
        graph = parse(text)
        places = {"product": len(graph.inputs) - 1, "convolution": 1}
        if kind.__name__ in places:
            far = Call(graph, (places[kind.__name__],))
            cold = far.cold if measurable_cold(far) and draw.random() < 0.6 else ()
        family = f"library_{kind.__name__}_{made % 8}"
        made += 1
        yield {
            "model": family,
            "family": family,
            "split": "train",
            "dtype": text.split("[")[0].split(": ")[1],
            "cold": list(cold),
            "text": str(graph),
        }


def main(count: int, calls: Path) -> None:
    append_lines(calls, drawn(count))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
