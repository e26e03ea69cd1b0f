"""Regions that exercise the Triton emitter. As a script (under TRITON_INTERPRET=1) it runs all of
them interpreted and saves what came out."""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from primitives import FUNCTIONS
from rewright.ir import Graph, TensorType, evaluate
from rewright.ir.expr import PREDICATES, PRIMITIVES
from rewright.ir.interpret import interpret
from rewright.ir.loops import (
    Affine,
    Apply,
    Axis,
    Buffer,
    Let,
    Load,
    Nest,
    Ref,
    Stage,
    Statement,
    Store,
    lower,
)
from rewright.ir.parse import parse


@dataclass(frozen=True)
class Case:
    """A region as text. `sizes` gives each tuple of run-time sizes to run it at, in the order of
    its symbols; `special` puts NaN and infinities among the inputs."""

    text: str
    sizes: tuple[tuple[int, ...], ...] = ((),)
    special: bool = False

    def graph(self) -> Graph:
        return parse(f"graph g{self.text.strip()}")

    def nest(self) -> Nest:
        return lower(self.graph(), "kernel")

    def symbols(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.graph().symbols)

    def inputs(self, values: Sequence[int]) -> list[Tensor]:
        sizes = dict(zip(self.symbols(), values, strict=True))
        generator = torch.Generator().manual_seed(zlib.crc32(self.text.encode()))
        types = [i.value.tensor for i in self.graph().inputs]
        return [random_tensor(type, sizes, generator, self.special) for type in types]


def random_tensor(
    type: TensorType, sizes: Mapping[str, int], generator: torch.Generator, special: bool
) -> Tensor:
    """Normal numbers, or integers without zero."""
    shape = [evaluate(size, sizes) for size in type.shape]
    strides = [evaluate(stride, sizes) for stride in type.layout]
    count = evaluate(type.storage_elements, sizes)
    data = torch.randn(count, generator=generator, dtype=torch.float64) * 3
    if special:
        data[::7], data[3::11], data[5::13] = float("nan"), float("inf"), -float("inf")
    if type.dtype is torch.bool:
        data = data > 0
    elif not type.dtype.is_floating_point:
        data = data.abs().ceil() * (1 if type.dtype is torch.uint8 else data.sign())
    return data.to(type.dtype).as_strided(shape, strides)


ANY = "where B in [0, inf] hint {}, S in [0, inf] hint {}"

