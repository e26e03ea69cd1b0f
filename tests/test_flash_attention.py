"""Kernels of attention: what they compute, and which tiles they leave out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from attention_kernels import (
    MASKS,
    Case,
    Score,
    Shape,
    additive,
    distance,
    kept,
    nest_of,
    numbers,
    outputs_of,
)
from rewright.ir import Graph, UnsupportedError
from rewright.ir.fx_import import from_fx
from rewright.ir.loops import lower_attention
from rewright.ir.loops.tiles import kept_share

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# A tile is 96 rows by 64 keys, a step of lanes 16.
ODD = Shape(2, 3, 97, 130, 24, 40)
SHAPES = (
    Shape(1, 2, 200, 200, 64, 64),
    Shape(2, 1, 1, 77, 16, 32),
    Shape(1, 2, 5, 1, 8, 8),
    Shape(1, 3, 200, 65, 33, 17),
    Shape(2, 1, 100, 300, 80, 48),
)


def check_against_eager(cases: list[Case]) -> None:
    """No further from float64 than twice as far as eager is."""
    far = []
    for case, found in zip(cases, outputs_of(cases), strict=True):
        wanted = case.eager(torch.float64)
        if not distance(found, wanted) <= 2 * distance(case.eager(), wanted) + 1e-6:
            far.append(case.name)
    assert not far


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_further_from_float64_than_eager(dtype: torch.dtype) -> None:
    """Every mask in one shape, and some in the other shapes."""
    others = zip(list(MASKS)[DTYPES.index(dtype) :: 4], SHAPES, strict=False)
    tried = [*((name, ODD) for name in MASKS), *others]
    cases = []
    for name, shape in tried:
        given = (*numbers(shape, dtype), *MASKS[name].read(shape, dtype))
        cases.append(Case(f"{name} {tuple(shape)}", MASKS[name].score, given))
    check_against_eager(cases)


# --- rows without keys --------------------------------------------------------------------------


def early(i: Tensor, j: Tensor) -> Tensor:
    """A window of 50 keys, for the first 150 rows."""
    return (j <= i) & (i - j < 50) & (i < 150)


def padding(i: Tensor, j: Tensor, keep: Tensor) -> Tensor:
    return keep[:, None, None]


def added(keep: Callable[..., Tensor], other: float) -> Score:
    """A mask of floats, made of positions."""

    def score(scores: Tensor, i: Tensor, j: Tensor) -> Tensor:
        bias = torch.zeros(len(i), len(j), dtype=scores.dtype)
        return scores + bias.masked_fill(~keep(i, j), other)

    return score


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_row_that_is_masked_as_a_whole(dtype: torch.dtype) -> None:
    """It is 0 where masks are infinite, and the plain mean of all values where they are the least
    number: as in eager, also where its tiles would be left out otherwise."""
    lowest, given = torch.finfo(dtype).min, numbers(Shape(2, 2, 300, 300, 16, 16), dtype)
    keep = torch.zeros(2, 300, dtype=torch.bool)
    keep[0, :100] = True
    infinite = [
        Case("where", kept(early), given),
        Case("plus", added(early, -math.inf), given),
        Case("read", kept(padding), (*given, keep)),
    ]
    finite = [
        Case("where", kept(early, lowest), given),
        Case("plus", added(early, lowest), given),
        Case("read", kept(padding, lowest), (*given, keep)),
    ]
    outputs = outputs_of([*infinite, *finite])
    mean = given[2].double().mean(2, keepdim=True)
    for n, case in enumerate(infinite):
        zeros, means = outputs[n], outputs[n + len(infinite)]
        rows = case.eager() == 0
        assert rows.all(-1).sum() == 600
        assert (zeros[rows] == 0).all() and (zeros != 0).all(-1).sum() == 600
        step = torch.finfo(dtype).eps
        assert distance(means[rows], mean.expand_as(means)[rows]) <= step + 1e-6, case.name
        assert distance(means, finite[n].eager().double()) <= step + 1e-6, case.name


def body_of(zero: Callable[[], Tensor], *, keepdim: bool) -> Graph:
    """Attention of four queries over four keys that sets to `zero` what has no live score."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.bmm(q, k.mT)
        weights = torch.ops.aten._softmax(scores, -1, False)
        dead = torch.ops.aten.all.dim(scores == -math.inf, -1, keepdim)
        return torch.bmm(torch.where(dead, zero(), weights), v)

    given = (torch.randn(4, 4, 8) for _ in "qkv")
    return from_fx(make_fx(attend, tracing_mode="fake")(*given), name="body")


