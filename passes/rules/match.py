"""Finding a rule in a graph: goals that pair a term with an argument, solved with backtracking.

A goal that leaves one way to go on is taken at once; operands of commutative operators, `Either`
and values that the rule names at several places leave several. What a rule computes (`n + 1`) is
compared last, when everything it speaks of is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rewright.ir import Arg, Constant, Dim, Node, TensorType, Value
from rewright.ir.facts import COMMUTATIVE
from rewright.ir.numbers import NUMBERS, number_of
from rewright.ir.signature import signature
from rewright.passes.rules.domains import admits, is_of
from rewright.passes.rules.functions import FUNCTIONS, Unanswered, arithmetic, same
from rewright.passes.rules.rule import ROOT, Rule, Tensor
from rewright.passes.rules.terms import (
    Apply,
    Attribute,
    Bind,
    Either,
    Function,
    Items,
    Literal,
    Many,
    Term,
    Variable,
    variables,
)
from rewright.passes.rules.work import Work

Goal = tuple[Term, Arg]


@dataclass
class Match:
    """What the variables of a rule stand for. `nodes` are the matched nodes by the number they have
    in the work, the root first."""

    rule: Rule
    values: dict[str, Value] = field(default_factory=dict)
    attributes: dict[str, Arg] = field(default_factory=dict)
    lists: dict[str, tuple[Value, ...]] = field(default_factory=dict)
    nodes: dict[int, None] = field(default_factory=dict)

    def copy(self) -> Match:
        return Match(
            self.rule,
            dict(self.values),
            dict(self.attributes),
            dict(self.lists),
            dict(self.nodes),
        )


def evaluate(term: Term, match: Match, work: Work) -> Any:
    """What a term of `when`, or an argument of `give`, stands for. Raises Unanswered."""
    match term:
        case Variable():
            if term.name in match.lists:
                return match.lists[term.name][0]
            return match.values[term.name]
        case Attribute():
            if term.name not in match.attributes:
                raise Unanswered
            return match.attributes[term.name]
        case Literal():
            return term.value
        case Items():
            return tuple(_items(term, match, work))
        case Function():
            args = [evaluate(a, match, work) for a in term.arguments]
            known = FUNCTIONS.get(term.name)
            if known is None:
                return arithmetic(term.name, args)
            try:
                return known.call(*([work] if known.looks_around else []), *args)
            except (TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError):
                raise Unanswered from None  # a function of other things than it was given
    raise AssertionError(f"{term} is not computed")


def _items(term: Items, match: Match, work: Work) -> Iterator[Any]:
    for item in term.items:
        if isinstance(item, Many):
            yield from match.lists[item.name]
        else:
            yield evaluate(item, match, work)


class Matcher:
    """Finds one rule. The order of search is fixed, so the first match is always the same."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.made = {name: bind for bind in rule.match for name in bind.results}
        self.anchor = rule.match[-1]
        self.others = rule.match[:-1]

    def at(self, number: int, work: Work) -> Match | None:
        """The match whose last node is node `number`."""
        search = _Search(self, work)
        ways = search.calls(self.anchor.term, self.anchor.results, number, Match(self.rule))
        return search.first(ways, ())


# What is left to do: nothing can (None), all of these goals, or those of any of several ways, each
# with the match that it starts from.
Way = tuple[list[Goal], Match]
Ways = None | list[Goal] | Iterator[Way]