CASES = {
    "permute": Case("""(%x: f32[6, 5, 64], %w: bf16[64]) {
  %g = aten.gelu.default(%x) : f32[6, 5, 64]
  %p = aten.permute.default(%g, [1, 0, 2]) : f32[5, 6, 64]
  %r = aten.mul.Tensor(%p, %w) : f32[5, 6, 64]
  return %r
}"""),
    "dynamic": Case(
        f"""(%x: f16[B, S, 48], %y: f16[S, B, 1]) {ANY.format(3, 5)} {{
  %t = aten.transpose.int(%x, 0, 1) : f16[S, B, 48]
  %s = aten.sigmoid.default(%t) : f16[S, B, 48]
  %r = aten.mul.Tensor(%s, %y) : f16[S, B, 48]
  return %r
}}""",
        ((3, 5), (1, 1), (7, 40), (0, 4)),
    ),
    "transpose": Case("""(%x: f32[40, 70], %y: f32[70, 40]) {
  %t = aten.t.default(%x) : f32[70, 40]
  %r = aten.sub.Tensor(%t, %y) : f32[70, 40]
  return %r
}"""),
    "dynamic_transpose": Case(
        f"""(%x: bf16[B, S, 6], %y: f32[6, 1, 1]) {ANY.format(40, 50)} {{
  %p = aten.permute.default(%x, [2, 1, 0]) : bf16[6, S, B]
  %h = aten.heaviside.default(%p, %p) : bf16[6, S, B]
  %r = aten.mul.Tensor(%h, %y) : f32[6, S, B]
  return %r
}}""",
        ((40, 50), (33, 1), (3, 64), (5, 0)),
    ),
    "slice": Case("""(%x: bf16[9, 40], %m: bool[9, 8]) {
  %a = aten.slice.Tensor(%x, 1, 3, 35, 4) : bf16[9, 8]
  %b = aten.masked_fill.Scalar(%a, %m, -0.5) : bf16[9, 8]
  %c = aten.tanh.default(%b) : bf16[9, 8]
  %d = aten.gt.Tensor(%c, %a) : bool[9, 8]
  return %c, %d
}"""),
    "integers": Case("""(%x: i64[7, 9], %y: i32[9], %z: u8[7, 1]) {
  %a = aten.floor_divide.default(%x, %y) : i64[7, 9]
  %b = aten.add.Tensor(%a, %z) : i64[7, 9]
  %c = aten.remainder.Scalar(%b, -3) : i64[7, 9]
  %d = aten.mul.Tensor(%z, 77) : u8[7, 1]
  %e = aten.mul.Tensor(%d, %z) : u8[7, 1]
  %f = aten.bitwise_or.Tensor(%c, %e) : i64[7, 9]
  return %f
}"""),
    "float64": Case(
        """(%x: f64[37], %y: f32[37]) {
  %a = aten.mul.Scalar(%x, 0.1) : f64[37]
  %b = aten.exp.default(%a) : f64[37]
  %c = aten.div.Tensor(%b, %y) : f64[37]
  %d = aten.where.ScalarOther(%e, %c, 0.3) : f64[37]
  return %d
}""".replace("  %d", "  %e = aten.lt.Scalar(%x, 0.7) : bool[37]\n  %d", 1)
    ),
    "special": Case(
        """(%x: f32[50], %y: f32[50]) {
  %a = aten.maximum.default(%x, %y) : f32[50]
  %b = aten.clamp_min.default(%x, 0) : f32[50]
  %c = aten.isnan.default(%y) : bool[50]
  %d = aten.where.self(%c, %a, %b) : f32[50]
  %e = aten._to_copy.default(%d, dtype=bf16) : bf16[50]
  return %d, %e
}""",
        special=True,
    ),
    "cat": Case("""(%x: f32[4, 3, 5], %y: bf16[4, 7, 5], %z: f32[4, 1, 5]) {
  %n = aten.neg.default(%y) : bf16[4, 7, 5]
  %c = aten.cat.default([%x, %n, %z], 1) : f32[4, 11, 5]
  %r = aten.relu.default(%c) : f32[4, 11, 5]
  return %r
}"""),
    "triangle": Case("""(%x: f32[3, 12, 12]) {
  %t = aten.tril.default(%x, -1) : f32[3, 12, 12]
  %p = aten.constant_pad_nd.default(%t, [1, 2, 0, 1], 2.5) : f32[3, 13, 15]
  return %p
}"""),
    "positions": Case(
        f"""(%x: f32[B, S]) {ANY.format(4, 8)} {{
  %i = aten.arange.default(S, device=device("cpu"), pin_memory=false) : i64[S]
  %m = aten.lt.Scalar(%i, 3) : bool[S]
  %r = aten.where.ScalarOther(%m, %x, 0.0) : f32[B, S]
  return %r
}}""",
        ((4, 8), (2, 33)),
    ),
    "strided": Case("""(%x: f32[8, 6] strides [1, 10], %y: bf16[8, 6] strides [0, 1]) {
  %r = aten.add.Tensor(%x, %y, alpha=0.5) : f32[8, 6]
  return %r
}"""),
    "scalar": Case("""(%x: f32[], %y: f32[1, 1]) {
  %r = aten.sub.Tensor(%x, %y) : f32[1, 1]
  return %r
}"""),
    "empty": Case("""(%x: f32[0, 5]) {
  %r = aten.exp.default(%x) : f32[0, 5]
  return %r
}"""),
    "softmax": Case("""(%x: bf16[5, 100], %m: bf16[100]) {
  %a = aten.add.Tensor(%x, %m) : bf16[5, 100]
  %s = aten._softmax.default(%a, -1, false) : bf16[5, 100]
  return %s
}"""),
    "softmax_of_whole_block": Case("""(%x: f32[6, 64]) {
  %s = aten._softmax.default(%x, -1, false) : f32[6, 64]
  return %s
}"""),
    "long_softmax": Case("""(%x: f32[2, 17000]) {
  %s = aten._softmax.default(%x, 1, false) : f32[2, 17000]
  return %s
}"""),
    "log_softmax": Case(
        f"""(%x: f16[B, S, 3]) {ANY.format(3, 20)} {{
  %v = aten.view.default(%x, [B, S*3]) : f16[B, S*3]
  %s = aten._log_softmax.default(%v, 1, false) : f16[B, S*3]
  return %s
}}""",
        ((3, 20), (1, 400)),
    ),
    "softmax_gradient": Case("""(%g: f32[4, 33], %y: f32[4, 33], %s: f32[4, 33]) {
  %a = aten.mul.Tensor(%g, %s) : f32[4, 33]
  %r = aten._softmax_backward_data.default(%a, %y, -1, f32) : f32[4, 33]
  return %r
}"""),
    "layer_norm": Case("""(%x: bf16[5, 70], %y: bf16[5, 70], %w: bf16[70], %b: bf16[70]) {
  %s = aten.add.Tensor(%x, %y) : bf16[5, 70]
  %l, %m, %r = aten.native_layer_norm.default(%s, [70], %w, %b, 1e-05)
      : bf16[5, 70], bf16[5, 1], bf16[5, 1]
  return %s, %l, %m, %r
}"""),
    "rms_norm": Case("""(%x: f16[6, 128], %w: f16[128]) {
  %f = aten._to_copy.default(%x, dtype=f32) : f32[6, 128]
  %q = aten.pow.Tensor_Scalar(%f, 2) : f32[6, 128]
  %m = aten.mean.dim(%q, [-1], true) : f32[6, 1]
  %e = aten.add.Tensor(%m, 1e-06) : f32[6, 1]
  %r = aten.rsqrt.default(%e) : f32[6, 1]
  %n = aten.mul.Tensor(%f, %r) : f32[6, 128]
  %h = aten._to_copy.default(%n, dtype=f16) : f16[6, 128]
  %o = aten.mul.Tensor(%w, %h) : f16[6, 128]
  return %o
}"""),
    "sum_of_first": Case("""(%x: f32[300, 37], %y: f32[300, 1]) {
  %a = aten.mul.Tensor(%x, %y) : f32[300, 37]
  %s = aten.sum.dim_IntList(%a, [0]) : f32[37]
  return %s
}"""),
    "mean_of_middle": Case(
        f"""(%x: bf16[B, 6, S, 5]) {ANY.format(3, 9)} {{
  %m = aten.mean.dim(%x, [1, 2]) : bf16[B, 5]
  %r = aten.relu.default(%m) : bf16[B, 5]
  return %r
}}""",
        ((3, 9), (2, 70)),
    ),
    "short_rows": Case("""(%x: f32[70, 9]) {
  %m = aten.amax.default(%x, [1]) : f32[70]
  %s = aten.sum.dim_IntList(%x, [1]) : f32[70]
  %p = aten.prod.dim_int(%x, 1) : f32[70]
  return %m, %s, %p
}"""),
    "special_rows": Case(
        """(%x: f32[9, 30]) {
  %a = aten.amax.default(%x, [1], true) : f32[9, 1]
  %b = aten.amin.default(%x, [1]) : f32[9]
  %c = aten.ne.Tensor(%x, %a) : bool[9, 30]
  %d = aten.all.dim(%c, 1) : bool[9]
  return %a, %b, %d
}""",
        special=True,
    ),
    "everything": Case("""(%x: i32[20, 30]) {
  %b = aten.gt.Scalar(%x, 8) : bool[20, 30]
  %a = aten.any.default(%b) : bool[]
  %s = aten.sum.default(%x) : i64[]
  %m = aten.max.default(%x) : i32[]
  return %a, %s, %m
}"""),
    "sum_of_nothing": Case("""(%x: f32[4, 0]) {
  %s = aten.sum.dim_IntList(%x, [1]) : f32[4]
  return %s
}"""),
    "sum_of_one": Case("""(%x: f32[4, 1]) {
  %s = aten.sum.dim_IntList(%x, [1]) : f32[4]
  return %s
}"""),
    "sum_of_equals": Case("""(%x: f32[4]) {
  %u = aten.unsqueeze.default(%x, 1) : f32[4, 1]
  %e = aten.expand.default(%u, [4, 64]) : f32[4, 64]
  %s = aten.sum.dim_IntList(%e, [1]) : f32[4]
  return %s
}"""),
}


