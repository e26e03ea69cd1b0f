"""Gradients of attention in Triton: cases, and what kernels make of them. As a script (under
TRITON_INTERPRET=1) it runs all of them interpreted and saves what came out."""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from attention_gradients import Gradients
from attention_kernels import MASKS, Score, Shape, kept, numbers
from rewright.ir import evaluate
from rewright.ir.loops.tiles import AnyAttention
from triton_attention import DTYPES, HALF, LENGTH, LOWEST, SECOND, early, same_document

ODD = Shape(1, 4, 97, 130, 24, 40)
# With heads of keys that heads of queries share, where they are fewer.
SHAPES: Final = (
    (Shape(1, 2, 200, 200, 64, 64), 2),
    (Shape(2, 2, 1, 77, 16, 32), 1),
    (Shape(1, 4, 5, 3, 8, 8), 2),
    (Shape(1, 6, 200, 65, 33, 17), 3),
    (Shape(1, 1, 70, 90, 130, 256), 1),
)
# Rows from 150 on see nothing.
WITHOUT_KEYS: Final = "rows without keys"


@dataclass(frozen=True)
class Tried:
    """A case, and what is run of it: `poisoned` rows and keys are NaN then, in what is given and in
    what the forward gives."""

    case: Gradients
    poisoned: slice = field(default_factory=lambda: slice(0))

    @property
    def looked_at(self) -> slice:
        """Rows, and keys, that are numbers."""
        return slice(self.poisoned.start if self.poisoned.stop is None else None)

    @property
    def operands(self) -> tuple[Tensor, ...]:
        grad, query, key, value, *read, results, sums = self.case.operands()
        spoilt = [x.clone() for x in (grad, query, key, value)]
        for x in spoilt:
            x[:, :, self.poisoned] = math.nan
        return (*spoilt, *read, results, sums)

    def run(self, device: str) -> list[Tensor]:
        """The gradients that the kernels give on a device."""
        return run(self.case.nest("gradient"), self.operands, device)

    def forward(self, device: str) -> list[Tensor]:
        """The result and the logarithms of sums."""
        return run(self.case.forward_nest("attention"), self.case.inputs[:-1], device)


def run(nest: AnyAttention, operands: Sequence[Tensor], device: str) -> list[Tensor]:
    """What kernels give, between margins."""
    from rewright.codegen.triton import emit, load

    memories, results = [], []
    for made in nest.outputs:
        shape, strides = (
            [evaluate(s, {}) for s in of] for of in (made.type.shape, made.type.layout)
        )
        size = (math.prod(shape) + 128,)
        memories.append(torch.full(size, 7.0, dtype=made.type.dtype, device=device))
        results.append(memories[-1][64:-64].as_strided(shape, strides, 64))
    load(emit(nest, ()))(*(x.to(device) for x in operands), *results)
    for memory in memories:
        around = torch.cat([memory[:64], memory[-64:]])
        assert (around == 7).all(), "a kernel wrote outside"
    return results


def given(shape: Shape, dtype: torch.dtype, heads: int, *read: Tensor) -> tuple[Tensor, ...]:
    """Queries, as many heads of keys and values as are asked for, what is read, and a gradient."""
    query, key, value = numbers(shape, dtype)
    key, value = (x[:, :heads].contiguous() for x in (key, value))
    return query, key, value, *read, torch.randn(*query.shape[:3], shape.e).to(dtype)


def added(scores: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """What the least number is added to, which hides the scores there."""
    bias = torch.zeros(len(i), len(j)).masked_fill(~early(i, j), LOWEST)
    return scores + bias


def softened(scores: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """A soft cap under a mask."""
    capped = torch.tanh(scores / 2) * 2
    return torch.where((j <= i) & (i - j < 70), capped, -math.inf)


def cases() -> Iterator[tuple[str, Tried]]:
    for dtype in DTYPES:
        for name in list(MASKS)[DTYPES.index(dtype) :: 2]:
            mask, title = MASKS[name], f"{name} {dtype}"
            torch.manual_seed(zlib.crc32(title.encode()))
            inputs = given(ODD, dtype, 2, *mask.read(ODD, dtype))
            yield title, Tried(Gradients(title, mask.score, inputs))
    for dtype, (shape, heads) in zip((*DTYPES, *DTYPES), SHAPES, strict=False):
        title = f"causal {tuple(shape)} {dtype}"
        torch.manual_seed(zlib.crc32(title.encode()))
        inputs = given(shape, dtype, heads)
        yield title, Tried(Gradients(title, MASKS["causal"].score, inputs))
    torch.manual_seed(2)
    inputs = given(Shape(2, 2, 300, 300, 16, 16), torch.float32, 1)
    scores: Mapping[str, Score] = {"plus, least": added, "softened": softened}
    for name, score in scores.items():
        yield name, Tried(Gradients(name, score, inputs))
    yield WITHOUT_KEYS, Tried(Gradients("early", kept(early), inputs))
    inputs = given(Shape(2, 1, LENGTH, LENGTH, 16, 16), torch.float32, 1, SECOND)
    documents = Gradients("documents", kept(same_document), inputs)
    yield "leaves out: documents", Tried(documents, slice(HALF, None))


CASES: Final[Mapping[str, Tried]] = dict(cases())
FORWARDS: Final = ("softened", "plus, least", WITHOUT_KEYS, "additive torch.bfloat16")


def main(file: str) -> None:
    found: dict[str, Any] = {name: tried.run("cpu") for name, tried in CASES.items()}
    found |= {f"forward: {name}": CASES[name].forward("cpu") for name in FORWARDS}
    torch.save(found, file)


if __name__ == "__main__":
    main(sys.argv[1])
