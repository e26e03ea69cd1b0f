"""What a rule must show before it may be used: evidence, or the smallest counterexample.

Each obligation is discharged by something that was computed: kernels that are the same for symbolic
sizes, algebra that sympy finds equal, exact arithmetic on whole numbers, float64 on random shapes,
and, where a rule claims the same bits, the same bits with NaNs, infinities and negative zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from rewright.ir import CheckError, Graph, RewrightError, TensorType, Value, hint
from rewright.ir.interpret import interpret
from rewright.passes.log import DecisionLog
from rewright.passes.rules.engine import Engine
from rewright.passes.rules.instances import instances, volume
from rewright.passes.rules.meaning import meaning
from rewright.passes.rules.rule import Rule

TRIES: Final = 400
WANTED: Final = 40
SYMBOLIC: Final = 60
# Of two float64 computations of the same thing, relative to the larger norm.
TOLERANCE: Final = 1e-9


@dataclass(frozen=True)
class Evidence:
    """One obligation: what it says, and what discharged it; `holds` is False when nothing did."""

    obligation: str
    how: str
    holds: bool = True

    def __str__(self) -> str:
        return f"{'ok  ' if self.holds else 'FAIL'} {self.obligation}: {self.how}"


@dataclass(frozen=True)
class Counterexample:
    """Where a rule is wrong: what it matched, what it gave, inputs on which they differ.

    `str` is a `.rw` text: the graph, with all that is known about it as comments.
    """

    rule: str
    before: Graph
    after: Graph
    inputs: tuple[torch.Tensor, ...]
    why: str

    def __str__(self) -> str:
        lines = [f"# The rule {self.rule} gives {self.why}."]
        for input, x in zip(self.before.inputs, self.inputs, strict=True):
            lines.append(f"#   %{input.value.name} = {x.tolist()}")
        lines.append("# What it makes of the graph:")
        lines += (f"#   {line}" for line in str(self.after).splitlines()[1:])
        return "\n".join([*lines, str(self.before)])


@dataclass
class Verdict:
    rule: Rule
    evidence: list[Evidence] = field(default_factory=list)
    counterexample: Counterexample | None = None

    @property
    def holds(self) -> bool:
        return bool(self.evidence) and all(e.holds for e in self.evidence)

    def __str__(self) -> str:
        lines = [
            f"{self.rule.name} ({self.rule.kind}) {'holds' if self.holds else 'DOES NOT HOLD'}"
        ]
        return "\n".join([*lines, *(f"  {e}" for e in self.evidence)])


def examine(rule: Rule, *, seed: int = 0) -> Verdict:
    """Every obligation of a rule, until one fails."""
    verdict = Verdict(rule)
    engine = Engine([rule])
    fired = list(_firing(rule, engine, seed, verdict))
    if not fired:
        verdict.evidence.append(Evidence("fires", f"on none of {TRIES} drawn graphs", False))
        return verdict
    verdict.evidence.append(Evidence("fires", f"on {len(fired)} drawn graphs"))
    for check in (_float64, _bits, _types, _meaning):
        check(rule, engine, fired, verdict)
        if not verdict.holds:
            break
    return verdict


@dataclass(frozen=True)
class Fired:
    """An instance and what the rule made of it."""

    before: Graph
    after: Graph


def _firing(rule: Rule, engine: Engine, seed: int, verdict: Verdict) -> Iterator[Fired]:
    count = 0
    for instance in instances(rule, seed, TRIES):
        found = _fire(engine, instance)
        if isinstance(found, CheckError):
            verdict.evidence.append(Evidence("ends", found.message, False))
            return
        if found is None:
            continue
        count += 1
        yield Fired(instance, found)
        if count == WANTED:
            return


def _fire(engine: Engine, instance: Graph) -> Graph | CheckError | None:
    try:
        outcome = engine.run(instance, DecisionLog(), lambda candidates, _: candidates[0])
    except CheckError as error:
        return error
    return outcome.graph if outcome.rewrites else None


# --- obligations --------------------------------------------------------------------------------


def _float64(rule: Rule, engine: Engine, fired: Sequence[Fired], verdict: Verdict) -> None:
    """The same numbers in float64."""
    if not _compare(verdict, "float64", fired, bits=False, special=False):
        return
    verdict.evidence.append(Evidence("float64", f"equal on {_ground(fired)}"))


def _bits(rule: Rule, engine: Engine, fired: Sequence[Fired], verdict: Verdict) -> None:
    """The same bits in every dtype drawn, also of NaN, infinities and negative zeros."""
    if not rule.is_exact:
        return
    for special in (False, True):
        if not _compare(verdict, "bits", fired, bits=True, special=special):
            return
    dtypes = {str(i.value.tensor.dtype)[6:] for f in fired for i in f.before.inputs}
    how = f"the same in {', '.join(sorted(dtypes))}, with NaN, infinities and negative zeros"
    verdict.evidence.append(Evidence("bits", how))


def _types(rule: Rule, engine: Engine, fired: Sequence[Fired], verdict: Verdict) -> None:
    """The same types for every size: the rule fires on symbolic sizes only when they are."""
    count = 0
    for instance in instances(rule, 1, SYMBOLIC, symbolic=True):
        count += bool(instance.symbols) and isinstance(_fire(engine, instance), Graph)
    if count:
        verdict.evidence.append(Evidence("types", f"equal for symbolic sizes, {count} drawn"))
    else:
        ground = _ground(fired)
        verdict.evidence.append(Evidence("types", f"equal on {ground}; no symbolic size was drawn"))


def _meaning(rule: Rule, engine: Engine, fired: Sequence[Fired], verdict: Verdict) -> None:
    """The same function, by more than samples of it."""
    symbolic = [
        Fired(instance, found)
        for instance in instances(rule, 2, SYMBOLIC, symbolic=True)
        if isinstance(found := _fire(engine, instance), Graph)
    ]
    hows = [meaning(f.before, f.after) for f in (*symbolic[:8], *fired[:16])]
    shown = [how for how in hows if how is not None]
    if shown:
        best = max(sorted(set(shown)), key=shown.count)
        how = f"{best} ({len(shown)} of {len(hows)} graphs)"
        verdict.evidence.append(Evidence("meaning", how))
    elif not _everywhere(rule, engine, verdict):
        how = f"float64 on {_ground(fired)} is all there is"
        verdict.evidence.append(Evidence("meaning", how))


def _compare(
    verdict: Verdict, what: str, fired: Sequence[Fired], *, bits: bool, special: bool
) -> bool:
    """False, with the smallest counterexample, when any of the graphs tells the two sides apart, or
    when ATen runs none of them."""
    worst: Counterexample | None = None
    ran = 0
    for number, case in enumerate(fired):
        if worst is not None and volume(case.before) >= volume(worst.before):
            continue
        inputs = tuple(drawn(case.before, number, special=special))
        try:
            why = differs(case.before, case.after, inputs, bits=bits)
        except Refused:
            continue
        ran += 1
        if why is not None:
            worst = Counterexample(verdict.rule.name, case.before, case.after, inputs, why)
    if worst is not None:
        verdict.evidence.append(Evidence(what, worst.why, False))
        verdict.counterexample = worst
    elif not ran:
        how = f"ATen runs none of {len(fired)} drawn graphs on what was drawn for them"
        verdict.evidence.append(Evidence(what, how, False))
    return worst is None and ran > 0


def _ground(fired: Sequence[Fired]) -> str:
    shapes = {tuple(map(hint, i.value.tensor.shape)) for f in fired for i in f.before.inputs}
    return f"{len(fired)} graphs, {len(shapes)} shapes"


def _everywhere(rule: Rule, engine: Engine, verdict: Verdict) -> bool:
    """Of a function of one element: at each of its values, where a dtype has few of them."""
    dtypes: dict[str, None] = {}
    for instance in instances(rule, 3, SYMBOLIC, every_value=True):
        after = _fire(engine, instance)
        if not isinstance(after, Graph) or len(instance.inputs) != 1:
            continue
        x = every_value(instance.inputs[0].value.tensor)
        if x is None:
            continue
        if not rule.is_exact and x.is_floating_point():
            x = torch.where(x.isfinite(), x, 1)
        try:
            why = differs(instance, after, (x,), bits=rule.is_exact)
        except Refused:
            continue
        if why is not None:
            verdict.counterexample = Counterexample(rule.name, instance, after, (x,), why)
            verdict.evidence.append(Evidence("meaning", why, False))
            return True
        dtypes[str(x.dtype)[6:]] = None
    if not dtypes:
        return False
    how = "the same bits" if rule.is_exact else "equal in float64"
    verdict.evidence.append(Evidence("meaning", f"{how} at every number of {', '.join(dtypes)}"))
    return True


# --- comparing ----------------------------------------------------------------------------------

_ERRORS: Final = (RuntimeError, ValueError, TypeError, IndexError, RewrightError)


class Refused(Exception):
    """What a rule matched does not run on these inputs."""


def differs(
    before: Graph, after: Graph, inputs: Sequence[torch.Tensor], *, bits: bool
) -> str | None:
    """Why the two graphs are not the same on `inputs`; None when they are. Raises Refused when ATen
    does not run the first on them, so that there is nothing to keep."""
    dtype = None if bits else torch.float64
    try:
        wanted = interpret(before, [x.clone() for x in inputs], dtype=dtype)
    except _ERRORS as error:
        raise Refused from error
    try:
        found = interpret(after, [x.clone() for x in inputs], dtype=dtype)
    except _ERRORS as error:
        return f"what it gives does not run: {str(error).splitlines()[0]}"
    for place, (a, b) in enumerate(zip(wanted, found, strict=True)):
        why = _different_bits(a, b) if bits else _different(a, b)
        if why is not None:
            return why if len(wanted) == 1 else f"result {place}: {why}"
    return None


def _different_bits(a: torch.Tensor, b: torch.Tensor) -> str | None:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return f"{b.dtype} {tuple(b.shape)} instead of {a.dtype} {tuple(a.shape)}"
    same = a == b
    if a.is_floating_point():
        same = (same & (torch.signbit(a) == torch.signbit(b))) | (a.isnan() & b.isnan())
    return None if bool(same.all()) else _first_difference(a, b, same)


def _different(a: torch.Tensor, b: torch.Tensor) -> str | None:
    if a.shape != b.shape:
        return f"shape {tuple(b.shape)} instead of {tuple(a.shape)}"
    if not a.is_floating_point():
        return _different_bits(a, b)
    nan = a.isnan() == b.isnan()
    if not bool(nan.all()):
        return _first_difference(a, b, nan)
    x, y = a.nan_to_num(0), b.nan_to_num(0)
    scale = max(float(x.norm()), float(y.norm()), 1e-300)
    close = (x == y) | ((x - y).abs() <= TOLERANCE * max(scale, 1.0))
    return None if bool(close.all()) else _first_difference(a, b, close)


def _first_difference(a: torch.Tensor, b: torch.Tensor, same: torch.Tensor) -> str:
    at = tuple(int(i) for i in (~same).nonzero()[0])
    return f"{b[at].item()} instead of {a[at].item()} at {list(at)}"


# --- inputs -------------------------------------------------------------------------------------

_SPECIAL: Final = (float("nan"), float("inf"), float("-inf"), -0.0, 0.0, 1e-40, -1.0, 65504.0)


def drawn(graph: Graph, seed: int, *, special: bool) -> Iterator[torch.Tensor]:
    """Inputs for a graph without symbols, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for input in graph.inputs:
        content = _content(input.value.tensor, generator, special)
        bound = _places(graph, input.value)
        yield content if bound is None else content.remainder(max(bound, 1))


