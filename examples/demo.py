"""The main job on a real model: GPT-2 124M, optimized for this machine, checked and timed.

Run by `make demo`. Random weights from transformers' configuration, nothing is downloaded.
"""

from __future__ import annotations

import time

import torch

import rewright
from examples.huggingface import gpt2
from rewright.comparing import relative_error, time_interleaved
from rewright.tables import seconds_text

BATCH, LENGTH, ROUNDS = 2, 128, 15


def main() -> None:
    """Optimize, print what was done, compare with eager and float64, time side by side."""
    print(f"GPT-2 124M, batch {BATCH}, {LENGTH} tokens, {torch.get_num_threads()} threads")
    model, inputs = gpt2(BATCH, LENGTH)
    start = time.perf_counter()
    compiled = rewright.optimize(model, inputs)
    with torch.no_grad():
        ours = [compiled(*inputs)]
        print(f"first call {seconds_text(time.perf_counter() - start)}, export included\n")
        print(compiled.report)
        eager = [model(*inputs)]
        exact = [model.double()(*inputs)]
        model.float()
    largest = max(float((a - b).abs().max()) for a, b in zip(ours, eager, strict=True))
    print(f"\nlargest difference to eager  {largest:.2e}")
    print(f"error against float64        {relative_error(ours, exact):.2e} relative L2", end="")
    print(f" (eager: {relative_error(eager, exact):.2e})")
    calls = {"rewright": lambda: compiled(*inputs), "eager": lambda: model(*inputs)}
    medians = time_interleaved(calls, ROUNDS)
    ratio = medians["eager"] / medians["rewright"]
    print(f"time  rewright {seconds_text(medians['rewright'])}", end="")
    print(f", eager {seconds_text(medians['eager'])}: {ratio:.2f}x  (medians of {ROUNDS} turns)")


if __name__ == "__main__":
    main()
