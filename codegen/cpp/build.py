"""From C++ source to functions in this process: the system's compiler, and a cache before it.

A library is known by its source, the headers, the compiler, its flags and the CPU, so that a cache
shared by several machines or compilers never mixes them up.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

import torch

from rewright.codegen.cpp.emit import kernel_count, split
from rewright.ir import ToolchainError
from rewright.ir.cache import DIGEST_BYTES, Cache, default_cache, digest, private_folder

FOLDER: Final = Path(__file__).parent
COMPILERS: Final = ("c++", "g++", "clang++")

# Nothing here may change a value: no contraction, no reassociation, integers wrap around.
FLAGS: Final = (
    *("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fwrapv"),
    *(
        "-fno-tree-loop-vectorize",
        "-fno-exceptions",
        "-fno-rtti",
        "-fno-asynchronous-unwind-tables",
    ),
    *("-Wno-psabi", "-Wno-unknown-pragmas"),
)
MESSAGE_LINES: Final = 12
SOURCE: Final = "kernels.cpp"

# From here on a second compiler process and the linking of two objects cost less than they save.
MANY_KERNELS: Final = 12


@dataclass(frozen=True)
class Toolchain:
    """A compiler with the flags that we give it; `fingerprint` changes whenever its code might."""

    compiler: str
    flags: tuple[str, ...]
    fingerprint: str


class Library:
    """A loaded library. It stays loaded until the process ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loaded = _load(path)

    @property
    def content(self) -> bytes:
        """The library as the compiler wrote it. Raises OSError when it is gone from the cache."""
        return self.path.read_bytes()[:-DIGEST_BYTES]

    def function(self, name: str) -> Callable[..., None]:
        """A kernel: takes the addresses of a table of pointers and of the sizes (int64).

        The interpreter's lock is released while it runs.
        """
        found = getattr(self._loaded, name)
        found.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        found.restype = None
        return found  # type: ignore[no-any-return]


def build(source: str, *, march: str = "native", contract: bool = False) -> Library:
    """The library of what `emit` wrote; `contract` lets products and sums become one instruction.

    Raises ToolchainError when it can't be built.
    """
    store, tools = default_cache(), toolchain(march, contract=contract)
    name = f"{_key(source, tools)}.so"
    path = store.find(name)
    if path is not None:
        with contextlib.suppress(ToolchainError):  # it does not load: it was built wrong
            return Library(path)
    return Library(store.write(name, _compiled(source, tools)))


def _key(source: str, tools: Toolchain) -> str:
    linked = (Path(library).name for library in _libraries())
    return digest(source, all_headers(), *tools.flags, *linked, tools.fingerprint)


def headers_of(source: str) -> dict[str, str]:
    """The headers of ours that a unit includes, by name, those that they include among them."""
    found: dict[str, str] = {}
    todo = [source]
    while todo:
        for name in re.findall(r'^#include "(.+)"$', todo.pop(), re.MULTILINE):
            if name not in found:
                found[name] = (FOLDER / name).read_text()
                todo.append(found[name])
    return dict(sorted(found.items()))


@cache
def all_headers() -> str:
    """The text of every header of ours."""
    return "".join(path.name + path.read_text() for path in sorted(FOLDER.glob("*.h")))


# --- compiling ----------------------------------------------------------------------------------


def _compiled(source: str, tools: Toolchain) -> bytes:
    """The content of the library. Many kernels are compiled as two units, side by side."""
    many = kernel_count(source) >= MANY_KERNELS and (os.cpu_count() or 1) > 1
    with tempfile.TemporaryDirectory(prefix="rewright-") as folder:
        place = Path(folder)
        if not many:
            (place / SOURCE).write_text(source)
            _run(tools, place, [("-shared", SOURCE, *_libraries(), "-o", "kernels.so")])
            return (place / "kernels.so").read_bytes()
        units = [f"kernels{i}" for i in range(2)]
        for name, text in zip(units, split(source, len(units)), strict=True):
            (place / f"{name}.cpp").write_text(text)
        _run(tools, place, [("-c", f"{name}.cpp", "-o", f"{name}.o") for name in units])
        objects = [f"{name}.o" for name in units]
        _run(tools, place, [("-shared", *objects, *_libraries(), "-o", "kernels.so")])
        return (place / "kernels.so").read_bytes()


def _run(tools: Toolchain, place: Path, calls: Sequence[Sequence[str]]) -> None:
    """The compiler once for each of `calls`, all at once. Raises ToolchainError, with its words."""
    started = [_start(tools, place, call) for call in calls]
    said = [process.communicate()[0] for process in started]
    for process, text in zip(started, said, strict=True):
        if process.returncode != 0:
            raise _failure(tools, text)


def _start(tools: Toolchain, place: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [tools.compiler, *tools.flags, f"-I{FOLDER}", *arguments],
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def _failure(tools: Toolchain, text: str) -> ToolchainError:
    text = text.replace(f"{FOLDER}{os.sep}", "")
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
        return ctypes.CDLL(str(shutil.copy(path, private_folder() / path.name)))
    except OSError as error:
        raise ToolchainError(f"a compiled library cannot be loaded: {error}", who="cpp") from None


# --- the compiler -------------------------------------------------------------------------------


def toolchain(march: str = "native", *, contract: bool = False) -> Toolchain:
    """The compiler named by $CXX, else the first on PATH of `COMPILERS`.

    `march` is the CPU to compile for. Raises ToolchainError when there is no compiler.
    """
    tools = _toolchain(os.environ.get("CXX", ""), os.environ.get("PATH", ""), march)
    return replace(tools, flags=(*tools.flags, "-ffp-contract=fast")) if contract else tools


@cache
def _toolchain(named: str, path: str, march: str) -> Toolchain:
    words = shlex.split(named)  # CXX may say more than a name: "ccache g++"
    wanted = tuple(words[:1]) or COMPILERS
    found = next((at for at in (shutil.which(name, path=path) for name in wanted) if at), None)
    if found is None:
        raise ToolchainError(
            f"no C++ compiler: looked for {', '.join(wanted)}",
            who="cpp",
            help="install g++ or clang++, or name one in CXX",
        )
    flags = (*words[1:], *FLAGS, _cpu_flag(march))
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
    said = _ask(compiler, *flags, "--version") + _ask(compiler, *flags, "-###", "-E", "-xc++", "-")
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
    torchs = openmp_runtime()
    return ("-lgomp" if torchs is None else str(torchs), "-lm")


def openmp_runtime() -> Path | None:
    """The OpenMP runtime that torch brings along, if it does."""
    return min((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"), default=None)
