"""Random graphs that a rule must match: the ground that evidence for it stands on.

An instance is what the rule's `match` says, with types and attributes drawn from what the rule
declares: sizes of 0 and 1, odd ones, broadcasting, gaps and orders in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Final

import torch

from rewright.ir import (
    Arg,
    CheckError,
    Constant,
    Dim,
    Graph,
    Input,
    Node,
    Op,
    Symbol,
    UnsupportedError,
    Value,
    op,
)
from rewright.ir.dims import Size, hint
from rewright.ir.facts import COMMUTATIVE
from rewright.ir.infer import infer
from rewright.ir.signature import normalize
from rewright.ir.types import DTYPES, TensorType, contiguous_strides
from rewright.passes.rules.domains import DOMAINS, KINDS_OF_DTYPES
from rewright.passes.rules.functions import Unanswered
from rewright.passes.rules.match import Match, evaluate
from rewright.passes.rules.rule import Rule, Tensor
from rewright.passes.rules.terms import (
    Apply,
    Attribute,
    Bind,
    Either,
    Function,
    Items,
    Literal,
    Many,
    Term,
    Variable,
    attributes,
    within,
)
from rewright.passes.rules.work import Work

# Sizes by how large an instance may be: the first failure is then a small one.
SIZES: Final[Sequence[Sequence[int]]] = ((1, 2), (0, 1, 2, 3), (1, 2, 3, 5), (1, 4, 7, 8, 16))
_EMPTY = Graph("none", (), (), ())


def instances(
    rule: Rule, seed: int, tries: int, *, symbolic: bool = False, every_value: bool = False
) -> Iterator[Graph]:
    """Graphs drawn for a rule, small ones first; draws that do not fit together are left out.

    `symbolic`: sizes are symbols. `every_value`: of a dtype of at most two bytes, with room for
    each of its numbers.
    """
    for number in range(tries):
        random = Random(f"{rule.name}/{seed}/{number}")
        level = min(len(SIZES) - 1, number * len(SIZES) // tries)
        drawing = _Drawing(rule, random, level, symbolic)
        if every_value:
            drawing.make_room_for_every_value()
        try:
            yield drawing.graph()
        except (Unanswered, CheckError, UnsupportedError):
            continue


class _Drawing:
    """One instance while it is drawn. What `match` needs is drawn when it is first met."""

    def __init__(self, rule: Rule, random: Random, level: int, symbolic: bool) -> None:
        self.rule, self.random, self.sizes = rule, random, SIZES[level]
        self.match = Match(rule)
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []
        self.symbolic = symbolic
        self.symbols: list[Dim] = []
        self.binds = {name: bind for bind in rule.match for name in bind.results}
        rank = random.choice((2, 1, 2, 3, 4, 0)) if level else random.choice((1, 2, 2, 3))
        self.base = tuple(self.size() for _ in range(rank))
        self.is_mixed, self.is_plain = random.random() < 0.3, False
        self.common: torch.dtype | None = None
        self.work = Work(_EMPTY)
        self.in_progress: set[str] = set()
        self.constants = {
            part.arguments[0].name  # type: ignore[union-attr]
            for test in rule.when
            for part in within(test)
            if isinstance(part, Function) and part.name == "constant"
        }

    def make_room_for_every_value(self) -> None:
        self.base, self.is_mixed, self.is_plain = (256, 256), False, True
        narrow = (torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16, torch.bool)
        self.common = self.random.choice(narrow)

    def graph(self) -> Graph:
        for bind in self.rule.match:
            self.statement(bind)
        roots = [self.match.values[name] for name in self.rule.roots]
        # What the graph returns is a tensor of its own, so that a root may become an input.
        copies = tuple(self.copy(root) for root in roots)
        return Graph(
            self.rule.name.replace("-", "_").replace("/", "_"),
            tuple(Input(value) for value in self.inputs),
            tuple(self.nodes),
            copies,
        )

    def copy(self, root: Value) -> Value:
        type = root.tensor
        result = Value(f"{root.name}_copy", TensorType(type.dtype, type.shape, None, type.device))
        form = (("memory_format", torch.contiguous_format),)
        self.nodes.append(Node(op("aten.clone.default"), (root,), form, (result,)))
        return result

    def statement(self, bind: Bind) -> None:
        if bind.results[-1] in self.match.values:
            return
        term = self.chosen(bind.term)
        if not isinstance(term, Apply):
            self.match.values[bind.results[0]] = self.value(term)
            return
        results = self.call(term)
        if len(results) < len(bind.results):
            raise Unanswered
        self.match.values.update(zip(bind.results, results, strict=False))

    # --- terms --------------------------------------------------------------------------------

    def value(self, term: Term) -> Value:
        found = self.argument(term)
        if not isinstance(found, Value):
            raise Unanswered
        return found

    def argument(self, term: Term) -> Arg:
        term = self.chosen(term)
        match term:
            case Variable():
                return self.variable(term.name)
            case Apply():
                return self.call(term)[0]
            case Literal():
                return term.value
            case Items():
                return tuple(v for item in term.items for v in self.items(item))
            case Attribute():
                return self.attribute(term.name)
        for name in attributes(term):
            self.attribute(name)
        found: Arg = evaluate(term, self.match, self.work)
        return found

    def chosen(self, term: Term) -> Term:
        while isinstance(term, Either):
            term = self.random.choice(term.options)
        return term

    def items(self, term: Term) -> Iterator[Arg]:
        if isinstance(term, Many):
            yield from self.many(term.name)
        else:
            yield self.argument(term)

    def many(self, name: str) -> tuple[Value, ...]:
        if name not in self.match.lists:
            type = self.type(self.rule.tensors.get(name, Tensor(name, "any")))
            count = self.random.randint(1, 3)
            self.match.lists[name] = tuple(self.input(f"{name}{i}", type) for i in range(count))
        return self.match.lists[name]

    def variable(self, name: str) -> Value:
        if name in self.rule.lists:
            return self.many(name)[0]
        if name not in self.match.values and name in self.binds:
            self.statement(self.binds[name])
        if name not in self.match.values:
            type = self.type(self.rule.tensors.get(name, Tensor(name, "any")))
            make = self.constant if name in self.constants else self.input
            self.match.values[name] = make(name, type)
        return self.match.values[name]

    def constant(self, name: str, type: TensorType) -> Value:
        """A value that the rule asks to be known."""
        if not all(isinstance(size, int) for size in type.shape):
            raise Unanswered
        generator = torch.Generator().manual_seed(self.random.randrange(1 << 30))
        wide = torch.randn([hint(s) for s in type.shape], generator=generator, dtype=torch.float64)
        value = Value(name, TensorType(type.dtype, type.shape))
        known = (("value", Constant.of(wide.to(type.dtype))),)
        self.nodes.append(Node(op("rw.constant"), (), known, (value,)))
        return value

    def attribute(self, name: str) -> Arg:
        known = self.match.attributes
        if name not in known:
            parameter = self.rule.parameters.get(name)
            if parameter is None:
                self.dimension(name)
            else:
                if name in self.in_progress:
                    raise Unanswered  # it is declared in terms of itself
                self.in_progress.add(name)
                args = [self.argument(a) for a in parameter.arguments]
                known[name] = DOMAINS[parameter.domain].draw(self.random, *args)
        return known[name]

    def dimension(self, name: str) -> None:
        """A name of a dimension of some declared tensor, which is drawn first."""
        for tensor in self.rule.tensors.values():
            for size in tensor.dims or ():
                if size.term == Attribute(name):
                    self.match.attributes[name] = self.sizes_of_rest() if size.rest else self.size()
                    return
        raise Unanswered

    # --- calls --------------------------------------------------------------------------------

    def call(self, term: Apply) -> tuple[Value, ...]:
        chosen = self.random.choice(term.ops)
        given = {name: self.argument(arg) for name, arg in term.named(chosen).items()}
        given = {name: self.maybe_filled(chosen, name, arg) for name, arg in given.items()}
        if chosen.name in COMMUTATIVE and len(given) == 2 and self.random.random() < 0.5:
            (a, x), (b, y) = given.items()
            given = {a: y, b: x} if isinstance(y, Value) else given
        args, kwargs = normalize(chosen, (), given)
        types = infer(Node(chosen, args, kwargs, ()))
        stem = f"t{len(self.nodes)}"
        values = tuple(Value(f"{stem}_{i}" if i else stem, t) for i, t in enumerate(types))
        self.nodes.append(Node(chosen, args, kwargs, values))
        return values

    def maybe_filled(self, operator: Op, name: str, arg: Arg) -> Arg:
        """A number where a tensor may stand, now and then as a tensor without dimensions; `where`
        takes no other."""
        if isinstance(arg, bool) or not isinstance(arg, (int, float)):
            return arg
        wants = str(next(a.type for a in operator.schema.arguments if a.name == name))  # type: ignore[union-attr]
        if wants != "Tensor" or not ("where" in operator.name or self.random.random() < 0.2):
            return arg
        type = TensorType(torch.float32 if isinstance(arg, float) else torch.int64, ())
        # A number of the dtype's own, which float64 does not know more exactly.
        arg = torch.tensor(arg, dtype=type.dtype).item()
        value = Value(f"t{len(self.nodes)}", type)
        kwargs: tuple[tuple[str, Arg], ...] = (("device", type.device), ("dtype", type.dtype))
        self.nodes.append(Node(op("aten.full.default"), ((), arg), kwargs, (value,)))
        return value

    # --- types --------------------------------------------------------------------------------

    def input(self, name: str, type: TensorType) -> Value:
        value = Value(name, type)
        self.inputs.append(value)
        return value

    def type(self, tensor: Tensor) -> TensorType:
        dtype = self.dtype(tensor.kind)
        shape = self.shape(tensor)
        return TensorType(dtype, shape, self.strides(shape))

    def dtype(self, kind: str) -> torch.dtype:
        """In most instances the same for all tensors whose classes admit it."""
        if kind in DTYPES:
            return DTYPES[kind]
        admitted = KINDS_OF_DTYPES[kind]
        if self.is_mixed:
            return self.random.choice(admitted)
        if self.common not in admitted:
            self.common = self.random.choice(admitted)
        return self.common

    def shape(self, tensor: Tensor) -> tuple[Size, ...]:
        if tensor.dims is None:
            return self.broadcast_of_base()
        shape: list[Size] = []
        for size in tensor.dims:
            if size.term is None:
                shape += self.sizes_of_rest()
                continue
            found = self.argument(size.term)
            shape += found if isinstance(found, tuple) else [found]  # type: ignore[arg-type,list-item]
        return tuple(shape)

    def broadcast_of_base(self) -> tuple[Size, ...]:
        """The shape that most tensors have, or one that broadcasts to it."""
        if self.is_plain or self.random.random() < 0.6:
            return self.base
        kept = self.base[self.random.randint(0, len(self.base)) :]
        return tuple(1 if self.random.random() < 0.3 else size for size in kept)

    def sizes_of_rest(self) -> tuple[Size, ...]:
        return tuple(self.size() for _ in range(self.random.choice((0, 1, 1, 2))))

    def size(self) -> Size:
        if not self.symbolic:
            return self.random.choice(self.sizes)
        if len(self.symbols) < 4 and self.random.random() < 0.7:
            symbol = Symbol(f"B{len(self.symbols)}", hint=5 + 2 * len(self.symbols), low=2, high=64)
            self.symbols.append(Dim.of(symbol))
            return self.symbols[-1]
        sizes: list[Size] = [*self.symbols, 1, 3, 8]
        return self.random.choice(sizes)

    def strides(self, shape: tuple[Size, ...]) -> tuple[Size, ...] | None:
        rank = len(shape)
        plain = contiguous_strides(shape)
        how = self.random.choice(("plain", "plain", "plain", "permuted", "gaps", "expanded"))
        if how == "plain" or rank == 0 or self.symbolic or self.is_plain:
            return None
        if how == "permuted":
            order = self.random.sample(range(rank), rank)
            moved = contiguous_strides(tuple(shape[d] for d in order))
            return tuple(moved[order.index(d)] for d in range(rank))
        if how == "gaps":
            return tuple(stride * 2 for stride in plain)
        axis = self.random.randrange(rank)
        return tuple(0 if d == axis else stride for d, stride in enumerate(plain))


def volume(graph: Graph) -> int:
    """Elements of all inputs: how large an instance is."""
    return sum(hint(i.value.tensor.numel) for i in graph.inputs)
