"""Reads that fusion moves: what is read then is the same to the bit, and what is not there is still
complained of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewright.api import Compiled, optimize
from rewright.ir.parse import parse
from rewright.ir.target import Target
from rewright.passes.fuse.reads import moved_reads

TARGET = Target.parse("cpu:avx2")
ROWS, CLASSES = 64, 8200

Function = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(x: Tensor, i: Tensor) -> Tensor:
    return F.cross_entropy(x, i, reduction="none", ignore_index=3)


def picked(x: Tensor, i: Tensor) -> Tensor:
    return torch.log_softmax(x.float() * 0.5, -1)[torch.arange(ROWS), i]


def probabilities(x: Tensor, i: Tensor) -> Tensor:
    return x.softmax(1).gather(1, i[:, None])


def rows(x: Tensor, i: Tensor) -> Tensor:
    return (x.sigmoid() * x.exp() + x[:, :1] * x[0]).index_select(0, i[:16] % ROWS)


def columns(x: Tensor, i: Tensor) -> Tensor:
    return (x.sigmoid() + x[:, :1] * x[0]).index_select(1, i[:16])


def embedded(x: Tensor, i: Tensor) -> Tensor:
    return F.embedding(i[:16] % ROWS, x.tanh() * x[0])


class Net(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, i: Tensor) -> Tensor:
        return self.function(x, i)


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = (4 * torch.randn(ROWS, CLASSES)).to(dtype)
    x[3, 5], x[4, 6] = torch.inf, -torch.inf
    i = torch.randint(CLASSES, (ROWS,))
    i[:5] = torch.tensor([3, 3, 0, 5, 6])
    return x, i


def compiled(function: Function, x: Tensor, i: Tensor) -> Compiled:
    return optimize(Net(function), (x, i))


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads move whether or not that pays on this machine."""
    monkeypatch.setattr("rewright.passes.fuse.fuse.shortest", lambda cost, plans: len(plans) - 1)


@pytest.mark.cpu
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "function", [cross_entropy, picked, probabilities, rows, columns, embedded]
)
def test_a_read_that_moves_gives_the_same_bits(
    function: Function, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, i = inputs(dtype)
    early = compiled(function, x, i)
    monkeypatch.setattr("rewright.passes.fuse.fuse.moved_reads", lambda graph, target: None)
    late = compiled(function, x, i)
    assert str(early.graph) != str(late.graph), "nothing has moved"
    torch.testing.assert_close(early(x, i), late(x, i), rtol=0, atol=0, equal_nan=True)


@pytest.mark.cpu
@pytest.mark.usefixtures("always")
def test_a_class_that_there_is_not_is_an_error() -> None:
    x, i = inputs(torch.float32)
    program = compiled(cross_entropy, x, i)
    assert "_log_softmax" not in str(program.graph)
    i[7] = CLASSES
    with pytest.raises(RuntimeError, match="out of bounds"):
        program(x, i)


READ = "%c = aten.index_select.default(%b, 0, %i) : f32[4, 8]"


@pytest.mark.parametrize(
    ("made", "read", "returned"),
    [
        ("aten.exp.default(%x)", READ, "%b, %c"),
        ("aten.exp.default(%x)", READ + "\n%m = aten.mm.default(%b, %c) : f32[8, 8]", "%c, %m"),
        ("aten.mm.default(%x, %x)", READ, "%c"),
        (
            "aten.exp.default(%x)",
            "%c = aten.gather.default(%b, 0, %i2) : f32[4, 4]",
            "%c",
        ),
        (
            "aten.exp.default(%x)",
            "%c = aten.index.Tensor(%b, [none, %i]) : f32[8, 4]",
            "%c",
        ),
        (
            "aten.exp.default(%x)",
            "%c = aten.index_select.default(%b, 0, %many) : f32[64, 8]",
            "%c",
        ),
    ],
)
def test_a_read_stays(made: str, read: str, returned: str) -> None:
    """Of what is returned, read by others, made by a library; in more than the one dimension; what
    is there once and read more often."""
    graph = parse(
        "graph f(%x: f32[8, 8], %i: i64[4], %i2: i64[4, 4], %many: i64[64]) {\n"
        f"%b = {made} : f32[8, 8]\n{read}\nreturn {returned}\n}}"
    )
    assert moved_reads(graph, TARGET) is None


def test_a_read_moves_through_what_is_broadcast_along_it() -> None:
    graph = parse(
        "graph f(%x: f32[8, 8], %y: f32[8, 1], %i: i64[8, 1]) {\n"
        "%b = aten.mul.Tensor(%x, %y) : f32[8, 8]\n"
        "%c = aten.gather.default(%b, 1, %i) : f32[8, 1]\nreturn %c\n}"
    )
    moved = moved_reads(graph, TARGET)
    assert moved is not None
    assert [node.op.name for node in moved.nodes] == ["aten.gather.default", "aten.mul.Tensor"]
    assert moved.nodes[-1].operands[1].name == "y"


def of_one(x: Tensor, i: Tensor) -> Tensor:
    return (torch.exp(x[:, :1]) * 2).gather(1, i[:, None] * 0)


def of_a_scalar(x: Tensor, i: Tensor) -> Tensor:
    return torch.exp(x[5, 5]).gather(0, i[0] * 0)


def of_one_row(x: Tensor, i: Tensor) -> Tensor:
    return F.embedding(i[:1] * 0, torch.tanh(x[:1]))


def of_many_diamonds(x: Tensor, i: Tensor) -> Tensor:
    for _ in range(24):
        x = x * torch.sigmoid(x)
    return x.gather(1, i[:, None])


@pytest.mark.cpu
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("function", [of_one, of_a_scalar, of_one_row, of_many_diamonds])
def test_what_is_the_same_everywhere_and_diamonds(function: Function) -> None:
    """A value that several read is read once: 24 times two would be many."""
    x, i = inputs(torch.float32)
    assert torch.allclose(compiled(function, x, i)(x, i), function(x, i), rtol=1e-5, equal_nan=True)