# --- primitives -----------------------------------------------------------------------------------

NUMBERS: Final[dict[torch.dtype, list[float]]] = {
    torch.float32: [0.0, -0.0, 1, -1, 0.5, 2.5, -3.5, 7, 1e-3, 0.1, 88, 1e-40, 3e38, -1e5, 0.999],
    torch.float64: [0.0, -0.0, 1, -1, 0.5, 2.5, -3.5, 7, 1e-3, 0.1, 88, 1e-310, 1e200, -1e5, 0.999],
    torch.int32: [0, 1, -1, 2, -2, 3, 5, -7, 31, 32, 33, 2**31 - 1, -(2**31) + 1, 1000, -1000],
    torch.int64: [0, 1, -1, 2, -2, 3, 5, -7, 63, 64, 33, 2**63 - 1, -(2**63) + 1, 1000, -1000],
    torch.bool: [False, True],
}
NOT_FINITE = [float("nan"), float("inf"), -float("inf")]
_LOGIC = {name for name in PRIMITIVES if name.startswith("logical_")}
_BITS = {"bit_and", "bit_or", "bit_xor", "bit_not"}
_ORDER = {"eq", "ne", "lt", "le", "gt", "ge", "maximum", "minimum", "select"}
OF_MASKS = _LOGIC | _BITS | _ORDER | {"add", "mul"}
OF_INTEGERS = OF_MASKS | {
    *("sub", "neg", "abs", "sign", "pow", "fmax", "fmin", "shift_left", "shift_right"),
    *("fmod", "remainder", "div_floor", "div_trunc"),
}
OF_FLOATS = PRIMITIVES.keys() - _BITS - {"shift_left", "shift_right"}


