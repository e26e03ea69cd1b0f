"""The command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from rewright.cli import main
from rewright.passes import DEFAULT
from zoo import tiny_mlp

pytestmark = pytest.mark.cpu

TEXT = """\
rewright 1
graph softplus(%x: f32[B0, 8], %bias: f32[8]) where B0 in [1, 64] hint 4 {
  %a = aten.add.Tensor(%x, %bias) : f32[B0, 8] @ model.py:7
  %b = aten.exp.default(%a) : f32[B0, 8] @ model.py:8
  %c = aten.log1p.default(%b) : f32[B0, 8] @ model.py:8
  %d, %order = aten.sort.default(%c) : f32[B0, 8], i64[B0, 8] @ model.py:9
  return %d
}
"""
SHAPES = """\
rewright 1

# The sizes in the middle differ.
graph product(%x: f32[4, 5], %y: f32[6, 7]) {
  %z = aten.mm.default(%x, %y) : f32[4, 7]
  return %z
}
"""
FACTORY = """\
import torch

def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.GELU()), (torch.randn(3, 6),)

def nothing():
    return 7

class Branching(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

def branching():
    return Branching(), (torch.ones(2),)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models to work on, good and bad."""
    made = tmp_path_factory.mktemp("models")
    module, inputs = tiny_mlp()
    torch.export.save(torch.export.export(module, inputs), made / "mlp.pt2")
    whole = (made / "mlp.pt2").read_bytes()
    (made / "cut.pt2").write_bytes(whole[: len(whole) // 2])
    (made / "softplus.rw").write_text(TEXT)
    (made / "cut.rw").write_text(TEXT[: TEXT.index("%a) :") + 2])
    (made / "unclosed.rw").write_text(TEXT.replace("%a) :", "%a :"))
    (made / "unknown_op.rw").write_text(TEXT.replace("aten.exp.", "aten.expp."))
    (made / "shapes.rw").write_text(SHAPES)
    (made / "empty").mkdir()
    (made / "factories.py").write_text(FACTORY)
    return made


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)


Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that succeeds: what it prints."""

    def call(*arguments: str, code: int = 0) -> str:
        ended = main(list(arguments))
        printed = capsys.readouterr()
        assert (ended, printed.err) == (code, "")
        return printed.out

    return call


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str], folder: Path) -> Run:
    """Run a command that is refused: its message. Nothing is printed or written."""

    def call(*arguments: str) -> str:
        before = contents(folder)
        assert main(list(arguments)) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert contents(folder) == before
        return printed.err

    return call


def contents(folder: Path) -> dict[str, bytes | None]:
    files = (p for p in folder.rglob("*") if "__pycache__" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in files}


# --- optimize -----------------------------------------------------------------------------------


def test_optimize_prints_the_pass_table(run: Run) -> None:
    lines = run("optimize", "mlp.pt2").splitlines()
    assert lines[0].split() == ["pass", "nodes", "calls", "peak", "estimated"]
    assert [line.split()[0] for line in lines[1:-1]] == ["import", *(p.name for p in DEFAULT)]
    assert lines[-1] == "nodes: 3 aten, 4 ours, 3 view"


def test_optimize_prints_json(run: Run) -> None:
    report = json.loads(run("optimize", "mlp.pt2", "--json"))
    assert report["graph"] == "mlp"
    assert [row["spec"] for row in report["passes"]][-2:] == ["fuse", "memory"]
    runs = {row["name"]: (row["op"], row["runs"]) for row in report["nodes"]}
    assert runs["gelu"] == ("aten.gelu.default", "ours")
    assert runs["addmm"] == ("aten.addmm.default", "aten")


def test_optimize_writes_an_artefact_twice(run: Run, tmp_path: Path) -> None:
    build = tmp_path / "deep" / "build"
    for _ in range(2):
        assert run("optimize", "mlp.pt2", "-o", str(build)).endswith(f"wrote {build}\n")
    names = ["README.md", "build.sh", "graph.rw", "include", "kernels.cpp", "kernels.so"]
    names += ["loading.py", "memory.csv", "program.py", "report.json"]
    names += ["rewright.json", "runtime.py", "tensors.safetensors"]
    assert sorted(p.name for p in build.iterdir()) == names
    assert [p.name for p in build.parent.iterdir()] == ["build"]


