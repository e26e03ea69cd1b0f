"""Attention in Triton: cases, and what kernels make of them. As a script (under TRITON_INTERPRET=1)
it runs all of them interpreted and saves what came out."""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from attention_kernels import MASKS, Case, Score, Shape, attention, kept, numbers
from rewright.ir import Graph, evaluate
from rewright.ir.fx_import import from_fx
from rewright.ir.loops import lower_attention

DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
# Tiles are of 128 queries and 64 keys for halves, of 64 and 32 for f32, and of less for wide heads.
ODD = Shape(2, 3, 97, 130, 24, 40)
SHAPES: Final = (
    Shape(1, 2, 200, 200, 64, 64),
    Shape(2, 1, 1, 77, 16, 32),
    Shape(1, 2, 5, 1, 8, 8),
    Shape(1, 3, 200, 65, 33, 17),
    Shape(2, 1, 100, 300, 80, 48),
    Shape(1, 1, 70, 90, 130, 256),
)
# Of two halves that see nothing of each other, at the edge of a tile.
LENGTH: Final = 512
HALF: Final = LENGTH // 2
SECOND = (torch.arange(LENGTH) >= HALF).long().expand(2, -1).contiguous()
# For few queries of many keys, to which the masks of whole parts are of all kinds.
IN_PARTS: Final = ("none", "causal", "lowest", "padding")
LOWEST: Final = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Tried:
    """A case, and what is run of it: `poisoned` keys and values are NaN then, and `rows` of what
    comes out are looked at. `symbolic`: the kernel is made for any size."""

    case: Case
    poisoned: slice = field(default_factory=lambda: slice(0))
    rows: slice = field(default_factory=lambda: slice(None))
    symbolic: bool = False

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        query, key, value, *read = self.case.inputs
        key, value = (x.clone() for x in (key, value))
        key[:, :, self.poisoned] = value[:, :, self.poisoned] = math.nan
        return query, key, value, *read

    def graph(self) -> Graph:
        if self.symbolic:
            graph = from_fx(exported(self.case), name="body")
            assert graph.symbols
            return graph
        traced = make_fx(attention(self.case.score), tracing_mode="fake")(*self.case.inputs)
        return from_fx(traced, name="body")

    def run(self, device: str) -> Tensor:
        """What the kernel gives on a device, between margins."""
        from rewright.codegen.triton import emit, load

        graph, given = self.graph(), [x.to(device) for x in self.inputs]
        nest = lower_attention(graph, "attention")
        symbols = [s.name for s in graph.symbols]
        seen = {s.name: s.hint or 0 for s in graph.symbols}
        (made,) = nest.outputs
        shape = [evaluate(size, seen) for size in made.type.shape]
        memory = torch.full((math.prod(shape) + 128,), 7.0, dtype=made.type.dtype, device=device)
        result = memory[64:-64].view(shape)
        load(emit(nest, symbols))(*given, result, *(seen[name] for name in symbols))
        assert (memory[:64] == 7).all() and (memory[-64:] == 7).all(), "a kernel wrote outside"
        return result


class Attend(nn.Module):
    def __init__(self, score: Score) -> None:
        super().__init__()
        self.attend = attention(score)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, read: tuple[Tensor, ...]
    ) -> Tensor:
        return self.attend(query, key, value, *read)


def exported(case: Case) -> torch.fx.GraphModule:
    """With as many queries as keys, and one of what is read for each, however many that are."""
    query, key, value, *read = case.inputs
    length = torch.export.Dim.AUTO
    shapes = (*({2: length} for _ in range(3)), tuple({1: length} for _ in read))
    given = (query, key, value, tuple(read))
    program = torch.export.export(Attend(case.score), given, dynamic_shapes=shapes)
    traced: torch.fx.GraphModule = program.run_decompositions({}).graph_module
    return traced


def same_document(i: Tensor, j: Tensor, ids: Tensor) -> Tensor:
    return ids[:, None, :, None] == ids[:, None, None, :]


def padding(i: Tensor, j: Tensor, keep: Tensor) -> Tensor:
    return keep[:, None, None]


def inverted(scores: Tensor, i: Tensor, j: Tensor, keep: Tensor) -> Tensor:
    """As encoders have it."""
    return scores + (1.0 - keep[:, None, None].to(scores.dtype)) * LOWEST


def early(i: Tensor, j: Tensor) -> Tensor:
    """A window of 50 keys, for the first 150 rows."""
    return (j <= i) & (i - j < 50) & (i < 150)


def causal(i: Tensor, j: Tensor) -> Tensor:
    return j <= i


