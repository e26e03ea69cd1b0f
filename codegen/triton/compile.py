"""Kernels as cubins, built without a GPU."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from rewright.codegen.triton.kernel import LARGEST_NARROW, Parameter, TritonKernel
from rewright.codegen.triton.launch import module_of
from rewright.ir import ToolchainError, divisible, evaluate
from rewright.ir.cache import default_cache, digest

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

    def packed(self) -> bytes:
        """As an entry of the cache: what is short as a line of JSON, then the two texts."""
        about = dataclasses.asdict(self) | {"cubin": len(self.cubin), "ptx": ""}
        return json.dumps(about).encode() + b"\n" + self.cubin + self.ptx.encode()

    @staticmethod
    def unpacked(content: bytes) -> CompiledKernel:
        head, _, rest = content.partition(b"\n")
        about = json.loads(head)
        cubin, ptx = rest[: about["cubin"]], rest[about["cubin"] :].decode()
        divisible = tuple(about["divisible"])
        return CompiledKernel(**(about | {"cubin": cubin, "ptx": ptx, "divisible": divisible}))


def compile_for(
    kernel: TritonKernel,
    arch: int,
    sizes: Mapping[str, int] | None = None,
    *,
    unaligned: Container[str] = (),
) -> CompiledKernel:
    """Build `kernel` for compute capability `arch` (80, 90, 100), or find it in the cache.

    `sizes` gives values of the symbols to specialize for, as a launch with them would: which sizes
    are multiples of 16, and whether indices need 64 bits. `unaligned` names pointers that may be
    no multiples of 16. A kernel with several tiles in flight has fewer where the GPU lacks the
    shared memory. Raises ToolchainError when Triton interprets, or fails.
    """
    aligned = [p for p in kernel.parameters if p.name not in unaligned and _is_aligned(p, sizes)]
    far = _is_far(kernel, sizes)
    signature = _signature(kernel, sizes)
    names = tuple(p.name for p in aligned)
    parts = (kernel.constants, kernel.options, signature, names, far, arch, _version())
    name = f"{digest(kernel.name, kernel.source, repr(parts))}.triton"
    stored = default_cache().read(name)
    if stored is not None:
        return CompiledKernel.unpacked(stored)
    built = _compiled(kernel, arch, signature, names, far)
    default_cache().write(name, built.packed())
    return built


def _version() -> str:
    """Triton's, without importing it where its package has that name."""
    try:
        return version("triton")
    except PackageNotFoundError:
        import triton

        return str(triton.__version__)


def _compiled(
    kernel: TritonKernel, arch: int, signature: Mapping[str, str], names: tuple[str, ...], far: bool
) -> CompiledKernel:
    import triton
    from triton.compiler import ASTSource

    if triton.knobs.runtime.interpret:
        raise ToolchainError("Triton compiles nothing while TRITON_INTERPRET is set")
    function = getattr(module_of(kernel.name, kernel.source), kernel.name)
    places = [(i,) for i, p in enumerate(kernel.parameters) if p.name in names]
    constants = _constants(kernel, far)
    source = ASTSource(
        function,
        signature=dict(signature) | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
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
        divisible=names,
    )


def _built(kernel: TritonKernel, arch: int, source: Any) -> Any:
    options = dict(kernel.options)
    for stages in range(options.get("num_stages", 1), 0, -1):
        if "num_stages" in options:
            options["num_stages"] = stages
        built = _by_triton(kernel.name, arch, source, options)
        if built.metadata.shared <= SHARED_BYTES.get(arch, LEAST_SHARED_BYTES):
            return built
    needed = built.metadata.shared
    raise ToolchainError(f"{kernel.name} takes more shared memory than sm_{arch} has: {needed} B")


def _by_triton(name: str, arch: int, source: Any, options: Mapping[str, int]) -> Any:
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
    return found


def _is_far(kernel: TritonKernel, sizes: Mapping[str, int] | None) -> bool:
    return sizes is not None and any(evaluate(e, sizes) > LARGEST_NARROW for e in kernel.extents)


def _constants(kernel: TritonKernel, far: bool) -> dict[str, object]:
    import triton.language as tl

    constants: dict[str, object] = dict(kernel.constants)
    if kernel.extents:
        constants["INDEX"] = tl.int64 if far else tl.int32
    return constants
