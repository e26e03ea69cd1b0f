"""The torch.compile backend: inference and training, through AOTAutograd.

AOTAutograd hands over functional graphs (forward, backward, or one for inference); each becomes a
boxed executable, which AOTAutograd's cache may store. Registered by the entry point
`torch_dynamo_backends`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import fx

from rewright.options import Options
from rewright.quiet import without_collection

if TYPE_CHECKING:
    from rewright.compiled_program import CompiledProgram
    from rewright.driver import Program
    from rewright.ir import Graph

# The programs that somebody can run, oldest first.
_live: WeakKeyDictionary[CompiledProgram, None] = WeakKeyDictionary()
_lock = threading.Lock()


def rewright(gm: fx.GraphModule, example_inputs: Sequence[Any], **given: Any) -> Callable[..., Any]:
    """Compile a Dynamo graph. `options` are those of `rewright.Options`; `mode` changes nothing.

    Raises OptionError for an unknown option.
    """
    from rewright.aot_cache import pays, tag
    from rewright.calibration_samples import samples_inside
    from rewright.ir import OptionError
    from rewright.ir.decompositions import autograd_table
    from rewright.joint import partition
    from rewright.torch_compat import aot_backend, caching, without_caching

    options = Options.of(_plain(given.pop("options", None)))
    given.pop("mode", None)
    given.pop("name", None)
    if given:
        raise OptionError(f"the backend takes options=, not {', '.join(sorted(given))}=")
    if options.memory_budget and options.memory_budget_scope == "step":
        _refuse_part(gm)
    compile_with = aot_backend(
        fw_compiler=_compiler(options, "forward"),
        bw_compiler=_compiler(options, "backward"),
        inference_compiler=_compiler(
            options, "inference", samples_inside(options, gm, example_inputs)
        ),
        partition_fn=partition(options),
        decompositions=autograd_table(),
        keep_inference_input_mutations=True,
    )
    # What Dynamo has made by now takes the collector 0.3 s each time, and hardly any is garbage.
    keeps = pays(gm) and options.error_budget is None  # samples are no part of what names a cache
    cached = caching(tag(options, example_inputs)) if keeps else without_caching()
    with cached, without_collection():
        return compile_with(gm, example_inputs)  # type: ignore[no-any-return]


def _refuse_part(gm: fx.GraphModule) -> None:
    """Raises BudgetError for a part of a step, which cannot know what the others hold."""
    from rewright.ir import BudgetError
    from rewright.torch_compat import parted_step

    found = parted_step(gm)
    if found is not None:
        why, advice = found
        raise BudgetError(
            f"a budget needs the step in one graph, and it is parted by {why}",
            who="memory_budget",
            help=f'{advice}; memory_budget_scope="graph" gives each graph the budget',
        )


def reset() -> None:
    """Forget all programs; `torch._dynamo.reset()` calls it."""
    with _lock:
        _live.clear()


rewright.reset = reset  # type: ignore[attr-defined]


def programs() -> tuple[Program, ...]:
    """The programs that were compiled in this process and can still run, oldest first."""
    with _lock:
        found = list(_live)
    return tuple(compiled.program for compiled in found)


def remember(compiled: CompiledProgram) -> None:
    """Count it among `programs()` for as long as somebody can run it."""
    with _lock:
        _live[compiled] = None


def _plain(options: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return {} if options is None else options


def roles_of(gm: fx.GraphModule, phase: str) -> list[str]:
    """Of a backward graph's inputs: gradients of outputs, and what the forward saved; of an
    inference graph's what the caller passes, and parameters and buffers, which lie still."""
    from rewright.torch_compat import static_inputs

    inputs = [node.name for node in gm.graph.nodes if node.op == "placeholder"]
    if phase == "backward":
        return ["tangent" if name.startswith("tangents_") else "saved" for name in inputs]
    static = static_inputs() if phase == "inference" else frozenset()
    return ["param" if place in static else "input" for place in range(len(inputs))]


def graph_of(gm: fx.GraphModule, phase: str) -> Graph:
    """What AOTAutograd hands over as forward, backward or inference, in the IR."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    from rewright.ir.fx_import import from_fx

    # AOTAutograd calls under its FakeTensorMode; constants here are real tensors.
    with unset_fake_temporarily():
        return from_fx(gm, name=phase, roles=roles_of(gm, phase))


def _refuse_training(options: Options, phase: str) -> None:
    """Raises OptionError for an error budget, which is for inference."""
    from rewright.ir import OptionError

    if phase != "inference" and options.error_budget is not None:
        raise OptionError(
            "an error budget is for inference, and this is a training step",
            who="error_budget",
            help="call the compiled module under torch.no_grad()",
        )


def _compiler(
    options: Options, phase: str, samples: Sequence[Sequence[Any]] = ()
) -> Callable[..., Any]:
    """fw, bw or inference compiler: fx graph in, boxed executable out. An error budget is measured
    on `samples`."""
    from rewright.compiled_program import CompiledProgram
    from rewright.torch_compat import donate_nothing, serializable

    def compile_fx_graph(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> CompiledProgram:
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        from rewright.calibration_samples import fitting_samples
        from rewright.driver import compile_graph
        from rewright.step_budget import scheduled_half
        from rewright.step_memory import MEMORY

        if phase == "backward":
            donate_nothing()
        _refuse_training(options, phase)
        half = scheduled_half(gm)
        with unset_fake_temporarily():
            if half is None:
                graph, retain = graph_of(gm, phase), phase == "inference"
                fitting = fitting_samples(graph, samples)
                program = compile_graph(graph, options, retain=retain, samples=fitting)
                compiled = CompiledProgram(program)
            else:
                program = compile_graph(
                    half.graph, options, retain=False, passes=str(MEMORY), part=half.part
                )
                compiled = CompiledProgram(program, str(MEMORY), half.promise)
        remember(compiled)
        return compiled

    return serializable(compile_fx_graph, CompiledProgram)
