"""The torch.compile backend: everything a caller can see is as eager has it."""

from __future__ import annotations

import copy
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import rewright
from rewright.ir import OptionError, UnsupportedError

pytestmark = pytest.mark.cpu

Function = Callable[..., Any]


def compiled(function: Function, **options: Any) -> Function:
    """`function` through our backend, as one graph."""
    given = options.pop("options", None)
    made: Function = torch.compile(
        function, backend="rewright", fullgraph=True, options=given, **options
    )
    return made


def same_as_eager(function: Function, *inputs: Any, dynamic: bool | None = None) -> None:
    """Outputs, the inputs afterwards and what shares memory with what are as in eager."""
    expected = observed(function, inputs)
    found = observed(compiled(function, dynamic=dynamic), inputs)
    assert found.aliases == expected.aliases
    for ours, eager in zip(found.leaves, expected.leaves, strict=True):
        assert type(ours) is type(eager)
        if isinstance(eager, Tensor):
            torch.testing.assert_close(ours, eager, equal_nan=True)
            assert ours.stride() == eager.stride()
        else:
            assert ours == eager


class Observed:
    """A call's outputs and inputs, flat, and for each tensor the first that shares its memory."""

    def __init__(self, leaves: list[Any]) -> None:
        self.leaves = leaves
        addresses = [
            x.untyped_storage().data_ptr() if isinstance(x, Tensor) and x.numel() else None
            for x in leaves
        ]
        self.aliases = [a if a is None else addresses.index(a) for a in addresses]


def observed(function: Function, inputs: tuple[Any, ...]) -> Observed:
    """Call on copies that share memory as the originals do."""
    torch.manual_seed(0)
    mine = copied(inputs)
    return Observed(pytree.tree_leaves((function(*mine), mine)))


