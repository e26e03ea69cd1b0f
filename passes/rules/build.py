"""What a rule gives, as nodes: types are inferred, and must be those of what is replaced."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rewright.ir import Arg, CheckError, Node, TensorType, Type, UnsupportedError, Value
from rewright.passes.emitter import Emitter
from rewright.passes.rules.functions import Unanswered
from rewright.passes.rules.match import Match, evaluate
from rewright.passes.rules.terms import Apply, Bind, Items, Many, Term, Variable
from rewright.passes.rules.work import Work


@dataclass
class Replacement:
    """New nodes in order, and the values to read instead of the roots that no new node makes."""

    match: Match
    roots: tuple[int, ...]
    nodes: list[Node] = field(default_factory=list)
    values: dict[Value, Value] = field(default_factory=dict)


def build(match: Match, work: Work) -> Replacement | str:
    """The replacement of a match, or why there is none that fits."""
    builder = _Builder(match, work)
    try:
        builder.run()
    except Unanswered:
        return "something it computes has no value here"
    except (CheckError, UnsupportedError) as error:
        return error.message
    return builder.finish()


class _Builder:
    def __init__(self, match: Match, work: Work) -> None:
        self.match, self.work = match, work
        self.replaced = {name: match.values[name] for name in match.rule.roots}
        self.made = dict(match.values)
        producer = work.producer(match.values[match.rule.roots[-1]])
        assert producer is not None
        self.emit = Emitter(work.fresh, producer)

    def run(self) -> None:
        for bind in self.match.rule.give:
            results = self.result_of(bind)
            for name, value in zip(bind.results, results, strict=True):
                self.made[name] = value

    def finish(self) -> Replacement | str:
        """Results keep the names of what they replace; what was there already is read instead."""
        new = {v.name for node in self.emit.nodes for v in node.results}
        renamed: dict[Value, Value] = {}
        values: dict[Value, Value] = {}
        for name, old in self.replaced.items():
            value = self.made[name]
            if not _alike(value.type, old.type, exactly=self.work.leaves(old)):
                return f"it would give {_shown(value)}, not {_shown(old)}"
            if value.name in new and value not in renamed:
                renamed[value] = old
            else:
                values[old] = value
        # A value that stands for two roots has the name of the first.
        values = {old: renamed.get(v, v) for old, v in values.items()}
        nodes = [self.named(node, renamed) for node in self.emit.nodes]
        numbers = [self.work.number(old) for old in self.replaced.values()]
        roots = tuple(dict.fromkeys(n for n in numbers if n is not None))
        return Replacement(self.match, roots, nodes, values)

    @staticmethod
    def named(node: Node, renamed: Mapping[Value, Value]) -> Node:
        results = tuple(renamed.get(v, v) for v in node.results)
        return dataclasses.replace(node.replace(renamed), results=results)

    def result_of(self, bind: Bind) -> Sequence[Value]:
        if isinstance(bind.term, Apply):
            return self.call(bind.term, len(bind.results), bind.like)
        found = self.argument(bind.term)
        if not isinstance(found, Value):
            raise Unanswered
        return (found,)

    def argument(self, term: Term) -> Arg:
        if isinstance(term, Variable):
            return self.made[term.name]
        if isinstance(term, Apply):
            return self.call(term, 1, None)[0]
        if isinstance(term, Items):
            return tuple(
                arg
                for item in term.items
                for arg in (
                    self.match.lists[item.name]
                    if isinstance(item, Many)
                    else (self.argument(item),)
                )
            )
        scope = Match(self.match.rule, self.made, self.match.attributes, self.match.lists)
        found: Arg = evaluate(term, scope, self.work)
        return found

    def call(self, term: Apply, results: int, like: str | None) -> Sequence[Value]:
        operator = term.ops[0]
        given = {name: self.argument(arg) for name, arg in term.named(operator).items()}
        types = None if like is None else (self.made[like].type,)
        return self.emit.call(operator, (), given, types)[:results]


def _alike(new: Type, old: Type, *, exactly: bool) -> bool:
    """One type may stand for the other: the same, but for strides of dimensions of one element,
    which only who gets the tensor can see."""
    if new == old:
        return True
    if exactly or not isinstance(new, TensorType) or not isinstance(old, TensorType):
        return False
    same = (new.dtype, new.shape, new.device) == (old.dtype, old.shape, old.device)
    strides = zip(new.layout, old.layout, old.shape, strict=False)
    return same and all(a == b or size == 1 for a, b, size in strides)


def _shown(value: Value) -> str:
    from rewright.ir.show import show_type

    return show_type(value.type)
