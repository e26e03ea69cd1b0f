"""The C++ route: loop nests to one translation unit, built by the system's compiler, cached."""

from rewright.codegen.cpp.build import (
    Library,
    Toolchain,
    all_headers,
    build,
    headers_of,
    openmp_runtime,
    toolchain,
)
from rewright.codegen.cpp.emit import emit

__all__ = [
    "Library",
    "Toolchain",
    "all_headers",
    "build",
    "emit",
    "headers_of",
    "openmp_runtime",
    "toolchain",
]
