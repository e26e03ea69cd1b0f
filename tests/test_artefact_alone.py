"""Artefacts in processes that have torch and nothing else: what they give there."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rewright
from examples.case import Case
from rewright.artefact import save
from rewright.backend import programs
from zoo import tiny_convnext, tiny_gpt2, tiny_mlp, tiny_resnet, tiny_vae

pytestmark = [pytest.mark.cpu, pytest.mark.slow]

# Runs every case below a folder: an artefact, inputs of some calls, and where the outputs go. Only
# torch and what it is installed with can be imported: neither Rewright nor NumPy.
ALONE = """
import sys

THERE = {
    *sys.stdlib_module_names, "torch", "torchgen", "functorch",
    *("filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "sympy"),
    "typing_extensions",
}

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in THERE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())

import pathlib, runpy
import torch

for case in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    call = runpy.run_path(str(case / "build" / "program.py"))["load"]()
    results = []
    for inputs in torch.load(case / "inputs.pt"):
        torch.manual_seed(0)
        results.append((list(call(*inputs)), inputs))
    torch.save(results, case / "results.pt")
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"numpy", "rewright", "safetensors", "transformers"}, loaded
"""


class Recurrent(nn.Module):
    """Writes a buffer, an argument, and a mask that is known when it is compiled."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: Tensor, times: int) -> tuple[Tensor, Tensor, int]:
        mask = torch.ones(4, 4).tril() * torch.tensor([1.0, 2.0, 3.0, 4.0])
        x.add_(1)
        self.total.add_(self.linear(x).sum(0))
        return x @ mask * times, self.total.clone(), x.shape[0]


