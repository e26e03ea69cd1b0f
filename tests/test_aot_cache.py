"""AOTAutograd's cache with our programs in it: who finds what, and what becomes of a bad entry."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import rewright
from rewright import aot_cache
from rewright.calibrate.host import _host
from rewright.driver import _warn_once
from rewright.ir import ToolchainError, cache
from rewright.report import Report
from through_backend import Block, Function, gradients

pytestmark = [
    pytest.mark.cpu,
    # Torch makes keys with helpers of Inductor's and Triton's.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

ROOT = Path(__file__).resolve().parents[1]
build_module = import_module("rewright.codegen.cpp.build")  # the package names its function


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Empty caches, torch's and ours; every graph goes through torch's."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))
    monkeypatch.setenv("REWRIGHT_CACHE_DIR", str(tmp_path / "rewright"))
    build_module._toolchain.cache_clear()
    cache._warn_once.cache_clear()
    counters.clear()
    with torch._functorch.config.patch(force_autograd_cache=True):
        yield tmp_path
    counters.clear()


def entries(folder: Path) -> list[Path]:
    """What torch has stored."""
    return sorted(path for path in (folder / "torch" / "aotautograd").glob("*/*") if path.is_file())


def counted() -> tuple[int, int, int]:
    """Hits, misses and entries stored since the last look."""
    seen = counters["aot_autograd"]
    found = tuple(seen[f"autograd_cache_{what}"] for what in ("hit", "miss", "saved"))
    counters.clear()
    return found  # type: ignore[return-value]


HIT, STORED = (1, 0, 0), (0, 1, 1)


# --- what is cached -------------------------------------------------------------------------------


def waves(x: Tensor) -> Tensor:
    return (x.sin() * 2 + x.exp()).softmax(-1) @ x.t()


X = torch.linspace(-1, 1, 24).reshape(4, 6)


def fresh(**given: Any) -> Function:
    """`waves` through our backend, compiled by a process that remembers nothing but its caches."""
    torch._dynamo.reset()
    ours: Function = torch.compile(waves, backend="rewright", **given)
    return ours


def results() -> list[Tensor]:
    """Of inference and of training, with fixed sizes and with symbols."""
    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh()), torch.randn(5, 6)
    found: list[Tensor] = []
    for dynamic in (False, True):
        torch._dynamo.reset()
        ours = torch.compile(model, backend="rewright", dynamic=dynamic)
        found += gradients(model, ours, x)
        with torch.no_grad():
            found.append(ours(x))
        if dynamic:
            found += gradients(model, ours, x[:3])
    return found


# --- in one process -------------------------------------------------------------------------------


def test_a_program_is_found_again(folders: Path) -> None:
    first = fresh()(X)
    assert counted() == STORED
    assert len(entries(folders)) == 1
    found = fresh()(X)
    assert counted() == HIT
    assert torch.equal(found, first)


def test_a_loaded_program_tells_as_much_as_a_compiled_one() -> None:
    fresh()(X)
    (compiled,) = rewright.programs()
    graph, source, report = compiled.graph, compiled.source, compiled.report
    kernels = compiled.plan.kernel_source
    fresh()(X)
    assert counted()[0] == 1
    (loaded,) = rewright.programs()
    assert loaded is not compiled
    assert (loaded.graph, loaded.source) == (graph, source)
    assert loaded.recipe.graph == loaded.executable.graph == loaded.plan.graph
    assert loaded.recipe.source == loaded.plan.kernel_source == kernels
    assert loaded.report.counts() == report.counts()
    assert "fuse" in str(loaded.report)


def test_a_loaded_half_within_a_budget_still_tells_of_its_step() -> None:
    """Its past is forgotten: the report begins with the schedule."""

    def halves() -> list[Report]:
        torch._dynamo.reset()
        given: dict[str, Any] = {"memory_budget": "min"}
        gradients(block, torch.compile(block, backend="rewright", options=given), x)
        return [program.report for program in rewright.programs()]

    block, x = Block(), torch.randn(5, 16)
    compiled = halves()
    assert counted() == STORED
    loaded = halves()
    assert counted() == HIT
    for before, after in zip(compiled, loaded, strict=True):
        assert after.memory.after == before.memory.after
        assert [row.name for row in after.kernels] == [row.name for row in before.kernels]
        assert after.recomputed == before.recomputed and after.notes == before.notes
        assert [row.name for row in after.passes] == ["import", "memory"]
        assert [row.name for row in before.passes][-2:] == ["remat", "memory"]


def test_a_step_is_stored_with_its_backward() -> None:
    """Though torch would compile the backward when it is first called."""
    block, x = Block(), torch.randn(5, 16)
    first = gradients(block, torch.compile(block, backend="rewright"), x)
    assert counted() == STORED
    torch._dynamo.reset()
    again = gradients(block, torch.compile(block, backend="rewright"), x)
    assert counted() == HIT
    assert [p.graph.name for p in rewright.programs()] == ["forward", "backward"]
    assert all(map(torch.equal, again, first))


def test_a_number_that_becomes_a_literal_keeps_a_program_out_of_the_cache() -> None:
    """Torch's key does not hold it: the next call would find the program for another number."""

    def function(x: Tensor, scale: float) -> tuple[Tensor, float]:
        return x * scale, scale * 2

    ours = torch.compile(function, backend="rewright", dynamic=True)
    assert [ours(X, scale)[1] for scale in (0.5, 1.5, 2.5)] == [1.0, 3.0, 5.0]
    assert counted() == (0, 0, 0)