class _Search:
    def __init__(self, matcher: Matcher, work: Work) -> None:
        self.matcher, self.work = matcher, work
        self.rule = matcher.rule

    def first(self, ways: Iterator[Way], others: Sequence[Goal]) -> Match | None:
        """The first way that leads to a match, together with the other goals."""
        for goals, match in ways:
            found = self.solve([*others, *goals], match)
            if found is not None:
                return found
        return None

    def solve(self, todo: list[Goal], match: Match) -> Match | None:
        """The first way to reach all goals from `match`, which may change on the way; the last
        goal is taken first."""
        later: list[Goal] = []
        while todo:
            term, arg = todo.pop()
            if isinstance(term, Function):
                later.append((term, arg))
                continue
            ways = self.ways(term, arg, match)
            if ways is None:
                return None
            if not isinstance(ways, list):
                return self.first(ways, [*later, *todo])
            todo += ways
        return self.finish(later, match)

    def finish(self, later: Sequence[Goal], match: Match) -> Match | None:
        """Statements that nothing led to yet, then what is computed, then the tests."""
        for bind in self.matcher.others:
            if not all(name in match.values for name in bind.results):
                return self.elsewhere(bind, later, match)
        try:
            fits = (
                all(same(evaluate(term, match, self.work), arg) for term, arg in later)
                and all(self.declared(t, match) for t in self.rule.tensors.values())
                and self.parameters_fit(match)
                and self.may_go(match)
                and all(evaluate(test, match, self.work) is True for test in self.rule.when)
            )
        except Unanswered:
            return None
        return match if fits else None

    # --- goals --------------------------------------------------------------------------------

    def ways(self, term: Term, arg: Arg, match: Match) -> Ways:
        match term:
            case Variable():
                return self.variable(term, arg, match)
            case Attribute():
                return _if(self.attribute(term, arg, match))
            case Literal():
                return _if(same_number(term.value, self.number(arg, term.value)))
            case Apply():
                return self.made_by(term, (ROOT,), arg, match)
            case Either():
                return (([(option, arg)], match.copy()) for option in term.options)
            case Items():
                return self.items(term, arg, match)
        return None

    def variable(self, term: Variable, arg: Arg, match: Match) -> Ways:
        if not isinstance(arg, Value) or not isinstance(arg.type, TensorType):
            return None
        known = match.values.get(term.name)
        if known is not None:
            return _if(known.name == arg.name)
        declared = self.rule.tensors.get(term.name)
        if declared is not None and not is_of(declared.kind, arg.type.dtype):
            return None
        bind = self.matcher.made.get(term.name)
        if bind is None:
            match.values[term.name] = arg
            return []
        return self.made_by(bind.term, bind.results, arg, match, term.name)

    def attribute(self, term: Attribute, arg: Arg, match: Match) -> bool:
        if isinstance(arg, Value):
            arg = self.number(arg, 0)
            if isinstance(arg, Value):
                return False
        if isinstance(arg, Constant):
            return False
        if term.name in match.attributes:
            return same(match.attributes[term.name], arg)
        match.attributes[term.name] = arg
        return True

    def items(self, term: Items, arg: Arg, match: Match) -> Ways:
        if not isinstance(arg, tuple):
            return None
        rest = next((i for i, t in enumerate(term.items) if isinstance(t, Many)), None)
        if rest is None:
            if len(arg) != len(term.items):
                return None
            return list(zip(term.items, arg, strict=True))
        behind = len(term.items) - rest - 1
        if len(arg) < rest + behind:
            return None
        many = term.items[rest]
        assert isinstance(many, Many)
        taken = arg[rest : len(arg) - behind]
        if not all(isinstance(v, Value) for v in taken):
            return None
        if match.lists.setdefault(many.name, taken) != taken:  # type: ignore[arg-type]
            return None
        front = zip(term.items[:rest], arg[:rest], strict=True)
        back = zip(term.items[rest + 1 :], arg[len(arg) - behind :], strict=True)
        return [*front, *back]

    def number(self, arg: Arg, wanted: Arg) -> Arg:
        """A value that is one number everywhere, as that number; anything else as it is."""
        if not isinstance(arg, Value) or not isinstance(wanted, (int, float)):
            return arg
        node = self.work.producer(arg)
        found = None if node is None else number_of(node)
        return found if isinstance(found, (int, float)) else arg

    # --- calls --------------------------------------------------------------------------------

    def made_by(
        self, term: Term, results: Sequence[str], arg: Arg, match: Match, name: str = ROOT
    ) -> Ways:
        """The value must be the result `name` of a call of the term."""
        if not isinstance(arg, Value):
            return None
        if isinstance(term, Either):
            return (
                way
                for option in term.options
                for way in self.ways_of(option, results, arg, match.copy(), name)
            )
        if not isinstance(term, Apply):
            match.values[name] = arg
            return [(term, arg)]
        number = self.work.number(arg)
        if number is None:
            return None
        node = self.work.nodes[number]
        if node.op not in term.ops or node.results[results.index(name)].name != arg.name:
            return None
        orders = self.orders(term, results, node, match)
        if len(orders) != 1:
            return self.entered(orders, results, number, match) if orders else None
        self.enter(match, results, number, node)
        return orders[0]

    def ways_of(
        self, option: Term, results: Sequence[str], arg: Arg, match: Match, name: str
    ) -> Iterator[Way]:
        ways = self.made_by(option, results, arg, match, name)
        if isinstance(ways, list):
            yield ways, match
        elif ways is not None:
            yield from ways

    def calls(self, term: Term, results: Sequence[str], number: int, match: Match) -> Iterator[Way]:
        """Node `number` as a call of the term, in each way."""
        if isinstance(term, Either):
            for option in term.options:
                yield from self.calls(option, results, number, match)
        elif isinstance(term, Apply):
            orders = self.orders(term, results, self.work.nodes[number], match)
            yield from self.entered(orders, results, number, match)

    def entered(
        self, orders: Sequence[list[Goal]], results: Sequence[str], number: int, match: Match
    ) -> Iterator[Way]:
        for goals in orders:
            start = match.copy()
            self.enter(start, results, number, self.work.nodes[number])
            yield goals, start

    def orders(
        self, term: Apply, results: Sequence[str], node: Node, match: Match
    ) -> list[list[Goal]]:
        """The goals that the arguments leave, for each order of the operands that may do."""
        if node.op not in term.ops or len(node.results) < len(results) or not node.op.is_pure:
            return []
        goals = _arguments(term, node)
        if goals is None:
            return []
        other = _other_order(goals, node)
        goals.reverse()  # the last is solved first
        orders = [goals] if other is None else [goals, other]
        return [o for o in orders if all(self.may_fit(t, arg, match) for t, arg in o)]

    def may_fit(self, term: Term, arg: Arg, match: Match) -> bool:
        """False when a look at who makes the argument tells that the goal cannot be reached."""
        if not isinstance(arg, Value):
            return not isinstance(term, (Variable, Apply))
        match term:
            case Variable():
                known = match.values.get(term.name)
                if known is not None:
                    return known.name == arg.name
                bind = self.matcher.made.get(term.name)
                return bind is None or self.may_fit(bind.term, arg, match)
            case Apply():
                maker = self.work.producer(arg)
                return maker is not None and maker.op in term.ops
            case Either():
                return any(self.may_fit(option, arg, match) for option in term.options)
            case Literal() | Attribute():
                maker = self.work.producer(arg)
                return maker is not None and maker.op.name in NUMBERS
        return True

    @staticmethod
    def enter(match: Match, results: Sequence[str], number: int, node: Node) -> None:
        match.nodes[number] = None
        for name, value in zip(results, node.results, strict=False):
            if name != ROOT or number == next(iter(match.nodes)):
                match.values[name] = value

    def elsewhere(self, bind: Bind, later: Sequence[Goal], match: Match) -> Match | None:
        """A statement that shares only what it reads with the rest: look among the readers."""
        assert isinstance(bind.term, Apply)
        known = next((n for n in variables(bind.term) if n in match.values), None)
        if known is None:
            return None
        for number in list(self.work.readers(match.values[known])):
            node = self.work.nodes[number]
            if number in match.nodes or node.op not in bind.term.ops:
                continue
            found = self.first(self.calls(bind.term, bind.results, number, match), later)
            if found is not None:
                return found
        return None

    # --- the end ------------------------------------------------------------------------------

    def declared(self, tensor: Tensor, match: Match) -> bool:
        """Dimensions of a declared value, whose names are attributes from now on."""
        if tensor.dims is None or tensor.name in match.lists:
            return True
        shape = match.values[tensor.name].tensor.shape
        rest = next((i for i, d in enumerate(tensor.dims) if d.rest), None)
        if rest is None:
            parts: list[Any] = list(shape)
        else:
            behind = len(tensor.dims) - rest - 1
            if len(shape) < rest + behind:
                return False
            parts = [*shape[:rest], shape[rest : len(shape) - behind]]
            parts += shape[len(shape) - behind :]
        if len(parts) != len(tensor.dims):
            return False
        for dim, part in zip(tensor.dims, parts, strict=True):
            if dim.term is None:
                continue
            if isinstance(dim.term, Attribute) and dim.term.name not in match.attributes:
                match.attributes[dim.term.name] = part
            elif not same(evaluate(dim.term, match, self.work), part):
                return False
        return True

    def parameters_fit(self, match: Match) -> bool:
        for parameter in self.rule.parameters.values():
            if parameter.name not in match.attributes:
                return False
            arguments = [evaluate(a, match, self.work) for a in parameter.arguments]
            if not admits(parameter.domain, match.attributes[parameter.name], arguments):
                return False
        return True

    def may_go(self, match: Match) -> bool:
        """What is matched inside is read by nothing else, so that it is not computed twice; views
        and creations cost nothing."""
        roots = {match.values[name].name for name in self.rule.roots}
        for number in match.nodes:
            node = self.work.nodes[number]
            if node.op.kind.name in ("VIEW", "CREATION") or any(
                v.name in roots for v in node.results
            ):
                continue
            for value in node.results:
                others = (r for r in self.work.readers(value) if r not in match.nodes)
                if self.work.leaves(value) or any(True for _ in others):
                    return False
        return True


