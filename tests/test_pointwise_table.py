"""Every formula of `ir.pointwise` against eager ATen, on ordinary and on special numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pointwise_cases import FLOATS, INTS, MASK, Arguments, Slot, cases_of, given, node_of
from primitives import FUNCTIONS, evaluate
from rewright.ir.expr import PREDICATES, PRIMITIVES, Call, Literal, Operand, Scalar, call
from rewright.ir.graph import Value
from rewright.ir.ops import Kind, op
from rewright.ir.pointwise import POINTWISE, Element, compute_dtype, scalar_expr
from rewright.ir.types import TensorType

# --- where eager itself is not the formula ------------------------------------------------------

# Formulas whose exp, log, tanh, erf or whose fused multiply-adds eager's kernels take from another
# library or compiler than torch's functions on whole tensors do.
LIBRARY = {
    *("aten.gelu.default", "aten.silu.default", "aten.mish.default", "aten.softplus.default"),
    *("aten.gelu_backward.default", "aten.silu_backward.default", "aten.mish_backward.default"),
    *("aten.tanh_backward.default", "aten.softplus_backward.default", "aten.elu_backward.default"),
    *("aten.elu.default", "aten.celu.default", "aten.selu.default"),
    *("aten.logaddexp.default", "aten.logaddexp2.default", "aten.sinc.default"),
    *("aten.special_entr.default", "aten.xlogy.Tensor", "aten.xlogy.Scalar_Self"),
    *("aten.special_xlog1py.default", "aten.special_xlog1py.self_scalar"),
}

# Eager's compiler contracts these multiply-adds, so a product that overflows alone does not there:
# they are tried on smaller numbers, and an exact cancellation may leave a rest of either sign.
CONTRACTED = {
    *("aten.add.Tensor", "aten.sub.Tensor", "aten.rsub.Tensor"),
    *("aten.addcmul.default", "aten.lerp.Scalar", "aten.lerp.Tensor", "aten.logaddexp2.default"),
}

# On half types these kernels round inside their formula (sums only the product with alpha, and only
# without vector units), approximate (erf), or go another way (pow of float16); of integers with
# fractional exponents pow keeps more digits. There the reference is eager in the compute type.
COARSER_IN_EAGER = {
    *("aten.add.Tensor", "aten.sub.Tensor", "aten.rsub.Tensor"),
    *("aten.div.Tensor_mode", "aten.div.Scalar_mode"),
    *("aten.floor_divide.default", "aten.floor_divide.Scalar"),
    *("aten.logit.default", "aten.logit_backward.default", "aten.sigmoid_backward.default"),
    *("aten.special_entr.default", "aten.xlogy.Tensor", "aten.special_xlog1py.default"),
    *("aten.xlogy.Scalar_Self", "aten.xlogy.Scalar_Other"),
    *("aten.special_xlog1py.self_scalar", "aten.special_xlog1py.other_scalar"),
    *("aten.erf.default", "prims.erf.default", "aten.pow.Tensor_Scalar"),
}

# May round to the other neighbour in a half type; square roots because neither torch.sqrt on f32
# nor every vector unit's rsqrt is correctly rounded.
ROOTS = {f"{s}.{n}.default" for s in ("aten", "prims") for n in ("sqrt", "rsqrt")}
HALF_ULP = ROOTS | LIBRARY | CONTRACTED

# Which zero the greater of two zeros is, eager leaves to the vector instruction.
EITHER_ZERO = {f"{s}.{n}.default" for s in ("aten", "prims") for n in ("fmax", "fmin")}

# The kernel's 1/6 is a float, also for f64.
FLOAT_CONSTANT = {"aten.hardsigmoid_backward.default"}

# Gradients are no integers; eager's kernel multiplies those in another order.
FLOATS_ONLY = {"aten.native_dropout_backward.default"}

# Operators that, like prims and gradients, take tensors of one shape.
UNBROADCAST = {"aten.copy.default", "aten._prelu_kernel.default"}

# Eager raises for integers divided by zero.
DIVISIONS = {
    *("aten.div.Tensor_mode", "aten.div.Scalar_mode", "aten.floor_divide.default"),
    *("aten.floor_divide.Scalar", "aten.remainder.Tensor", "aten.remainder.Scalar_Tensor"),
    *("aten.remainder.Scalar", "aten.fmod.Tensor", "aten.fmod.Scalar"),
    *("prims.div.default", "prims.remainder.default", "prims.fmod.default"),
}


@pytest.fixture(autouse=True, scope="module")
def kernels_of_aten() -> Iterator[None]:
    """oneDNN's gelu is an approximation, and NaN at infinity; compare with ATen's own."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(enabled)


