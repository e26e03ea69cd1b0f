"""Machines that are not as they should be: odd compilers, full disks, no home, nothing to write."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from rewright.driver import _warn_once
from rewright.ir import cache
from rewright.ir.cache import cache_root, private_folder
from through_backend import X, compiled, the_program

pytestmark = pytest.mark.cpu

build_module = import_module("rewright.codegen.cpp.build")  # the package names its function


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nothing remembered in this process."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("REWRIGHT_CACHE_DIR", str(folder))
    build_module._toolchain.cache_clear()
    cache._warn_once.cache_clear()
    _warn_once.cache_clear()
    return folder


def wave(x: torch.Tensor) -> torch.Tensor:
    return (x.sin() + x) * 2


def runs_right() -> bool:
    """True when kernels of ours computed what eager computes, False when ATen did."""
    torch._dynamo.reset()
    torch.testing.assert_close(compiled(wave)(X), wave(X))
    return "ours" in the_program().report.counts()


# --- compilers ------------------------------------------------------------------------------------


def compiler(folder: Path, *cases: str) -> str:
    """The system's compiler behind a script, which answers some calls itself."""
    real = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    path = folder / "scripted-c++"
    answers = "\n".join(f'case "$*" in {case} esac' for case in cases)
    path.write_text(f'#!/bin/sh\n{answers}\nexec {real} "$@"\n')
    path.chmod(0o755)
    return str(path)


def libraries(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*.so")}


def test_a_compiler_of_another_version_builds_anew(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one compiler built is not taken for what another would build."""
    assert runs_right()
    first = libraries(root)
    older = compiler(tmp_path, '*--version*) echo "c++ 4.8.1"; exit;;')
    monkeypatch.setenv("CXX", older)
    assert runs_right()
    assert len(libraries(root) - first) == len(first) == 1
    monkeypatch.delenv("CXX")
    assert runs_right()
    assert len(libraries(root)) == 2


def test_flags_in_cxx_are_flags(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which("c++") or shutil.which("g++") or "clang++"
    assert runs_right()
    monkeypatch.setenv("CXX", f"{real} -DOF_NO_IMPORTANCE")
    assert runs_right()
    assert len(libraries(root)) == 2


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("*-std=c++17*) echo unknown option >&2; exit 1;;", "scripted-c.. does not run"),
        ("*-shared*) echo out of memory; exit 1;;", "out of memory"),
        ("*-shared*) kill -SEGV $$;;", "could not compile a kernel"),
        ("*-shared*) exit;;", "kernels cannot be built: No such file"),
    ],
    ids=["too_old", "fails", "crashes", "writes_nothing"],
)
def test_a_compiler_that_is_no_good_leaves_aten(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, message: str
) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, case))
    with pytest.warns(UserWarning, match=message) as warned:
        assert not runs_right()
    assert len(warned) == 1
    assert "everything runs as ATen" in str(warned[0].message)
    monkeypatch.delenv("CXX")
    assert runs_right()


def test_a_library_that_cannot_be_loaded_is_built_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nonsense = '*-shared*) for o; do :; done; echo "no library" > "$o"; exit;;'
    monkeypatch.setenv("CXX", compiler(tmp_path, nonsense))
    with pytest.warns(UserWarning, match="cannot be loaded.*runs as ATen"):
        assert not runs_right()
    monkeypatch.delenv("CXX")
    assert runs_right()


def test_libraries_are_known_by_the_runtime_that_they_need(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another torch may bring another one, and a library that needs the old one does not load."""
    assert runs_right()
    monkeypatch.setattr(build_module, "_libraries", lambda: ("-lgomp", "-lm"))
    assert runs_right()
    assert len(libraries(root)) == 2


# --- disks ----------------------------------------------------------------------------------------


def test_a_disk_that_is_full_everywhere_leaves_aten(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_replace", refuse)
        with pytest.warns(UserWarning, match="No space left on device") as warned:
            assert not runs_right()
    assert any("everything runs as ATen" in str(w.message) for w in warned)
    build_module._toolchain.cache_clear()
    assert runs_right()
    assert libraries(root)


def test_a_machine_is_measured_though_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from rewright.calibrate import host as calibrate_host

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    known = calibrate_host.host()
    calibrate_host._host.cache_clear()
    monkeypatch.setattr(cache, "_replace", refuse)
    monkeypatch.setattr(calibrate_host, "measure", lambda cores: known)
    with pytest.warns(UserWarning, match="Read-only file system"):
        assert calibrate_host.host() == known


def test_no_temporary_folder_leaves_aten(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    runs_right()  # the compiler has been asked who it is
    shutil.rmtree(root)
    with monkeypatch.context() as patch:
        patch.setattr(build_module.tempfile, "TemporaryDirectory", refuse)
        with pytest.warns(UserWarning, match="No usable temporary directory.*runs as ATen"):
            assert not runs_right()
    assert runs_right()


# --- homes and folders ----------------------------------------------------------------------------


def test_without_a_home_nothing_is_written_where_one_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even a folder called `~`: such a user gets a folder for as long as the process lives."""
    monkeypatch.delenv("REWRIGHT_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no HOME, no passwd entry
    assert cache_root() == private_folder()
    assert cache_root().is_absolute()


ALONE = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
import torch, rewright
x = torch.arange(24.0).reshape(4, 6)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    found = torch.compile(lambda x: (x.sin() + x) * 2, backend="rewright")(x)
torch.testing.assert_close(found, (x.sin() + x) * 2)
(program,) = rewright.programs()
print(program.report.counts())
print([str(w.message) for w in seen if "cannot be written" in str(w.message)])
"""


@pytest.mark.slow
def test_a_process_that_may_write_nowhere_still_has_kernels(tmp_path: Path) -> None:
    """No home, a working folder and a cache that take no files: one warning, and all is as ever.

    Permissions do not stop root, so the cache is below a file and the folder is the system's.
    """
    if not Path("/proc/self").exists():
        pytest.skip("needs a folder that root cannot write either")
    (tmp_path / "file").write_text("")
    kept = ("HOME", "XDG_CACHE_HOME", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    environment["REWRIGHT_CACHE_DIR"] = str(tmp_path / "file" / "cache")
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        cwd="/proc",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    counts, warned = done.stdout.splitlines()
    assert "'ours'" in counts
    assert warned.count("cannot be written") == 1
