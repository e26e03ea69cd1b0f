"""Samples that an error budget is measured on: what users give, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewright.ir import Graph, InputError, OptionError, TensorType
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
    state = {} if bindings is None else bindings.state
    taken = [i.value for i in graph.inputs if i.value.name not in state]
    found = calibration_samples(options, [v.name for v in taken], _rows(v.type for v in taken))
    return fitting_samples(
        graph,
        [
            list(args) if bindings is None else bindings.flatten(args, kwargs)
            for args, kwargs in found
        ],
    )


def _rows(taken: Iterable[Any]) -> int:
    """How many samples a call takes: the first size of its first tensor, where that is fixed."""
    shapes = (x.shape for x in taken if isinstance(x, (Tensor, TensorType)))
    first = next((shape[0] for shape in shapes if shape), 1)
    return max(first, 1) if type(first) is int else 1


def fitting_samples(graph: Graph, samples: Sequence[Sequence[Any]]) -> tuple[list[Any], ...]:
    """The samples, each all inputs of the graph. Raises InputError for one that is not."""
    for place, given in enumerate(samples):
        try:
            bind(graph, given)
        except InputError as error:
            raise InputError(
                f"calibration sample {place} does not fit: {error.message}",
                help="a sample is what one call takes, with the sizes and dtypes of its inputs",
            ) from error
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
    taken = [x for name, x in zip(names, example_inputs, strict=True) if name is not None]
    found = []
    given_samples = calibration_samples(options, batch=_rows(taken))
    for place, (args, kwargs) in enumerate(given_samples):
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


def calibration_samples(
    options: Options, names: Sequence[str] = (), batch: int = 1
) -> list[Sample]:
    """The samples that were given. Those of a file hold `batch` of its rows and are inputs by name,
    or in the order of `names`. Raises OptionError where an error budget has no samples, InputError
    for a bad one."""
    given = options.calibration
    if isinstance(given, Callable):  # type: ignore[arg-type]
        given = given()
    if isinstance(given, (str, Path)):
        given = _read(Path(given), names, batch)
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


def _read(path: Path, names: Sequence[str], batch: int) -> list[Any]:
    """Samples of a file: its tensors, each cut along the first dimension; what is left over is
    none. With other names than `names` they are taken in order. Raises OptionError, InputError."""
    tensors = _tensors(path)
    counts = {name: len(tensor) if tensor.ndim else 0 for name, tensor in tensors.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"{path} has different numbers of samples: {counts}")
    whole = min(counts.values(), default=0) // batch * batch
    if not whole:
        raise InputError(
            f"{path} holds no sample of {batch} for a call",
            help="tensors are cut along their first dimension",
        )
    order = names if set(names) == set(tensors) else list(tensors)
    samples = zip(*(tensors[name][:whole].split(batch) for name in order), strict=True)
    return [tuple(s) if names else dict(zip(order, s, strict=True)) for s in samples]


def _tensors(path: Path) -> dict[str, Tensor]:
    """What a file holds, by name. Raises OptionError for one that is none."""
    if path.suffix not in (".safetensors", ".npz"):
        raise OptionError(
            f"calibration is a .safetensors or .npz file, not '{path}'", who="options"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        import numpy as np

        with np.load(path) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except FileNotFoundError:
        raise OptionError(f"there is no file {path}", who="calibration") from None
    except Exception as error:
        raise OptionError(f"{path} cannot be read: {error}", who="calibration") from error
