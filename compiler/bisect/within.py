"""Inside one pass: the application of a rule that does the harm, and the values that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from rewright.bisect.judge import FLOOR, relative, run
from rewright.bisect.replay import Replay
from rewright.bisect.running import is_placed
from rewright.ir import Graph, Kind, TensorType, Value
from rewright.ir.expand import expand
from rewright.ir.interpret import interpret
from rewright.passes.fuel import Application, Fuel

# An error so many times what is allowed is no rounding.
CERTAIN: Final = 8.0


@dataclass(frozen=True)
class Rewrite:
    """Application `number` of all `count` that a pass made of rules; it is the `of_rule`th of
    `rule`."""

    rule: str
    node: str
    number: int
    count: int
    of_rule: int


@dataclass(frozen=True)
class Change:
    """A graph that is whole and what becomes of it: by a pass, or by one application of a rule."""

    before: Graph
    after: Graph
    rewrite: Rewrite | None = None


def change(replay: Replay, place: int, is_broken: Callable[[Graph], bool]) -> Change:
    """What `passes[place - 1]` did, as closely as can be said. The graph before it is whole, that
    after it is broken."""
    whole = Change(replay.graphs[place - 1], replay.graphs[place])

    def at(limit: int) -> bool:
        return is_broken(replay.rewritten(place, Fuel(limit)))

    fuel = Fuel()
    replay.rewritten(place, fuel)
    rewrite = first_rewrite(fuel.spent, at)
    if rewrite is None:
        return whole
    number = rewrite.number
    before, after = (replay.rewritten(place, Fuel(n)) for n in (number - 1, number))
    return Change(before, after, rewrite)


def crashing_rewrite(replay: Replay, place: int) -> tuple[Graph, Rewrite | None]:
    """The graph for which `passes[place - 1]` raises, and the application of a rule in which it
    does; None when that is not for its rules."""
    before = replay.graphs[place - 1]
    fuel = Fuel()
    try:
        replay.rewritten(place, fuel)
    except Exception:
        made = fuel.spent
    else:
        return before, None

    def raises(limit: int) -> bool:
        try:
            replay.rewritten(place, Fuel(limit))
        except Exception:
            return True
        return False

    rewrite = first_rewrite(made, raises)
    if rewrite is None:
        return before, None
    return replay.rewritten(place, Fuel(rewrite.number - 1)), rewrite


def first_rewrite(made: Sequence[Application], is_broken: Callable[[int], bool]) -> Rewrite | None:
    """The first of the rewrites after which something is broken; None when that is not for them:
    it is without any, or it is not with all."""
    low, high = 0, len(made)
    if not made or is_broken(low) or not is_broken(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_broken(middle) else (middle, high)
    first = made[high - 1]
    of_rule = sum(1 for one in made[:high] if one.rule == first.rule)
    return Rewrite(first.rule, first.node, high, len(made), of_rule)


def suspects(change: Change, inputs: Sequence[Any]) -> list[tuple[str, ...]]:
    """Names of values that are wrong after the change, as the graph before it says, each with what
    is read in its place now. The first of those that are surely wrong is the likeliest; those that
    rounding might explain come last."""
    exact = values_of(change.before, inputs, torch.float64)
    eager = values_of(change.before, inputs)
    found = values_of(_inside_out(change.after), inputs)
    becomes = _renamed(change)
    sure: list[tuple[str, ...]] = []
    unsure: list[tuple[str, ...]] = []
    for value in change.before.values:
        name = value.name
        new = becomes.get(name, name)
        if new not in found or not isinstance(value.type, TensorType):
            continue
        ratio = _ratio(found[new], exact[name], eager[name])
        if ratio > 1:
            (sure if ratio > CERTAIN else unsure).append(tuple(dict.fromkeys((name, new))))
    return [*sure, *unsure]


def _inside_out(graph: Graph) -> Graph:
    """The graph without regions, whose inner values then show; not where these write buffers."""
    if any(node.op.kind is Kind.STORAGE for node in graph.nodes):
        return graph
    return expand(graph, lambda node: node.op.name == "rw.fused")


def _ratio(found: Any, exact: Any, eager: Any) -> float:
    """The error of a value beside what it may be."""
    if not isinstance(found, torch.Tensor) or found.shape != exact.shape:
        return float("inf")
    if not exact.is_floating_point():
        return 0.0 if torch.equal(found, eager) else float("inf")
    return relative(found, exact, eager) / (2 * relative(eager, exact, eager) + FLOOR)


def _renamed(change: Change) -> Mapping[str, str]:
    """What stands for values that are gone, as history says."""
    names: dict[str, str] = {}
    for step in change.after.history:
        if step in change.before.history:
            continue
        for old, new in step.renamed:
            names[old] = new[0] if len(new) == 1 else old if old in new else ""
    return names


def values_of(
    graph: Graph, inputs: Sequence[Any], dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """What every value of a run holds, by name."""
    values: dict[str, Any] = {}

    def call(given: list[Any]) -> list[Any]:
        wide = given
        if dtype is not None:
            wide = [_converted(x, dtype) for x in given]
        values.update(zip((i.value.name for i in graph.inputs), map(_kept, wide), strict=True))
        placed = is_placed(graph)

        def watch(value: Value, result: Any) -> None:
            values[value.name] = _kept(result) if placed else result

        return interpret(graph, given, dtype=dtype, watch=watch, arena=placed)

    run(graph, inputs, call)
    return values


def _converted(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _kept(x: Any) -> Any:
    """A copy: what holds the value may be written again."""
    return x.clone() if isinstance(x, torch.Tensor) else x


# --- around a value -----------------------------------------------------------------------------

# How far above and below a value to look for what else takes part, in nodes.
_REACH: Final = (
    *((0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 2), (4, 2), (4, 4)),
    *((6, 4), (9, 6), (14, 9), (24, 12)),
)


def surroundings(graph: Graph, names: Sequence[str]) -> Iterator[list[str]]:
    """Names of the nodes around those that make some values, further and further out; those that
    read inputs of these names count too."""
    wanted = set(names)
    first = [n for n in graph.nodes if wanted & {v.name for v in n.results}]
    inputs = [i.value for i in graph.inputs if i.value.name in wanted]
    first += [n for value in inputs for n in graph.readers.get(value, ())]
    seen = set[frozenset[str]]()
    for up, down in _REACH:
        found = {n.name for n in first}
        above, below = list(first), list(first)
        for _ in range(up):
            made = (graph.producers.get(v) for n in above for v in n.operands)
            above = [n for n in made if n is not None and n.name not in found]
            found |= {n.name for n in above}
        for _ in range(down):
            below = [r for n in below for v in n.results for r in graph.readers.get(v, ())]
            found |= {n.name for n in below}
        if found and frozenset(found) not in seen:
            seen.add(frozenset(found))
            yield [n.name for n in graph.nodes if n.name in found]
