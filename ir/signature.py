"""Calls in one spelling: arguments in the schema's order, defaults left out, keywords sorted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Final

import torch

from rewright.ir import hop_args
from rewright.ir.errors import ImportFailure
from rewright.ir.graph import Arg, Node, freeze
from rewright.ir.ops import Op


class _Missing:
    """Stands for the default of an argument that has none; equal to nothing an argument can be."""


_MISSING: Final = _Missing()


@dataclass(frozen=True)
class Signature:
    """What normalizing a call and reading its results needs of a schema, read out once."""

    positional: tuple[str, ...]
    keyword_only: tuple[str, ...]
    defaults: Mapping[str, object]
    returns_list: bool
    returns: int
    is_mutable: bool


@cache
def signature(op: Op) -> Signature | None:
    """The signature of an operator that torch knows, else None."""
    if op.schema is None:
        return None
    arguments = op.schema.arguments
    return Signature(
        positional=tuple(a.name for a in takewhile(lambda a: not a.kwarg_only, arguments)),
        keyword_only=tuple(a.name for a in arguments if a.kwarg_only),
        defaults={
            a.name: freeze(a.default_value) if a.has_default_value() else _MISSING
            for a in arguments
        },
        returns_list=len(op.schema.returns) == 1 and _is_list(op.schema.returns[0].type),
        returns=len(op.schema.returns),
        is_mutable=op.schema.is_mutable,
    )


def normalize(
    op: Op, args: tuple[Arg, ...], kwargs: Mapping[str, Arg]
) -> tuple[tuple[Arg, ...], tuple[tuple[str, Arg], ...]]:
    """Positional arguments without trailing defaults; keyword-only ones by name, without defaults.

    Operators without a schema keep what they are given, keywords sorted.
    """
    known = signature(op)
    if known is None:
        return args, tuple(sorted(kwargs.items()))
    unknown = [name for name in kwargs if name not in known.defaults]
    if unknown or len(args) > len(known.positional):
        raise ImportFailure(f"{op} is called with arguments that its schema does not have")
    named = dict(kwargs)
    if named:
        args = _with_named(op, known, args, named)
    last = len(args)
    while last and _same(args[last - 1], known.defaults[known.positional[last - 1]]):
        last -= 1
    keyword = ((name, named[name]) for name in sorted(named))
    kept = tuple((k, a) for k, a in keyword if not _same(a, known.defaults[k]))
    return args[:last], kept


def result_paths(node: Node) -> tuple[hop_args.Path, ...]:
    """Where each result lies in what calling the operator returns; () when it is that itself."""
    if node.op.namespace == "hop":
        return tuple(hop_args.paths(node))
    known = signature(node.op)
    if known is None or (known.returns == 1 and not known.returns_list):
        return ((),) * len(node.results)
    return tuple((index,) for index in range(len(node.results)))


def _with_named(
    op: Op, known: Signature, args: tuple[Arg, ...], named: dict[str, Arg]
) -> tuple[Arg, ...]:
    """Positional arguments with those given by name moved to their places, out of `named`."""
    rest = known.positional[len(args) :]
    given = [index for index, name in enumerate(rest) if name in named]
    if not given:
        return args
    moved = []
    for name in rest[: given[-1] + 1]:
        value = named.pop(name, known.defaults[name])
        if value is _MISSING:
            raise ImportFailure(f"{op} is called without its argument '{name}'")
        moved.append(value)
    return (*args, *freeze(moved))  # type: ignore[misc]


def _same(a: object, b: object) -> bool:
    """Equal and of equal types: to an operator 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b and (not isinstance(a, float) or repr(a) == repr(b))


def _is_list(type: torch.JitType) -> bool:
    return type.kind() == "ListType"
