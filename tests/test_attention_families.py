"""Attention as people's models spell it: every layer of every family is recognized, and right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import rewright
from attention_families import FAMILIES, LAYERS, inputs_of
from examples.huggingface import FirstOutput

HALVES = ("llama_grouped", "gpt2", "t5", "swin")
CASES = [
    *((name, torch.float32) for name in FAMILIES),
    *((name, dtype) for name in HALVES for dtype in (torch.float16, torch.bfloat16)),
]


def recognized() -> int:
    """Attentions that the programs compiled since the last reset hold."""
    entries = [d for p in rewright.programs() for d in p.plan.log if d.pass_ == "attention"]
    return sum("is attention" in d.sentence for d in entries)


def answers(model: FirstOutput, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Eager's in float32 and in `dtype`."""
    with torch.no_grad():
        exact = model.float()(x.float() if x.is_floating_point() else x)
        model.to(dtype)
        return exact, model(x.to(dtype) if x.is_floating_point() else x)


@pytest.mark.cpu
@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_every_family(name: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    model, x = FAMILIES[name](), inputs_of(name)
    exact, eager = answers(model, x, dtype)
    given = x.to(dtype) if x.is_floating_point() else x
    with torch.no_grad():
        ours = torch.compile(model, backend="rewright")(given)
    assert recognized() == LAYERS[name]
    nodes = [n for p in rewright.programs() for n in p.graph.nodes]
    assert sum("attention" in n.op.name for n in nodes) == LAYERS[name]
    if dtype == torch.float32:
        torch.testing.assert_close(ours, eager, rtol=2e-4, atol=2e-4)
    else:
        assert error(ours, exact) <= 2 * error(eager, exact) + 1e-3


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.cpu
def test_lengths_that_change() -> None:
    """One program for all lengths, with its attention recognized."""
    torch._dynamo.reset()
    model = FAMILIES["llama_grouped"]()
    step = torch.compile(model, backend="rewright", dynamic=True)
    for length in (7, 12, 31):
        x = torch.randint(3, 96, (2, length))
        with torch.no_grad():
            torch.testing.assert_close(step(x), model(x), rtol=2e-4, atol=2e-4)
    assert recognized() == LAYERS["llama_grouped"]


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "gpt_oss"])
def test_dropped_probabilities(name: str, dtype: torch.dtype) -> None:
    """The masks are eager's, drawn before there are probabilities."""
    torch._dynamo.reset()
    model, x = FAMILIES[name]().train(), inputs_of(name)
    for part in model.modules():  # dropout of other things is as it is
        if isinstance(vars(part).get("attention_dropout"), float):
            vars(part)["attention_dropout"] = 0.2
    step = torch.compile(model, backend="rewright")
    results = []
    with torch.no_grad():
        for function, precision in ((model, torch.float32), (model, dtype), (step, dtype)):
            model.to(precision)
            torch.manual_seed(1)
            results.append((function(x), torch.rand(3)))
    (exact, _), (eager, after), (ours, ours_after) = results
    torch.testing.assert_close(ours_after, after)
    assert recognized() == LAYERS[name]
    assert error(ours, exact) <= 2 * error(eager, exact) + 1e-6
