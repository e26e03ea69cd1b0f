"""Time one model's first compiled call in this process: the child of `benchmarks.startup`.

The clock runs from before `torch.compile` to the end of the first call, so it counts the import
of the backend but not of torch or transformers. Prints the seconds, as JSON, on its last line.
"""

from __future__ import annotations

import argparse
import json
from time import perf_counter

import torch

from benchmarks.models import MODELS


def first_call(model: str, backend: str) -> float:
    module, inputs = MODELS[model]()
    # Eager runs first: it gives the answer to check, and loads what transformers imports late.
    expected = module(*inputs)
    start = perf_counter()
    got = torch.compile(module, backend=backend)(*inputs)
    seconds = perf_counter() - start
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    return seconds


def main() -> None:
    options = argparse.ArgumentParser("python -m benchmarks.first_call", description=__doc__)
    options.add_argument("model", choices=MODELS)
    options.add_argument("backend")
    asked = options.parse_args()
    with torch.no_grad():
        seconds = first_call(asked.model, asked.backend)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
