"""Attention over windows: asked for by name, and head by head within an error budget."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import rewright
from rewright.ir import Node, OptionError
from rewright.passes.attention.windows import ALL, Attention, outside
from rewright.passes.quantize import heads

LENGTH, HEADS, WIDTH = 640, 4, 16
NARROW = "window{size=100,sinks=4}"


class Causal(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, is_causal=True)


class Biased(nn.Module):
    """Scores fall with distance, so fast that what is far does not matter; `far` heads' do not."""

    def __init__(self, far: int = 0) -> None:
        super().__init__()
        slopes = torch.tensor([0.0] * far + [0.5] * (HEADS - far))
        away = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs()
        self.bias: Tensor
        self.register_buffer("bias", -slopes[:, None, None] * away)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, attn_mask=self.bias[None])


class Sunk(nn.Module):
    """Every query looks at the first key, whose value nobody else has."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        first = torch.zeros(LENGTH, device=query.device)
        first[0] = 8.0
        return scaled_dot_product_attention(
            query, key, value + 4 * (first > 0)[:, None], attn_mask=first.expand(1, 1, LENGTH, -1)
        )


def drawn(
    seed: int, heads_of_keys: int = HEADS, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, h, LENGTH, WIDTH) for h in (HEADS, heads_of_keys, heads_of_keys)]
    query, key, value = (torch.randn(s, generator=generator).to(dtype) for s in shapes)
    return query, key, value


def attended(*given: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    query, key, value = given
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def left(size: int, sinks: int) -> Tensor:
    places = torch.arange(LENGTH)
    return ~outside(places, places, size, sinks)


def within(model: nn.Module, budget: float) -> tuple[rewright.Compiled, int, float]:
    """A program, how many of its heads look at windows, and its error on other inputs."""
    compiled = rewright.optimize(
        model, drawn(0), error_budget=budget, calibration=[drawn(n) for n in range(4)]
    )
    narrow = sum(
        "window" in d.sentence and "[" in d.subject
        for d in compiled.program.plan.log
        if d.pass_ == "quantize"
    )
    with torch.no_grad():
        got, exact = compiled(*drawn(9)), model(*drawn(9))
    return compiled, narrow, float((got - exact).norm() / exact.norm())


def kept(node: Node) -> float:
    found = node.kwarg("kept")
    assert isinstance(found, float)
    return found


# --- by name --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_window_is_a_mask(dtype: torch.dtype) -> None:
    given = drawn(0, dtype=dtype)
    compiled = rewright.optimize(Causal(), given, attention=NARROW)
    (node,) = (n for n in compiled.graph.nodes if n.op.name == "rw.attention")
    assert node.kwarg("via") == "cpp" and 0.1 < kept(node) < 0.5
    mask = (left(100, 4) & left(LENGTH, 0).tril())[None, None]
    exact = attended(*(x.double() for x in given), mask=mask)
    torch.testing.assert_close(
        compiled(*given).double(), exact, atol=2e-2 if dtype.is_floating_point else 0, rtol=2e-2
    )
    if dtype is torch.float32:
        assert (compiled(*given).double() - exact).abs().max() < 1e-5


def test_biases_stay() -> None:
    given = drawn(0)
    compiled = rewright.optimize(Biased(), given, attention=NARROW)
    bias = Biased().bias.masked_fill(~left(100, 4), -torch.inf)
    exact = attended(*given, mask=bias[None])
    torch.testing.assert_close(compiled(*given), exact)


def test_spelled_out_attention_is_narrowed() -> None:
    class Spelled(nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return (query @ key.transpose(-1, -2) * 0.25).softmax(-1) @ value

    given = drawn(0)
    compiled = rewright.optimize(Spelled(), given, attention=NARROW)
    exact = attended(*given, mask=left(100, 4)[None, None], scale=0.25)
    torch.testing.assert_close(compiled(*given), exact)


def refusals(compiled: rewright.Compiled) -> list[str]:
    log = compiled.program.plan.log
    return [d.sentence for d in log if d.pass_ == "window" and d.kind == "refused"]


def test_short_sequences_are_refused_by_name() -> None:
    short = tuple(x[:, :, :90] for x in drawn(0))
    compiled = rewright.optimize(Causal(), short, attention=NARROW)
    assert refusals(compiled) == ["it is no longer than a window"]
    torch.testing.assert_close(compiled(*short), Causal()(*short))


@pytest.mark.parametrize("queries", [1, 64, 2 * LENGTH])
def test_queries_that_are_not_as_many_as_keys_stay(queries: int) -> None:
    """Nothing says where they are."""

    class Cached(nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return scaled_dot_product_attention(query, key, value)

    _, key, value = drawn(0)
    given = torch.randn(1, HEADS, queries, WIDTH), key, value
    compiled = rewright.optimize(Cached(), given, attention=NARROW)
    assert "not as many queries as keys" in refusals(compiled)[0]
    torch.testing.assert_close(compiled(*given), Cached()(*given))
    budgeted = rewright.optimize(Cached(), given, error_budget=0.5, calibration=[given])
    torch.testing.assert_close(budgeted(*given), Cached()(*given))


def test_gradients_are_refused_by_name() -> None:
    query, key, value = drawn(0)
    query.requires_grad_()
    compiled = torch.compile(Causal(), backend="rewright", options={"attention": NARROW})
    torch.testing.assert_close(compiled(query, key, value), Causal()(query, key, value))


def test_a_budget_and_a_window_by_name_do_not_go_together() -> None:
    with pytest.raises(OptionError, match="an error budget does not count"):
        rewright.optimize(
            Causal(), drawn(0), attention=NARROW, error_budget=0.1, calibration=[drawn(0)]
        )


@pytest.mark.parametrize("wrong", ["window{size=0}", "window{sinks=-1}"])
def test_windows_of_nothing(wrong: str) -> None:
    with pytest.raises(OptionError, match="a window has a size of 1 or more"):
        rewright.optimize(Causal(), drawn(0), attention=wrong)


@pytest.mark.parametrize("wrong", ["sparse", "cse", "window{width=4}", "window,window"])
def test_what_is_no_window(wrong: str) -> None:
    with pytest.raises(OptionError, match="attention is not") as refused:
        rewright.optimize(Causal(), drawn(0), attention=wrong)
    assert "window{size=512,sinks=4}" in str(refused.value)


def test_inside_torch_compile() -> None:
    given = drawn(0)
    compiled = torch.compile(Causal(), backend="rewright", options={"attention": NARROW})
    with torch.no_grad():
        found = compiled(*given)
    mask = (left(100, 4) & left(LENGTH, 0).tril())[None, None]
    torch.testing.assert_close(found, attended(*given, mask=mask))


def test_lengths_that_change() -> None:
    length = torch.export.Dim("length", min=2, max=2048)
    given = drawn(0)
    dynamic = {"query": {2: length}, "key": {2: length}, "value": {2: length}}
    compiled = rewright.optimize(Causal(), given, attention=NARROW, dynamic_shapes=dynamic)
    for count in (50, 333, LENGTH):
        part = tuple(x[:, :, :count] for x in given)
        mask = (left(100, 4) & left(LENGTH, 0).tril())[None, None, :count, :count]
        exact = attended(*part, mask=mask)
        torch.testing.assert_close(compiled(*part), exact)


# --- within a budget ------------------------------------------------------------------------------


@pytest.fixture
def by_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a head takes goes by the share of scores, and not by this machine's mood."""

    def timed(self: heads.Heads, site: heads.HeadsSite) -> Mapping[int, float]:
        shares = {size: self._share(site, size) for size in (*heads.SIZES, ALL)}
        return {size: share for size, share in shares.items() if share < 0.85 or size == ALL}

    monkeypatch.setattr(heads.Heads, "_timed", timed)


