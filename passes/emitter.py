"""New nodes with inferred types, collected in order."""

from __future__ import annotations

from collections.abc import Callable

from rewright.ir import Arg, Graph, Node, Value, fresh_names, op
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

    def region(self, name: str, operands: tuple[Value, ...], body: Graph) -> tuple[Value, ...]:
        """A node whose meaning is `body`, with the body's results."""
        like = self._like
        types = (v.type for v in body.outputs if isinstance(v, Value))
        values = tuple(Value(self._fresh(like.name), type) for type in types)
        self.nodes.append(
            Node(
                op(name),
                operands,
                (),
                values,
                (("body", body),),
                loc=like.loc,
                seq_nr=like.seq_nr,
                phase=like.phase,
            )
        )
        return values

    def results(self, name: str, *args: Arg, **kwargs: Arg) -> tuple[Value, ...]:
        """All results of the node."""
        operator = op(name)
        given, keywords = normalize(operator, args, kwargs)
        like = self._like
        bare = Node(operator, given, keywords, ())
        values = tuple(Value(self._fresh(like.name), type) for type in infer(bare))
        self.nodes.append(
            Node(
                operator,
                given,
                keywords,
                values,
                loc=like.loc,
                seq_nr=like.seq_nr,
                phase=like.phase,
            )
        )
        return values
