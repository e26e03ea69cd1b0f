"""The command line's `doctor`: what works on this machine."""

from __future__ import annotations

import json

import pytest

from rewright.cli import main

pytestmark = pytest.mark.cpu


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["doctor", *arguments])
    return capsys.readouterr().out


def test_doctor_says_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys).splitlines()
    assert [line[:4].strip() for line in lines if line[0] != " "][:5] == ["ok"] * 5
    assert any(line.startswith("ok   kernels        a kernel was built and ran") for line in lines)
    findings = {f["what"]: f["works"] for f in json.loads(told(capsys, "--json"))}
    assert findings["C++ compiler"] and findings["cache folder"] and findings["this CPU"]


def test_doctor_without_a_compiler(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that Rewright needs is missing: it runs everything as ATen."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    text = told(capsys)
    assert "-    C++ compiler   no C++ compiler: looked for c++, g++, clang++\n" in text
    assert "install g++ or clang++, or set CXX; until then everything runs as ATen" in text
