"""Inferred types are those that torch gives, strides included."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest
import torch

from drawn_graphs import wide_graphs
from fuzz.search import Search
from rewright.ir import Graph, Node, TensorType, UnsupportedError, Value, contiguous_strides, op
from rewright.ir.dims import equal
from rewright.ir.infer import can_infer, infer

DRAWN = 80


@cache
def drawn() -> tuple[Graph, ...]:
    found: list[Graph] = []
    for number in range(DRAWN):
        Search(wide_graphs(), found.append).run(number)
    return tuple(found)


def difference(node: Node) -> str | None:
    """Where the inferred types are not those that the node has; strides of dimensions that do not
    move say nothing."""
    for value, type in zip(node.results, infer(node), strict=True):
        told = value.type
        assert isinstance(told, TensorType) and isinstance(type, TensorType)
        same = (
            type.dtype == told.dtype
            and type.device == told.device
            and len(type.shape) == len(told.shape)
            and all(map(equal, type.shape, told.shape))
            and all(
                equal(a, b) or size == 1 or told.numel == 0
                for a, b, size in zip(type.layout, told.layout, told.shape, strict=True)
            )
        )
        if not same:
            return f"{node.op}: {type} is not {told}"
    return None


def test_types_of_drawn_graphs() -> None:
    seen = Counter[str]()
    wrong = []
    for graph in drawn():
        for node in graph.nodes:
            if not can_infer(node.op):
                continue
            try:
                found = difference(node)
            except UnsupportedError:
                continue
            seen[node.op.name] += 1
            if found:
                wrong.append(f"{found} in\n{graph.with_nodes([node])}")
    assert not wrong, "\n".join(wrong[:20])
    assert len(seen) > 100 and sum(seen.values()) > 600


@pytest.mark.parametrize("seed", range(40))
def test_joins_of_images_lie_as_torch_has_them(seed: int) -> None:
    """Row-major, channels last, and those that lie as both, for which strides decide."""
    draw = random.Random(seed)
    images = list(_images(draw))
    dim = draw.randrange(4)
    sizes = images[0].shape
    fits = [i for i in images if all(i.shape[d] == sizes[d] for d in range(4) if d != dim)]
    values = tuple(Value(f"v{n}", _type_of(image)) for n, image in enumerate(fits))
    (found,) = infer(Node(op("aten.cat.default"), (values, dim), (), ()))
    assert isinstance(found, TensorType)
    assert tuple(found.layout) == torch.cat(fits, dim).stride()


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("dim", range(4))
def test_joins_of_heads_of_a_larger_matrix_lie_by_rows(heads: int, dim: int) -> None:
    whole = torch.randn(10, 40).view(2, 5, 40)[..., 4 : 4 + 8 * heads]
    turned = whole.view(2, 5, heads, 8).transpose(1, 2)
    parts = [turned[..., 4:], turned[..., :4]]
    values = tuple(Value(f"v{n}", _type_of(part)) for n, part in enumerate(parts))
    (found,) = infer(Node(op("aten.cat.default"), (values, dim), (), ()))
    assert isinstance(found, TensorType)
    assert tuple(found.layout) == torch.cat(parts, dim).stride()


def _images(draw: random.Random) -> Iterator[torch.Tensor]:
    shape = [draw.choice((1, 2, 3)) for _ in range(4)]
    order = (0, 2, 3, 1) if draw.random() < 0.8 else (0, 1, 2, 3)
    for _ in range(draw.randint(1, 8)):
        sizes = [draw.choice((size, size, 2)) for size in shape]
        strides, step = [0] * 4, 1
        for d in reversed(order if draw.random() < 0.9 else (0, 1, 2, 3)):
            strides[d], step = step, step * sizes[d]
        yield torch.empty_strided(sizes, strides)


def _type_of(image: torch.Tensor) -> TensorType:
    shape = tuple(image.shape)
    strides = None if image.stride() == contiguous_strides(shape) else image.stride()
    return TensorType(image.dtype, shape, strides, image.device)