def test_a_cache_that_is_switched_off_stays_empty(folders: Path) -> None:
    with torch._functorch.config.patch(enable_autograd_cache=False):
        fresh()(X)
    assert counted() == (0, 0, 0)
    assert not entries(folders)


def test_a_program_that_writes_a_trace_is_not_stored(folders: Path) -> None:
    for name in ("one", "two"):
        fresh(options={"trace": str(folders / "trace")})(X)
        assert counted()[2] == 0, name
    assert not entries(folders)


# --- what must not be found -----------------------------------------------------------------------


def test_each_option_has_programs_of_its_own() -> None:
    fresh()(X)
    assert counted() == STORED
    fresh(options={"passes": "decompose,canonicalize,fuse{max-ops=2},memory"})(X)
    assert counted() == STORED
    (program,) = rewright.programs()
    assert "max-ops=2" in str(program.plan.options)
    fresh(options={"fallback": "aten"})(X)  # the default, in other words
    assert counted() == HIT


def test_inputs_that_share_memory_have_programs_of_their_own() -> None:
    def write(first: Tensor, second: Tensor, given: Tensor) -> Tensor:
        first.copy_(given)
        second.add_(1)
        return given + 1

    def run(first: Tensor, second: Tensor) -> list[Tensor]:
        torch._dynamo.reset()
        torch.compile(write, backend="rewright")(first, second, torch.full((4,), 5.0))
        return [first, second]

    found = run(torch.zeros(4), torch.zeros(4))
    assert [x[0].item() for x in found] == [5, 1] and counted() == STORED
    both = torch.zeros(4)
    found = run(both, both.view(4))
    assert [x[0].item() for x in found] == [6, 6] and counted() == STORED
    run(torch.zeros(4), torch.zeros(4))
    assert counted() == HIT


def test_changed_sources_find_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh()(X)
    assert counted() == STORED
    monkeypatch.setattr(aot_cache, "_sources", lambda: "another version")
    fresh()(X)
    assert counted() == STORED


def test_the_sources_are_all_that_a_program_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels' headers and the grammar are among them; a word more in any is another tag."""
    read_text, seen = Path.read_text, list[Path]()

    def reading(path: Path, *args: Any, **given: Any) -> str:
        seen.append(path)
        return read_text(path, *args, **given) + ("// new" if path.name == "loops.h" else "")

    before = aot_cache._sources()
    aot_cache._sources.cache_clear()
    monkeypatch.setattr(Path, "read_text", reading)
    try:
        assert aot_cache._sources() != before
    finally:
        aot_cache._sources.cache_clear()
    names = {path.name for path in seen}
    assert {"loops.h", "text.lark", "lower.py", "backend.py", "roofline.py", "fuse.py"} <= names


def other_compiler(folder: Path) -> Path:
    """The system's compiler under another version."""
    real = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    path = folder / "other-c++"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in *--version*) echo "other 0.1"; exit;; esac\nexec {real} "$@"\n'
    )
    path.chmod(0o755)
    return path


