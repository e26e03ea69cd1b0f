"""A wheel, built and installed away from the checkout, has everything the library needs to run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

DEMO = """
import rewright
from importlib.metadata import version
print(version("rewright"))
"""

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE_DIR: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
TOP_FOLDERS = {folder.split("/")[0] for folder in PACKAGE_DIR.values()}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Its output; when it fails, the test does with what it said."""
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: str | Path, cwd: Path) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources in which an older build has left a module."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in TOP_FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    stale = copy / "build/lib/rewright/stale.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    dist = tmp_path_factory.mktemp("dist")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", dist, ".", cwd=copy)
    (built,) = dist.iterdir()
    return built


def test_wheel_holds_every_file_of_the_library_and_nothing_else(wheel: Path) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for folder in TOP_FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        # What models are trained on stays in the repository.
        and not path.is_relative_to(ROOT / "costmodel" / "data")
    }
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert {source_of(name) for name in packed} == expected
    assert "rewright/py.typed" in packed


def source_of(name: str) -> str:
    """The file of the checkout that a file of the wheel is a copy of."""
    inside = name.removeprefix("rewright/")
    return inside if inside.split("/")[0] in TOP_FOLDERS else f"compiler/{inside}"


def test_wheel_carries_its_license(wheel: Path) -> None:
    (name,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("/LICENSE"))
    assert zipfile.ZipFile(wheel).read(name) == (ROOT / "LICENSE").read_bytes()


def test_installed_wheel_runs_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--no-deps", "--no-index", "--target", target, wheel, cwd=elsewhere)
    where = "import rewright; print(rewright.__file__)"
    found = run(sys.executable, "-c", where, cwd=elsewhere, PYTHONPATH=str(target))
    assert Path(found.strip()) == target / "rewright/__init__.py"
    output = run(sys.executable, "-c", DEMO, cwd=elsewhere, PYTHONPATH=str(target))
    assert output == PROJECT["project"]["version"] + "\n"
