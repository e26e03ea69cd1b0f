"""One case: its samples through our backend, beside eager, and beside float64 where they differ."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import rewright
from rewright.ir import Kind, op
from rewright.reporting import node_rows
from sweep.cases import UNINITIALIZED, Case, Sample, operators, samples

Function = Callable[..., Any]
Arguments = list[tuple[tuple[Any, ...], dict[str, Any]]]

PRECISE: Final = {
    **dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), torch.float64),
    **dict.fromkeys((torch.complex32, torch.complex64), torch.complex128),
}
MESSAGE: Final = 300


@dataclass
class Result:
    """What came of a case.

    `status`: correct, wrong (another answer than eager's), error (eager answers, we do not),
    skipped (eager itself refuses every sample); the runner adds crash and hang. `own`: every graph
    compiles under `fallback="error"`; `aten` counts the nodes that do not.
    """

    case: str
    status: str
    detail: str = ""
    own: bool = False
    aten: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Differs(Exception):
    """Another answer than eager's."""


def examine(case: Case) -> Result:
    """All samples in one compiled function; when that fails, each alone, to name one that does.

    What torch's own `aot_eager` cannot trace either is left to graph breaks, as it is by default.
    """
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _everything_traced():
            result = _examined(case, "rewright")
            torchs_own = result.status == "error" and _examined(case, "aot_eager").status == "error"
        if torchs_own:
            result = _examined(case, "rewright")
        elif result.status == "wrong" and _examined(case, "aot_eager").status == "wrong":
            result.detail = f"as aot_eager, so torch's tracing: {result.detail}"
    torch._dynamo.reset()
    result.seconds = round(time.perf_counter() - started, 2)
    return result


def _examined(case: Case, backend: str) -> Result:
    function = operators()[case.operator].get_op()
    usable = [s for s in samples(case) if _runs_in_eager(case, function, s)]
    if not usable:
        return Result(str(case), "skipped", "eager runs none of its samples")
    together = _attempt(case, backend, function, usable)
    if together.status == "correct" or len(usable) == 1:
        return together
    for number, sample in enumerate(usable):
        alone = _attempt(case, backend, function, [sample])
        if alone.status != "correct":
            alone.detail = f"sample {number}: {alone.detail}"
            return alone
    return together


def _runs_in_eager(case: Case, function: Function, sample: Sample) -> bool:
    try:
        _observed(case, _each(function), [sample])
    except Exception:  # whatever it says: there is nothing to compare with
        return False
    return True


def _attempt(case: Case, backend: str, function: Function, chosen: Sequence[Sample]) -> Result:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = torch.compile(_each(function), backend=backend, dynamic=False)
    try:
        found = _observed(case, step, chosen)
        _compare(case, function, chosen, found)
    except Differs as difference:
        status, detail = "wrong", str(difference)
    except Exception as error:  # a result of the sweep, not of the sweeper
        status, detail = "error", f"{type(error).__name__}: {error}"
    else:
        status, detail = "correct", ""
    notes = [p.plan.note for p in rewright.programs() if p.plan.note]
    if notes and status == "correct":  # the answer is ATen's alone
        status, detail = "error", notes[0]
    aten = _left_to_aten()
    own = not aten and not torch._dynamo.utils.counters["graph_break"]
    return Result(str(case), status, " ".join(detail.split())[:MESSAGE], own, aten)


def _each(function: Function) -> Function:
    def run(arguments: Arguments) -> list[Any]:
        return [function(*args, **kwargs) for args, kwargs in arguments]

    return run


def _left_to_aten() -> dict[str, int]:
    """Nodes that `fallback="error"` refuses, by operator, over all graphs compiled."""
    rows = (r for p in rewright.programs() for r in node_rows(p.source, p.graph))
    left = Counter(r.op for r in rows if r.runs == "aten")
    return {name: n for name, n in left.items() if op(name).kind is not Kind.CONTRACTION}


def _everything_traced() -> Any:
    """Also what Dynamo leaves to eager unless it is told."""
    return torch._dynamo.config.patch(
        capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True
    )


# --- what a caller sees -------------------------------------------------------------------------


def _observed(case: Case, step: Function, chosen: Sequence[Sample]) -> list[Any]:
    """Outputs and the inputs afterwards; with gradients of the inputs when going backward."""
    torch.manual_seed(0)
    arguments = [(_copied(s.args), _copied(s.kwargs)) for s in chosen]
    if case.direction == "forward":
        with torch.no_grad():
            return pytree.tree_leaves((step(arguments), arguments))
    outputs = step(arguments)
    processed = [s.process(y) if s.process else y for s, y in zip(chosen, outputs, strict=True)]
    inputs = [x for x in pytree.tree_leaves(arguments) if _is_differentiable(x)]
    weighed = [y for y in pytree.tree_leaves(processed) if _is_differentiable(y)]
    generator = torch.Generator().manual_seed(0)
    weights = [_noise(y, generator) for y in weighed]
    gradients = torch.autograd.grad(weighed, inputs, weights, allow_unused=True)
    # The layout of a gradient is AOTAutograd's affair, which guesses that of what comes in.
    plain = [g if g is None else g.contiguous() for g in gradients]
    return [*pytree.tree_leaves(outputs), *plain]


def _is_differentiable(x: object) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    dtype = torch.complex128 if like.is_complex() else torch.float64
    return torch.randn(like.shape, dtype=dtype, generator=generator).to(like.dtype)


def _copied(tree: Any) -> Any:
    """Copies with the strides of the originals, and as much memory before them."""

    def copy_of(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.layout is not torch.strided or x.is_conj() or x.is_neg():
            made = x.detach().clone()
        else:
            storage = x.detach().untyped_storage().clone()
            made = torch.empty(0, dtype=x.dtype)
            made.set_(storage, x.storage_offset(), x.shape, x.stride())
        return made.requires_grad_(x.requires_grad)

    return pytree.tree_map(copy_of, tree)


# --- comparing ----------------------------------------------------------------------------------


def _compare(case: Case, function: Function, chosen: Sequence[Sample], found: list[Any]) -> None:
    """Raises Differs where an answer is neither eager's nor about as close to float64."""
    expected = _observed(case, _each(function), chosen)
    if len(found) != len(expected):
        raise Differs(f"{len(found)} results, not {len(expected)}")
    loose = list(_loose(case, found, expected))
    if not loose:
        return
    exact = _observed(case, _each(function), [_precise(s) for s in chosen])
    for place, message in loose:
        if not _about_as_exact(found[place], expected[place], exact[place]):
            raise Differs(f"result {place}: {message}")


def _loose(case: Case, found: list[Any], expected: list[Any]) -> Iterator[tuple[int, str]]:
    """The results that are not eager's within its own tolerance. Raises Differs when a result is
    of another kind than eager's."""
    for place, (ours, eager) in enumerate(zip(found, expected, strict=True)):
        if not isinstance(eager, Tensor):
            if type(ours) is not type(eager) or not _same_number(ours, eager):
                raise Differs(f"result {place} is {ours!r}, not {eager!r}")
            continue
        if not isinstance(ours, Tensor) or _looks(ours) != _looks(eager):
            raise Differs(f"result {place} is {_looks(ours)}, not {_looks(eager)}")
        if case.operator in UNINITIALIZED:
            continue
        try:
            torch.testing.assert_close(ours.detach(), eager.detach(), equal_nan=True)
        except AssertionError as error:
            yield place, str(error)


def _same_number(ours: Any, eager: Any) -> bool:
    return bool(ours == eager or (ours != ours and eager != eager))


def _looks(x: Any) -> object:
    """Dtype, sizes, and the strides that matter."""
    if not isinstance(x, Tensor):
        return type(x).__name__
    shape = tuple(x.shape)
    if x.layout is not torch.strided or x.numel() == 0:
        return x.dtype, shape, x.layout
    steps = tuple(step for size, step in zip(shape, x.stride(), strict=True) if size > 1)
    return x.dtype, shape, steps


def _precise(sample: Sample) -> Sample:
    def widened(x: Any) -> Any:
        if isinstance(x, Tensor) and x.dtype in PRECISE:
            return x.detach().to(PRECISE[x.dtype]).requires_grad_(x.requires_grad)
        return PRECISE.get(x, x) if isinstance(x, torch.dtype) else x

    args, kwargs = pytree.tree_map(widened, (sample.args, sample.kwargs))
    return Sample(args, kwargs, sample.process)


def _about_as_exact(ours: Tensor, eager: Tensor, exact: Any) -> bool:
    """Relative L2 against float64 at most twice eager's own plus 1e-6; NaN and infinities where
    eager has them, but for numbers that eager lost on the way and we have."""
    if not isinstance(exact, Tensor) or exact.shape != eager.shape or not _is_inexact(eager):
        return False
    a, b, e = (x.detach().to(exact.dtype) for x in (ours, eager, exact))
    is_ours = ~torch.isfinite(b) & torch.isfinite(e) & torch.isfinite(a)
    tolerance = 4 * torch.finfo(eager.dtype).eps
    if not torch.allclose(a[is_ours], e[is_ours], rtol=tolerance, atol=0):
        return False
    b = torch.where(is_ours, a, b)
    ours_special, special = (x.masked_fill(torch.isfinite(x), 0) for x in (a, b))
    if not torch.allclose(ours_special, special, equal_nan=True):
        return False
    finite = torch.isfinite(b) & torch.isfinite(e)
    a, b, e = a[finite], b[finite], e[finite]
    return bool((a - e).norm() <= 2 * (b - e).norm() + 1e-6 * e.norm())


def _is_inexact(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()
