"""Rules applied to a graph until none matches.

Nodes are visited in the order of the graph; a rewrite has the nodes that it made, and those that
may now match, visited again. For each node only the rules are tried that the operators just before
it do not exclude (`index.py`). Rules that join several values wait until no other one matches: what
they join, no other rule finds any more (`x A + x B` is to become `x (A + B)`).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rewright.ir import CheckError, Graph, Node, Value, may_share_input_storage
from rewright.passes.aliases import Aliases
from rewright.passes.fuel import Fuel
from rewright.passes.log import DecisionLog
from rewright.passes.rules.build import Replacement, build
from rewright.passes.rules.index import Index, Reach
from rewright.passes.rules.match import Matcher
from rewright.passes.rules.rule import Rule
from rewright.passes.rules.work import Work

# A rule set that goes on longer than this has rules that undo each other.
MOST_REWRITES_A_NODE = 12
FEWEST_ALLOWED = 200


@dataclass
class Tally:
    """What one rule did: times tried, matched, applied; seconds spent on it."""

    tried: int = 0
    matched: int = 0
    applied: int = 0
    seconds: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.tried + other.tried,
            self.matched + other.matched,
            self.applied + other.applied,
            self.seconds + other.seconds,
        )


@dataclass
class Outcome:
    """The rewritten graph, what became of each name, and each rule's tally by its name."""

    graph: Graph
    renamed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)

    @property
    def rewrites(self) -> int:
        return sum(tally.applied for tally in self.tallies.values())


# Of several replacements of the same node, the one to take.
Choose = Callable[[Sequence[Replacement], Work], Replacement]


