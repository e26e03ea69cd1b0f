"""Samples that an error budget is measured on: what users give, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewright.ir import Graph, InputError, OptionError
from rewright.ir.bind import bind
from rewright.options import Options

if TYPE_CHECKING:
    from torch import fx

    from rewright.ir.pt2 import Bindings

Sample = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and keyword arguments of one call."""


def graph_samples(
    options: Options, graph: Graph, bindings: Bindings | None
) -> tuple[list[Any], ...]:
    """Inputs of the graph, parameters and all, of each sample. Raises OptionError, InputError."""
    return fitting_samples(
        graph,
        [
            list(args) if bindings is None else bindings.flatten(args, kwargs)
            for args, kwargs in calibration_samples(options)
        ],
    )


def fitting_samples(graph: Graph, samples: Sequence[Sequence[Any]]) -> tuple[list[Any], ...]:
    """The samples, each all inputs of the graph. Raises InputError for one that is not."""
    for place, given in enumerate(samples):
        try:
            bind(graph, given)
        except InputError as error:
            raise InputError(f"calibration sample {place} does not fit: {error.message}") from error
    return tuple(map(list, samples))


def samples_inside(
    options: Options, gm: fx.GraphModule, example_inputs: Sequence[Any]
) -> list[list[Any]]:
    """Inputs of a graph of Dynamo's, parameters and all, of each sample. Raises OptionError."""
    from rewright.torch_compat import argument_names

    if options.error_budget is None:
        return []
    names = argument_names(gm)
    own = [name for name in names if name is not None]
    found = []
    for place, (args, kwargs) in enumerate(calibration_samples(options)):
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        if len(own) == len(given) == 1:
            given = dict.fromkeys(own, next(iter(given.values())))
        elif args and any(isinstance(name, str) for name in own):
            raise OptionError(
                f"inside torch.compile inputs have names and no order: {', '.join(map(str, own))}",
                who="calibration",
                help="give dicts of inputs by name",
            )
        missing = [name for name in own if name not in given]
        if missing:
            raise OptionError(f"sample {place} has no '{missing[0]}'", who="calibration")
        row = zip(names, example_inputs, strict=True)
        found.append([x if name is None else given[name] for name, x in row])
    return found


def calibration_samples(options: Options) -> list[Sample]:
    """Raises OptionError where an error budget has no samples, InputError for a bad one."""
    given = options.calibration
    if isinstance(given, Callable):  # type: ignore[arg-type]
        given = given()
    if isinstance(given, (str, Path)):
        given = _read(Path(given))
    if not isinstance(given, Iterable) or isinstance(given, (Mapping, Tensor)):
        raise OptionError(
            f"calibration is a list of tuples of inputs, not {type(given).__name__}", who="options"
        )
    found = [_sample(sample, place) for place, sample in enumerate(given)]
    if options.error_budget is not None and not found:
        raise OptionError(
            "an error budget needs samples of inputs to measure errors on",
            who="options",
            help="give calibration=, a list of tuples of inputs, a function or a file",
        )
    return found


def _sample(given: Any, place: int) -> Sample:
    """A tuple of arguments, a mapping of keyword arguments, or one tensor."""
    args, kwargs = (), {}
    if isinstance(given, Mapping):
        kwargs = dict(given)
    else:
        args = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    for name, value in (*enumerate(args), *kwargs.items()):
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"calibration sample {place} holds NaN or infinities, in input {name}")
        if isinstance(value, Tensor) and value.numel() == 0:
            raise InputError(f"calibration sample {place} is empty, in input {name}")
    return args, kwargs


def _read(path: Path) -> list[Any]:
    """Samples of a file: its tensors in order, each cut along the first dimension."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors = load_file(path)
    elif path.suffix == ".npz":
        import numpy as np

        with np.load(path) as file:
            tensors = {name: torch.from_numpy(file[name]) for name in file.files}
    else:
        raise OptionError(
            f"calibration is a .safetensors or .npz file, not '{path}'", who="options"
        )
    counts = {name: len(tensor) for name, tensor in tensors.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"{path} has different numbers of samples: {counts}")
    return [tuple(parts) for parts in zip(*(t.split(1) for t in tensors.values()), strict=True)]
