"""Timing calls on a machine that is not quiet: in turn with a fixed anchor, batch by batch.

Every round times each call of a batch and the anchors once; a call's figure is what it takes when
little disturbs, over what its anchor takes then, times what the anchor takes on a quiet machine.
What slows the machine down for a while slows both down.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import torch

from rewright.calibrate.chain import chain, cold_bytes
from rewright.calibrate.corpus import Call
from rewright.calibrate.host import VERSION, fingerprint
from rewright.calibrate.programs import executables
from rewright.codegen import Executable
from rewright.costmodel import Roofline
from rewright.costmodel.timings import Timings
from rewright.ir import Graph, Kind, Node
from rewright.ir.cache import default_cache, digest
from rewright.ir.parse import parse
from rewright.ir.target import Target
from rewright.passes import Env
from rewright.quiet import without_collection
from rewright.sources import random_inputs

# A sample lasts at least this long, over as many calls as it takes; a program has at most so many.
SAMPLE_SECONDS: Final = 1.2e-3
MOST_COPIES: Final = 128
LEAST_COPIES: Final = 3
# What calls read in turn, so that the last cache holds none of it.
COLD_CACHES: Final = 2
LEAST_COLD: Final = 1 << 18
MOST_COLD_COPIES: Final = 256

ROUNDS: Final = 12
MOST_ROUNDS: Final = 24
# How the anchors' pace is found: bursts of samples, seconds apart.
BURSTS, BURST, BETWEEN_BURSTS = 40, 12, 0.05
# Rounds go on until the interval is this narrow, or until a call, after the first
# `FEW_ROUNDS`, has taken so many seconds.
CONFIDENT: Final = 0.02
FEW_ROUNDS: Final = 5
PATIENCE: Final = 0.4


@dataclass(frozen=True)
class Sample:
    """What a call takes: seconds at the anchor's usual pace and a 90 % interval, its anchor's name
    and seconds meanwhile, the number of rounds."""

    seconds: float
    low: float
    high: float
    anchor: str
    anchor_seconds: float
    rounds: int


@dataclass
class Repeated:
    """A program of `copies` of one call, run `times` times a sample."""

    run: Callable[[], object]
    copies: int = 1
    times: int = 1

    def sample(self) -> float:
        """Seconds of one call."""
        started = time.perf_counter()
        for _ in range(self.times):
            self.run()
        return (time.perf_counter() - started) / (self.times * self.copies)

    def warm_up(self) -> None:
        """Run until everything is in place, and choose how many times make a sample."""
        for _ in range(4):
            seconds = self.sample() * self.copies
            if seconds > PATIENCE / ROUNDS:
                break
        self.times = max(1, round(SAMPLE_SECONDS / max(seconds, 1e-6)))


def repeated(program: Executable, copies: int = 1) -> Repeated:
    """A program on random inputs."""
    inputs: list[Any] = random_inputs(program.graph)
    return Repeated(lambda: program(list(inputs)), copies)


@dataclass
class Ready:
    """A call, built, and the anchor that it is timed with."""

    call: Call
    timed: Repeated
    anchor: str


class Bench:
    """Measures calls on this machine. `pace` is what each anchor takes when nothing disturbs."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.env = Env(cost=Roofline(target), target=target)
        built = self._build([Call(parse(text), ()) for text in ANCHORS.values()])
        self.anchors = {name: each.timed for name, each in zip(ANCHORS, built, strict=True)}
        for anchor in self.anchors.values():
            anchor.warm_up()
        self.pace = self._usual_pace()

    def _usual_pace(self) -> dict[str, float]:
        """Measured once for a machine, then remembered: what is timed at different times must be
        comparable, and a machine may be slower for minutes."""
        name = digest("pace", VERSION, *ANCHORS.values(), *fingerprint(torch.get_num_threads()))
        record = default_cache().read(f"{name}.pace")
        if record is not None:
            return {str(anchor): float(pace) for anchor, pace in json.loads(record).items()}
        measured = {name: self._pace(anchor) for name, anchor in self.anchors.items()}
        with suppress(OSError):  # measured anew by the next process
            default_cache().write(f"{name}.pace", json.dumps(measured).encode())
        return measured

    def _pace(self, anchor: Repeated) -> float:
        """What an anchor takes when nothing disturbs: a disturbance may last for a second."""
        quiet = []
        for _ in range(BURSTS):
            with undisturbed():
                quiet.append(Timings(tuple((anchor.sample(),) for _ in range(BURST))).quiet(0))
            time.sleep(BETWEEN_BURSTS)
        return min(quiet)

    def slowness(self) -> dict[str, float]:
        """How many times as long as when nothing disturbs each anchor takes now."""
        return {name: anchor.sample() / self.pace[name] for name, anchor in self.anchors.items()}

    def measure(self, calls: Sequence[Call]) -> Iterator[tuple[Call, Sample | Exception]]:
        """A sample of each call, or what kept it from running; give it a few dozen at once."""
        ready: list[Ready] = []
        for each in self._built(calls):
            if not isinstance(each, Ready):
                yield each
                continue
            try:
                each.timed.warm_up()
            except Exception as error:  # a kernel of ours or ATen's refuses these inputs
                yield each.call, error
            else:
                ready.append(each)
        rounds = self._rounds(ready)
        for place, each in enumerate(ready):
            yield each.call, self._sample(each, place, rounds)

    def _built(self, calls: Sequence[Call]) -> Iterator[Ready | tuple[Call, Exception]]:
        """All in one library; one by one when that cannot be built."""
        try:
            yield from self._build(calls)
        except Exception as error:
            if len(calls) == 1:
                yield calls[0], error
                return
            for call in calls:
                yield from self._built([call])

    def _rounds(self, ready: Sequence[Ready]) -> list[dict[int | str, float]]:
        """What each took in every round, by place, and the anchors by name; what has settled is
        left out of later rounds."""
        draw = Random(0)
        found: list[dict[int | str, float]] = []
        open_places = list(range(len(ready)))
        with undisturbed():
            while open_places and len(found) < MOST_ROUNDS:
                turns: list[int | str] = [*open_places, *self.anchors]
                draw.shuffle(turns)
                found.append({turn: self._timed(turn, ready).sample() for turn in turns})
                open_places = [p for p in open_places if not _enough(found, p, ready[p])]
        return found

    def _timed(self, turn: int | str, ready: Sequence[Ready]) -> Repeated:
        return self.anchors[turn] if isinstance(turn, str) else ready[turn].timed

    def _sample(self, each: Ready, place: int, rounds: Sequence[dict[int | str, float]]) -> Sample:
        timings = _timings(rounds, place, each.anchor)
        low, high = timings.quiet_interval(0, 1)
        pace = self.pace[each.anchor]
        return Sample(
            timings.quiet_ratio(0, 1) * pace,
            low * pace,
            high * pace,
            each.anchor,
            timings.quiet(1),
            len(timings.rounds),
        )

    def _build(self, calls: Sequence[Call]) -> list[Ready]:
        made = executables([self._chain(call) for call in calls], self.env)
        return [self._ready(call, program) for call, program in zip(calls, made, strict=True)]

    def _chain(self, call: Call) -> Graph:
        (estimate,) = self.env.cost.estimate(call.graph.nodes)
        copies = round(2 * SAMPLE_SECONDS / max(estimate.seconds, 1e-7))
        copies = min(max(copies, LEAST_COPIES), MOST_COPIES)
        if call.cold and estimate.seconds * LEAST_COPIES < PATIENCE / ROUNDS:
            cache = max((c.nbytes for c in self.target.caches), default=1 << 25)
            sets = -(-COLD_CACHES * cache // cold_bytes(call.graph, call.cold))
            copies = min(max(copies, sets, LEAST_COPIES), MOST_COLD_COPIES)
        return chain(call.graph, copies, call.cold)

    def _ready(self, call: Call, program: Executable) -> Ready:
        (node,) = call.graph.nodes
        copies = sum(n.op == node.op for n in program.graph.nodes)
        return Ready(call, repeated(program, copies), anchor_of(node))


def measurable_cold(call: Call) -> bool:
    """True when a call's cold inputs are large enough to be kept out of every cache."""
    return cold_bytes(call.graph, call.cold) >= LEAST_COLD


# One of each kind, both in the second cache of any machine.
ANCHORS: Final = {
    "stream": """
graph call(%a0: f32[96, 256], %a1: f32[96, 256]) {
  %r0 = rw.fused(%a0, %a1) body(%a0: f32[96, 256], %a1: f32[96, 256]) {
    %r0 = aten.mul.Tensor(%a0, %a1) : f32[96, 256]
    %r1 = aten.add.Tensor(%r0, %a0) : f32[96, 256]
    return %r1
  } : f32[96, 256]
  return %r0
}
""",
    "product": """
graph call(%a0: f32[128, 192], %a1: f32[192, 160]) {
  %r0 = aten.mm.default(%a0, %a1) : f32[128, 160]
  return %r0
}
""",
}


def anchor_of(node: Node) -> str:
    """Which anchor a call is slowed down with."""
    return "product" if node.op.kind is Kind.CONTRACTION else "stream"


def _timings(rounds: Sequence[dict[int | str, float]], place: int, anchor: str) -> Timings:
    """One call against its anchor."""
    return Timings(tuple((r[place], r[anchor]) for r in rounds if place in r))


def _enough(rounds: Sequence[dict[int | str, float]], place: int, each: Ready) -> bool:
    """True when more rounds of a call would tell little, or take too long."""
    timings = _timings(rounds, place, each.anchor)
    spent = sum(r[0] for r in timings.rounds) * each.timed.times * each.timed.copies
    if len(rounds) < FEW_ROUNDS or (len(rounds) < ROUNDS and spent < PATIENCE):
        return False
    low, high = timings.quiet_interval(0, 1)
    return high - low < 2 * CONFIDENT * low or spent > PATIENCE


@contextmanager
def undisturbed() -> Iterator[None]:
    """Nothing is collected and nothing recorded for a backward while calls are timed."""
    gc.collect()
    with without_collection(), torch.no_grad():
        yield
