"""`rewright show` and `why`, of models and of saved traces: parts of graphs, sources, costs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rewright.cli import main
from rewright.ir.parse import parse

pytestmark = pytest.mark.cpu

# Two branches that meet, twice.
TEXT = """\
rewright 1
graph fork(%x: f32[8, 16], %bias: f32[16]) {
  %a = aten.add.Tensor(%x, %bias) : f32[8, 16] @ fork.py:2
  %b = aten.exp.default(%a) : f32[8, 16] @ fork.py:3
  %c = aten.sin.default(%a) : f32[8, 16] @ fork.py:3
  %d = aten.mul.Tensor(%b, %c) : f32[8, 16] @ fork.py:4
  %e = aten.mul.Tensor(%b, %c) : f32[8, 16] @ fork.py:4
  %f = aten.add.Tensor(%d, %e) : f32[8, 16] @ fork.py:4
  %s, %order = aten.sort.default(%f) : f32[8, 16], i64[8, 16] @ elsewhere.py:9
  return %s
}
"""
SOURCE = "def forward(x, bias):\n    a = x + bias\n    b, c = a.exp(), a.sin()\n    d = b * c\n"

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "fork.rw").write_text(TEXT)
    (tmp_path / "fork.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """What a command prints."""

    def call(*arguments: str) -> str:
        assert main(list(arguments)) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return call


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Run:
    """The message of a command that is refused."""

    def call(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err

    return call


@pytest.fixture
def trace(run: Run) -> str:
    run("optimize", "fork.rw", "--trace", "traces")
    return "traces/000-fork"


def made_by(text: str) -> list[str]:
    """The names of the nodes of a graph's text."""
    return [node.name for node in parse(text).nodes]


# --- parts of a graph -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("a:0", ["a"]),
        ("%a", ["a", "b", "c"]),
        ("a:2", ["a", "b", "c", "d", "e"]),
        ("d", ["b", "c", "d", "f"]),
        ("d:all", ["a", "b", "c", "d", "e", "f", "s"]),
        ("x", ["a"]),
        ("x:2", ["a", "b", "c"]),
        ("order", ["f", "s"]),
    ],
)
def test_around_is_what_is_near(run: Run, asked: str, names: list[str]) -> None:
    assert made_by(run("show", "fork.rw", "--after", "import", "--around", asked)) == names


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("a", ["a", "b", "c"]),
        ("b", ["b", "d", "e"]),
        ("b:2", ["b", "d", "e", "f"]),
        ("b:all", ["b", "d", "e", "f", "s"]),
        ("order:all", ["s"]),
        ("bias:1", ["a"]),
        ("bias:0", []),
        ("bias:all", ["a", "b", "c", "d", "e", "f", "s"]),
    ],
)
def test_uses_are_who_reads_it(run: Run, asked: str, names: list[str]) -> None:
    assert made_by(run("show", "fork.rw", "--after", "import", "--uses", asked)) == names


def test_a_part_is_a_graph_that_runs(run: Run) -> None:
    """What it reads comes in, what others read goes out."""
    assert run("show", "fork.rw", "--after", "import", "--around", "b:1") == (
        "rewright 1\n"
        "graph fork(%x: f32[8, 16], %bias: f32[16], %c: f32[8, 16]) {\n"
        "  %a = aten.add.Tensor(%x, %bias) : f32[8, 16] @ fork.py:2\n"
        "  %b = aten.exp.default(%a) : f32[8, 16] @ fork.py:3\n"
        "  %d = aten.mul.Tensor(%b, %c) : f32[8, 16] @ fork.py:4\n"
        "  %e = aten.mul.Tensor(%b, %c) : f32[8, 16] @ fork.py:4\n"
        "  return %a, %d, %e\n"
        "}\n"
    )


def test_a_value_goes_by_what_passes_made_of_it(run: Run, fail: Run) -> None:
    """%e is %d from cse on, and inside of a kernel from fuse on."""
    assert "%d = aten.mul" in run("show", "fork.rw", "--after", "cse", "--node", "e")
    for name in ("b", "e"):
        assert "%f = rw.fused(" in run("show", "fork.rw", "--after", "fuse", "--node", name)
    assert fail("show", "fork.rw", "--after", "import", "--node", "q") == (
        "error: no value '%q' in graph fork\n"
    )
    assert fail("show", "fork.rw", "--after", "import", "--around", "f_buffer") == (
        "error: %f_buffer is not in graph fork after import\n"
    )


