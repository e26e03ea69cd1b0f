"""Operators: one interned `Op` per name, with all its facts.

An ATen overload takes what torch knows (schema, tags) and adds what `ir/facts.py` and
`ir/pointwise.py` say; the `rw.*` dialect is declared in `ir/dialect.py`; Python scalar
functions on sizes and numbers (`py.*`) and higher-order operators (`hop.*`) complete the set.
"""

from __future__ import annotations

import enum
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, Final

import torch

from rewright.ir.errors import ImportFailure, did_you_mean
from rewright.ir.plugins import plugins

if TYPE_CHECKING:
    from rewright.ir.dialect import DialectFacts


class Effect(enum.Enum):
    """What an operator does besides computing. Nodes of one effect keep their order."""

    NONE = "none"
    RNG = "rng"
    COLLECTIVE = "collective"
    HOST = "host"
    MUTATION = "mutation"


class Kind(enum.Enum):
    """How an operator relates to memory; this decides what a region may hold."""

    POINTWISE = "pointwise"  # one output element from one element of each input
    VIEW = "view"  # no data moves: the result shares its input's storage
    REDUCTION = "reduction"  # norms, softmax, sums: rows are read whole
    INDEX = "index"  # reads at computed places: gather, cat, slices, pads
    CREATION = "creation"  # no tensor input
    CONTRACTION = "contraction"  # matmul, convolution, attention
    REGION = "region"  # carries a nested graph that says what it computes
    STORAGE = "storage"  # kernel level: alloc, free
    OTHER = "other"


@dataclass(frozen=True, eq=False)
class Op:
    """One operator. Interned: compare with `is`; make with `op(name)`."""

    name: str
    target: Callable[..., Any] | None
    effect: Effect
    kind: Kind
    dialect: DialectFacts | None = None

    def __repr__(self) -> str:
        return self.name

    @property
    def namespace(self) -> str:
        return self.name.split(".", 1)[0]

    @cached_property
    def schema(self) -> torch.FunctionSchema | None:
        """torch's schema, or None for operators that torch does not know."""
        return self.target._schema if isinstance(self.target, torch._ops.OpOverload) else None

    @cached_property
    def argument_names(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.schema.arguments) if self.schema else ()

    @property
    def has_body(self) -> bool:
        """True when a nested graph says what it computes."""
        return self.dialect is not None and self.dialect.body is not None

    @property
    def is_pure(self) -> bool:
        return self.effect is Effect.NONE

    def __reduce__(self) -> tuple[Callable[[str], Op], tuple[str]]:
        return op, (self.name,)


@cache
def op(name: str) -> Op:
    """The operator called `name`, as `aten.add.Tensor`, `rw.fused`, `py.mul`, `hop.cond`.

    Raises ImportFailure with the nearest known name when there is none.
    """
    namespace, _, rest = name.partition(".")
    if namespace == "rw":
        return _dialect_op(name)
    if namespace == "py":
        return _python_op(name, rest)
    if namespace == "hop":
        return _higher_order_op(name, rest)
    return _torch_op(name)


def op_of_target(target: object) -> Op:
    """The operator of an fx node's target. Raises ImportFailure for a foreign function."""
    if isinstance(target, torch._ops.OpOverload):
        return op(f"{target.namespace}.{target._schema.name.split('::')[1]}.{target._overloadname}")
    if isinstance(target, torch._ops.HigherOrderOperator):
        return op(f"hop.{target.name()}")
    for name, function in PYTHON_FUNCTIONS.items():
        if function is target:
            return op(f"py.{name}")
    raise ImportFailure(f"a call of {target!r} is not an ATen operator")


PYTHON_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "truediv": operator.truediv,
    "mod": operator.mod,
    "pow": operator.pow,
    "neg": operator.neg,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "and": operator.and_,
    "or": operator.or_,
    "floor": math.floor,
    "ceil": math.ceil,
    "trunc": math.trunc,
    "round": round,
    "abs": abs,
    "sym_float": torch.sym_float,
    "sym_int": torch.sym_int,
    "sym_max": torch.sym_max,
    "sym_min": torch.sym_min,
    "sym_not": torch.sym_not,
    "sym_ite": torch.sym_ite,
    "sym_sum": torch.sym_sum,
    "sym_sqrt": torch._sym_sqrt,  # type: ignore[attr-defined]
    "getitem": operator.getitem,
}


