"""Train a transformer in half of the memory that it takes by itself.

    python -m examples.train_in_a_budget

The step without a budget comes first. With one, values are computed again, or later, so that no
more bytes than that are alive at any time; gradients keep every bit.
"""

from __future__ import annotations

from collections.abc import Callable

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

    def compiled(**options: object) -> Callable[[], None]:
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
    peak = rewright.measured_peak(within)
    print(f"peak   {most / 2**20:.2f} MiB -> {peak / 2**20:.2f} MiB, budget {budget / 2**20:.2f}")
    print(
        f"kept to {peak <= budget}, same bits {all(map(torch.equal, expected, gradients(within)))}"
    )
    times = [Timer("run()", globals={"run": r}).timeit(20).median for r in (plain, within)]
    print(f"time   {times[0] * 1e3:.1f} ms -> {times[1] * 1e3:.1f} ms a step")


if __name__ == "__main__":
    main()
