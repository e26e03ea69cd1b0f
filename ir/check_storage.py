"""The rules of storage at the kernel level, by one sweep over the schedule.

A storage is a buffer (`rw.alloc`), a tensor of its own, an input or a constant; views and what is
written into a buffer share it. Sizes are taken at their hints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rewright.ir.fault import Fault
from rewright.ir.graph import Arg, Graph, Node, Value, values_in
from rewright.ir.ops import Kind, out_variant
from rewright.ir.show import show_type
from rewright.ir.storage import lasts, shares_input_storage
from rewright.ir.types import TensorType

# Storages that the program must not free.
_INPUT: Final = "an input"
_LASTING: Final = {"rw.constant": "a constant", "rw.frozen": "what is computed once"}


@dataclass(frozen=True)
class Slot:
    """The bytes of the arena that a buffer takes."""

    name: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"%{self.name} at [{self.start}, {self.stop})"


def check_storage(graph: Graph) -> None:
    """Raises Fault when a buffer is read outside its life, shares bytes with another live one, is
    written twice, leaves the graph, or anything is freed twice or too early."""
    sweep = _Sweep(graph)
    for node in graph.nodes:
        sweep.node(node)
    sweep.finish()


class _Sweep:
    """What is live at one step of the schedule. Storages go by the name of who made them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.storage = {i.value.name: i.value.name for i in graph.inputs}
        self.kept = dict.fromkeys(self.storage, _INPUT)
        self.slots: dict[str, Slot] = {}
        self.live: dict[str, Slot] = {}
        self.buffers: set[str] = set()
        self.written: set[str] = set()
        self.freed: set[str] = set()

    def node(self, node: Node) -> None:
        if node.op.name == "rw.alloc":
            self.alloc(node)
        elif node.op.name == "rw.free":
            self.free(node)
        else:
            self.call(node)

    def alloc(self, node: Node) -> None:
        value, offset = node.result, node.kwarg("offset")
        self.storage[value.name] = value.name
        self.buffers.add(value.name)
        if offset is None:
            return
        if not isinstance(offset, int) or offset < 0:
            raise Fault(f"%{value.name} wants an offset of at least 0 in the arena", node)
        slot = Slot(value.name, offset, offset + value.tensor.nbytes_hint)
        for other in self.live.values():
            if max(slot.start, other.start) < min(slot.stop, other.stop):
                raise Fault(f"{slot} shares bytes with {other}, which is still live", node)
        self.slots[value.name] = self.live[value.name] = slot

    def free(self, node: Node) -> None:
        if len(node.args) != 1 or not isinstance(node.args[0], Value):
            raise Fault("rw.free takes one value", node)
        name = node.args[0].name
        storage = self.storage[name]
        if storage in self.kept:
            raise Fault(f"rw.free(%{name}) frees {self.kept[storage]}", node, name)
        if storage in self.freed:
            raise Fault(f"rw.free(%{name}) frees a storage that is freed already", node, name)
        self.freed.add(storage)
        self.live.pop(storage, None)

    def call(self, node: Node) -> None:
        out = node.kwarg("out")
        for value in values_in((node.args, *(a for name, a in node.kwargs if name != "out"))):
            self.read(value, node, f"%{node.name} ({node.op}) reads")
        if out is not None:
            self.write(node, out)
        views = shares_input_storage(node)
        for value in node.results:
            base = self.storage[node.operands[0].name] if views else value.name
            self.storage.setdefault(value.name, base)
            if lasts(node):
                self.kept[value.name] = _LASTING[node.op.name]

    def read(self, value: Value, node: Node | None, reader: str) -> None:
        storage = self.storage[value.name]
        if storage in self.freed:
            raise Fault(f"{reader} %{value.name} after its storage is freed", node, value.name)
        if storage in self.buffers and storage not in self.written:
            raise Fault(
                f"{reader} %{value.name}, a buffer that nothing has written", node, value.name
            )

    def write(self, node: Node, out: Arg) -> None:
        if node.op.kind is not Kind.REGION and out_variant(node.op) is None:
            raise Fault(f"%{node.name} ({node.op}) has no form that takes out=", node)
        if not isinstance(out, tuple) or len(out) != len(node.results):
            raise Fault(
                f"%{node.name} ({node.op}) wants in out= a buffer or none for each of its "
                f"{len(node.results)} results",
                node,
            )
        for value, buffer in zip(node.results, out, strict=True):
            if buffer is not None:
                self.store(node, value, buffer)

    def store(self, node: Node, value: Value, buffer: Arg) -> None:
        if not isinstance(buffer, Value) or buffer.name not in self.buffers:
            raise Fault(f"out= of %{node.name} ({node.op}) names no buffer of rw.alloc", node)
        if buffer.name in self.freed:
            raise Fault(
                f"%{node.name} ({node.op}) writes %{buffer.name} after it is freed",
                node,
                buffer.name,
            )
        if buffer.name in self.written:
            raise Fault(f"%{buffer.name} is written twice", node, buffer.name)
        if buffer.type != value.type:
            raise Fault(
                f"%{value.name} is {show_type(value.type)}, but its buffer %{buffer.name} is "
                f"{show_type(buffer.type)}",
                node,
                buffer.name,
            )
        self.written.add(buffer.name)
        self.storage[value.name] = buffer.name

    def finish(self) -> None:
        for value in values_in(self.graph.outputs):
            if not isinstance(value.type, TensorType):
                continue
            self.read(value, None, "the graph returns")
            slot = self.slots.get(self.storage[value.name])
            if slot is not None:
                raise Fault(f"the graph returns %{value.name}, which lies in the arena ({slot})")
        for target, value in self.graph.updates:
            self.read(value, None, f"the update of %{target.name} reads")
