"""CUDA C++: loop nests as kernels, built without a GPU."""

from rewright.codegen.cuda.build import compile_for, has_compiler, nvcc, ptx_for, unit
from rewright.codegen.cuda.emit import emit
from rewright.codegen.cuda.kernel import CudaKernel

__all__ = ["CudaKernel", "compile_for", "emit", "has_compiler", "nvcc", "ptx_for", "unit"]