@pytest.mark.parametrize("zero", [torch.full, torch.scalar_tensor])
def test_rows_without_a_live_score_may_be_set_to_0(zero: Callable[..., Tensor]) -> None:
    """However the zero is made; not where whole rows are set to 0 by the scores of others."""
    made = partial(zero, (), 0.0) if zero is torch.full else partial(zero, 0.0)
    assert lower_attention(body_of(made, keepdim=True), "attention").row.size == 4
    for wrong in (body_of(made, keepdim=False), body_of(lambda: torch.full((), 1.0), keepdim=True)):
        with pytest.raises(UnsupportedError):
            lower_attention(wrong, "attention")


# --- tiles that are left out --------------------------------------------------------------------

LENGTH: Final = 384
SECOND = (torch.arange(LENGTH) >= 192).long().expand(2, -1).contiguous()  # of two documents
FIRST_ALONE = (SECOND == 0).contiguous()
APART = torch.zeros(LENGTH, LENGTH).masked_fill(SECOND[0][:, None] != SECOND[0], -math.inf)
LOWEST = {dtype: torch.finfo(dtype).min for dtype in DTYPES}


def same_document(i: Tensor, j: Tensor, ids: Tensor) -> Tensor:
    return ids[:, None, :, None] == ids[:, None, None, :]


def inverted(scores: Tensor, i: Tensor, j: Tensor, keep: Tensor) -> Tensor:
    """As encoders have it."""
    return scores + (1.0 - keep[:, None, None].to(scores.dtype)) * LOWEST[scores.dtype]


