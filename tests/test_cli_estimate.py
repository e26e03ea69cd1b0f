"""The command line's `estimate`: calls in, seconds and what bounds them out."""

from __future__ import annotations

import io
import json

import pytest

from rewright.cli import main

pytestmark = pytest.mark.cpu


def test_estimate_answers_for_another_device(capsys: pytest.CaptureFixture[str]) -> None:
    call = "aten.mm(bf16[4096, 4096], bf16[4096, 4096])"
    assert main(["estimate", call, "--device", "h200", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["device"] == "cuda:h200" and told["call"] == call
    assert told["low"] <= told["seconds"] <= told["high"] < 1e-3
    assert told["seconds"] > 2 * 4096**3 / 990e12
    assert told["because"]


def test_estimate_reads_many_calls_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [
        "aten.gelu(f32[64, 768])",
        "aten.add(f32[8], 1)",
        "aten.var_mean.correction(f32[8], [0])",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n".join(calls)))
    assert main(["estimate", "--json", "--device", "cpu:avx2"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [t["call"] for t in told] == calls
    assert all(0 < t["low"] <= t["seconds"] <= t["high"] for t in told)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("hello", "'hello' is no call"),
        ("aten.mmm(f32[8])", "did you mean 'aten.mm"),
        ("aten.mm(f32[8, 4], f32[8, 4])", "refuses these arguments"),
        ("aten.mm(f33[8, 4], f32[8, 4])", "f33"),
    ],
)
def test_estimate_says_what_is_wrong(
    call: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", call]) == 2
    assert said in capsys.readouterr().err
