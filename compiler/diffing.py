"""`rewright diff`: two graphs node by node."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from rewright.ir import Arg, Constant, Graph, Kind, Node, Value, map_values, values_in
from rewright.ir.show import show_arg, show_node, show_type
from rewright.passes import held
from rewright.renames import Renames, now
from rewright.report_json import to_json

# Kinds of change, in the order in which they are told.
KINDS: Final = ("gone", "new", "changed", "kernel", "renamed")


@dataclass(frozen=True)
class Change:
    """One node or input: `gone` (`to` stands for it now), `new`, `changed` (`what` lists pairs),
    `renamed` (to `to`), or a `kernel` of the nodes `to`, which were not one. Changes `of` one sort
    are much alike: of an operator, of the same parts of a node, of the same operators in one."""

    kind: str
    of: str
    name: str
    to: tuple[str, ...]
    was: str
    now: str
    what: tuple[tuple[str, str, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        pairs = [dict(zip(("what", "from", "to"), pair, strict=True)) for pair in self.what]
        return {**to_json(self), "what": pairs}

    def __str__(self) -> str:
        names = ", ".join(f"%{name}" for name in self.to)
        match self.kind:
            case "gone":
                return f"gone     {self.was}{f', now {names}' if names else ''}"
            case "new":
                return f"new      {self.now}"
            case "renamed":
                return f"renamed  %{self.name} -> {names}"
            case "kernel":
                return f"kernel   %{self.name} of {names}"
        told = "; ".join(f"{what} {before} -> {after}" for what, before, after in self.what)
        return f"changed  %{self.name}: {told}"


def changes(a: Graph, b: Graph, renamed: Renames | None = None) -> list[Change]:
    """What is another in `b`. `renamed` says what became of names of `a`; None finds it out, of
    graphs that have no past in common."""
    if renamed is not None:
        return _changes(a, b, renamed)
    by_name, aligned = _changes(a, b, {}), _changes(a, b, _aligned(a, b))
    return min((by_name, aligned), key=_weight)


def _weight(found: Sequence[Change]) -> tuple[int, int]:
    """How much a list of changes tells; names alone hardly count."""
    renamed = sum(change.kind == "renamed" for change in found)
    return len(found) - renamed, renamed


def _changes(a: Graph, b: Graph, renamed: Renames) -> list[Change]:
    found = [
        *_between(_inputs(a), _inputs(b), renamed),
        *_between(_nodes(a, renamed), _nodes(b, {}), renamed),
        *_returned(a, b, renamed),
    ]
    before = {now((name,), renamed): inside for name, inside in _kernels(a, renamed).items()}
    facts = _nodes(b, {})
    for name, inside in _kernels(b, {}).items():
        if before.get((name,)) != inside:
            of = ", ".join(facts[n].operator for n in inside if n in facts)
            found.append(Change("kernel", of, name, inside, "", ""))
    return sorted(found, key=lambda change: KINDS.index(change.kind))


@dataclass(frozen=True)
class _Fact:
    """What is compared: a text that shows it, and its parts by what they are."""

    text: str
    parts: tuple[tuple[str, str], ...]

    @property
    def operator(self) -> str:
        return self.parts[0][1]


_Facts = dict[str, _Fact]


def _between(a: _Facts, b: _Facts, renamed: Renames) -> Iterator[Change]:
    met: set[str] = set()
    for name, fact in a.items():
        stands = now((name,), renamed)
        others = (n for n in stands if n in a and n != name and n in now((n,), renamed))
        kept = next((n for n in stands if n in b and n not in met | set(others)), None)
        if kept is None:
            stand = tuple(n for n in stands if n != name)
            yield Change("gone", fact.operator, name, stand, fact.text, "")
            continue
        met.add(kept)
        if kept != name:
            yield Change("renamed", "", name, (kept,), fact.text, b[kept].text)
        what = tuple(_other(fact, b[kept]))
        if what:
            of = ", ".join(label for label, _, _ in what)
            yield Change("changed", of, kept, (), fact.text, b[kept].text, what)
    for name, fact in b.items():
        if name not in met:
            yield Change("new", fact.operator, name, (), "", fact.text)


def _other(was: _Fact, is_now: _Fact) -> Iterator[tuple[str, str, str]]:
    """The parts in which two differ; of another operator's attributes nothing is said."""
    pairs = list(zip(was.parts, is_now.parts, strict=True))
    same_operator = pairs[0][0] == pairs[0][1]
    for (what, before), (_, after) in pairs:
        if before != after and (what != "attributes" or same_operator):
            yield what, before, after


