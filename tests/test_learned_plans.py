"""Programs whose fusion the shipped cost model decides: right, said, and for every device."""

from __future__ import annotations

import json

import pytest
import torch

from rewright.api import optimize
from rewright.calibrate.host import host
from rewright.cli import main
from rewright.comparing import relative_error
from rewright.cost_models import cost_model, target_called, trained
from rewright.costmodel import Roofline, graph_estimate
from rewright.costmodel.learned import Learned
from rewright.ir.parse import parse
from zoo import ZOO

pytestmark = pytest.mark.learned

FLASH = "aten._scaled_dot_product_flash_attention"
HEADS = "bf16[8, 32, %d, 128]"


@pytest.mark.cpu
@pytest.mark.parametrize("name", ZOO)
def test_a_learned_plan_computes_what_the_model_says(name: str) -> None:
    module, args = ZOO[name]()
    program = optimize(module, args)
    assert not isinstance(program.program.plan.env.cost, Roofline)
    with torch.no_grad():
        torch.manual_seed(1)
        expected = module(*args)
        torch.manual_seed(1)
        found = program(*args)
    if not isinstance(expected, (tuple, list)):
        expected, found = [expected], [found]
    assert relative_error(list(found), list(expected)) < 1e-4


def test_a_model_is_shipped_for_measured_cpus_and_for_gpus() -> None:
    assert isinstance(trained(host()), Learned)
    assert all(isinstance(cost_model(target_called(g)), Learned) for g in ("h200", "h100", "a100"))
    assert isinstance(cost_model(target_called("cpu:avx2")), Roofline)
    assert isinstance(cost_model(target_called("b200")), Roofline)


@pytest.mark.parametrize(
    ("call", "about"),
    [
        ("aten.mm(bf16[4096, 4096], bf16[4096, 4096])", "products"),
        (
            f"{FLASH}({HEADS % 2048}, {HEADS % 2048}, {HEADS % 2048}, 0.0, true)",
            "attention of prompts",
        ),
        (f"{FLASH}({HEADS % 1}, {HEADS % 4096}, {HEADS % 4096})", "attention of tokens"),
    ],
)
def test_estimates_of_an_h200_are_by_what_was_measured_on_one(
    call: str, about: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", call, "--device", "h200", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert any(f"({about}, " in why for why in told["because"]), told
    assert told["low"] < told["seconds"] < told["high"] < 5 * told["low"]


def test_what_no_one_measured_is_left_to_the_roofline() -> None:
    inputs = "%a: f32[64, 64] on cuda:0, %b: f32[64, 64] on cuda:0"
    call = "%c = aten.mm.default(%a, %b) : f32[64, 64] on cuda:0"
    graph = parse(f"graph f({inputs}) {{\n  {call}\n  return %c\n}}")
    found = graph_estimate(cost_model(target_called("h200")), graph)
    assert found.seconds == graph_estimate(Roofline(target_called("h200")), graph).seconds
    assert any("so by the roofline" in why for why in found.because)


def test_models_are_small() -> None:
    from rewright.cost_models import MODELS

    assert sum(path.stat().st_size for path in MODELS.iterdir()) <= 4 << 20
