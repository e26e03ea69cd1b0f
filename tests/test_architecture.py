"""The shape of the source: who imports whom, how long files and functions are, what is packaged.

Run as a script it prints a table of sizes.
"""

from __future__ import annotations

import ast
import json
import math
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ("ir", "costmodel", "passes", "codegen", "compiler")
MAY_IMPORT = {
    "ir": {"ir"},
    "costmodel": {"ir", "costmodel"},
    "passes": {"ir", "costmodel", "passes"},
    "codegen": {"ir", "costmodel", "codegen"},
    "compiler": {"ir", "costmodel", "passes", "codegen", "compiler"},
}
FOLDERS = (*LIBRARY, "tests", "examples", "benchmarks", "docs")
WRITTEN_BY_HAND = {".c", ".css", ".h", ".html", ".js", ".lark", ".py", ".rules"}
LAZY = (
    *("catboost", "lark", "matplotlib", "networkx", "pyarrow", "rich", "scipy", "sympy"),
    *("torch._inductor", "torch_mlir", "transformers", "triton"),
)
# What models are trained on stays in the repository; what comes of it is packaged.
TRAINING_DATA = "costmodel/data"
LONGEST_FILE = 500
LONGEST_FUNCTION = 60
WORTH_A_LOOK = 40
IMPORT_SECONDS = 0.3
IMPORT_ATTEMPTS = 5


class Import(NamedTuple):
    """One imported dotted name, `from a import b` being `a.b`, and where it stands."""

    place: str
    name: str


class Function(NamedTuple):
    place: str
    name: str
    lines: int


def files(*folders: str) -> list[Path]:
    """Every file of our own under `folders`, build products left out."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    return sorted(p for p in found if p.is_file() and "__pycache__" not in p.parts)


def sources(*folders: str) -> list[Path]:
    return [path for path in files(*folders) if path.suffix == ".py"]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT).as_posix()}:{line}"


# --- imports


def package(path: Path) -> str:
    """The dotted name of the package that the modules of a library folder belong to."""
    parts = path.parent.relative_to(ROOT).parts
    inside = parts[1:] if parts[0] == "compiler" else parts
    return ".".join(("rewright", *inside))


def imports(path: Path) -> Iterator[Import]:
    for line, name in imported(parsed(path), package(path)):
        yield Import(place(path, line), name)


def imported(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """All imports of a module of `package`, those inside functions and type-checking blocks too."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(_, names):
                origin = absolute(node, package)
                yield from ((node.lineno, f"{origin}.{alias.name}") for alias in names)
            case ast.Call(ast.Attribute(_, "import_module"), [ast.Constant(str(name)), *_]):
                yield node.lineno, name