# --- running a case -----------------------------------------------------------------------------


def numbers(name: str, dtype: torch.dtype) -> Tensor:
    if dtype is torch.bool:
        return torch.tensor([True, False])
    return floats(name, dtype) if dtype.is_floating_point else integers(name, dtype)


def integers(name: str, dtype: torch.dtype) -> Tensor:
    info = torch.iinfo(dtype)
    lowest = info.min + 1 if name in DIVISIONS else info.min  # divided by -1, it traps
    signed = [-1, -2, -3, -7, -31] if info.min < 0 else []
    few = [0, 1, 2, 3, 5, 7, 31, 33, 63, 100]
    return torch.tensor([*few, info.max, info.max - 1, lowest, info.min + 2, *signed], dtype=dtype)


def floats(name: str, dtype: torch.dtype) -> Tensor:
    """64: eager computes whole vectors, not the tails, where max(0, -0), fmod and others differ."""
    info = torch.finfo(dtype)
    largest = math.sqrt(info.max) / 4 if name in CONTRACTED else info.max
    ends = [largest, math.inf, math.nan, info.tiny, info.tiny / 4, info.eps, 1 - info.eps]
    middle = [0.0, 1, 0.5, 2, 3, 1.5, 2.5, 0.1, 0.9, 6, 20, 88, 1e-3, 1e-5, 100.5, 4.99, math.pi]
    wide = [300.0, 25.0] if name in CONTRACTED else [700.0, 12345.6789]
    positive = torch.tensor([*ends, *middle, *wide], dtype=torch.float64)
    count = 64 - 2 * positive.numel()
    random = torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([positive, -positive, random]).to(dtype)


def filled(name: str, case: Arguments, dtype: torch.dtype) -> Arguments:
    """The case on tensors of `dtype`: each along an axis of its own, so that all numbers meet."""
    args, kwargs = case
    slots = [arg for arg in args if isinstance(arg, Slot)]
    tensors = {}
    for axis, slot in enumerate(slots):
        values = torch.tensor([True, False]) if slot is MASK else numbers(name, dtype)
        if slot is slots[-1] and name in DIVISIONS and not dtype.is_floating_point:
            values = values[values != 0]
        every = 3 if len(slots) > 2 and slot is not MASK else 1
        tensors[slot] = values[::every].reshape([-1 if i == axis else 1 for i in range(len(slots))])
    if name.startswith("prims.") or "backward" in name or name in UNBROADCAST:
        shape = torch.broadcast_shapes(*(t.shape for t in tensors.values()))
        tensors = {slot: t.expand(shape).contiguous() for slot, t in tensors.items()}
    return tuple(tensors[a] if isinstance(a, Slot) else a for a in args), kwargs


def eagerly(name: str, arguments: Arguments) -> Tensor:
    target = op(name).target
    assert target is not None
    result: Tensor = target(*arguments[0], **arguments[1])
    return result


def expected(name: str, arguments: Arguments) -> Tensor:
    """Eager's result; where it is coarser than it could be, that of the compute type, rounded."""
    result = eagerly(name, arguments)
    compute = compute_dtype(result.dtype)
    if name not in COARSER_IN_EAGER or not compute.is_floating_point:
        return result
    args, kwargs = arguments
    wide = tuple(a.to(compute) if isinstance(a, Tensor) else a for a in args)
    return eagerly(name, (wide, kwargs)).to(result.dtype)


def element_of(name: str, arguments: Arguments, result: Tensor) -> tuple[Element, list[Tensor]]:
    """The scalar expression of the call, and its operands as the compute type holds them."""
    tensors: dict[Value, Tensor] = {}

    def value(arg: Any) -> Any:
        if not isinstance(arg, Tensor):
            return arg
        made = Value(f"x{len(tensors)}", TensorType(arg.dtype, tuple(arg.shape)))
        tensors[made] = arg
        return made

    args, kwargs = arguments
    node = node_of(name, *map(value, args), result=result, **kwargs)
    element = scalar_expr(node)
    read = [tensors[operand] for operand in element.operands if isinstance(operand, Value)]
    kept = [t.to(dtype) for t, dtype in zip(read, element.operand_dtypes, strict=True)]
    return element, [t if t.dtype is torch.bool else t.to(element.compute) for t in kept]


