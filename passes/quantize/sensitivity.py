"""How much error a format adds at a site: the second-order effect of what it changes there.

For KL divergence the second derivative is Fisher's information, the expected square of gradients of
the log-likelihood of outcomes drawn from the model itself; for relative L2, that of random
projections of the outputs. So one forward and a few backwards serve all sites and formats. (Kim et
al., "SqueezeLLM", arXiv 2306.07629, take Fisher's information from labels; none are needed here.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from rewright.ir import Graph, Input, Node, Value, evaluate, fresh_names
from rewright.ir.bind import bind
from rewright.ir.fx_export import to_fx
from rewright.passes.budget import ErrorBudget
from rewright.passes.emitter import Emitter

# How often outcomes, or projections, are drawn.
DRAWS: Final = 2


@dataclass(frozen=True)
class Sensitivity:
    """Of each site, by its node, what it read and the gradients of its result, a list of draws."""

    read: Mapping[str, tuple[Tensor, ...]]
    gradients: Mapping[str, Sequence[Tensor]]
    scale: float

    def error(self, site: str, change: Tensor, part: Any, step: int) -> float:
        """What it does to the outputs that a part of a site's result changes so, a `step`-th of the
        rows that do."""
        gradients = (g[part] for g in self.gradients[site])
        found = [(g.float() * change).sum(-1).square().sum() for g in gradients]
        return step * self.scale * float(torch.stack(found).mean())


class Probed(Protocol):
    """Where a change is thought of: in the first result of a node."""

    @property
    def node(self) -> Node: ...

    @property
    def reads(self) -> tuple[Value, ...]: ...


def sensitivity(
    graph: Graph, found: Sequence[Probed], sample: Sequence[Any], budget: ErrorBudget, seed: int
) -> Sensitivity:
    """Of all sites, on one sample of the graph's inputs."""
    probed, probes = _with_probes(graph, found)
    module = to_fx(probed)
    sizes = bind(graph, sample)
    zeros = [
        torch.zeros([evaluate(size, sizes) for size in v.tensor.shape], dtype=v.tensor.dtype)
        for v in probes
    ]
    given = [x.detach() if isinstance(x, Tensor) else x for x in sample]
    with torch.enable_grad():
        for zero in zeros:
            zero.requires_grad_()
        results = module(*given, *zeros)
    count = len(graph.outputs)
    outputs = floats_of(results[:count])
    rest = iter(results[count:])
    read = {s.node.name: tuple(next(rest).detach() for _ in s.reads) for s in found}
    generator = torch.Generator().manual_seed(seed)
    gradients: dict[str, list[Tensor]] = {s.node.name: [] for s in found}
    for draw in range(DRAWS):
        target = _drawn(outputs, budget, generator)
        again = draw + 1 < DRAWS
        grads = torch.autograd.grad(target, zeros, retain_graph=again, allow_unused=True)
        for site, grad, zero in zip(found, grads, zeros, strict=True):
            gradients[site.node.name].append(torch.zeros_like(zero) if grad is None else grad)
    return Sensitivity(read, gradients, _scale(outputs, budget))


def floats_of(outputs: Sequence[Any]) -> list[Tensor]:
    """The outputs that can be off."""
    return [x for x in outputs if isinstance(x, Tensor) and x.is_floating_point()]


def _with_probes(graph: Graph, found: Sequence[Probed]) -> tuple[Graph, list[Value]]:
    """The graph with a tensor added to each site's result, and what sites read returned."""
    fresh = fresh_names(v.name for v in graph.values)
    probes = {s.node.name: Value(fresh("probe"), s.node.results[0].type) for s in found}
    nodes: list[Node] = []
    for node in graph.nodes:
        probe = probes.get(node.name)
        if probe is None:
            nodes.append(node)
            continue
        result, *others = node.results
        bare = Value(fresh(node.name), result.type)
        emit = Emitter(fresh, node)
        emit("aten.add.Tensor", bare, probe)
        emit.end_in(result)
        nodes += [dataclasses.replace(node, results=(bare, *others)), *emit.nodes]
    inputs = (*graph.inputs, *(Input(v) for v in probes.values()))
    outputs = (*graph.outputs, *(v for s in found for v in s.reads))
    probed = dataclasses.replace(
        graph, inputs=inputs, nodes=tuple(nodes), outputs=outputs, updates=()
    )
    return probed, list(probes.values())


def _drawn(outputs: Sequence[Tensor], budget: ErrorBudget, generator: torch.Generator) -> Tensor:
    """A number whose gradients, squared, are the second derivative of the error on average."""
    with torch.enable_grad():
        if budget.metric in ("kl", "top1"):
            logs = outputs[0].float().log_softmax(-1)
            rows = logs.detach().exp().reshape(-1, logs.shape[-1])
            drawn = torch.multinomial(rows, 1, generator=generator)
            return logs.reshape(rows.shape).gather(1, drawn).sum()
        parts = [x.float() for x in outputs]
        return torch.stack(
            [(x * torch.randn(x.shape, generator=generator)).sum() for x in parts]
        ).sum()


def _scale(outputs: Sequence[Tensor], budget: ErrorBudget) -> float:
    if budget.metric in ("kl", "top1"):
        rows = outputs[0].numel() / outputs[0].shape[-1]
        return 0.5 / rows
    return 1 / max(sum(float(x.detach().float().square().sum()) for x in outputs), 1e-30)
