"""Time at equal memory: training steps through Rewright, each within what a rival measured.

    python -m benchmarks.remat.real_time [MODEL ...]

For every `activation_memory_budget` the step is compiled by Inductor and its peak measured; ours
gets that peak as its budget, and both are timed in turn. Then the same against eager with
`torch.utils.checkpoint` around each block. Results go to `benchmarks/results/remat_time.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from benchmarks.remat.steps import Training, training
from benchmarks.timing import compare
from rewright.backend import programs
from rewright.calibrate.peak import measured_peak

RESULTS: Final = Path(__file__).parents[1] / "results" / "remat_time.json"
MODELS: Final = ("gpt2", "llama_gqa", "bert", "vit", "resnet50", "unet")
SHARES: Final = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
ROUNDS: Final = 9

Step = Callable[[], None]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("models", nargs="*", default=list(MODELS))
    asked.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    given = asked.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in given.models:
        known[name] = list(rows(name, given.shares))
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")


def rows(name: str, shares: Sequence[float]) -> Iterator[dict[str, Any]]:
    torch._dynamo.reset()
    found = training(name)
    for share in shares:
        with torch._functorch.config.patch(activation_memory_budget=share):
            theirs = compiled(found, "inductor")
        yield against(name, found, f"inductor {share}", theirs)
    blocks = checkpointed(found)
    if blocks is not None:
        yield against(name, found, "checkpoint", stepper(blocks, blocks.forward))


def against(name: str, found: Training, rival: str, theirs: Step) -> dict[str, Any]:
    """Both at the peak that `theirs` takes, or ours at its least when that is more."""
    peak = measured_peak(theirs)
    try:
        ours = compiled(found, "rewright", memory_budget=peak)
    except Exception as error:  # torch wraps what a backend raises
        if "[memory_budget]" not in str(error):
            raise
        row = {"rival": rival, "peak": peak, "ours": None}
        print(name, row, flush=True)
        return row
    mine = measured_peak(ours)
    timed = compare({"ours": ours, "theirs": theirs}, ROUNDS)
    faster = timed.speedup("ours", "theirs")
    row = {
        "rival": rival,
        "peak": peak,
        "ours": mine,
        "predicted": next(p.fitted.peak for p in reversed(programs()) if p.fitted is not None),
        "faster": faster.ratio,
        "interval": [faster.low, faster.high],
        "other_load": timed.other_load,
    }
    print(name, row, flush=True)
    return row


def compiled(found: Training, backend: str, **options: Any) -> Step:
    """A step that has run, so that its backward is compiled too."""
    call = torch.compile(
        distinct(found.forward), backend=backend, options=options, fullgraph=True, dynamic=False
    )
    step = stepper(found, call)
    step()
    return step


def distinct(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same with code of its own: Dynamo would take what it compiled before, whatever was asked
    for then."""
    namespace: dict[str, Any] = {"function": function}
    exec("def call(*inputs):\n    return function(*inputs)", namespace)
    made: Callable[..., Any] = namespace["call"]
    return made


def stepper(found: Training, call: Callable[..., Any]) -> Step:
    return partial(_step, found, call)


def _step(found: Training, call: Callable[..., Any]) -> None:
    found.module.zero_grad(set_to_none=True)
    call(*found.inputs).backward()


def checkpointed(found: Training) -> Training | None:
    """With each block of the longest list of blocks computed again; None without such a list."""
    module = copy.deepcopy(found.module)
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        return None
    for block in max(lists, key=len):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return replace(found, module=module)


if __name__ == "__main__":
    main()
