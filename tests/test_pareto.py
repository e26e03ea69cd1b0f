"""What memory costs in time: `rewright pareto`, and the pictures."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rewright.cli import main
from rewright.ir import ImportFailure
from rewright.options import Options
from rewright.pareto import Study, study

pytestmark = pytest.mark.cpu


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)) * x.sigmoid()
        return x


def made() -> tuple[nn.Module, tuple[Tensor]]:
    torch.manual_seed(0)
    return Deep(), (torch.randn(2048, 32),)


SAID: list[str] = []


@pytest.fixture(scope="module")
def found() -> Study:
    return study(*made(), Options(), SAID.append)


def test_less_memory_never_takes_less_time(found: Study) -> None:
    peaks, seconds = [p.peak for p in found.ours], [p.seconds for p in found.ours]
    assert len(peaks) > 3
    assert peaks == sorted(peaks, reverse=True) and seconds == sorted(seconds)
    assert found.bound <= peaks[-1] < 0.6 * peaks[0]
    assert max(found.steps[0]) == peaks[0] and max(found.steps[-1]) == peaks[-1]


def test_no_partition_of_pytorch_beats_all_of_ours(found: Study) -> None:
    assert len(found.torch) == 11
    for theirs in found.torch:
        ours = [p for p in found.ours if p.peak <= theirs.peak]
        assert min(p.seconds for p in ours) <= theirs.seconds


def test_every_schedule_is_told_of(found: Study) -> None:
    assert len(SAID) > len(found.ours)
    assert all(re.fullmatch(r"from [\d.]+: peak .+, [+-][\d.]+% time", said) for said in SAID)


class Classes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 400)

    def forward(self, x: Tensor) -> Tensor:
        words = torch.arange(x.shape[0]) % 400
        return torch.nn.functional.cross_entropy(self.head(x), words)


def test_a_loss_in_parts_is_looked_at_too() -> None:
    found = study(Classes(), (torch.randn(512, 16),), Options())
    assert found.ours[-1].name.endswith(", loss in parts")
    assert found.ours[-1].peak < min(p.peak for p in found.torch)
    assert len(found.torch) == 11


def test_the_command_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curves, steps = tmp_path / "curves.svg", tmp_path / "steps.png"
    name = f"{made.__module__}:{made.__name__}"
    drawn = ["--plot", str(curves), "--timeline", str(steps)]
    assert main(["pareto", name, "--json", *drawn]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["torch"][0]["name"] == "torch 1.0"
    assert curves.read_text().startswith("<?xml") and steps.read_bytes().startswith(b"\x89PNG")


LOCK = threading.Lock()


class Broken(Classes):
    """With a lock, which Dynamo does not trace; in `setup` only in the first call."""

    def __init__(self, *, once: bool) -> None:
        super().__init__()
        self.once, self.known = once, False

    def forward(self, x: Tensor) -> Tensor:
        if not self.known:
            with LOCK:
                self.known = self.once
        return super().forward(x)


def test_what_is_set_up_in_the_first_call_breaks_no_graph() -> None:
    assert study(Broken(once=True), (torch.randn(64, 16),), Options()).ours


def test_a_graph_break_is_named() -> None:
    with pytest.raises(ImportFailure, match=r"the step is not one graph: .+, at test_pareto.py:"):
        study(Broken(once=False), (torch.randn(64, 16),), Options())


def test_a_module_without_gradients_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pareto", f"{frozen.__module__}:{frozen.__name__}"]) == 2
    assert "nothing to differentiate" in capsys.readouterr().err


def frozen() -> tuple[nn.Module, tuple[Tensor]]:
    module, inputs = made()
    return module.requires_grad_(False), inputs