# --- what is compared ---------------------------------------------------------------------------


def _inputs(graph: Graph) -> _Facts:
    found = {}
    for given in graph.inputs:
        type, role = show_type(given.value.type), given.role
        text = f"input %{given.value.name}: {type} {role}"
        found[given.value.name] = _Fact(text, (("role", role), ("type", type)))
    return found


def _nodes(graph: Graph, renamed: Renames) -> _Facts:
    """Nodes by name, those inside of kernels among them; what is allocated is told of with who
    writes there. Nodes without a result go by their text."""
    offsets = {h.value.name: str(h.offset) for h in held(graph) if h.offset is not None}
    nameless: Counter[str] = Counter()
    found: _Facts = {}
    for node in graph.nodes:
        if node.op.kind is Kind.STORAGE:
            continue
        inside = node.graph("body").nodes if node.op.kind is Kind.REGION else ()
        for inner in inside:
            found.setdefault(inner.name, _fact(inner, renamed, offsets))
        name = node.name
        if not name:
            text = _text(node)
            nameless[text] += 1
            name = f"{text} ({nameless[text]})"
        found.setdefault(name, _fact(node, renamed, offsets))
    return found


def _fact(node: Node, renamed: Renames, offsets: dict[str, str]) -> _Fact:
    reads = values_in((*node.args, *(arg for key, arg in node.kwargs if key != "out")))
    names = (f"%{(now((v.name,), renamed) or (v.name,))[0]}" for v in reads)
    return _Fact(
        _text(node),
        (
            ("operator", node.op.name),
            ("type", ", ".join(show_type(v.type) for v in node.results)),
            ("reads", ", ".join(names) or "nothing"),
            ("attributes", _attributes(node)),
            ("place in the arena", offsets.get(node.name, "none")),
        ),
    )


def _text(node: Node) -> str:
    kwargs = tuple((key, arg) for key, arg in node.kwargs if key != "out")
    return show_node(replace(node, kwargs=kwargs, graphs=(), seq_nr=None, phase=None))


def _attributes(node: Node) -> str:
    """Arguments, with `_` for each value."""

    def shown(arg: Arg) -> str:
        if isinstance(arg, Constant):
            return f"constant {arg.sha256[:12]}"
        marked: dict[Value, Arg] = {v: Value("_", v.type) for v in values_in(arg)}
        return show_arg(map_values(arg, marked)).replace("%_", "_")

    parts = [shown(arg) for arg in node.args]
    parts += [f"{key}={shown(arg)}" for key, arg in node.kwargs if key != "out"]
    return f"({', '.join(parts)})"


def _kernels(graph: Graph, renamed: Renames) -> dict[str, tuple[str, ...]]:
    """The nodes of each kernel."""
    regions = (node for node in graph.nodes if node.op.kind is Kind.REGION)
    return {node.name: now((n.name for n in node.graph("body").nodes), renamed) for node in regions}


def _returned(a: Graph, b: Graph, renamed: Renames) -> Iterator[Change]:
    def shown(graph: Graph, names: Renames) -> str:
        marked: dict[Value, Arg] = {
            v: Value((now((v.name,), names) or (v.name,))[0], v.type) for v in graph.returned
        }
        outputs = (show_arg(map_values(arg, marked)) for arg in graph.outputs)
        updates = (
            f"{show_arg(target)} <- {show_arg(map_values(value, marked))}"
            for target, value in graph.updates
        )
        return ", ".join((*outputs, *updates))

    before, after = shown(a, renamed), shown(b, {})
    if before != after:
        yield Change("changed", "value", "return", (), before, after, (("value", before, after),))


# --- graphs that have no past in common ---------------------------------------------------------


def _aligned(a: Graph, b: Graph) -> dict[str, tuple[str, ...]]:
    """Names of `a`, and those of nodes of `b` that do the same in the same order."""
    first, second = _nodes(a, {}), _nodes(b, {})
    one, other = ([_signature(fact) for fact in facts.values()] for facts in (first, second))
    names = list(first), list(second)
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    found: dict[str, tuple[str, ...]] = {}
    for i, j, size in matcher.get_matching_blocks():
        same = zip(names[0][i : i + size], names[1][j : j + size], strict=True)
        found |= {old: (new,) for old, new in same}
    inputs = zip(a.inputs, b.inputs, strict=False)
    return found | {x.value.name: (y.value.name,) for x, y in inputs}


def _signature(fact: _Fact) -> tuple[tuple[str, str], ...]:
    return tuple(part for part in fact.parts if part[0] in ("operator", "type", "attributes"))
