"""Artefacts that are not as they were written, or not for this machine: refused, by the name of the
file, by Rewright and by the program itself."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rewright
from rewright.artefact import load
from rewright.cli import main
from rewright.codegen.loading import (
    MANIFEST,
    Refused,
    check_machine,
    cpu_flags,
    manifest_digest,
    opened,
    write_manifest,
)
from rewright.ir import ArtefactError
from zoo import tiny_mlp

pytestmark = pytest.mark.cpu

FILES = (
    *("README.md", "build.sh", "graph.rw", "include/loops.h", "kernels.cpp", "kernels.so"),
    *("loading.py", "program.py", "report.json", "runtime.py", "tensors.safetensors"),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact of the MLP."""
    return rewright.optimize(*tiny_mlp()).save(tmp_path_factory.mktemp("mlp") / "build")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "build"))


def run_alone(folder: Path, **options: Any) -> Callable[..., Any]:
    """What a process without Rewright would do."""
    return runpy.run_path(str(folder / "program.py"))["load"](**options)  # type: ignore[no-any-return]


def refused(folder: Path, words: str) -> None:
    """By both doors; Rewright runs no code of it before."""
    with pytest.raises(ArtefactError, match=words):
        load(folder)
    with pytest.raises(RuntimeError, match=words):
        run_alone(folder)


def change(folder: Path, **changed: Any) -> None:
    """A manifest that says something else, and is in itself in order."""
    manifest = json.loads((folder / MANIFEST).read_text())
    write_manifest(manifest | changed, folder)


def test_the_manifest_names_every_file(written: Path) -> None:
    files = set(json.loads((written / MANIFEST).read_text())["files"])
    assert set(FILES) <= files
    found = {p.relative_to(written).as_posix() for p in written.rglob("*") if p.is_file()}
    assert found == files | {MANIFEST}


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_refused(folder: Path, name: str) -> None:
    """Wherever it is, and where the size stays. A program that is changed itself can refuse only
    where it still runs."""
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x04
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match=rf"{name} was changed since it was written"):
        load(folder)
    if not name.endswith(".py"):
        refused(folder, rf"{name} was changed since it was written")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtefactError, match=rf"{name} is missing"):
        load(folder)
    with pytest.raises((RuntimeError, FileNotFoundError), match=name):
        run_alone(folder)


def test_every_changed_byte_of_the_manifest_is_refused_or_says_the_same(folder: Path) -> None:
    path = folder / MANIFEST
    before, said = path.read_bytes(), json.loads(path.read_bytes())
    for place in range(0, len(before), 7):
        data = bytearray(before)
        data[place] ^= 0x01
        path.write_bytes(data)
        try:
            assert opened(folder, verify=False) == said
        except Refused:
            continue
    path.write_bytes(before)
    opened(folder)


@pytest.mark.parametrize("name", ["more.txt", "torch/__init__.py", "include/more.h", "__pycache__"])
def test_what_the_manifest_does_not_name_is_refused(folder: Path, name: str) -> None:
    """A folder called `torch` would be imported instead of torch."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("")
    refused(folder, rf"{name} is not one of the artefact's files")


def test_an_empty_folder_is_refused_too(folder: Path) -> None:
    (folder / "torch").mkdir()
    refused(folder, "torch is not one of the artefact's files")


def test_what_python_leaves_behind_is_not(folder: Path) -> None:
    command = [sys.executable, "-c", "import program; program.load()"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(command, cwd=folder, check=True, env=environment)
    assert (folder / "__pycache__").is_dir()
    load(folder)


@pytest.mark.parametrize("name", ["kernels.so", MANIFEST, "include"])
def test_a_link_is_refused(folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)
    refused(folder, rf"{name} is a link; an artefact holds its own files")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "include/../../x", "a\\b", "./x"])
def test_a_name_that_leads_out_is_refused(folder: Path, name: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(folder, files=manifest["files"] | {name: {"bytes": 0, "sha256": ""}})
    refused(folder, "does not name a file in the artefact")


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_version_is_refused(folder: Path, version: object) -> None:
    change(folder, version=version, rewright="9.9.9")
    refused(
        folder, f"written by rewright 9.9.9 in version {version} of the format, and .* version 1:"
    )


@pytest.mark.parametrize("text", ["", "[]", "{", '{"rewright": "0.1.0"}', "\xff"])
def test_a_manifest_of_another_kind_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text, encoding="latin-1")
    refused(folder, rf"{MANIFEST} cannot be read|its {MANIFEST} is of another kind")


def test_a_manifest_without_its_tables_is_refused(folder: Path) -> None:
    change(folder, files=None)
    refused(folder, f"{MANIFEST} was changed")


def test_a_folder_without_one_is_no_artefact(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=f"is not an artefact: it has no {MANIFEST}"):
        load(tmp_path)


def test_digests_are_compared_unless_told_otherwise(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    x = torch.ones(8, 16)
    (found,) = run_alone(folder, verify=False)(x)
    module, _ = tiny_mlp()
    torch.testing.assert_close(found, module(x))
    assert load(folder, verify=False).state.keys() == module.state_dict().keys()
    refused(folder, "README.md was changed")


# --- machines -----------------------------------------------------------------------------------


def test_a_cpu_without_the_instructions_is_refused(folder: Path) -> None:
    if not cpu_flags():
        pytest.skip("the system does not say what its CPU can do")
    target = json.loads((folder / MANIFEST).read_text())["target"]
    check_machine(target | {"needs": sorted(cpu_flags())})
    change(folder, target=target | {"needs": ["avx4096"]})
    refused(folder, "built for a CPU with avx4096, which this one has not: run `rewright optimize`")


def test_another_architecture_is_refused(folder: Path) -> None:
    target = json.loads((folder / MANIFEST).read_text())["target"]
    change(folder, target=target | {"machine": "vax"})
    refused(folder, "built for vax, and this is")


def test_a_library_that_does_not_load_is_refused(folder: Path) -> None:
    (folder / "kernels.so").write_text("no library")
    with pytest.raises(RuntimeError, match=r"kernels\.so cannot be loaded here.*build\.sh"):
        run_alone(folder, verify=False)


def test_an_operator_that_this_torch_has_not_is_named(folder: Path) -> None:
    text = (folder / "program.py").read_text()
    (folder / "program.py").write_text(text.replace("torch.ops.aten.", "torch.ops.aten.un", 1))
    assert loading(folder, "seal", "program.py").returncode == 0
    with pytest.raises(ArtefactError, match=r"was made with torch .*, and torch .* is here: .*'un"):
        load(folder)


# --- by itself ----------------------------------------------------------------------------------


def loading(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "loading.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_folder_checks_itself(folder: Path) -> None:
    done = loading(folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "files" in done.stdout and "are as they were written" in done.stdout
    (folder / "graph.rw").write_text("changed")
    done = loading(folder)
    assert done.returncode == 2
    assert done.stderr == f"error: {folder.resolve()}/graph.rw was changed since it was written\n"


def test_a_file_is_sealed_anew_on_request(folder: Path) -> None:
    (folder / "graph.rw").write_text((folder / "graph.rw").read_text() + "# mine\n")
    assert loading(folder, "seal", "graph.rw").returncode == 0
    load(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["sha256"] == manifest_digest(manifest)
    assert "secret is not one" in loading(folder, "seal", "secret").stderr


def test_the_command_line_refuses_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tensors.safetensors").unlink()
    assert main(["run", str(folder)]) == 2
    assert capsys.readouterr().err == f"error: {folder}/tensors.safetensors is missing\n"
