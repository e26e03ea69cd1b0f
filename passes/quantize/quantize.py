"""The pass that quantizes linear layers as far as the error budget goes."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from rewright.costmodel import show_bytes, show_seconds
from rewright.ir import Graph, Node, OptionError, Size, Value, evaluate, hint, symbols_of
from rewright.ir.alone import Resize, alone, resized
from rewright.ir.interpret import interpret
from rewright.ir.onednn import is_available
from rewright.passes.base import Env, Pass
from rewright.passes.budget import FLOAT, Bid, ErrorBudget, Plan, Settled, settle
from rewright.passes.emitter import Emitter
from rewright.passes.libraries.freeze import split_frozen
from rewright.passes.libraries.products import PLACES, contestants, product_of
from rewright.passes.quantize.formats import FORMAT_OF, FORMATS, LINEAR, Format
from rewright.passes.quantize.heads import Heads, HeadsSite, heads_sites, is_head
from rewright.passes.quantize.sensitivity import Probed, Sensitivity, floats_of, sensitivity
from rewright.passes.quantize.sites import (
    LEAST_WEIGHTS,
    EmbeddingSite,
    LinearSite,
    Site,
    in_formats,
    names_beside,
    shares,
    sites,
    small_layers,
    times,
)
from rewright.passes.quantize.weights import Weights

# Of the calibration samples, what is held out to verify on: a third, and one where there are two.
HELD_OUT: Final = 3
# Samples that sensitivities are taken on, which need not be exact: measuring corrects them.
MOST_SEEN: Final = 1
# Rows of a sample that a layer is tried on in each format.
MOST_ROWS: Final = 128


@dataclass(frozen=True)
class Quantize(Pass, name="quantize", takes="aten", gives="aten"):
    """Compute linear layers from quantized weights, in the formats that together are quickest (or
    smallest) within the error budget, as measured on held-out samples.

    before:
        graph f(%x: f32[2, 64], %w: f32[64, 64] param) {
          %y = aten.mm.default(%x, %w) : f32[2, 64]
          return %y
        }
    after:
        graph f(%x: f32[2, 64], %w: f32[64, 64] param) {
          %y = aten.mm.default(%x, %w) : f32[2, 64]
          return %y
        }

    Without an error budget nothing changes. Weights are quantized once, and again when a parameter
    is found to have changed. Where sizes are dynamic, quickest is what is so at the sizes seen and
    at the smallest together.

    Refuses: layers whose weight is no parameter; formats that are slower; what would take more
    error than there is.
    """

    objective: str = "time"
    formats: str = ""
    windows: str = "yes"

    def run(self, graph: Graph, env: Env) -> Graph:
        if self.objective not in ("time", "bytes"):
            raise OptionError(
                f"objective is 'time' or 'bytes', not '{self.objective}'", who="quantize"
            )
        if env.error is None or env.error.limit == 0:
            return graph
        formats, heads = self._formats(), list[HeadsSite]()
        found = sites(graph) if formats else []
        for name in small_layers(graph) if formats else ():
            env.log.refuse(self.name, name, f"stays float: it has under {LEAST_WEIGHTS} weights")
        if self.windows == "yes" and self.objective == "time":
            heads = heads_sites(graph)
        if not found and not heads:
            env.log.refuse(self.name, graph.name, f"nothing to spend {env.error} on: {NOTHING}")
            return graph
        search = _Search(graph, found, heads, formats, env.error, self.objective, env)
        settled = search.settled()
        env.log.decide(self.name, graph.name, _certificate(settled, env.error))
        for site, bid in settled.plan.items():
            env.log.decide(self.name, site, _sentence(bid, settled))
        if not settled.changed:
            return graph
        return self.gave(split_frozen(search.applied(settled.plan)), {})

    def _formats(self) -> tuple[Format, ...]:
        if self.formats in ("", "none"):
            return () if self.formats else FORMATS
        names = self.formats.split("+")
        unknown = [name for name in names if name not in FORMAT_OF]
        if unknown:
            known = ", ".join((*FORMAT_OF, "none"))
            raise OptionError(f"no format '{unknown[0]}'; there are {known}", who="quantize")
        return tuple(FORMAT_OF[name] for name in names)


NOTHING: Final = (
    "there is no linear layer or embedding whose weight is a parameter, and no attention over long "
    "sequences"
)


class _Search:
    """One graph's sites, what may become of them, and measuring it."""

    def __init__(
        self,
        graph: Graph,
        found: Sequence[Site],
        heads: Sequence[HeadsSite],
        formats: Sequence[Format],
        budget: ErrorBudget,
        objective: str,
        env: Env,
    ) -> None:
        self._graph, self._env = graph, env
        self._sites = {site.node.name: site for site in found}
        self._heads_sites, self._heads = heads, Heads(heads, env)
        self._formats, self._budget, self._objective = formats, budget, objective
        self._seen, self._held = parted(env.samples)
        self._shares = shares(self._sites)
        self._weights = Weights(graph, self._sites, self._seen)
        self._exact: list[list[Tensor]] = []
        self._seconds: dict[tuple[object, ...], Mapping[str, float]] = {}
        self._often = self._how_often()

    def settled(self) -> Settled:
        self._exact = [floats_of(interpret(self._graph, sample)) for sample in self._held]
        return settle(self._bids(), self._budget, self._objective, self._measured)

    def applied(self, plan: Plan) -> Graph:
        """The graph with the formats and windows of a plan."""
        made: dict[object, tuple[Value, ...]] = {}
        weights = self._weights

        def packed(site: Site, format: Format, emit: Emitter) -> tuple[Value, ...]:
            key = site.key(format)
            if key not in made:
                moved, factors = (of(site, format) for of in (weights.moved, weights.factors))
                made[key] = site.packed(format, emit, moved, factors)
            return made[key]

        fresh = names_beside(self._graph)
        nodes = in_formats(self._graph, self._sites, plan, fresh, packed, weights.factors)
        narrowed = self._heads.applied(plan, fresh)
        return self._graph.with_nodes(
            [n for node in nodes for n in narrowed.get(node.name, [node])]
        )

    # --- bids -----------------------------------------------------------------------------------

    def _bids(self) -> dict[str, list[Bid]]:
        """What each format and window would take and add, from gradients on a few samples."""
        probed: list[Probed] = [*self._sites.values(), *self._heads_sites]
        found = [
            sensitivity(self._graph, probed, sample, self._budget, self._env.seed)
            for sample in self._seen[:MOST_SEEN]
        ]
        self._weights.balance(found[0].read)
        bids = {
            name: [self._float(site), *self._offers(site, found)]
            for name, site in self._sites.items()
        }
        return bids | self._heads.bids(found)

    def _float(self, site: Site) -> Bid:
        nbytes = hint(site.rows.tensor.nbytes) // self._shares[site.node.name]
        return Bid(site.node.name, FLOAT, 0.0, self._times(site)[FLOAT], nbytes)

    def _offers(self, site: Site, found: Sequence[Sensitivity]) -> list[Bid]:
        bids = []
        name, seconds = site.node.name, self._times(site)
        for format in self._formats_of(site):
            error = sum(self._error(site, format, of) for of in found) / len(found)
            nbytes = format.nbytes(*site.shape) // self._shares[name]
            if error == error and error < float("inf"):
                cost = seconds[format.kernel] + self._seconds_to_balance(site, format)
                bids.append(Bid(name, format.name, error, cost, nbytes))
        # Of those that cost the same the first is taken.
        return sorted(bids, key=lambda bid: bid.error)

    def _error(self, site: Site, format: Format, of: Sensitivity) -> float:
        (read,) = of.read[site.node.name]
        step = -(-len(read) // MOST_ROWS) if isinstance(site, LinearSite) else 1
        off = self._weights.change(site, format, read[::step].contiguous())
        return of.error(site.node.name, off, slice(None, None, step), step)

    def _formats_of(self, site: Site) -> list[Format]:
        """Balanced ones only where there is anything to balance."""
        return [
            f
            for f in self._formats
            if site.admits(f) and (not f.balanced or self._weights.factors(site, f) is not None)
        ]

    def _times(self, site: Site) -> Mapping[str, float]:
        """Seconds in each format, measured or else expected: of one call of the sizes seen, and of
        as many of the smallest as take that long in float."""
        if isinstance(site, EmbeddingSite):  # a few rows of it: nothing to gain but bytes
            return defaultdict(float)
        seconds = self._timed(site, hint)
        if not self._often:
            return seconds
        least = self._timed(site, least_size)
        return {name: s + self._often * least[name] for name, s in seconds.items()}

    def _how_often(self) -> float:
        """Calls of the smallest sizes that take as long as one of the sizes seen; 0 where sizes are
        fixed, or time is of no interest."""
        found = [site for site in self._sites.values() if isinstance(site, LinearSite)]
        if self._objective != "time" or not symbols_of(
            n for s in found for n in s.read.tensor.shape
        ):
            return 0.0
        seen, least = (
            sum(self._timed(site, sizes)[FLOAT] for site in found) for sizes in (hint, least_size)
        )
        return seen / least

    def _timed(self, site: Site, sizes: Resize) -> Mapping[str, float]:
        """Seconds at some sizes, of which those of layers that look alike are the same."""
        reads = (v.tensor for v in (site.read, site.weight))
        key = sizes, site.shape, isinstance(site, LinearSite) and site.bias is None, *reads
        if key not in self._seconds:
            self._seconds[key] = self._raced(site, sizes)
        return self._seconds[key]

    def _raced(self, site: Site, sizes: Resize) -> Mapping[str, float]:
        graphs, beside = [_contestants(resized(site.node, sizes))], [0.0]
        formats = [FORMAT_OF[k] for k in {f.kernel: 0 for f in self._formats if site.admits(f)}]
        for format in formats:
            emit = Emitter(names_beside(self._graph), site.node)
            nodes = site.on(site.read, site.packed(format, emit), format, emit)
            product = next(n for n in reversed(nodes) if n.op.name in (LINEAR, *PLACES))
            graphs.append(_contestants(resized(product, sizes)))
            beside.append(self._seconds_of(nodes[nodes.index(product) + 1 :], sizes))
        flat = [graph for each in graphs for graph in each]
        tools = self._env.tools
        found = None if tools is None else tools.race(flat)
        if found is None:
            found = [e.seconds for e in self._env.cost.estimate([g.nodes[0] for g in flat])]
        rest = iter(found)
        least = [min(itertools.islice(rest, len(each))) for each in graphs]
        names = (FLOAT, *(format.name for format in formats))
        return {n: a + b for n, a, b in zip(names, least, beside, strict=True)}

    def _seconds_to_balance(self, site: Site, format: Format) -> float:
        """Of dividing what is read, for a site's part, as if nothing was fused with it."""
        factors = self._weights.factors(site, format)
        if factors is None:
            return 0.0
        emit = Emitter(names_beside(self._graph), site.node)
        times(site.read, factors, emit)
        sharing = sum(site.read in other.node.operands for other in self._sites.values())
        seconds = self._seconds_of(emit.nodes[-1:], hint)
        if self._often:
            seconds += self._often * self._seconds_of(emit.nodes[-1:], least_size)
        return seconds / sharing

    def _seconds_of(self, nodes: Sequence[Node], sizes: Resize) -> float:
        """Of what is done besides a product: conversions, a bias."""
        calls = [alone(resized(node, sizes)).nodes[0] for node in nodes]
        return sum(e.seconds for e in self._env.cost.estimate(calls)) if calls else 0.0

    # --- measuring ------------------------------------------------------------------------------

    def _measured(self, plan: Plan) -> float:
        """The error of a plan on the samples that were held out: the largest of all."""
        instead = self._heads.instead(plan)
        found = [floats_of(x) for x in self._weights.measured(plan, self._held, instead)]
        errors = (self._budget.error(a, b) for a, b in zip(self._exact, found, strict=True))
        return max(errors)


def least_size(size: Size) -> int:
    """The least that a size may be, of those that are not empty."""
    if isinstance(size, int):
        return size
    return evaluate(size, {symbol.name: max(1, symbol.low) for symbol in size.symbols})


def _contestants(node: Node) -> list[Graph]:
    """The calls that a layer of known sizes may become: torch's, and oneDNN's."""
    product = product_of(node)
    if product is None or product.cut() != product or not is_available():
        return [alone(node)]
    return list(contestants(product))


def parted(samples: Sequence[Sequence[Any]]) -> tuple[list[Sequence[Any]], list[Sequence[Any]]]:
    """Samples to look at, and samples to verify on; the very same one when there is but one."""
    if not samples:
        raise OptionError(
            "an error budget needs samples of inputs to measure errors on",
            who="error_budget",
            help="give calibration=, a list of tuples of inputs",
        )
    held = max(1, len(samples) // HELD_OUT)
    seen = list(samples[:-held]) or list(samples)
    return seen, list(samples[-held:])


def _certificate(settled: Settled, budget: ErrorBudget) -> str:
    rounds = ", ".join(f"{found:.2g} (expected {told:.2g})" for told, found in settled.rounds)
    if not settled.changed:
        blocked = "".join(
            f"; %{site} alone would take {share:.0%} of it" for site, share in settled.blocking[:1]
        )
        return f"{budget}: all float, measured {rounds or 'nothing'}{blocked}"
    return (
        f"{budget}: {_counted(settled)}, {budget.metric} is {settled.measured:.3g} on held-out "
        f"samples, expected {settled.predicted:.3g}; measured {rounds}"
    )


def _counted(settled: Settled) -> str:
    heads = [site for site in settled.plan if is_head(site)]
    narrow = sum(site in settled.changed for site in heads)
    count = len(settled.plan) - len(heads)
    told = [f"{len(settled.changed) - narrow} of {count} layers are quantized"] if count else []
    told += [f"{narrow} of {len(heads)} heads look at windows"] if heads else []
    return ", ".join(told)


def _sentence(bid: Bid, settled: Settled) -> str:
    blocked = dict(settled.blocking).get(bid.site)
    why = f", since a cheaper format would take {blocked:.0%} of the budget" if blocked else ""
    share = bid.error / max(sum(b.error for b in settled.plan.values()), 1e-300)
    cost = f"{show_seconds(bid.seconds)}, {show_bytes(bid.nbytes)}"
    return f"{bid.choice}, {cost}, {share:.1%} of the error{why}"
