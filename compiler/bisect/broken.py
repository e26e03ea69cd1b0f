"""When is a graph broken? Predicates on graphs: wrong numbers or a crash here, a loss of time in
`slow.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import torch

from rewright.bisect.judge import Reference, Verdict
from rewright.bisect.running import Crash, Subject, crash_of
from rewright.ir import Graph, TensorType, dims_in, hint
from rewright.ir.check import check
from rewright.sources import random_inputs

Data = Callable[[Graph], Sequence[Any]]
"""Inputs for a graph."""

# How many times what is allowed an error is that is as large as any.
LARGE: Final = 1e8


@dataclass(frozen=True)
class Fault:
    """What is wrong with a graph. `kind` is numbers, crash or slow; `size` tells how bad it is: how
    many times the error is what is allowed, or the time what it was."""

    kind: str
    what: str
    size: float = 1.0
    verdict: Verdict | None = None
    crash: Crash | None = None

    def __str__(self) -> str:
        return self.what


def wrong(verdict: Verdict) -> Fault | None:
    if verdict.holds:
        return None
    return Fault("numbers", str(verdict), verdict.excess, verdict=verdict)


def crashed(error: BaseException) -> Fault:
    crash = crash_of(error)
    return Fault("crash", str(crash), crash=crash)


def fault_of(graph: Graph, subject: Subject, inputs: Sequence[Any]) -> Fault | None:
    """What is wrong with a graph after `subject`, on these inputs. Raises what the graph itself
    raises."""
    reference = Reference.of(graph, inputs)
    try:
        found = subject(graph, inputs)
    except Exception as error:
        return crashed(error)
    return wrong(reference.verdict(found))


class Broken(Protocol):
    """What is wrong with a graph; None when nothing is, or when it does not run at all."""

    def __call__(self, graph: Graph) -> Fault | None: ...

    def like(self, fault: Fault) -> Broken:
        """The predicate for what is as wrong as that."""
        ...


@dataclass(frozen=True)
class Breaks:
    """After `subject` a graph has, on `data`, a fault like one that is known: as large an error, or
    the same crash."""

    subject: Subject
    data: Data
    known: Fault
    least: float = 1.0

    def __call__(self, graph: Graph) -> Fault | None:
        try:
            check(graph, self.subject.takes)
            fault = fault_of(graph, self.subject, self.data(graph))
        except Exception:
            return None
        return fault if fault is not None and self._is_alike(fault) else None

    def _is_alike(self, fault: Fault) -> bool:
        if fault.kind != self.known.kind:
            return False
        if fault.crash is None or self.known.crash is None:
            return fault.size > self.least
        return fault.crash.signature == self.known.crash.signature

    def like(self, fault: Fault) -> Breaks:
        """Of much less of an error, rounding could be the reason."""
        return replace(self, least=min(fault.size, LARGE) ** 0.5)


# --- inputs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomData:
    """Random numbers, that depend on nothing but the graph's signature."""

    def __call__(self, graph: Graph) -> Sequence[Any]:
        return random_inputs(graph)


@dataclass(frozen=True, eq=False)
class HeldData:
    """What values of a run hold, by name; where sizes are smaller, the first elements."""

    values: Mapping[str, Any]

    def __call__(self, graph: Graph) -> Sequence[Any]:
        return [self._of(i.value.name, i.value.type) for i in graph.inputs]

    def _of(self, name: str, type: object) -> Any:
        held = self.values[name]
        if not isinstance(type, TensorType) or not isinstance(held, torch.Tensor):
            return held
        for dim, size in enumerate(type.shape):
            if isinstance(size, int) and size != held.shape[dim]:
                held = held.narrow(dim, 0, size)
        return _laid_out(held, type)


def _laid_out(x: torch.Tensor, type: TensorType) -> torch.Tensor:
    """`x` with the strides that are declared: kernels read by them, and ATen may give others."""
    if any(True for _ in dims_in((type.shape, type.layout))):
        return x
    strides = tuple(map(hint, type.layout))
    made = torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)
    # Elements of an expanded tensor share memory; the first of each set stands for all.
    alone = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in strides)
    made[alone].copy_(x[alone])
    return made