def test_steps_that_are_no_number(fail: Run) -> None:
    assert fail("show", "fork.rw", "--around", "a:x") == (
        "error: --around takes NAME:STEPS, where STEPS is a number or all, not 'a:x'\n"
    )
    assert fail("show", "fork.rw", "--calls", "--uses", "a").startswith(
        "error: --uses is for graphs\n"
    )
    assert fail("show", "fork.rw", "--node", "a", "--uses", "a").startswith("error: argument ")


# --- beside the source ----------------------------------------------------------------------------


def test_source_stands_beside_the_first_node_of_a_line(run: Run) -> None:
    text = run("show", "fork.rw", "--after", "import", "--source")
    lines = dict(re.findall(r"^  %(\w+).*?(?:  # (.*))?$", text, re.MULTILINE))
    assert lines == {
        "a": "a = x + bias",
        "b": "b, c = a.exp(), a.sin()",
        "c": "",
        "d": "d = b * c",
        "e": "",
        "f": "",
        "s": "",
    }
    assert parse(text) == parse(TEXT)
    (column,) = {line.index("  # ") for line in text.splitlines() if "#" in line}
    assert column == max(len(line) for line in TEXT.splitlines() if "@" in line)
    assert run("show", "fork.rw", "--source").count("# d = b * c") == 1  # inside of a kernel


def test_a_source_that_is_not_there(fail: Run, folder: Path) -> None:
    (folder / "fork.py").unlink()
    assert fail("show", "fork.rw", "--source") == (
        "error: [show] none of the source is known: the graph names elsewhere.py, fork.py\n"
        "  = help: run it in the folder of that file\n"
    )


def test_two_files_of_one_name_tell_nothing(run: Run, folder: Path) -> None:
    (folder / "models").mkdir()
    for name, text in (("fork.rw", TEXT), ("fork.py", "import this\n"), ("elsewhere.py", "\n" * 9)):
        (folder / "models" / name).write_text(text)
    (folder / "elsewhere.py").write_text("\n" * 8 + "x.sort()\n")
    (folder / "models" / "elsewhere.py").unlink()
    text = run("show", "models/fork.rw", "--after", "import", "--source")
    assert re.findall(r"  # (.*)", text) == ["x.sort()"]


# --- kernels --------------------------------------------------------------------------------------


def test_the_kernel_that_computes_a_value(run: Run, fail: Run) -> None:
    whole = run("show", "fork.rw", "--kernels")
    name = re.findall(r"void (k\d+_\w+)\(", whole)[0]
    one = run("show", "fork.rw", "--kernels", "--node", "%b")
    assert one.startswith("// a, b, c, d, f\n") and one.rstrip() in whole
    assert run("show", "fork.rw", "--kernels", "--node", name) == one
    assert fail("show", "fork.rw", "--kernels", "--node", "s") == (
        "error: no kernel of ours computes %s\n"
    )


def test_loops_say_what_a_kernel_computes(run: Run) -> None:
    assert run("show", "fork.rw", "--loops") == (
        "kernel k0_add_exp_sin_mul(%x: f32[8, 16], %bias: f32[16]) -> (%f: f32[8, 16]) {\n"
        "  rows a0: 8, a1: 16\n"
        "  each row {\n"
        "    t0 = %x[a0*16 + a1] : f32  # %x\n"
        "    t1 = %bias[a1] : f32  # %bias\n"
        "    t2 = add(t0, t1) : f32  # %a\n"
        "    t3 = exp(t2) : f32  # %b\n"
        "    t4 = sin(t2) : f32  # %c\n"
        "    t5 = mul(t3, t4) : f32  # %d\n"
        "    t6 = add(t5, t5) : f32  # %f\n"
        "    %f[a0*16 + a1] = t6\n"
        "  }\n"
        "}\n"
    )


