"""New nodes with inferred types, collected in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from rewright.ir import (
    Arg,
    CheckError,
    Constant,
    Graph,
    Node,
    Op,
    TensorType,
    Type,
    Value,
    fresh_names,
    op,
)
from rewright.ir.infer import infer
from rewright.ir.signature import normalize


class Emitter:
    """Call it with an operator and its arguments: it makes the node and returns its first result.

    New names come from `fresh`, built on the name of `like`, whose place in the user's source the
    nodes get too. Raises CheckError when arguments do not fit, UnsupportedError for an operator
    that `infer` does not know.
    """

    def __init__(self, fresh: Callable[[str], str], like: Node) -> None:
        self.nodes: list[Node] = []
        self._fresh, self._like = fresh, like

    def __call__(self, name: str, *args: Arg, **kwargs: Arg) -> Value:
        return self.results(name, *args, **kwargs)[0]

    def inside(self) -> Emitter:
        """One for the body of a region: names there are its own."""
        return Emitter(fresh_names(()), self._like)

    def region(
        self, name: str, operands: tuple[Value, ...], body: Graph, **kwargs: Arg
    ) -> tuple[Value, ...]:
        """A node whose meaning is `body`, with the body's results."""
        types = [v.type for v in body.outputs if isinstance(v, Value)]
        node = Node(op(name), operands, tuple(kwargs.items()), (), (("body", body),))
        return self._add(node, types)

    def results(self, name: str, *args: Arg, **kwargs: Arg) -> tuple[Value, ...]:
        """All results of the node."""
        return self.call(op(name), args, kwargs)

    def call(
        self,
        operator: Op,
        args: tuple[Arg, ...],
        kwargs: Mapping[str, Arg],
        types: Sequence[Type] | None = None,
    ) -> tuple[Value, ...]:
        """All results of the node; of `types`, when these are given."""
        given, keywords = normalize(operator, args, kwargs)
        bare = Node(operator, given, keywords, ())
        return self._add(bare, infer(bare) if types is None else types)

    def constant(self, tensor: torch.Tensor) -> Value:
        """A tensor that is known."""
        held = Constant.of(tensor)
        type = TensorType(tensor.dtype, tuple(tensor.shape), None, tensor.device)
        return self._add(Node(op("rw.constant"), (), (("value", held),), ()), [type])[0]

    def end_in(self, value: Value) -> None:
        """Have the last node make `value`, whose place it takes.

        Raises CheckError when it makes a value of another type."""
        node = self.nodes[-1]
        if node.result.type != value.type:
            raise CheckError(f"{node.op} would give {node.result.type}, not {value.type}")
        self.nodes[-1] = dataclasses.replace(node, results=(value,))

    def _add(self, bare: Node, types: Iterable[Type]) -> tuple[Value, ...]:
        """The node with results of these types, in its place."""
        like = self._like
        values = tuple(Value(self._fresh(like.name), type) for type in types)
        self.nodes.append(
            dataclasses.replace(
                bare, results=values, loc=like.loc, seq_nr=like.seq_nr, phase=like.phase
            )
        )
        return values
