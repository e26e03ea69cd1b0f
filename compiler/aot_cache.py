"""PyTorch's AOTAutograd cache: when we use it, and what its keys must say of us.

It keeps whole compiled programs from process to process, so that a second one skips AOTAutograd's
tracing. Its keys cover the graph, torch and torch's settings, but no backend.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
from torch import fx

from rewright.building import compiler_for
from rewright.driver import target_of
from rewright.ir import ToolchainError
from rewright.ir.cache import digest
from rewright.ir.plugins import versions
from rewright.options import Options
from rewright.passes.rules import content_key
from rewright.torch_compat import storage_of

SUFFIXES: Final = (".py", ".h", ".lark", ".rules")

# Measured on GPT-2 and Llama: what AOTAutograd takes for a node of Dynamo's graph.
INFERENCE_SECONDS: Final = 2.5e-3
TRAINING_SECONDS: Final = 10e-3
# The first key in a process: torch hashes its sources and imports Inductor's and Triton's.
KEY_SECONDS: Final = 1.3
TRITON_KEY_SECONDS: Final = 0.7


def pays(gm: fx.GraphModule) -> bool:
    """True when tracing takes longer than making the first key, or the user wants the cache anyway
    (`torch._functorch.config.force_autograd_cache`), and the key would say everything."""
    if not torch._functorch.config.enable_autograd_cache or _computes_with_floats(gm):
        return False
    if torch._functorch.config.force_autograd_cache:
        return True
    each = TRAINING_SECONDS if torch.is_grad_enabled() else INFERENCE_SECONDS
    return len(gm.graph.nodes) * each > _key_seconds()


def _computes_with_floats(gm: fx.GraphModule) -> bool:
    """True when a float among the arguments may become a literal while AOTAutograd traces. Its keys
    hold the graph and its sizes, but not that number: another call would get the program of this
    one."""
    values = (node.meta.get("example_value") for node in gm.graph.nodes)
    return any(isinstance(value, torch.SymFloat) for value in values)


def _key_seconds() -> float:
    if "torch._inductor.lowering" in sys.modules:
        return 0.0
    return KEY_SECONDS + (TRITON_KEY_SECONDS if find_spec("triton") else 0.0)


def tag(options: Options, inputs: Sequence[object] = ()) -> str:
    """Changes with Rewright's own sources and plugins, the options, the target, the compiler, and
    with which of a graph's inputs lie in one storage: torch's keys look at each by itself."""
    target = target_of(options)
    try:
        compiler = compiler_for(target).fingerprint
    except ToolchainError:
        compiler = "none"
    checked = os.environ.get("REWRIGHT_CHECK", "")
    shared = repr(_sharing(inputs))
    parts = repr(options), content_key(options.rules), repr(target), compiler, checked, shared
    return f"rewright-{digest(_sources(), *versions(), *parts)}"


def _sharing(inputs: Sequence[object]) -> list[int]:
    """For each input the first one that shares its storage."""
    first: dict[object, int] = {}
    storages = (storage_of(x) for x in inputs)
    return [i if s is None else first.setdefault(s, i) for i, s in enumerate(storages)]


@cache
def _sources() -> str:
    import rewright
    from rewright import codegen, costmodel, ir, passes

    folders = {Path(str(p.__file__)).parent for p in (rewright, ir, costmodel, passes, codegen)}
    found = {path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES}
    return digest(*(path.name + path.read_text() for path in sorted(found)))
