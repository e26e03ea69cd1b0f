"""Regions for tests: from a torch function or a graph to its loop nest, and running that.

`check_region` is the law of the loop IR: the nest computes what the interpreter does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from nest_eval import run_nest
from rewright.ir import Graph, Value
from rewright.ir.bind import bind
from rewright.ir.dims import evaluate
from rewright.ir.fx_import import from_fx
from rewright.ir.interpret import interpret
from rewright.ir.loops import Nest, lower

# Elements behind each buffer, NaN or of the largest value: what reads there goes astray.
MARGIN = 64


def region_of(function: Callable[..., Any], *inputs: Tensor, dynamic: bool = False) -> Graph:
    """The graph of `function` as one region. `dynamic`: sizes that may vary are symbols."""
    traced = make_fx(function, tracing_mode="symbolic" if dynamic else "fake")(*inputs)
    return from_fx(traced, name="region")


def check_region(region: Graph, *inputs: Sequence[Tensor], rtol: float = 1e-9) -> Nest:
    """Lower `region` and compare its nest with the interpreter in float64, on each of `inputs`.

    Floating-point inputs count as they are, outputs are not rounded; so dtypes with less precision
    than float32, whose nests round at every node, don't belong here.
    """
    nest = lower(region, "kernel")
    for given in inputs:
        expected = interpret(region, given, dtype=torch.float64)
        assert_close(run_region(region, nest, given, wide=True), expected, rtol)
    return nest


def run_region(
    region: Graph, nest: Nest, inputs: Sequence[Tensor], *, wide: bool = False
) -> list[Tensor]:
    """The outputs of a region's nest. `wide`: floating-point ones as float64, unrounded."""
    sizes = bind(region, inputs)
    buffers = {
        i.value.name: _with_margin(_storage(t)) for i, t in zip(region.inputs, inputs, strict=True)
    }
    outputs = []
    for value, buffer in zip(region.outputs, nest.outputs, strict=True):
        assert isinstance(value, Value)
        type = value.tensor
        dtype = torch.float64 if wide and type.dtype.is_floating_point else type.dtype
        elements = evaluate(type.storage_elements, sizes)
        buffers[buffer.name] = _with_margin(torch.empty(elements, dtype=dtype))
        shape, strides = ([evaluate(s, sizes) for s in of] for of in (type.shape, type.layout))
        outputs.append(buffers[buffer.name].as_strided(shape, strides))
    run_nest(nest, buffers, sizes)
    return outputs


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], rtol: float) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol, equal_nan=True)


def _storage(tensor: Tensor) -> Tensor:
    """Memory from the first element on, flat."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    count = 1 + sum((n - 1) * step for n, step in steps) if tensor.numel() else 0
    return tensor.as_strided((count,), (1,))


def _with_margin(storage: Tensor) -> Tensor:
    if storage.dtype.is_floating_point:
        fill: float = float("nan")
    else:
        fill = 1 if storage.dtype == torch.bool else torch.iinfo(storage.dtype).max
    return torch.cat([storage, torch.full((MARGIN,), fill, dtype=storage.dtype)])
