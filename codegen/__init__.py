"""Code generation: regions to kernels, kernel-level graphs to programs that run."""

from rewright.codegen.call_sequence import CallSequence, write_calls
from rewright.codegen.executable import Executable, main_device
from rewright.codegen.input_sizes import input_sizes
from rewright.codegen.kernels import Kernels, is_fast, kernels_of

__all__ = [
    "CallSequence",
    "Executable",
    "Kernels",
    "input_sizes",
    "is_fast",
    "kernels_of",
    "main_device",
    "write_calls",
]
