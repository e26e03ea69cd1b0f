"""Single kernels through `torch.compile`, per backend: those of `kernels.toml`.

Beside them runs their roof, in turn with them: a copy that moves as many bytes as the function must
read and write, or the matrix products that it holds, by torch. Where Inductor is under 75 % of it
there is something to win; elsewhere not to lose.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.kernel_functions import MAKERS, Prepared, Shape
from benchmarks.load import warning
from benchmarks.options import add_choice, parse
from benchmarks.report import fail, print_table, track, warn, write_json
from benchmarks.steady import WrongAnswer, check, compiled, options, show
from benchmarks.timing import Comparison, compare

ROOF: Final = "roof"
# Of the roof: what Inductor leaves below it is to be won.
NEAR: Final = 0.75


@dataclass(frozen=True)
class Kernel:
    """An entry of `kernels.toml` at one of its shapes."""

    name: str
    make: str
    shape: Shape
    training: bool = False
    dtype: str = "float32"
    roof: str = "copy"

    @property
    def case(self) -> str:
        return f"{self.name} {'x'.join(map(str, self.shape))}"

    def prepared(self) -> Prepared:
        made = MAKERS[self.make](self.shape)
        dtype = getattr(torch, self.dtype)
        cast = (
            x.detach().to(dtype).requires_grad_(self.training) if x.is_floating_point() else x
            for x in made.inputs
        )
        return made._replace(inputs=tuple(cast))


def listed() -> Mapping[str, Sequence[Kernel]]:
    text = (Path(__file__).parent / "kernels.toml").read_text(encoding="utf-8")
    return {
        name: [Kernel(name, shape=shape, **rest) for shape in shapes]
        for name, entry in tomllib.loads(text).items()
        for shapes, rest in [(entry["shapes"], {k: v for k, v in entry.items() if k != "shapes"})]
    }


KERNELS: Final = listed()


def raced(kernel: Kernel, backends: Sequence[str], rounds: int, seconds: float) -> Comparison:
    """Raises WrongAnswer."""
    function, inputs, products = kernel.prepared()
    with torch.set_grad_enabled(kernel.training):
        handed = torch.randn_like(function(*inputs).detach())
        plain = step_of(function, handed) if kernel.training else function
        contestants: dict[str, Callable[[], object]] = {
            name: partial(step_of(call.func, handed), *inputs) if kernel.training else call
            for name, call in compiled(function, inputs, backends).items()
        }
        check(kernel.case, contestants, plain, inputs)
        answers = plain(*inputs)
        copy = copy_of(moved_bytes(inputs, answers, kernel.training))
        contestants[ROOF] = products if kernel.roof == "products" and products else copy
        return compare(contestants, rounds, seconds)


def step_of(function: Callable[..., Tensor], handed: Tensor) -> Callable[..., Any]:
    """A result and the gradients of what requires one, where the result's own is `handed`."""

    def step(*inputs: Tensor) -> tuple[Tensor, ...]:
        result = function(*inputs)
        wanted = [x for x in inputs if x.requires_grad]
        return (result.detach(), *torch.autograd.grad(result, wanted, handed.to(result.dtype)))

    return step


def moved_bytes(inputs: Sequence[Tensor], answers: object, training: bool) -> int:
    """What the function must read and write at least once. In a step the backward reads inputs
    again, and a gradient as large as the result."""
    made: list[Tensor] = tree_leaves(answers)
    again = [*inputs, made[0]] if training else []
    return sum(int(x.nbytes) for x in (*inputs, *made, *again))


def copy_of(moved: int) -> Callable[[], Tensor]:
    """A copy that reads and writes so many bytes together."""
    source = torch.ones(max(1, moved // 2 // 4))
    return partial(torch.empty_like(source).copy_, source)


def of_roof(found: Comparison, name: str) -> float:
    return found.median(ROOF) / found.median(name)


def summary(results: Mapping[str, Comparison], subject: str, peer: str) -> Iterator[list[str]]:
    """Of the kernels in which the peer is far from the roof, and of the others: the geometric mean
    of how much faster we are, and the least."""
    for told, far in (("under", True), ("at", False)):
        ratios = {
            case: found.speedup(subject, peer).ratio
            for case, found in results.items()
            if (of_roof(found, peer) < NEAR) == far
        }
        if ratios:
            mean = geometric_mean(ratios.values())
            least = min(ratios, key=ratios.__getitem__)
            group = f"{peer} {told} {NEAR:.0%} of the roof"
            yield [group, str(len(ratios)), f"{mean:.2f}x", f"{ratios[least]:.2f}x", least]


def print_roofs(results: Mapping[str, Comparison], backends: Sequence[str]) -> None:
    rows = [
        [case, *(f"{of_roof(found, name):.0%}" for name in backends)]
        for case, found in results.items()
    ]
    print_table(["of the roof", *backends], rows)


def arguments() -> argparse.Namespace:
    asked = options("kernels", "Time single kernels, in turn, as a caller sees them.")
    add_choice(asked, "kernels", list(KERNELS), default=list(KERNELS))
    return parse(asked)


def main() -> int:
    asked = arguments()
    torch.manual_seed(0)
    torch.set_num_threads(asked.threads)
    backends = list(dict.fromkeys(asked.backends))
    results: dict[str, Comparison] = {}
    chosen = {k.case: k for name in asked.kernels for k in KERNELS[name]}
    try:
        for case in track(list(chosen), str):
            seconds = asked.milliseconds / 1000
            results[case] = raced(chosen[case], backends, asked.rounds, seconds)
    except WrongAnswer as wrong:
        return fail(str(wrong))
    show("kernels", results, backends)
    print_roofs(results, backends)
    subject, *others = backends
    lines = [line for other in others for line in summary(results, subject, other)]
    print_table(["kernels where", "count", "geometric mean", "least", "which"], lines)
    warn(warning([comparison.other_load for comparison in results.values()]))
    settings = {key: getattr(asked, key) for key in ("rounds", "milliseconds", "threads")}
    rows = [{"case": case, **found.as_json(backends[:1])} for case, found in results.items()]
    write_json(asked.json, "kernels", settings, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
