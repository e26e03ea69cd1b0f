"""A model's training step as a problem: traced on fake tensors, so that nothing is computed and no
size is too large."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import BackendCompilerFailed
from torch._subclasses.fake_tensor import FakeTensorMode

from rewright.ir import Graph, TensorType
from rewright.ir.effects import may_repeat
from rewright.ir.fx_import import from_fx
from rewright.passes.remat.graphs import Scheduled
from rewright.passes.remat.problem import Problem, Step

Model = tuple[nn.Module, tuple[Tensor, ...]]
Loss = Callable[[Tensor], Tensor]


class _Captured(Exception):
    """Ends a compilation whose joint graph is known."""


@dataclass(frozen=True)
class Joint:
    """Forward, loss and backward in one graph, and what else a partitioner is given."""

    module: fx.GraphModule
    inputs: Any
    given: Mapping[str, Any]


def joint_module(model: nn.Module, inputs: Sequence[Tensor], loss: Loss) -> Joint:
    """What AOTAutograd hands to a partitioner."""
    found: list[Joint] = []

    def capture(module: fx.GraphModule, inputs: Any, **given: Any) -> Any:
        found.append(Joint(module, inputs, given))
        raise _Captured

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=lambda gm, _: gm, partition_fn=capture)
    step = torch.compile(
        lambda *given: loss(model(*given)), backend=backend, fullgraph=True, dynamic=False
    )
    try:
        step(*inputs)
    except BackendCompilerFailed as error:
        if not found:
            raise RuntimeError("there is no joint graph") from error
    (joint,) = found
    return joint


def cross_entropy(logits: Tensor) -> Tensor:
    """Of the last dimension against the first class."""
    flat = logits.reshape(-1, logits.shape[-1])
    return F.cross_entropy(flat, torch.zeros(flat.shape[0], dtype=torch.long))


def with_tangents_of_one(output: Tensor) -> Tensor:
    """What FastSA differentiates."""
    return output.sum()


def joint_graph(make: Callable[[], Model], loss: Loss = cross_entropy) -> Graph:
    """The joint graph of a model in training mode, none of whose weights are ever made."""
    with FakeTensorMode():
        model, inputs = make()
        joint = joint_module(model.train(), inputs, loss)
    return from_fx(joint.module, name="joint")


def as_fastsa_counts(graph: Graph) -> Problem:
    """Every node takes a second and makes memory of its own, views too; a last one reads what is
    returned, which until then may be dropped and made again like all else."""
    numbers = {value: i for i, value in enumerate(v for node in graph.nodes for v in node.results)}
    steps = []
    for node in graph.nodes:
        reads = tuple(dict.fromkeys(numbers[v] for v in node.operands if v in numbers))
        makes = tuple(numbers[v] for v in node.results)
        steps.append(Step(node.name, 1.0, reads, makes, 0, may_repeat(node)))
    returned = dict.fromkeys(numbers[value] for value in graph.returned if value in numbers)
    steps.append(Step("output", 1.0, tuple(returned), (), 0, again=False))
    tensors = (value.type for value in numbers)
    sizes = (t.nbytes_hint if isinstance(t, TensorType) else 0 for t in tensors)
    return Problem(tuple(steps), tuple(sizes))


def as_it_runs(graph: Graph) -> Problem:
    """Every call takes a second; views take neither time nor memory."""
    return Scheduled(graph, {node.name: 1.0 for node in graph.nodes}).problem
