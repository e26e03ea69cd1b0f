"""NVRTC, the compiler that is a library: it comes with builds of torch for CUDA.

Found where torch's own packages put it, or on the system's path; loaded when it is first asked for.
"""

from __future__ import annotations

import ctypes
import re
import site
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

from rewright.ir import ToolchainError

NAMES: Final = ("libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2")
BESIDE_TORCH: Final = ("nvidia/*/lib/libnvrtc.so*", "torch/lib/libnvrtc*.so*")


class Nvrtc:
    """The library's functions. `library` stands in for it in tests."""

    def __init__(self, library: Any) -> None:
        self._library = library
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise ToolchainError(f"{name} failed with {code}", who="cuda")

    def compiled(
        self, source: str, headers: Mapping[str, str], flags: Sequence[str], *, cubin: bool
    ) -> bytes:
        """A cubin, or PTX. Raises ToolchainError with what the compiler says."""
        program = ctypes.c_void_p()
        texts, names = (
            (ctypes.c_char_p * len(headers))(*(part.encode() for part in parts))
            for parts in (headers.values(), headers)
        )
        given = (source.encode(), b"kernels.cu", len(headers), texts, names)
        self._call("nvrtcCreateProgram", ctypes.byref(program), *given)
        try:
            options = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
            code = self._library.nvrtcCompileProgram(program, len(flags), options)
            if code != 0:
                said = self._text(program, "nvrtcGetProgramLog").rstrip(b"\0").decode().strip()
                raise ToolchainError(f"NVRTC does not compile the kernels: {said}", who="cuda")
            return self._text(program, "nvrtcGetCUBIN" if cubin else "nvrtcGetPTX")
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, name: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{name}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(name, program, text)
        return text.raw


@cache
def nvrtc() -> Nvrtc | None:
    """None where there is none, or it does not load."""
    for name in (*_beside_torch(), *NAMES):
        with suppress(OSError, AttributeError, ToolchainError):
            return loaded(name)
    return None


def loaded(name: str) -> Nvrtc:
    """The library of that name or path, and its builtins, which it does not find by itself. Raises
    OSError."""
    for builtins in sorted(Path(name).parent.glob("libnvrtc-builtins.so*")):
        ctypes.CDLL(str(builtins))
    return Nvrtc(ctypes.CDLL(name))


def _beside_torch() -> Iterator[str]:
    folders = [*site.getsitepackages(), *(p for p in sys.path if p.endswith("site-packages"))]
    for folder in dict.fromkeys(folders):
        for pattern in BESIDE_TORCH:
            found = sorted(Path(folder).glob(pattern), reverse=True)
            yield from (str(p) for p in found if not re.search(r"builtins|\.alt\.", p.name))