def test_loops_of_reductions_of_halves_and_of_attention(run: Run, folder: Path) -> None:
    (folder / "mean.rw").write_text(
        "rewright 1\n"
        "graph mean(%x: f16[B0, 64]) where B0 in [1, 64] hint 4 {\n"
        "  %p = aten.constant_pad_nd.default(%x, [1, 0]) : f16[B0, 65]\n"
        "  %m = aten.mean.dim(%p, [1]) : f16[B0]\n"
        "  return %m\n"
        "}\n"
    )
    loops = run("show", "mean.rw", "--loops")
    assert "rows a0: B0\n" in loops
    assert "columns a1: 65, in lanes, blocks of 4096\n" in loops
    assert " where 0 <= a1 + -1 < 64" in loops
    assert " = sum of " in loops and "rounded_to_f16(" in loops


# --- colours --------------------------------------------------------------------------------------

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.mark.parametrize("what", [[], ["--kernels"], ["--calls"], ["--loops"], ["--python"]])
def test_a_terminal_gets_colours(
    run: Run, trace: str, monkeypatch: pytest.MonkeyPatch, what: list[str]
) -> None:
    plain = run("show", trace, *what)
    assert "\x1b" not in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = run("show", trace, *what)
    assert ESCAPE.search(coloured) and ESCAPE.sub("", coloured) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert run("show", trace, *what) == plain


# --- traces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["show"],
        ["show", "--after", "cse"],
        ["show", "--kernels"],
        ["show", "--calls"],
        ["show", "--loops"],
        ["show", "--python", "--after", "dce"],
        ["show", "--around", "b", "--after", "dce", "--source"],
        ["show", "--mlir", "--node", "b"],
        ["why"],
        ["why", "e"],
        ["why", "fuse"],
    ],
)
def test_a_trace_shows_what_the_model_does(run: Run, trace: str, arguments: list[str]) -> None:
    def without_times(text: str) -> str:
        return re.sub(r"took .*?:", "", text)

    command, *rest = arguments
    of_trace, of_model = (run(command, given, *rest) for given in (trace, "fork.rw"))
    assert without_times(of_trace) == without_times(of_model)


def test_a_trace_takes_no_options(fail: Run, trace: str) -> None:
    assert fail("show", trace, "--memory-budget", "1GiB") == (
        "error: traces/000-fork is a trace, of a compile that is done: --memory-budget changes "
        "nothing in it\n"
        "  = help: name the model instead\n"
    )
    assert fail("why", ".").startswith("error: . is not a trace: it has no report.json\n")


# --- why ------------------------------------------------------------------------------------------


def test_why_tells_of_a_value(run: Run) -> None:
    lines = run("why", "fork.rw", "b").splitlines()
    assert lines[0] == "%b = aten.exp.default (fork.py:3) runs in our kernel of %f"
    assert lines[1] == "  k0_add_exp_sin_mul also computes %a, %c, %d, %f"
    assert re.match(r"  predicted \S+ us \(.* to .*\), at least \S+ us; launch bound: ", lines[2])
    assert lines[3:] == ["  fuse           %b: joins %a, saving a read of 512 B"]


def test_why_tells_what_became_of_a_value(run: Run) -> None:
    assert run("why", "fork.rw", "%e").startswith(
        "%e = aten.mul.Tensor (fork.py:4) runs in our kernel of %f\n"
    )
    assert run("why", "fork.rw", "f_buffer") == (
        "%f_buffer was made by memory\n  no pass had anything to say about it\n"
    )
    (dead, kept) = ("%u = aten.cos.default(%a) : f32[8, 16]\n  ", "%b = aten.exp")
    Path("dead.rw").write_text(TEXT.replace(kept, dead + kept))
    assert run("why", "dead.rw", "u") == (
        "%u = aten.cos.default is gone: nothing reads it after the rewrites\n"
        "  fold dropped it\n"
        "  no pass had anything to say about it\n"
    )