def copied(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies over copied storages: strides, offsets and sharing are kept."""
    storages: dict[int, torch.UntypedStorage] = {}

    def copy_of(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        storage = x.untyped_storage()
        mine = storages.setdefault(storage._cdata, storage.clone())
        made = torch.empty(0, dtype=x.dtype)
        made.set_(mine, x.storage_offset(), x.shape, x.stride())
        return made.requires_grad_(x.requires_grad)

    return tuple(pytree.tree_map(copy_of, inputs))


def the_program() -> Any:
    """The one program that was compiled."""
    (program,) = rewright.programs()
    return program


# --- aliases and mutation -----------------------------------------------------------------------

X = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7


def add_to_input(x: Tensor) -> Tensor:
    x.add_(1)
    return x * 2


def return_mutated_input(x: Tensor) -> Tensor:
    return x.mul_(3)


def keep_the_old_value(x: Tensor) -> tuple[Tensor, Tensor]:
    old = x.clone()
    x.add_(1)
    return old, x + old


def write_into_a_view(x: Tensor) -> Tensor:
    x[1:3].zero_()
    return x.sum(0)


def swap(x: Tensor, y: Tensor) -> Tensor:
    kept = x.clone()
    x.copy_(y)
    y.copy_(kept)
    return x - y


def rotate_in_place(x: Tensor) -> Tensor:
    x.copy_(x.roll(1, 0))
    return x.sum()


def return_input(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x + 1


def return_views_of_input(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.t(), x[1:], x.view(-1)


def return_one_storage_twice(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = x.exp()
    return y, y.view(-1), y.t()


def return_view_of_intermediate(x: Tensor) -> Tensor:
    return x.exp()[1:, ::2]


def return_same_twice(x: Tensor) -> tuple[Tensor, Tensor, None, int]:
    y = x.sin()
    return y, y, None, 7


def return_constants(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    table = torch.tensor([1.0, 2.0, 3.0])
    return table, table.expand(2, 3), x * table.sum()


@pytest.mark.parametrize(
    "function",
    [
        add_to_input,
        return_mutated_input,
        keep_the_old_value,
        write_into_a_view,
        rotate_in_place,
        return_input,
        return_views_of_input,
        return_one_storage_twice,
        return_view_of_intermediate,
        return_same_twice,
        return_constants,
    ],
)
def test_mutation_and_aliases_are_eagers(function: Function) -> None:
    same_as_eager(function, X.clone())


def test_two_inputs_swap_their_contents() -> None:
    same_as_eager(swap, X.clone(), -X)


def test_inputs_that_share_memory() -> None:
    storage = torch.arange(30, dtype=torch.float32)

    def both(x: Tensor, y: Tensor) -> Tensor:
        x.add_(1)
        return x + y.exp()

    same_as_eager(both, storage[:20], storage[10:])


def test_a_constant_is_not_the_callers_to_change() -> None:
    function = compiled(return_constants)
    first = function(X)[0]
    first.zero_()
    assert torch.equal(function(X)[0], torch.tensor([1.0, 2.0, 3.0]))


def test_buffers_of_a_module_are_updated() -> None:
    eager = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).train()
    ours = copy.deepcopy(eager)
    step = compiled(ours)
    for _ in range(3):
        torch.testing.assert_close(step(X), eager(X))
    torch.testing.assert_close(ours.state_dict(), eager.state_dict())
    assert int(ours.get_buffer("1.num_batches_tracked")) == 3


# --- odd inputs ---------------------------------------------------------------------------------


def normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.nn.functional.gelu(x) * 2 + x.exp(), x.softmax(-1)


BIG = torch.linspace(-3, 3, 2 * 33 * 20).reshape(2, 33, 20)
ODD: dict[str, Tensor] = {
    "transposed": BIG.transpose(1, 2),
    "sliced": BIG[:, ::3, 1:-1],
    "expanded": BIG[:1, :1].expand(4, 5, 20),
    "expanded_last": BIG[:, :, :1].expand(2, 33, 20),
    "empty": torch.empty(0, 5),
    "empty_rows": torch.empty(3, 0),
    "0_dim": torch.tensor(1.5),
    "one": torch.full((1, 1, 1), 0.25),
    "misaligned": torch.linspace(-1, 1, 101)[1:].reshape(4, 25),
    "half_misaligned": torch.linspace(-1, 1, 101, dtype=torch.float16)[1:].reshape(4, 25),
    "channels_last": BIG.reshape(2, 3, 11, 20).to(memory_format=torch.channels_last),
    "permuted": BIG.permute(2, 0, 1),
    "overlapping": torch.linspace(0, 1, 20).as_strided((4, 5), (2, 1)),
    "double": BIG.double(),
    "bfloat16": BIG.bfloat16(),
}


@pytest.mark.parametrize("x", ODD.values(), ids=ODD.keys())
def test_odd_inputs(x: Tensor) -> None:
    same_as_eager(normalize, x)


def test_nan_infinities_and_zeros() -> None:
    x = torch.tensor([[0.0, -0.0, float("inf")], [float("-inf"), float("nan"), 1e30]])
    same_as_eager(lambda x: (x.exp() * x, x.tanh() / x, x.softmax(-1), x.amax(-1), -x, x < 1), x)


def test_a_tensor_seen_negated() -> None:
    """`imag` of a conjugate holds the numbers with the other sign, and a bit that says so."""
    x = torch.complex(X, X + 1).conj().imag
    assert x.is_neg()
    same_as_eager(lambda x: (x * 2).exp(), x)


def integers(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return x + y, x * y - 3, x // 5, x % 7, x < y, x.sum(-1), (x & y) | 1, x.float() / 3


def booleans(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return x & y, ~x | y, x.any(), x.all(-1), torch.where(x, 1.5, y), x.sum(), x.long() * 3


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_integers(dtype: torch.dtype) -> None:
    x = torch.arange(40, dtype=dtype).reshape(5, 8)
    same_as_eager(integers, x, x.flip(0))


def test_booleans() -> None:
    x = torch.arange(40).reshape(5, 8) % 3 == 0
    same_as_eager(booleans, x, ~x.flip(1))


def test_complex_numbers_run_as_aten() -> None:
    z = torch.complex(X, X.flip(0))
    same_as_eager(lambda z: (z * z.conj() + 1j, z.abs().exp(), torch.view_as_real(z) * 2), z)


def strides_of_everything(x: Tensor) -> tuple[Tensor, ...]:
    y = torch.nn.functional.relu(x) + 1
    return y, y.permute(0, 2, 3, 1) * 2, y.transpose(1, 3).contiguous(), y.mean(1), y.flatten(2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_have_eagers_strides(layout: torch.memory_format) -> None:
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    convolution.weight.data = convolution.weight.to(memory_format=layout)
    x = torch.randn(2, 3, 8, 10).to(memory_format=layout)
    with torch.no_grad():
        same_as_eager(lambda x: (*strides_of_everything(x), convolution(x).sigmoid()), x)


# --- control flow, sizes that depend on data ----------------------------------------------------


def branches(x: Tensor) -> Tensor:
    y: Tensor = torch.cond(x.sum() > 0, lambda x: x.sin() * 2, lambda x: x.cos() + 1, (x,))
    return y


@pytest.mark.parametrize("sign", [1, -1])
def test_cond(sign: int) -> None:
    same_as_eager(branches, sign * X - sign * 0.01)


def test_while_loop() -> None:
    from torch._higher_order_ops import while_loop

    def count_up(x: Tensor) -> Tensor:
        zero = torch.zeros((), dtype=torch.int64)
        limit, carried = 4, (zero, x.clone())
        _, y = while_loop(lambda i, x: i < limit, lambda i, x: (i + 1, x * 1.5 + i), carried)
        assert isinstance(y, Tensor)
        return y

    same_as_eager(count_up, X)


def rows_that_are_positive(x: Tensor) -> tuple[Tensor, Tensor]:
    chosen = x[x.sum(-1) > 5]
    return chosen.exp() + 1, torch.cat([chosen, x]).softmax(-1)


def count_and_fill(x: Tensor) -> Tensor:
    return torch.full((4,), float((x > 1).sum().item())) + x.sum()


def slice_by_item(x: Tensor, n: Tensor) -> Tensor:
    count = n.item()
    torch._check(count >= 0)
    torch._check(count <= x.shape[0])
    return (x.sin() + 1)[:count] * 2


@pytest.fixture
def data_dependent() -> Iterator[None]:
    """Let Dynamo trace operators whose results' sizes depend on data."""
    with torch._dynamo.config.patch(
        capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True
    ):
        yield


def unread_indices(x: Tensor) -> Tensor:
    """Only the number of rows is read, twice found."""
    return torch.full((2,), x.nonzero().shape[0] + (x > 1).nonzero().shape[0]) + x.sum()


@pytest.mark.usefixtures("data_dependent")
@pytest.mark.parametrize("function", [rows_that_are_positive, count_and_fill, unread_indices])
def test_sizes_that_depend_on_data(function: Function) -> None:
    same_as_eager(function, X)


@pytest.mark.usefixtures("data_dependent")
def test_a_slice_of_a_length_known_at_run_time() -> None:
    same_as_eager(slice_by_item, X, torch.tensor(3))
    step = compiled(slice_by_item)
    for n in (3, 1, 4):
        torch.testing.assert_close(step(X, torch.tensor(n)), slice_by_item(X, torch.tensor(n)))


def half_the_size(x: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(x, scale_factor=0.3).exp() + 1


def test_sizes_computed_by_way_of_floats() -> None:
    step = compiled(half_the_size, dynamic=True)
    for size in (10, 13, 27):
        x = torch.rand(2, 3, size, size + 1)
        torch.testing.assert_close(step(x), half_the_size(x))


def test_integers_among_the_arguments() -> None:
    def scaled(x: Tensor, n: int) -> tuple[Tensor, int]:
        return x[:n] * n + x.shape[0], n + x.shape[1]

    step = compiled(scaled, dynamic=True)
    for n in (3, 2, 4):
        found, expected = step(X, n), scaled(X, n)
        torch.testing.assert_close(found[0], expected[0])
        assert type(found[1]) is int and found[1] == expected[1]


# --- training -----------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        return y


def gradients(module: nn.Module, call: Function, x: Tensor) -> list[Tensor]:
    parameters = [p for p in module.parameters() if p.requires_grad]
    return list(torch.autograd.grad(call(x).square().mean(), parameters))


def test_backward_on_another_thread() -> None:
    block = Block()
    x = torch.randn(4, 16)
    loss = compiled(block)(x).square().mean()
    worker = threading.Thread(target=loss.backward)
    worker.start()
    worker.join()
    found = [p.grad for p in block.parameters()]
    torch.testing.assert_close(found, gradients(block, block, x))


def test_frozen_parameters_get_no_gradient() -> None:
    block = Block()
    block.up.requires_grad_(False)
    x = torch.randn(4, 16, requires_grad=True)
    torch.testing.assert_close(gradients(block, compiled(block), x), gradients(block, block, x))
    compiled(block)(x).sum().backward()
    assert block.up.weight.grad is None
    assert x.grad is not None


def test_a_graph_may_be_walked_back_twice() -> None:
    block, x = Block(), torch.randn(4, 16, requires_grad=True)
    loss = compiled(block)(x).square().mean()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)


def test_recomputed_dropout_draws_the_same_mask_again() -> None:
    from torch.utils.checkpoint import checkpoint

    linear = nn.Linear(16, 16)

    def inner(x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(linear(x).relu(), 0.4).square()

    def outer(x: Tensor) -> Tensor:
        y: Tensor = checkpoint(inner, x, use_reentrant=False)
        return y.sum()

    x = torch.randn(8, 16, requires_grad=True)

    def step(function: Function) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        return torch.autograd.grad(function(x), (x, *linear.parameters()))

    torch.testing.assert_close(step(compiled(outer)), step(outer))


def test_under_autocast() -> None:
    block, x = Block(), torch.randn(4, 16)

    def cast(call: Function) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y: Tensor = call(x)
        return y

    step = compiled(block)
    with torch.no_grad():
        ours, eager = cast(step), cast(block)
    assert ours.dtype == eager.dtype
    torch.testing.assert_close(ours, eager, rtol=2e-2, atol=2e-2)


def test_inference_mode() -> None:
    block, x = Block(), torch.randn(4, 16)
    step = compiled(block)
    with torch.inference_mode():
        torch.testing.assert_close(step(x), block(x))
        assert step(x).is_inference()
    with torch.no_grad():
        torch.testing.assert_close(step(x), block(x))


# --- threads, re-entrance, memory ---------------------------------------------------------------


def test_two_threads_compile_at_once() -> None:
    blocks = [Block(), Block()]
    inputs = [torch.randn(4, 16), torch.randn(7, 16)]
    start = threading.Barrier(2)

    def work(i: int) -> list[Tensor]:
        start.wait()
        return gradients(blocks[i], torch.compile(blocks[i], backend="rewright"), inputs[i])

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(work, range(2)))
    for block, x, ours in zip(blocks, inputs, found, strict=True):
        torch.testing.assert_close(ours, gradients(block, block, x))


def test_two_threads_run_one_program() -> None:
    block = Block().eval()
    step = compiled(block)
    inputs = [torch.randn(4, 16) for _ in range(24)]
    with torch.no_grad():
        step(inputs[0])
        expected = [block(x) for x in inputs]

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            y: Tensor = step(x)
        return y

    with ThreadPoolExecutor(4) as pool:
        torch.testing.assert_close(list(pool.map(run, inputs)), expected)


def test_a_call_within_a_call() -> None:
    """A program that calls back into Python, and from there into itself, keeps its buffers."""
    depth = 0

    @torch.library.custom_op("rewright_tests::call_back", mutates_args=())
    def call_back(x: Tensor) -> Tensor:
        nonlocal depth
        depth += 1
        return step(x + 1) + x if depth < 3 else x.clone()

    call_back.register_fake(torch.empty_like)

    def function(x: Tensor) -> Tensor:
        y = (x.sin() @ x.t()).exp()
        inner: Tensor = torch.ops.rewright_tests.call_back(x)
        return y @ inner + (y @ x).tanh()

    step = compiled(function)
    x = X / 10
    with torch.no_grad():
        found, depth = step(x), 0
        torch.testing.assert_close(found, function_by_hand(x))


def function_by_hand(x: Tensor, depth: int = 1) -> Tensor:
    """What `test_a_call_within_a_call` computes."""
    y = (x.sin() @ x.t()).exp()
    inner = function_by_hand(x + 1, depth + 1) + x if depth < 3 else x
    return y @ inner + (y @ x).tanh()


def test_an_input_is_freed_after_its_last_use() -> None:
    """AOTAutograd hands over what nobody else holds: it must not live until the program ends."""
    watched: list[weakref.ref[Tensor]] = []
    alive: list[list[bool]] = []

    @torch.library.custom_op("rewright_tests::look", mutates_args=())
    def look(x: Tensor) -> Tensor:
        alive.append([w() is not None for w in watched])
        return x.clone()

    look.register_fake(torch.empty_like)

    def function(x: Tensor, y: Tensor) -> Tensor:
        seen: Tensor = torch.ops.rewright_tests.look(x.sin().sum(0))
        return seen + y

    compiled(function)(X, X[0])
    args = [X.clone(), X[0].clone()]
    watched += map(weakref.ref, args)
    the_program().executable(args)
    assert args == []
    assert alive[-1] == [False, True]


def test_what_nothing_reads_is_freed_at_once() -> None:
    from rewright.driver import compile_graph
    from rewright.ir.parse import parse
    from rewright.options import Options

    graph = parse(
        "graph f(%x: f32[4], %unread: f32[4]) {\n"
        "  %y = aten.sin.default(%x) : f32[4]\n"
        "  return %y\n}"
    )
    assert "del unread" in compile_graph(graph, Options()).executable.source.split("def run")[1]


# --- options ------------------------------------------------------------------------------------


def refusal(function: Function, *inputs: Any) -> str:
    """The message of the error that compiling raises, ours without Dynamo's around it."""
    with pytest.raises(Exception, match="backend='rewright' raised") as caught:
        function(*inputs)
    inner = getattr(caught.value, "inner_exception", caught.value)
    assert isinstance(inner, rewright.RewrightError)
    return str(inner)


def test_an_unknown_option_is_refused() -> None:
    function = compiled(torch.sin, options={"fallbck": "error"})
    assert refusal(function, X) == "[options] no option 'fallbck'; did you mean 'fallback'?"


def test_a_wrong_value_is_refused() -> None:
    function = compiled(torch.sin, options={"fallback": "no"})
    assert refusal(function, X) == "[options] fallback is 'aten' or 'error', not 'no'"


def test_an_unknown_pass_is_refused() -> None:
    function = compiled(torch.sin, options={"passes": "canonicalise,fuse,memory"})
    assert refusal(function, X).startswith(
        "no pass named 'canonicalise'; did you mean 'canonicalize'?\n"
    )


def test_fallback_error_names_what_has_no_kernel() -> None:
    function = compiled(lambda x: torch.sort(x.sin())[0] + 1, options={"fallback": "error"})
    assert refusal(function, X) == (
        "[fallback] 1 node has no kernel of ours: aten.sort.default\n"
        "  = help: fallback='aten' runs them as ATen"
    )


def test_fallback_error_takes_what_has_kernels() -> None:
    block = Block()
    with torch.no_grad():
        step = compiled(block, options={"fallback": "error"})
        x = torch.randn(4, 16)
        torch.testing.assert_close(step(x), block(x))
    assert set(the_program().report.counts()) <= {"ours", "aten", "view", "gone", "constant"}


def test_keywords_of_other_backends_are_refused() -> None:
    from rewright.backend import rewright as backend

    with pytest.raises(OptionError, match="takes options=, not tuning="):
        backend(torch.fx.symbolic_trace(Block()), [X], tuning=True)


def test_mode_is_accepted() -> None:
    torch.testing.assert_close(
        torch.compile(torch.sin, backend="rewright", mode="default")(X), X.sin()
    )


def test_reset_forgets_programs() -> None:
    compiled(torch.sin)(X)
    assert rewright.programs()
    torch._dynamo.reset()
    assert rewright.programs() == ()


def test_the_backend_is_registered_by_its_entry_point() -> None:
    assert "rewright" in torch._dynamo.list_backends()


# --- no compiler --------------------------------------------------------------------------------


def test_without_a_compiler_everything_runs_as_aten(monkeypatch: pytest.MonkeyPatch) -> None:
    from rewright.driver import _warn_once

    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    _warn_once.cache_clear()
    block, x = Block(), torch.randn(4, 16)
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler: .*; everything runs as ATen") as seen:
        found = gradients(block, compiled(block), x)
    torch.testing.assert_close(found, gradients(block, block, x))
    assert len([w for w in seen if "rewright" in str(w.message)]) == 1
    assert all("ours" not in p.report.counts() for p in rewright.programs())


def test_without_a_compiler_fallback_error_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    message = refusal(compiled(torch.sin, options={"fallback": "error"}), X)
    assert message.startswith("[cpp] no C++ compiler: looked for c++, g++, clang++\n")


def test_a_compiler_that_fails_leaves_aten(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """It answers questions about itself, and compiles nothing."""
    from rewright.driver import _warn_once

    fake = tmp_path / "fake-c++"
    fake.write_text('#!/bin/sh\ncase "$*" in *-o*) echo "out of licences"; exit 1;; esac\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.setenv("REWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    _warn_once.cache_clear()
    with pytest.warns(UserWarning, match="fake-c.. could not compile a kernel"):
        torch.testing.assert_close(compiled(lambda x: x.sin() + 1)(X), X.sin() + 1)


def test_an_operator_that_only_raises_is_reported_as_eager_reports_it() -> None:
    def out_of_range(x: Tensor, at: Tensor) -> Tensor:
        return x.index_select(0, at).sin()

    with warnings.catch_warnings(), pytest.raises(IndexError):
        compiled(out_of_range)(X, torch.tensor([99]))


def test_unsupported_is_one_of_our_errors() -> None:
    assert issubclass(UnsupportedError, rewright.RewrightError)
