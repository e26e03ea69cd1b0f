"""A rule: what it matches, when it holds, what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from rewright.ir import Op
from rewright.ir.source import Source
from rewright.passes.rules.terms import (
    Apply,
    Bind,
    Either,
    Many,
    Term,
    variables,
    within,
)

# exact: the same bits. reassociating: equal in real arithmetic. approximate: within an error
# budget.
KINDS = ("exact", "reassociating", "approximate")


@dataclass(frozen=True)
class Size:
    """A dimension of a declared tensor; with `rest`, any number of them under one name."""

    term: Term | None
    rest: bool = False


@dataclass(frozen=True)
class Tensor:
    """`%x: float[b..., n]`. `kind` is a class of dtypes or a dtype; `dims` None: any shape."""

    name: str
    kind: str
    dims: tuple[Size, ...] | None = None


@dataclass(frozen=True)
class Parameter:
    """`p: order(%x)`: an attribute and where it comes from (`domains.py`)."""

    name: str
    domain: str
    arguments: tuple[Term, ...] = ()


@dataclass(frozen=True)
class Rule:
    """Where `match` is found and every test of `when` holds, `give` takes the place of the values
    that both define (`roots`; a rule of one expression has one, without a name)."""

    name: str
    kind: str
    tensors: Mapping[str, Tensor]
    parameters: Mapping[str, Parameter]
    match: tuple[Bind, ...]
    when: tuple[Term, ...]
    give: tuple[Bind, ...]
    text: str = field(compare=False, repr=False)
    source: Source = field(compare=False, repr=False)
    place: int = field(default=0, compare=False, repr=False)

    def __str__(self) -> str:
        return self.text

    @property
    def is_exact(self) -> bool:
        return self.kind == "exact"

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """Names of the values that the rule replaces, as `match` defines them."""
        given = {name for bind in self.give for name in bind.results}
        found = tuple(n for bind in self.match for n in bind.results if n in given)
        return found or (ROOT,)

    @property
    def joins(self) -> bool:
        """Whether it replaces values that do not read each other, as products of one input."""
        return len(self.roots) > 1

    @cached_property
    def root_ops(self) -> tuple[Op, ...]:
        """Operators that can be the last of the match: where looking for it begins."""
        return tuple(dict.fromkeys(_ops(self.match[-1].term)))

    @cached_property
    def lists(self) -> frozenset[str]:
        """Variables that stand for any number of values; on their own they are the first."""
        terms = (t for bind in self.match for t in within(bind.term))
        return frozenset(t.name for t in terms if isinstance(t, Many))

    @cached_property
    def bound(self) -> frozenset[str]:
        """Values that the match defines or reads."""
        defined = {name for bind in self.match for name in bind.results}
        return frozenset(defined | {v for bind in self.match for v in variables(bind.term)})


# What the value is called that a rule of one expression replaces.
ROOT = ""


def _ops(term: Term) -> tuple[Op, ...]:
    if isinstance(term, Apply):
        return term.ops
    if isinstance(term, Either):
        return tuple(op for option in term.options for op in _ops(option))
    return ()
