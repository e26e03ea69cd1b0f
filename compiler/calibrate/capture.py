"""The graphs of a model, as the backend would see them: inference, or a step of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rewright.ir import Graph
from rewright.options import Options


def inference_graph(module: nn.Module, args: Sequence[Any]) -> Graph:
    """torch.export's graph. Raises ImportFailure with its reason."""
    from rewright.api import export
    from rewright.ir.pt2 import load

    return load(export(module, args))[0]


def training_graphs(module: nn.Module, args: Sequence[Any]) -> list[Graph]:
    """Forward and backward of a training step, as PyTorch's partitioner leaves them; the gradient
    is that of the mean of the squares of what the module returns."""
    from rewright.ir.decompositions import autograd_table
    from rewright.joint import partition
    from rewright.torch_compat import aot_backend

    found: list[Graph] = []
    backend = aot_backend(
        fw_compiler=_keeping(found, "forward"),
        bw_compiler=_keeping(found, "backward"),
        partition_fn=partition(Options()),
        decompositions=autograd_table(),
    )
    torch._dynamo.reset()
    try:
        answer = torch.compile(module, backend=backend, dynamic=False)(*args)
        answers = [answer] if isinstance(answer, Tensor) else list(answer)
        real = [a.square().mean() for a in answers if a.is_floating_point()]
        torch.stack(real).sum().backward()
    finally:
        torch._dynamo.reset()
    return found


def _keeping(found: list[Graph], phase: str) -> Callable[..., Any]:
    """A compiler that compiles nothing and keeps the graph."""
    from torch import fx

    from rewright.backend import graph_of
    from rewright.torch_compat import boxed

    def keep(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        found.append(graph_of(gm, phase))
        return boxed(gm.forward)

    return keep
