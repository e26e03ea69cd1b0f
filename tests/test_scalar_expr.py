"""What `scalar_expr` adds to a formula: promotion, the operands read, and refusals."""

from __future__ import annotations

import pytest
import torch

from pointwise_cases import node_of
from primitives import evaluate
from rewright.ir.dims import Dim, Symbol
from rewright.ir.errors import UnsupportedError
from rewright.ir.expr import Call, Literal, Operand, call
from rewright.ir.graph import Value
from rewright.ir.pointwise import obstacle, scalar_expr
from rewright.ir.promotion import promoted
from rewright.ir.types import ScalarType, TensorType

DTYPES = (
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    *(torch.int64, torch.int8, torch.uint8, torch.bool),
)


@pytest.mark.parametrize("right", DTYPES, ids=str)
@pytest.mark.parametrize("left", DTYPES, ids=str)
def test_dtypes_meet_as_in_torch(left: torch.dtype, right: torch.dtype) -> None:
    for shapes in (((2,), (2,)), ((2,), ()), ((), (2,)), ((), ())):
        a, b = torch.ones(shapes[0], dtype=left), torch.ones(shapes[1], dtype=right)
        values = (Value("a", TensorType(left, shapes[0])), Value("b", TensorType(right, shapes[1])))
        assert promoted(values) is torch.result_type(a, b)
    for number in (True, 2, 2.5):
        assert promoted((values[0], number)) is torch.result_type(a, number)


def test_run_time_numbers_and_sizes_meet_as_numbers() -> None:
    x = Value("x", TensorType(torch.bfloat16, (2,)))
    assert promoted((x, Value("n", ScalarType("float")))) is torch.bfloat16
    assert promoted((Dim.of(Symbol("B")), Value("n", ScalarType("float")))) is torch.float32
    assert promoted((Value("b", TensorType(torch.bool, (2,))), Dim.of(Symbol("B")))) is torch.int64


def bf16(name: str, device: str = "cpu") -> Value:
    return Value(name, TensorType(torch.bfloat16, (2,), device=torch.device(device)))


def test_unread_arguments_are_not_operands() -> None:
    zeros = scalar_expr(node_of("aten.zeros_like.default", bf16("x"), result=torch.float32))
    assert (zeros.expr, zeros.operands) == (Literal(0), ())
    copy = scalar_expr(node_of("aten.copy.default", bf16("x"), bf16("y"), result=torch.bfloat16))
    assert (copy.expr, copy.operands) == (Operand(0), (bf16("y"),))


def test_masks_keep_their_dtype() -> None:
    mask = Value("mask", TensorType(torch.bool, (2,)))
    node = node_of("aten.masked_fill.Scalar", bf16("x"), mask, 0.1, result=torch.bfloat16)
    assert scalar_expr(node).operand_dtypes == (torch.bfloat16, torch.bool)


def test_sizes_are_literals_and_run_time_numbers_operands() -> None:
    size = Dim.of(Symbol("B", hint=4))
    element = scalar_expr(node_of("aten.mul.Tensor", bf16("x"), size, result=torch.bfloat16))
    assert element.expr == Call("mul", (Operand(0), Literal(size)))
    with pytest.raises(UnsupportedError, match="B has no value before run time"):
        evaluate(element.expr, [torch.ones(2)], element.compute)
    number = Value("n", ScalarType("float"))
    node = node_of("aten.pow.Tensor_Scalar", bf16("x"), number, result=torch.bfloat16)
    element = scalar_expr(node)
    assert element.expr == call("pow", Operand(0), Operand(1))
    assert element.operands == (bf16("x"), number)


def test_obstacles_are_sentences() -> None:
    across = node_of("aten._to_copy.default", bf16("x", "cuda:0"), result=torch.float32)
    assert obstacle(across) == "%x is on cuda:0, the result of aten._to_copy.default on cpu"
    complexes = node_of("aten.mul.Tensor", bf16("x"), 2j, result=torch.complex64)
    assert obstacle(complexes) == "aten.mul.Tensor on c64 is left to ATen"
    sparse = node_of(
        "aten._to_copy.default", bf16("x"), layout=torch.sparse_coo, result=torch.float32
    )
    assert obstacle(sparse) == "aten._to_copy.default with torch.sparse_coo is left to ATen"
    matmul = node_of("aten.mm.default", bf16("x"), bf16("y"), result=torch.float32)
    assert obstacle(matmul) == "aten.mm.default is not an elementwise operator"
    with pytest.raises(UnsupportedError, match="not an elementwise operator"):
        scalar_expr(matmul)
    assert obstacle(node_of("aten.exp.default", bf16("x"), result=torch.bfloat16)) is None


def test_a_device_that_is_not_read_is_no_obstacle() -> None:
    elsewhere = node_of("aten.zeros_like.default", bf16("x", "cuda:0"), result=torch.float32)
    assert obstacle(elsewhere) is None
