"""The clean-up passes on random graphs: the same bits, the same strides, and no output that shares
memory with an input or another output where it did not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from random import Random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewright.ir import Constant, Graph, Input, Node, TensorType, Value, freeze, op
from rewright.ir.interpret import interpret
from rewright.passes import Pipeline
from run_case import case_env, random_inputs
from strategies import graphs, values_for

Choice = Callable[[int], int]
CLEAN_UP = Pipeline.parse("canonicalize,fold,cse,dce")
DTYPES = (torch.float32, torch.float16, torch.float64, torch.bfloat16)


def shapes_of(numel: int) -> list[list[int]]:
    pairs = [[n, numel // n] for n in range(1, numel + 1) if numel % n == 0]
    return [[numel], *pairs, *([1, *pair] for pair in pairs)]


def calls(
    x: TensorType, choose: Choice
) -> Iterator[tuple[str, tuple[object, ...], dict[str, object]]]:
    """Calls that take a tensor of this type; some need not work, as views of some strides."""
    shapes = shapes_of(6)
    yield "aten.clone.default", (), {}
    yield "aten.clone.default", (), {"memory_format": torch.contiguous_format}
    yield "aten.alias.default", (), {}
    yield "aten.detach.default", (), {}
    yield "aten.sin.default", (), {}
    yield "aten.rand_like.default", (), {}
    yield "aten._to_copy.default", (), {"dtype": DTYPES[choose(len(DTYPES))]}
    yield "prims.convert_element_type.default", (DTYPES[choose(len(DTYPES))],), {}
    yield "aten.view.default", (shapes[choose(len(shapes))],), {}
    yield "aten._unsafe_view.default", (shapes[choose(len(shapes))],), {}
    yield "aten.reshape.default", (shapes[choose(len(shapes))],), {}
    yield "aten.unsqueeze.default", (choose(x.rank + 1),), {}
    yield "aten.squeeze.dim", (choose(max(x.rank, 1)),), {}
    yield "aten.transpose.int", (choose(max(x.rank, 1)), choose(max(x.rank, 1))), {}
    yield "aten.permute.default", (tuple(reversed(range(x.rank))),), {}
    yield "aten.expand.default", (x.shape,), {}
    yield "aten.slice.Tensor", (choose(max(x.rank, 1)), 0, 9), {}
    yield "aten.mul.Tensor", (), {}


def result_type(name: str, args: Sequence[object], kwargs: dict[str, object]) -> TensorType | None:
    """What the operator returns for these arguments; None when it does not take them."""
    target = op(name).target
    assert target is not None
    try:
        made = target(*(meta(a) for a in args), **kwargs)
    except (RuntimeError, IndexError):
        return None
    return TensorType(made.dtype, tuple(made.shape), made.stride())


def meta(arg: object) -> object:
    if not isinstance(arg, Value):
        return arg
    type = arg.tensor
    return torch.empty_strided(type.shape, type.layout, dtype=type.dtype, device="meta")  # type: ignore[arg-type]


def random_graph(seed: int) -> Graph:
    """Three inputs, two constants, up to thirty nodes, mostly in chains; some values returned."""
    choose = Random(seed).randrange
    types = TensorType(torch.float32, (2, 3)), TensorType(torch.float16, (3, 2), (1, 3))
    values = [Value(f"x{i}", t) for i, t in enumerate((*types, types[0]))]
    inputs = tuple(Input(v) for v in values)
    number, table = Value("c0", TensorType(torch.float16, ())), Value("c1", types[0])
    constant = Constant.of(torch.arange(6, dtype=torch.float32).reshape(2, 3) - 2)
    nodes = [
        Node(op("aten.full.default"), ((), 0.1), (("dtype", torch.float16),), (number,)),
        Node(op("rw.constant"), (), (("value", constant),), (table,)),
    ]
    values += [number, table]
    for _ in range(30):
        value = values[-1 - min(choose(len(values)), choose(6))]
        other = values[choose(len(values))]
        options = list(calls(value.tensor, choose))
        name, rest, kwargs = options[choose(len(options))]
        args = (value, *rest) if rest or kwargs or "mul" not in name else (value, other)
        type = result_type(name, args, kwargs)
        if type is None:
            continue
        values.append(Value(f"v{len(nodes)}", type))
        frozen = tuple((key, freeze(kwarg)) for key, kwarg in kwargs.items())
        nodes.append(Node(op(name), tuple(freeze(a) for a in args), frozen, (values[-1],)))
    outputs = tuple(values[choose(len(values))] for _ in range(2 + choose(4)))
    return Graph("f", inputs, tuple(nodes), tuple(dict.fromkeys(outputs)))


def outcome(graph: Graph) -> tuple[list[torch.Tensor], set[tuple[int, int]]]:
    """The outputs, and which pairs of outputs and inputs share memory."""
    inputs = random_inputs(graph)
    torch.manual_seed(0)
    outputs = interpret(graph, inputs)
    tensors = [*outputs, *inputs]
    storages = [t.untyped_storage() for t in tensors if isinstance(t, torch.Tensor)]
    # Empty storages may all have the same address.
    owners = [s.data_ptr() if s.nbytes() else None for s in storages]
    pairs = combinations(range(len(owners)), 2)
    shared = {(i, j) for i, j in pairs if owners[i] is not None and owners[i] == owners[j]}
    return outputs, shared


def strides(tensor: torch.Tensor) -> list[int]:
    """Those that reach something: torch's own kernels disagree on dimensions of size one."""
    return [s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]


@given(st.integers(0, 1 << 32))
@settings(max_examples=300)
def test_clean_up_is_exact_and_keeps_storage_apart(seed: int) -> None:
    before = random_graph(seed)
    after = CLEAN_UP.run(before, case_env()).graph
    expected, shared_before = outcome(before)
    found, shared_after = outcome(after)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert strides(one) == strides(other)
        assert torch.equal(one, other)
    assert shared_after <= shared_before


@given(st.integers(0, 1 << 32))
@settings(max_examples=100)
def test_a_second_run_finds_nothing(seed: int) -> None:
    once = CLEAN_UP.run(random_graph(seed), case_env()).graph
    assert CLEAN_UP.run(once, case_env()).graph == once


@given(graphs(regions=False))
@settings(max_examples=100)
def test_clean_up_is_exact_on_graphs_of_arithmetic(before: Graph) -> None:
    after = CLEAN_UP.run(before, case_env()).graph
    pairs = zip(
        interpret(after, values_for(before)), interpret(before, values_for(before)), strict=True
    )
    assert all(torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)) for one, other in pairs)
