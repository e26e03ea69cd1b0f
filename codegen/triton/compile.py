"""Kernels as cubins, built without a GPU."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rewright.codegen.triton.kernel import LARGEST_NARROW, Parameter, TritonKernel
from rewright.codegen.triton.launch import module_of
from rewright.ir import ToolchainError, divisible, evaluate

# What a block may have of shared memory (CUDA C++ Programming Guide, compute capabilities).
SHARED_BYTES: Final = {80: 163 << 10, 87: 163 << 10, 90: 227 << 10, 100: 227 << 10, 103: 227 << 10}
LEAST_SHARED_BYTES: Final = 99 << 10

# Triton loads 128 bits at once only where pointers and row lengths are multiples of it.
ALIGNMENT = 16


@dataclass(frozen=True)
class CompiledKernel:
    """`cubin` holds the entry `name`, for blocks of `warps` warps and `shared` bytes of shared
    memory. It takes `TritonKernel.parameters`, then pointers to global and to profiling scratch
    memory (null). What `divisible` names must be a multiple of 16, pointers in bytes."""

    name: str
    arch: int
    cubin: bytes
    ptx: str
    warps: int
    shared: int
    divisible: tuple[str, ...]


def compile_for(
    kernel: TritonKernel,
    arch: int,
    sizes: Mapping[str, int] | None = None,
    *,
    unaligned: Container[str] = (),
) -> CompiledKernel:
    """Build `kernel` for compute capability `arch` (80, 90, 100).

    `sizes` gives values of the symbols to specialize for, as a launch with them would: which sizes
    are multiples of 16, and whether indices need 64 bits. `unaligned` names pointers that may be
    no multiples of 16. A kernel with several tiles in flight has fewer where the GPU lacks the
    shared memory. Raises ToolchainError when Triton interprets, or fails.
    """
    import triton
    from triton.compiler import ASTSource

    if triton.knobs.runtime.interpret:
        raise ToolchainError("Triton compiles nothing while TRITON_INTERPRET is set")
    function = getattr(module_of(kernel.name, kernel.source), kernel.name)
    aligned = [p for p in kernel.parameters if p.name not in unaligned and _is_aligned(p, sizes)]
    places = [(kernel.parameters.index(p),) for p in aligned]
    source = ASTSource(
        function,
        signature=_signature(kernel, sizes),
        constexprs=_constants(kernel, sizes),
        attrs={place: [["tt.divisibility", ALIGNMENT]] for place in places},
    )
    built = _built(kernel, arch, source)
    return CompiledKernel(
        name=built.metadata.name,
        arch=arch,
        cubin=built.asm["cubin"],
        ptx=built.asm["ptx"],
        warps=built.metadata.num_warps,
        shared=built.metadata.shared,
        divisible=tuple(p.name for p in aligned),
    )


def _built(kernel: TritonKernel, arch: int, source: Any) -> Any:
    options = dict(kernel.options)
    for stages in range(options.get("num_stages", 1), 0, -1):
        if "num_stages" in options:
            options["num_stages"] = stages
        built = _compiled(kernel.name, arch, source, options)
        if built.metadata.shared <= SHARED_BYTES.get(arch, LEAST_SHARED_BYTES):
            return built
    needed = built.metadata.shared
    raise ToolchainError(f"{kernel.name} takes more shared memory than sm_{arch} has: {needed} B")


def _compiled(name: str, arch: int, source: Any, options: Mapping[str, int]) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget

    try:
        with triton.knobs.compilation.scope():
            triton.knobs.compilation.disable_line_info = True  # it names folders of this machine
            built = triton.compile(source, GPUTarget("cuda", arch, 32), options=dict(options))
    except (RuntimeError, triton.errors.TritonError) as error:
        message = f"Triton does not compile {name} for sm_{arch}: {error}"
        raise ToolchainError(message) from error
    if built.metadata.global_scratch_size:
        raise ToolchainError(f"{name} wants scratch memory for sm_{arch}")
    return built


def _is_aligned(parameter: Parameter, sizes: Mapping[str, int] | None) -> bool:
    if parameter.size is None:
        return True
    if sizes is None:
        return divisible(parameter.size, ALIGNMENT)
    return evaluate(parameter.size, sizes) % ALIGNMENT == 0


def _signature(kernel: TritonKernel, sizes: Mapping[str, int] | None) -> dict[str, str]:
    found = {}
    for p in kernel.parameters:
        far = p.size is not None and sizes is not None and evaluate(p.size, sizes) >= 2**31
        found[p.name] = p.type or ("i64" if far else "i32")
    return found | dict.fromkeys(_constants(kernel, sizes), "constexpr")


def _constants(kernel: TritonKernel, sizes: Mapping[str, int] | None) -> dict[str, object]:
    import triton.language as tl

    constants: dict[str, object] = dict(kernel.constants)
    if kernel.extents:
        far = sizes is not None and any(evaluate(e, sizes) > LARGEST_NARROW for e in kernel.extents)
        constants["INDEX"] = tl.int64 if far else tl.int32
    return constants