def absolute(node: ast.ImportFrom, package: str) -> str:
    if node.level == 0:
        return node.module or ""
    base = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def folder_of(name: str) -> str:
    """The library folder in which a dotted name of `rewright` is at home."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "compiler"


@pytest.mark.parametrize("folder", LIBRARY)
def test_imports_go_left_only(folder: str) -> None:
    ours = [i for path in sources(folder) for i in imports(path) if is_within(i.name, "rewright")]
    wrong = [i for i in ours if folder_of(i.name) not in MAY_IMPORT[folder]]
    assert not wrong, f"{folder}/ may import only {sorted(MAY_IMPORT[folder])}"


def test_library_folders_are_imported_as_parts_of_rewright() -> None:
    names = [i for path in sources(*LIBRARY) for i in imports(path)]
    assert not [i for i in names if i.name.split(".")[0] in LIBRARY]


def test_inductor_is_never_imported() -> None:
    """By `import`, `from torch import`, or by reading it off the `torch` module."""
    imported = [i for path in sources(*LIBRARY) for i in imports(path)]
    wrong = [i.place for i in imported if is_within(i.name, "torch._inductor")]
    wrong += [
        place(path, node.lineno)
        for path in sources(*LIBRARY)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch._inductor"
    ]
    assert not wrong


def test_only_the_files_of_mlir_know_torch_mlir() -> None:
    found = [i for path in sources(*LIBRARY) for i in imports(path) if "torch_mlir" in i.name]
    assert found and not [i.place for i in found if not i.place.startswith("ir/mlir_")]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import rewright.codegen as c", "rewright.codegen"),
        ("from rewright.passes import fuse", "rewright.passes.fuse"),
        ("from . import planner", "rewright.passes.planner"),
        ("from .. import codegen", "rewright.codegen"),
        ("from ..codegen.cpp import emit", "rewright.codegen.cpp.emit"),
        ("importlib.import_module('rewright.codegen')", "rewright.codegen"),
    ],
)
def test_every_spelling_of_an_import_is_seen(line: str, name: str) -> None:
    inside_a_function = ast.parse(f"def f():\n    {line}")
    assert list(imported(inside_a_function, "rewright.passes")) == [(2, name)]


def is_within(name: str, ancestor: str) -> bool:
    return name == ancestor or name.startswith(ancestor + ".")


# --- sizes


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield Function(place(path, node.lineno), node.name, lines)


def our_sources() -> list[Path]:
    return sources(*FOLDERS)


def length(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_files_are_short() -> None:
    written = [path for path in files(*FOLDERS) if path.suffix in WRITTEN_BY_HAND]
    assert not [place(p, length(p)) for p in written if length(p) > LONGEST_FILE]


def test_functions_are_short() -> None:
    long = [f for path in our_sources() for f in functions(path) if f.lines > LONGEST_FUNCTION]
    assert not long


def size_row(folder: str) -> str:
    paths = sources(folder)
    lengths = sorted(f.lines for path in paths for f in functions(path)) or [0]
    p95 = lengths[int(len(lengths) * 0.95)]
    lines = sum(map(length, paths))
    return (
        f"{folder:<12}{lines:>8,}{len(paths):>7}{len(lengths):>11}"
        f"{statistics.median_low(lengths):>8}{p95:>5}{lengths[-1]:>9}"
    )


def print_sizes() -> None:
    print("folder         lines  files  functions  median  p95  longest")
    for folder in FOLDERS:
        print(size_row(folder))
    found = [f for path in our_sources() for f in functions(path) if f.lines > WORTH_A_LOOK]
    for function in sorted(found, key=lambda f: (-f.lines, f.place)):
        print(f"{function.place}: {function.name} has {function.lines} lines")


# --- start-up

TIMED_IMPORT = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.perf_counter()
import rewright
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": sorted(set(sys.modules) - before)}))
"""


class Imported(NamedTuple):
    seconds: float
    modules: list[str]


def fresh_import() -> Imported:
    """What `import rewright` adds to a process that has imported torch."""
    run = subprocess.run([sys.executable, "-c", TIMED_IMPORT], capture_output=True, check=True)
    return Imported(**json.loads(run.stdout))


def test_import_loads_nothing_heavy() -> None:
    modules = fresh_import().modules
    assert "rewright" in modules
    assert not [m for m in modules if any(is_within(m, lazy) for lazy in LAZY)]


def test_import_is_quick() -> None:
    """The best of a few: other programs on the machine can only make it slower."""
    best = math.inf
    for _ in range(IMPORT_ATTEMPTS):
        best = min(best, fresh_import().seconds)
        if best <= IMPORT_SECONDS:
            break
    assert best <= IMPORT_SECONDS


# --- packaging


@cache
def setuptools_table() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    setuptools: dict[str, Any] = table["tool"]["setuptools"]
    return setuptools


def test_every_folder_with_sources_is_packaged_under_its_name() -> None:
    expected = {package(path): str(path.parent.relative_to(ROOT)) for path in sources(*LIBRARY)}
    assert setuptools_table()["package-dir"] == expected
    assert set(setuptools_table()["packages"]) == set(expected)


def test_every_data_file_is_packaged() -> None:
    """By globs that setuptools reads as `Path.glob` does."""
    packed = {
        path
        for package, globs in setuptools_table()["package-data"].items()
        for pattern in globs
        for path in (ROOT / setuptools_table()["package-dir"][package]).glob(pattern)
    }
    data = {path for path in files(*LIBRARY) if path.suffix != ".py"}
    data -= set(files(TRAINING_DATA))
    assert not sorted(place(path, 1) for path in data - packed)


# --- what is committed


@cache
def committed() -> list[Path]:
    """Files git tracks or would add."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        run = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in run.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file()]


def test_no_file_names_a_folder_of_this_machine() -> None:
    folders = re.compile(rb"/(?:root|home|work)/|\.\./(?:shared)")
    found = [str(p.relative_to(ROOT)) for p in committed() if folders.search(p.read_bytes())]
    assert not found


if __name__ == "__main__":
    print_sizes()
