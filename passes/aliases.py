"""Which values share storage, and whether one value may stand in for another without a caller
noticing: the legality question of every pass that removes a copy or merges two nodes."""

from __future__ import annotations

from collections import Counter

from rewright.ir import Graph, Node, Value, may_share_input_storage, values_in


class Aliases:
    """Storage of a graph's values, by name, kept up to date while values are substituted.

    An operator that may return its input's storage (`aten.contiguous`) counts as doing so.
    """

    def __init__(self, graph: Graph) -> None:
        self._base: dict[str, str] = {}
        self._lasting = {i.value.name for i in graph.inputs}
        for node in graph.nodes:
            self.note(node)
        leaving = (*values_in(graph.outputs), *(v for _, v in graph.updates))
        self._returned = {value.name for value in leaving}
        self._leaving = Counter(self.storage(name) for name in self._returned)

    def storage(self, name: str) -> str:
        """The name of the value that owns the storage of `name`."""
        while name in self._base:
            name = self._base[name]
        return name

    def leaves(self, name: str) -> bool:
        """True when a caller gets the storage of `name`."""
        return self._leaving[self.storage(name)] > 0

    def obstacle(self, old: Value, new: Value) -> str | None:
        """Why `new`, which holds the same numbers, may not take the place of `old`."""
        if old.name in self._returned:
            if new.name in self._returned:
                return f"%{old.name} and %{new.name} both leave the graph and stay two tensors"
            if new.name in self._lasting:
                return f"%{old.name} leaves the graph and stays a tensor beside %{new.name}"
        return self.storage_obstacle(old, new)

    def storage_obstacle(self, old: Value, new: Value) -> str | None:
        """Why `old` may not become a tensor in the storage of `new`."""
        mine, its = self.storage(old.name), self.storage(new.name)
        if mine == its or not self.leaves(mine):
            return None
        if its in self._lasting:
            return f"%{old.name} leaves the graph and would share storage with %{its}"
        if self.leaves(its):
            return f"%{old.name} and %{its} both leave the graph and stay two tensors"
        return None

    def substitute(self, old: Value, new: Value) -> None:
        """Record that `old` is gone and `new` read and returned in its place."""
        mine, its = self.storage(old.name), self.storage(new.name)
        if old.name in self._returned:
            self._returned.discard(old.name)
            self._returned.add(new.name)
        if mine != its:
            self._leaving[its] += self._leaving.pop(mine, 0)
            self._base[mine] = its

    def note(self, node: Node) -> None:
        """Take in a node that is new in the graph."""
        if node.op.name == "rw.constant":
            self._lasting.add(node.result.name)
        elif may_share_input_storage(node):
            base = node.operands[0].name
            self._base.update((value.name, base) for value in node.results)
