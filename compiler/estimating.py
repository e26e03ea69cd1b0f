"""`rewright estimate`: how long a call takes, from a line like `aten.mm(f32[64, 9], f32[9, 8])`.

Types are written as in the IR's text, other arguments as in Python; what comes out is asked of
torch, on tensors without data. The call goes through the default passes, so what is estimated is
what would run.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch.utils._pytree import tree_leaves

from rewright.costmodel import CostModel, Estimate, total
from rewright.ir import (
    DTYPES,
    Graph,
    ImportFailure,
    Node,
    RewrightError,
    TensorType,
    TextError,
    UnsupportedError,
    Value,
    evaluate,
    is_call,
    op,
)
from rewright.ir.graph import map_leaves
from rewright.ir.parse import parse
from rewright.ir.types import OtherType, ScalarType, Type
from rewright.sources import torch_kept_quiet

_TYPE: Final = re.compile(r"\b([a-z]\w*)(\[[^\[\]]*\])((?:\s*strides\s*\[[^\[\]]*\])?)")
_CALL: Final = re.compile(r"\s*([A-Za-z_][\w.]*)\s*\((.*)\)\s*", re.DOTALL)


def estimate_line(text: str, cost: CostModel) -> Estimate:
    """The time of the call that `text` spells, by itself, on the model's target.

    Raises TextError when it cannot be read, UnsupportedError when torch refuses the arguments.
    """
    from rewright.passes import DEFAULT, Env, Fuse, Pipeline

    steps = Pipeline((*Pipeline(DEFAULT).at_aten(), Fuse()))
    graph = graph_of(text, cost.target.device)
    made = steps.run(graph, Env(cost, cost.target)).graph
    return total(cost.estimate([node for node in made.nodes if is_call(node)]))


def graph_of(text: str, device: str) -> Graph:
    """The graph of one call, on a kind of device."""
    found = _CALL.fullmatch(text)
    if found is None:
        raise TextError(
            f"'{text.strip()}' is no call", help="write one as aten.mm(f32[64, 64], f32[64, 64])"
        )
    place = "" if device == "cpu" else f" on {device}:0"
    types: list[str] = []

    def named(match: re.Match[str]) -> str:
        if match[1] not in DTYPES:
            return match[0]
        types.append(match[0] + place)
        return f"%a{len(types) - 1}"

    arguments = _TYPE.sub(named, found[2])
    inputs = ", ".join(f"%a{i}: {type}" for i, type in enumerate(types))
    refused: list[RewrightError] = []
    for name in _overloads(found[1]):
        line = f"%r0 = {name}({arguments}) : f32[]"
        try:
            graph = parse(f"graph call({inputs}) {{\n  {line}\n  return\n}}")
            return _with_results(graph, device)
        except RewrightError as error:
            refused.append(error)
    raise refused[0]


def _overloads(name: str) -> Iterator[str]:
    """Full names of the operators that a name may mean."""
    namespace, _, rest = name.partition(".")
    if "." in rest or namespace != "aten":
        yield name
        return
    packet = getattr(torch.ops.aten, rest, None)
    if packet is None:
        op(f"{name}.default")  # raises, with the nearest name
        raise ImportFailure(f"there is no operator {name}")
    for overload in sorted(packet.overloads(), key=lambda o: (o != "default", o != "Tensor")):
        yield f"{name}.{overload}"


def _with_results(graph: Graph, device: str) -> Graph:
    (node,) = graph.nodes
    types = _result_types(node, torch.device(device, 0) if device != "cpu" else torch.device("cpu"))
    results = tuple(Value(f"r{i}", type) for i, type in enumerate(types))
    returned = tuple(v for v in results if isinstance(v.type, TensorType))
    return dataclasses.replace(
        graph, nodes=(dataclasses.replace(node, results=results),), outputs=returned
    )


def _result_types(node: Node, device: torch.device) -> Iterator[Type]:
    """What torch says that the node gives."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        given = {
            v: torch.empty_strided(
                [evaluate(s, {}) for s in v.tensor.shape],
                [evaluate(s, {}) for s in v.tensor.layout],
                dtype=v.tensor.dtype,
            )
            for v in node.operands
        }

        def real(leaf: Any) -> Any:
            return given[leaf] if isinstance(leaf, Value) else leaf

        args = [map_leaves(a, real) for a in node.args]
        kwargs = {k: map_leaves(a, real) for k, a in node.kwargs}
        assert node.op.target is not None
        try:
            with torch_kept_quiet():
                answer = node.op.target(*args, **kwargs)
        except Exception as error:
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise UnsupportedError(f"{node.op} refuses these arguments: {reason[0]}") from error
    for result in tree_leaves(answer):
        if isinstance(result, torch.Tensor):
            shape, strides = tuple(result.shape), tuple(result.stride())
            yield TensorType(result.dtype, shape, strides, device)
        elif isinstance(result, (int, float)):
            size = int(result) if type(result) is int else None
            yield ScalarType(type(result).__name__, size)
        else:
            yield OtherType("none" if result is None else "object")
