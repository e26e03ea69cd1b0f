"""The calls that `rewright calibrate` times: some of every family, small and large, in two types.

They are the same on every machine, and in an order that a part of them is a fair sample.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from rewright.calibrate.corpus import Call
from rewright.costmodel import Roofline
from rewright.ir import Graph, is_call
from rewright.ir.alone import alone, obstacle
from rewright.ir.parse import parse
from rewright.ir.target import Target
from rewright.passes import Env, Fuse

# Pieces that become one kernel. T is the type, [R, C] the space.
KERNELS: Final[Mapping[str, str]] = {
    "chain": """
  %a = aten.mul.Tensor(%x, %w) : T[R, C]
  %b = aten.add.Tensor(%a, %y) : T[R, C]
  %r = aten.tanh.default(%b) : T[R, C]
""",
    "sum": """
  %r = aten.add.Tensor(%x, %y) : T[R, C]
""",
    "softmax": """
  %a = aten.amax.default(%x, [1], true) : T[R, 1]
  %b = aten.sub.Tensor(%x, %a) : T[R, C]
  %c = aten.exp.default(%b) : T[R, C]
  %d = aten.sum.dim_IntList(%c, [1], true) : T[R, 1]
  %r = aten.div.Tensor(%c, %d) : T[R, C]
""",
    "norm": """
  %a = aten.mul.Tensor(%x, %x) : T[R, C]
  %b = aten.mean.dim(%a, [1], true) : T[R, 1]
  %c = aten.add.Scalar(%b, 1.0e-05) : T[R, 1]
  %d = aten.rsqrt.default(%c) : T[R, 1]
  %e = aten.mul.Tensor(%x, %d) : T[R, C]
  %r = aten.mul.Tensor(%e, %w) : T[R, C]
""",
    "columns": """
  %a = aten.mul.Tensor(%x, %y) : T[R, C]
  %r = aten.sum.dim_IntList(%a, [0]) : T[C]
""",
    "erf": """
  %a = aten.erf.default(%x) : T[R, C]
  %r = aten.mul.Tensor(%a, %y) : T[R, C]
""",
}
SPACES: Final = ((60, 200), (512, 768), (1500, 1024))
TYPES: Final = ("f32", "bf16")

# [m, k] by [k, n].
PRODUCTS: Final = (
    (8, 768, 768),
    (64, 256, 1024),
    (128, 768, 3072),
    (256, 512, 512),
    (500, 300, 77),
)
# Images, channels, filters, pixels, taps, groups.
CONVOLUTIONS: Final = (
    (1, 64, 64, 56, 3, 1),
    (2, 128, 256, 28, 1, 1),
    (1, 96, 96, 40, 7, 96),
    (4, 3, 32, 64, 3, 1),
)
# Batch, heads, length, width.
ATTENTION: Final = ((1, 4, 64, 32), (2, 8, 128, 64), (1, 12, 512, 64), (4, 6, 197, 48))


def suite(target: Target) -> Iterator[Call]:
    """The calls, families in turn."""
    families: list[list[Graph]] = [[], [], [], []]
    for (rows, columns), body, dtype in itertools.product(SPACES, KERNELS.values(), TYPES):
        families[0].append(_kernel(body, rows, columns, dtype, target))
    families[1] = [_product(*sizes) for sizes in PRODUCTS] + [_added(*s) for s in PRODUCTS]
    families[2] = [_convolution(*sizes) for sizes in CONVOLUTIONS]
    families[3] = [_attention(*sizes) for sizes in ATTENTION]
    for turn in itertools.zip_longest(*families):
        for graph in filter(None, turn):
            yield Call(graph, ())


def _kernel(body: str, rows: int, columns: int, dtype: str, target: Target) -> Graph:
    given = "%x: T[R, C], %y: T[R, C], %w: T[C]"
    text = f"graph call({given}) {{{body}  return %r\n}}"
    for name, value in (("T[", f"{dtype}["), ("R", str(rows)), ("C]", f"{columns}]")):
        text = text.replace(name, value)
    fused = Fuse().run(parse(text), Env(cost=Roofline(target), target=target))
    calls = [node for node in fused.nodes if is_call(node)]
    assert obstacle(calls[0]) is None
    return alone(calls[0])


def call_text(inputs: Sequence[str], line: str, results: Sequence[str]) -> str:
    """The text of a graph of one call: types of its inputs and results, `%a0`, `%a1` ... in its
    line."""
    given = ", ".join(f"%a{i}: {text}" for i, text in enumerate(inputs))
    names = ", ".join(f"%r{i}" for i in range(len(results)))
    types = ", ".join(results)
    return f"graph call({given}) {{\n  {names} = {line} : {types}\n  return {names}\n}}\n"


def _call(inputs: Sequence[str], line: str, results: Sequence[str]) -> Graph:
    return parse(call_text(inputs, line, results))


def _product(m: int, k: int, n: int) -> Graph:
    line = "aten.mm.default(%a0, %a1)"
    return _call([f"f32[{m}, {k}]", f"f32[{k}, {n}]"], line, [f"f32[{m}, {n}]"])


def _added(m: int, k: int, n: int) -> Graph:
    """As a linear layer: with a bias, the weight transposed."""
    inputs = [f"f32[{n}]", f"f32[{m}, {k}]", f"f32[{k}, {n}] strides [1, {k}]"]
    return _call(inputs, "aten.addmm.default(%a0, %a1, %a2)", [f"f32[{m}, {n}]"])


def _convolution(
    images: int, channels: int, filters: int, pixels: int, taps: int, groups: int
) -> Graph:
    x = f"f32[{images}, {channels}, {pixels}, {pixels}]"
    w = f"f32[{filters}, {channels // groups}, {taps}, {taps}]"
    pad = taps // 2
    form = f"[1, 1], [{pad}, {pad}], [1, 1], false, [0, 0], {groups}"
    line = f"aten.convolution.default(%a0, %a1, %a2, {form})"
    result = f"f32[{images}, {filters}, {pixels}, {pixels}]"
    return _call([x, w, f"f32[{filters}]"], line, [result])


def _attention(batch: int, heads: int, length: int, width: int) -> Graph:
    shape = f"f32[{batch}, {heads}, {length}, {width}]"
    steps = f"strides [{length * heads * width}, {width}, {heads * width}, 1]"
    sums = f"f32[{batch}, {heads}, {length}] strides [{length * heads}, 1, {heads}]"
    name = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    line = f"{name}(%a0, %a1, %a2, 0.0, true, scale=0.125)"
    return _call([shape] * 3, line, [f"{shape} {steps}", sums])