FIRST, LAST = slice(HALF), slice(HALF, None)
# A score, what it reads, the keys that are never looked at, and by which rows.
MASKED: Final[Mapping[str, tuple[Score, Tensor | None, slice, slice]]] = {
    "documents": (kept(same_document), SECOND, LAST, FIRST),
    "documents of bytes": (kept(same_document), SECOND.byte(), LAST, FIRST),
    "documents of floats": (kept(same_document), SECOND.float(), FIRST, LAST),
    "padding": (kept(padding), SECOND == 0, LAST, slice(None)),
    "inverted padding": (inverted, SECOND == 0, LAST, slice(None)),
    "causal": (kept(causal), None, LAST, FIRST),
    "window": (kept(lambda i, j: (j <= i) & (i - j < 64)), None, slice(128), LAST),
    "sinks": (
        kept(lambda i, j: (j <= i) & ((i - j < 64) | (j < 4))),
        *(None, slice(64, 128), LAST),
    ),
    "chunks": (kept(lambda i, j: i // HALF == j // HALF), None, LAST, FIRST),
    "periods": (kept(lambda i, j: (j % LENGTH < HALF) | (i >= LENGTH)), None, LAST, slice(None)),
}
# Conditions whose values wrap, are cut off or rounded, and others with holes.
CONDITIONS: Final = (
    *("i.byte() < 10", "i.byte() - j.byte() < 10", "(i // 2).char() + (j // 2).char() > 100"),
    *("i.int() * 20000000 > 0", "(i & 1) == 0", "(i ^ j) < 32", "(j * 0.3).long() <= 19"),
    *("((i - j) * 0.3).long() >= 0", "j.bfloat16() >= 120", "(i * 64).half() == (j * 64).half()"),
    *("abs(i - j) >= 70", "(j % 64 < 20) & (i - j > 3)", "~(i // 50 == j // 40)"),
    *("(j > i) != (j % 97 > 3)", "j - 3 * i > -20", "(j / (i + 1)) < 0.5", "i * j < 900"),
)


def cases() -> Iterator[tuple[str, Tried]]:
    for dtype in DTYPES:
        others = zip(list(MASKS)[DTYPES.index(dtype) :: 2], SHAPES, strict=False)
        for name, shape in (*((name, ODD) for name in MASKS), *others):
            mask, title = MASKS[name], f"{name} {tuple(shape)} {dtype}"
            torch.manual_seed(zlib.crc32(title.encode()))
            given = (*numbers(shape, dtype), *mask.read(shape, dtype))
            yield title, Tried(Case(title, mask.score, given))
    torch.manual_seed(1)
    for name, (score, read, poisoned, rows) in MASKED.items():
        given = (*numbers(Shape(2, 1, LENGTH, LENGTH, 16, 16)), *(() if read is None else (read,)))
        yield f"leaves out: {name}", Tried(Case(name, score, given), poisoned, rows)
    given = numbers(Shape(1, 1, 130, 200, 8, 8))
    for text in CONDITIONS:
        yield text, Tried(Case(text, kept(condition(text)), given))
    given = numbers(Shape(1, 2, 300, 300, 16, 16))
    for other in (-math.inf, LOWEST):
        yield f"rows without keys: {other}", Tried(Case("early", kept(early, other), given))
    given = numbers(Shape(2, 2, 150, 150, 16, 16))
    for name in ("causal", "alibi", "none"):
        yield f"any size: {name}", Tried(Case(name, MASKS[name].score, given), symbolic=True)
    ids = torch.randint(0, 4, (2, 150)).sort(1).values
    case = Case("documents", kept(same_document), (*given, ids))
    yield "any size: documents", Tried(case, symbolic=True)
    for name, dtype in zip(IN_PARTS, (*DTYPES, *DTYPES), strict=False):
        mask, shape = MASKS[name], Shape(2, 2, 1 if name == "padding" else 3, 1111, 16, 24)
        torch.manual_seed(zlib.crc32(name.encode()))
        given = (*numbers(shape, dtype), *mask.read(shape, dtype))
        yield f"in parts: {name}", Tried(Case(name, mask.score, given))


def condition(text: str) -> Callable[..., Tensor]:
    return eval(f"lambda i, j: {text}", {"abs": torch.abs})  # type: ignore[no-any-return]


CASES: Final[Mapping[str, Tried]] = dict(cases())


def main(file: str) -> None:
    found: dict[str, Any] = {name: tried.run("cpu") for name, tried in CASES.items()}
    torch.save(found, file)


if __name__ == "__main__":
    main(sys.argv[1])
