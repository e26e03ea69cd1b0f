"""Which rules can match at a node, and where rules may match after a change, without trying."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rewright.ir import Node, Op, Value
from rewright.ir.facts import COMMUTATIVE
from rewright.ir.numbers import NUMBERS
from rewright.ir.signature import signature
from rewright.passes.rules.functions import FUNCTIONS
from rewright.passes.rules.match import Matcher
from rewright.passes.rules.rule import Rule
from rewright.passes.rules.terms import (
    Apply,
    Attribute,
    Either,
    Function,
    Literal,
    Term,
    Variable,
    parts,
    variables,
    within,
)
from rewright.passes.rules.work import Work

# Operators of a node and of the nodes before it, a few steps back: its operator's name, then what
# makes each positional argument; None for an argument that is no value.
Shape = tuple[str, tuple["Shape | None", ...]]
STEPS: Final = 3
_INPUT: Final[Shape] = ("", ())


def shape_of(node: Node, work: Work, steps: int = STEPS) -> Shape:
    """The shape of a node, so many steps back."""
    if steps == 0:
        return node.op.name, ()
    makers: list[Shape | None] = []
    for arg in node.args:
        if isinstance(arg, Value):
            maker = work.producer(arg)
            makers.append(_INPUT if maker is None else shape_of(maker, work, steps - 1))
        else:
            makers.append(None)
    return node.op.name, tuple(makers)


class Index:
    """For each node the rules whose match may end in it. What a rule wants is compared with a shape
    once; graphs repeat themselves, so the answer is kept."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.matchers: dict[Op, list[Matcher]] = {}
        for rule in rules:
            matcher = Matcher(rule)
            for op in rule.root_ops:
                self.matchers.setdefault(op, []).append(matcher)
        self._known: dict[Shape, tuple[Matcher, ...]] = {}

    def of(self, node: Node, work: Work) -> tuple[Matcher, ...]:
        matchers = self.matchers.get(node.op)
        if matchers is None:
            return ()
        shape = shape_of(node, work)
        known = self._known.get(shape)
        if known is None:
            known = tuple(m for m in matchers if _may_be(m.anchor.term, shape, STEPS, m))
            self._known[shape] = known
        return known


def _may_be(term: Term, shape: Shape | None, steps: int, matcher: Matcher) -> bool:
    match term:
        case Variable():
            bind = matcher.made.get(term.name)
            return bind is None or _may_be(bind.term, shape, steps, matcher)
        case Either():
            return any(_may_be(option, shape, steps, matcher) for option in term.options)
        case Literal() | Attribute():
            return shape is None or shape[0] in NUMBERS
        case Apply() if shape is not None:
            name, makers = shape
            ops = [op for op in term.ops if op.name == name]
            return any(_may_call(term, op, makers, steps, matcher) for op in ops)
    return not isinstance(term, Apply)


def _may_call(
    term: Apply, op: Op, makers: Sequence[Shape | None], steps: int, matcher: Matcher
) -> bool:
    """Whether the arguments may be made by `makers`; by no more than this many steps back."""
    if steps == 0:
        return True
    known = signature(op)
    assert known is not None
    places = {name: place for place, name in enumerate(known.positional)}
    wanted = [(places[n], part) for n, part in term.named(op).items() if n in places]
    orders = [wanted]
    if op.name in COMMUTATIVE:
        orders.append([(1 - place if place < 2 else place, part) for place, part in wanted])
    return any(
        all(
            _may_be(part, makers[place] if place < len(makers) else None, steps - 1, matcher)
            for place, part in order
        )
        for order in orders
    )


# A place in a pattern: the operator that the match ends in, and how many nodes before it.
Place = tuple[Op, int]


class Reach:
    """What the rules look at. A change matters to a node only if one of them looks there."""

    def __init__(self, indices: Iterable[Index]) -> None:
        # For an operator, the places where one of the rules wants it.
        self._made: dict[str, set[Place]] = {}
        # Places whose value a rule compares with another, or asks more about than its type.
        self._compared: set[Place] = set()
        self._asked: set[Place] = set()
        self._places: dict[tuple[str | None, bool], list[frozenset[Op]]] = {}
        for index in indices:
            for root, matchers in index.matchers.items():
                for matcher in matchers:
                    self._enter(root, matcher)

    def places(self, op: str | None, *, is_other: bool) -> list[frozenset[Op]]:
        """Operators of nodes to visit again, one node away, two, and so on, from a value that `op`
        makes now, or that is read instead of another one (`is_other`)."""
        known = self._places.get((op, is_other))
        if known is None:
            found = self._made.get(op or "", set()) | self._asked
            found |= self._compared if is_other else set()
            most = max((distance for _, distance in found), default=0)
            known = [
                frozenset(root for root, at in found if at == distance)
                for distance in range(1, most + 1)
            ]
            self._places[op, is_other] = known
        return known

    def _enter(self, root: Op, matcher: Matcher) -> None:
        asked = {name for test in matcher.rule.when for name in _looked_around(test)}
        seen: set[tuple[str, int]] = set()
        count: dict[str, int] = {}
        todo: list[tuple[Term, int]] = [(matcher.anchor.term, 0)]
        while todo:
            term, distance = todo.pop()
            place = (root, distance)
            match term:
                case Variable():
                    count[term.name] = count.get(term.name, 0) + 1
                    seen.add((term.name, distance))
                    if term.name in asked:
                        self._asked.add(place)
                    if term.name in matcher.made:
                        todo.append((matcher.made[term.name].term, distance))
                case Literal() | Attribute():
                    self._want(place, NUMBERS)
                case Apply():
                    self._want(place, (op.name for op in term.ops))
                    todo += ((part, distance + 1) for part in parts(term))
                case _:
                    todo += ((part, distance) for part in parts(term))
        self._compared |= {(root, distance) for name, distance in seen if count[name] > 1}

    def _want(self, place: Place, ops: Iterable[str]) -> None:
        for op in ops:
            self._made.setdefault(op, set()).add(place)


def _looked_around(test: Term) -> set[str]:
    """Values of which a test asks more than their types."""
    asking = (
        part for part in within(test) if isinstance(part, Function) and part.name in FUNCTIONS
    )
    return {n for part in asking if FUNCTIONS[part.name].looks_around for n in variables(part)}
