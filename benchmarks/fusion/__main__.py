"""How far the plans of the fuse pass are from the shortest, by the cost model that it asks.

Two layers of each model, as models repeat them, in inference and in training. Parts are nodes that
may share kernels and are connected; of those that are too large nothing is proven.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Final
from unittest.mock import patch

import torch

from benchmarks.fusion.exact import best, judge
from benchmarks.fusion.parts import parts_of
from benchmarks.report import print_table
from examples.case import Case
from examples.convnext import convnext_tiny
from examples.huggingface import bert, gpt2, llama, t5_encoder, vit
from rewright.costmodel import expected_seconds
from rewright.ir import Graph
from rewright.passes import Env, Fuse

MODELS: Final[dict[str, Callable[[], Case]]] = {
    "GPT-2": lambda: gpt2(2, 128, n_layer=2),
    "Llama": lambda: llama(
        2,
        128,
        hidden_size=768,
        intermediate_size=2112,
        num_hidden_layers=2,
        num_attention_heads=12,
        num_key_value_heads=4,
        vocab_size=8000,
    ),
    "BERT": lambda: bert(2, 128, num_hidden_layers=2),
    "ViT": lambda: vit(2, 224, num_hidden_layers=2),
    "T5's encoder": lambda: t5_encoder(2, 128, num_layers=2),
    "ConvNeXt": lambda: convnext_tiny(2, 224, depths=(1, 1, 2, 1)),
}


def main() -> None:
    options = argparse.ArgumentParser("python -m benchmarks.fusion", description=__doc__)
    options.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    rows = [row for name in options.parse_args().models for row in _rows(name)]
    columns = "graph", "parts", "largest", "not proven", "pass", "shortest", "of the program"
    print_table(columns, rows)


def _rows(name: str) -> Iterator[list[str]]:
    for graph, fused, env in _fused(name, training=False):
        yield [f"{name}, inference", *_cells(graph, fused, env)]
    for graph, fused, env in _fused(name, training=True):
        yield [f"{name}, {graph.name}", *_cells(graph, fused, env)]


def _fused(name: str, *, training: bool) -> list[tuple[Graph, Graph, Env]]:
    """The graphs that the pass is given, and what it makes of them."""
    found: list[tuple[Graph, Graph, Env]] = []
    run = Fuse.run

    def see(self: Fuse, graph: Graph, env: Env) -> Graph:
        fused = run(self, graph, env)
        found.append((graph, fused, env))
        return fused

    torch._dynamo.reset()
    model, inputs = MODELS[name]()
    with patch.object(Fuse, "run", see), torch.set_grad_enabled(training):
        outputs = torch.compile(model.train(training), backend="rewright")(*inputs)
        if training:
            first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
            first.square().mean().backward()
    return found


def _cells(graph: Graph, fused: Graph, env: Env) -> list[str]:
    found = parts_of(graph, env)
    given = shortest = 0.0
    unproven = 0
    for number, part in enumerate(found.parts):
        plan = best(part)
        if plan is None:
            unproven += 1
            continue
        given += judge(part, found.kernels_of(fused, number))
        shortest += plan.seconds
    whole = sum(seconds for _, seconds in expected_seconds(env.cost, fused))
    return [
        str(len(found.parts)),
        str(max(map(len, found.units), default=0)),
        str(unproven),
        f"{1e6 * given:.0f} us",
        f"{1e6 * shortest:.0f} us",
        f"{(given - shortest) / whole:.2%}",
    ]


if __name__ == "__main__":
    main()
