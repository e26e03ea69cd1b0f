"""Rounding that makes up for what earlier columns lost, against rounding to the nearest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rewright
from rewright.ir.interpret import interpret
from rewright.passes.quantize.rounding import Curvature, moved_steps
from rewright.passes.quantize.weights import Weights

GROUP, LARGEST = 32, 7.0


def correlated(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Activations a few directions of which hold most, as those of trained models do."""
    torch.manual_seed(seed)
    strength = (torch.arange(columns) + 1.0).pow(-0.7)
    mixed = torch.randn(columns, columns) * strength
    return torch.randn(rows, columns) @ mixed


def seen(x: Tensor) -> Curvature:
    """In two parts."""
    return Curvature.of(x.shape[1]).add(x[:9]).add(x[9:])


def in_steps(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest integers, and what each step is."""
    scale = weight.reshape(len(weight), -1, GROUP).abs().amax(-1) / LARGEST
    step = scale.repeat_interleave(GROUP, 1)
    return (weight / step).round().clamp(-LARGEST, LARGEST), step


def off(x: Tensor, weight: Tensor, integers: Tensor, step: Tensor) -> float:
    exact = x @ weight.T
    return float((x @ (integers * step).T - exact).norm() / exact.norm())


@pytest.mark.parametrize(("rows", "gain"), [(40, 0.0), (80, 0.05), (1000, 0.4)])
def test_results_are_off_less(rows: int, gain: float) -> None:
    """On what nobody has seen, too, the more the more was seen."""
    x, weight = correlated(2000, 160), torch.randn(48, 160)
    nearest, step = in_steps(weight)
    moved = moved_steps(weight, seen(x[:rows]), GROUP, LARGEST)
    assert moved.dtype == torch.int8 and float((nearest + moved).abs().max()) <= LARGEST
    for part in (x[:rows], x[1000:]):
        plain, better = (off(part, weight, q, step) for q in (nearest, nearest + moved))
        assert better < (1 - gain) * plain


def test_columns_that_do_not_go_together_are_rounded_to_the_nearest() -> None:
    weight = torch.randn(16, 64)
    assert not moved_steps(weight, seen(torch.eye(64)), GROUP, LARGEST).any()


@pytest.mark.parametrize("harm", ["infinite weight", "no number read", "nothing read", "no weight"])
def test_harms_leave_finite_steps(harm: str) -> None:
    x, weight = correlated(100, 64), torch.randn(16, 64)
    if harm == "infinite weight":
        weight[3, 5] = float("inf")
    elif harm == "no number read":
        x[0, 0] = float("nan")
    elif harm == "nothing read":
        x.zero_()
    else:
        weight.zero_()
    assert not moved_steps(weight, seen(x), GROUP, LARGEST).any()


def test_a_column_that_is_never_read_does_no_harm() -> None:
    x, weight = correlated(100, 64), torch.randn(16, 64)
    x[:, 7] = 0
    nearest, step = in_steps(weight)
    moved = moved_steps(weight, seen(x), GROUP, LARGEST)
    assert off(x, weight, nearest + moved, step) < off(x, weight, nearest, step)


def test_a_program_is_rounded_so(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(128, 192), nn.GELU(), nn.Linear(192, 64)).eval()
    samples = [(x,) for x in correlated(240, 128, seed=2).split(60)]
    passes = "canonicalize,quantize{formats=int4-g64,objective=bytes},dce,fuse,memory"

    def made() -> rewright.Compiled:
        return rewright.optimize(
            model, samples[0], error_budget=10.0, calibration=samples, passes=passes
        )

    def error(program: rewright.Compiled) -> float:
        with torch.no_grad():
            exact, got = model(*samples[-1]), program(*samples[-1])
        return float((got - exact).norm() / exact.norm())

    rounded = made()
    source = rounded.program.plan.stages.stages[1].snapshot
    assert source is not None
    (expected,) = interpret(source, rounded.bindings.flatten(samples[-1], {}))
    with torch.no_grad():
        torch.testing.assert_close(rounded(*samples[-1]), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(Weights, "_round", lambda self, plan: None)
    assert error(rounded) < 0.9 * error(made())
    # Weights that change are rounded anew, by as many steps from their own nearest.
    with torch.no_grad():
        model[0].weight.mul_(2)  # type: ignore[operator]
    assert error(rounded) < 0.5
