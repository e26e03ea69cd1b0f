"""What a bisection comes to, as data and as sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from rewright.bisect.broken import Broken, Data, Fault
from rewright.bisect.running import Subject
from rewright.bisect.within import Rewrite
from rewright.ir import Graph, Node
from rewright.passes import Pass

# A spec that is longer says more than anybody wants to read in a sentence.
_SHORT: Final = 60


def place_of(step: Pass) -> str:
    """What to call a pass that is to blame."""
    spec = str(step)
    return f"pass {spec if len(spec) <= _SHORT else step.name}"


def spelled(node: Node) -> str:
    """How a node is made, and where in the user's source."""
    return f"{node.op}{f' ({node.loc})' if node.loc else ''}"


@dataclass(frozen=True)
class Case:
    """The least graph found that is broken alone: `subject` does it, `data` shows it, and `broken`
    says so of any graph."""

    graph: Graph
    subject: Subject
    data: Data
    broken: Broken
    fault: Fault

    @property
    def steps(self) -> str:
        """The passes, without their options."""
        return ", ".join(step.name for step in self.subject.passes)


@dataclass(frozen=True)
class Finding:
    """What breaks a graph. `place` is what is to blame: `pass cse`, `kernel k3_gelu`, `the call
    sequence`; `node` the value that shows it first, `what` how it is made, `said` what the pass
    logged about it."""

    fault: Fault
    place: str
    rewrite: Rewrite | None = None
    node: str = ""
    what: str = ""
    said: str = ""
    case: Case | None = None

    def __str__(self) -> str:
        parts = [self.place]
        if self.rewrite is not None:
            parts.append(f"application {self.rewrite.of_rule} of rule {self.rewrite.rule}")
        if self.node:
            parts.append(f"node %{self.node}{f' = {self.what}' if self.what else ''}")
        return f"{', '.join(parts)}: {self.fault}"

    def as_json(self) -> dict[str, Any]:
        rewrite, verdict = self.rewrite, self.fault.verdict
        return {
            "found": True,
            "kind": self.fault.kind,
            "sentence": str(self),
            "place": self.place,
            "rule": None if rewrite is None else rewrite.rule,
            "application": None if rewrite is None else rewrite.number,
            "applications": None if rewrite is None else rewrite.count,
            "application_of_rule": None if rewrite is None else rewrite.of_rule,
            "node": self.node or None,
            "op": self.what or None,
            "decision": self.said or None,
            "error": None if verdict is None else verdict.error,
            "allowed": None if verdict is None else verdict.allowed,
            "nodes": None if self.case is None else len(self.case.graph.nodes),
            "passes": None if self.case is None else str(self.case.subject),
        }


@dataclass(frozen=True)
class Healthy:
    """Nothing was found; what was looked at."""

    checked: tuple[str, ...]
    sentence: str = "nothing is broken"

    def __str__(self) -> str:
        return "\n".join((self.sentence, *(f"  {line}" for line in self.checked)))

    def as_json(self) -> dict[str, Any]:
        return {"found": False, "sentence": self.sentence, "checked": list(self.checked)}
