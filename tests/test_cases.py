"""Every case file under `tests/cases`. `UPDATE_CASES=1` rewrites what they expect; the diff is then
the review."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rewright.passes import Pipeline, passes
from run_case import check_case, read_case, run_case, updated

CASES = Path(__file__).parent / "cases"
PATHS = sorted(CASES.rglob("*.rw"))
UPDATE = os.environ.get("UPDATE_CASES") == "1"


@pytest.mark.parametrize("path", PATHS, ids=[p.relative_to(CASES).as_posix() for p in PATHS])
def test_case(path: Path) -> None:
    case = read_case(path)
    outcome = run_case(case)
    if UPDATE:
        path.write_text(updated(case, outcome))
        case = read_case(path)
    check_case(case, outcome)


@pytest.mark.parametrize("path", PATHS, ids=[p.relative_to(CASES).as_posix() for p in PATHS])
def test_case_states_its_law(path: Path) -> None:
    law = read_case(path).law
    assert law.endswith(".") and "\n" not in law


def test_every_pass_has_cases() -> None:
    tried = {step.name for path in PATHS for step in pipeline_of(path)}
    ours = {name for name in passes() if not name.startswith("test-")}
    assert tried == ours


def pipeline_of(path: Path) -> Pipeline:
    case = read_case(path)
    return Pipeline(()) if case.error else Pipeline.parse(case.pipeline)
