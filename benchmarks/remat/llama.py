"""PyTorch's memory budget on a deep Llama-like graph, and ours: peak of the backward against FLOPs
that are computed again.

Both count the same bytes: storages that live in the backward, with the parameters and the input,
which are there all the time, and the gradients, which stay once they are made. FLOPs are those of
matrix products and attention. Nothing runs: the tensors are fake.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._functorch import config
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.remat.graphs import Joint, joint_module
from benchmarks.remat.results import write
from rewright.ir import Graph, TensorType, Value, is_call
from rewright.ir.fx_import import from_fx
from rewright.passes.remat.graphs import Boundary, Scheduled
from rewright.passes.remat.judge import live_bytes
from rewright.passes.remat.solve import Schedule, fit, solve

WIDTH, HEADS, HIDDEN, BATCH = 256, 4, 1024, 2
BUDGETS: Final = (1.0, 0.6, 0.4, 0.2, 0.1, 0.05, 0.0)
# What a call takes besides its FLOPs, as a share of the forward's.
CALL: Final = 1e-7


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Block(nn.Module):
    """Attention and a gated MLP, each added to `[N, T, WIDTH]`."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(Norm() for _ in range(2))
        self.qkvo = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        y = self.norms[0](x)
        q, k, v = (
            layer(y).view(n, t, HEADS, WIDTH // HEADS).transpose(1, 2) for layer in self.qkvo[:3]
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.qkvo[3](mixed.transpose(1, 2).reshape(n, t, WIDTH))
        y = self.norms[1](x)
        added: Tensor = self.down(F.silu(self.gate(y)) * self.up(y))
        return x + added


def mean_square(output: Tensor) -> Tensor:
    return output.pow(2).mean()


@dataclass(frozen=True)
class Point:
    """Peak of the backward in bytes, and FLOPs computed again as a share of the forward's."""

    name: str
    peak: int
    again: float
    whole_step: int | None = None
    seconds_to_plan: float = 0.0


# --- PyTorch ------------------------------------------------------------------------------------


# PyTorch's own table does not know attention on the CPU.
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_CPU_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
FLOPS: Final = {
    **flop_registry,
    _CPU_ATTENTION: lambda q, k, v, *_, **__: sdpa_flop_count(q.shape, k.shape, v.shape),
    _CPU_ATTENTION_BACKWARD: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(
        grad.shape, q.shape, k.shape, v.shape
    ),
}


def flops(node: fx.Node) -> int:
    known = FLOPS.get(getattr(node.target, "overloadpacket", None))
    if node.op != "call_function" or known is None:
        return 0
    args, kwargs = tree_map(
        lambda x: x.meta["val"] if isinstance(x, fx.Node) else x, (node.args, dict(node.kwargs))
    )
    return int(known(*args, **kwargs, out_val=node.meta["val"]))


def total(module: fx.GraphModule) -> int:
    return sum(flops(node) for node in module.graph.nodes)


def storages(node: fx.Node) -> Mapping[int, int]:
    """The bytes of each storage that a node's value lies in."""
    tensors = (t for t in tree_leaves(node.meta.get("val")) if isinstance(t, Tensor))
    found = (t.untyped_storage() for t in tensors)
    return {storage._cdata: storage.nbytes() for storage in found}


def backward_peak(backward: fx.GraphModule) -> int:
    nodes = list(backward.graph.nodes)
    born: dict[int, int] = {}
    died: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for i, node in enumerate(nodes):
        given = node.op == "placeholder"
        for storage, size in storages(node).items():
            sizes[storage] = size
            born.setdefault(storage, 0 if given else i)
            died[storage] = max(i, died.get(storage, i))
        for read in node.all_input_nodes:
            died |= dict.fromkeys(storages(read), i)
    for node in nodes:
        if node.op == "placeholder" and node.name.startswith("primals"):
            died |= dict.fromkeys(storages(node), len(nodes))
    changes = [0] * (len(nodes) + 2)
    for storage, size in sizes.items():
        changes[born[storage]] += size
        changes[died[storage] + 1] -= size
    return max(accumulate(changes))


def copy_module(module: fx.GraphModule) -> fx.GraphModule:
    """What may be changed: nodes anew, of the same fake tensors."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    return fx.GraphModule(module, graph)


def theirs(joint: Joint, budget: float) -> Point:
    """The partitioner of PyTorch at one of its budgets."""
    copy = copy_module(joint.module)
    mode = next(iter(joint.module.graph.nodes)).meta["val"].fake_mode
    began = time.perf_counter()
    with mode, config.patch(activation_memory_budget=budget):
        forward, backward = min_cut_rematerialization_partition(copy, joint.inputs, **joint.given)
    took = time.perf_counter() - began
    again = total(forward) + total(backward) - total(joint.module)
    peak = backward_peak(backward)
    return Point(f"PyTorch {budget}", peak, again / total(forward), None, took)


# --- ours ---------------------------------------------------------------------------------------


class Ours:
    """The same joint graph as a problem whose seconds are FLOPs, as shares of the forward's."""

    def __init__(self, joint: fx.GraphModule) -> None:
        graph = from_fx(joint, name="joint")
        known = {node.name: flops(node) for node in joint.graph.nodes}
        calls = {node.name: known.get(node.name, 0) for node in graph.nodes if is_call(node)}
        assert sum(calls.values()) == total(joint)
        self.forward = total(joint) - sum(
            calls[node.name] for node in late_calls(graph) if node.name in calls
        )
        seconds = {name: count / self.forward + CALL for name, count in calls.items()}
        loss = graph.outputs[0]
        assert isinstance(loss, Value)
        self.step = Scheduled(graph, seconds, Boundary((loss,), tangents_of(graph)))
        self.problem = self.step.problem
        self.always = sum(
            i.value.tensor.nbytes_hint
            for i in graph.inputs
            if isinstance(i.value.type, TensorType) and i.value not in tangents_of(graph)
        )

    def point(self, name: str, found: Schedule, took: float) -> Point:
        live = live_bytes(self.problem, found.order)
        boundary = self.step.nodes.index(None)
        peak = max(live[found.order.index(boundary) :])
        again = found.seconds - self.problem.seconds
        calls = (len(found.order) - len(self.problem.steps)) * CALL
        return Point(name, peak + self.always, again - calls, found.peak + self.always, took)

    def within(self, name: str, peak: int) -> Point:
        began = time.perf_counter()
        found = fit(self.problem, peak - self.always)
        return self.point(name, found, time.perf_counter() - began)


def tangents_of(graph: Graph) -> frozenset[Value]:
    return frozenset(i.value for i in graph.inputs if i.value.name.startswith("tangents"))


def late_calls(graph: Graph) -> Sequence[Any]:
    """The calls that need a tangent."""
    late, found = set(tangents_of(graph)), []
    for node in graph.nodes:
        if not late.isdisjoint(node.operands):
            late.update(node.results)
            found.append(node)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024)
    given = parser.parse_args()
    with FakeTensorMode():
        model = nn.Sequential(*(Block() for _ in range(given.layers)))
        inputs = (torch.zeros(BATCH, given.length, WIDTH),)
        joint = joint_module(model, inputs, mean_square)
    rows = [theirs(joint, budget) for budget in BUDGETS]
    ours = Ours(joint.module)
    points = [ours.within(f"at most the peak of {row.name}", row.peak) for row in rows]
    if (given.layers, given.length) == (32, 1024):
        points += [ours.within(f"at most {mb} MB", mb * 10**6) for mb in (331, 318)]
    points.append(ours.within("the least", 0))
    began = time.perf_counter()
    front = solve(ours.problem)
    took = time.perf_counter() - began
    curve = [ours.point("front", found, 0.0) for found in front.schedules]
    for point in (*rows, *points):
        again = f"{point.again:6.3f} again, {point.seconds_to_plan:5.1f} s"
        print(f"{point.name:32} {point.peak / 1e6:8.1f} MB {again}")
    bound = front.bound + ours.always
    print(f"front of {len(curve)} in {took:.1f} s; bound {bound / 1e6:.1f} MB")
    write(
        f"llama_{given.layers}x{given.length}",
        {
            "steps": len(ours.problem.steps),
            "bound": bound,
            "seconds_to_plan_the_front": took,
            "pytorch": [asdict(row) for row in rows],
            "ours": [asdict(point) for point in points],
            "front": [asdict(point) for point in curve],
        },
    )


if __name__ == "__main__":
    main()
