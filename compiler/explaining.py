"""`rewright why`: what was decided about a value, a kernel or a pass, and what it costs, in
sentences."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rewright.costmodel import show_seconds
from rewright.ir import CheckError, did_you_mean
from rewright.looking import is_value, known_value, names_of_passes
from rewright.passes import Decision, PlanMemory
from rewright.record import Record
from rewright.report import KernelRow, PassRow, Report
from rewright.report_json import to_json
from rewright.tables import bytes_text, seconds_text, spec_text

# Names that a sentence lists.
LISTED: Final = 12
# Values that a line names of those that one thing was said of.
SUBJECTS: Final = 3

_PLACES: Final = {
    "ours": "runs in our kernel of %{kernel}",
    "aten": "runs as an ATen call",
    "view": "is a view: no data moves",
    "constant": "was computed at compile time",
    "gone": "is gone: nothing reads it after the rewrites",
}


@dataclass(frozen=True)
class Explanation:
    """`says` are sentences about the subject, `kernels` the calls that they are about."""

    subject: str
    says: tuple[str, ...]
    kernels: tuple[KernelRow, ...]
    decisions: tuple[Decision, ...]

    def as_json(self) -> dict[str, Any]:
        found = to_json(self)
        assert isinstance(found, dict)
        return found

    def text(self, *, every: bool = False) -> str:
        """What a pass said of many values alike is one line, unless `every` decision is wanted."""
        alike: dict[tuple[object, ...], list[Decision]] = {}
        for place, decision in enumerate(self.decisions):
            same = decision.pass_, decision.kind, decision.sentence, place if every else None
            alike.setdefault(same, []).append(decision)
        lines = [*self.says, *map(_line, alike.values())]
        return "\n".join(lines if alike else [*lines, _NOTHING])

    def __str__(self) -> str:
        return self.text()


_NOTHING: Final = "  no pass had anything to say about it"


def _line(alike: Sequence[Decision]) -> str:
    subjects = _listed([f"%{decision.subject}" for decision in alike], SUBJECTS)
    return f"  {alike[0].pass_:<14} {subjects}: {alike[0].sentence}"


def explain(record: Record, subject: str | None, of_pass: str | None = None) -> Explanation:
    """What there is to say of a value, a kernel's function or a pass; of all for None. `of_pass`
    leaves only that pass's decisions. Raises CheckError for a name that there is not."""
    functions = {row.function for row in record.report.kernels if row.function}
    passes = names_of_passes(record)[1:]
    if subject is None:
        found = Explanation("", (), (), record.report.decisions)
    elif (function := function_called(record, subject)) is not None:
        found = _of_kernel(record, function)
    elif subject in passes:
        found = _of_pass(record, subject)
    elif subject.startswith("%") or is_value(record, subject):
        found = _of_value(record, known_value(record, subject))
    else:
        near = did_you_mean(subject, (*functions, *passes, *(v.name for v in record.source.values)))
        raise CheckError(f"'{subject}' is no value, kernel or pass of {record.source.name}{near}")
    kept = (d for d in found.decisions if of_pass in (None, d.pass_))
    return Explanation(found.subject, found.says, found.kernels, tuple(kept))


# --- a pass -------------------------------------------------------------------------------------


def _of_pass(record: Record, name: str) -> Explanation:
    rows = record.report.passes
    runs = [(a, b) for a, b in itertools.pairwise(rows) if b.name == name]
    decisions = tuple(d for d in record.report.decisions if d.pass_ == name)
    says = [_run(a, b) for a, b in runs]
    if name == PlanMemory.name and record.report.kernels:
        says += [f"  {line}" for line in _peak(record.report)]
    return Explanation(name, tuple(says), (), decisions)


def _peak(report: Report) -> Iterator[str]:
    """Where most is held, and what is alive there, the largest first."""
    memory = report.memory
    at = [row.name for row in report.kernels].index(memory.peak_at)
    alive = [b for b in report.buffers if b.first <= at <= b.last]
    alive.sort(key=lambda b: -b.nbytes)
    arena = f", {bytes_text(memory.arena_bytes)} of it the arena" if memory.arena_bytes else ""
    place = _placed(report, memory.peak_at)
    yield f"the peak is {bytes_text(memory.peak_bytes)}{arena}, at {place}"
    yield from (f"  {bytes_text(b.nbytes)}: {_placed(report, b.name)}" for b in alive[:LISTED])
    left = alive[LISTED:]
    if left:
        yield f"  {bytes_text(sum(b.nbytes for b in left))}: {len(left)} more"
    own = sum(b.nbytes for b in alive if not b.placed)
    rest = memory.peak_bytes - memory.arena_bytes - own  # within a budget, of the whole step
    if rest:
        yield f"  {bytes_text(rest)}: what the forward saved, and what calls work in"


def _placed(report: Report, name: str) -> str:
    """A value with its line of source."""
    loc = next((row.loc for row in report.nodes if row.name == name), "")
    return f"%{name} ({loc})" if loc else f"%{name}"


