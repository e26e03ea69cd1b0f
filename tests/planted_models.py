"""Models of some hundred nodes, and what is said of a fault that is planted beneath one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

from examples.case import Case
from examples.huggingface import bert, gpt2
from examples.resnet import resnet50
from rewright.api import export
from rewright.ir import Graph
from rewright.ir.parse import parse
from rewright.ir.pt2 import load
from rewright.sources import random_inputs, torch_kept_quiet

Patch = pytest.MonkeyPatch
Model = tuple[Graph, list[Any]]


@dataclass(frozen=True)
class Planted:
    """A fault, the model that it breaks, and what to say of it: the place to blame, the operator
    or rule, the first node that is wrong."""

    name: str
    plant: Callable[[Patch], None]
    model: Callable[[], Model]
    place: str
    what: str
    node: str = ""
    rules: str = ""
    freeze: bool = False


@cache
def gpt2_model() -> Model:
    """36 features: the last vector of a row is not full."""
    sizes: dict[str, Any] = {"n_embd": 36, "n_head": 4, "n_layer": 4, "vocab_size": 128}
    return _exported("gpt2", gpt2(2, 12, bos_token_id=0, eos_token_id=0, **sizes))


@cache
def spelled_model() -> Model:
    """Attention by product, softmax and product."""
    sizes = {"n_embd": 32, "n_head": 4, "n_layer": 4, "vocab_size": 128}
    return _exported(
        "gpt2", gpt2(2, 12, attention="eager", bos_token_id=0, eos_token_id=0, **sizes)
    )


@cache
def bert_model() -> Model:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 128}
    return _exported("bert", bert(2, 12, num_hidden_layers=4, num_attention_heads=4, **sizes))


@cache
def resnet_model() -> Model:
    """In training mode: the statistics of every norm are updated."""
    module, inputs = resnet50(2, 32, depths=(2, 2, 2, 2), width=8, classes=10)
    return _exported("resnet", (module.train(), inputs))


@cache
def still_resnet_model() -> Model:
    """In inference: norms can be taken into weights."""
    return _exported("resnet", resnet50(2, 32, depths=(2, 2, 2, 2), width=8, classes=10))


class Windows(torch.nn.Module):
    """Attention that looks at the 32 tokens before each, layer after layer."""

    def __init__(self, layers: int = 6, heads: int = 2, width: int = 16) -> None:
        super().__init__()
        self.heads, sizes = heads, (heads * width, 3 * heads * width)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(*sizes) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        place = torch.arange(x.shape[1])
        seen = (place <= place[:, None]) & (place[:, None] - place < 32)
        for layer in self.layers:
            q, k, v = layer(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            made = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
            x = x + made.transpose(1, 2).flatten(-2)
        return x


@cache
def windows_model() -> Model:
    torch.manual_seed(0)
    return _exported("windows", (Windows().eval(), (torch.randn(1, 256, 32),)))


@cache
def composite_model() -> Model:
    """As text, with operators that are still to be taken apart."""
    lines = [
        f"  %h{i} = aten.linear.default(%{'x' if i == 0 else f'g{i - 1}'}, %w, %b) : f32[8, 32]\n"
        f"  %g{i} = aten.gelu.default(%h{i}) : f32[8, 32]"
        for i in range(100)
    ]
    head = "graph stack(%x: f32[8, 32], %w: f32[32, 32] param, %b: f32[32] param) {"
    graph = parse("\n".join([head, *lines, "  return %g99", "}"]))
    x, w, b = random_inputs(graph)
    return graph, [x, w / 4, b]


def _exported(name: str, case: Case) -> Model:
    module, inputs = case
    with torch_kept_quiet():
        graph, bindings = load(export(module, inputs), name=name)
    return graph, bindings.flatten(inputs, {})
