"""Which units go together: groups grown while it is legal and saves time."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from typing import TYPE_CHECKING, Final

from rewright.costmodel import Draft, Sketcher
from rewright.ir import Graph, Node, Value, hint, lasts
from rewright.passes.base import Env
from rewright.passes.fuse.groups import Groups
from rewright.passes.fuse.legality import Domain, domain_of, obstacle
from rewright.passes.fuse.make import Maker
from rewright.passes.fuse.units import Units, sources_of

if TYPE_CHECKING:
    from rewright.ir.target import Target

Join = tuple[int, int]

# Kernels this many places apart in the schedule still run at about the same time.
NEIGHBOURHOOD: Final = 32


class Start:
    """What all plans of a graph start from: its units, each alone.

    `domains` and `drafts` are of those that may be in kernels, `refusals` why others may not.
    """

    def __init__(self, graph: Graph, target: Target) -> None:
        self.units = Units.of(graph)
        self.sources = sources_of(graph, self.units)
        self.maker = Maker(graph, self.units)
        self.sketcher = Sketcher(self.units.roots.__getitem__)
        self.domains: dict[int, Domain] = {}
        self.drafts: dict[int, Draft] = {}
        self.refusals: list[tuple[str, str]] = []
        for i, node in enumerate(self.units.nodes):
            why = obstacle(node, target)
            if why is None:
                self.domains[i] = domain_of(node)
                self.drafts[i] = self.sketcher.draft([node], self.maker.leaving([i]))
            elif not lasts(node):  # for which nothing runs
                self.refusals.append((node.name, why))


class FusionPlan:
    """A partition of a graph's units, as it grows.

    `domains` holds the groups that become kernels; `joins` for each the pairs of units by which it
    grew, in order.
    """

    def __init__(self, start: Start, env: Env, max_ops: int, max_reads: int) -> None:
        self.env, self.max_ops, self.max_reads = env, max_ops, max_reads
        self.units, self.maker, self._sketcher = start.units, start.maker, start.sketcher
        self.groups = Groups(start.sources)
        self.domains = dict(start.domains)
        self._drafts = dict(start.drafts)
        self.joins: dict[int, list[Join]] = {i: [] for i in self.domains}
        for name, why in start.refusals:
            env.log.refuse("fuse", name, why)

    @property
    def key(self) -> Hashable:
        """Equal for plans of one start that come to the same."""
        members = self.groups.members
        return frozenset((tuple(members[g]), tuple(self.joins[g])) for g in self.domains)

    # --- growing ----------------------------------------------------------------------------

    def grow_vertically(self) -> None:
        """Join each unit with the groups that make what it reads, most bytes first."""
        for i, node in enumerate(self.units.nodes):
            if i not in self.domains:
                continue
            read = dict.fromkeys(self.units.roots[value] for value in node.operands)
            made = [value for value in read if value in self.units.number]
            for value in sorted(made, key=lambda v: (-v.tensor.nbytes_hint, v.name)):
                self._try(self.units.number[value], i, value)

    def grow_inwards(self) -> None:
        """Move groups into the only one that reads them, though that runs over another space: what
        is small is computed wherever it is broadcast to, what is joined in its place."""
        for i in reversed(range(len(self.units.nodes))):
            group = self.groups.group_of[i]
            if group not in self.domains or self.groups.members[group][-1] != i:
                continue
            reader = self._only_reader(group)
            if reader is not None and self.domains[group].rows is None:
                self._try_inside(group, reader)

    def grow_horizontally(self) -> None:
        """Join groups that read the same value and run at about the same time."""
        for value, readers in self.units.readers.items():
            for first, second in itertools.pairwise(readers):
                a, b = (self.groups.group_of[unit] for unit in (first, second))
                near = self.groups.distance(a, b) <= NEIGHBOURHOOD
                if near and not (self.max_reads and self._holds_more(a, b, value)):
                    self._try(first, second, value)

    def _try(self, first: int, second: int, value: Value) -> None:
        """Join the groups of two units that share `value`, if they may and should."""
        a, b = self.groups.group_of[first], self.groups.group_of[second]
        if a == b or a not in self.domains or b not in self.domains:
            return
        subject, log = self.units.nodes[second].name, self.env.log
        domain = self.domains[a].join(self.domains[b])
        if domain is None:
            differ = self.domains[a].difference(self.domains[b])
            log.refuse("fuse", subject, f"stays apart from %{value.name}: {differ}")
        elif (why := self._obstacle(a, b)) is not None:
            log.refuse("fuse", subject, f"stays apart from %{value.name}: {why}")
        elif self._saved(a, b, joined := self._joined(a, b)) <= 0:
            log.refuse("fuse", subject, f"no gain in joining %{value.name}")
        else:
            self._merge(a, b, domain, (first, second), joined)
            size = _bytes(value.tensor.nbytes_hint)
            log.decide("fuse", subject, f"joins %{value.name}, saving a read of {size}")

    def _try_inside(self, group: int, reader: int) -> None:
        """Move a group, all of it, to where a unit of the only group that reads it reads it."""
        into, values = self.groups.group_of[reader], self.maker.leaving(self.groups.members[group])
        unit = self.groups.members[group][-1]
        if self.domains[group].join(self.domains[into]) is not None:
            self._try(unit, reader, values[-1])
            return
        subject, place, log = (
            self.units.nodes[unit].name,
            self.units.nodes[reader].name,
            self.env.log,
        )
        size = sum(v.tensor.nbytes_hint for v in values)
        times = hint(self.domains[into].elements) / max(1, hint(self.domains[group].elements))
        if (why := self._obstacle(group, into)) is not None:
            log.refuse("fuse", subject, f"does not run inside %{place}: {why}")
        elif self._saved(group, into, joined := self._joined(group, into)) <= 0:
            why = f"it would be computed {times:.0f} times"
            log.refuse("fuse", subject, f"does not run inside %{place}: {why}")
        else:
            self._merge(group, into, self.domains[into], (unit, reader), joined)
            log.decide(
                "fuse", subject, f"runs inside %{place}, and {_bytes(size)} stay in registers"
            )

    def _merge(self, a: int, b: int, domain: Domain, join: Join, joined: Draft) -> None:
        joins = [*self.joins.pop(a), *self.joins.pop(b), join]
        del self.domains[a], self.domains[b], self._drafts[a], self._drafts[b]
        group = self.groups.merge(a, b)
        self.domains[group], self.joins[group], self._drafts[group] = domain, joins, joined

    # --- should they --------------------------------------------------------------------------

    def _joined(self, a: int, b: int) -> Draft:
        """One kernel of both groups."""

        def leaves(number: int) -> bool:
            value = self._sketcher.values[number]
            readers = self.units.readers.get(value, ())
            others = any(self.groups.group_of[unit] not in (a, b) for unit in readers)
            return others or value in self.units.leaving

        return self._drafts[a].joined(self._drafts[b], leaves)

    def _saved(self, a: int, b: int, joined: Draft) -> float:
        """Seconds saved by running both groups in one kernel."""
        apart = [self._drafts[group].sketch() for group in (a, b)]
        gain = self.env.cost.gain(apart, joined.sketch(), lambda: self._kernels(a, b))
        return gain.seconds

    def _kernels(self, a: int, b: int) -> list[Node] | None:
        """The kernels of both groups, then the one that they would become; None when one of them
        cannot be made."""
        parts = [self.groups.members[group] for group in (a, b)]
        made = [self.maker.region(units) for units in (*parts, sorted(itertools.chain(*parts)))]
        kernels = [region for region in made if isinstance(region, Node)]
        return kernels if len(kernels) == len(made) else None

    # --- may two groups be one ----------------------------------------------------------------

    def _obstacle(self, a: int, b: int) -> str | None:
        if len(self.groups.members[a]) + len(self.groups.members[b]) > self.max_ops:
            return f"more than {self.max_ops} nodes in one kernel (see fuse{{max-ops}})"
        if self._device(a) != self._device(b):
            return f"they run on {self._device(a)} and {self._device(b)}"
        if self.max_reads and self._reads(a, b) > self.max_reads:
            return f"one kernel would wait for over {self.max_reads} others (see fuse{{max-reads}})"
        between = self.groups.between(a, b)
        if between is None:
            return None
        return f"%{self.units.nodes[between].name} must run between them"

    def _reads(self, a: int, b: int) -> int:
        """How many values of others one kernel of both groups would need at the same time."""
        joined = {*self.groups.members[a], *self.groups.members[b]}
        read = {self.units.roots[value] for i in joined for value in self.units.nodes[i].operands}
        made = (self.units.number[value] for value in read if value in self.units.number)
        return sum(unit not in joined for unit in made)

    def _holds_more(self, a: int, b: int, value: Value) -> bool:
        """True when what two groups that read a value make, which would be there at the same time,
        is larger than the value that one kernel would read once."""
        made = sum(
            v.tensor.nbytes_hint
            for group in (a, b)
            for v in self.maker.leaving(self.groups.members[group])
        )
        return made > 2 * value.tensor.nbytes_hint

    def _device(self, group: int) -> object:
        return self.units.nodes[self.groups.members[group][0]].results[0].tensor.device

    def _only_reader(self, group: int) -> int | None:
        """A unit of the one group, of those that become kernels, that reads what leaves a group."""
        readers: dict[int, int] = {}
        for value in self.maker.leaving(self.groups.members[group]):
            if value in self.units.leaving:
                return None
            for unit in self.units.readers[value]:
                readers.setdefault(self.groups.group_of[unit], unit)
        readers.pop(group, None)
        (into, unit), *others = readers.items() or [(-1, -1)]
        return unit if not others and into in self.domains else None


def _bytes(size: int) -> str:
    for unit, step in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size} B"
