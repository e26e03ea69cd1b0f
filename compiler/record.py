"""The record of a compile: its report, the graph after every pass, and what was written for it.

On disk a folder: `report.json` (which names the files of the graphs), a `.rw` file a stage,
`kernels.cpp` and `calls.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rewright.ir import ArtefactError, Graph, ImportFailure, Step, TextError
from rewright.ir.text_files import load_text, read_text, save_text
from rewright.report import FORMAT, VERSION, Report
from rewright.report_json import from_json

if TYPE_CHECKING:
    from rewright.driver import Plan, Program

REPORT: Final = "report.json"
KERNELS: Final = "kernels.cpp"
CALLS: Final = "calls.py"
MANIFEST: Final = "rewright.json"  # of an artefact, which holds a report too


@dataclass(frozen=True)
class Record:
    """`stages` are ("import", the graph as it came), then each pass and the graph that it left;
    `kernel_source` is empty when no kernel is ours."""

    report: Report
    stages: tuple[tuple[str, Graph], ...]
    kernel_source: str
    calls: str

    @property
    def source(self) -> Graph:
        return self.stages[0][1]

    @property
    def graph(self) -> Graph:
        """The schedule that runs."""
        return self.stages[-1][1]


def record_of(made: Plan | Program) -> Record:
    """The record of a compile; of a program also what building it took."""
    from rewright.driver import Program

    plan = made.plan if isinstance(made, Program) else made
    kept = ((s.spec.split("{")[0], s.snapshot) for s in made.compile.stages)
    stages = (("import", made.compile.source), *((n, g) for n, g in kept if g is not None))
    return Record(made.report, stages, plan.kernel_source, plan.calls)


# --- on disk ------------------------------------------------------------------------------------


def write(record: Record, folder: Path) -> Path:
    """Into a folder that is there. Raises ArtefactError."""
    try:
        for row, (_, graph) in zip(record.report.passes, record.stages, strict=True):
            save_text(graph, folder / row.file)
        if record.kernel_source:
            (folder / KERNELS).write_text(record.kernel_source, encoding="utf-8")
        (folder / CALLS).write_text(record.calls, encoding="utf-8")
        report = json.dumps(record.report.as_json(), indent=1)
        (folder / REPORT).write_text(report + "\n", encoding="utf-8")
    except OSError as error:
        raise ArtefactError(f"cannot write {folder}: {error.strerror or error}") from None
    return folder


def read(folder: Path) -> Record:
    """What `write` left there. Raises ArtefactError for what is no trace, of another version, or
    damaged."""
    report = _report(folder)
    try:
        stages = tuple(_stages(report, folder))
        kernels = folder / KERNELS
        source = read_text(kernels) if kernels.exists() else ""
        calls = read_text(folder / CALLS)
    except (ImportFailure, TextError) as error:
        raise _damaged(folder, str(error)) from None
    if not stages:
        raise _damaged(folder, "its report names no graph")
    return Record(report, stages, source, calls)


def _report(folder: Path) -> Report:
    path = folder / REPORT
    if (folder / MANIFEST).is_file():
        raise _no_trace(folder, "it is an artefact")
    if not path.is_file():
        raise _no_trace(folder, f"it has no {REPORT}")
    try:
        data: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise _damaged(folder, f"{REPORT} is no JSON: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise _no_trace(folder, f"its {REPORT} does not say that it is of format {FORMAT}")
    if data.get("version") != VERSION:
        raise ArtefactError(
            f"{folder} is a trace of version {data.get('version')}; this Rewright reads version "
            f"{VERSION}",
            help=f"read it with rewright {data.get('rewright', 'of that version')}, or write it "
            "again",
        )
    try:
        found = from_json(data, Report)
    except ValueError as error:
        raise _damaged(folder, f"in {REPORT} {error}") from None
    assert isinstance(found, Report)
    return found


def _stages(report: Report, folder: Path) -> Iterator[tuple[str, Graph]]:
    """Each graph with the names that it had before; most passes leave the text that was there."""
    known: dict[str, Graph] = {}
    steps: tuple[Step, ...] = ()
    for row in report.passes:
        path = folder / row.file
        if path.parent != folder:
            raise _damaged(folder, f"its report names a file elsewhere: {row.file}")
        text = read_text(path)
        if text not in known:
            known[text] = load_text(path)
        if row.name != "import":
            steps = (*steps, Step(row.spec, tuple(row.renamed.items()), row.seconds))
        yield row.name, dataclasses.replace(known[text], history=steps)


def _no_trace(folder: Path, why: str) -> ArtefactError:
    return ArtefactError(
        f"{folder} is not a trace: {why}",
        help="rewright optimize MODEL --trace DIR writes one into DIR, "
        "torch.compile's options={'trace': DIR} one for each graph",
    )


def _damaged(folder: Path, why: str) -> ArtefactError:
    return ArtefactError(f"{folder} is damaged: {why}", help="write the trace again")
