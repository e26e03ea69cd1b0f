"""`rewright diff`: node by node, between stages of a compile and between compiles."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rewright.cli import main
from rewright.diffing import Change, changes
from rewright.ir.parse import parse

pytestmark = pytest.mark.cpu

TEXT = """\
rewright 1
graph f(%x: f32[8, 16], %w: f32[16, 16]) {
  %h = aten.mm.default(%x, %w) : f32[8, 16] @ f.py:1
  %g = aten.gelu.default(%h) : f32[8, 16] @ f.py:2
  %again = aten.gelu.default(%h) : f32[8, 16] @ f.py:3
  %s = aten.add.Tensor(%g, %again) : f32[8, 16] @ f.py:4
  return %s
}
"""

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "f.rw").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str, code: int = 0) -> str:
        assert main(["diff", *arguments]) == code
        printed = capsys.readouterr()
        return printed.out + printed.err

    return call


def told(found: list[Change]) -> list[str]:
    return [str(change) for change in found]


# --- two graphs -----------------------------------------------------------------------------------


def test_equal_graphs_differ_in_nothing() -> None:
    assert changes(parse(TEXT), parse(TEXT)) == []
    assert changes(parse(TEXT), parse(TEXT), {}) == []


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        (
            "%again = aten.gelu.default(%h) :",
            '%again = aten.gelu.default(%h, approximate="tanh") :',
            'changed  %again: attributes (_) -> (_, approximate="tanh")',
        ),
        (
            "%again = aten.gelu.",
            "%again = aten.relu.",
            "changed  %again: operator aten.gelu.default -> aten.relu.default",
        ),
        ("(%g, %again)", "(%g, %g)", "changed  %s: reads %g, %again -> %g, %g"),
        ("return %s", "return %s, %g", "changed  %return: value %s -> %s, %g"),
        ("%w: f32[16, 16])", "%w: f32[16, 16] param)", "changed  %w: role input -> param"),
        (") {", ", %z: f32[2]) {", "new      input %z: f32[2] input"),
        (
            "  return",
            "  %t = aten.sin.default(%s) : f32[8, 16]\n  return",
            "new      %t = aten.sin.default(%s) : f32[8, 16]",
        ),
        ("@ f.py:3", "@ g.py:5", None),
    ],
)
def test_what_is_another_in_a_node(old: str, new: str, change: str | None) -> None:
    found = told(changes(parse(TEXT), parse(TEXT.replace(old, new))))
    assert found == ([] if change is None else [change])
    backwards = changes(parse(TEXT.replace(old, new)), parse(TEXT))
    assert len(backwards) == len(found)


def test_names_that_moved_on_are_no_changes() -> None:
    """A node more at the front, and all others are numbered on."""
    chain = [f"  %sin_{i + 1} = aten.sin.default(%sin_{i}) : f32[4]\n" for i in range(5)]
    head, end = "rewright 1\ngraph g(%sin_0: f32[4]) {\n", "  return %sin_{}\n}}\n"
    first = head + "".join(chain[:4]) + end.format(4)
    front = "  %sin_1 = aten.cos.default(%sin_0) : f32[4]\n"
    second = head + front + "".join(chain[1:]) + end.format(5)
    found = changes(parse(first), parse(second))
    assert told(found)[0] == "new      %sin_1 = aten.cos.default(%sin_0) : f32[4]"
    assert [str(c) for c in found if c.kind == "renamed"] == [
        f"renamed  %sin_{i} -> %sin_{i + 1}" for i in range(1, 5)
    ]
    (changed,) = (c for c in found if c.kind == "changed")
    assert str(changed) == "changed  %sin_2: reads %sin_0 -> %sin_1"


def test_nodes_without_a_name_are_counted() -> None:
    call = "  aten._assert_async.default(%ok)\n"
    text = f"graph g(%ok: bool[]) {{\n{call}  return %ok\n}}\n"
    found = changes(parse(text), parse(text.replace(call, call + call)))
    assert told(found) == ["new      aten._assert_async.default(%ok)"]


# --- two stages -----------------------------------------------------------------------------------


def test_a_pass_by_itself(run: Run) -> None:
    lines = run("f.rw", "--before", "cse", "--after", "cse").splitlines()
    assert lines[0] == "f after fold -> f after cse"
    assert lines[1].split() == ["nodes", "calls", "peak", "estimated"]
    assert lines[2].startswith("cse     4 -> 3  4 -> 3 ")
    assert lines[4:] == [
        "gone     %again = aten.gelu.default(%h) : f32[8, 16] @ f.py:3, now %g",
        "1 gone",
    ]


def test_all_passes(run: Run) -> None:
    lines = run("f.rw").splitlines()
    assert lines[0] == "f after import -> f after memory"
    assert [line.split()[0] for line in lines[2:5]] == ["cse", "fuse", "in"]
    assert lines[5:] == [
        "gone     %again = aten.gelu.default(%h) : f32[8, 16] @ f.py:3, now %g",
        "changed  %h: place in the arena none -> 0",
        "kernel   %s of %g, %s",
        "1 gone, 1 changed, 1 new kernel",
    ]


def test_json_names_everything(run: Run) -> None:
    found = json.loads(run("f.rw", "--after", "cse", "--json"))
    assert (found["left"]["name"], found["right"]["name"]) == ("f after import", "f after cse")
    assert (found["left"]["row"]["nodes"], found["right"]["row"]["nodes"]) == (4, 3)
    assert [row["name"] for row in found["passes"]][-1] == "cse"
    (gone,) = found["changes"]
    assert (gone["kind"], gone["name"], gone["to"]) == ("gone", "again", ["g"])
    (placed,) = (c for c in json.loads(run("f.rw", "--json"))["changes"] if c["what"])
    assert placed["what"] == [{"what": "place in the arena", "from": "none", "to": "0"}]


def test_stages_in_the_wrong_order(run: Run) -> None:
    assert run("f.rw", "--before", "fuse", "--after", "cse", code=2) == (
        "error: nothing lies between the graph before fuse and that after cse\n"
        "  = help: --before names the first pass, --after the last\n"
    )
    assert run("f.rw", "--before", "import", code=2).startswith("error: import is where ")
    assert run("f.rw", "--after", "fuze", code=2).startswith("error: no pass 'fuze' ran; did you")


def test_many_changes_of_a_sort_are_one_line(run: Run) -> None:
    chain = "".join(
        f"  %y{i + 1} = aten.{op}.default(%y{i}) : f32[8]\n"
        for i, op in enumerate(["sin", "clone"] * 6)
    )
    Path("g.rw").write_text(f"rewright 1\ngraph g(%y0: f32[8]) {{\n{chain}  return %y12\n}}\n")
    arguments = ["g.rw", "--after", "canonicalize"]
    gone = [f"%y{i}" for i in range(2, 13, 2)]
    lines = run(*arguments).splitlines()
    assert f"gone     6 (aten.clone.default): {', '.join(gone[:4])} and 2 more" in lines
    every = run(*arguments, "--all").splitlines()
    assert [line.split()[1] for line in every if line.startswith("gone ")] == gone


# --- two compiles ---------------------------------------------------------------------------------


def test_a_trace_and_its_model_are_equal(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["optimize", "f.rw", "--trace", "t"]) == 0
    capsys.readouterr()
    lines = run("t", "f.rw").splitlines()
    assert lines[0] == "t -> f.rw"
    assert lines[-1] == "the graphs are equal"


def test_two_models(run: Run) -> None:
    Path("g.rw").write_text(TEXT.replace("%again = aten.gelu", "%again = aten.relu"))
    assert run("f.rw", "g.rw", "--after", "import").splitlines()[-2:] == [
        "changed  %again: operator aten.gelu.default -> aten.relu.default",
        "1 changed",
    ]
    assert run("f.rw", "g.rw", "--before", "fuse", code=2) == (
        "error: --before is for two stages of one compile\n  = help: --after PASS is for both\n"
    )
