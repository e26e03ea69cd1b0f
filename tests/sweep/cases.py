"""What is swept: PyTorch's table of operators (`op_db`) by dtype and direction, with samples."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

SAMPLES: Final = 4
DIRECTIONS: Final = ("forward", "backward")
# Their values are whatever the memory holds.
UNINITIALIZED: Final = frozenset(
    {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
)


@dataclass(frozen=True, order=True)
class Case:
    """One operator (with its variant) at one dtype, in one direction."""

    operator: str
    dtype: str
    direction: str

    def __str__(self) -> str:
        return f"{self.operator} {self.dtype} {self.direction}"

    @staticmethod
    def parse(text: str) -> Case:
        return Case(*text.rsplit(" ", 2))


@dataclass(frozen=True)
class Sample:
    """Arguments of one call: `function(*args, **kwargs)`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    process: Any = None  # what the table applies to an output before it takes gradients

    @property
    def tensors(self) -> list[Tensor]:
        return [x for x in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(x, Tensor)]


@cache
def operators() -> dict[str, Any]:
    """OpInfos by name, `name.variant` where there are variants."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    named = ((f"{o.name}.{o.variant_test_name}".rstrip("."), o) for o in op_db)
    return dict(sorted(named, key=lambda pair: pair[0]))


def all_cases() -> list[Case]:
    return [
        Case(name, str(dtype).removeprefix("torch."), direction)
        for name, info in operators().items()
        for direction in DIRECTIONS
        for dtype in sorted(dtypes_of(info, direction), key=str)
    ]


def dtypes_of(info: Any, direction: str) -> set[torch.dtype]:
    if direction == "forward":
        return set(info.supported_dtypes("cpu"))
    if not info.supports_autograd:
        return set()
    return set(info.supported_backward_dtypes("cpu")) & set(info.supported_dtypes("cpu"))


def samples(case: Case) -> list[Sample]:
    """At most `SAMPLES` of the operator's samples, chosen by hash; the same ones every time."""
    info, dtype = operators()[case.operator], getattr(torch, case.dtype)
    torch.manual_seed(seed_of(case.operator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = list(info.sample_inputs("cpu", dtype, requires_grad=case.direction == "backward"))
    order = sorted(range(len(drawn)), key=lambda i: seed_of(f"{case.operator} {case.dtype} {i}"))
    chosen = [drawn[i] for i in sorted(order[:SAMPLES])]
    return [Sample((s.input, *s.args), dict(s.kwargs), s.output_process_fn_grad) for s in chosen]


def seed_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def slice_of(cases: list[Case], count: int) -> list[Case]:
    """`count` of the cases, spread by hash: a new case moves few others."""
    return sorted(sorted(cases, key=lambda c: seed_of(f"slice {c}"))[:count])


def shard(cases: list[Case], number: int, of: int) -> Iterator[Case]:
    return (case for i, case in enumerate(cases) if i % of == number)