def test_optimize_takes_options(run: Run) -> None:
    text = run("optimize", "mlp.pt2", "--passes", "canonicalize,fuse{max-ops=0},memory")
    assert "fuse{max-ops=0}" in text
    assert text.splitlines()[-1] == "nodes: 7 aten, 3 view"


def test_trace_keeps_every_stage(run: Run, tmp_path: Path) -> None:
    run("optimize", "softplus.rw", "--trace", str(tmp_path))
    run("optimize", "softplus.rw", "--trace", str(tmp_path))
    first, second = sorted(tmp_path.iterdir())
    assert (first.name, second.name) == ("000-softplus", "001-softplus")
    stages = ["import", *(p.name for p in DEFAULT)]
    files = [f"{i:02}-{stage}.rw" for i, stage in enumerate(stages)]
    files += ["calls.py", "kernels.cpp", "report.json"]
    assert sorted(p.name for p in first.iterdir()) == files
    assert (first / "00-import.rw").read_text() == TEXT.replace("\n}\n", "\n}\n")
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files[:-1])


def test_a_graph_is_moved_to_the_gpu_that_is_asked_for(run: Run) -> None:
    assert "rw.fused" in run("show", "softplus.rw", "--target", "cuda:h200")
    assert "on cuda:0" in run("show", "softplus.rw", "--target", "cuda:h200", "--node", "%d")
    said = run("show", "softplus.rw", "--target", "cuda:h200", "--kernels")
    assert said == "// kernels for cuda:h200 lie in the folder that optimize -o writes\n"
    assert "joins %b" in run("why", "softplus.rw", "--target", "cuda:h200")


# --- run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mlp.pt2", "softplus.rw", "factories:model"])
def test_run_compares_with_float64(run: Run, model: str) -> None:
    lines = run("run", model, "--check", "--rounds", "2").splitlines()
    assert lines[0].startswith("time ")
    assert ("eager" in lines[0]) == (not model.endswith(".rw"))
    assert lines[1].endswith("within twice that plus 1e-6")


def test_run_takes_an_artefact(run: Run, tmp_path: Path) -> None:
    build = str(tmp_path / "build")
    run("optimize", "softplus.rw", "-o", build)
    found = json.loads(run("run", build, "--check", "--rounds", "2", "--json"))
    assert found["holds"] is True
    assert 0 < found["seconds"] < 1
    assert found["errors"]["ours"] <= 2 * found["errors"]["eager"] + 1e-6


class Quiet:
    """A machine on which nothing disturbs."""

    def __init__(self, target: object) -> None:
        """Nothing is measured beforehand."""

    def slowness(self) -> dict[str, float]:
        return {"stream": 1.0, "product": 1.0}


