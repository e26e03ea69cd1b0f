"""From C++ source to functions in this process: the system's compiler, and a cache before it.

A library is known by its source, the headers, the compiler, its flags and the CPU, so that a cache
shared by several machines or compilers never mixes them up.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import torch

from rewright.codegen.cache import Cache, default_cache, digest, private_folder
from rewright.ir.errors import ToolchainError

FOLDER: Final = Path(__file__).parent
COMPILERS: Final = ("c++", "g++", "clang++")

# Nothing here may change a value: no contraction, no reassociation, integers wrap around.
FLAGS: Final = (
    *("-std=c++17", "-O2", "-shared", "-fPIC", "-fvisibility=hidden"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fwrapv"),
    *("-fno-tree-vectorize", "-fno-exceptions", "-fno-rtti", "-fno-asynchronous-unwind-tables"),
    *("-Wno-psabi", "-Wno-unknown-pragmas"),
)
MESSAGE_LINES: Final = 12
SOURCE_NAME: Final = "kernels.cpp"


@dataclass(frozen=True)
class Toolchain:
    """A compiler with the flags that we give it; `fingerprint` changes whenever its code might."""

    compiler: str
    flags: tuple[str, ...]
    fingerprint: str

    def command(self, source: str, output: str) -> list[str]:
        return [self.compiler, *self.flags, f"-I{FOLDER}", source, "-o", output, *_libraries()]


class Library:
    """A loaded library. It stays loaded until the process ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loaded = _load(path)

    def function(self, name: str) -> Callable[..., None]:
        """A kernel: takes the addresses of a table of pointers and of the sizes (int64).

        The interpreter's lock is released while it runs.
        """
        found = getattr(self._loaded, name)
        found.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        found.restype = None
        return found  # type: ignore[no-any-return]


def build(source: str, *, march: str = "native") -> Library:
    """The library of one translation unit. Raises ToolchainError when it can't be built."""
    return build_all((source,), march=march)[0]


def build_all(sources: Sequence[str], *, march: str = "native") -> list[Library]:
    """The libraries of several units, those that are not cached compiled side by side."""
    store, tools = default_cache(), toolchain(march)
    names = [f"{_key(source, tools)}.so" for source in sources]
    paths = [store.find(name) for name in names]
    missing = [i for i, path in enumerate(paths) if path is None]
    compiled = _compile([sources[i] for i in missing], tools)
    for i, content in zip(missing, compiled, strict=True):
        paths[i] = store.write(names[i], content)
    return [Library(path) for path in paths if path is not None]


def _key(source: str, tools: Toolchain) -> str:
    return digest(source, _headers(), *tools.flags, tools.fingerprint)


@cache
def _headers() -> str:
    return "".join(path.name + path.read_text() for path in sorted(FOLDER.glob("*.h")))


# --- compiling ----------------------------------------------------------------------------------


def _compile(sources: Sequence[str], tools: Toolchain) -> list[bytes]:
    """One compiler process a source, all at once. Raises ToolchainError with what they said."""
    if not sources:
        return []
    with tempfile.TemporaryDirectory(prefix="rewright-") as folder:
        places = [Path(folder) / str(i) for i in range(len(sources))]
        started = [_start(s, at, tools) for s, at in zip(sources, places, strict=True)]
        said = [process.communicate()[0] for process in started]
        for process, text in zip(started, said, strict=True):
            if process.returncode != 0:
                raise _failure(tools, text)
        return [(at / "kernels.so").read_bytes() for at in places]


def _start(source: str, place: Path, tools: Toolchain) -> subprocess.Popen[str]:
    place.mkdir()
    (place / SOURCE_NAME).write_text(source)
    return subprocess.Popen(
        tools.command(SOURCE_NAME, "kernels.so"),
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def _failure(tools: Toolchain, text: str) -> ToolchainError:
    lines = [line for line in text.splitlines() if line.strip()][:MESSAGE_LINES]
    said = "\n".join(f"  {line}" for line in lines) or "  (it said nothing)"
    return ToolchainError(
        f"{Path(tools.compiler).name} could not compile a kernel:\n{said}",
        who="cpp",
        help='fallback="aten" runs the graph without compiled kernels',
    )


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return _load_copy(path)


def _load_copy(path: Path) -> ctypes.CDLL:
    """For caches on file systems that may not hold executable code."""
    try:
        return ctypes.CDLL(shutil.copy(path, private_folder() / path.name))
    except OSError as error:
        raise ToolchainError(f"a compiled library cannot be loaded: {error}", who="cpp") from None


# --- the compiler -------------------------------------------------------------------------------


def toolchain(march: str = "native") -> Toolchain:
    """The compiler named by $CXX, else the first on PATH of `COMPILERS`.

    `march` is the CPU to compile for. Raises ToolchainError when there is no compiler.
    """
    return _toolchain(os.environ.get("CXX", ""), os.environ.get("PATH", ""), march)


@cache
def _toolchain(named: str, path: str, march: str) -> Toolchain:
    wanted = (named,) if named else COMPILERS
    found = next((at for at in (shutil.which(name, path=path) for name in wanted) if at), None)
    if found is None:
        raise ToolchainError(
            f"no C++ compiler: looked for {', '.join(wanted)}",
            who="cpp",
            help="install g++ or clang++, or name one in CXX",
        )
    flags = (*FLAGS, _cpu_flag(march))
    return Toolchain(found, flags, _fingerprint(found, flags, default_cache()))


def _cpu_flag(march: str) -> str:
    return f"-mcpu={march}" if platform.machine() in ("aarch64", "arm64") else f"-march={march}"


def _fingerprint(compiler: str, flags: tuple[str, ...], store: Cache) -> str:
    """Version and resolved flags of a compiler; asked once for each state of its file."""
    real = os.path.realpath(compiler)
    state = os.stat(real)
    name = digest(real, str(state.st_size), str(state.st_mtime_ns), _cpu(), *flags) + ".compiler"
    known = store.read(name)
    if known is not None:
        return known.decode()
    said = _ask(compiler, "--version") + _ask(compiler, *flags[-1:], "-###", "-E", "-xc++", "-")
    answer = digest(said, _cpu())
    store.write(name, answer.encode())
    return answer


def _ask(compiler: str, *arguments: str) -> str:
    """What the compiler answers, without lines about folders."""
    try:
        done = subprocess.run(
            [compiler, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ToolchainError(f"{Path(compiler).name} does not run: {error}", who="cpp") from None
    text = (done.stdout + done.stderr).decode(errors="replace")
    return "\n".join(line for line in text.splitlines() if "_PATH=" not in line)


@cache
def _cpu() -> str:
    """What the CPU can do, as the system says."""
    try:
        with open("/proc/cpuinfo") as file:
            first = file.read(1 << 14).split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kept = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(line for line in first if line.startswith(kept))


@cache
def _libraries() -> tuple[str, ...]:
    """torch's own OpenMP runtime, so that one pool of threads serves both; else the system's."""
    ours = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return (str(ours[0]) if ours else "-lgomp", "-lm")
