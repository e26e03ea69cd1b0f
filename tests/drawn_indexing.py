"""Reading and writing at computed places, joins, fills and new tensors, for drawn graphs."""

from __future__ import annotations

from typing import Final

import torch

from drawn_sketch import LARGEST, Sketch, is_integral, is_mask
from drawn_views import slice_
from rewright.ir.dims import Dim, Size, hint
from rewright.ir.graph import Arg, Value
from rewright.ir.types import TensorType

INDEX_DTYPES: Final = (torch.int64, torch.int32)


def gather(sketch: Sketch) -> None:
    """One element each for every index along a dimension."""
    value = sketch.any_value(rank=1)
    if value is None:
        return
    dim, rank = sketch.axis(value), value.tensor.rank
    index = places(sketch, value.tensor.shape[dim], rank, narrow=False)
    if index is not None:
        sketch.add("aten.gather.default", value, dim, index)


def index_select(sketch: Sketch) -> None:
    value = sketch.any_value(rank=1)
    if value is None:
        return
    dim = sketch.axis(value)
    index = places(sketch, value.tensor.shape[dim], 1)
    if index is not None:
        sketch.add("aten.index_select.default", value, dim, index)


def embedding(sketch: Sketch) -> None:
    table = sketch.pick(lambda v: v.tensor.rank == 2)
    if table is None:
        return
    index = places(sketch, table.tensor.shape[0], sketch.number(0, 2))
    if index is not None:
        sketch.add("aten.embedding.default", table, index)


def index(sketch: Sketch) -> None:
    """`value[:, i, j]`, with indices that are broadcast against each other; negative ones too."""
    value = sketch.any_value(rank=1)
    if value is None:
        return
    rank = value.tensor.rank
    first = sketch.number(0, rank - 1)
    indices: list[Arg] = [None] * first
    for dim in range(first, min(rank, first + sketch.number(1, 2))):
        found = places(sketch, value.tensor.shape[dim], sketch.number(0, 2), signed=True)
        indices.append(found)
    if any(i is not None for i in indices):
        sketch.add("aten.index.Tensor", value, tuple(indices))


def put(sketch: Sketch) -> None:
    """Writing at computed places. Places that occur twice add up: which of two values stays is
    not said."""
    value = sketch.any_value(rank=1)
    if value is None:
        return
    size, rank = value.tensor.shape[0], value.tensor.rank
    match sketch.one_of("put", "overwrite", "add", "scatter", "value", "rows"):
        case "overwrite":
            where = _each_place(sketch, size)
            if where is not None:
                sketch.add("aten.index_put.default", value, (where,), like(sketch, value), False)
        case "add":
            dim = sketch.axis(value)
            where = places(sketch, value.tensor.shape[dim], rank, narrow=False)
            if where is not None:
                sketch.add("aten.scatter_add.default", value, dim, where, like(sketch, value))
        case "value":
            dim = sketch.axis(value)
            where = places(sketch, value.tensor.shape[dim], rank, narrow=False)
            if where is not None:
                sketch.add("aten.scatter.value", value, dim, where, sketch.one_of(0, 2))
        case "scatter":
            where = _each_place(sketch, size)
            shape = (size, *(1 for _ in range(rank - 1)))
            viewed = sketch.add("aten.view.default", where, shape) if where is not None else []
            for at in viewed:
                sketch.add("aten.scatter.src", value, 0, at, like(sketch, value))
        case "rows":
            where = places(sketch, size, 1)
            source = like(sketch, value)
            if where is not None and where.tensor.shape == source.tensor.shape[:1]:
                sketch.add("aten.index_add.default", value, 0, where, source)
        case _:
            where = places(sketch, size, sketch.number(0, 1), signed=True)
            if where is not None:
                rows = sketch.pick(lambda v: v.tensor.dtype == value.tensor.dtype)
                new = rows if rows is not None else value
                sketch.add("aten.index_put.default", value, (where,), new, True)