def test_calls_are_timed_on_request(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewright.calibrate.bench.Bench", Quiet)
    lines = run("run", "mlp.pt2", "--profile", "--rounds", "2").splitlines()
    assert lines[1].split() == ["slowest", "calls", "measured", "predicted", "share"]
    assert {line.split()[0].split("_")[0] for line in lines[2:]} >= {"aten.addmm.default", "k0"}
    found = json.loads(run("run", "mlp.pt2", "--profile", "--rounds", "2", "--json"))
    assert all(0 < row["measured_seconds"] < 1 for row in found["kernels"])
    build, trace = tmp_path / "build", tmp_path / "trace"
    run("optimize", "mlp.pt2", "--profile", "-o", str(build), "--trace", str(trace))
    for report in (build / "report.json", trace / "000-mlp" / "report.json"):
        assert json.loads(report.read_text())["measured_seconds"] > 0
    (only,) = trace.iterdir()
    assert "  measured " in run("why", str(only), "gelu")


def test_what_cannot_be_timed(run: Run, fail: Run, tmp_path: Path) -> None:
    run("optimize", "softplus.rw", "-o", str(tmp_path / "build"))
    assert fail("run", str(tmp_path / "build"), "--profile").endswith(
        "build is an artefact, which does not know what its calls should take\n"
        "  = help: name the model that it was made of\n"
    )
    assert fail("optimize", "softplus.rw", "--profile", "--target", "cpu:generic") == (
        "error: [profile] calls are timed on this machine, and the program is for cpu:generic\n"
        "  = help: leave out --target\n"
    )
    assert fail("optimize", "softplus.rw", "--profile", "-o", "x.mlir") == (
        "error: a graph that is written as MLIR is not run, so nothing is timed\n"
    )


def test_run_ends_with_1_when_the_check_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the kernel writes one number, and that is wrong."""
    from rewright.codegen.cpp import Library

    def wrong(pointers: Sequence[int], sizes: object) -> None:
        ctypes.c_float.from_address(pointers[2]).value = 1e6

    monkeypatch.setattr(Library, "function", lambda self, name: wrong)
    lines = run("run", "softplus.rw", "--check", "--rounds", "1", code=1).splitlines()
    assert lines[1].endswith(": OVER twice that plus 1e-6")


# --- show ---------------------------------------------------------------------------------------


def test_show_prints_the_graph_after_a_pass(run: Run) -> None:
    assert run("show", "softplus.rw", "--after", "import") == TEXT
    assert run("show", "softplus.rw", "--after", "fuse") == (
        "rewright 1\n"
        "graph softplus(%x: f32[B0, 8], %bias: f32[8]) where B0 in [1, 64] hint 4 {\n"
        "  %c = rw.fused(%x, %bias) body(%x: f32[B0, 8], %bias: f32[8]) {\n"
        "    %a = aten.add.Tensor(%x, %bias) : f32[B0, 8] @ model.py:7\n"
        "    %b = aten.exp.default(%a) : f32[B0, 8] @ model.py:8\n"
        "    %c = aten.log1p.default(%b) : f32[B0, 8] @ model.py:8\n"
        "    return %c\n"
        "  } : f32[B0, 8] @ model.py:8\n"
        "  %d, %order = aten.sort.default(%c) : f32[B0, 8], i64[B0, 8] @ model.py:9\n"
        "  return %d\n"
        "}\n"
    )


def test_show_prints_the_schedule(run: Run) -> None:
    assert "%c_buffer = rw.alloc(offset=0) : f32[B0, 8]" in run("show", "softplus.rw")


def test_show_prints_one_node(run: Run) -> None:
    assert run("show", "softplus.rw", "--after", "dce", "--node", "%b") == (
        "rewright 1\n"
        "graph softplus(%a: f32[B0, 8]) where B0 in [1, 64] hint 4 {\n"
        "  %b = aten.exp.default(%a) : f32[B0, 8] @ model.py:8\n"
        "  return %b\n"
        "}\n"
    )


def test_show_prints_kernels_and_calls(run: Run) -> None:
    kernels = run("show", "softplus.rw", "--kernels")
    assert kernels.startswith("// 1 kernels of graph softplus.\n")
    assert "KERNEL void k0_add_exp_log1p(void* const* p, const i64* s) {" in kernels
    calls = run("show", "softplus.rw", "--calls")
    assert "    k0_add_exp_log1p(p, frame.sizes)\n" in calls
    compile(calls, "calls", "exec")


def test_show_prints_a_script_that_runs(run: Run) -> None:
    script = run("show", "softplus.rw", "--python", "--after", "import")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout


def test_show_prints_json(run: Run) -> None:
    shown = json.loads(run("show", "softplus.rw", "--after", "import", "--json"))
    assert shown == {"graph": "softplus", "text": TEXT.rstrip("\n")}


# --- why ----------------------------------------------------------------------------------------


def test_why_explains_a_node(run: Run) -> None:
    lines = run("why", "softplus.rw", "%b").splitlines()
    assert lines[0] == "%b = aten.exp.default (model.py:8) runs in our kernel of %c"
    assert lines[-1] == "  fuse           %b: joins %a, saving a read of 128 B"
    lines = run("why", "softplus.rw", "d").splitlines()
    assert lines[0] == "%d = aten.sort.default (model.py:9) runs as an ATen call"
    assert lines[-1] == "  fuse           %d: aten.sort.default has no kernel of ours"
    assert (
        run("why", "softplus.rw", "x") == "%x is an input\n  no pass had anything to say about it\n"
    )


def test_why_lists_the_decisions_of_a_pass(run: Run) -> None:
    assert [
        line.split()[0] for line in run("why", "softplus.rw", "--pass", "fuse").splitlines()
    ] == ["fuse"] * 3
    decisions = json.loads(run("why", "softplus.rw", "--pass", "memory", "--json"))
    assert decisions["decisions"] == [
        {
            "pass": "memory",
            "subject": "softplus",
            "kind": "decided",
            "sentence": "1 values of 128 bytes share an arena of 128 bytes, "
            "0.0% over the largest live set",
        }
    ]


# --- mistakes -----------------------------------------------------------------------------------


def test_files_that_are_missing_or_cut_short(fail: Run) -> None:
    assert fail("optimize", "none.pt2") == "error: none.pt2: there is no such file\n"
    assert fail("optimize", "none.rw") == "error: there is no file none.rw\n"
    assert fail("show", "cut.pt2") == (
        "error: cut.pt2 is truncated or no .pt2 file: File is not a zip file\n"
        "  = help: write it with torch.export.save(program, path), by a torch of about this "
        "version\n"
    )
    assert fail("show", "cut.rw") == (
        "error: expected ')' or ',', found the end of the text\n"
        " --> cut.rw:4:27\n"
        "  |\n"
        "4 |   %b = aten.exp.default(%a\n"
        "  |                           ^\n"
        "  = help: '(' at 4:24 is not closed\n"
    )
    assert fail("run", "empty") == "error: empty is not an artefact: it has no rewright.json\n"


def test_mistakes_in_a_text(fail: Run) -> None:
    assert fail("optimize", "unclosed.rw") == (
        "error: expected ')' or ',', found ':'\n"
        " --> unclosed.rw:4:28\n"
        "  |\n"
        "4 |   %b = aten.exp.default(%a : f32[B0, 8] @ model.py:8\n"
        "  |                            ^\n"
        "  = help: '(' at 4:24 is not closed\n"
    )
    assert fail("why", "unknown_op.rw") == (
        "error: unknown operator 'aten.expp.default'; did you mean 'aten.exp.default'?\n"
        " --> unknown_op.rw:4:8\n"
        "  |\n"
        "4 |   %b = aten.expp.default(%a) : f32[B0, 8] @ model.py:8\n"
        "  |        ^^^^^^^^^^^^^^^^^\n"
    )


def test_shapes_that_do_not_fit(fail: Run) -> None:
    assert fail("run", "shapes.rw") == (
        "error: the arguments of aten.mm.default do not fit: a and b must have same reduction dim, "
        "but got [4, 5] X [6, 7].\n"
        " --> shapes.rw:5:8\n"
        "  |\n"
        "5 |   %z = aten.mm.default(%x, %y) : f32[4, 7]\n"
        "  |        ^^^^^^^^^^^^^^^\n"
    )


def test_unknown_options(fail: Run) -> None:
    assert fail("optimize", "mlp.pt2", "--fallbak", "error") == (
        "error: optimize takes no argument '--fallbak'; did you mean '--fallback'?\n"
        "  = help: see rewright optimize --help\n"
    )
    assert fail("optimize", "mlp.pt2", "--fallback", "never") == (
        "error: [options] fallback is 'aten' or 'error', not 'never'\n"
    )
    assert fail("optimise", "mlp.pt2") == (
        "error: no command 'optimise'; did you mean 'optimize'?\n  = help: see rewright --help\n"
    )
    assert fail("run", "mlp.pt2", "--rounds", "0") == (
        "error: argument --rounds: a count from 1 on, not '0'\n  = help: see rewright run --help\n"
    )


def test_unknown_passes_and_values(fail: Run) -> None:
    # Other tests may have made passes of their own.
    assert fail("optimize", "softplus.rw", "--passes", "fold,fuze,memory").startswith(
        "error: no pass named 'fuze'; did you mean 'fuse'?\n"
        "  = help: passes are attention, attention-pairs, canonicalize, channels-last, chunk-loss, "
        "convolutions, cse, dce, decompose, epilogues, flash-attention, flash-attention-pairs, "
        "fold, freeze, fuse, libraries, lower-attention, memory, merge-products, move, quantize, "
        "remat, rules, window"
    )
    assert fail("optimize", "softplus.rw", "--passes", "fuse{max-opps=3},memory") == (
        "error: [fuse] no option 'max-opps'; did you mean 'max-ops'?\n"
        "  = help: it takes max-ops, max-reads, horizontal, numerics\n"
    )
    assert fail("optimize", "softplus.rw", "--passes", "canonicalize,dce") == (
        "error: [passes] 'canonicalize,dce' does not lead from the aten level to the kernel level\n"
        "  = help: end it with fuse,memory; fuse{max-ops=0} makes no kernels\n"
    )
    assert fail("show", "softplus.rw", "--after", "fus") == (
        "error: no pass 'fus' ran; did you mean 'fuse'?\n"
        "  = help: ran: import, decompose, channels-last, canonicalize, fold, cse, rules, "
        "attention, flash-attention, lower-attention, libraries, epilogues, dce, fuse, "
        "memory\n"
    )
    assert fail("why", "softplus.rw", "%bb") == (
        "error: no value '%bb' in graph softplus; did you mean '%b'?\n"
    )
    assert fail("show", "softplus.rw", "--target", "cuda:h20").startswith(
        "error: [target] no target 'cuda:h20'; did you mean 'cuda:h200'?\n"
    )


def test_fallback_error(fail: Run) -> None:
    assert fail("optimize", "softplus.rw", "--fallback", "error") == (
        "error: [fallback] 1 node has no kernel of ours: aten.sort.default\n"
        "  = help: fallback='aten' runs them as ATen\n"
    )


def test_folders_that_are_not_ours(fail: Run, folder: Path) -> None:
    assert fail("optimize", "mlp.pt2", "-o", str(folder)) == (
        f"error: {folder} exists and was not written by rewright\n"
        "  = help: give -o another folder, or empty this one\n"
    )
    assert fail("optimize", "mlp.pt2", "-o", "softplus.rw") == (
        "error: softplus.rw is a file, not a folder\n  = help: give -o another name\n"
    )
    assert fail("optimize", "mlp.pt2", "-o", "softplus.rw/build") == (
        f"error: {folder / 'softplus.rw'} is a file, not a folder\n  = help: give -o another name\n"
    )


def test_factories_that_do_not_work(fail: Run) -> None:
    assert fail("optimize", "no_such_module:model") == (
        "error: cannot import no_such_module: No module named 'no_such_module'\n"
    )
    assert fail("optimize", "factories:modell") == (
        "error: factories has no function 'modell'; did you mean 'model'?\n"
    )
    assert fail("optimize", "factories:nothing") == (
        "error: factories:nothing gave int, not a pair of a module and its inputs\n"
        "  = help: return (module, (input, ...))\n"
    )
    assert fail("optimize", "factories:branching").startswith(
        "error: Branching cannot be exported: "
    )


def test_the_command_is_installed() -> None:
    """In a process of its own: the exit code, and a message without a traceback."""
    command = [sys.executable, "-m", "rewright.cli", "show", "none.rw"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no file none.rw\n"


def test_help_begins_with_what_is_the_commands_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["why", "--help"])
    told = capsys.readouterr().out.partition("\noptions:\n")[2]
    assert told.index("--pass PASS") < told.index("\noptions of a compile:\n")
    assert told.index("\noptions of a compile:\n") < told.index("--fallback aten|error")


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    from rewright.options import option_docs

    with pytest.raises(SystemExit) as ended:
        main(["optimize", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name, _, _ in option_docs())
