"""Rewright from its repository, where it cannot be installed: on a machine without a network, whose
setuptools is too old, say. A folder of links stands for the package, with its entry points."""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import sys
import tempfile
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]


def link() -> None:
    """Nothing where rewright can be imported; else this process and those it starts can, too."""
    if find_spec("rewright") is not None:
        return
    folder = Path(tempfile.mkdtemp(prefix="rewright-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_tree(folder)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def write_tree(folder: Path) -> None:
    """The package as pyproject.toml lays it out, and what an installer would say of it."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    places = about["tool"]["setuptools"]["package-dir"]
    package = folder / "rewright"
    package.mkdir()
    inside = {name.partition(".")[2]: ROOT / place for name, place in places.items()}
    top = {file.name: file for file in inside.pop("").iterdir() if file.name != "__pycache__"}
    for name, place in {**inside, **top}.items():
        if "." not in name or place.is_file():
            (package / name).symlink_to(place)
    project = about["project"]
    said = folder / f"rewright-{project['version']}.dist-info"
    said.mkdir()
    (said / "METADATA").write_text(f"Name: rewright\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project.get("entry-points", {}).items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (said / "entry_points.txt").write_text("\n".join(lines) + "\n")
