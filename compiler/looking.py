"""What commands that only look are given: a model, which is compiled, or a saved trace."""

from __future__ import annotations

from pathlib import Path

from rewright.ir import ArtefactError, CheckError, Graph, OptionError, did_you_mean
from rewright.record import REPORT, Record, read
from rewright.renames import composed, now

TRACES = "[0-9][0-9][0-9]-*"


def saved(path: Path) -> Record:
    """The trace in a folder, or in the only folder of a folder of traces. Raises ArtefactError."""
    inside = sorted(p for p in path.glob(TRACES) if (p / REPORT).is_file())
    if (path / REPORT).is_file() or not inside:
        return read(path)
    if len(inside) > 1:
        raise ArtefactError(
            f"{path} holds {len(inside)} traces",
            help=f"name one: {', '.join(str(p) for p in inside)}",
        )
    return read(inside[0])


def names_of_passes(record: Record) -> list[str]:
    """`import` and the passes that ran, each once."""
    return list(dict.fromkeys(name for name, _ in record.stages))


def known_pass(record: Record, name: str) -> str:
    """Raises OptionError with the nearest."""
    ran = names_of_passes(record)
    if name not in ran:
        raise OptionError(
            f"no pass '{name}' ran{did_you_mean(name, ran)}", help=f"ran: {', '.join(ran)}"
        )
    return name


def stage_after(record: Record, name: str | None) -> int:
    """The place of the graph after a pass, its last run; of the schedule for None."""
    if name is None:
        return len(record.stages) - 1
    known_pass(record, name)
    return max(i for i, (stage, _) in enumerate(record.stages) if stage == name)


def stage_before(record: Record, name: str) -> int:
    """The place of the graph before a pass, its first run. Raises OptionError."""
    known_pass(record, name)
    place = min(i for i, (stage, _) in enumerate(record.stages) if stage == name)
    if place == 0:
        raise OptionError("import is where the graph comes from, there is none before")
    return place - 1


def last_of_aten(record: Record) -> int:
    """The place of the last graph of ATen operators."""
    from rewright.passes import Pipeline

    specs = [row.spec for row in record.report.passes[1:]]
    steps = list(Pipeline.parse(",".join(specs))) if specs else []
    return max([0, *(i for i, step in enumerate(steps, 1) if step.gives == "aten")])


def known_value(record: Record, name: str) -> str:
    """The name of a value at any stage, or of one inside a kernel. Raises CheckError with the
    nearest in the graph as it came."""
    wanted = name.removeprefix("%")
    return wanted if is_value(record, wanted) else record.source.value(wanted).name


def is_value(record: Record, name: str) -> bool:
    """True for a name that a stage or a decision has."""
    subjects = (decision.subject for decision in record.report.decisions)
    return name in subjects or any(name in names_in(graph) for _, graph in record.stages)


def renames(record: Record, before: int, after: int) -> dict[str, tuple[str, ...]]:
    """What became of the names of one stage by another. Who went into a kernel is called like it
    from then on, and is there still: that is no new name."""
    there = names_in(record.stages[after][1])
    return composed(
        {old: new for old, new in row.renamed.items() if old not in there}
        for row in record.report.passes[before + 1 : after + 1]
    )


def names_in(graph: Graph) -> set[str]:
    found = {value.name for value in graph.values}
    for node in graph.nodes:
        for _, nested in node.graphs:
            found |= names_in(nested)
    return found


def name_after(record: Record, name: str, place: int) -> str:
    """What a value is called at a stage: what passes made of it, when they renamed it. Raises
    CheckError for one that is not there."""
    wanted, there = name.removeprefix("%"), names_in(record.stages[place][1])
    if wanted in there:
        return wanted
    became = now((wanted,), renames(record, 0, place))
    found = next((n for n in became if n in there), None)
    if found is not None:
        return found
    known_value(record, wanted)  # raises with the nearest
    stage, graph = record.stages[place]
    raise CheckError(f"%{wanted} is not in graph {graph.name} after {stage}")
