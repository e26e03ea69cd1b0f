"""Graphs written by hand in canonical text: between them, every construct of the text form."""

from __future__ import annotations

from typing import Final

MLP: Final = """\
rewright 1
graph mlp(
    %x: f16[B0, 512],
    %w: f16[2048, 512] param,
    %b: f16[2048] param
) where B0 in [1, 64] hint 8 {
  %h = aten.linear.default(%x, %w, %b) : f16[B0, 2048] @ model.py:14
  %a = aten.gelu.default(%h, approximate="tanh") : f16[B0, 2048] @ model.py:15
  return %a
}"""

EMPTY: Final = """\
rewright 1
graph nothing() {
  return
}"""

SIZES: Final = """\
rewright 1
graph sizes(
    %x: f32[B0, B1, 12],
    %n: int(2*B0)
) where B0 in [2, 64] hint 8 divisor 4, B1 in [0, inf], u0 in [-3, 7] hint 1 {
  %flat = aten.view.default(%x, [B0*B1, 12]) : f32[B0*B1, 12]
  %half = aten.slice.Tensor(%x, 0, 0, B0//2) : f32[B0//2, B1, 12]
  %rest = aten.slice.Tensor(%x, 1, B1 - 1, max(3, B1)) : f32[B0, 1, 12] strides [12*B1, 12, 1]
  %m = py.mod(%n, 3) : int(2*B0%3)
  %k = py.mul(%m, 2) : int(u0)
  %f = py.truediv(%n, 2) : float
  %t = py.lt(%n, 8) : bool
  return %flat, %half, %rest, B0 + 1, [B0**2, min(3, B1)], %f, %t, %k
}"""

TYPES: Final = """\
rewright 1
graph types(
    %strided: f32[2, 3] strides [1, 2],
    %gpu: bf16[4, 4] on cuda:0,
    %both: c64[2, 2] strides [1, 2] on cuda,
    %scalar: f64[],
    %empty: i64[0, 3],
    %mask: bool[2],
    %bytes: u8[7] on meta,
    %eight: f8e4m3fn[16],
    %flag: bool,
    %number: float,
    %generator: generator
) {
  %token = aten.sin.default(%scalar) : token
  %none = aten.sin.default(%scalar) : none
  return %token, %none
}"""

LITERALS: Final = """\
rewright 1
graph literals(%x: f32[2, 3]) {
  %a = aten.add.Tensor(%x, 1) : f32[2, 3]
  %b = aten.add.Tensor(%x, 1.0, alpha=-2) : f32[2, 3]
  %c = aten.where.ScalarSelf(-inf, %x, inf, [], [[1, 2.5], [none, true]], false) : f32[2, 3]
  %d = aten.full.default([2], nan, dtype=bf16, device=device("cuda:1"), pin_memory=false) : f32[2]
  %e = aten.empty.memory_format([2, 3], dtype=f32, layout=layout(strided)) : f32[2, 3]
  %f = aten.clone.default(%x, memory_format=memory_format(channels_last)) : f32[2, 3]
  %g = aten.mul.Tensor(%x, complex(0.0, -inf), 1e-05, 1e+16, -0.0) : c64[2, 3]
  %h = aten.sum.dim_IntList(%x, [0, -1], max=3, none=none, f32=f32, device=device("cpu")) : f32[]
  %i = aten.einsum.default("a\\"b\\\\c\\n\\u00e9,%x#", [%x, %x]) : f32[]
  return %a, none, 3, -1.5, "end", f16, [%b, [%c]]
}"""

NAMES: Final = """\
rewright 1
graph "model.0 (copy)"(%0: f32[2], %"a b": f32[2], %x.1: f32[2], %none: f32[2]) {
  %return = aten.add.Tensor(%0, %"a b") : f32[2] @ "my file.py":3
  %"\\u00e9" = aten.add.Tensor(%x.1, %none) : f32[2] @ <eval_with_key>.1:7
  return %return, %"\\u00e9"
}"""

CONSTANTS: Final = """\
rewright 1
graph constants() {
  %small = rw.constant(data=[1.0, -0.0, 0.1, inf]) : f32[2, 2]
  %half = rw.constant(data=[0.1]) : f16[1]
  %brain = rw.constant(data=[0.10009765625]) : bf16[1]
  %single = rw.constant(data=[7]) : i64[]
  %mask = rw.constant(data=[true, false]) : bool[2]
  %wave = rw.constant(data=[complex(1.0, -2.0)]) : c64[1]
  %none = rw.constant(data=[]) : f32[0, 3]
  %large = rw.constant(sha256="2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae") : f32[64, 64]
  return %small, %half, %brain, %single, %mask, %wave, %none, %large
}"""  # noqa: E501

UPDATES: Final = """\
rewright 1
graph step(
    %p: f32[8] param mutable,
    %m: f32[8] buffer mutable,
    %g: f32[8] tangent,
    %s: f32[8] saved
) {
  %q = aten.sub.Tensor(%p, %g) : f32[8] @ train.py:3 seq 12 backward
  %n = aten.mul.Tensor(%m, %s) : f32[8] seq 0
  %r = aten.neg.default(%n) : f32[8] forward
  update %p <- %q
  update %m <- %r
  return %q
}"""

REGIONS: Final = """\
rewright 1
graph regions(%x: f32[B0, 4], %w: f32[4], %flag: bool[]) where B0 in [2, 64] hint 8 {
  %y = rw.fused(%x, %w) body(%x: f32[B0, 4], %w: f32[4]) {
    %t = aten.mul.Tensor(%x, %w) : f32[B0, 4]
    %u = aten.relu.default(%t) : f32[B0, 4] @ model.py:3
    return %u
  } : f32[B0, 4] @ model.py:4 seq 2 forward
  %s, %m = rw.fused(%y) body row_softmax(%v: f32[B0, 4]) {
    %m = aten.amax.default(%v, [1], true) : f32[B0, 1]
    %d = aten.sub.Tensor(%v, %m) : f32[B0, 4]
    return %d, %m
  } : f32[B0, 4], f32[B0, 1]
  %z = hop.cond(%flag, "@yes", "@no", [%s]) yes(%s: f32[B0, 4]) {
    %r = rw.fused(%s) body(%p: f32[B0, 4]) {
      %n = aten.neg.default(%p) : f32[B0, 4]
      return %n
    } : f32[B0, 4]
    return %r
  } no return(%s: f32[B0, 4]) {
    %c = aten.clone.default(%s) : f32[B0, 4]
    return %c
  } : f32[B0, 4]
  return %z, %m
}"""

KERNELS: Final = """\
rewright 1
graph kernels(%x: f32[64]) {
  %buffer = rw.alloc(offset=128) : f32[64]
  rw.free(%x)
  %y = aten.sin.default(%x) : f32[64]
  rw.free(%buffer) forward
  rw.free(%y) "forward"() {
    return
  } @ model.py:1
  return %y
}"""

CORPUS: Final = {
    "mlp": MLP,
    "empty": EMPTY,
    "sizes": SIZES,
    "types": TYPES,
    "literals": LITERALS,
    "names": NAMES,
    "constants": CONSTANTS,
    "updates": UPDATES,
    "regions": REGIONS,
    "kernels": KERNELS,
}
