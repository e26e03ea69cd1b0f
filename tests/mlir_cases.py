"""Graphs and MLIR texts for the tests of MLIR: what the dialect says oddly, and what is wrong."""

from __future__ import annotations

from typing import Final

# What a vtensor does not say: strides, roles, updates, devices, phases, several names, no result.
FACTS: Final = """\
rewright 1
graph "facts of a graph"(
    %x: f32[B0, 8],
    %layer.bias: f32[8] param,
    %count: i64[1] buffer mutable,
    %turned: f32[8, 3] strides [1, 8],
    %far: f16[2] on cuda:0,
    %"odd name": f32[1, 1, 4] saved,
    %k: int(B1)
) where B0 in [1, 64] hint 4 divisor 2, B1 in [0, inf] hint 3 {
  %a = aten.add.Tensor(%x, %layer.bias) : f32[B0, 8] @ model.py:7 seq 3 forward
  %t = aten.permute.default(%a, [1, 0]) : f32[8, B0] strides [1, 8] @ "my file.py":8 seq 4 backward
  %sorted, %order = aten.sort.default(%a) : f32[B0, 8], i64[B0, 8]
  %left, %right = aten.split.Tensor(%x, 4, 1)
      : f32[B0, 4] strides [8, 1], f32[B0, 4] strides [8, 1]
  %g, %n, %m = aten.convolution_backward.default(%"odd name", %"odd name", %"odd name",
      none, [1], [0], [1], false, [0], 1, [true, false, false]) : f32[1, 1, 4], none, none
  %count_1 = aten.add.Tensor(%count, 1) : i64[1]
  update %count <- %count_1
  return %sorted, %t, %right, %x, %g, none, B0, 2.5, true
}"""

# Sizes and numbers: what affine maps say and what they do not, numbers of every kind where another
# is wanted, numbers that are computed. Sizes stand for the numbers that they are, as the importer
# of fx has it: `2*B0` for %n.
NUMBERS: Final = """\
rewright 1
graph numbers(
    %x: f32[B0, B1, 12],
    %n: int(2*B0),
    %given: float,
    %flag: bool
) where B0 in [2, 64] hint 8 divisor 4, B1 in [0, inf], u0 in [0, inf], u1 in [-3, 7] {
  %flat = aten.view.default(%x, [B0*B1, 12]) : f32[B0*B1, 12]
  %half = aten.slice.Tensor(%x, 0, 0, B0//2) : f32[B0//2, B1, 12]
  %most = aten.new_zeros.default(%x, [max(3, B1), B0**2, B0%3]) : f32[max(3, B1), B0**2, B0%3]
  %m = py.mod(2*B0, 3) : int(2*B0%3)
  %u = py.mul(2*B0%3, 2) : int(u1)
  %f = py.truediv(2*B0, 2) : float
  %t = py.lt(2*B0, 8) : bool
  %f2 = py.sym_float(B0) : float
  %f3 = py.mul(%f2, %given) : float
  %f4 = py.sym_ite(%t, %f2, %f3) : float
  %scaled = aten.mul.Tensor(%x, %f4) : f32[B0, B1, 12]
  %one = aten.mul.Tensor(%x, true) : f32[B0, B1, 12]
  %power = aten.pow.Scalar(true, %x) : f32[B0, B1, 12]
  %same = aten.eq.Tensor(%x, 2) : bool[B0, B1, 12]
  %nan = aten.add.Tensor(%x, nan, alpha=-2) : f32[B0, B1, 12]
  %zero = aten.sub.Tensor(%x, -0.0) : f32[B0, B1, 12]
  %drop = aten.dropout.default(%x, 0, false) : f32[B0, B1, 12]
  %full = aten.full.default([2], inf, device=device("cpu"), dtype=bf16, pin_memory=false) : bf16[2]
  %kept = aten.clone.default(%x, memory_format=memory_format(contiguous)) : f32[B0, B1, 12]
  %found = aten.nonzero.default(%x) : i64[u0, 3]
  %rest = aten.slice.Tensor(%found, 0, 1, u0 - 1) : i64[u0 - 2, 3]
  %plain = aten.contiguous.default(%x) : f32[B0, B1, 12]
  %rolled = aten.roll.default(%x, 1, [B0]) : f32[B0, B1, 12]
  aten._assert_async.msg(%same, "they must be")
  %text = aten.einsum.default("abc,abc->c", [%x, %x]) : f32[12]
  return %flat, B0 + 1, B0**2, min(3, B1), u1, %f, %flag
}"""

# By hand, without anything of ours.
FUNCTION: Final = """\
!m = !torch.vtensor<[2,3],f32>
module {
  func.func @main(%x: !m, %y: !m) -> !m {
    BODY
  }
}
"""
RELU: Final = ("%0 = torch.aten.relu %x : !m -> !m", "return %0 : !m")

# Two sizes that the addition makes one; results that say less than their operators know; a view of
# what is not contiguous, as torch-mlir leaves it, for tensors of the dialect have no strides.
DYNAMIC: Final = """\
!m = !torch.vtensor<[?,3],f32>
!t = !torch.vtensor<[3,?],f32>
!v = !torch.vtensor<[?],f32>
module {
  func.func @main(%x: !m, %y: !m, %n: !v) -> (!t, !v, !v) {
    %int0 = torch.constant.int 0
    %int1 = torch.constant.int 1
    %int3 = torch.constant.int 3
    %0 = torch.aten.add.Tensor %x, %y, %int1 : !m, !m, !torch.int -> !m
    %1 = torch.aten.transpose.int %0, %int0, %int1 : !m, !torch.int, !torch.int -> !t
    %2 = torch.aten.size.int %y, %int0 : !m, !torch.int -> !torch.int
    %3 = torch.aten.mul.int %2, %int3 : !torch.int, !torch.int -> !torch.int
    %4 = torch.prim.ListConstruct %3 : (!torch.int) -> !torch.list<int>
    %5 = torch.aten.view %1, %4 : !t, !torch.list<int> -> !v
    %6 = torch.aten.relu %n : !v -> !v
    return %1, %5, %6 : !t, !v, !v
  }
}
"""
DYNAMIC_GRAPH: Final = """\
graph main(
    %arg0: f32[B0, 3],
    %arg1: f32[B0, 3],
    %arg2: f32[B2]
) where B0 in [0, inf] hint 8, B2 in [0, inf] hint 8 {
  %add = aten.add.Tensor(%arg0, %arg1) : f32[B0, 3] @ made.mlir:9
  %transpose = aten.transpose.int(%add, 0, 1) : f32[3, B0] strides [1, 3] @ made.mlir:10
  %reshape = aten.reshape.default(%transpose, [3*B0]) : f32[3*B0] @ made.mlir:14
  %relu = aten.relu.default(%arg2) : f32[B2] @ made.mlir:15
  return %transpose, %reshape, %relu
}"""


def function(*lines: str) -> str:
    return FUNCTION.replace("BODY", "\n    ".join(lines))