def test_why_tells_of_a_kernel(run: Run) -> None:
    lines = run("why", "fork.rw", "k0_add_exp_sin_mul").splitlines()
    assert lines[:2] == [
        "k0_add_exp_sin_mul computes %a, %b, %c, %d, %f (fork.py:2, fork.py:3, fork.py:4)",
        "  it runs once: %f",
    ]
    assert [line.partition(": ")[0].split()[1:] for line in lines[3:]] == [
        ["%b,", "%c"],
        ["%d"],
        ["%f"],
    ]
    found = json.loads(run("why", "fork.rw", "k0_add_exp_sin_mul", "--json"))
    assert [row["name"] for row in found["kernels"]] == ["f"]
    assert found["subject"] == "k0_add_exp_sin_mul" and len(found["decisions"]) == 4


def test_why_tells_of_a_pass(run: Run) -> None:
    lines = run("why", "fork.rw", "fuse").splitlines()
    assert re.match(r"fuse took \S+ ms: 6 -> 2 nodes, 6 -> 2 calls, ", lines[0])
    assert lines[0].endswith("; 4 decisions, 1 refusal")
    assert {line.split()[0] for line in lines[1:]} == {"fuse"}
    runs = run("why", "fork.rw", "cse").splitlines()
    assert [line.split(":")[0].split()[0] for line in runs[:2]] == ["cse", "cse"]


def test_why_tells_where_the_peak_is(run: Run) -> None:
    """Of the kernel's result in the arena, and what the sort returns, which is not."""
    assert run("why", "fork.rw", "memory").splitlines()[1:5] == [
        "  the peak is 2.0 KiB, 512 B of it the arena, at %s (elsewhere.py:9)",
        "    1.0 KiB: %order",
        "    512 B: %f (fork.py:4)",
        "    512 B: %s (elsewhere.py:9)",
    ]


MANY = """\
rewright 1
graph many(%x: f32[8, 8], %w: f32[8, 8]) {
  %a = aten.mm.default(%x, %w) : f32[8, 8]
  %b = aten.mm.default(%a, %w) : f32[8, 8]
  %c = aten.mm.default(%b, %w) : f32[8, 8]
  %d = aten.mm.default(%c, %w) : f32[8, 8]
  %e = aten.relu.default(%d) : f32[8, 8]
  return %e
}
"""


def test_why_says_once_what_holds_for_many(run: Run) -> None:
    Path("many.rw").write_text(MANY)
    said = "aten.mm.default runs as a library call"
    lines = run("why", "many.rw", "--pass", "fuse").splitlines()
    assert lines == [f"  fuse           %a, %b, %c and 1 more: {said}"]
    lines = run("why", "many.rw", "--pass", "fuse", "--all").splitlines()
    assert lines == [f"  fuse           %{name}: {said}" for name in "abcd"]
    assert len(json.loads(run("why", "many.rw", "--pass", "fuse", "--json"))["decisions"]) == 4


def test_a_kernel_is_found_by_its_number(run: Run) -> None:
    assert run("why", "fork.rw", "k0") == run("why", "fork.rw", "k0_add_exp_sin_mul")
    shown = run("show", "fork.rw", "--kernels", "--node", "k0")
    assert " k0_add_exp_sin_mul(" in shown
    Path("many.rw").write_text(MANY)
    assert "  k0_relu computes nothing else\n" in run("why", "many.rw", "e")


def test_why_tells_what_was_measured(run: Run, trace: str) -> None:
    report = Path(trace) / "report.json"
    data = json.loads(report.read_text())
    for row in data["kernels"]:
        row["measured_seconds"] = 2 * row["predicted_seconds"]
    report.write_text(json.dumps(data))
    assert re.search(
        r"^  measured \S+ us, 2.00 times as predicted, \S+ times the least$",
        run("why", trace, "b"),
        re.M,
    )


def test_why_of_what_is_not_there(fail: Run) -> None:
    assert fail("why", "fork.rw", "fuze") == (
        "error: 'fuze' is no value, kernel or pass of fork; did you mean 'fuse'?\n"
    )
    assert "'k1' is no value, kernel or pass of fork" in fail("why", "fork.rw", "k1")
    assert fail("why", "fork.rw", "%ordr") == (
        "error: no value '%ordr' in graph fork; did you mean '%order'?\n"
    )
    assert fail("why", "fork.rw", "b", "--pass", "fuze").startswith(
        "error: no pass 'fuze' ran; did you mean 'fuse'?\n"
    )
