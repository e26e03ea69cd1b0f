"""Decisions that the cost model leaves open, settled by measuring.

A decision is open when the bounds of its gain hold both signs. Made the other way, it leads to
another plan; the calls that only one of the two plans makes are timed, and the shorter plan stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from rewright.costmodel import (
    CostModel,
    Estimate,
    Kernels,
    Sketch,
    Tools,
    show_seconds,
    total,
)
from rewright.ir import Graph, Node, is_call
from rewright.ir.alone import alone, obstacle
from rewright.passes.base import Env
from rewright.passes.fuse.choice import Asking
from rewright.passes.log import DecisionLog

# Of open decisions, those that may change so much of a graph's time are worth measuring.
STAKE: Final = 0.005
# A plan must be so much shorter, measured, to replace the default one.
MARGIN: Final = 0.02

# Ways round an answer that are closed before it is left.
DETOURS: Final = 4

Plan = Callable[[Env], Graph]
# Kernels apart and the one that does their work; layers that are alike ask the same.
Question = tuple[tuple[Sketch, ...], Sketch]
# The calls that only one and only the other of two plans makes.
Difference = tuple[list[Node], list[Node]]


class Overruled(Asking):
    """Some of the answers about gains are given.

    `answers` are all that it gave, `open` are the stakes, in seconds, of questions that the model
    left open.
    """

    def __init__(self, cost: CostModel, given: Mapping[Question, bool]) -> None:
        super().__init__(cost)
        self._given = given
        self.answers: dict[Question, bool] = {}
        self.open: dict[Question, float] = {}

    def gain(
        self, apart: Sequence[Sketch], together: Sketch, kernels: Kernels | None = None
    ) -> Estimate:
        question = tuple(apart), together
        found = super().gain(apart, together, kernels)
        if question in self._given:
            sign = 1.0 if self._given[question] else -1.0
            found = Estimate(sign, sign, sign, ("measured",))
        elif found.low < 0 < found.high:
            self.open[question] = min(-found.low, found.high)
        self.answers[question] = found.seconds > 0
        return found


def settled(plan: Plan, env: Env, tools: Tools) -> Graph:
    """What `plan` makes of its graph once open questions are measured, in the order in which they
    come up, as far as the tools' budget goes. What is decided is said in the log of `env`."""
    given: dict[Question, bool] = {}
    best, asked = _planned(plan, env, given)
    worth = STAKE * total(env.cost.estimate([n for n in best.nodes if is_call(n)])).seconds
    tried: set[Question] = set()
    while (question := _next(asked, tried, worth)) is not None:
        tried.add(question)
        found = _other_way(plan, env, given, best, asked, question)
        if found is None:
            continue
        way, other, other_asked, difference = found
        gain = _gain(*difference, tools)
        if gain is None:
            break
        seconds, before, subject = gain
        if seconds > MARGIN * before:
            given, best, asked = way, other, other_asked
            env.log.decide("fuse", subject, f"measured: this way {show_seconds(seconds)} less")
    # Once more for the log, which the trials left alone.
    return plan(replace(env, cost=Overruled(env.cost, given)))


def _other_way(
    plan: Plan,
    env: Env,
    given: Mapping[Question, bool],
    best: Graph,
    asked: Overruled,
    question: Question,
) -> tuple[dict[Question, bool], Graph, Overruled, Difference] | None:
    """The plan in which a question is answered the other way, and the calls that only `best` and
    only it makes; None when it comes to the same.

    What stays apart at first may still be joined by a detour, which is then answered so too.
    """
    answer = not asked.answers[question]
    way = {**given, question: answer}
    for _ in range(DETOURS):
        other, other_asked = _planned(plan, env, way)
        difference = _only(best, other), _only(other, best)
        if any(difference):
            return way, other, other_asked, difference
        new = (q for q in other_asked.open if q not in asked.answers)
        detour = next((q for q in new if other_asked.answers[q] is not answer), None)
        if detour is None:
            return None
        way[detour] = answer
    return None


def _planned(plan: Plan, env: Env, given: Mapping[Question, bool]) -> tuple[Graph, Overruled]:
    asked = Overruled(env.cost, given)
    return plan(replace(env, cost=asked, log=DecisionLog())), asked


def _next(asked: Overruled, tried: Collection[Question], worth: float) -> Question | None:
    return next((q for q, stake in asked.open.items() if stake > worth and q not in tried), None)


def _gain(
    only_a: Sequence[Node], only_b: Sequence[Node], tools: Tools
) -> tuple[float, float, str] | None:
    """(seconds that the calls of the second plan alone take less, seconds of those of the first, a
    node of the second); None when something could not be measured."""
    if not only_a or not only_b:
        return 0.0, 0.0, ""
    graphs = [alone(node) for node in (*only_a, *only_b)]
    if any(obstacle(node) is not None for node in (*only_a, *only_b)):
        return 0.0, 0.0, ""
    found = tools.measure(graphs)
    if found is None:
        return None
    before = sum(e.seconds for e in found[: len(only_a)])
    return before - sum(e.seconds for e in found[len(only_a) :]), before, only_b[0].name


def _only(a: Graph, b: Graph) -> list[Node]:
    """The calls that `a` makes and `b` does not."""
    others = Counter(str(alone(node)) for node in b.nodes if is_call(node))
    found = []
    for node in a.nodes:
        if not is_call(node):
            continue
        text = str(alone(node))
        if others[text] > 0:
            others[text] -= 1
        else:
            found.append(node)
    return found
