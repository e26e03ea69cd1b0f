"""Scalar primitives as Triton expressions, and the small device functions they call.

Everything transcendental is libdevice's, whose functions round to within a unit or two in the last
place; Triton's own `exp`, `/` and `sqrt` are approximations on GPUs. What an integer division by
zero gives is unspecified, as on CUDA in eager, but it does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import torch

from rewright.ir import UnsupportedError
from rewright.ir.expr import PRIMITIVES

TYPES: Final[dict[torch.dtype, str]] = {
    torch.float64: "tl.float64",
    torch.float32: "tl.float32",
    torch.float16: "tl.float16",
    torch.bfloat16: "tl.bfloat16",
    torch.int64: "tl.int64",
    torch.int32: "tl.int32",
    torch.int16: "tl.int16",
    torch.int8: "tl.int8",
    torch.uint32: "tl.uint32",
    torch.uint16: "tl.uint16",
    torch.uint8: "tl.uint8",
    torch.bool: "tl.int1",
}

POINTER_TYPES: Final[dict[torch.dtype, str]] = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint32: "*u32",
    torch.uint16: "*u16",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}

_INFIX: Final = {"add": "+", "sub": "-", "mul": "*"}
_COMPARE: Final = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_BITWISE: Final = {"bit_and": "&", "bit_or": "|", "bit_xor": "^"}

# The tables give templates over operands {0}, {1}, {2}, their type {T} and its number of bits {B}.
# A primitive of floats that has none is libdevice's function of that name.
_ANY: Final = {
    **{name: f"{{0}} {sign} {{1}}" for name, sign in {**_INFIX, **_COMPARE}.items()},
    "select": "tl.where({0}, {1}, {2})",
    "logical_and": "({0} != 0) & ({1} != 0)",
    "logical_or": "({0} != 0) | ({1} != 0)",
    "logical_xor": "({0} != 0) ^ ({1} != 0)",
    "logical_not": "{0} == 0",
    "neg": "-{0}",
    "abs": "tl.abs({0})",
    "sign": "({0} > 0).to({T}) - ({0} < 0).to({T})",
}

_FLOAT: Final = {
    **_ANY,
    "round": "libdevice.rint({0})",
    "floor": "tl.floor({0})",
    "ceil": "tl.ceil({0})",
    "remainder": "floored_remainder({0}, {1})",
    "div_floor": "floored_quotient({0}, {1})",
    "maximum": "larger({0}, {1})",
    "minimum": "smaller({0}, {1})",
    "fmax": "larger_number({0}, {1})",
    "fmin": "smaller_number({0}, {1})",
    "isnan": "{0} != {0}",
    "isinf": 'tl.abs({0}) == float("inf")',
}

_F32: Final = {
    **_FLOAT,
    "div": "tl.div_rn({0}, {1})",
    "div_trunc": "libdevice.trunc(tl.div_rn({0}, {1}))",
    "reciprocal": "tl.div_rn(1.0, {0})",
    "sigmoid": "tl.div_rn(1.0, 1.0 + libdevice.exp(-{0}))",
    "sqrt": "tl.sqrt_rn({0})",
}

_F64: Final = {
    **_FLOAT,
    "div": "{0} / {1}",
    "div_trunc": "libdevice.trunc({0} / {1})",
    "reciprocal": "1.0 / {0}",
    "sigmoid": "1.0 / (1.0 + libdevice.exp(-{0}))",
    "sqrt": "tl.sqrt({0})",
}

_INTEGER: Final = {
    **_ANY,
    **{name: f"{{0}} {sign} {{1}}" for name, sign in _BITWISE.items()},
    "bit_not": "~{0}",
    "shift_left": "shifted_left({0}, {1}, {B})",
    "shift_right": "shifted_right({0}, {1}, {B})",
    "pow": "integer_power({0}, {1}, {B})",
    "fmod": "{0} % nonzero({1})",
    "remainder": "floored_integer_remainder({0}, {1})",
    "div_trunc": "{0} // nonzero({1})",
    "div_floor": "floored_integer_quotient({0}, {1})",
    "maximum": "tl.maximum({0}, {1})",
    "minimum": "tl.minimum({0}, {1})",
    "fmax": "tl.maximum({0}, {1})",
    "fmin": "tl.minimum({0}, {1})",
}

_MASK: Final = {
    **{name: f"{{0}} {sign} {{1}}" for name, sign in _BITWISE.items()},
    **dict.fromkeys(("logical_and", "mul", "minimum", "fmin"), "{0} & {1}"),
    **dict.fromkeys(("logical_or", "add", "maximum", "fmax"), "{0} | {1}"),
    **dict.fromkeys(("logical_xor", "ne"), "{0} ^ {1}"),
    **dict.fromkeys(("logical_not", "bit_not"), "~{0}"),
    **dict.fromkeys(("abs", "sign"), "{0}"),
    "eq": "~({0} ^ {1})",
    "lt": "~{0} & {1}",
    "le": "~{0} | {1}",
    "gt": "{0} & ~{1}",
    "ge": "{0} | ~{1}",
    "select": "tl.where({0}, {1}, {2})",
}

_TABLES: Final = {
    torch.float32: _F32,
    torch.float64: _F64,
    torch.int32: _INTEGER,
    torch.int64: _INTEGER,
    torch.bool: _MASK,
}


LIBDEVICE: Final = tuple(
    name
    for name in PRIMITIVES
    if name not in _F32 and not name.startswith(("bit_", "shift_"))  # of integers
)


def template(primitive: str, dtype: torch.dtype) -> str:
    """How a primitive over operands of compute type `dtype` is written.

    Raises UnsupportedError for a primitive that means nothing there.
    """
    form = _TABLES[dtype].get(primitive)
    if form is None and dtype.is_floating_point and primitive in LIBDEVICE:
        form = f"libdevice.{primitive}({', '.join(('{0}', '{1}')[: PRIMITIVES[primitive]])})"
    if form is None:
        raise UnsupportedError(f"'{primitive}' of {TYPES[dtype][3:]} has no Triton form")
    return form.replace("{T}", TYPES[dtype]).replace("{B}", str(dtype.itemsize * 8))


def takes_literals(form: str) -> bool:
    """True when Triton gives a Python number in this form the type of the other operand."""
    return bool(re.fullmatch(r"\{0\} \S+ \{1\}|tl\.(where|div_rn)\(.*\)", form))


# --- device functions -----------------------------------------------------------------------------
# Kernels carry the ones they use. `larger` and `smaller` also combine reductions.

_DEVICE_FUNCTIONS: Final = """
def larger(x, y):
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)