def _torch_op(name: str) -> Op:
    target = _find_overload(name)
    if target is None and plugins("ops"):
        target = _find_overload(name)
    if target is None:
        raise ImportFailure(f"unknown operator '{name}'{did_you_mean(name, _near_names(name))}")
    from rewright.ir.facts import kind_of

    return Op(name, target, _effect_of(target), kind_of(name, target))


def _find_overload(name: str) -> torch._ops.OpOverload | None:
    parts = name.split(".")
    if len(parts) != 3:
        return None
    found: object = torch.ops
    for part in parts:
        try:
            found = getattr(found, part)
        except (AttributeError, RuntimeError):
            return None
    return found if isinstance(found, torch._ops.OpOverload) else None


def _near_names(name: str) -> list[str]:
    namespace, _, rest = name.partition(".")
    prefix = f"{namespace}::{rest[:2]}"
    known = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith(prefix)]
    return [_dotted(n) for n in sorted(known)]


def _dotted(qualified: str) -> str:
    namespace, _, rest = qualified.partition("::")
    return f"{namespace}.{rest}" if "." in rest else f"{namespace}.{rest}.default"


# Namespaces whose operators talk to other processes.
_COLLECTIVE_NAMESPACES: Final = frozenset(
    {"_c10d_functional", "_c10d_functional_autograd", "c10d", "c10d_functional"}
    | {"_dtensor", "symm_mem"}
)
_HOST_OPS: Final = frozenset(
    {
        "aten._assert_async.msg",
        "aten._assert_async.default",
        "aten._assert_scalar.default",
        "aten._assert_tensor_metadata.default",
        "aten.sym_constrain_range.default",
        "aten.sym_constrain_range_for_size.default",
        "aten._functional_assert_async.msg",
        "aten._functional_sym_constrain_range.default",
        "aten._print.default",
        "aten._local_scalar_dense.default",
    }
)


def _effect_of(target: torch._ops.OpOverload) -> Effect:
    name = f"{target.namespace}.{target._schema.name.split('::')[1]}.{target._overloadname}"
    if target.namespace in _COLLECTIVE_NAMESPACES:
        return Effect.COLLECTIVE
    if name in _HOST_OPS:
        return Effect.HOST
    if torch.Tag.nondeterministic_seeded in target.tags:
        return Effect.RNG
    return Effect.MUTATION if target._schema.is_mutable else Effect.NONE


def _dialect_op(name: str) -> Op:
    from rewright.ir.dialect import DIALECT

    facts = DIALECT.get(name)
    if facts is None:
        raise ImportFailure(f"unknown operator '{name}'{did_you_mean(name, DIALECT)}")
    return Op(name, None, facts.effect, facts.kind, facts)


def _python_op(name: str, function: str) -> Op:
    target = PYTHON_FUNCTIONS.get(function)
    if target is None:
        known = [f"py.{n}" for n in PYTHON_FUNCTIONS]
        raise ImportFailure(f"unknown operator '{name}'{did_you_mean(name, known)}")
    return Op(name, target, Effect.NONE, Kind.OTHER)


def _higher_order_op(name: str, rest: str) -> Op:
    from torch._ops import _higher_order_ops

    target = _higher_order_ops.get(rest)
    if target is None:
        known = [f"hop.{n}" for n in _higher_order_ops]
        raise ImportFailure(f"unknown operator '{name}'{did_you_mean(name, known)}")
    return Op(name, target, Effect.HOST, Kind.OTHER)


@cache
def out_variant(operator_: Op) -> torch._ops.OpOverload | None:
    """The overload that writes its one result into `out=`, when torch has a real one.

    Overloads that torch generates (compute, then copy) are not counted: they cost more memory and
    time than they save.
    """
    target, schema = operator_.target, operator_.schema
    if not isinstance(target, torch._ops.OpOverload) or schema is None or schema.is_mutable:
        return None
    wanted = [(a.name, str(a.type)) for a in schema.arguments]
    packet = target.overloadpacket
    for name in packet.overloads():
        overload = getattr(packet, name)
        arguments = overload._schema.arguments
        if not arguments or arguments[-1].name != "out" or torch.Tag.generated in overload.tags:
            continue
        if [(a.name, str(a.type)) for a in arguments[:-1]] == wanted:
            return overload  # type: ignore[no-any-return]
    return None
