"""Whole models of families that training never saw: predicted latency beside measured.

    python -m benchmarks.costmodel.whole_models

writes what came out to `benchmarks/results/whole_models.json`.
"""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.costmodel import families
from examples.case import Case
from examples.convnext import convnext_tiny
from examples.huggingface import t5_encoder, token_ids
from rewright.api import optimize
from rewright.calibrate.bench import Bench
from rewright.calibrate.host import cpu_model, host
from rewright.calibrate.profile import profile
from rewright.cost_models import cost_model
from rewright.costmodel import CostModel, total
from rewright.costmodel.reuse import far_values, walk

RESULTS: Final = Path(__file__).parents[1] / "results" / "whole_models.json"

_SIZES: Final = {
    "vocab_size": 4000,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 512,
}


def _tokens(name: str, more: Mapping[str, Any], batch: int, length: int, **call: Any) -> Case:
    model = families.model_of(name, "sdpa", {**_SIZES, **families.TOKENS, **more}, **call)
    return model, (token_ids(batch, length, 4000),)


def _images(name: str, settings: Mapping[str, Any], batch: int, size: int) -> Case:
    model = families.model_of(name, "eager", {**settings, "image_size": size})
    return model, (torch.randn(batch, 3, size, size),)


_OPT: Final = {"ffn_dim": 1024, "word_embed_proj_dim": 384}
_DISTIL: Final = {"dim": 384, "hidden_dim": 1536, "n_heads": 6, "n_layers": 4}
_SWIN: Final = {"embed_dim": 48, "depths": [2, 2, 2], "num_heads": [2, 4, 8], "window_size": 7}

MODELS: Final[Mapping[str, Callable[[], Case]]] = {
    "t5_encoder": lambda: t5_encoder(2, 128, num_layers=4, d_model=384, d_ff=1024, num_heads=6),
    "convnext": lambda: convnext_tiny(1, 160, depths=(2, 2, 4, 2), widths=(48, 96, 192, 384)),
    "gpt_neox": lambda: _tokens("GPTNeoX", {}, 2, 128, use_cache=False),
    "distilbert": lambda: _tokens("DistilBert", _DISTIL, 4, 100),
    "swin": lambda: _images("Swin", _SWIN, 2, 112),
    "opt": lambda: _tokens("OPT", _OPT, 1, 256, use_cache=False),
    "mobilenet_v2": lambda: _images("MobileNetV2", {}, 2, 128),
    "bloom": lambda: (
        families.model_of(
            "Bloom",
            "eager",
            {"hidden_size": 384, "n_head": 6, "n_layer": 4, "vocab_size": 4000},
            use_cache=False,
        ),
        (token_ids(2, 96, 4000),),
    ),
    "mistral": lambda: _tokens(
        "Mistral", {"num_key_value_heads": 2, "sliding_window": 64}, 2, 160, use_cache=False
    ),
    "phi3": lambda: _tokens("Phi3", {"num_key_value_heads": 6}, 3, 77, use_cache=False),
}


def predict(make: Callable[[], Case], cost: CostModel, bench: Bench) -> tuple[float, float, float]:
    """Seconds of a run: predicted, the sum of its calls alone, measured at the usual pace."""
    module, args = make()
    compiled = optimize(module, args)
    program = compiled.program
    found = walk(program.plan.fused)
    nodes = [call.node for call in found.calls]
    alone = cost.estimate(nodes, far_values(found, cost.target))
    predicted = cost.program(found, alone)
    inputs = compiled.bindings.flatten(args, {})
    with torch.no_grad():
        took = profile(bench, program.recipe, inputs).whole
    return predicted.seconds, total(alone).seconds, took


def main() -> None:
    warnings.simplefilter("ignore")
    cost, bench = cost_model(host()), Bench(host())
    models: dict[str, dict[str, float]] = {}
    for name, make in MODELS.items():
        predicted, alone, took = predict(make, cost, bench)
        models[name] = {"predicted": predicted, "alone": alone, "measured": took}
        print(
            f"{name:14} predicted {predicted * 1e3:8.2f} ms  calls alone {alone * 1e3:8.2f} ms  "
            f"measured {took * 1e3:8.2f} ms  off by {abs(predicted / took - 1):.1%}",
            flush=True,
        )
    off = [abs(m["predicted"] / m["measured"] - 1) for m in models.values()]
    print(f"median {statistics.median(off):.1%}")
    report = {"machine": cpu_model(), "median": statistics.median(off), "models": models}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