def test_another_compiler_has_programs_of_its_own(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fresh()(X)
    assert counted() == STORED
    monkeypatch.setenv("CXX", str(other_compiler(folders)))
    assert torch.equal(fresh()(X), first)
    assert counted() == STORED
    monkeypatch.delenv("CXX")
    fresh()(X)
    assert counted() == HIT


@pytest.mark.slow
def test_programs_of_inductor_are_not_ours(folders: Path) -> None:
    """Nor ours Inductor's, in one folder."""
    with torch._inductor.config.patch(compile_threads=1):
        for backend in ("inductor", "rewright"):
            for expected in (STORED, HIT):
                torch._dynamo.reset()
                found = torch.compile(waves, backend=backend)(X)
                assert counted() == expected, backend
                torch.testing.assert_close(found, waves(X))
    assert len(entries(folders)) == 2
    assert [p.graph.name for p in rewright.programs()] == ["inference"]


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_a_damaged_entry_is_compiled_anew(folders: Path, damage: str) -> None:
    first = fresh()(X)
    (entry,) = entries(folders)
    whole = entry.read_bytes()
    at = len(whole) // 2
    changed = whole[: at - 40] + bytes(80) + whole[at + 40 :]
    entry.write_bytes({"cut": whole[:at], "changed": changed, "emptied": b""}[damage])
    counted()
    assert torch.equal(fresh()(X), first)
    assert counted()[0] == 0


def test_what_a_killed_writer_leaves_is_no_entry(folders: Path) -> None:
    """Temporary files beside where the entries would be, torch's and ours, cut short."""
    first = fresh()(X)
    written = entries(folders) + [p for p in (folders / "rewright").rglob("*") if p.is_file()]
    for entry in written:
        half = entry.read_bytes()[:100]
        entry.unlink()
        (entry.parent / ".1234.5678.tmp").write_bytes(half)
        (entry.parent / ".new-half").write_bytes(half)
    counted()
    assert torch.equal(fresh()(X), first)
    assert counted() == STORED
    assert all(path.exists() for path in written if path.suffix == ".so")
    assert torch.equal(fresh()(X), first)
    assert counted() == HIT


def test_a_program_outlives_the_libraries_of_its_kernels(folders: Path) -> None:
    first = fresh()(X)
    counted()
    shutil.rmtree(folders / "rewright")
    assert torch.equal(fresh()(X), first)
    assert counted() == HIT
    assert list((folders / "rewright").rglob("*.so"))


def test_a_loaded_program_that_cannot_be_built_runs_as_aten(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler that the key names answers, but it no longer compiles."""

    def fail(*_: object) -> bytes:
        raise ToolchainError("no licence today", who="cpp")

    first = fresh()(X)
    shutil.rmtree(folders / "rewright")
    monkeypatch.setattr(build_module, "_compiled", fail)
    _warn_once.cache_clear()
    with pytest.warns(UserWarning, match="no licence today; everything runs as ATen"):
        torch.testing.assert_close(fresh()(X), first)
    (program,) = rewright.programs()
    assert "ours" not in program.report.counts()


def test_folders_that_take_no_entry(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full, or not ours to write, torch's and our own: programs are compiled each time, and run."""
    from torch._functorch._aot_autograd import autograd_cache

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = cache._replace

    def refuse_root(path: Path, content: bytes) -> None:
        if path.is_relative_to(folders):
            refuse()
        real(path, content)

    monkeypatch.setattr(autograd_cache, "write_atomic", refuse)
    monkeypatch.setattr(cache, "_replace", refuse_root)
    with pytest.warns(UserWarning, match="cannot be written"):
        first = fresh()(X)
    assert counted() == (0, 1, 0)
    assert torch.equal(fresh()(X), first)
    assert counted() == (0, 1, 0)
    assert not entries(folders)
    torch.testing.assert_close(first, waves(X))


# --- another process ------------------------------------------------------------------------------


def use(folder: Path) -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "torch")
    os.environ["REWRIGHT_CACHE_DIR"] = str(folder / "rewright")


def work_in(*folders: str) -> None:
    """In another process: what it computes with the caches of each folder, left there in a file,
    and how the cache did."""
    torch.set_num_threads(2)  # as tests have it: programs are planned for a number of threads
    torch._functorch.config.force_autograd_cache = True
    for folder in map(Path, folders):
        use(folder)
        torch.save(results(), folder / "results.pt")
        phases = {p.graph.name for p in rewright.programs() if "ours" in p.report.counts()}
        print(*counted(), len(phases), flush=True)


@pytest.fixture
def other(folders: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, at work in this one's folders and then in `empty` below them."""
    script = "import sys, test_aot_cache as t; t.work_in(*sys.argv[1:])"
    (folders / "empty").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folders), str(folders / "empty")],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.kill()


@pytest.mark.slow
def test_another_process_finds_programs_and_computes_the_same_bits(
    folders: Path, request: pytest.FixtureRequest
) -> None:
    """Then both compile at once into an empty folder, and come to the same."""
    _host.cache_clear()  # what is known of this machine comes from the same folder for both
    expected = results()
    _, misses, stored = counted()
    assert misses == stored == 4
    other = request.getfixturevalue("other")
    assert other.stdout.readline() == f"{stored} 0 0 3\n"
    use(folders / "empty")
    found = results()
    out, errors = other.communicate(timeout=300)
    assert other.returncode == 0, errors
    assert out.endswith(" 3\n")
    for others in (found, *(torch.load(f / "results.pt") for f in (folders, folders / "empty"))):
        assert len(others) == len(expected)
        assert all(map(torch.equal, others, expected))
    counted()
    results()
    assert counted() == (stored, 0, 0)
