"""The kernels' toolchain and its cache on disk."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest

from rewright.codegen.cpp import Library, Toolchain, build, toolchain
from rewright.ir import ToolchainError, cache
from rewright.ir.cache import Cache, cache_root, digest

build_module = import_module("rewright.codegen.cpp.build")  # the package names its function
needs_compiler = pytest.mark.cpu


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and nothing remembered in this process."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("REWRIGHT_CACHE_DIR", str(folder))
    build_module._toolchain.cache_clear()
    cache._warn_once.cache_clear()
    return folder


def source(number: int) -> str:
    """A unit whose only kernel writes `number`."""
    return (
        '#include "loops.h"\n'
        f"KERNEL void answer(void* const* p, const rw::i64*) {{ *(int*)p[0] = {number}; }}\n"
    )


def answer(library: Library) -> int:
    value = ctypes.c_int(-1)
    library.function("answer")((ctypes.c_void_p * 1)(ctypes.addressof(value)), None)
    return value.value


def entries(root: Path, suffix: str = ".so") -> list[Path]:
    return sorted(root.rglob(f"*{suffix}"))


# --- the cache ----------------------------------------------------------------------------------


def test_an_entry_is_found_again(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    path = store.write("abc.so", b"content")
    assert path.is_relative_to(tmp_path)
    assert store.find("abc.so") == path and store.read("abc.so") == b"content"
    assert store.find("abd.so") is None and store.read("abd.so") is None


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_a_damaged_entry_is_not_found_and_can_be_replaced(tmp_path: Path, damage: str) -> None:
    store = Cache(tmp_path)
    path = store.write("abc", b"content" * 100)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-40], "changed": b"X" + whole[1:], "emptied": b""}[damage])
    assert store.find("abc") is None and store.read("abc") is None
    store.write("abc", b"new")
    assert store.read("abc") == b"new"


def test_writers_at_the_same_time_leave_one_sound_entry(tmp_path: Path) -> None:
    content = os.urandom(1 << 16)
    seen: list[bytes | None] = []

    def work() -> None:
        for _ in range(20):
            Cache(tmp_path).write("abc", content)
            seen.append(Cache(tmp_path).read("abc"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [content] * 80
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["abc"]


def test_a_root_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache._warn_once.cache_clear()
    (tmp_path / "file").write_text("")
    store = Cache(tmp_path / "file")  # no folder can be made below a file, not even by root
    with pytest.warns(UserWarning, match="cannot be written"):
        path = store.write("abc", b"content")
    assert not path.is_relative_to(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.write("abd", b"other")
    assert store.read("abc") == b"content" and store.find("abd") is not None


def test_the_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRIGHT_CACHE_DIR", "/some/where")
    assert cache_root() == Path("/some/where")
    monkeypatch.delenv("REWRIGHT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_root() == Path("/caches/rewright")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/users/someone")
    assert cache_root() == Path("/users/someone/.cache/rewright")


def test_keys_tell_parts_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")
    assert digest("a") == digest(b"a")


# --- building -----------------------------------------------------------------------------------


@needs_compiler
def test_a_library_is_built_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer(build(source(41))) == 41
    forbid_compiling(monkeypatch)
    build_module._toolchain.cache_clear()
    assert answer(build(source(41))) == 41
    assert len(entries(root)) == 1


def forbid_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither compiling nor asking the compiler anything is allowed from here on."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the compiler was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(subprocess, "run", refuse)


@needs_compiler
def test_many_kernels_are_compiled_side_by_side(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Sequence[str]] = []
    start = build_module._start

    def watched(tools: Toolchain, place: Path, arguments: Sequence[str]) -> object:
        started.append(arguments)
        return start(tools, place, arguments)

    monkeypatch.setattr(build_module, "_start", watched)
    kernels = [source(n).partition("KERNEL")[2].replace("answer", f"answer_{n}") for n in range(20)]
    text = '#include "loops.h"\n\nusing namespace rw;\n\nKERNEL' + "\nKERNEL".join(kernels)
    library = build(text)
    value = ctypes.c_int(-1)
    for n in range(20):
        library.function(f"answer_{n}")((ctypes.c_void_p * 1)(ctypes.addressof(value)), None)
        assert value.value == n
    assert [call[0] for call in started] in (["-c", "-c", "-shared"], ["-shared"])


@needs_compiler
def test_a_damaged_library_is_built_again(root: Path) -> None:
    build(source(7))
    (entry,) = entries(root)
    entry.write_bytes(entry.read_bytes()[:100])
    script = (
        "import test_cpp_build as t; from rewright.codegen.cpp.build import build;"
        "print(t.answer(build(t.source(7))))"
    )
    # another process: this one has the sound library open
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.stdout == "7\n", done.stderr
    assert Cache(root).find(entry.name) == entry


@needs_compiler
def test_flags_and_compiler_are_part_of_the_key(root: Path) -> None:
    tools = toolchain()
    keys = {
        build_module._key(source(1), each)
        for each in (
            tools,
            Toolchain(tools.compiler, (*tools.flags, "-g"), tools.fingerprint),
            Toolchain(tools.compiler, tools.flags, "another compiler"),
        )
    }
    assert len({*keys, build_module._key(source(2), tools)}) == 4


@needs_compiler
def test_an_error_shows_what_the_compiler_said(root: Path) -> None:
    with pytest.raises(ToolchainError, match=r"kernels\.cpp:\d+:.*no_such_thing") as caught:
        build(source(1) + "int x = no_such_thing;\n")
    assert str(root) not in str(caught.value)
    assert entries(root) == []


def test_a_missing_compiler_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ToolchainError, match="no-such-compiler"):
        build(source(1))
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(root))
    with pytest.raises(ToolchainError, match=r"c\+\+, g\+\+, clang\+\+"):
        build(source(1))


def test_a_compiler_that_does_not_run_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.raises(ToolchainError, match="false does not run"):
        build(source(1))


@needs_compiler
def test_one_openmp_runtime_is_loaded(root: Path) -> None:
    build(source(3))
    mapped = Path("/proc/self/maps")
    if not mapped.exists():
        pytest.skip("needs /proc")
    runtimes = set(re.findall(r"\S*/lib(?:gomp|omp|iomp5)[^/\s]*", mapped.read_text()))
    assert len(runtimes) == 1


@needs_compiler
def test_kernels_release_the_interpreter(root: Path) -> None:
    """Two kernels that wait for each other both return."""
    text = (
        '#include "loops.h"\n'
        "KERNEL void meet(void* const* p, const rw::i64*) {\n"
        "  int* here = (int*)p[0];\n"
        "  __atomic_add_fetch(here, 1, __ATOMIC_SEQ_CST);\n"
        "  while (__atomic_load_n(here, __ATOMIC_SEQ_CST) < 2) {}\n"
        "}\n"
    )
    kernel = build(text).function("meet")
    place = ctypes.c_int(0)
    table = (ctypes.c_void_p * 1)(ctypes.addressof(place))
    threads = [threading.Thread(target=kernel, args=(table, None), daemon=True) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert place.value == 2 and not any(thread.is_alive() for thread in threads)
