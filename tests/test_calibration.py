"""`rewright calibrate`: what it times, what it keeps, and what later estimates make of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from rewright.calibrate.calibration import (
    Calibration,
    Timed,
    read_calibration,
    write_calibration,
)
from rewright.calibrate.measuring import scales
from rewright.calibrate.suite import suite
from rewright.cli import main
from rewright.cost_models import cost_model, target_called
from rewright.costmodel import Estimate, Roofline
from rewright.costmodel.features import family_of
from rewright.costmodel.remembered import Remembering
from rewright.ir import Node, OptionError
from rewright.ir.alone import alone, call_name
from rewright.ir.parse import parse
from rewright.ir.target import Target
from rewright.pictures import Picture

TARGET = Target.parse("cpu:avx2")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def timed(family: str, predicted: float, measured: float) -> Timed:
    return Timed(family, "x", *(Estimate(t, 0.9 * t, 1.1 * t) for t in (predicted, measured)))


def product(m: int) -> Node:
    text = f"graph f(%a: f32[{m}, 8], %b: f32[8, 9]) {{\n  %c = aten.mm.default(%a, %b) : "
    return parse(f"{text}f32[{m}, 9]\n  return %c\n}}").nodes[0]


def test_the_suite_has_some_of_every_family_first() -> None:
    families = [family_of(call.graph.nodes[0]) for call in suite(TARGET)]
    assert Counter(families).keys() == {"kernel", "product", "convolution", "attention"}
    assert set(families[:12]) == set(families)


def test_a_family_is_scaled_by_its_median_when_enough_was_timed() -> None:
    few = [timed("attention", 1.0, 9.0)] * 2
    many = [timed("product", 1.0, t) for t in (1.9, 2.0, 2.1, 50.0)]
    wild = [timed("kernel", 1.0, 40.0)] * 9
    assert scales([*few, *many, *wild]) == {"product": pytest.approx(2.05), "kernel": 3.0}


def test_a_record_is_read_back_for_the_same_model_only(empty_cache: Path, tmp_path: Path) -> None:
    model, other = tmp_path / "a.npz", tmp_path / "b.npz"
    model.write_bytes(b"one")
    other.write_bytes(b"two")
    found = Calibration({"product": 1.5}, {"name": (1.0, 0.5, 2.0)})
    write_calibration(TARGET, model, found)
    assert read_calibration(TARGET, model) == found
    assert read_calibration(TARGET, other) is None


def test_what_was_measured_is_given_back() -> None:
    node, other = product(7), product(8)
    measured = {call_name(str(alone(node))): Estimate(3e-6, 2e-6, 4e-6, ("measured here",))}
    model = Remembering(Roofline(TARGET), measured)
    assert model.estimate([node, other]) == [
        measured[call_name(str(alone(node)))],
        *Roofline(TARGET).estimate([other]),
    ]
    # Cold, it is another call.
    assert model.estimate([node], cold=node.operands) == Roofline(TARGET).estimate([node])
    difference = model.compare([node], [node, node])
    assert difference.seconds == pytest.approx(-3e-6)


def test_calibrate_measures_keeps_and_draws(
    empty_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "scatter.svg"
    assert main(["calibrate", "--seconds", "4", "--plot", str(picture), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert Path(told["record"]).is_relative_to(empty_cache)
    assert len(told["calls"]) >= 4 and "<svg" in picture.read_text()
    cost_model.cache_clear()
    try:
        model = cost_model(target_called("host"))
        assert isinstance(model, Remembering)
        (call, *_) = suite(model.target)
        (found,) = model.estimate(call.graph.nodes)
        assert found.because[0].startswith("measured here")
    finally:
        cost_model.cache_clear()


def test_a_picture_of_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="such"):
        Picture(tmp_path / "scatter.such", 6, 6)
