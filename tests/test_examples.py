"""The scripts in `examples/` that show one thing each: short, and with what every user has.

What they print stands in docs/examples.md and is compared there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    "cross_compile",
    "long_context",
    "mlir",
    "own_pass",
    "own_rule",
    "quantize",
    "train_in_a_budget",
)
PUBLIC = {"rewright", "rewright.ir", "rewright.passes"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_public(name: str) -> None:
    path = ROOT / "examples" / f"{name}.py"
    text = path.read_text()
    assert len(text.splitlines()) < 60
    assert 'if __name__ == "__main__":' in text
    assert {m for m in imported(path) if m.split(".")[0] == "rewright"} <= PUBLIC
    assert f"examples/{name}.py" in (ROOT / "docs" / "examples.md").read_text()