def _run(before: PassRow, after: PassRow) -> str:
    took = f"{spec_text(after.spec)} took {seconds_text(after.seconds)}"
    changes = [
        f"{a} -> {b} {what}"
        for what, a, b in (
            ("nodes", str(before.nodes), str(after.nodes)),
            ("calls", str(before.calls), str(after.calls)),
            ("at the peak", bytes_text(before.peak_bytes), bytes_text(after.peak_bytes)),
            (
                "estimated",
                seconds_text(before.estimated_seconds),
                seconds_text(after.estimated_seconds),
            ),
        )
        if a != b
    ]
    said = f"{_counted(after.decided, 'decision')}, {_counted(after.refused, 'refusal')}"
    return f"{took}: {', '.join(changes) or 'nothing changed'}; {said}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def function_called(record: Record, name: str) -> str | None:
    """The kernel of that name, or of that number: `k3` is `k3_mul_add`."""
    functions = [row.function for row in record.report.kernels if row.function]
    if name in functions or not _NUMBER.match(name):
        return name if name in functions else None
    return next((f for f in functions if f.startswith(f"{name}_")), None)


_NUMBER: Final = re.compile(r"k\d+$")


# --- a kernel -----------------------------------------------------------------------------------


def _of_kernel(record: Record, function: str) -> Explanation:
    rows = tuple(row for row in record.report.kernels if row.function == function)
    first = rows[0]
    places = f" ({_listed(first.locs)})" if first.locs else ""
    times = "once" if len(rows) == 1 else f"{len(rows)} times"
    says = [
        f"{function} computes {_listed([f'%{name}' for name in first.nodes])}{places}",
        f"  it runs {times}: {_listed([f'%{row.name}' for row in rows])}",
        *(f"  {sentence}" for sentence in _cost(rows)),
    ]
    inside = {name for row in rows for name in (*row.nodes, row.name)}
    decisions = tuple(d for d in record.report.decisions if d.subject in inside)
    return Explanation(function, tuple(says), rows, decisions)


def _cost(rows: Sequence[KernelRow]) -> Iterator[str]:
    """What calls of one kind take, and why."""
    predicted = sum(row.predicted_seconds for row in rows)
    low, high = sum(row.low_seconds for row in rows), sum(row.high_seconds for row in rows)
    floor = sum(row.floor_seconds for row in rows)
    among = "" if len(rows) == 1 else f" for all {len(rows)}"
    bound = "" if " bound: " in rows[0].who else f"{rows[0].bound} bound: "
    span = f"{show_seconds(low)} to {show_seconds(high)}"
    yield (
        f"predicted {show_seconds(predicted)} ({span}){among}, at least {show_seconds(floor)}; "
        f"{bound}{rows[0].who}"
    )
    measured = [row.measured_seconds for row in rows if row.measured_seconds is not None]
    if len(measured) == len(rows):
        took = sum(measured)
        over = f", {took / predicted:.2f} times as predicted" if predicted else ""
        above = f", {took / floor:.1f} times the least" if floor else ""
        yield f"measured {show_seconds(took)}{over}{above}"


# --- a value ------------------------------------------------------------------------------------


def _of_value(record: Record, name: str) -> Explanation:
    row = next((r for r in record.report.nodes if r.name == name), None)
    kernel = kernel_of(record, name if row is None else row.kernel)
    says = [_where(record, name)]
    if row is not None and row.runs == "gone":
        says += [f"  {sentence}" for sentence in _became(record, name)]
    if kernel is not None:
        others = [f"%{n}" for n in kernel.nodes if n != name]
        if kernel.function:
            also = f"also computes {_listed(others)}" if others else "computes nothing else"
            says.append(f"  {kernel.function} {also}")
        says += [f"  {sentence}" for sentence in _cost([kernel])]
    decisions = tuple(d for d in record.report.decisions if d.subject == name)
    return Explanation(name, tuple(says), () if kernel is None else (kernel,), decisions)


def kernel_of(record: Record, name: str) -> KernelRow | None:
    """The call that is called `name`, or computes it on the way."""
    rows = [row for row in record.report.kernels if name and name in (row.name, *row.nodes)]
    return next((row for row in rows if row.name == name), rows[0] if rows else None)


def _where(record: Record, name: str) -> str:
    row = next((r for r in record.report.nodes if r.name == name), None)
    if row is not None:
        at = f" ({row.loc})" if row.loc else ""
        return f"%{name} = {row.op}{at} {_PLACES[row.runs].format(kernel=row.kernel)}"
    if name in {i.value.name for i in record.source.inputs}:
        return f"%{name} is an input"
    if name == record.source.name:
        return f"{name} is the graph"
    return f"%{name} was made by {_maker(record, name) or 'a pass'}"


def _maker(record: Record, name: str) -> str:
    """The pass after which there is a value of that name."""
    for stage, graph in record.stages:
        inside = (v.name for n in graph.nodes for _, g in n.graphs for v in g.values)
        if name in {v.name for v in graph.values} or name in inside:
            return stage
    return ""


def _became(record: Record, name: str) -> Iterator[str]:
    """What each pass made of a value, as long as it was there."""
    now = [name]
    for row in record.report.passes:
        for old in [n for n in now if n in row.renamed]:
            new = row.renamed[old]
            now = [n for n in now if n != old] + list(new)
            yield (
                f"{row.name} made it {_listed([f'%{n}' for n in new])}"
                if new
                else f"{row.name} dropped it"
            )


def _listed(names: Sequence[str], most: int = LISTED) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
