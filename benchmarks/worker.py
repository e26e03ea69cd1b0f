"""One contestant on one model, in a process of its own: what a backend does to its process (to the
allocator, to threads that wait) is no other's matter.

Reads counts of calls from stdin, a line each, and answers with the seconds that they took. The
first answer says what the first call took and how far it and eager are from float64.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from benchmarks.contestants import INFERENCE, Call, step_of, without_dropout
from benchmarks.models import MODELS
from benchmarks.steady import in_float64, relative_l2
from benchmarks.timing import time_calls
from rewright.quiet import without_collection


def main() -> None:
    model_name, contestant, mode, threads = sys.argv[1:]
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries print what they like
    torch.set_num_threads(int(threads))
    training = mode == "training"
    with nullcontext() if training else torch.no_grad():
        try:
            call, first = _first(model_name, contestant, training)
        except Exception as error:  # a peer that cannot run a model is a result
            lines = str(error).strip().splitlines()
            first = {"failed": f"{type(error).__name__}: {lines[0] if lines else ''}"}
        print(json.dumps(first), file=answers, flush=True)
        for line in sys.stdin:
            with without_collection():
                print(time_calls(call, int(line)), file=answers, flush=True)


def _first(name: str, contestant: str, training: bool) -> tuple[Call, dict[str, Any]]:
    model, inputs = MODELS[name]()
    assert isinstance(model, nn.Module)
    if training:
        without_dropout(model)
    make = INFERENCE[contestant]
    exact_model = in_float64(model)
    exact_inputs = tuple(map(in_float64, inputs))
    calls = make(model, inputs), INFERENCE["eager"](model, inputs)
    exact: Call = INFERENCE["eager"](exact_model, exact_inputs)
    if training:
        exact = step_of(exact, exact_model)
        calls = step_of(calls[0], model), step_of(calls[1], model)
    started = time.perf_counter()
    found = calls[0]()
    seconds = time.perf_counter() - started
    wanted = exact()
    errors = [relative_l2(answer, wanted) for answer in (found, calls[1]())]
    return calls[0], {"first": seconds, "error": errors[0], "eager_error": errors[1]}


if __name__ == "__main__":
    main()
