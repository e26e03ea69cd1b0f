"""Arguments of a call, made fit for a program that was built for one layout of each input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rewright.ir import Graph, InputError, TensorType, evaluate
from rewright.ir.bind import bind


class Arguments:
    """Checks and lays out the arguments that a caller passes; parameters and buffers are ours."""

    def __init__(self, graph: Graph) -> None:
        self._places = [i for i, input in enumerate(graph.inputs) if input.role == "input"]
        given = tuple(graph.inputs[i] for i in self._places)
        self._signature = dataclasses.replace(graph, inputs=given)
        self._types = [input.value.type for input in given]

    def run(self, program: Callable[[list[Any]], list[Any]], flat: list[Any]) -> list[Any]:
        """What `program` returns for `flat`. Updates reach the caller's tensors."""
        args = [flat[place] for place in self._places]
        if all(map(_is_as_built, self._types, args)):
            return program(flat)
        sizes = bind(self._signature, args)
        copied: list[tuple[Tensor, Tensor]] = []
        for place, input in zip(self._places, self._signature.inputs, strict=True):
            type, arg = input.value.type, flat[place]
            if not isinstance(type, TensorType):
                continue
            layout = [evaluate(stride, sizes) for stride in type.layout]
            if _fits(arg, layout):
                continue
            flat[place] = _laid_out(arg, layout, input.value.name)
            if input.mutable:
                copied.append((arg, flat[place]))
        outputs = program(flat)
        for arg, copy in copied:
            arg.copy_(copy)
        return outputs


def _is_as_built(type: object, arg: object) -> bool:
    """True for a tensor of exactly the sizes, strides and dtype that the program was built for;
    False leaves it to `bind`."""
    return (
        isinstance(type, TensorType)
        and isinstance(arg, Tensor)
        and arg.dtype == type.dtype
        and arg.shape == type.shape
        and arg.stride() == type.layout
        and arg.device.type == type.device.type
        and not arg.is_neg()
    )


def _fits(arg: Tensor, layout: Sequence[int]) -> bool:
    """Strides of dimensions that hold one element reach nothing."""
    if arg.is_neg() or arg.is_conj():
        return False
    if arg.numel() == 0:
        return True
    steps = zip(arg.shape, arg.stride(), layout, strict=True)
    return all(size == 1 or step == wanted for size, step, wanted in steps)


def _laid_out(arg: Tensor, layout: Sequence[int], name: str) -> Tensor:
    if any(size > 1 and step == 0 for size, step in zip(arg.shape, layout, strict=True)):
        raise InputError(
            f"%{name} was an expanded tensor when the program was built, and has strides "
            f"{tuple(arg.stride())} now",
            help="optimize again with inputs like these",
        )
    copy = torch.empty_strided(arg.shape, layout, dtype=arg.dtype, device=arg.device)
    return copy.copy_(arg)
