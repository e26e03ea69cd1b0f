"""A compiled program as AOTAutograd holds it, and as its cache stores it.

What is stored is what it takes to build the program without tracing or planning: the schedule, the
kernels' source and where each belongs. The library itself lies in the kernel cache; a process that
does not find it there compiles the source again, so an entry outlives a cleaned cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._functorch._aot_autograd.autograd_cache import (  # type: ignore[attr-defined]
    BypassAOTAutogradCache,
    OutputCode,
)

from rewright.building import Built, Recipe, build_program
from rewright.driver import Plan, Program, plan_graph
from rewright.ir import Graph
from rewright.options import Options
from rewright.step_memory import Promise
from rewright.step_part import StepPart
from rewright.torch_compat import is_custom, without_operator_checks


class CompiledProgram(OutputCode):
    """Boxed: takes its arguments in a list and empties the list."""

    source: Graph
    options: Options
    passes: str
    recipe: Recipe
    built: Built
    part: StepPart | None
    promise: Promise | None
    _plan: Plan | None
    _is_builtin: bool

    # torch's class compares field by field; a program is only itself.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(self, program: Program, passes: str = "", promise: Promise | None = None) -> None:
        """`passes` are those that `program` was compiled with, if not all; `promise` is checked
        before each run."""
        self.source, self.options, self.passes = program.source, program.plan.options, passes
        self.promise = promise
        self.recipe, self.built, self.part = program.recipe, program.built, program.part
        self._plan = program.plan
        self._start()

    def _start(self) -> None:
        OutputCode.__init__(self)
        # On the instance: torch._dynamo.disable copies an object's own attributes.
        self._boxed_call = True
        self._is_builtin = not any(is_custom(node.op) for node in self.source.nodes)

    def __call__(self, inputs: list[Any]) -> list[Any]:  # type: ignore[override]
        if self.promise is not None:
            self.promise.check(self.built.executable.sizes(inputs))
        if self._is_builtin and torch._C._len_torch_dispatch_stack():
            with without_operator_checks():
                return self.built.executable(inputs)
        return self.built.executable(inputs)

    @property
    def program(self) -> Program:
        """All there is of the program. One that was loaded is planned anew when this is asked."""
        if self._plan is None:
            self._plan = plan_graph(self.source, self.options, self.passes)
        return Program(self._plan, self.recipe, self.built, self.part)

    # --- what torch calls to store and to load ---------------------------------------------------

    def __copy__(self) -> CompiledProgram:
        return self

    def prepare_for_serialization(self) -> None:
        """Raises torch's BypassAOTAutogradCache for what may not be stored."""
        if self._plan is not None and self._plan.note is not None:
            raise BypassAOTAutogradCache(self._plan.note)
        if self.recipe.gpu is not None:
            raise BypassAOTAutogradCache("kernels of GPUs have a cache of their own")
        if self.options.trace:
            raise BypassAOTAutogradCache("a trace is written whenever the program is compiled")

    def __getstate__(self) -> dict[str, Any]:
        stored = ("source", "options", "passes", "recipe", "promise")
        part = None if self.part is None else self.part.stored()
        return {"part": part, **{name: getattr(self, name) for name in stored}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._plan = None
        vars(self).update(state)
        self._start()

    def post_compile(self, inputs: Sequence[Any], constants: Any, settings: Any) -> None:
        """Torch has loaded the program: build it. Raises ToolchainError when that fails."""
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        from rewright.backend import remember

        with unset_fake_temporarily():
            self.built = build_program(self.recipe)
        remember(self)

    def set_triton_bundle(self, triton_bundle: Any) -> None:
        """There is none: kernels are in `recipe`."""
