"""Emitted C++ kernels against the nests they come from and against eager in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import reduce
from itertools import chain

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cpp_kernels import (
    Case,
    Function,
    Kernel,
    compiled,
    numbers,
    outputs_of,
    run_kernel,
    run_reference,
    same_bits,
    traced,
)
from rewright.codegen.cpp import emit
from rewright.codegen.cpp.text import identifiers, number_text
from rewright.ir import UnsupportedError
from rewright.ir.dims import evaluate as size_of
from rewright.ir.interpret import interpret
from rewright.ir.loops.schedule import schedule

pytestmark = pytest.mark.cpu

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
SIZES = (1, 3, 15, 16, 17, 63, 65, 1000)


def partly(function: Function, *rest: object) -> Function:
    """`function` of one tensor, the other arguments given."""
    return lambda x: function(x, *rest)


def centred(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x - x.mean(dims, True)


# --- the cases ----------------------------------------------------------------------------------


def pointwise() -> Iterator[Case]:
    for size in SIZES:
        yield traced(f"size_{size}", lambda x: (x * 2 + 1).relu(), numbers(size))
    for dtype in (*FLOATS, *INTS):
        yield traced(
            f"arithmetic_{dtype}".replace("torch.", ""),
            lambda x, y: (x + y) * y - x,
            numbers(5, 37, dtype=dtype),
            numbers(5, 37, dtype=dtype),
        )
    yield traced("masks", lambda a, b: (a & b) | ~a, *(numbers(77, dtype=torch.bool),) * 2)
    yield traced("compare", lambda x, y: x > y, numbers(6, 21), numbers(21))
    yield traced(
        "where",
        lambda c, x, y: torch.where(c, x, y),
        numbers(9, 33) > 0,
        numbers(33),
        numbers(9, 1),
    )
    yield traced("widen", lambda x, n: x + n, numbers(40), numbers(40, dtype=torch.int64))
    yield traced("narrow", lambda x: x.to(torch.int32) * 3, numbers(40) * 10)
    yield traced("to_bool", lambda x: x.to(torch.bool), numbers(40, dtype=torch.int64))
    yield traced(
        "gelu", lambda x, b, y: F.gelu(x + b) * y, numbers(7, 65), numbers(65), numbers(7, 65)
    )
    yield traced("scalars", lambda x: x * float("inf") + 1e-45, numbers(20))
    yield traced("zero_dim", lambda x, y: x * y, numbers(), numbers())
    yield traced("empty", lambda x, y: x + y, numbers(0, 5), numbers(5))
    yield traced("scalar_tensor", lambda x, y: x * y, numbers(3, 50), numbers())
    yield traced("two", lambda x: (x + 1, (x + 1).exp()), numbers(4, 30))
    odd = numbers(50, dtype=torch.int64) * 2 + 1
    yield traced("int_division", lambda x, y: x // y, numbers(50, dtype=torch.int64), odd)


def views() -> Iterator[Case]:
    yield traced(
        "broadcast", lambda x, y, z: x * y + z, numbers(4, 1, 33), numbers(5, 1), numbers(4, 5, 33)
    )
    yield traced("transposed", lambda x, y: x.t() + y, numbers(19, 35), numbers(35, 19))
    yield traced("tiled", lambda x, y: (x.t() + y).contiguous(), numbers(19, 35), numbers(35, 1))
    for dtype in (torch.bfloat16, torch.float64, torch.bool, torch.int8):
        name = f"tiled_{dtype}".replace("torch.", "")
        given = numbers(2, 33, 48, dtype=dtype)
        yield traced(name, lambda x: x.transpose(1, 2).contiguous(), given)
    yield traced("permuted", lambda x: x.permute(2, 0, 1) * 2, numbers(6, 7, 18))
    yield traced("sliced", lambda x: x[:, 3:29:2] + 1, numbers(5, 40))
    yield traced("expanded", lambda x: x[:, None].expand(6, 4, 9) * 3, numbers(6, 9))
    yield traced("given_strides", lambda x, y: x + y, numbers(8, 34)[:, ::2], numbers(17, 8).t())
    yield traced("given_offset", lambda x: x * 2, numbers(100)[7:])
    yield traced("heads", lambda x: x.view(2, 6, 4, 8).transpose(1, 2) * 2, numbers(2, 6, 32))
    yield traced(
        "merged",
        lambda x, y: (x.transpose(1, 2) + y).reshape(2, 4, 48) * 2,
        numbers(2, 6, 4, 8),
        numbers(2, 4, 6, 8),
    )
    yield traced("cat", lambda x, y: torch.cat([x, y * 2], 1), numbers(3, 20), numbers(3, 9))
    yield traced("cat_rows", lambda x, y: torch.cat([x, y]) + 1, numbers(3, 20), numbers(2, 20))
    yield traced("cat_equal", lambda x, y: torch.cat([-x, y], -1), numbers(3, 32), numbers(3, 32))
    yield traced("stack", lambda x, y: torch.stack([x, -y], 1), numbers(3, 33), numbers(3, 33))
    yield traced("flip", lambda x: x.flip(0, 1) * 2, numbers(3, 35))
    yield traced("roll", lambda x: x.roll((1, -5), (0, 1)) * 2, numbers(3, 35))
    yield traced("repeat", lambda x: x.repeat(2, 3) * 2, numbers(3, 20))
    yield traced("diagonal", lambda x: x.diagonal(3) * 2, numbers(40, 50))
    yield traced("windows", lambda x: x.unfold(-1, 5, 3) * 2, numbers(3, 40))
    yield traced("pad", lambda x: F.pad(x, (1, 2, 0, 3), value=0.5), numbers(3, 40))
    yield traced("crop", lambda x: F.pad(x, (-2, -3)), numbers(3, 40))
    yield traced("tril", lambda x: x.tril(1), numbers(2, 9, 21))
    yield traced("triu", lambda x: torch.triu(x, -2) * 2, numbers(20, 7))
    yield traced("arange", lambda x: x + torch.arange(33), numbers(2, 33))
    yield traced("arange_step", lambda x: x * torch.arange(0.5, 9, 0.25), numbers(34))
    yield traced(
        "chunks", lambda x: x.chunk(2, -1)[0] * x.chunk(2, -1)[1].sigmoid(), numbers(3, 44)
    )
    yield traced(
        "slice_scatter",
        lambda x, y: torch.slice_scatter(x, y, 1, 3, 8),
        numbers(4, 30),
        numbers(4, 5),
    )
    yield traced(
        "select_scatter", lambda x, y: torch.select_scatter(x, y, 1, 3), numbers(4, 30), numbers(4)
    )


REDUCED_SHAPES = ((7, 1000), (3, 17), (64, 64), (5, 9000), (2, 3, 5), (4, 6, 50))


def reductions() -> Iterator[Case]:
    for shape in REDUCED_SHAPES:
        name = "x".join(map(str, shape))
        for dim in range(len(shape)):
            yield traced(f"softmax_{name}_{dim}", partly(Tensor.softmax, dim), numbers(*shape))
            yield traced(f"sum_{name}_{dim}", partly(Tensor.sum, dim), numbers(*shape))
        yield traced(f"norm_{name}", partly(F.layer_norm, shape[-1:]), numbers(*shape))
    for dims in ((0, 2), (0, 1), (1, 2), (0, 1, 2)):
        name = "".join(map(str, dims))
        yield traced(f"var_{name}", partly(Tensor.var, dims), numbers(6, 5, 49))
        yield traced(f"aligned_{name}", partly(Tensor.sum, dims), numbers(6, 5, 64))
        yield traced(f"centred_{name}", partly(centred, dims), numbers(6, 5, 49))
    yield traced("amax", lambda x: x.amax(-1), numbers(6, 100))
    yield traced("amin", lambda x: x.amin(0), numbers(60, 10))
    yield traced("any", lambda x: (x > 2).any(-1), numbers(30, 40))
    yield traced("all", lambda x: (x > -2).all(0), numbers(40, 30))
    yield traced("prod", lambda x: x.prod(-1), numbers(5, 20))
    yield traced("int_sum", lambda x: x.sum(-1), numbers(5, 70, dtype=torch.int32))
    yield traced("bool_sum", lambda x: x.sum(0), numbers(50, 7, dtype=torch.bool))
    yield traced(
        "half_norm",
        lambda x, w: F.layer_norm(x, (90,), w),
        numbers(6, 90, dtype=torch.bfloat16),
        numbers(90, dtype=torch.bfloat16),
    )
    yield traced("half_softmax", lambda x: x.softmax(-1), numbers(6, 90, dtype=torch.float16))
    yield traced("double_sum", lambda x: x.sum(0), numbers(100, 21, dtype=torch.float64))
    yield traced("var_mean", lambda x: torch.var_mean(x, -1), numbers(8, 130))
    yield traced("one_row", lambda x: x.softmax(-1), numbers(1, 20000))
    yield traced("few_columns", lambda x: x.sum(0), numbers(20000, 5))
    yield traced("no_elements", lambda x: x.sum(-1), numbers(4, 0))
    yield traced("no_rows", lambda x: x.softmax(-1), numbers(0, 40))
    yield traced("one_element", lambda x: x.sum(-1, keepdim=True) * 2, numbers(40, 1))
    yield traced("column_of_one", lambda x: x.sum(0), numbers(70, 1))
    yield traced(
        "fused",
        lambda x, y, b: F.gelu((x + y).softmax(-1) * b),
        numbers(9, 80),
        numbers(80),
        numbers(9, 1),
    )
    yield traced("tiled_rows", lambda x: x.permute(0, 2, 3, 1).softmax(-1), numbers(2, 37, 5, 7))
    yield traced("tiled_norm", lambda x: F.layer_norm(x.transpose(1, 2), (48,)), numbers(3, 48, 32))
    yield traced("strided_rows", lambda x: x.transpose(0, 1).softmax(-1), numbers(40, 12))
    yield traced("log_softmax", lambda x: x.log_softmax(-1), numbers(6, 50))
    yield traced("logsumexp", lambda x: x.logsumexp(-1), numbers(6, 50))
    yield traced("vector_norm", lambda x: torch.linalg.vector_norm(x, 3, 0), numbers(60, 10))


def dynamic() -> Iterator[Case]:
    def case(name: str, function: Function, *inputs: Tensor) -> Case:
        return traced(f"dynamic_{name}", function, *inputs, dynamic=True)

    yield case("pointwise", lambda x, b: F.gelu(x + b), numbers(7, 33), numbers(33))
    yield case("softmax", lambda x: x.softmax(-1), numbers(6, 70))
    yield case("columns", lambda x: x.softmax(1), numbers(3, 6, 70))
    yield case("heads", lambda x: x.transpose(1, 2).contiguous() * 2, numbers(2, 5, 3, 9))
    yield case("pad", lambda x: F.pad(x, (1, 2)), numbers(5, 18))
    yield case("tril", lambda x: x.tril(), numbers(11, 11))
    yield case("mean", lambda x: x.mean(-1, True) + x.shape[0], numbers(11, 21))


GROUPS: dict[str, Callable[[], Iterator[Case]]] = {
    "pointwise": pointwise,
    "views": views,
    "reductions": reductions,
    "dynamic": dynamic,
}


@pytest.fixture(scope="module", params=GROUPS)
def kernels(request: pytest.FixtureRequest) -> list[Kernel]:
    torch.manual_seed(0)
    return compiled(list(GROUPS[request.param]()))


# --- values -------------------------------------------------------------------------------------


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative L2 error of one kernel: a few roundings, or 4096 in sequence."""
    return 8 * torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative L2 error; infinite when NaN or infinities are not where they belong."""
    found, wanted = found.double(), wanted.double()
    finite = wanted.isfinite()
    if not torch.equal(found[~finite].nan_to_num(7), wanted[~finite].nan_to_num(7)):
        return float("inf")
    difference = (found[finite] - wanted[finite]).norm()
    return float(difference / wanted[finite].norm().clamp_min(1e-30))


def wrong(kernel: Kernel, references: list[Tensor], found: list[Tensor]) -> list[str]:
    return [
        f"{kernel.case.name}: output {i} is off by {error(one, other):.1e}"
        for i, (one, other) in enumerate(zip(found, references, strict=True))
        if one.shape != other.shape or not error(one, other) <= tolerance(one.dtype)
    ]


def test_kernels_compute_what_their_nests_say(kernels: list[Kernel]) -> None:
    found = [wrong(k, run_reference(k.case), run_kernel(k)) for k in kernels]
    assert list(chain(*found)) == []


def test_kernels_compute_what_eager_does(kernels: list[Kernel]) -> None:
    found = []
    for kernel in kernels:
        case = kernel.case
        eager = interpret(case.graph, case.inputs, dtype=torch.float64)
        found += wrong(kernel, eager, outputs_of(case, run_kernel(kernel)))
    assert found == []


def test_kernels_of_dynamic_graphs_run_on_other_sizes(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        if not kernel.case.sizes:
            continue
        for change in (lambda n: n + 1, lambda n: 3 * n + 5):
            case = resized(kernel.case, change)
            again = replace(kernel, case=case)
            assert wrong(again, run_reference(case), run_kernel(again)) == []


def resized(case: Case, change: Callable[[int], int]) -> Case:
    """The same kernel on inputs whose symbolic sizes are changed."""
    sizes = {name: change(size) for name, size in case.sizes.items()}
    shapes = [[size_of(n, sizes) for n in i.value.tensor.shape] for i in case.graph.inputs]
    return replace(case, sizes=sizes, inputs=tuple(numbers(*shape) for shape in shapes))


# --- bits ---------------------------------------------------------------------------------------


def large() -> Iterator[Case]:
    """Kernels that threads share in every way there is."""
    yield traced("flat", lambda x: F.gelu(x), numbers(300, 1000))
    yield traced("rows", lambda x, b: (x + b).softmax(-1), numbers(300, 1000), numbers(1000))
    yield traced("blocks", lambda x: F.layer_norm(x, (30000,)), numbers(3, 30000))
    yield traced("row_columns", lambda x: x.softmax(0), numbers(300, 1000))
    yield traced("block_columns", lambda x: x - x.mean(0), numbers(30000, 11))
    yield traced("two_axes", lambda x: x.var((0, 2)), numbers(60, 7, 150))


@pytest.fixture(scope="module")
def large_kernels() -> list[Kernel]:
    torch.manual_seed(0)
    return compiled(list(large()))


def test_threads_change_no_bit(large_kernels: list[Kernel]) -> None:
    for kernel in large_kernels:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run_kernel(kernel))
        assert same_bits(results[0], results[1]) and same_bits(results[0], results[2]), kernel
        assert wrong(kernel, run_reference(kernel.case), results[0]) == []


def test_neighbours_change_no_bit() -> None:
    """A sum over x * 2 has the same bits when x * 2 comes from memory, and with other readers."""
    for dims in ((-1,), (0,), (0, 2)):
        x = numbers(40, 30, 1001)
        alone = traced("alone", partly(Tensor.sum, dims), x * 2)
        fused = traced("fused", partly(lambda x, d: (x * 2).sum(d) + 0, dims), x)
        spread = traced(
            "spread", partly(lambda x, d: ((x * 2).sum(d), x + (x * 2).sum(d, True)), dims), x
        )
        first, second, third = (run_kernel(k)[0] for k in compiled([alone, fused, spread]))
        assert same_bits([first], [third]) and torch.equal(first + 0, second)


def lanes_sum(x: Tensor) -> Tensor:
    """The order of a sum along the lanes, written out: see `Order`."""
    total: Tensor | None = None
    for block in x.split(4096):
        lanes = [torch.zeros(16) for _ in range(4)]
        whole = len(block) // 64 * 64
        for start in range(0, len(block), 16):
            part = block[start : start + 16]
            place = start // 16 % 4 if start < whole else 0
            lanes[place] = lanes[place] + F.pad(part, (0, 16 - len(part)))
        lane = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])
        while len(lane) > 1:
            lane = lane[: len(lane) // 2] + lane[len(lane) // 2 :]
        total = lane if total is None else total + lane
    assert total is not None
    return total


def columns_sum(x: Tensor) -> Tensor:
    """Of every column by itself, in groups of 64 rows in blocks of 4096."""

    def combined(parts: Iterable[Tensor]) -> Tensor:
        return reduce(torch.add, parts)

    def group(rows: Tensor) -> Tensor:
        return combined([torch.zeros(x.shape[1]), *rows])

    return combined(combined(map(group, block.split(64))) for block in x.split(4096))


def test_sums_add_up_in_the_order_that_the_node_says() -> None:
    rows, columns = numbers(5, 9001), numbers(9001, 5)
    along = traced("along", lambda x: x.sum(-1), rows)
    down = traced("down", lambda x: x.sum(0), columns)
    first, second = compiled([along, down])
    assert same_bits(run_kernel(first), [torch.cat([lanes_sum(row) for row in rows])])
    assert same_bits(run_kernel(second), [columns_sum(columns)])


def test_sizes_change_no_bit_of_an_element() -> None:
    """What stands in the last, partial step of lanes has the bits it has in a full one."""
    x = numbers(37)
    cases = [traced(f"of_{n}", lambda x: x.exp().sin().tanh(), x[:n]) for n in (1, 16, 31, 37)]
    results = [run_kernel(kernel)[0] for kernel in compiled(cases)]
    assert all(torch.equal(r, results[-1][: len(r)]) for r in results)


# --- schedules ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "shape", "style", "shared"),
    [
        (torch.exp, (8, 8), "elements", "nothing"),
        (torch.exp, (512, 512), "elements", "rows"),
        (partly(Tensor.softmax, -1), (8, 64), "lanes", "nothing"),
        (partly(Tensor.softmax, -1), (512, 512), "lanes", "rows"),
        (partly(Tensor.softmax, -1), (1, 65536), "lanes", "blocks"),
        (partly(Tensor.sum, 0), (512, 768), "columns", "rows"),
        (partly(Tensor.sum, 0), (30000, 16), "columns", "blocks"),
    ],
)
def test_threads_share_what_there_is_enough_of(
    function: Function, shape: tuple[int, ...], style: str, shared: str
) -> None:
    plan = schedule(traced("f", function, torch.empty(shape)).nest)
    assert (plan.style, plan.shared) == (style, shared)


def test_reads_that_jump_from_lane_to_lane_are_tiled() -> None:
    jumping = traced("f", lambda x: x.t().contiguous() * 2, numbers(40, 50))
    straight = traced("f", lambda x: x * 2, numbers(40, 50))
    tile = schedule(jumping.nest).tile
    assert tile is not None and tile.size == 50
    assert schedule(straight.nest).tile is None


def test_wide_strips_are_for_single_sweeps() -> None:
    once = traced("f", lambda x: x.sum(0), numbers(20, 1024))
    often = traced("f", lambda x: x.softmax(0), numbers(20, 1024))
    assert schedule(once.nest).vectors == 2 * schedule(often.nest).vectors


# --- text ---------------------------------------------------------------------------------------


def test_the_text_is_the_same_every_time_and_says_what_it_computes() -> None:
    case = traced("named", lambda x, y: F.gelu(x * y), numbers(4, 8), numbers(8))
    text = emit([case.nest], graph="net")
    assert text == emit([case.nest], graph="net")
    assert "graph net" in text and "rows [a0: 4, a1: 8]" in text
    assert all(len(line) <= 110 for line in text.splitlines())


def test_a_value_is_rounded_once_where_only_a_store_reads_it() -> None:
    half = numbers(4, 8, dtype=torch.bfloat16)
    alone = traced("alone", lambda x: x.exp(), half)
    read = traced("read", lambda x: x.exp().sin(), half)
    assert "round_to" not in emit([alone.nest])
    assert emit([read.nest]).count("round_to<bf16>") == 1


def test_positions_that_are_only_compared_take_32_bits() -> None:
    mask = traced("mask", lambda x: x.tril(), numbers(4, 8))
    value = traced(
        "value", lambda x: torch.where(torch.arange(8) > 3, torch.arange(8), 0) + x, numbers(8)
    )
    assert "i64v" not in emit([mask.nest]) and "positions<i32>" in emit([mask.nest])
    assert "positions<i64>" in emit([value.nest])


def test_a_dtype_without_a_place_in_kernels_is_refused() -> None:
    case = traced("f", lambda x: x * 2, numbers(8))
    buffer = case.nest.inputs[0]
    odd = replace(buffer, type=buffer.type.with_dtype(torch.complex64))
    with pytest.raises(UnsupportedError, match="c64"):
        emit([replace(case.nest, inputs=(odd,))])


def test_names_that_mean_something_else_in_cpp_are_changed() -> None:
    names = ["x", "add", "for", "t0", "f32", "a1", "_x", "x.1", "x_1", "p", "Z"]
    found = identifiers(names)
    assert len(set(found.values())) == len(names)
    assert found["x"] == "x" and found["add"] == "in_add" and found["x.1"] != found["x_1"]


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        (0.1, torch.float32, "0.1f"),
        (0.1, torch.float64, "0.1"),
        (1.0, torch.float32, "1.0f"),
        (-0.0, torch.float32, "-0.0f"),
        (1e39, torch.float32, "__builtin_inff()"),
        (float("-inf"), torch.float64, "-__builtin_inf()"),
        (float("nan"), torch.float32, '__builtin_nanf("")'),
        (16777217.0, torch.float32, "16777216.0f"),
        (-(2**63), torch.int64, "(-9223372036854775807L - 1)"),
        (2**31, torch.int32, "(-2147483647 - 1)"),
        (300, torch.int32, "300"),
        (True, torch.bool, "true"),
    ],
)
def test_numbers_print_exactly(value: bool | int | float, dtype: torch.dtype, text: str) -> None:
    assert number_text(value, dtype) == text