def primitives(dtype: torch.dtype) -> list[str]:
    known = OF_MASKS if dtype is torch.bool else OF_INTEGERS
    return sorted(OF_FLOATS if dtype.is_floating_point else known)


def operands(dtype: torch.dtype) -> list[Tensor]:
    """A mask, and every pair of numbers; nothing is divided by an integer zero."""
    values = [*NUMBERS[dtype], *(NOT_FINITE if dtype.is_floating_point else [])]
    numbers = torch.tensor(values, dtype=dtype)
    divisors = numbers if dtype.is_floating_point or dtype is torch.bool else numbers[1:]
    x, y = (t.flatten().contiguous() for t in torch.meshgrid(numbers, divisors, indexing="ij"))
    return [torch.arange(len(x)) % 3 == 0, x, y]


def primitive_nest(dtype: torch.dtype, count: int | None = None) -> Nest:
    """Every primitive over `dtype`, one output each; `count` elements, or as many as operands."""
    axis = Axis("a0", len(operands(dtype)[0]) if count is None else count)
    at = Affine((("a0", 1),))
    types = {"m": torch.bool, "x": dtype, "y": dtype}
    loads = [Let(name, Load(name, at, type)) for name, type in types.items()]
    inputs = tuple(Buffer(name, _vector(type, axis)) for name, type in types.items())
    results = {n: torch.bool if n in PREDICATES else dtype for n in primitives(dtype)}
    body: list[Statement] = []
    for name, result in results.items():
        args = [Ref("m", torch.bool), Ref("x", dtype), Ref("y", dtype)]
        args = args if PRIMITIVES[name] == 3 else args[1 : 1 + PRIMITIVES[name]]
        body += [Let(f"t_{name}", Apply(name, tuple(args), result))]
        body += [Store(name, at, Ref(f"t_{name}", result))]
    outputs = tuple(Buffer(n, _vector(d, axis)) for n, d in results.items())
    stages = (Stage("column", (*loads, *body)),)
    return Nest("kernel", (axis,), (), None, inputs, outputs, stages)


