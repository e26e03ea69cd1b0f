"""Kernels for GPUs, built without one: Triton's where Triton is installed and can, else CUDA C++.

Both come to the same: a binary with an entry, and what a launch passes to it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rewright.codegen import cuda, triton
from rewright.ir import (
    Graph,
    Node,
    RewrightError,
    Size,
    ToolchainError,
    UnsupportedError,
    Value,
    divisible,
    values_in,
)
from rewright.ir.loops import (
    AnyNest,
    AttentionBackwardNest,
    AttentionNest,
    Buffer,
    ConvolutionNest,
    Nest,
    QuantizedNest,
)
from rewright.ir.storage import may_share_input_storage

# Bytes that kernels count on addresses being multiples of, unless they are told otherwise.
ALIGNMENT: Final = 16
WARP: Final = 32

# What Triton makes kernels from.
TritonNest = Nest | AttentionNest | AttentionBackwardNest

# What a parameter is in PTX.
_PTX_TYPES: Final = {"pointer": "u64", "scratch": "u64", "null": "u64", "i32": "u32", "i64": "u64"}


@dataclass(frozen=True)
class Argument:
    """A `kind` of pointer (the next of the table), scratch (to memory of a launch's own, for so
    many elements of f32 as `value`, an expression over symbols, says), size (`value` as i32 or
    i64) or null (no address). `aligned`: a multiple of ALIGNMENT."""

    kind: str
    name: str = ""
    type: str = ""
    value: str = ""
    aligned: bool = False


@dataclass(frozen=True)
class Image:
    """A kernel built for compute capability `arch`, which takes `shared` bytes of shared memory."""

    arch: int
    cubin: bytes
    ptx: str
    shared: int = 0


@dataclass(frozen=True)
class GpuKernel:
    """A kernel launched with `blocks` blocks of `threads` threads (x, y), unless one of `narrow` is
    over LARGEST_NARROW (of `rewright.codegen.triton.kernel`). Kernels `before` are launched before
    it, with the same pointers and scratch memory."""

    name: str
    language: str  # triton | cuda
    source: str
    entry: str
    images: tuple[Image, ...]
    blocks: Size
    threads: tuple[int, int]
    arguments: tuple[Argument, ...]
    narrow: tuple[Size, ...] = ()
    before: tuple[GpuKernel, ...] = ()


@dataclass(frozen=True)
class GpuKernels:
    """`built` in order of first use; `refused` says by name why a kernel runs as ATen."""

    built: tuple[GpuKernel, ...]
    refused: Mapping[str, str]


def build_kernels(
    nests: Sequence[AnyNest],
    symbols: Sequence[str],
    archs: Sequence[int],
    unaligned: Mapping[str, Collection[int]],
) -> GpuKernels:
    """Kernels for compute capabilities `archs` that take the sizes of `symbols`. `unaligned` gives
    for each nest the places of those pointers that may be no multiples of ALIGNMENT."""
    built: dict[str, GpuKernel] = {}
    refused: dict[str, str] = {}
    for nest in nests:
        places = unaligned.get(nest.name, ())
        try:
            if isinstance(nest, QuantizedNest):
                raise UnsupportedError("kernels of quantized layers are for CPUs")
            if isinstance(nest, ConvolutionNest):
                raise UnsupportedError("kernels of convolutions are for CPUs")
            if not _is_on_gpu(nest):
                raise UnsupportedError("it is on the CPU")
            if not has_triton():
                raise ToolchainError("Triton is not installed")
            built[nest.name] = by_triton(nest, symbols, archs, places)
        except RewrightError as error:
            refused[nest.name] = error.message
    left = [n for n in nests if n.name in refused and isinstance(n, Nest) and _is_on_gpu(n)]
    by_nvcc, why = _by_cuda(left, symbols, archs, unaligned)
    built |= by_nvcc
    refused = {
        name: f"{reason}; {why[name]}" if name in why else reason
        for name, reason in refused.items()
        if name not in built
    }
    return GpuKernels(tuple(built[n.name] for n in nests if n.name in built), refused)


def _is_on_gpu(nest: TritonNest) -> bool:
    return all(b.type.device.type != "cpu" for b in nest.outputs)


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def missing_compiler() -> str | None:
    """Why no kernel can be built, where none can."""
    if has_triton() or cuda.has_compiler():
        return None
    return "there is neither Triton, NVRTC nor nvcc to build kernels with"


def described(kernel: GpuKernel) -> dict[str, Any]:
    """What a launch must know of a kernel (`driver_runtime.Launch`), as plain data."""
    return {
        "name": kernel.name,
        "entry": kernel.entry,
        "blocks": str(kernel.blocks),
        "threads": list(kernel.threads),
        "narrow": [str(size) for size in kernel.narrow],
        "arguments": [_told(argument) for argument in kernel.arguments],
        "before": [described(k) for k in kernel.before],
    }


def _told(argument: Argument) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": argument.kind, "name": argument.name}
    if argument.kind == "pointer":
        return found | {"aligned": argument.aligned}
    if argument.kind == "scratch":
        return found | {"value": argument.value}
    return found | ({"type": argument.type, "value": argument.value} if argument.type else {})


# --- Triton -------------------------------------------------------------------------------------


def by_triton(
    nest: TritonNest,
    symbols: Sequence[str],
    archs: Sequence[int],
    unaligned: Collection[int] = (),
) -> GpuKernel:
    """Raises UnsupportedError for what Triton has no form for, ToolchainError when it fails."""
    kernel = triton.emit(nest, symbols)
    pointers = [p.name for p in kernel.parameters if p.size is None]
    anywhere = {pointers[place] for place in unaligned}
    before = tuple(_of_triton(k, archs, anywhere) for k in kernel.before)
    return dataclasses.replace(_of_triton(kernel, archs, anywhere), before=before)


def _of_triton(
    kernel: triton.TritonKernel, archs: Sequence[int], unaligned: Collection[str]
) -> GpuKernel:
    images = [triton.compile_for(kernel, arch, unaligned=unaligned) for arch in archs]
    built = images[0]
    arguments = [
        Argument("size", p.name, p.type or "i32", str(p.size), p.name in built.divisible)
        if p.size is not None
        else Argument("pointer", p.name, aligned=p.name in built.divisible)
        if p.scratch is None
        else Argument("scratch", p.name, value=str(p.scratch))
        for p in kernel.parameters
    ]
    arguments += [Argument("null", "global_scratch"), Argument("null", "profile_scratch")]
    found = GpuKernel(
        name=kernel.name,
        language="triton",
        source=kernel.source,
        entry=built.name,
        images=tuple(Image(i.arch, i.cubin, i.ptx, i.shared) for i in images),
        blocks=kernel.programs,
        threads=(WARP * built.warps, 1),
        arguments=tuple(arguments),
        narrow=kernel.extents,
    )
    return checked(found)


# --- CUDA C++ -----------------------------------------------------------------------------------


def _by_cuda(
    nests: Iterable[Nest],
    symbols: Sequence[str],
    archs: Sequence[int],
    unaligned: Mapping[str, Collection[int]],
) -> tuple[dict[str, GpuKernel], dict[str, str]]:
    """As many as can be, and why not the others."""
    emitted: list[tuple[Nest, cuda.CudaKernel]] = []
    refused: dict[str, str] = {}
    for nest in nests:
        try:
            if unaligned.get(nest.name):
                raise UnsupportedError("in CUDA C++ it would read 16 bytes at once")
            emitted.append((nest, cuda.emit(nest, symbols)))
        except RewrightError as error:
            refused[nest.name] = error.message
    try:
        return {kernel.name: kernel for kernel in by_cuda(emitted, archs)}, refused
    except ToolchainError as error:
        why = error.message.splitlines()[0]
        return {}, refused | {nest.name: why for nest, _ in emitted}


def by_cuda(
    emitted: Sequence[tuple[Nest, cuda.CudaKernel]], archs: Sequence[int]
) -> list[GpuKernel]:
    """All in one unit. Raises ToolchainError."""
    kernels = [kernel for _, kernel in emitted]
    if not kernels:
        return []
    source = cuda.unit(kernels)
    images = tuple(
        Image(arch, cuda.compile_for(kernels, arch), cuda.ptx_for(kernels, arch)) for arch in archs
    )
    return [
        checked(
            GpuKernel(
                name=nest.name,
                language="cuda",
                source=source,
                entry=kernel.name,
                images=images,
                blocks=kernel.blocks,
                threads=kernel.threads,
                arguments=(
                    *(Argument("pointer", b.name, aligned=True) for b in _buffers(nest)),
                    *(Argument("size", name, "i64", name) for name in kernel.symbols),
                ),
            )
        )
        for nest, kernel in emitted
    ]


def _buffers(nest: Nest) -> tuple[Buffer, ...]:
    return (*nest.inputs, *nest.outputs)


# --- what a launch relies on --------------------------------------------------------------------


def checked(kernel: GpuKernel) -> GpuKernel:
    """The kernel itself. Raises ToolchainError when its entry takes other parameters than a launch
    would pass."""
    wanted = [_PTX_TYPES[a.type or a.kind] for a in kernel.arguments]
    for image in kernel.images:
        entry = re.search(rf"\.entry {re.escape(kernel.entry)}\((.*?)\)", image.ptx, re.DOTALL)
        found = re.findall(r"\.param \.(\w+)", entry[1]) if entry else []
        if found != wanted:
            raise ToolchainError(
                f"{kernel.name} was built with parameters ({', '.join(found)}), and a launch "
                f"passes ({', '.join(wanted)})"
            )
    return kernel


def unaligned_pointers(graph: Graph, kernels: Mapping[str, str]) -> dict[str, set[int]]:
    """For each kernel the places of its pointers that may be no multiples of ALIGNMENT, at any of
    the nodes that it runs; places count operands, then results."""
    found: dict[str, set[int]] = {}
    for node in graph.nodes:
        if node.name in kernels:
            operands = values_in(node.args)
            places = {p for p, value in enumerate(operands) if not _is_aligned(value, graph)}
            found.setdefault(kernels[node.name], set()).update(places)
    return found


def _is_aligned(value: Value, graph: Graph) -> bool:
    """True for what begins at a multiple of ALIGNMENT: whatever owns its memory does, inputs too,
    which are copied otherwise."""
    node = graph.producers.get(value)
    if node is None or not may_share_input_storage(node):
        return True
    offset = _offset(node, value)
    if offset is None or not divisible(offset * value.tensor.dtype.itemsize, ALIGNMENT):
        return False
    return _is_aligned(node.operands[0], graph)


# Views that begin where their operand does.
_FROM_THE_START: Final = frozenset(
    f"aten.{name}"
    for name in (
        *("view.default", "_unsafe_view.default", "reshape.default", "contiguous.default"),
        *("permute.default", "transpose.int", "t.default", "expand.default", "alias.default"),
        *("unsqueeze.default", "squeeze.default", "squeeze.dim", "squeeze.dims"),
        *("detach.default", "view.dtype", "_to_copy.default", "clone.default"),
    )
)


def _offset(node: Node, value: Value) -> Size | None:
    """Elements between the beginning of a view and that of its operand, where that is known."""
    if node.op.name in _FROM_THE_START:
        return 0
    named = {"slice.Tensor": "start", "select.int": "index"}.get(node.op.name.removeprefix("aten."))
    if named is None and node.op.name != "aten.split_with_sizes.default":
        return None
    dim = node.arg("dim")
    assert isinstance(dim, int)
    stride = node.operands[0].tensor.layout[dim]
    if named is None:
        return _sum(node.arg("split_sizes"), node.results.index(value)) * stride
    begins = node.arg(named) or 0
    return begins * stride if isinstance(begins, int) and begins >= 0 else None


def _sum(sizes: object, count: int) -> Size:
    """The first `count` sizes together."""
    total: Size = 0
    for size in sizes[:count] if isinstance(sizes, tuple) else ():
        total = total + size
    return total