def magnitudes(expr: Scalar, operands: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The expression with every sum taken of magnitudes: what its rounding errors scale with."""

    def of(arg: Scalar) -> Tensor:
        return magnitudes(arg, operands, dtype)

    match expr:
        case Call("add" | "sub", (x, y)):
            return of(x) + of(y)
        case Call("mul", (x, y)):
            return of(x) * of(y)
        case Call("div", (x, y)):
            quotient = of(x) / plain(y, operands, dtype).abs()
            return quotient * (of(y) / plain(y, operands, dtype).abs())
        case Call("select", (mask, x, y)):
            return torch.where(plain(mask, operands, dtype) != 0, of(x), of(y))
    return plain(expr, operands, dtype).abs()


def plain(expr: Scalar, operands: list[Tensor], dtype: torch.dtype) -> Tensor:
    assert isinstance(expr, (Operand, Literal, Call))
    return evaluate(expr, operands, dtype).to(dtype)


# --- comparing ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A call's result as eager and as the formula give it, and how far they may be apart."""

    eager: Tensor
    formula: Tensor
    slack: Tensor

    def faults(self, either_zero: bool) -> Iterator[tuple[str, Tensor]]:
        """What is wrong, and where."""
        if not self.eager.is_floating_point():
            yield "differs", self.eager != self.formula
            return
        eager, formula = self.eager.double(), self.formula.double()
        yield "is NaN in one only", eager.isnan() != formula.isnan()
        infinite = eager.isinf() | formula.isinf()
        yield "is infinite in one only", infinite & (eager != formula) & ~eager.isnan()
        yield "is too far away", ((eager - formula).abs() > self.slack) & ~infinite
        if not either_zero:
            zeros = (eager == 0) & (formula == 0)
            yield "is the other zero", zeros & (eager.signbit() != formula.signbit())


def outcome_of(name: str, arguments: Arguments, eager: Tensor) -> Outcome:
    element, operands = element_of(name, arguments, eager)
    computed = evaluate(element.expr, operands, element.compute)
    formula = computed.to(eager.dtype).expand(eager.shape)
    slack = torch.zeros(eager.shape, dtype=torch.float64)
    if eager.is_floating_point():
        slack = slack_of(name, eager, element, operands).expand(eager.shape)
    return Outcome(eager, formula, slack)


def slack_of(name: str, eager: Tensor, element: Element, operands: list[Tensor]) -> Tensor:
    """Nothing for most; for what is listed above, rounding errors of the formula and of its result.

    The former are 4 units of the compute type's epsilon, relative to `magnitudes`.
    """
    if name in FLOAT_CONSTANT and eager.dtype is torch.float64:
        return eager.abs() * torch.finfo(torch.float32).eps
    slack = torch.zeros((), dtype=torch.float64)
    compute, final = torch.finfo(element.compute), torch.finfo(eager.dtype)
    if name in LIBRARY | CONTRACTED:
        scale = magnitudes(element.expr, operands, element.compute).double()
        slack = scale.nan_to_num(0.0, compute.max) * (4 * compute.eps) + final.tiny * final.eps
    if name in HALF_ULP and element.compute is not eager.dtype:
        size = eager.double().abs().clamp(min=final.tiny).nan_to_num(0.0, 0.0)
        slack = slack + size * final.eps
    return slack


@pytest.mark.parametrize("name", POINTWISE)
def test_a_formula_computes_what_eager_does(name: str) -> None:
    ran = set()
    for case in cases_of(name):
        for dtype in (*FLOATS, *(() if name in FLOATS_ONLY else (*INTS, torch.bool))):
            arguments = filled(name, case, dtype)
            try:
                eagerly(name, arguments)
            except (RuntimeError, NotImplementedError):
                continue  # eager has no kernel for this dtype
            ran.add(dtype)
            reference = expected(name, arguments)
            assert not masks_among_numbers(element_of(name, arguments, reference)[0].expr)
            outcome = outcome_of(name, arguments, reference)
            report(f"{name}{case} on {dtype}", arguments, outcome, name)
    assert ran.issuperset(FLOATS) or ran.issuperset(INTS), f"{name} ran on {ran} only"


def masks_among_numbers(expr: Scalar) -> list[Call]:
    """Predicates where a number belongs: emitters needn't convert masks."""
    if not isinstance(expr, Call):
        return []
    takes_masks = len(expr.args) if expr.name.startswith("logical_") else int(expr.name == "select")
    numeric = [a for a in expr.args[takes_masks:] if isinstance(a, Call)]
    return [
        *(a for a in numeric if a.name in PREDICATES),
        *(mask for arg in expr.args for mask in masks_among_numbers(arg)),
    ]


def report(title: str, arguments: Arguments, outcome: Outcome, name: str) -> None:
    for fault, where in outcome.faults(name in EITHER_ZERO | CONTRACTED):
        if not where.any():
            continue
        place = tuple(where.nonzero()[0].tolist())
        tensors = [a.expand(where.shape)[place].item() for a in arguments[0] if is_wide(a, where)]
        pytest.fail(
            f"{title}: {fault} at {int(where.sum())} places, first of {tensors}: eager"
            f" {outcome.eager[place].item()}, formula {outcome.formula[place].item()}"
        )


def is_wide(arg: Any, like: Tensor) -> bool:
    return isinstance(arg, Tensor) and arg.dim() in (0, like.dim())


# --- mixed dtypes and numbers ---------------------------------------------------------------------

MIXED = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.uint8)
MIXING = ("add.Tensor", "mul.Tensor", "div.Tensor", "lt.Tensor", "eq.Tensor", "copysign.Tensor")


