"""A failure as a case file, ready to be committed."""

from __future__ import annotations

import textwrap
from pathlib import Path

from fuzz.check import first_wrong_pipeline
from fuzz.isolated import isolated
from fuzz.search import Failure
from rewright.ir import Graph
from rewright.ir.parse import parse
from rewright.ir.show import show
from rewright.passes import DEFAULT, Pipeline

LAW = "Compiled, a graph computes what it says."
CASES = Path(__file__).parent / "cases"


def case_text(failure: Failure) -> str:
    """The failure as text: one for `tests/cases` when a pass is to blame, else for `CASES`."""
    wrong = _wrong_pipeline(failure.graph)
    lines = [f"# {LAW}", f"# ---- {wrong or Pipeline(DEFAULT)}"]
    said = " ".join(failure.trouble.what.split())[:600]
    lines += textwrap.wrap(said, 98, initial_indent="# ", subsequent_indent="# ")
    lines.append(f"# Found by `python -m fuzz --seed {failure.seed}`, on `inputs_for` this graph.")
    lines.append(show(failure.graph, header=False))
    if wrong is not None:
        lines.append("# ---- gives the same")
    return "\n".join([*lines, ""])


def read_graph(path: Path) -> Graph:
    """The graph of a case file, or of any `.rw` file."""
    return parse(path.read_text().partition("# ---- gives")[0], file=path.name)


def _wrong_pipeline(graph: Graph) -> str | None:
    """Found out in a process of its own: the graph has just crashed or broken something."""

    def look(graph: Graph) -> None:
        found = first_wrong_pipeline(graph)
        if found is not None:
            raise _Found(found)

    trouble = isolated(look, graph)
    if trouble is None or not trouble.kind.startswith("_Found"):
        return None
    return trouble.what.partition(": ")[2]


class _Found(Exception):
    """The passes up to a wrong one."""
