"""Programs of torch.export, in memory or in a `.pt2` file."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils import _pytree as pytree

from rewright.ir.decompositions import decomposition_table
from rewright.ir.errors import ImportFailure, InputError
from rewright.ir.fx_import import import_graph
from rewright.ir.fx_sizes import LOWEST, Range, SizeTable, forget_derived_ranges
from rewright.ir.graph import Arg, Graph, Input, Value, fresh_names, map_values

_ROLES: Final = {
    "PARAMETER": "param",
    "BUFFER": "buffer",
    "CONSTANT_TENSOR": "buffer",
    "USER_INPUT": "input",
}
_MUTATIONS: Final = frozenset({"BUFFER_MUTATION", "PARAMETER_MUTATION", "USER_INPUT_MUTATION"})


@dataclass(frozen=True)
class Bindings:
    """What the graph of a program does not say: the tensors it holds, and how it is called.

    `inputs` names the graph's inputs in order; `state` gives the tensors of those that the caller
    does not pass. The tree specs are those of `(args, kwargs)` and of what the module returns.
    """

    inputs: tuple[str, ...]
    state: Mapping[str, torch.Tensor] = field(repr=False)
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec

    def flatten(
        self, args: Sequence[object], kwargs: Mapping[str, object] | None = None
    ) -> list[object]:
        """The graph's inputs for a call `module(*args, **kwargs)`.

        Raises InputError when the call is not built as the one that was exported.
        """
        named = dict(kwargs or {})
        wanted = self.in_spec.child(1).context or []
        if set(named) == set(wanted):
            named = {name: named[name] for name in wanted}
        flat, spec = pytree.tree_flatten((tuple(args), named))
        if spec != self.in_spec:
            raise InputError(
                f"the program was exported for arguments {_spell(self.in_spec)}, "
                f"and is called with {_spell(spec)}"
            )
        given = iter(flat)
        return [self.state[name] if name in self.state else next(given) for name in self.inputs]

    def unflatten(self, outputs: Sequence[object]) -> Any:
        """What the module returns, from the graph's outputs."""
        return pytree.tree_unflatten(outputs, self.out_spec)


def load(
    source: str | Path | torch.export.ExportedProgram, *, name: str | None = None
) -> tuple[Graph, Bindings]:
    """The graph of a program, and what it is called with.

    Parameters, buffers and constants are inputs named after their place in the module
    ("layers.0.weight"); what the program writes to them or to its arguments are updates. Composite
    operators are taken apart as `decomposition_table` says. The graph is called `name`, by default
    after the file. Raises ImportFailure, as `read_program` does.
    """
    if isinstance(source, torch.export.ExportedProgram):
        return _from_program(source, name or "main")
    return _from_program(read_program(source), name or Path(source).stem)


def read_program(path: str | Path) -> torch.export.ExportedProgram:
    """The program in a `.pt2` file, which is only opened when it is plain data.

    Raises ImportFailure for a file that is missing, damaged, of another kind, or not plain data.
    """
    from rewright.ir.pt2_archive import load_program

    return load_program(Path(path))


def _from_program(program: torch.export.ExportedProgram, name: str) -> tuple[Graph, Bindings]:
    forget_derived_ranges(program.graph_module)
    try:
        with warnings.catch_warnings():
            # torch copies its own deprecated tree specifications; nothing a caller could change.
            warnings.simplefilter("ignore", FutureWarning)
            plain = program.run_decompositions(decomposition_table())
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ImportFailure(f"program {name} cannot be decomposed: {reason[0]}") from error
    specs = plain.graph_signature.input_specs
    roles = [_role(spec) for spec in specs]
    imported = import_graph(plain.graph_module, name, SizeTable(_ranges(plain)), roles)
    traced_in, traced_out = plain.call_spec.in_spec, plain.call_spec.out_spec
    if traced_in is None or traced_out is None:
        raise ImportFailure(f"program {name} does not say how it is called")
    renamed = _renamed(imported, specs)
    graph = _with_updates(imported, plain.graph_signature).substitute(renamed)
    inputs = tuple(_renamed_input(i, renamed) for i in graph.inputs)
    updates = tuple((_value(renamed, target), value) for target, value in graph.updates)
    state = {
        i.value.name: _tensor(plain, str(spec.target))
        for i, spec in zip(inputs, specs, strict=True)
        if spec.kind.name != "USER_INPUT"
    }
    graph = dataclasses.replace(graph, inputs=inputs, updates=updates)
    names = tuple(i.value.name for i in inputs)
    return graph, Bindings(names, state, traced_in, traced_out)


def _role(spec: Any) -> str:
    role = _ROLES.get(spec.kind.name)
    if role is None:
        raise ImportFailure(f"input '{spec.arg.name}' is a {spec.kind.name.lower()}, not a tensor")
    return role


def _ranges(program: torch.export.ExportedProgram) -> dict[str, Range]:
    """What the program promises about its sizes, which may be more than tracing assumed."""

    def bound(value: Any, unbounded: int | None) -> int | None:
        return int(value) if value.is_Integer else unbounded

    return {
        str(symbol): (bound(found.lower, LOWEST) or 0, bound(found.upper, None))
        for symbol, found in program.range_constraints.items()
    }


def _renamed(graph: Graph, specs: Sequence[Any]) -> dict[Value, Arg]:
    """State inputs under the names of the module's attributes."""
    held = {
        i.value: str(spec.target)
        for i, spec in zip(graph.inputs, specs, strict=True)
        if spec.kind.name != "USER_INPUT"
    }
    fresh = fresh_names(value.name for value in graph.values if value not in held)
    return {value: Value(fresh(target), value.type) for value, target in held.items()}


def _with_updates(graph: Graph, signature: Any) -> Graph:
    """The outputs that torch.export puts before the user's, as updates of inputs."""
    targets = {i.value.name: i.value for i in graph.inputs}
    for spec in signature.input_specs:
        if spec.target is not None:
            targets[str(spec.target)] = targets[spec.arg.name]
    outputs: list[Arg] = []
    updates: dict[Value, Value] = {}
    for spec, output in zip(signature.output_specs, graph.outputs, strict=True):
        if spec.kind.name == "USER_OUTPUT":
            outputs.append(output)
        elif spec.kind.name in _MUTATIONS and isinstance(output, Value):
            updates[targets[str(spec.target)]] = output
        else:
            raise ImportFailure(f"output '{spec.arg.name}' is a {spec.kind.name.lower()}")
    inputs = tuple(Input(i.value, i.role, i.value in updates) for i in graph.inputs)
    return dataclasses.replace(
        graph, inputs=inputs, outputs=tuple(outputs), updates=tuple(updates.items())
    )


def _renamed_input(input: Input, renamed: Mapping[Value, Arg]) -> Input:
    return dataclasses.replace(input, value=_value(renamed, input.value))


def _value(renamed: Mapping[Value, Arg], value: Value) -> Value:
    found = map_values(value, renamed)
    assert isinstance(found, Value)
    return found


def _tensor(program: torch.export.ExportedProgram, target: str) -> torch.Tensor:
    held = program.state_dict.get(target, program.constants.get(target))
    if not isinstance(held, torch.Tensor):
        raise ImportFailure(f"the program holds no tensor '{target}'")
    return held.detach()


def _spell(spec: pytree.TreeSpec) -> str:
    """A tree with a `*` for each leaf, on one line."""
    return str(pytree.tree_unflatten(["*"] * spec.num_leaves, spec)).replace("'*'", "*")
