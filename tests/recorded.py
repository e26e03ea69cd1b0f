"""A torch.compile backend that imports what it is given, and compares at every call.

Each graph runs as AOTAutograd made it, exported again, exported twice, and interpreted: all must
give the same bits, the same strides, the same updates of inputs, under the same random state. In
float64 the interpreter must come close.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses.fake_tensor import unset_fake_temporarily

from rewright.ir.decompositions import decomposition_table
from rewright.ir.fx_export import to_fx
from rewright.ir.fx_import import from_fx
from rewright.ir.graph import Graph
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse

Runner = Callable[..., Sequence[Any]]


@dataclass
class Recorder:
    """The graphs of one torch.compile, in the order they came; `calls` counts their runs."""

    decompose: bool = False
    tolerance: float = 1e-4
    graphs: list[Graph] = field(default_factory=list)
    calls: int = 0

    def compile(self, function: Any, *, dynamic: bool = False) -> Callable[..., Any]:
        torch._dynamo.reset()
        backend = aot_autograd(
            fw_compiler=self._compiler("forward"),
            bw_compiler=self._compiler("backward"),
            inference_compiler=self._compiler("inference"),
            partition_fn=min_cut_rematerialization_partition,
            decompositions=decomposition_table() if self.decompose else {},
            keep_inference_input_mutations=True,
        )
        return torch.compile(function, backend=backend, dynamic=dynamic)

    def _compiler(self, phase: str) -> Callable[..., Runner]:
        def compiler(gm: fx.GraphModule, inputs: Sequence[Any]) -> Runner:
            graph = from_fx(gm, name=phase)
            self.graphs.append(graph)
            # AOTAutograd calls under its FakeTensorMode; constants print their data.
            with unset_fake_temporarily():
                assert parse(str(graph)) == graph
            modules = [to_fx(graph)]
            modules.append(to_fx(from_fx(modules[0], name=phase)))

            def run(args: list[Any]) -> Sequence[Any]:
                given = list(args)
                args.clear()
                self.calls += 1
                return compare(graph, gm, modules, given, self.tolerance)

            run._boxed_call = True  # type: ignore[attr-defined]
            return run

        return compiler


def compare(
    graph: Graph,
    original: fx.GraphModule,
    exported: Sequence[fx.GraphModule],
    inputs: Sequence[Any],
    tolerance: float,
) -> Sequence[Any]:
    """The outputs of `original`, once every other way of running the graph agrees."""
    state = torch.get_rng_state()
    copies = [twin(x) for x in inputs]
    outputs: Sequence[Any] = original(*inputs)
    after = torch.get_rng_state()
    ways: list[Runner] = [*exported, lambda *args: interpret(graph, args)]
    for way in ways:
        torch.set_rng_state(state)
        args = [twin(x) for x in copies]
        assert_same(way(*args), outputs)
        assert_same(args, inputs)
    torch.set_rng_state(state)
    precise = interpret(graph, [twin(x) for x in copies], dtype=torch.float64)
    for got, expected in zip(precise, outputs, strict=True):
        assert_close(got, expected, tolerance)
    torch.set_rng_state(after)
    return outputs


def twin(x: Any) -> Any:
    """A tensor over a copy of the whole storage, with the same strides, overlaps and offset."""
    if not isinstance(x, Tensor) or x.layout is not torch.strided:
        return x
    storage = x.detach().untyped_storage().clone()
    return torch.empty(0, dtype=x.dtype).set_(storage, x.storage_offset(), x.shape, x.stride())


def assert_same(got: Sequence[Any], expected: Sequence[Any]) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert type(a) is type(b) or isinstance(b, Tensor)
        if isinstance(b, Tensor):
            assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        else:
            assert a == b


def assert_close(got: Any, expected: Any, tolerance: float) -> None:
    """By relative L2 error for floating tensors; equal otherwise."""
    if not isinstance(expected, Tensor):
        assert got == expected
    elif not expected.is_floating_point():
        assert torch.equal(got.to(expected.dtype), expected)
    else:
        assert got.dtype is torch.float64
        error = (got - expected).nan_to_num().norm()
        assert error <= tolerance * expected.double().nan_to_num().norm() + 1e-6