# A score, what it reads, and which keys are never looked at, by which rows.
MASKED: Final[Mapping[str, tuple[Score, Tensor | None, slice, slice]]] = {
    "documents": (kept(same_document), SECOND, slice(192, None), slice(192)),
    "documents of bytes": (kept(same_document), SECOND.byte(), slice(192, None), slice(192)),
    "documents of floats": (kept(same_document), SECOND.float(), slice(192), slice(192, None)),
    "padding": (kept(padding), FIRST_ALONE, slice(192, None), slice(None)),
    "inverted padding": (inverted, FIRST_ALONE, slice(192, None), slice(None)),
    "dense": (kept(lambda i, j, keep: keep), APART == 0, slice(192, None), slice(192)),
    "floats": (additive, APART, slice(192, None), slice(192)),
    "lowest": (additive, APART.clamp(min=LOWEST[torch.float32]), slice(192), slice(192, None)),
    "bf16": (additive, APART.bfloat16(), slice(192, None), slice(192)),
    "f16": (additive, APART.half(), slice(192, None), slice(192)),
    "f64": (additive, APART.double(), slice(192, None), slice(192)),
    "window": (kept(lambda i, j: (j <= i) & (i - j < 64)), None, slice(64), slice(192, None)),
    "window to its end": (
        *(kept(lambda i, j: (j <= i) & (i - j < 33)), None),
        *(slice(64), slice(96, None)),
    ),
    "chunks": (kept(lambda i, j: i // 192 == j // 192), None, slice(192, None), slice(192)),
}


@pytest.mark.cpu
@pytest.mark.parametrize("name", MASKED)
def test_tiles_without_a_live_score_are_never_touched(name: str) -> None:
    """Neither keys nor values of them are read: they may be NaN."""
    score, read, dead, rows = MASKED[name]
    given = () if read is None else (read,)
    dtype = read.dtype if read is not None and score is additive else torch.float32
    q, k, v = numbers(Shape(2, 1, LENGTH, LENGTH, 16, 16), dtype)
    clean = Case(name, score, (q, k, v, *given))
    k, v = (x.clone() for x in (k, v))
    k[:, :, dead] = v[:, :, dead] = math.nan
    (found,) = outputs_of([Case(name, score, (q, k, v, *given))])
    assert found[:, :, rows].isfinite().all()
    wanted = clean.eager(torch.float64)[:, :, rows]
    off = distance(clean.eager()[:, :, rows], wanted)
    assert distance(found[:, :, rows], wanted) <= 2 * off + 1e-6


def places(name: str) -> st.SearchStrategy[str]:
    """Expressions of one position."""
    other = "j" if name == "i" else "i"
    numbers = st.integers(1, 200)
    return (
        st.sampled_from([name, f"{name} - {other}", f"abs({name} - {other})"])
        | st.builds((name + " // {}").format, numbers)
        | st.builds((name + " % {}").format, numbers)
        | st.builds((name + " + {}").format, numbers)
    )


COMPARED = st.builds(
    "({} {} {})".format,
    places("i") | places("j"),
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    places("i") | places("j") | st.integers(-50, 250).map(str),
)
CONDITIONS = st.recursive(
    COMPARED,
    lambda inner: (
        st.builds("({} & {})".format, inner, inner)
        | st.builds("({} | {})".format, inner, inner)
        | st.builds("(~{})".format, inner)
    ),
    max_leaves=5,
)


def condition(text: str) -> Callable[..., Tensor]:
    return eval(f"lambda i, j: {text}", {"abs": torch.abs})  # type: ignore[no-any-return]


def check_tile(keep: Callable[..., Tensor], row: int, key: int) -> None:
    """The tile that begins there is kept if one of its scores is live."""

    def moved(i: Tensor, j: Tensor) -> Tensor:
        return keep(i + row, j + key)

    live = moved(torch.arange(96)[:, None], torch.arange(64)).any()
    share = kept_share(nest_of(kept(moved), numbers(Shape(1, 1, 96, 64, 1, 1))))
    assert share == 1 or (share == 0 and not live)


@settings(max_examples=100)
@given(CONDITIONS, st.integers(0, 400), st.integers(0, 400))
def test_the_analysis_keeps_tiles_with_a_live_score(text: str, row: int, key: int) -> None:
    check_tile(condition(text), row, key)


@pytest.mark.cpu
@settings(max_examples=2, phases=[Phase.generate])  # each compiles as many kernels
@given(st.lists(CONDITIONS, min_size=6, max_size=6, unique=True))
def test_kernels_keep_tiles_with_a_live_score(texts: list[str]) -> None:
    given = numbers(Shape(1, 1, 300, 200, 8, 8))
    check_against_eager([Case(text, kept(condition(text)), given) for text in texts])


# Values that wrap around, are cut off or rounded; every tile is looked at.
OTHER_TYPES: Final = (
    "i.byte() < 10",
    "i.byte() - j.byte() < 10",
    "(i // 2).char() + (j // 2).char() > 100",
    "i.int() * 20000000 > 0",
    "(i & 1) == 0",
    "(i | 1) == (j | 1)",
    "(i ^ j) < 32",
    "(j * 0.3).long() <= 19",
    "((i - j) * 0.3).long() >= 0",
    "j.bfloat16() >= 320",
    "(i * 64).half() == (j * 64).half()",
)


@pytest.mark.parametrize("text", OTHER_TYPES)
def test_the_analysis_knows_other_types(text: str) -> None:
    for tile in range(24):
        check_tile(condition(text), 96 * (tile % 4), 64 * (tile // 4))


@pytest.mark.cpu
def test_kernels_know_other_types() -> None:
    given = numbers(Shape(1, 1, LENGTH, LENGTH, 8, 8))
    check_against_eager([Case(text, kept(condition(text)), given) for text in OTHER_TYPES])


@pytest.mark.parametrize(
    "text",
    [
        *("j <= i", "(j <= i) & (i - j < 50)", "(j <= i) & (i - j < 512)", "abs(i - j) <= 100"),
        *("(j <= i) & ((i - j < 128) | (j < 4))", "(i // 256 == j // 256) & (j <= i)"),
        *("(j <= i) | (j < 100)", "~(j > i) & ~(i - j >= 300)"),
    ],
)
def test_the_analysis_leaves_out_what_it_can(text: str) -> None:
    length, keep = 1024, condition(text)
    live = keep(torch.arange(length)[:, None], torch.arange(length))
    tiles = F.pad(live, (0, -length % 64, 0, -length % 96)).unfold(0, 96, 96).unfold(1, 64, 64)
    exact = tiles.flatten(2).any(-1).float().mean().item()
    share = kept_share(nest_of(kept(keep), numbers(Shape(1, 1, length, length, 1, 1))))
    assert exact - 1e-6 <= share <= exact + 0.02
