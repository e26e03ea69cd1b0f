"""What all kernels share: names, lines, statements, and reads of several neighbours at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from rewright.codegen.cpp.index import Counter
from rewright.codegen.cpp.kernel import combination
from rewright.codegen.cpp.text import STORAGE, identifiers
from rewright.codegen.cuda.terms import Printer, index
from rewright.ir import Size, UnsupportedError, divisible
from rewright.ir.loops import Affine, Axis, Let, Nest, Reduce, Statement, Store, loads

PACK_BYTES: Final = 16
# What kernels call their own: threads, turns, packs and their elements.
LOCALS: Final = re.compile(r"k|t|v|pack\d+|out\d+|threadIdx|blockIdx")
# Threads of an elementwise kernel's block.
THREADS: Final = 256
ELEMENTS: Final = {dtype: text for dtype, text in STORAGE.items() if not text.startswith("f8")}


@dataclass
class Writer:
    """Lines of one kernel, grown statement by statement."""

    nest: Nest
    lines: list[str] = field(default_factory=list)
    margin: str = ""
    blocks: Size = 1
    threads: tuple[int, int] = (THREADS, 1)

    def __post_init__(self) -> None:
        buffers = (*self.nest.inputs, *self.nest.outputs)
        for buffer in buffers:
            if buffer.type.dtype not in ELEMENTS:
                raise UnsupportedError(
                    f"%{buffer.name}: CUDA kernels have no elements of {buffer.type.dtype}",
                    who="cuda",
                )
        # An output may be the copy of an input, with its name.
        given = [b.name for b in self.nest.inputs]
        outputs = {
            b.name: f"{b.name}_out" if b.name in given else b.name for b in self.nest.outputs
        }
        buffer_names = (*given, *outputs.values())
        taken = {name for name in buffer_names if LOCALS.fullmatch(name)}
        named = identifiers(buffer_names, taken)
        self.names = {name: named[name] for name in given}
        self.outputs = {name: named[other] for name, other in outputs.items()}
        self.storage = {b.name: b.type.dtype for b in buffers}

    def write(self) -> list[str]:
        raise NotImplementedError

    def parameters(self) -> Iterator[str]:
        for buffer in self.nest.inputs:
            type, name = ELEMENTS[buffer.type.dtype], self.names[buffer.name]
            yield f"const {type}* __restrict__ {name}"
        for buffer in self.nest.outputs:
            yield f"{ELEMENTS[buffer.type.dtype]}* __restrict__ {self.outputs[buffer.name]}"

    # --- lines ----------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append(f"{self.margin}{text}")

    def open(self, text: str) -> None:
        self.line(f"{text} {{")
        self.margin += "  "

    def close(self) -> None:
        self.margin = self.margin[:-2]
        self.line("}")

    def place(self, over: Counter, value: str = "") -> None:
        """Lines that define a counter, if it has a value of its own, and each of its axes."""
        if value:
            self.line(f"const i64 {over.name} = {value};")
        if over.name not in over.names:
            for axis in over.axes:
                self.line(f"const i64 {axis.name} = {over.digit(axis.name, over.name)};")

    # --- statements -----------------------------------------------------------------------------

    def printer(self) -> Printer:
        return Printer(self.names, self.storage, {})

    def let(self, statement: Let, printer: Printer) -> None:
        type = STORAGE[statement.term.dtype]
        self.line(f"const {type} {statement.name} = {printer.term(statement.term)};")

    def start(self, reduces: Iterable[Reduce]) -> None:
        """What each thread adds up begins with what changes nothing."""
        for reduce in reduces:
            type, op = combination(reduce)
            self.line(f"{type} {reduce.name}_part = {op}::neutral<{type}>();")

    def finish(self, reduces: Iterable[Reduce], across: str, count: int) -> None:
        """What several threads have added up comes together by the function `across`."""
        for reduce in reduces:
            type, op = combination(reduce)
            whole = f"{across}<{op}, {count}>({reduce.name}_part)"
            self.line(f"const {type} {reduce.name} = {whole};")

    def combine(self, statement: Reduce, printer: Printer) -> None:
        type, op = combination(statement)
        part = f"{statement.name}_part"
        self.line(f"{part} = {op}::of<{type}>({part}, {printer.term(statement.term)});")

    def packs(self, statements: Sequence[Statement], width: int, inner: Axis) -> Printer:
        """Lines that read what lies together along `inner`, and a printer that knows of them."""
        loaded: dict[tuple[str, Affine], str] = {}
        for load in loads(statements):
            key = load.buffer, load.at
            if load.at.coefficient(inner.name) == 1 and not load.guards and key not in loaded:
                pack = f"pack{len(loaded)}"
                place = f"{self.names[load.buffer]} + {index(load.at)}"
                self.line(f"const auto {pack} = load<{width}>({place});")
                loaded[key] = f"{pack}.at[v]"
        return Printer(self.names, self.storage, loaded)

    def open_packs(self, stores: Sequence[Store], width: int, inner: Axis) -> None:
        """Room for what is written at once, and a loop over the elements of packs, in which the
        axis is that of the element."""
        for place, store in enumerate(stores):
            self.line(f"Pack<{ELEMENTS[self.storage[store.buffer]]}, {width}> out{place};")
        self.line(f"const i64 first = {inner.name};")
        self.line("#pragma unroll")
        self.open(f"for (int v = 0; v < {width}; ++v)")
        self.line(f"const i64 {inner.name} = first + v;")

    def close_packs(self, stores: Sequence[Store]) -> None:
        self.close()
        for place, store in enumerate(stores):
            self.line(f"store({self.outputs[store.buffer]} + {index(store.at)}, out{place});")

    def store(self, statement: Store) -> None:
        place = f"{self.outputs[statement.buffer]}[{index(statement.at)}]"
        self.line(f"{place} = {self.stored(statement)};")

    def stored(self, statement: Store) -> str:
        dtype, value = self.storage[statement.buffer], statement.value.name
        return value if dtype == statement.value.dtype else f"cast<{STORAGE[dtype]}>({value})"


# --- choices --------------------------------------------------------------------------------------


def pack_width(nest: Nest, axes: Sequence[Axis]) -> int:
    """How many neighbours along the last of `axes` every access to neighbours takes at once; 1
    where sizes do not prove that they are multiples of so many."""
    if not axes:
        return 1
    inner = axes[-1]
    stages = [s for s in nest.stages if s.per == "column"] if nest.cols else nest.stages
    statements = [s for stage in stages for s in stage.body]
    stores = [s for s in statements if isinstance(s, Store)]
    if any(s.at.coefficient(inner.name) != 1 for s in stores):
        return 1
    found = [t for t in loads(statements) if t.at.coefficient(inner.name) == 1 and not t.guards]
    sizes = {b.name: b.type.dtype.itemsize for b in (*nest.inputs, *nest.outputs)}
    buffers = [*(t.buffer for t in found), *(s.buffer for s in stores)]
    widest = max((sizes[b] for b in buffers), default=PACK_BYTES)
    places = [*(t.at for t in found), *(s.at for s in stores)]
    width = min(8, PACK_BYTES // widest) if places else 1
    while width > 1 and not all(_is_multiple(at, inner, width) for at in places):
        width //= 2
    return width


def _is_multiple(at: Affine, inner: Axis, width: int) -> bool:
    others = [c for name, c in at.terms if name != inner.name]
    return divisible(inner.size, width) and all(divisible(c, width) for c in (*others, at.offset))
