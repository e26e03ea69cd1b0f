"""The benchmarks' arithmetic and their refusals; no timing is asserted here."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.contestants import step_of, without_dropout
from benchmarks.inference import First, means, worker
from benchmarks.load import own_seconds as cpu_seconds
from benchmarks.load import warning
from benchmarks.models import MODELS, SETS
from benchmarks.startup import Sample, own_seconds
from benchmarks.steady import WrongAnswer, check
from benchmarks.timing import Comparison, compare, rotated

ROOT = Path(__file__).resolve().parents[1]


def test_a_speedup_is_the_ratio_of_medians_within_its_interval() -> None:
    comparison = Comparison({"a": [1.0, 2.0, 9.0], "b": [3.0, 5.0, 4.0]}, other_load=0.0)
    speedup = comparison.speedup("a", over="b")
    assert speedup.ratio == 2.0
    assert 4 / 9 <= speedup.low <= 2.0 <= speedup.high <= 3.0


def test_steady_rounds_leave_no_doubt() -> None:
    speedup = Comparison({"a": [1.0] * 5, "b": [1.5] * 5}, other_load=None).speedup("a", over="b")
    assert str(speedup) == "1.50x (1.50-1.50)"


def test_candidates_take_turns_in_rotating_order() -> None:
    turns: list[str] = []
    candidates: dict[str, Callable[[], object]] = {
        name: lambda name=name: turns.append(name)  # type: ignore[misc]
        for name in "abc"
    }
    comparison = compare(candidates, rounds=3, min_seconds=0.0)
    assert turns[-9:] == [*"abc", *"bca", *"cab"]
    assert {name: len(seconds) for name, seconds in comparison.seconds.items()} == dict.fromkeys(
        "abc", 3
    )


def test_rotation_goes_round() -> None:
    assert [rotated("ab", turn) for turn in range(3)] == [["a", "b"], ["b", "a"], ["a", "b"]]


def test_own_time_is_taken_within_a_repeat() -> None:
    row = [Sample(seconds, 0.0) for seconds in (5.0, 9.0, 7.0)]
    base = [Sample(seconds, 0.0) for seconds in (3.0, 8.0, 2.0)]
    assert own_seconds(row, base) == 2.0


@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_a_wrong_answer_is_not_timed(wrong: float) -> None:
    def double(x: Tensor) -> Tensor:
        return 2 * x

    x = torch.linspace(1, 2, 8)
    check("double", {"right": lambda: x + x}, double, (x,))
    with pytest.raises(WrongAnswer, match="double: off is "):
        check("double", {"off": lambda: wrong * double(x)}, double, (x,))


def test_a_busy_machine_is_mentioned() -> None:
    assert warning([0.0, 0.05, None]) is None
    told = warning([0.5, 0.0, None])
    assert told is not None
    assert told.startswith("warning: in 1 of 3 measurements")


def test_models_are_listed_with_a_set_and_a_factory_that_takes_their_arguments() -> None:
    listed = tomllib.loads((ROOT / "benchmarks" / "models.toml").read_text(encoding="utf-8"))
    assert {name for names in SETS.values() for name in names} == set(listed) == set(MODELS)
    assert len(listed) >= 12 and not set(SETS["tune"]) & set(SETS["report"])
    for settings in listed.values():
        module, _, function = settings.pop("make").partition(":")
        assert settings.pop("set") in SETS and settings.pop("title")
        inspect.signature(getattr(import_module(module), function)).bind(**settings)


def test_only_right_answers_are_timed() -> None:
    assert First(1.0, error=2e-7, eager_error=2e-7).wrong == ""
    assert First(1.0, error=3e-6, eager_error=9e-7).wrong == "3.0e-06 off float64, over 2.8e-06"
    assert First(1.0, error=float("nan"), eager_error=1e-7).wrong.startswith("nan off float64")
    assert First(failed="it died").wrong == "it died"


def test_means_are_geometric_and_by_set() -> None:
    tuned, reported = SETS["tune"][:2], SETS["report"][0]
    ratios = {tuned[0]: 1.0, tuned[1]: 4.0, reported: 0.5}
    results = {m: {"speedup": {"a vs b": {"ratio": r}}} for m, r in ratios.items()}
    assert list(means(results)) == [
        ("tune", "a vs b", 2.0, 1.0, 2),
        ("report", "a vs b", 0.5, 0.5, 1),
        ("all", "a vs b", pytest.approx(2 ** (1 / 3)), 0.5, 3),
    ]


def test_a_worker_runs_one_contestant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for mode in ("inference", "training"):
        with worker("two_block_transformer", "eager", mode, 1) as made:
            assert made.first.wrong == "" and made.first.error == made.first.eager_error > 0
            assert 1e-5 < made.time(2) < 60
            assert cpu_seconds([made.process.pid]) > cpu_seconds([])
    with worker("two_block_transformer", "nobody", "inference", 1) as made:
        assert made.first.wrong == "KeyError: 'nobody'"


def test_a_step_is_a_loss_and_its_gradients() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5))
    without_dropout(model)
    x = torch.randn(4, 3)
    loss, weight, bias = step_of(lambda: model(x), model)()
    y = model(x)
    torch.testing.assert_close(loss, y.square().mean())
    torch.testing.assert_close(bias, 2 * y.detach().sum(0) / y.numel())
    assert weight.shape == (2, 3)
