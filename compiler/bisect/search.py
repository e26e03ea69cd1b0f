"""The search: the first stage that is broken, what its pass did there, and the least graph that
shows it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from rewright.bisect.broken import Breaks, Broken, Data, Fault, crashed, wrong
from rewright.bisect.finding import Case, Finding, Healthy, place_of, spelled
from rewright.bisect.judge import Reference, Results
from rewright.bisect.kernels import guilty_kernel
from rewright.bisect.replay import Replay, Say, replay
from rewright.bisect.running import Subject, crash_of, interpreted
from rewright.bisect.slow import slowest_pass
from rewright.bisect.smallest import smallest, start
from rewright.bisect.within import Change, change, crashing_rewrite, suspects, values_of
from rewright.ir import Graph, InputError
from rewright.ir.expand import expand
from rewright.options import Options
from rewright.passes import Fuse, Pass, Rules

SECONDS: Final = 120.0
"""How long to look for a smaller graph."""


def bisect(
    graph: Graph,
    options: Options,
    inputs: Sequence[Any],
    *,
    how: str = "numbers",
    samples: tuple[Sequence[Any], ...] = (),
    seconds: float = SECONDS,
    say: Say = lambda said: None,
    apart: bool = True,
) -> Finding | Healthy:
    """What breaks `graph` when it is compiled with `options`, on `inputs`.

    `how`: "numbers" looks for wrong results, and for crashes on the way; "crash" for those alone;
    "slow" and "predicted" for a pass that costs time, as measured and as the cost model says. A
    smaller graph is looked for at most about `seconds`. What may crash runs `apart`, in processes
    of its own. Raises OptionError, BudgetError and TextError.
    """
    played = replay(graph, options, samples, say, apart=apart)
    search = _Search(played, inputs, how, seconds, say)
    if played.raised is not None:
        return search.crash_in_pass(played.raised)
    if how in ("slow", "predicted"):
        return slowest_pass(played, inputs, seconds, say, measured=how == "slow")
    return search.run()


@dataclass(frozen=True)
class _Search:
    replay: Replay
    inputs: Sequence[Any]
    how: str
    seconds: float
    say: Say

    def run(self) -> Finding | Healthy:
        self.say("running the graph in float64, and by ATen")
        reference = self._reference()
        self.say("building and running the program")
        fault = self._fault(self._executed, reference)
        if fault is None:
            return self._healthy(reference)
        self.say("running the graph after the last pass")
        if self._fault(lambda: self._interpreted(self.replay.final), reference) is None:
            return guilty_kernel(self.replay, self.inputs, fault, self.seconds, self.say)
        return self._in_pass(self._first_broken(reference), reference)

    def _reference(self) -> Reference:
        """Raises InputError when the graph as it came does not run."""
        budget = self.replay.setting.options.error_budget
        try:
            return Reference.of(self.replay.source, self.inputs, budget)
        except Exception as error:
            raise InputError(
                f"graph {self.replay.source.name} itself does not run: {crash_of(error)}",
                who="bisect",
                help="give a module with example inputs: for a .rw file they are random",
            ) from error

    def _executed(self) -> Results:
        source, final = self.replay.source, self.replay.final
        return self.replay.setting.executed(source, final, self.inputs)

    def _interpreted(self, graph: Graph) -> Results:
        return interpreted(self.replay.source, graph, self.inputs)

    def _fault(self, run: Callable[[], Results], reference: Reference) -> Fault | None:
        try:
            results = run()
        except Exception as error:
            return crashed(error)
        return None if self.how == "crash" else wrong(reference.verdict(results))

    def _first_broken(self, reference: Reference) -> int:
        """The place of a graph that is broken where the one before it is not. The last is."""
        graphs = self.replay.graphs
        low, high = 0, len(graphs) - 1
        while high - low > 1:
            middle = (low + high) // 2
            self.say(f"running the graph after {self.replay.passes[middle - 1]}")
            graph = graphs[middle]
            if self._fault(lambda: self._interpreted(graph), reference) is None:  # noqa: B023
                low = middle
            else:
                high = middle
        return high

    def _in_pass(self, place: int, reference: Reference) -> Finding:
        """What is to blame in the pass that left the first broken graph."""
        self.say(f"looking into {self.replay.passes[place - 1]}")

        def fault_of(graph: Graph) -> Fault | None:
            return self._fault(lambda: self._interpreted(graph), reference)

        fault = fault_of(self.replay.graphs[place])
        assert fault is not None
        found = change(self.replay, place, lambda graph: fault_of(graph) is not None)
        return self._told(place, found, fault, self._places(found, fault))

    def _places(self, found: Change, fault: Fault) -> list[tuple[str, ...]]:
        """Where in the graph before the pass to look, the likeliest first."""
        around = [] if found.rewrite is None else [(found.rewrite.node,)]
        if fault.crash is not None:
            return around + _named_in(fault)
        return suspects(found, self.inputs) + around + _made_of(found.before, fault)

    def crash_in_pass(self, raised: Exception) -> Finding:
        """The pass that raised, the rule that it applied, the least graph on which it raises."""
        place, fault = len(self.replay.graphs), crashed(raised)
        self.say(f"looking into {self.replay.passes[place - 1]}")
        before, rewrite = crashing_rewrite(self.replay, place)
        around = _named_in(fault)
        if rewrite is not None:
            around.insert(0, (rewrite.node,))
        return self._told(place, Change(before, before, rewrite), fault, around)

    def _told(
        self, place: int, found: Change, fault: Fault, around: Sequence[tuple[str, ...]]
    ) -> Finding:
        """The finding, with the least graph on which the pass does the same."""
        step = self.replay.passes[place - 1]
        case = self._smallest(step, found, fault, around)
        if found.rewrite is not None:
            name = found.rewrite.node
        else:
            name = _likeliest(around, case)
        makers = (n for n in found.before.nodes for v in n.results if v.name == name)
        maker = next(makers, None)
        what = "" if maker is None else spelled(maker)
        decisions = (d for d in self.replay.setting.env.log.about(name) if d.pass_ == step.name)
        said = next((d.sentence for d in decisions if d.kind == "decided"), "")
        return Finding(fault, place_of(step), found.rewrite, name, what, said, case)

    def _smallest(
        self, step: Pass, found: Change, fault: Fault, around: Sequence[tuple[str, ...]]
    ) -> Case | None:
        def judge(subject: Subject, data: Data) -> Broken:
            return Breaks(subject, data, fault)

        for graph, passes in _ways(step, found):
            subject = Subject(self.replay.setting, passes)
            begun = start(graph, subject, judge, around, partial(values_of, graph, self.inputs))
            if begun is not None:
                self.say(f"making {len(begun.graph.nodes)} nodes fewer")
                return smallest(begun, judge, self.seconds)
        return None

    def _healthy(self, reference: Reference) -> Healthy:
        names = [step.name for step in self.replay.passes]
        kernels = sum(1 for node in self.replay.final.nodes if node.graphs)
        checked = [
            f"{len(names)} passes ran: {', '.join(names)}",
            f"the program was built and ran, {kernels} calls of kernels in it",
        ]
        if self.how != "crash":
            checked.append(f"its results: {reference.verdict(self._executed())}")
        note = self.replay.note
        return Healthy(tuple(checked if note is None else [*checked, note]))


def _named_in(fault: Fault) -> list[tuple[str, ...]]:
    """Values that a message names."""
    said = "" if fault.crash is None else fault.crash.message
    return [(name,) for name in re.findall(r"%([\w.]+)", said)]


def _made_of(graph: Graph, fault: Fault) -> list[tuple[str, ...]]:
    """What an input holds in the end that is not updated as it should be."""
    verdict = fault.verdict
    which = "" if verdict is None else (verdict.which or verdict.worst).removeprefix("%")
    return [(value.name,) for target, value in graph.updates if target.name == which]


def _likeliest(around: Sequence[tuple[str, ...]], case: Case | None) -> str:
    """The first of the places that is in the small graph too; else the last node of that."""
    made = [] if case is None else [v.name for n in case.graph.nodes for v in n.results]
    names = [names[0] for names in around]
    kept = (name for name in names if name in made)
    return next(kept, made[-1] if made else names[0] if names else "")


def _ways(step: Pass, found: Change) -> list[tuple[Graph, tuple[Pass, ...]]]:
    """Graphs and passes that may show what a pass did: with no more than the rule that is to
    blame, or of ATen operators where it came after fusion; else what it was."""
    ways: list[tuple[Graph, tuple[Pass, ...]]] = [(found.before, (step,))]
    if step.takes == "fused":
        ways.insert(0, (expand(found.before), (Fuse(max_ops=0), step)))
    if isinstance(step, Rules) and found.rewrite is not None:
        alone = [(found.before, (one,)) for one in _narrower(step, found.rewrite.rule)]
        ways = [*alone, *ways]
    return ways


def _narrower(step: Rules, name: str) -> Iterator[Rules]:
    """The rule alone, unless it is one of ours; then its set."""
    from rewright.passes.rules import SHIPPED, rules_of

    for of in step.sets:
        rule = next((r for r in rules_of([of]) if r.name == name), None)
        if rule is not None:
            if of not in SHIPPED:
                yield Rules((rule.text,))
            yield Rules((of,))