def places(
    sketch: Sketch, size: Size, rank: int, *, narrow: bool = True, signed: bool = False
) -> Value | None:
    """Integers that are places in a dimension of `size`; made so by a remainder where they are not.

    `narrow`: i32 will do; `signed`: they may count from the end.
    """
    if not isinstance(size, Dim) and size == 0:
        return None
    dtypes = INDEX_DTYPES if narrow else INDEX_DTYPES[:1]
    found = sketch.pick(lambda v: v.tensor.dtype in dtypes and v.tensor.rank == rank)
    if found is None:
        shape = tuple(sketch.one_of(1, 2, 3, 5) for _ in range(rank))
        found = sketch.input("i", TensorType(torch.int64, shape))
    held, least = sketch.held[found], -_least(size) if signed else 0
    if held.empty or (held.least >= least and held.greatest < _least(size)):
        return found
    made = sketch.add("aten.remainder.Scalar", found, size)
    return made[0] if made else None


def _least(size: Size) -> int:
    return 2 if isinstance(size, Dim) else size


def _each_place(sketch: Sketch, size: Size) -> Value | None:
    """Every place of a dimension once, in some order."""
    made = sketch.add("aten.arange.default", size, dtype=torch.int64)
    if made and sketch.chance():
        made = sketch.add("aten.flip.default", made[0], (0,))
    return made[0] if made else None


def like(sketch: Sketch, value: Value) -> Value:
    """Some value of the same dtype and shape; itself when there is no other."""
    found = sketch.pick(lambda v: v.tensor.with_dtype(v.tensor.dtype).shape == value.tensor.shape)
    return found if found is not None and found.tensor.dtype == value.tensor.dtype else value


# --- joins and fills ----------------------------------------------------------------------------


def join(sketch: Sketch) -> None:
    value = sketch.any_value()
    if value is None:
        return
    count = sketch.number(1, 3)
    rank = value.tensor.rank
    if rank == 0 or sketch.chance():
        same = [sketch.pick(lambda v: v.tensor.shape == value.tensor.shape) for _ in range(count)]
        stacked = tuple(v for v in same if v is not None)
        sketch.add("aten.stack.default", (value, *stacked), sketch.number(-rank - 1, rank))
        return
    dim = sketch.axis(value)

    def beside(other: Value) -> bool:
        pairs = zip(value.tensor.shape, other.tensor.shape, strict=False)
        alike = [a == b or place == dim % rank for place, (a, b) in enumerate(pairs)]
        return other.tensor.rank == rank and all(alike)

    parts = [sketch.pick(beside) for _ in range(count)]
    sketch.add("aten.cat.default", tuple(v for v in (value, *parts) if v is not None), dim)


def pad(sketch: Sketch) -> None:
    value = sketch.any_value(rank=1)
    if value is None:
        return
    dims = sketch.number(1, min(2, value.tensor.rank))
    pads = tuple(sketch.number(-1, 2) for _ in range(2 * dims))
    sketch.add("aten.constant_pad_nd.default", value, pads, sketch.one_of(0, 1, 0.5))


def turn(sketch: Sketch) -> None:
    """Flip, roll, repeat."""
    value = sketch.any_value(rank=1)
    if value is None:
        return
    rank = value.tensor.rank
    match sketch.one_of("flip", "roll", "repeat"):
        case "flip":
            dims = sketch.one_of((sketch.axis(value),), tuple(range(rank)))
            sketch.add("aten.flip.default", value, dims)
        case "roll":
            shifts = sketch.number(-3, 3)
            dims = (sketch.axis(value),) if sketch.chance() else ()
            sketch.add("aten.roll.default", value, (shifts,), dims)
        case _:
            times = tuple(sketch.number(1, 2) for _ in range(rank))
            more = sketch.one_of((), (2,), (0,))
            sketch.add("aten.repeat.default", value, (*more, *times))


def triangle(sketch: Sketch) -> None:
    value = sketch.any_value(rank=2)
    if value is not None:
        name = sketch.one_of("tril", "triu")
        sketch.add(f"aten.{name}.default", value, sketch.number(-2, 3))


