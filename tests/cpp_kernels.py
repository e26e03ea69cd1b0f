"""From a torch function to its C++ kernel, and running that on storage of its own."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from nest_eval import run_nest, wide
from rewright.codegen.cpp import build, emit
from rewright.ir import Graph
from rewright.ir.dims import evaluate as size_of
from rewright.ir.fx_import import from_fx
from rewright.ir.loops import Buffer, Nest, lower

Function = Callable[..., Any]


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    return torch.randint(1 if dtype == torch.uint8 else -9, 9, shape).to(dtype)


@dataclass(frozen=True)
class Case:
    """A region, the inputs to try it on, and what its symbols are on them."""

    name: str
    graph: Graph
    nest: Nest
    inputs: tuple[Tensor, ...]
    sizes: Mapping[str, int]


def traced(name: str, function: Function, *inputs: Tensor, dynamic: bool = False) -> Case:
    """The case of `function` on `inputs`. `dynamic`: sizes that may vary are symbols."""
    trace = make_fx(function, tracing_mode="symbolic" if dynamic else "fake")
    graph = from_fx(trace(*inputs), name=name)
    sizes = {s.name: s.hint or 0 for s in graph.symbols}
    return Case(name, graph, lower(graph, f"k_{name}"), inputs, sizes)


def storage(tensor: Tensor) -> Tensor:
    """The memory of a tensor from its first element on, flat."""
    size = (
        0
        if tensor.numel() == 0
        else 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    )
    return tensor.as_strided((size,), (1,))


@dataclass(frozen=True)
class Kernel:
    """A compiled case. `symbols` are those of its unit, in order."""

    case: Case
    function: Callable[..., None]
    symbols: tuple[str, ...]


def compiled(cases: Sequence[Case], *, march: str = "native") -> list[Kernel]:
    """The kernels of `cases`, in one library."""
    symbols = tuple(dict.fromkeys(name for case in cases for name in case.sizes))
    library = build(emit([case.nest for case in cases], symbols), march=march)
    return [Kernel(case, library.function(case.nest.name), symbols) for case in cases]


def run_kernel(kernel: Kernel) -> list[Tensor]:
    """What the kernel writes: the nest's outputs, flat. Checks that it writes nothing else."""
    return _run(kernel.case, lambda buffers: _call(kernel, buffers))


def run_reference(case: Case) -> list[Tensor]:
    """The same by the nest's definition, floats in float64."""
    made = {b.name: b for b in case.nest.outputs}

    def run(buffers: Mapping[str, Tensor]) -> None:
        widened = {n: t.to(wide(t.dtype)) if n in made else t for n, t in buffers.items()}
        run_nest(case.nest, widened, case.sizes)
        for name in made:
            references[name] = widened[name]

    references: dict[str, Tensor] = {}
    _run(case, run)
    return [references[b.name] for b in case.nest.outputs]


def same_bits(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)


def _run(case: Case, run: Callable[[Mapping[str, Tensor]], None]) -> list[Tensor]:
    given = {i.value.name: storage(t) for i, t in zip(case.graph.inputs, case.inputs, strict=True)}
    outputs = {b.name: _allocate(b, case.sizes) for b in case.nest.outputs}
    run({**{b.name: given[b.name] for b in case.nest.inputs}, **outputs})
    return list(outputs.values())


def _allocate(buffer: Buffer, sizes: Mapping[str, int]) -> Tensor:
    size = size_of(buffer.type.storage_elements, sizes)
    return torch.zeros(size, dtype=buffer.type.dtype)


# Bytes on either side of an output that a kernel must leave alone.
MARGIN = 256


def _call(kernel: Kernel, buffers: Mapping[str, Tensor]) -> None:
    case = kernel.case
    guarded = {b.name: _Guarded(buffers[b.name]) for b in case.nest.outputs}
    addresses = [buffers[b.name].data_ptr() for b in case.nest.inputs]
    addresses += [guarded[b.name].address for b in case.nest.outputs]
    table = (ctypes.c_void_p * max(1, len(addresses)))(*addresses)
    values = [case.sizes.get(name, 0) for name in kernel.symbols]
    kernel.function(table, (ctypes.c_int64 * max(1, len(values)))(*values))
    for output in guarded.values():
        output.copy_back()


class _Guarded:
    """Memory for an output between two margins."""

    def __init__(self, output: Tensor) -> None:
        self.output = output
        self.nbytes = output.numel() * output.element_size()
        self.memory = torch.full((self.nbytes + 2 * MARGIN,), 0xA5, dtype=torch.uint8)
        self.address = self.memory.data_ptr() + MARGIN

    def copy_back(self) -> None:
        margins = (self.memory[:MARGIN], self.memory[MARGIN + self.nbytes :])
        assert all((margin == 0xA5).all() for margin in margins), "a kernel wrote outside"
        inner = self.memory[MARGIN : MARGIN + self.nbytes]
        self.output.view(torch.uint8).copy_(inner) if self.nbytes else None


def outputs_of(case: Case, flat: Sequence[Tensor]) -> list[Tensor]:
    """Flat outputs in the shapes and strides of the region's."""
    return [
        memory.as_strided(_ints(buffer.type.shape, case), _ints(buffer.type.layout, case))
        for memory, buffer in zip(flat, case.nest.outputs, strict=True)
    ]


def _ints(sizes: Sequence[Any], case: Case) -> list[int]:
    return [size_of(size, case.sizes) for size in sizes]
