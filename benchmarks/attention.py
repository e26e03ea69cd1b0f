"""Masked attention: what a mask leaves out should cost nothing, whoever computes it.

    python -m benchmarks.attention [--training | --decoding]

Each mask is written as users write it, as comparisons of positions, and given to PyTorch's
attention (`rewright` compiles that; `sdpa` runs it), or to FlexAttention, with the time it takes to
build its block mask (`flex`) and without (`flex, mask kept`). `causal` is PyTorch's dense causal
attention. With `--training` forward and backward are timed together; FlexAttention has no backward
on CPUs. With `--decoding` there is one query of each sequence: `sdpa` is given keys as one tensor,
`joined` makes that of what the sequences share and of their own, as the function says that
`rewright` compiles.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.load import warning
from benchmarks.options import RESULTS, add_choice, add_count, add_turns
from benchmarks.report import fail, track, warn, write_json
from benchmarks.steady import WrongAnswer, allowed, relative_l2, show
from benchmarks.timing import Comparison, compare

HEADS: Final = 8
WIDTH: Final = 64
CONTESTANTS: Final = ("rewright", "flex", "flex, mask kept", "sdpa", "causal")
IN_TRAINING: Final = ("rewright", "sdpa", "causal")
IN_DECODING: Final = ("rewright", "sdpa", "joined")
TITLES: Final = {
    "attention": "attention",
    "attention_training": "attention in training",
    "decoding": "attention of one query",
}
SETTINGS: Final = ("length", "training", "decoding", "rounds", "milliseconds", "threads")

Positions = Callable[[Tensor, Tensor], Tensor]
"""Which keys a query sees, by their positions, which broadcast."""


def causal(i: Tensor, j: Tensor) -> Tensor:
    return j <= i


def window(size: int, sinks: int) -> Positions:
    def sees(i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & ((i - j < size) | (j < sinks))

    return sees


def prefix(length: int) -> Positions:
    def sees(i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) | (j < length)

    return sees


def documents(length: int) -> Positions:
    def sees(i: Tensor, j: Tensor) -> Tensor:
        return (i // length == j // length) & (j <= i)

    return sees


MASKS: Final[Mapping[str, Callable[[int], Positions]]] = {
    "causal": lambda length: causal,
    "window 512 + 4 sinks": lambda length: window(512, 4),
    "window 128": lambda length: window(128, 0),
    "window 1024": lambda length: window(1024, 0),
    "prefix 512": lambda length: prefix(512),
    "8 documents": lambda length: documents(length // 8),
}


@dataclass(frozen=True)
class Inputs:
    query: Tensor
    key: Tensor
    value: Tensor
    sees: Positions

    @property
    def three(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        query, key, value = map(change, self.three)
        return Inputs(query, key, value, self.sees)


def contestants(given: Inputs) -> Mapping[str, Callable[[], Any]]:
    length = given.query.shape[2]
    where = torch.arange(length)
    mask = given.sees(where[:, None], where[None])

    def masked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        at = torch.arange(query.shape[2])
        seen = given.sees(at[:, None], at[None])
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen)

    def blocks() -> Any:
        def sees(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return given.sees(i, j)

        return create_block_mask(sees, None, None, length, length, device="cpu")

    torch.compiler.reset()
    ours = torch.compile(masked, backend="rewright", dynamic=False)
    flex = torch.compile(flex_attention, dynamic=False)
    kept = blocks()
    return {
        "rewright": partial(ours, *given.three),
        "flex": lambda: flex(*given.three, block_mask=blocks()),
        "flex, mask kept": lambda: flex(*given.three, block_mask=kept),
        "sdpa": lambda: F.scaled_dot_product_attention(*given.three, attn_mask=mask),
        "causal": lambda: F.scaled_dot_product_attention(*given.three, is_causal=True),
    }


def steps(given: Inputs) -> Mapping[str, Callable[[], Any]]:
    """Forward and backward, of those that have one: gradients of queries, keys and values."""
    inputs = given.map(lambda x: x.detach().requires_grad_())
    calls = contestants(inputs)

    def step(name: str) -> tuple[Tensor, ...]:
        # Any gradient does; queries are one of the right shape.
        return torch.autograd.grad(calls[name](), inputs.three, given.query)

    return {name: partial(step, name) for name in IN_TRAINING}


@dataclass(frozen=True)
class Decoding:
    """One query of each of `batch` sequences, which share `prefix` keys, and have `own`."""

    own: int
    prefix: int = 0
    batch: int = 1
    heads: int = 8
    groups: int = 8

    def drawn(self) -> tuple[Tensor, ...]:
        """Queries, keys and values that are shared, and others."""
        torch.manual_seed(0)
        query = torch.randn(self.batch, self.heads, 1, WIDTH)
        shared = (torch.randn(1, self.groups, self.prefix, WIDTH) for _ in "kv")
        own = (torch.randn(self.batch, self.groups, self.own, WIDTH) for _ in "kv")
        return query, *shared, *own


DECODING: Final[Mapping[str, Decoding]] = {
    "4,096 keys": Decoding(4096),
    "32,768 keys": Decoding(32768),
    "4,096 keys, 32 heads, 8 of keys": Decoding(4096, heads=32),
    "32,768 keys, 32 heads, 8 of keys": Decoding(32768, heads=32),
    "32 sequences, 2,048 shared, 64 own": Decoding(64, 2048, 32),
    "the same, 32 heads, 8 of keys": Decoding(64, 2048, 32, 32),
}


def joined(shared: Tensor, own: Tensor) -> Tensor:
    return torch.cat([shared.expand(own.shape[0], -1, -1, -1), own], 2) if shared.numel() else own


def decoded(query: Tensor, k: Tensor, v: Tensor, own_k: Tensor, own_v: Tensor) -> Tensor:
    key, value = joined(k, own_k), joined(v, own_v)
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)


def decoders(inputs: tuple[Tensor, ...]) -> Mapping[str, Callable[[], Any]]:
    torch.compiler.reset()
    ours = torch.compile(decoded, backend="rewright", dynamic=False)
    query, k, v, own_k, own_v = inputs
    kept = joined(k, own_k), joined(v, own_v)
    return {
        "rewright": partial(ours, *inputs),
        "sdpa": partial(F.scaled_dot_product_attention, query, *kept, enable_gqa=True),
        "joined": partial(decoded, *inputs),
    }


def compared(case: str, asked: argparse.Namespace) -> Comparison:
    """What each contestant takes, once it was found to be right."""
    made = steps if asked.training else contestants
    given = drawn(asked.length, MASKS[case](asked.length))
    exact = made(given.map(Tensor.double))["sdpa"]()
    calls = made(given)
    check(case, calls, exact)
    return compare(calls, asked.rounds, asked.milliseconds / 1000)


def compared_decoding(case: str, asked: argparse.Namespace) -> Comparison:
    inputs = DECODING[case].drawn()
    exact = decoded(*(x.double() for x in inputs))
    calls = decoders(inputs)
    check(case, calls, exact)
    return compare(calls, asked.rounds, asked.milliseconds / 1000)


def check(case: str, calls: Mapping[str, Callable[[], Any]], exact: Any) -> None:
    """Raises WrongAnswer unless all that compute the mask are about as exact as eager."""
    limit = allowed(relative_l2(calls["sdpa"](), exact))
    for name, call in calls.items():
        error = relative_l2(call(), exact) if name != "causal" else 0.0
        if not error <= limit:
            raise WrongAnswer(f"{case}: {name} is {error:.1e} off float64, over {limit:.1e}")


def drawn(length: int, sees: Positions) -> Inputs:
    torch.manual_seed(0)
    shape = (1, HEADS, length, WIDTH)
    return Inputs(torch.randn(shape), torch.randn(shape), torch.randn(shape), sees)


def arguments() -> argparse.Namespace:
    asked = argparse.ArgumentParser("python -m benchmarks.attention", description=__doc__)
    add_choice(asked, "masks", list(MASKS), default=list(MASKS))
    add_count(asked, "length", 4096, "queries, and keys")
    add_turns(asked)
    kinds = asked.add_mutually_exclusive_group()
    kinds.add_argument("--training", action="store_true", help="time forward and backward")
    kinds.add_argument("--decoding", action="store_true", help="time one query of each sequence")
    asked.add_argument("--json", type=Path, metavar="FILE")
    return asked.parse_args()


def main() -> int:
    asked = arguments()
    torch.set_num_threads(asked.threads)
    results: dict[str, Comparison] = {}
    kind = "attention_training" if asked.training else "attention"
    cases, names, how = list(asked.masks), IN_TRAINING if asked.training else CONTESTANTS, compared
    if asked.decoding:
        kind, cases, names, how = "decoding", list(DECODING), IN_DECODING, compared_decoding
    try:
        with torch.set_grad_enabled(asked.training):
            for case in track(cases, str):
                results[case] = how(case, asked)
    except WrongAnswer as wrong:
        return fail(str(wrong))
    show(TITLES[kind], results, names)
    warn(warning([found.other_load for found in results.values()]))
    settings = {key: getattr(asked, key) for key in SETTINGS}
    rows = [{"case": case, **found.as_json(["rewright"])} for case, found in results.items()]
    write_json(asked.json or RESULTS / f"{kind}.json", kind, settings, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
