"""A graph being drawn that runs while it is drawn: what each value holds is known, in its own types
and in float64.

That keeps out what has no good reference by nature. A step where precisions may disagree by more
than rounding (a comparison of floats, a floor, an integer from a float) is only taken on values
that are exact: the same in every precision, whoever computes them. Values stay small, so that no
dtype overflows, and a value whose own precision leaves little of it is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from drawn_inputs import HINTS, OFFSET, OTHERS, content
from drawn_types import CHECKED, FITTED, fitted
from rewright.ir.constant import Constant
from rewright.ir.dims import Dim, Size, evaluate
from rewright.ir.graph import Arg, Node, Value, map_leaves
from rewright.ir.ops import op
from rewright.ir.precision import Precision
from rewright.ir.types import DTYPE_NAMES, TensorType

Results = list[torch.Tensor]

# Types are found at all of these, the first being the hints; graphs run at those of `RUN`.
POINTS: Final[tuple[Mapping[str, int], ...]] = tuple(
    {"B0": a, "B1": b} for a, b in (*FITTED, *CHECKED)
)
RUN: Final = tuple(POINTS.index(sizes) for sizes in (HINTS, *OTHERS))

# Elements at the hints: a graph is for finding mistakes, not for measuring.
LARGEST: Final = 4096
# Numbers beyond this may overflow f16 a few operators later.
GREATEST: Final = 512.0
_GREATEST_INTEGER: Final = 2**20
# A value whose own precision is farther than this from float64 says little about who computes it.
LEAST_EXACT: Final = 0.05

# Whoever computes these gives the same number wherever it needs no rounding.
EXACT: Final = frozenset(
    f"aten.{name}"
    for name in (
        *("add.Tensor", "sub.Tensor", "rsub.Scalar", "mul.Tensor", "neg.default", "abs.default"),
        *("relu.default", "maximum.default", "minimum.default", "square.default", "sgn.default"),
        *("sign.default", "floor.default", "ceil.default", "round.default", "trunc.default"),
        *("clamp.default", "clamp_min.default", "clamp_max.default", "clamp.Tensor"),
        *("where.self", "masked_fill.Scalar", "_to_copy.default", "clone.default"),
        *("full_like.default", "zeros_like.default", "ones_like.default", "lerp.Scalar"),
        *("leaky_relu.default", "threshold.default", "hardtanh.default", "relu6.default"),
        *("sum.dim_IntList", "sum.default", "amax.default", "amin.default", "max.default"),
        *("min.default", "max.dim", "min.dim", "cumsum.default", "prod.dim_int"),
        *("index_select.default", "gather.default", "embedding.default", "index.Tensor"),
        *("index_put.default", "scatter.src", "scatter.value", "scatter_add.default"),
        *("cat.default", "stack.default", "constant_pad_nd.default", "flip.default"),
        *("roll.default", "tril.default", "triu.default", "slice_scatter.default"),
        *("select_scatter.default", "slice_backward.default", "select_backward.default"),
        *("repeat.default", "mm.default", "bmm.default", "copysign.Tensor", "heaviside.default"),
        *("remainder.Scalar", "fmod.Scalar", "div.Tensor_mode", "floor_divide.default"),
        *("full.default", "arange.default", "arange.start_step", "new_zeros.default"),
        *("scalar_tensor.default", "diagonal_scatter.default", "nan_to_num.default"),
    )
)
# They jump: the least change of an argument may change the result by much.
JUMPING: Final = frozenset(
    f"aten.{name}"
    for name in (
        *("floor.default", "ceil.default", "round.default", "trunc.default", "sign.default"),
        *("sgn.default", "frac.default", "remainder.Scalar", "remainder.Tensor", "fmod.Scalar"),
        *("fmod.Tensor", "div.Tensor_mode", "floor_divide.default", "heaviside.default"),
        *("threshold.default", "hardshrink.default", "copysign.Tensor", "max.dim", "min.dim"),
        *("signbit.default", "threshold_backward.default"),
    )
)
_FAILURES: Final = (RuntimeError, IndexError, ValueError, TypeError, ArithmeticError)


@dataclass(frozen=True)
class Held:
    """What a value holds: in its own type at every point, and in float64 where graphs run.

    `exact`: the numbers are the same in every precision, however they are computed.
    """

    own: Results
    wide: Results
    exact: bool

    @property
    def special(self) -> bool:
        """Whether it holds an infinity or a NaN."""
        return any(t.is_floating_point() and not bool(t.isfinite().all()) for t in self.wide)

    @property
    def empty(self) -> bool:
        """Whether it holds no finite number at all."""
        return next(self._numbers(), None) is None

    @property
    def least(self) -> float:
        """The least number; infinity when there are none."""
        return min((float(t.min()) for t in self._numbers()), default=float("inf"))

    @property
    def greatest(self) -> float:
        return max((float(t.max()) for t in self._numbers()), default=float("-inf"))

    @property
    def swells(self) -> bool:
        """Whether some of its numbers, multiplied, may be more than half precision holds: then it
        depends on the order whether zero times that is zero."""
        magnitudes = (float(t.abs().clamp(min=1).log2().sum()) for t in self._numbers())
        return max(magnitudes, default=0.0) > 15

    @property
    def smallest(self) -> float:
        """The least magnitude: how near to zero it comes."""
        return min((float(t.abs().min()) for t in self._numbers()), default=float("inf"))

    def _numbers(self) -> Iterator[torch.Tensor]:
        for t in self.wide if self.wide[0].is_floating_point() else self.own:
            finite = t[t.isfinite()].double()
            if finite.numel():
                yield finite


@dataclass
class Sketch:
    """A graph being drawn. `off` says which nodes not to draw."""

    draw: DrawFn
    dtypes: Sequence[torch.dtype]
    symbolic: bool = False
    off: Callable[[Node], bool] = lambda node: False
    inputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    held: dict[Value, Held] = field(default_factory=dict)

    @property
    def points(self) -> tuple[Mapping[str, int], ...]:
        """Without symbols one point tells everything."""
        return POINTS if self.symbolic else POINTS[:1]

    @property
    def runs(self) -> tuple[int, ...]:
        """Which of the points the graph will run at."""
        return RUN if self.symbolic else RUN[:1]

    # --- drawing --------------------------------------------------------------------------------

    def one_of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def chance(self) -> bool:
        return self.draw(st.booleans())

    def pick(self, fits: Callable[[Value], bool] = lambda value: True) -> Value | None:
        """Some value that fits, new ones more often than old ones; None when there is none."""
        fit = [v for v in self.held if fits(v)]
        if self.chance():
            fit = fit[-4:]
        return self.draw(st.sampled_from(fit)) if fit else None

    def floating(self, rank: int = 0) -> Value | None:
        """Some value of a floating dtype with at least `rank` dimensions."""
        return self.pick(lambda v: is_floating(v) and v.tensor.rank >= rank)

    def any_value(self, rank: int = 0) -> Value | None:
        return self.pick(lambda v: v.tensor.rank >= rank)

    def axis(self, value: Value) -> int:
        """Some dimension, counted from either end."""
        rank = value.tensor.rank
        return self.draw(st.integers(0, rank - 1)) - (rank if self.chance() else 0)

    # --- adding ---------------------------------------------------------------------------------

    def input(self, kind: str, type: TensorType, *, off: bool = False) -> Value:
        """A new input; `kind` says what it holds (`drawn_inputs`)."""
        place = len(self.inputs)
        value = Value(f"{kind}{place}{OFFSET if off else ''}", type)
        own = [content(value, point) for point in self.points]
        self.inputs.append(value)
        self.held[value] = Held(own, [_WIDE.convert(own[i]) for i in self.runs], exact=True)
        return value

    def constant(self, data: torch.Tensor) -> Value:
        """A constant with these numbers, exact in every dtype."""
        value = Value(self._fresh_names(1)[0], TensorType(data.dtype, tuple(data.shape)))
        self.nodes.append(Node(op("rw.constant"), (), (("value", Constant.of(data)),), (value,)))
        wide = [_WIDE.convert(data) for _ in self.runs]
        self.held[value] = Held([data for _ in self.points], wide, exact=True)
        return value

    def _fresh_names(self, count: int) -> list[str]:
        start = sum(len(node.results) for node in self.nodes)
        return [f"v{start + i}" for i in range(count)]

    def add(self, name: str, *args: Arg, **kwargs: Arg) -> list[Value]:
        """Append a call when it runs and has a reference; its results."""
        keywords = tuple(sorted(kwargs.items()))
        node = Node(op(name), args, keywords, ())
        if name in JUMPING and not self._exact(node):
            return []
        found = self._run(node)
        types = fitted(found[0]) if self.symbolic and found else _static(found)
        if found is None or types is None or not all(map(_is_known, types)):
            return []
        results = list(map(Value, self._fresh_names(len(types)), types))
        new = [self._held(node, own, wide) for own, wide in zip(*map(_turned, found), strict=True)]
        node = replace(node, results=tuple(results))
        if not results or self.off(node) or not all(map(self._has_reference, new)):
            return []
        self.nodes.append(node)
        self.held.update(zip(results, new, strict=True))
        return results

    def _exact(self, node: Node) -> bool:
        return all(self.held[v].exact for v in node.operands)

    def _run(self, node: Node) -> tuple[list[Results], list[Results]] | None:
        """The results at each point in their own types and, where graphs run, in float64."""
        try:
            own = [self._call(node, place, wide=False) for place in range(len(self.points))]
            with _float64_by_default():
                wide = [self._call(node, place, wide=True) for place in self.runs]
        except _FAILURES:
            return None
        return own, wide

    def _call(self, node: Node, place: int, *, wide: bool) -> Results:
        def leaf(arg: Arg) -> object:
            if isinstance(arg, Value):
                held = self.held[arg]
                return held.wide[self.runs.index(place)] if wide else held.own[place]
            if isinstance(arg, Dim):
                return evaluate(arg, self.points[place])
            return _WIDE.dtype_for(arg) if wide and isinstance(arg, torch.dtype) else arg

        args = tuple(map_leaves(a, leaf) for a in node.args)
        kwargs = {k: map_leaves(a, leaf) for k, a in node.kwargs}
        assert node.op.target is not None
        if wide:
            found = _WIDE.call(node, node.op.target, args, kwargs)
        else:
            found = node.op.target(*args, **kwargs)
        results = list(found) if isinstance(found, tuple | list) else [found]
        return [_WIDE.convert(r) for r in results] if wide else results

    def _held(self, node: Node, own: Results, wide: Results) -> Held:
        ours = [own[i] for i in self.runs]
        same = all(_same(a, b) for a, b in zip(ours, wide, strict=True))
        operators = node.op.name in EXACT or node.op.kind.value == "view"
        floats = own[0].is_floating_point()
        return Held(own, wide, same and self._exact(node) and (operators or not floats))

    def _has_reference(self, new: Held) -> bool:
        """Small, and the same in its own precision as in float64 but for rounding."""
        if any(t.numel() > LARGEST for t in new.own):
            return False
        if not new.own[0].is_floating_point():
            return new.exact and (new.empty or max(-new.least, new.greatest) < _GREATEST_INTEGER)
        if not new.empty and max(-new.least, new.greatest) > GREATEST:
            return False
        ours = [new.own[i] for i in self.runs]
        return all(_close(a, b) for a, b in zip(ours, new.wide, strict=True))


def is_floating(value: Value) -> bool:
    return value.tensor.dtype.is_floating_point


def is_integral(value: Value) -> bool:
    return not is_floating(value) and value.tensor.dtype != torch.bool


def is_mask(value: Value) -> bool:
    return value.tensor.dtype == torch.bool


def last_sizes(value: Value, count: int) -> tuple[Size, ...]:
    return value.tensor.shape[value.tensor.rank - count :]


_WIDE: Final = Precision(torch.float64)


def _static(found: tuple[list[Results], list[Results]] | None) -> list[TensorType] | None:
    if found is None:
        return None
    return [TensorType(t.dtype, tuple(t.shape), tuple(t.stride())) for t in found[0][0]]


def _is_known(type: TensorType) -> bool:
    return type.dtype in DTYPE_NAMES and not type.dtype.is_complex


def _turned(runs: list[Results]) -> list[Results]:
    """From results by point to points by result."""
    return [list(column) for column in zip(*runs, strict=True)]


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.to(b.dtype).nan_to_num(7.5, 1e9, -1e9), b.nan_to_num(7.5, 1e9, -1e9))


def _close(own: torch.Tensor, wide: torch.Tensor) -> bool:
    """Special values at the same places, and the rest near each other."""
    own, finite = own.double(), wide.isfinite()
    if not _same(own.masked_fill(own.isfinite(), 0), wide.masked_fill(finite, 0)):
        return False
    return bool((own - wide)[finite].norm() <= LEAST_EXACT * wide[finite].norm())


@contextmanager
def _float64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