def _vector(dtype: torch.dtype, axis: Axis) -> TensorType:
    return TensorType(dtype, (axis.size,))


def expected(name: str, dtype: torch.dtype) -> Tensor:
    """Element by element: where torch computes vectors, `fmod` of far numbers is not exact."""
    mask, x, y = operands(dtype)
    args = (mask, x, y) if PRIMITIVES[name] == 3 else (x, y)[: PRIMITIVES[name]]
    return torch.stack([FUNCTIONS[name](*numbers) for numbers in zip(*args, strict=True)])


# --- running --------------------------------------------------------------------------------------


def run(
    nest: Nest, symbols: Sequence[str], values: Sequence[int], inputs: Sequence[Tensor]
) -> list[Tensor]:
    """The nest's outputs, computed where the inputs are."""
    from rewright.codegen.triton import emit, load

    sizes = dict(zip(symbols, values, strict=True))
    outputs = [
        torch.empty_strided(
            [evaluate(s, sizes) for s in b.type.shape],
            [evaluate(s, sizes) for s in b.type.layout],
            dtype=b.type.dtype,
            device=inputs[0].device,
        )
        for b in nest.outputs
    ]
    load(emit(nest, symbols))(*inputs, *outputs, *values)
    return outputs


def run_case(name: str, device: str) -> list[list[Tensor]]:
    """Outputs of a case at each of its sizes."""
    case = CASES[name]
    return [
        run(case.nest(), case.symbols(), values, [t.to(device) for t in case.inputs(values)])
        for values in case.sizes
    ]


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Relative L2 where the reference is finite; infinite where the rest is not the same."""
    found, reference = found.double(), reference.double()
    finite = reference.isfinite()
    if not torch.equal(found[~finite].nan_to_num(7.0), reference[~finite].nan_to_num(7.0)):
        return math.inf
    difference = torch.linalg.vector_norm((found - reference)[finite])
    return float(difference / torch.linalg.vector_norm(reference[finite]).clamp_min(1e-30))


def check(case: Case, values: Sequence[int], found: Sequence[Tensor]) -> None:
    """Outputs are as good as eager's, at twice its distance from float64 and 1e-6."""
    inputs = case.inputs(values)
    exact = interpret(case.graph(), inputs, dtype=torch.float64)
    eager = interpret(case.graph(), inputs)
    for ours, theirs, reference in zip(found, eager, exact, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        if not ours.dtype.is_floating_point:
            assert torch.equal(ours, theirs)
            continue
        limit = 2 * relative_error(theirs, reference) + 1e-6
        assert relative_error(ours, reference) <= limit


def check_primitives(
    dtype: torch.dtype, found: list[Tensor], tolerance: float, least: float = 0.0
) -> None:
    """Within a relative tolerance, or within `least`."""
    wrong = []
    for name, ours in zip(primitives(dtype), found, strict=True):
        wanted = expected(name, dtype)
        if not torch.allclose(ours, wanted, rtol=tolerance, atol=least, equal_nan=True):
            wrong.append(name)
    assert not wrong, wrong


def run_primitives(dtype: torch.dtype, device: str) -> list[Tensor]:
    return run(primitive_nest(dtype), (), (), [t.to(device) for t in operands(dtype)])


def main(file: str) -> None:
    from rewright.codegen.triton import emit

    sources = {name: emit(case.nest(), case.symbols()).source for name, case in CASES.items()}
    results = {
        "sources": sources,
        "emits_without_triton": "triton" not in sys.modules,
        "cases": {name: run_case(name, "cpu") for name in CASES},
        "primitives": {dtype: run_primitives(dtype, "cpu") for dtype in NUMBERS},
    }
    torch.save(results, file)


if __name__ == "__main__":
    main(sys.argv[1])