def embed(sketch: Sketch) -> None:
    """A value written over a part of another, or over a part of zeros."""
    value = sketch.any_value(rank=1)
    if value is None:
        return
    before = len(sketch.nodes)
    dim = sketch.axis(value)
    match sketch.one_of("slice", "select", "diagonal", "slice_back", "select_back"):
        case "slice":
            slice_(sketch)
            _scatter_what_was_taken(sketch, before)
        case "select":
            index = sketch.number(-2, 1)
            part = sketch.add("aten.select.int", value, dim, index)
            if part:
                sketch.add("aten.select_scatter.default", value, like(sketch, part[0]), dim, index)
        case "diagonal" if value.tensor.rank >= 2:
            part = sketch.add("aten.diagonal.default", value)
            if part:
                sketch.add("aten.diagonal_scatter.default", value, like(sketch, part[0]))
        case "select_back":
            shape = list(value.tensor.shape)
            shape.insert(dim % (len(shape) + 1), 3)
            at = dim % len(shape)
            sketch.add("aten.select_backward.default", value, tuple(shape), at, 1)
        case _:
            shape = list(value.tensor.shape)
            shape[dim] = shape[dim] + 3
            ends = sketch.one_of((1, shape[dim] - 2), (3, shape[dim]), (0, shape[dim] - 3))
            sketch.add("aten.slice_backward.default", value, tuple(shape), dim, *ends, 1)


def _scatter_what_was_taken(sketch: Sketch, before: int) -> None:
    """After a slice: another value of its type into its place."""
    if len(sketch.nodes) == before:
        return
    node = sketch.nodes[-1]
    part = like(sketch, node.results[0])
    sketch.add("aten.slice_scatter.default", node.args[0], part, *node.args[1:])


def create(sketch: Sketch) -> None:
    value = sketch.any_value()
    if value is None:
        return
    shape, dtype = value.tensor.shape, sketch.one_of(*sketch.dtypes, torch.int64)
    match sketch.one_of("full", "zeros", "arange", "steps", "scalar", "like", "new", "data"):
        case "full":
            sketch.add("aten.full.default", shape, sketch.one_of(1, 0.5, -2), dtype=dtype)
        case "zeros":
            name = sketch.one_of("zeros", "ones")
            sketch.add(f"aten.{name}.default", shape, dtype=dtype)
        case "arange" if shape and hint(shape[-1]) < LARGEST:
            sketch.add("aten.arange.default", shape[-1], dtype=dtype)
        case "steps":
            step = sketch.one_of(2, -1, 0.5)
            ends = (0, 7) if step != -1 else (7, 0)
            sketch.add("aten.arange.start_step", *ends, step, dtype=dtype)
        case "scalar":
            sketch.add("aten.scalar_tensor.default", sketch.one_of(2, 0.5), dtype=dtype)
        case "like":
            sketch.add("aten.full_like.default", value, sketch.one_of(0, 1, 3), dtype=dtype)
        case "new":
            sketch.add("aten.new_zeros.default", value, (2, 3), dtype=dtype)
        case _:
            rows = sketch.one_of([0.5, -1.5, 2.0], [1.0], [], [[1.0, 0.25], [-2.0, 0.0]])
            sketch.constant(torch.tensor(rows).to(sketch.one_of(*sketch.dtypes)))


def mask(sketch: Sketch) -> None:
    """Masks as attention has them: where a column is not after its row, or an index is small."""
    size: Size = sketch.one_of(4, 5, 16)
    value = sketch.any_value(rank=1)
    if value is not None:
        size = value.tensor.shape[-1]
    found = sketch.add("aten.arange.default", size)
    rows = sketch.add("aten.unsqueeze.default", found[0], 1) if found else []
    if rows:
        sketch.add(f"aten.{sketch.one_of('le', 'gt')}.Tensor", found[0], rows[0])


def count(sketch: Sketch) -> None:
    """From masks and integers to numbers."""
    value = sketch.pick(lambda v: is_mask(v) or is_integral(v))
    if value is not None:
        sketch.add("aten._to_copy.default", value, dtype=sketch.one_of(*sketch.dtypes))


INDEXING: Final = {
    "gather": gather,
    "index_select": index_select,
    "embedding": embedding,
    "index": index,
    "put": put,
    "join": join,
    "pad": pad,
    "turn": turn,
    "triangle": triangle,
    "embed": embed,
    "create": create,
    "mask": mask,
    "count": count,
}