def _places(graph: Graph, value: Value) -> int | None:
    """How many places there are, where a value says which of them is read."""
    sizes = []
    for node in graph.readers.get(value, ()):
        if node.op.name == "aten.gather.default" and node.args[2] is value:
            source, axis = node.operands[0].tensor, node.args[1]
            assert isinstance(axis, int)
            sizes.append(hint(source.shape[axis]))
    return min(sizes, default=None)


def every_value(type: TensorType) -> torch.Tensor | None:
    """All numbers of a dtype of at most two bytes, over and over as the shape has room for them."""
    if type.dtype.itemsize > 2 or type.strides is not None:
        return None
    count = hint(type.numel)
    if type.dtype is torch.bool:
        return (torch.arange(count) % 2 == 1).reshape(type.shape)  # type: ignore[arg-type]
    if count < 1 << 8 * type.dtype.itemsize:
        return None
    bits = torch.arange(count).to(torch.int8 if type.dtype.itemsize == 1 else torch.int16)
    return bits.view(type.dtype).reshape(type.shape)  # type: ignore[arg-type]


def _content(type: TensorType, generator: torch.Generator, special: bool) -> torch.Tensor:
    count = hint(type.storage_elements)
    if type.dtype is torch.bool:
        flat = torch.rand(count, generator=generator) < 0.5
    elif type.dtype.is_floating_point:
        wide = torch.randn(count, generator=generator, dtype=torch.float64)
        if special and count:
            picks = torch.randint(0, 2 * len(_SPECIAL), (count,), generator=generator)
            table = torch.tensor(_SPECIAL, dtype=torch.float64)
            wide = torch.where(picks < len(_SPECIAL), table[picks % len(_SPECIAL)], wide)
        flat = wide.to(type.dtype)
    else:
        low = 0 if type.dtype is torch.uint8 else -100
        flat = torch.randint(low, 101, (count,), generator=generator).to(type.dtype)
    shape = tuple(map(hint, type.shape))
    return flat.as_strided(shape, tuple(map(hint, type.layout)))