def _if(holds: bool) -> list[Goal] | None:
    return [] if holds else None


def same_number(wanted: Arg, found: Arg) -> bool:
    if isinstance(wanted, Constant) or isinstance(found, (Value, Constant)):
        return False
    if isinstance(wanted, float) and math.isnan(wanted):
        return isinstance(found, float) and math.isnan(found)
    return same(wanted, found)


def _arguments(term: Apply, node: Node) -> list[Goal] | None:
    """Each argument of the call beside the node's; None when one that the rule leaves out is not
    at its default."""
    known = signature(node.op)
    assert known is not None
    given = dict(zip(known.positional, node.args, strict=False)) | dict(node.kwargs)
    wanted = term.named(node.op)
    goals: list[Goal] = [
        (pattern, given[name] if name in given else known.defaults.get(name))  # type: ignore[misc]
        for name, pattern in wanted.items()
    ]
    for name, arg in given.items():
        if name not in wanted and (name not in _INESSENTIAL or arg is True):
            default = known.defaults.get(name)
            if isinstance(arg, (Value, Constant, Dim)) or not same_number(default, arg):  # type: ignore[arg-type]
                return None
    return goals


# Arguments that say where and how a result is stored; its type says so too, unless they are true.
_INESSENTIAL: Final = frozenset({"device", "layout", "memory_format", "pin_memory", "non_blocking"})


def _other_order(goals: list[Goal], node: Node) -> list[Goal] | None:
    """The goals with the operands of a commutative operator the other way round."""
    if node.op.name not in COMMUTATIVE or len(goals) != 2:
        return None
    (a, x), (b, y) = goals
    return [(b, x), (a, y)]
