"""Train a transformer in half of the memory that it takes by itself.

    python -m examples.train_in_a_budget

With a budget values are computed again, or later, so that no more bytes than that are alive at any
time; gradients keep every bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

import rewright
from examples.transformer import two_block_transformer


def main() -> None:
    """One step as it is and one in half of its memory: bytes, time, gradients."""
    model, (x,) = two_block_transformer(4, 128, width=128)

    def loss(x: Tensor) -> Tensor:
        found: Tensor = model(x).square().mean()
        return found

    def compiled(**options: Any) -> Callable[[], None]:
        step = torch.compile(loss, backend="rewright", options=options, fullgraph=True)

        def run() -> None:
            model.zero_grad()
            step(x).backward()

        run()  # compiles
        return run

    def gradients(run: Callable[[], None]) -> list[Tensor]:
        run()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = compiled()
    expected, most = gradients(plain), rewright.measured_peak(plain)
    torch._dynamo.reset()  # or torch.compile would reuse the step that it has
    budget = most // 2
    within = compiled(memory_budget=budget)
    print(rewright.programs()[-1].fitted)
    peak, found = rewright.measured_peak(within), gradients(within)
    print(f"measured: {most:,} bytes -> {peak:,} bytes, at most {budget:,}: {peak <= budget}")
    print("gradients are the same, bit for bit:", all(map(torch.equal, expected, found)))
    times = [Timer("run()", globals={"run": r}).timeit(20).median for r in (plain, within)]
    print(f"a step takes {times[0] * 1e3:.1f} ms -> {times[1] * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
