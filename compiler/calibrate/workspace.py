"""What operators that ATen runs allocate for themselves while they run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rewright.ir import Graph, Kind, Node, TensorType, is_call
from rewright.ir.alone import alone, call_name
from rewright.ir.effects import effects_of
from rewright.ir.interpret import interpret

# Bytes by the name of a call; the same in every process, so measured once in each.
_known: dict[str, int] = {}


def workspaces(graph: Graph, least: int) -> Mapping[str, int]:
    """Bytes that calls of operators hold beyond what they read and return, by their nodes' names,
    where it is over `least`: each was run once, on random numbers. What cannot run alone counts as
    none."""
    calls = {node.name: alone(node) for node in graph.nodes if _may_hold(node, least)}
    names = {node: call_name(str(call)) for node, call in calls.items()}
    new = {names[node]: call for node, call in calls.items() if names[node] not in _known}
    if new:
        _known.update(zip(new, _measured(list(new.values())), strict=True))
    return {node: _known[name] for node, name in names.items() if _known[name] > least}


def _may_hold(node: Node, least: int) -> bool:
    """True for an operator that computes with tensors, one of them large, and does nothing else."""
    if node.op.kind is Kind.REGION or not is_call(node) or effects_of(node) or node.graphs:
        return False
    types = [v.type for v in node.operands]
    results = (v.type for v in node.results)
    large = (t for t in (*types, *results) if isinstance(t, TensorType) and t.nbytes_hint > least)
    return all(isinstance(t, TensorType) for t in types) and any(True for _ in large)


def _measured(calls: Sequence[Graph]) -> list[int]:
    from torch.profiler import ProfilerActivity, profile, record_function

    from rewright.sources import random_inputs

    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # it says on stderr when it begins and ends
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        kept = []
        for i, call in enumerate(calls):
            inputs = random_inputs(call)
            with record_function(f"rewright {i}"):
                kept.append(_results(call, inputs))
            kept[-1] = [r.nbytes for r in kept[-1] if isinstance(r, torch.Tensor)]
    events = found.profiler.kineto_results.events()
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    spans = {e.name(): (e.start_ns(), e.start_ns() + e.duration_ns()) for e in events}
    return [
        max(0, _peak(memory, *spans[f"rewright {i}"]) - sum(sizes)) for i, sizes in enumerate(kept)
    ]


def _results(call: Graph, inputs: Sequence[Any]) -> list[Any]:
    try:
        return interpret(call, inputs)
    except (RuntimeError, IndexError):
        return []  # random numbers were no good to it


def _peak(memory: Sequence[tuple[int, int]], first: int, last: int) -> int:
    live = peak = 0
    for at, nbytes in memory:
        if first <= at <= last:
            live += nbytes
            peak = max(peak, live)
    return peak