@pytest.mark.parametrize("right", MIXED, ids=str)
@pytest.mark.parametrize("left", MIXED, ids=str)
@pytest.mark.parametrize("name", [f"aten.{overload}" for overload in MIXING])
def test_mixed_operands_round_where_eager_rounds(
    name: str, left: torch.dtype, right: torch.dtype
) -> None:
    a = numbers(name, left).reshape(-1, 1)
    b = numbers(name, right).reshape(1, -1)
    pairs = [(a, b), (torch.tensor(0.1, dtype=torch.float64).to(left), b.flatten())]
    # Eager on the CPU keeps all digits of a 0-dim right operand of mul and div; we round it too.
    if name not in ("aten.mul.Tensor", "aten.div.Tensor"):
        pairs.append((a.flatten(), torch.tensor(0.1, dtype=torch.float64).to(right)))
    for pair in pairs:
        arguments = given(*pair)
        outcome = outcome_of(name, arguments, eagerly(name, arguments))
        report(f"{name} on {left}, {right}", arguments, outcome, name)


def test_numbers_are_rounded_to_half_types_only_where_eager_does() -> None:
    x = torch.linspace(0.1, 3, 64).bfloat16()
    assert element_of("aten.add.Tensor", given(x, 0.1), x)[0].expr == call(
        "add", Operand(0), 0.10009765625
    )
    assert element_of("aten.mul.Tensor", given(x, 0.1), x)[0].expr == call("mul", Operand(0), 0.1)
    for exponent in (1.7, 0.1):
        arguments = given(x, exponent)
        eager = eagerly("aten.pow.Tensor_Scalar", arguments)
        outcome = outcome_of("aten.pow.Tensor_Scalar", arguments, eager)
        assert torch.equal(outcome.formula, eager)


def test_conversions_wrap_and_round_as_eager() -> None:
    whole = torch.tensor([0, 1, 127, 128, 255, 256, 257, -1, -129, 65537])
    for dtype in (*INTS, *FLOATS):
        # What C++ makes of floats out of range is undefined.
        limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
        for source in (whole, (whole.double() / 8).clamp(limits.min, limits.max)):
            arguments = given(source, dtype=dtype)
            eager = eagerly("aten._to_copy.default", arguments)
            outcome = outcome_of("aten._to_copy.default", arguments, eager)
            assert torch.equal(outcome.formula, eager), dtype


def test_every_primitive_has_a_function() -> None:
    assert FUNCTIONS.keys() == PRIMITIVES.keys()


def test_every_entry_is_a_pointwise_operator() -> None:
    assert len(POINTWISE) >= 150
    for name, entry in POINTWISE.items():
        assert op(name).kind is Kind.POINTWISE
        assert entry.computes_in in ("result", "operands")
