"""`rewright plan-memory`: what it prints, writes and draws, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from rewright.cli import main
from rewright.passes.memory.judge import judge
from rewright.passes.memory.problem import MemoryPlan, MemoryProblem
from rewright.traces import read_trace

DATA = Path(__file__).parent / "data" / "minimalloc"
TRACE = """\
id,lower,upper,size
a,0,3,100
b,1,4,30
c,3,6,100
d,4,6,7
"""


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("trace.csv").write_text(TRACE)
    return "trace.csv"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan-memory", *arguments]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    before = {path: path.read_bytes() for path in Path.cwd().iterdir()}
    assert main(["plan-memory", *arguments]) == 2
    assert {path: path.read_bytes() for path in Path.cwd().iterdir()} == before
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def check_plan(path: Path, alignment: int, nbytes: int) -> None:
    with path.open(newline="") as lines:
        offsets = [int(row["offset"]) for row in csv.DictReader(lines)]
    problem = MemoryProblem(read_trace(path), alignment)
    assert judge(problem, MemoryPlan(tuple(offsets), nbytes)) is None


# --- what it gives ------------------------------------------------------------------------------


def test_the_smallest_arena_is_printed_with_its_bound(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, trace) == (
        "4 buffers of 237 bytes lie in an arena of 130 bytes\n"
        "none is smaller than 130 bytes: a gap of 0.00%\n"
    )


def test_a_plan_is_written_and_can_be_planned_again(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, trace, "-o", "plan.csv")
    plan = Path("plan.csv").read_text()
    kept = [line.rpartition(",")[0] for line in plan.splitlines()]
    assert kept == TRACE.splitlines() and plan.startswith("id,lower,upper,size,offset\n")
    check_plan(Path("plan.csv"), 1, 130)
    told(capsys, "plan.csv", "-o", "plan.csv")
    assert Path("plan.csv").read_text() == plan


def test_columns_may_stand_in_any_order(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    turned = [",".join(reversed(line.split(","))) for line in TRACE.splitlines()]
    Path("turned.csv").write_text("\r\n".join(turned) + "\r\n\r\n")
    assert read_trace(Path("turned.csv")) == read_trace(Path(trace))


def test_alignment_counts_for_offsets_and_sizes(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(told(capsys, trace, "--alignment", "64", "-o", "plan.csv", "--json"))
    assert found == {
        "buffers": 4,
        "bytes": 237,
        "alignment": 64,
        "arena": 192,
        "lower_bound": 192,
        "gap": 0.0,
    }
    check_plan(Path("plan.csv"), 64, 192)


@pytest.mark.cpu
def test_a_capacity_that_only_the_search_meets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.csv"
    hard = str(DATA / "K.1048576.csv")
    assert "1,048,576 bytes" in told(capsys, hard, "--capacity", "1MiB", "-o", str(plan))
    check_plan(plan, 1, 1 << 20)


def test_a_trace_without_buffers(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("none.csv").write_text("id,lower,upper,size\n")
    assert told(capsys, "none.csv", "--picture", "none.svg").startswith("0 buffers of 0 bytes")


@pytest.mark.parametrize(("name", "begin"), [("p.svg", b"<?xml"), ("p.png", b"\x89PNG")])
def test_a_picture_is_the_same_each_time(
    trace: str, name: str, begin: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, trace, "--picture", name)
    first = Path(name).read_bytes()
    told(capsys, trace, "--picture", name)
    assert first.startswith(begin) and Path(name).read_bytes() == first
    assert sorted(path.name for path in Path.cwd().iterdir()) == sorted([name, trace])


# --- what it refuses ----------------------------------------------------------------------------


def test_a_capacity_below_what_is_live(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("plan.csv").write_text("kept")
    assert refused(capsys, trace, "--capacity", "129", "-o", "plan.csv") == (
        "error: no arena of 129 bytes holds the buffers: 2 of 130 bytes are live at step 1\n"
        "  = help: the smallest found is --capacity 130\n"
    )


def test_a_capacity_that_a_search_rules_out(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    gap = "2 7 1, 4 7 1, 7 8 4, 0 7 1, 2 3 2, 2 4 3, 3 7 1, 3 8 1, 0 2 6, 4 8 2"
    rows = (f"{i},{','.join(block.split())}" for i, block in enumerate(gap.split(",")))
    Path("gap.csv").write_text("\n".join(["id,lower,upper,size", *rows]))
    assert refused(capsys, "gap.csv", "--capacity", "7") == (
        "error: no arena of 7 bytes holds the buffers, as a search of all plans shows\n"
        "  = help: the smallest found is --capacity 8\n"
    )


def test_a_capacity_for_which_there_was_no_time(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hard = str(DATA / "I.1048576.csv")
    said = refused(capsys, hard, "--capacity", "1MiB", "--time-limit", "0")
    assert said.startswith("error: no plan in 1,048,576 bytes was found in time, nor is it shown")
    assert "--capacity 1196032; a longer --time-limit may" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lower,upper,size\n", "a trace has the columns id, lower, upper, size; 'id' is missing"),
        ("id,lower,upper\n", "'size' is missing"),
        ("id,lower,uper,size\n", "a trace has no column 'uper'; did you mean 'upper'?"),
        ("id,lower,upper,size,size\n", "there are two columns 'size'"),
        (f"{TRACE}e,1\n", "4 columns were named, and this line has 2 cells"),
        (f"{TRACE}e,1,x,3\n", "'x' is not a whole number"),
        (f"{TRACE}e,1,2,{10**30}\n", "is not a whole number of up to 18 digits"),
        (f"{TRACE}e,3,3,8\n", "a buffer that comes at 3 is gone at 3"),
        (f"{TRACE}e,3,4,-8\n", "a buffer of -8 bytes"),
        (f"{TRACE}a,3,4,8\n", "there is a buffer 'a' already"),
    ],
)
def test_mistakes_in_a_trace_are_pointed_at(
    trace: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("wrong.csv").write_text(text)
    message = refused(capsys, "wrong.csv", "-o", "plan.csv")
    assert said in message.splitlines()[0]
    assert f"--> wrong.csv:{max(1, text.count(chr(10)))}:" in message


def test_the_caret_stands_under_the_cell(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong.csv").write_text("id,lower,upper,size\nlong name, 17, many,4\n")
    assert refused(capsys, "wrong.csv").splitlines()[-2:] == [
        "2 | long name, 17, many,4",
        "  |               ^^^^^",
    ]


def test_files_and_options_that_are_not_right(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, "none.csv") == "error: there is no file none.csv\n"
    assert "cannot write no/plan.csv" in refused(capsys, trace, "-o", "no/plan.csv")
    assert "pictures do not end with '.such'" in refused(capsys, trace, "--picture", "p.such")
    assert "'much' is not an amount" in refused(capsys, trace, "--capacity", "much")
    assert "a count from 1 on" in refused(capsys, trace, "--alignment", "0")
    assert "seconds, such as 30" in refused(capsys, trace, "--time-limit", "-1")
    Path("huge.csv").write_text(
        "id,lower,upper,size\n" + "".join(f"{i},0,1,{10**17}\n" for i in range(50))
    )
    assert "bytes and more" in refused(capsys, "huge.csv")
