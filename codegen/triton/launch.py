"""Kernels as functions: a module is made of the text, and Triton compiles it when it is called."""

from __future__ import annotations

import hashlib
import linecache
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType

from rewright.codegen.triton.kernel import TritonKernel


def load(kernel: TritonKernel) -> Callable[..., None]:
    """The kernel's launch function: tensors, then sizes (see `TritonKernel`).

    Where Triton interprets (TRITON_INTERPRET=1 when it was first imported) tensors lie on the CPU.
    """
    module = module_of(kernel.name, kernel.source)
    launch: Callable[..., None] = getattr(module, f"launch_{kernel.name}")
    return launch


@cache
def module_of(name: str, source: str) -> ModuleType:
    """The module that `source` makes. Triton reads sources by file name; this one is in memory, so
    that neither a disk nor the place of a folder matters to what is compiled."""
    from triton import knobs

    if knobs.runtime.interpret:
        from rewright.codegen.triton.interpreter import complete_interpreter

        complete_interpreter()
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    file = f"rewright-kernels/{name}_{digest}.py"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    module = ModuleType(f"rewright_kernels.{name}_{digest}")
    module.__file__ = file
    sys.modules[module.__name__] = module
    exec(compile(source, file, "exec"), module.__dict__)  # our own text, from `emit`
    return module