class Kinds(nn.Module):
    """Parameters of many types, one of them tied, one transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.randn(6, 4, dtype=torch.float64))
        self.narrow = nn.Parameter(torch.randn(4, 6, dtype=torch.bfloat16).t())
        self.tied = nn.Parameter(self.wide)
        self.tiny: Tensor
        self.mask: Tensor
        self.none: Tensor
        self.register_buffer("tiny", torch.randn(4).to(torch.float8_e4m3fn))
        self.register_buffer("mask", torch.rand(6, 4) < 0.5)
        self.register_buffer("none", torch.zeros(0, 4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        y = (x @ self.wide.t() @ self.narrow.double()) * self.tiny.double()
        return torch.cat([y @ self.tied.t(), self.none @ self.tied.t()]) * self.mask.sum()


@dataclass(frozen=True)
class Built:
    """What an artefact must give, with the inputs of some calls."""

    wanted: Callable[..., Any]
    calls: list[tuple[Any, ...]]
    tolerance: float = 1e-5  # of each output, relative L2


def built(folder: Path, case: Case, *calls: tuple[Any, ...], **options: Any) -> Built:
    module, example = case
    example = tuple(x.clone() if isinstance(x, Tensor) else x for x in example)
    compiled = rewright.optimize(copy.deepcopy(module), example, **options)
    compiled.save(folder / "build")
    torch.save(list(calls), folder / "inputs.pt")
    return Built(module, list(calls))


def gpt2(folder: Path) -> Built:
    """Of any batch and length."""
    model, (tokens,) = tiny_gpt2()
    shapes = {"x": {0: torch.export.Dim("n", max=8), 1: torch.export.Dim("t", max=64)}}
    lengths = [(torch.randint(0, 128, s),) for s in ((2, 16), (1, 1), (8, 33), (3, 64))]
    return built(folder, (model, (tokens,)), *lengths, dynamic_shapes=shapes)


def convnext(folder: Path) -> Built:
    """Inputs in whatever layout."""
    model, (image,) = tiny_convnext()
    layouts = [(image,), (image.to(memory_format=torch.channels_last),), (image.transpose(2, 3),)]
    return built(folder, (model, (image,)), *layouts)


def resnet(folder: Path) -> Built:
    """Weights frozen: packed for oneDNN or for kernels of ours, with the batch norms in them."""
    model, (image,) = tiny_resnet()
    made = built(folder, (model, (image,)), (image,), (image.flip(0),), freeze="yes")
    graph = (folder / "build" / "graph.rw").read_text()
    assert "rw.frozen" in graph or "rw.convolution" in graph
    return made


def quantized(folder: Path) -> Built:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)).eval()
    given = [(torch.randn(8, 256),) for _ in range(4)]
    options = {"error_budget": 0.05, "calibration": given, "objective": "bytes"}
    made = built(folder, (model, given[0]), (torch.randn(8, 256),), **options)
    assert "rw.quantized_linear" in (folder / "build" / "graph.rw").read_text()
    return Built(made.wanted, made.calls, tolerance=0.1)


def recurrent(folder: Path) -> Built:
    """Buffers and arguments are written, of any number of rows."""
    x = torch.randn(6, 4)
    rows = {"x": {0: torch.export.Dim("rows", min=2, max=50)}, "times": None}
    strange = torch.randn(4, 3).t().contiguous().repeat(3, 2)[:, :4]
    case: Any = (Recurrent(), (x, 3))
    return built(folder, case, (x, 3), (strange, 3), dynamic_shapes=rows)


def vae(folder: Path) -> Built:
    """Draws the random numbers that eager draws."""
    return built(folder, tiny_vae(), tiny_vae()[1])


def kinds(folder: Path) -> Built:
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64)
    return built(folder, (Kinds().eval(), (x,)), (x,))


def backward(folder: Path) -> Built:
    """The second half of a training step: from what the first half saved to gradients."""
    model, (x,) = tiny_mlp()
    torch.compile(model, backend="rewright")(x).sum().backward()
    forward, backward = (program for program in programs()[-2:])
    assert (forward.graph.name, backward.graph.name) == ("forward", "backward")
    save(backward, None, folder / "build")
    gradients = [p.grad for p in model.parameters()]
    given = {i: p.detach() for i, p in enumerate(model.parameters())}
    order = [given[0], given[1], x, *(given[i] for i in range(2, len(given)))]
    y, *saved = forward.executable(order)
    call = (*saved, torch.ones_like(y))
    torch.save([call], folder / "inputs.pt")
    return Built(lambda *args: [*gradients[:2], None, *gradients[2:]], [call])


CASES: dict[str, Callable[[Path], Built]] = {
    f.__name__: f for f in (gpt2, convnext, resnet, quantized, recurrent, vae, kinds, backward)
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], None]]:
    """A comparison of what an artefact gave in a bare process with what it must give."""
    folder = tmp_path_factory.mktemp("artefacts")
    cases = {}
    for name, make in CASES.items():
        (folder / name).mkdir()
        cases[name] = make(folder / name)
    moved = folder.with_name("moved")
    folder.rename(moved)
    command = [sys.executable, "-I", "-c", ALONE, str(moved)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=moved, check=False)
    assert done.returncode == 0, done.stderr

    def compare(name: str) -> None:
        case = cases[name]
        found = torch.load(moved / name / "results.pt")
        assert len(found) == len(case.calls) > 0
        for (outputs, inputs_after), inputs in zip(found, case.calls, strict=True):
            mine = tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)
            torch.manual_seed(0)
            with torch.no_grad():
                expected = torch.utils._pytree.tree_leaves(case.wanted(*mine))
            agree(outputs, expected, case.tolerance)
            agree(inputs_after, mine, case.tolerance)

    yield compare
    shutil.rmtree(moved)


def agree(found: Sequence[Any], wanted: Sequence[Any], tolerance: float) -> None:
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        if not isinstance(theirs, Tensor):
            assert ours == theirs
            continue
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        error = (ours.double() - theirs.double()).norm()
        assert float(error) <= tolerance * float(theirs.double().norm())


@pytest.mark.parametrize("name", CASES)
def test_an_artefact_gives_in_a_bare_process_what_it_must(
    results: Callable[[str], None], name: str
) -> None:
    results(name)