class Engine:
    """A set of rules, indexed by the operators that a match ends in."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        # By turns: those of the second are tried when those of the first no longer match.
        turns = [[r for r in self.rules if r.joins is joins] for joins in (False, True)]
        self.indices = tuple(Index(rules) for rules in turns if rules)
        self.reach = Reach(self.indices)

    def run(
        self,
        graph: Graph,
        log: DecisionLog,
        choose: Choose,
        *,
        who: str = "rules",
        fuel: Fuel | None = None,
    ) -> Outcome:
        """Decisions are logged as those of the pass `who`; with `fuel` it ends when that does.
        Raises CheckError, naming the rules, when they do not come to an end."""
        return _Run(self, graph, log, choose, who, fuel or Fuel()).run()


class _Run:
    """One graph on its way to the fixed point."""

    def __init__(
        self, engine: Engine, graph: Graph, log: DecisionLog, choose: Choose, who: str, fuel: Fuel
    ) -> None:
        self.engine, self.log, self.choose, self.who = engine, log, choose, who
        self.fuel = fuel
        self.work = Work(graph)
        self.aliases = Aliases(graph)
        self.outcome = Outcome(graph, tallies={rule.name: Tally() for rule in engine.rules})
        self.rewrites = 0
        self.bound = MOST_REWRITES_A_NODE * len(graph.nodes) + FEWEST_ALLOWED
        # Turn, place in the graph and number of a node; and what of that is queued.
        self.queue: list[tuple[int, tuple[int, int], int]] = []
        self.queued: set[tuple[int, int]] = set()

    def run(self) -> Outcome:
        for number in self.work.nodes:
            self.again(number)
        while self.queue and not self.fuel.is_out:
            turn, _, number = heapq.heappop(self.queue)
            self.queued.discard((turn, number))
            if number in self.work.nodes:
                self.visit(number, self.engine.indices[turn])
        if self.rewrites:
            self.outcome.graph = self.work.graph()
        return self.outcome

    def visit(self, number: int, index: Index) -> None:
        node = self.work.nodes[number]
        candidates = []
        for matcher in index.of(node, self.work):
            tally = self.outcome.tallies[matcher.rule.name]
            start = time.perf_counter()
            found = self.candidate(matcher, number, tally)
            tally.seconds += time.perf_counter() - start
            if found is not None:
                candidates.append(found)
        if candidates:
            chosen = candidates[0] if len(candidates) == 1 else self.choose(candidates, self.work)
            self.apply(chosen, node)

    def candidate(self, matcher: Matcher, number: int, tally: Tally) -> Replacement | None:
        tally.tried += 1
        match = matcher.at(number, self.work)
        if match is None:
            return None
        tally.matched += 1
        found = build(match, self.work)
        why = found if isinstance(found, str) else self.obstacle(found)
        if why is not None:
            self.log.refuse(self.who, self.work.nodes[number].name, f"{matcher.rule.name}: {why}")
            return None
        assert isinstance(found, Replacement)
        return found

    def obstacle(self, found: Replacement) -> str | None:
        """Why the replacement may not take the place of its roots."""
        made = {v.name: node for node in found.nodes for v in node.results}
        read = (*_read(found.nodes), *found.values.values())
        if len(found.roots) > 1 and self.work.depend(read, found.roots):
            return "one of the values that it joins depends on another"
        for old, new in found.values.items():
            why = self.aliases.obstacle(old, _behind(new, made))
            if why is not None:
                return why
        for number in found.roots:
            for value in self.work.nodes[number].results:
                node = made.get(value.name)
                base = value if node is None else _behind(value, made)
                if base.name != value.name:
                    why = self.aliases.storage_obstacle(value, base)
                    if why is not None:
                        return why
        return None

    def apply(self, found: Replacement, root: Node) -> None:
        tally = self.outcome.tallies[found.match.rule.name]
        tally.applied += 1
        self.fuel.spend(found.match.rule.name, root.name)
        self.rewrites += 1
        if self.rewrites > self.bound:
            raise self.endless()
        self.log.decide(self.who, root.name, found.match.rule.name)
        for old, new in found.values.items():
            self.aliases.substitute(old, new)
        for node in found.nodes:
            self.aliases.note(node)
        below = [v for n in found.match.nodes for v in self.work.nodes[n].operands]
        numbers, gone = self.work.replace(found.roots, found.nodes, found.values)
        self.outcome.renamed.update(dict.fromkeys(gone, ()))
        self.outcome.renamed.update((a.name, (b.name,)) for a, b in found.values.items())
        for number in numbers:
            self.again(number)
            for value in self.work.nodes[number].results:
                self.after(value)
        for value in found.values.values():
            self.after(value, is_other=True)
        for value in dict.fromkeys(below):
            if len(self.work.readers(value)) == 1:
                self.after(value)

    def again(self, number: int) -> None:
        """Visit a node, once more."""
        op, place = self.work.nodes[number].op, self.work.place[number]
        for turn, index in enumerate(self.engine.indices):
            if op in index.matchers and (turn, number) not in self.queued:
                self.queued.add((turn, number))
                heapq.heappush(self.queue, (turn, place, number))

    def after(self, value: Value, *, is_other: bool = False) -> None:
        """Visit again what a rule may match now that the value is made, or read by one node alone,
        or read instead of another one (`is_other`)."""
        maker, work = self.work.producer(value), self.work
        near = dict.fromkeys(work.readers(value))
        op = None if maker is None else maker.op.name
        for roots in self.engine.reach.places(op, is_other=is_other):
            if not near:
                return
            for number in near:
                if work.nodes[number].op in roots:
                    self.again(number)
            results = (v for number in near for v in work.nodes[number].results)
            near = dict.fromkeys(r for v in results for r in work.readers(v))

    def endless(self) -> CheckError:
        counts = sorted(
            ((t.applied, name) for name, t in self.outcome.tallies.items()), reverse=True
        )
        busy = [f"{name} ({count} times)" for count, name in counts if 2 * count >= counts[0][0]]
        return CheckError(
            f"rules do not come to an end after {self.bound} rewrites: {', '.join(busy)}",
            who=self.who,
            help="each rewrite must leave the graph smaller, or nearer to one form",
        )


def _read(nodes: Sequence[Node]) -> Iterator[Value]:
    """What new nodes read that none before them makes: by name, since results keep the names of
    what they replace."""
    made: set[str] = set()
    for node in nodes:
        yield from (v for v in node.operands if v.name not in made)
        made |= {v.name for v in node.results}


def _behind(value: Value, made: Mapping[str, Node]) -> Value:
    """What a value is a view of, through new nodes."""
    while (node := made.get(value.name)) is not None and may_share_input_storage(node):
        value = node.operands[0]
    return value
