"""The torch.compile backend: inference and training, through AOTAutograd.

AOTAutograd hands over functional graphs (forward, backward, or one for inference); each becomes a
boxed executable. Registered by the entry point `torch_dynamo_backends`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import fx

from rewright.codegen import Executable
from rewright.options import Options

if TYPE_CHECKING:
    from rewright.codegen.cpp import Library
    from rewright.driver import Plan, Program

# What else there is of each program, for as long as somebody can run it, oldest first.
_rest: WeakKeyDictionary[Executable, tuple[Plan, Library | None, float]] = WeakKeyDictionary()
_lock = threading.Lock()


def rewright(gm: fx.GraphModule, example_inputs: Sequence[Any], **given: Any) -> Callable[..., Any]:
    """Compile a Dynamo graph. `options` are those of `rewright.Options`; `mode` changes nothing.

    Raises OptionError for an unknown option.
    """
    from rewright.ir import OptionError
    from rewright.ir.decompositions import decomposition_table
    from rewright.torch_compat import aot_backend, min_cut_partition

    options = Options.of(_plain(given.pop("options", None)))
    given.pop("mode", None)
    given.pop("name", None)
    if given:
        raise OptionError(f"the backend takes options=, not {', '.join(sorted(given))}=")
    compile_with = aot_backend(
        fw_compiler=_compiler(options, "forward"),
        bw_compiler=_compiler(options, "backward"),
        inference_compiler=_compiler(options, "inference"),
        partition_fn=min_cut_partition(),
        decompositions=decomposition_table(),
        keep_inference_input_mutations=True,
    )
    return compile_with(gm, example_inputs)  # type: ignore[no-any-return]


def reset() -> None:
    """Forget all programs; `torch._dynamo.reset()` calls it."""
    with _lock:
        _rest.clear()


rewright.reset = reset  # type: ignore[attr-defined]


def programs() -> tuple[Program, ...]:
    """The programs that were compiled in this process and can still run, oldest first."""
    from rewright.driver import Program

    with _lock:
        found = list(_rest.items())
    return tuple(Program(plan, runs, library, built) for runs, (plan, library, built) in found)


def _plain(options: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return {} if options is None else options


def _compiler(options: Options, phase: str) -> Callable[..., Executable]:
    """fw, bw or inference compiler: fx graph in, boxed executable out."""

    def compile_fx_graph(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Executable:
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        from rewright.driver import compile_graph
        from rewright.ir.fx_import import from_fx

        # AOTAutograd calls under its FakeTensorMode; constants here are real tensors.
        with unset_fake_temporarily():
            graph = from_fx(gm, name=phase)
            program = compile_graph(graph, options, retain=phase == "inference")
        with _lock:
            _rest[program.executable] = (program.plan, program.library, program.build_seconds)
        return program.executable

    return compile_fx_graph