def smaller(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)

def larger_number(x, y):
    return tl.where(x != x, y, tl.where(y != y, x, larger(x, y)))

def smaller_number(x, y):
    return tl.where(x != x, y, tl.where(y != y, x, smaller(x, y)))

def product(x, y):
    return x * y

def divided(x, y):
    if x.dtype == tl.float64:
        quotient = x / y
    else:
        quotient = tl.div_rn(x, y)
    return quotient

def floored_remainder(x, y):
    rest = libdevice.fmod(x, y)
    return tl.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)

def floored_quotient(x, y):
    rest = libdevice.fmod(x, y)
    quotient = divided(x - rest, y)
    quotient = tl.where((rest != 0) & ((rest < 0) != (y < 0)), quotient - 1.0, quotient)
    whole = tl.floor(quotient)
    whole = tl.where(quotient - whole > 0.5, whole + 1.0, whole)
    exact = divided(x, y)
    whole = tl.where(quotient == 0, libdevice.copysign(quotient * 0.0, exact), whole)
    return tl.where(y == 0, exact, whole)

def nonzero(x):
    return tl.where(x == 0, 1, x)

def floored_integer_remainder(x, y):
    rest = x % nonzero(y)
    return tl.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)

def floored_integer_quotient(x, y):
    rest = x % nonzero(y)
    quotient = x // nonzero(y)
    return tl.where((rest != 0) & ((rest < 0) != (y < 0)), quotient - 1, quotient)

def shifted_left(x, y, BITS: tl.constexpr):
    fits = (y >= 0) & (y < BITS)
    return tl.where(fits, x << tl.where(fits, y, 0), 0)

def shifted_right(x, y, BITS: tl.constexpr):
    fits = (y >= 0) & (y < BITS)
    return x >> tl.where(fits, y, BITS - 1)

def integer_power(x, y, BITS: tl.constexpr):
    result = x * 0 + 1
    factor = x
    rest = y
    for _ in range(BITS - 1):
        result = tl.where((rest & 1) != 0, result * factor, result)
        factor = factor * factor
        rest = rest >> 1
    odd_sign = tl.where((y & 1) != 0, -1, 1)
    inverse = tl.where(x == 1, 1, tl.where(x == -1, odd_sign, 0))
    return tl.where(y < 0, inverse.to(x.dtype), result)
"""


def functions_of(text: str) -> dict[str, str]:
    """Device functions by name, each with its decorator."""
    return {
        function.split("(")[0].removeprefix("def "): f"@triton.jit\n{function.rstrip()}\n"
        for function in re.split(r"\n(?=def )", text.strip())
    }


DEVICE_FUNCTIONS: Final = functions_of(_DEVICE_FUNCTIONS)


def device_functions(
    lines: Iterable[str], table: Mapping[str, str] = DEVICE_FUNCTIONS
) -> list[str]:
    """Sources of the device functions that the lines call, directly or not, in table order."""
    used: set[str] = set()
    todo = list(lines)
    while todo:
        found = set(re.findall(r"\w+", todo.pop())) & table.keys()
        todo += [table[name] for name in sorted(found - used)]
        used |= found
    return [text for name, text in table.items() if name in used]
