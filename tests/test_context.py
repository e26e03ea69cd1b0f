"""Calls in programs: how far back what they read was touched, and what was learned from that."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rewright.costmodel import Roofline, graph_estimate, total
from rewright.costmodel.context import CONTEXT, Surroundings, context_rows
from rewright.costmodel.context_training import TimedProgram, train_surroundings
from rewright.costmodel.forest import Forest
from rewright.costmodel.learned import Learned
from rewright.costmodel.reuse import Reuse, far_values, walk
from rewright.ir import Graph, is_call
from rewright.ir.parse import parse
from rewright.ir.target import Target

TARGET = Target.parse("cpu:avx2")
KIB = 1024

# x 4 KiB, w 16 KiB, h 4 KiB, y 4 KiB
STEP = parse("""
graph step(%x: f32[16, 64], %w: f32[64, 64]) {
  %v = aten.t.default(%w) : f32[64, 64] strides [1, 64]
  %h = aten.mm.default(%x, %v) : f32[16, 64]
  %y = aten.relu.default(%h) : f32[16, 64]
  %z = aten.add.Tensor(%y, %x) : f32[16, 64]
  return %z
}
""")


def distances(call: Reuse) -> dict[str, int]:
    return {value.name: distance for value, _, distance in call.read}


def test_distances_are_bytes_touched_since() -> None:
    product, relu, add = walk(STEP).calls
    # The product is the first to read x and w; the run before ended with relu's 8 and add's 12 KiB.
    assert distances(product) == {"x": 0, "v": 20 * KIB}
    assert distances(relu) == {"h": 0}
    assert distances(add) == {"y": 0, "x": 8 * KIB}
    # relu read h, and 12 KiB were touched after it.
    assert product.written == ((4 * KIB, 12 * KIB),)
    assert (add.written, add.returned) == ((), 4 * KIB)


def test_a_run_is_its_calls_and_the_views_of_inputs_that_it_makes() -> None:
    run = walk(STEP)
    assert (run.moved, run.views) == ((24 + 8 + 12) * KIB, 1)
    assert [call.since for call in run.calls] == [3, 3, 3]


def test_far_is_what_no_cache_holds_until_it_is_read() -> None:
    caches = (dataclasses.replace(TARGET.caches[0], nbytes=32 * KIB),)
    assert {v.name for v in far_values(walk(STEP), dataclasses.replace(TARGET, caches=caches))} == {
        "v"
    }
    assert not far_values(walk(STEP), TARGET)


def learned(surroundings: Surroundings | None) -> Learned:
    """No head: calls alone are left to the roofline."""
    return Learned(TARGET, {}, None, "a test", surroundings=surroundings)


def test_a_program_takes_its_calls_in_it_and_what_a_run_costs_besides() -> None:
    twice = Surroundings(Forest.constant(float(np.log(2.0))), start=3.0, view=0.5)
    alone = total(Roofline(TARGET).estimate([n for n in STEP.nodes if is_call(n)]))
    found = graph_estimate(learned(twice), STEP)
    assert found.seconds == pytest.approx(2 * alone.seconds + 3.5 * TARGET.dispatch_seconds)
    assert found.low / found.seconds == pytest.approx(alone.low / alone.seconds)
    assert found.because[1].endswith("if each ran alone")
    assert graph_estimate(learned(None), STEP).seconds == pytest.approx(alone.seconds)


def test_nothing_takes_no_time() -> None:
    nothing = parse("graph nothing(%x: f32[4]) {\n  return %x\n}")
    assert (
        graph_estimate(learned(Surroundings(Forest.constant(1.0), 1.0, 1.0)), nothing).seconds == 0
    )


# --- training -----------------------------------------------------------------------------------


def products(count: int, width: int) -> Graph:
    """Products of one input by as many weights."""
    weights = ", ".join(f"%w{i}: f32[{width}, {width}]" for i in range(count))
    lines = "\n".join(
        f"  %h{i + 1} = aten.mm.default(%h{i}, %w{i}) : f32[8, {width}]" for i in range(count)
    )
    return parse(f"graph g(%h0: f32[8, {width}], {weights}) {{\n{lines}\n  return %h{count}\n}}")


def timed(count: int, width: int) -> TimedProgram:
    """A machine on which what leaves the first cache takes three times as long."""
    run = walk(products(count, width))
    alone = np.full(count, 1e-4)
    far = context_rows(run, alone.tolist(), TARGET)[:, CONTEXT.index("distance_per_first_cache")]
    within = np.where(far > 0, 3e-4, 1e-4)
    besides = (2.0 + 0.5 * run.views) * TARGET.dispatch_seconds
    return TimedProgram(run, alone, within, besides, TARGET, f"{count}/{width}")


def test_what_leaves_a_cache_is_learned() -> None:
    sizes = [(count, width) for count in range(2, 24, 3) for width in range(64, 640, 64)]
    learned = train_surroundings([timed(*size) for size in sizes])
    for held in (timed(12, 288), timed(12, 544)):
        found = learned.seconds(held.found, held.alone.tolist(), TARGET)
        assert found == pytest.approx(held.within, rel=0.1)
        assert learned.besides(held.found, TARGET) == pytest.approx(held.besides)