@pytest.mark.usefixtures("by_share")
def test_heads_that_look_near_are_narrowed() -> None:
    compiled, narrow, error = within(Biased(), 1e-3)
    assert narrow == HEADS and error <= 1e-3
    (node,) = (n for n in compiled.graph.nodes if n.op.name == "rw.attention")
    assert kept(node) < 0.5


@pytest.mark.usefixtures("by_share")
def test_each_head_is_judged_by_itself() -> None:
    _, narrow, error = within(Biased(far=2), 1e-3)
    assert narrow == HEADS - 2 and error <= 1e-3


@pytest.mark.usefixtures("by_share")
def test_nothing_is_narrowed_without_a_budget_for_it() -> None:
    compiled, narrow, error = within(Causal(), 1e-5)
    assert narrow == 0 and error <= 1e-5
    assert any("all float" in d.sentence for d in compiled.program.plan.log)


@pytest.mark.usefixtures("by_share")
def test_windows_without_sinks_are_refused_where_a_sink_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, narrow, error = within(Sunk(), 0.2)
    assert narrow == HEADS and error <= 0.2
    monkeypatch.setattr(heads, "SINKS", 0)
    _, narrow, error = within(Sunk(), 0.2)
    assert narrow == 0 and error <= 0.2


class Masked(nn.Module):
    """A mask of some rank; the first keys are padding, so the first rows see nothing."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask: Tensor
        self.register_buffer("mask", mask)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, attn_mask=self.mask)


@pytest.mark.usefixtures("by_share")
@pytest.mark.parametrize("shape", [(LENGTH, LENGTH), (1, 1, LENGTH, 1), (1, HEADS, LENGTH, LENGTH)])
def test_biases_of_every_shape(shape: tuple[int, ...]) -> None:
    _, _, error = within(Masked(torch.randn(shape)), 0.5)
    assert error <= 0.5


@pytest.mark.usefixtures("by_share")
def test_rows_that_see_nothing_are_zero() -> None:
    places = torch.arange(LENGTH)
    seen = (places <= places[:, None]) & (places >= 100)
    bias = torch.zeros(LENGTH, LENGTH).masked_fill(~seen, -torch.inf)
    bias = bias - 0.5 * (places[:, None] - places).abs()
    _, narrow, error = within(Masked(bias[None, None]), 1e-2)
    assert narrow == HEADS and error <= 1e-2


@pytest.mark.usefixtures("by_share")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_within_a_budget(dtype: torch.dtype) -> None:
    given = drawn(0, dtype=dtype)
    compiled = rewright.optimize(Causal(), given, error_budget=0.3, calibration=[given] * 2)
    exact = Causal()(*given)
    assert float((compiled(*given) - exact).norm() / exact.norm()) <= 0.3


# --- piece by piece -------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads_of_keys", [1, 2, 4])
def test_what_measuring_evaluates(causal: bool, heads_of_keys: int) -> None:
    query, key, value = drawn(0, heads_of_keys)
    bias = torch.randn(1, 1, LENGTH, LENGTH)
    sizes = [7, 300, LENGTH, 7]
    found = Attention(query, key, value, bias, causal, 0.3).over_windows(sizes, 5)
    mask = torch.stack([left(size, 5) for size in sizes])
    mask = mask.tril() if causal else mask
    times = HEADS // heads_of_keys
    key, value = (x.repeat_interleave(times, 1) for x in (key, value))
    exact = scaled_dot_product_attention(
        query, key, value, attn_mask=bias.masked_fill(~mask, -torch.inf), scale=0.3
    )
    torch.testing.assert_close(found, exact)
