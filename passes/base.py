"""Pass: a frozen dataclass whose fields are its options. Env: what the driver hands to passes."""

from __future__ import annotations

import abc
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from rewright.ir import Graph, OptionError, Step, did_you_mean
from rewright.ir.plugins import plugins
from rewright.passes.fuel import Fuel
from rewright.passes.log import DecisionLog
from rewright.passes.specs import Spec, parse_specs, read_value, show_spec

if TYPE_CHECKING:
    from rewright.costmodel import CostModel, Tools
    from rewright.ir.target import Target
    from rewright.passes.budget import ErrorBudget

_PASSES: dict[str, type[Pass]] = {}


@dataclass(frozen=True)
class Env:
    """What a pass may use. `tools` is None where nothing can be compiled or measured; `error` is
    how far outputs may be off, as measured on `samples`, each all inputs of the graph; `fuel` is
    how often rules may be applied, where somebody counts. It and `log` are all that changes."""

    cost: CostModel
    target: Target
    tools: Tools | None = None
    error: ErrorBudget | None = None
    samples: tuple[Sequence[Any], ...] = ()
    seed: int = 0
    log: DecisionLog = field(default_factory=DecisionLog)
    fuel: Fuel | None = None


class Pass(abc.ABC):
    """One step of a pipeline. Subclasses are frozen dataclasses; making one registers its name.

    `takes` and `gives` are the levels it maps between: aten, fused, kernel.
    """

    name: ClassVar[str]
    takes: ClassVar[str]
    gives: ClassVar[str]

    def __init_subclass__(cls, *, name: str, takes: str, gives: str) -> None:
        super().__init_subclass__()
        cls.name, cls.takes, cls.gives = name, takes, gives
        _PASSES[name] = cls

    @abc.abstractmethod
    def run(self, graph: Graph, env: Env) -> Graph:
        """The changed graph; `graph` itself when there is nothing to do."""

    def __str__(self) -> str:
        return show_spec(self.name, _changed_options(self))

    @staticmethod
    def parse(spec: str) -> Pass:
        """Read what `str(pass)` prints. Raises OptionError for an unknown pass or option."""
        found = parse_specs(spec)
        if len(found) != 1:
            raise OptionError(f"'{spec}' is a list of passes, not one")
        return from_spec(found[0])

    def gave(self, graph: Graph, renamed: Mapping[str, tuple[str, ...]]) -> Graph:
        """`graph` with this pass in its history; `renamed` says what became of each name."""
        return graph.with_step(Step(str(self), tuple(renamed.items())))


def passes() -> Mapping[str, type[Pass]]:
    """Every pass by its name, in alphabetical order; those of plugins too, which are classes under
    `rewright.passes`."""
    plugins("passes")
    return dict(sorted(_PASSES.items()))


def from_spec(spec: Spec) -> Pass:
    """The pass that a parsed spec names. Raises OptionError for an unknown pass or option."""
    found = _PASSES.get(spec.name) or passes().get(spec.name)
    if found is None:
        raise OptionError(
            f"no pass named '{spec.name}'{did_you_mean(spec.name, _PASSES)}",
            help=f"passes are {', '.join(passes())}",
        )
    values = {}
    for option, written in spec.options:
        key = option.replace("-", "_")
        if key in values:
            raise OptionError(f"option '{option}' is given twice", who=spec.name)
        type = _option_type(found, option)
        try:
            values[key] = read_value(written, type)
        except ValueError as error:
            raise OptionError(f"option '{option}' wants {error}", who=spec.name) from None
    _require_all(found, values)
    return found(**values)


def _fields(cls: type[Pass]) -> tuple[dataclasses.Field[object], ...]:
    # A pass without options needs no dataclass decorator to be one.
    return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()


def _option_type(cls: type[Pass], option: str) -> object:
    known = {f.name.replace("_", "-"): f.name for f in _fields(cls)}
    if option not in known:
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise OptionError(
            f"no option '{option}'{did_you_mean(option, known)}", who=cls.name, help=takes
        )
    return typing.get_type_hints(cls)[known[option]]


def _require_all(cls: type[Pass], values: Mapping[str, object]) -> None:
    for f in _fields(cls):
        if _default(f) is dataclasses.MISSING and f.name not in values:
            raise OptionError(f"option '{f.name.replace('_', '-')}' is missing", who=cls.name)


def _changed_options(of: Pass) -> dict[str, object]:
    values = {f.name: (getattr(of, f.name), _default(f)) for f in _fields(type(of))}
    return {name: value for name, (value, default) in values.items() if value != default}


def _default(f: dataclasses.Field[object]) -> object:
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return f.default
