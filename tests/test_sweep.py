"""A fixed slice of the operator sweep (`make sweep`), and the sweep's own workings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rewright.ir import ToolchainError, UnsupportedError
from sweep import examine as examining
from sweep.cases import DIRECTIONS, SAMPLES, Case, all_cases, operators, samples, slice_of
from sweep.status import STATUS, Status, telling_dtype

pytestmark = pytest.mark.cpu

SLICE = 80
SINE = Case("sin", "float32", "forward")


@pytest.mark.parametrize("case", slice_of(all_cases(), SLICE), ids=str)
def test_a_slice_of_the_sweep_is_as_it_was(case: Case) -> None:
    status = Status.read(STATUS).restricted([case])
    found = Status.of([examining.examine(case).as_json()])
    assert list(found.worse_than(status)) == []


def test_what_is_listed_as_failing_or_as_ours_is_swept() -> None:
    known, status = all_cases(), Status.read(STATUS)
    assert set(status.failures) <= {str(case) for case in known}
    telling = {(c.direction, c.operator) for c in known if c.dtype == telling_dtype(c)}
    assert all((d, name) in telling for d in DIRECTIONS for name in status.own[d])


def test_samples_are_few_and_the_same_every_time() -> None:
    case = Case("add", "float32", "forward")
    first, second = samples(case), samples(case)
    assert 0 < len(first) <= SAMPLES
    for one, other in zip(first, second, strict=True):
        for x, y in zip(one.tensors, other.tensors, strict=True):
            assert torch.equal(x, y)


def test_every_operator_has_its_own_name() -> None:
    assert len(operators()) > 600


def wrong_sine(x: Tensor) -> Tensor:
    return x.sin() * (1 + 1e-3 * torch.compiler.is_compiling())


def one_more_result(x: Tensor) -> tuple[Tensor, ...]:
    return (x.sin(), x) if torch.compiler.is_compiling() else (x.sin(),)


def other_strides(x: Tensor) -> Tensor:
    y = x.sin()
    return y.t().contiguous().t() if torch.compiler.is_compiling() and y.dim() == 2 else y


def not_a_number(x: Tensor) -> Tensor:
    return x.sin() * (torch.nan if torch.compiler.is_compiling() else 1)


@pytest.mark.parametrize("function", [wrong_sine, one_more_result, other_strides, not_a_number])
def test_a_wrong_answer_is_found(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions that differ only when they are compiled stand for a compiler's faults."""
    monkeypatch.setattr(operators()["sin"], "get_op", lambda: function)
    found = examining.examine(SINE)
    assert found.status == "wrong", found.detail


def test_a_refusal_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise UnsupportedError("no sines today")

    monkeypatch.setattr("rewright.driver.compile_graph", refuse)
    found = examining.examine(SINE)
    assert found.status == "error" and "no sines today" in found.detail


def test_a_kernel_that_does_not_compile_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """ATen gives the right answer then, with a warning that nobody reads in a sweep."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ToolchainError("could not compile a kernel")

    monkeypatch.setattr("rewright.building.build", fail)
    found = examining.examine(SINE)
    assert found.status == "error" and "could not compile a kernel" in found.detail


def test_a_worse_result_is_told() -> None:
    own = {"forward": frozenset({"sin"}), "backward": frozenset[str]()}
    before = Status({}, {"cos float32 forward": "wrong: known"}, own)
    none = {direction: frozenset[str]() for direction in DIRECTIONS}
    now = Status({}, {"exp float32 forward": "wrong: new"}, none)
    assert [line.split(":")[0] for line in now.worse_than(before)] == [
        "exp float32 forward",
        "sin forward no longer runs in our own kernels alone",
    ]
