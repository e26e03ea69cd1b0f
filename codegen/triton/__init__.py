"""Triton kernels from loop nests: their text, compiling it without a GPU, running it.

Nothing here imports triton before it is needed.
"""

from rewright.codegen.triton.compile import CompiledKernel, compile_for
from rewright.codegen.triton.emit import emit
from rewright.codegen.triton.kernel import Parameter, TritonKernel
from rewright.codegen.triton.launch import load

__all__ = ["CompiledKernel", "Parameter", "TritonKernel", "compile_for", "emit", "load"]
