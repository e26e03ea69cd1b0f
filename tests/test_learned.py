"""The learned cost model: forests, gates and bounds on data whose truth is known, and the way from
a call to its estimate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewright.costmodel import Roofline, Sketch
from rewright.costmodel.features import FAMILIES, SHARED_PARTS, features
from rewright.costmodel.forest import Floats, Forest
from rewright.costmodel.gpu_features import GPU_FAMILIES, gpu_features
from rewright.costmodel.learned import Gate, Head, Learned
from rewright.costmodel.model_file import Model, read_model, write_model
from rewright.costmodel.nests import nest_facts
from rewright.costmodel.screening import Screen, Screening
from rewright.costmodel.sketch_features import (
    PAIR,
    SKETCH,
    pair_features,
    sketch_numbers,
    sketch_parts,
)
from rewright.costmodel.training import Rows, Shape, grow, train_head, weigh
from rewright.ir import Node, OptionError
from rewright.ir.loops import lower
from rewright.ir.native import native
from rewright.ir.parse import parse
from rewright.ir.target import Target

SMALL = Shape(trees=60, depth=4, rate=0.15)
TARGET = Target.parse("cpu:avx2")


# --- forests ------------------------------------------------------------------------------------


def walked(forest: Forest, row: list[float]) -> float:
    """The prediction, tree by tree and question by question."""
    total = 0
    for features_of, borders, leaves in zip(
        forest.features, forest.borders, forest.leaves, strict=True
    ):
        number = 0
        for level, (feature, border) in enumerate(zip(features_of, borders, strict=True)):
            number += (np.float32(row[feature]) > border) << level
        total += int(leaves[number])
    return forest.bias + forest.scale * total


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 6), st.integers(1, 300))
def test_a_forest_is_its_trees_walked(seed: int, trees: int, depth: int, count: int) -> None:
    draw = np.random.default_rng(seed)
    forest = Forest(
        draw.integers(0, 7, (trees, depth)).astype(np.uint8),
        draw.standard_normal((trees, depth)).astype(np.float32),
        draw.integers(-30_000, 30_000, (trees, 1 << depth)).astype(np.int16),
        0.001,
        -2.0,
    )
    rows = draw.standard_normal((count, 7))
    expected = [walked(forest, row) for row in rows.tolist()]
    np.testing.assert_allclose(forest.predict(rows), expected, rtol=1e-12)
    assert native("forest") is not None
    singles = rows.astype(np.float32)
    np.testing.assert_array_equal(forest._sums(singles), forest._sums_slowly(singles))


def test_a_grown_forest_predicts_as_the_library_that_grew_it() -> None:
    from catboost import CatBoostRegressor

    draw = np.random.default_rng(0)
    rows = draw.standard_normal((400, 5))
    targets = rows[:, 0] * rows[:, 1] + np.sin(rows[:, 2])
    model = CatBoostRegressor(
        iterations=SMALL.trees,
        depth=SMALL.depth,
        learning_rate=SMALL.rate,
        l2_leaf_reg=SMALL.l2,
        border_count=254,
        random_seed=0,
        allow_writing_files=False,
        verbose=False,
    ).fit(rows.astype(np.float32), targets)
    expected = model.predict(rows.astype(np.float32))
    np.testing.assert_allclose(grow(rows, targets, SMALL).predict(rows), expected, atol=1e-3)


# --- heads --------------------------------------------------------------------------------------


def invented(count: int, seed: int, noise: float = 0.05) -> Rows:
    """Calls whose time is a law of two features, in ten groups."""
    draw = np.random.default_rng(seed)
    numbers = draw.uniform(0, 1, (count, len(FAMILIES["product"])))
    logs = -9 + 2 * numbers[:, 2] + np.sin(5 * numbers[:, 3]) + noise * draw.standard_normal(count)
    return Rows(
        numbers,
        np.full((count, 1), 1e-5),
        np.exp(logs),
        [f"g{i % 10}" for i in range(count)],
        ["aten.mm.default"] * count,
    )


def predicted(head: Head, rows: Rows) -> Floats:
    """Seconds."""
    numbers = head.filled(rows.features, rows.parts, rows.operators)
    return head.predict(numbers, rows.parts)[0]


def test_weights_are_those_that_made_the_times() -> None:
    draw = np.random.default_rng(0)
    parts = draw.uniform(1e-6, 1e-4, (300, 3))
    seconds = parts @ np.array([2.0, 0.0, 0.5]) * np.exp(0.02 * draw.standard_normal(300))
    seconds[:5] *= 30  # which a plain fit would follow
    rows = Rows(np.zeros((300, 2)), parts, seconds, ["g"] * 300, [""] * 300)
    np.testing.assert_allclose(weigh(rows), [2.0, 0.0, 0.5], atol=0.05)


def test_a_head_learns_and_its_bounds_hold_as_often_as_they_say() -> None:
    head = train_head(invented(900, 0), SMALL).head
    held = invented(600, 1)
    numbers = head.filled(held.features, held.parts, held.operators)
    seconds, low, high = head.predict(numbers, held.parts)
    errors = np.abs(seconds / held.seconds - 1)
    assert np.median(errors) < 0.12
    inside = np.mean((low <= held.seconds) & (held.seconds <= high))
    assert 0.85 <= inside <= 0.96, inside
    assert head.gate.admits(numbers).mean() > 0.95


def test_nothing_is_learned_from_shuffled_labels() -> None:
    rows = invented(600, 0)
    shuffled = dataclasses.replace(rows, seconds=np.random.default_rng(5).permutation(rows.seconds))
    head = train_head(shuffled, SMALL).head
    held = invented(400, 1)
    seconds = predicted(head, held)
    logs, truth = np.log(seconds), np.log(held.seconds)
    assert abs(np.corrcoef(logs, truth)[0, 1]) < 0.2
    blind = np.median(np.abs(np.exp(np.median(np.log(rows.seconds)) - truth) - 1))
    assert np.median(np.abs(np.exp(logs - truth) - 1)) > 0.85 * blind


def test_a_permuted_feature_carries_nothing() -> None:
    """The law is in the features, not in the order of rows or in what else is stored."""
    rows = invented(600, 0)
    held = invented(400, 1)
    draw = np.random.default_rng(7)
    mixed = held.features.copy()
    mixed[:, 2:4] = draw.permutation(mixed[:, 2:4])
    head = train_head(rows, SMALL).head
    right, wrong = predicted(head, held), predicted(head, dataclasses.replace(held, features=mixed))
    truth = np.log(held.seconds)
    assert np.corrcoef(np.log(right), truth)[0, 1] > 0.95
    assert abs(np.corrcoef(np.log(wrong), truth)[0, 1]) < 0.2


def test_a_gate_admits_what_is_near_and_refuses_what_is_far() -> None:
    kept = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    gate = Gate(np.zeros(2), np.ones(2), kept, reach=0.2)
    rows = np.array([[0.05, 0.1], [1.0, 0.0], [0.0, 1.3], [0.9, 1.05]])
    assert gate.admits(rows).tolist() == [True, False, False, True]


# --- the model ----------------------------------------------------------------------------------


def product(m: int, n: int, k: int) -> Node:
    text = f"graph f(%a: f32[{m}, {k}], %b: f32[{k}, {n}]) {{\n  %c = aten.mm.default(%a, %b) : "
    return parse(f"{text}f32[{m}, {n}]\n  return %c\n}}").nodes[0]


def sketch(elements: int, *, reads: int = 1, work: int = 1) -> Sketch:
    """Of a chain of f32."""
    return Sketch(
        elements=elements,
        rows=0,
        columns=False,
        inner=elements,
        nodes=work,
        reductions=0,
        sweeps=1,
        work=(work * elements, 0, 0, 0),
        again=0,
        reads=reads,
        writes=1,
        read=(4 * reads * elements, 0, 0, 0),
        written=4 * elements,
        strided=0,
        kept=0,
        halves=0,
        doubles=0,
        integers=0,
        guarded=0,
    )


@pytest.fixture(scope="module")
def model() -> Model:
    """Trained on products that take twice their floor."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(300):
        m, n, k = (int(x) for x in draw.integers(16, 512, 3))
        found.append(features(product(m, n, k), TARGET))
    parts = np.array([f.parts for f in found])
    rows = Rows(
        np.array([f.numbers for f in found]),
        parts,
        2 * np.array([f.floor for f in found]),
        [f"g{i % 7}" for i in range(len(found))],
        ["aten.mm.default"] * len(found),
    )
    forest = Forest.constant(0.0)
    screen = Screen(np.ones(len(sketch_parts(sketch(100), TARGET))), forest, forest, 0.1, 0.1)
    return Model({"product": train_head(rows, SMALL).head}, screen, {"source": "a test"})


def test_a_known_call_is_estimated_and_an_unknown_one_left_to_the_roofline(model: Model) -> None:
    learned = Learned(TARGET, model.heads, model.screen, "a test")
    near, far = product(100, 200, 300), product(60_000, 20_000, 8_000)
    known, unknown = learned.estimate([near, far])
    assert known.seconds == pytest.approx(2 * features(near, TARGET).floor, rel=0.1)
    assert known.low <= known.seconds <= known.high
    assert "times its floor" in known.because[0]
    assert unknown.seconds == Roofline(TARGET).estimate([far])[0].seconds
    assert "unlike the products" in unknown.because[-1]


def test_screening_asks_forests_only_where_parts_leave_a_doubt() -> None:
    """A forest that says twice the parts, pairs that say 0.9 of the time apart."""
    weights = np.ones(len(sketch_parts(sketch(100), TARGET)))
    forest, pairs = Forest.constant(float(np.log(2))), Forest.constant(float(np.log(0.9)))
    screening = Screening(TARGET, Screen(weights, forest, pairs, 0.05, 0.1), scale=3.0)
    one = sketch(1 << 20)
    parts = sum(sketch_parts(one, TARGET))
    assert screening.seconds([one, one]) == pytest.approx([6 * parts] * 2)
    clear = screening.gain([one, one], one)
    assert clear.seconds == pytest.approx(3 * parts) and clear.low > 0
    both = sketch(1 << 20, reads=2, work=60)
    close = screening.gain([one, both], both)
    before = sum(screening.seconds([one, both]))
    assert close.seconds == pytest.approx(0.1 * before)
    assert close.high - close.seconds == pytest.approx(0.05 * before)


def test_what_screening_leaves_open_is_looked_at_closer(model: Model) -> None:
    """By the full model, on real kernels, once for each question."""
    forest = Forest.constant(0.0)
    unsure = Screen(np.ones(len(sketch_parts(sketch(100), TARGET))), forest, forest, 0.5, 0.01)
    learned = Learned(TARGET, model.heads, unsure, "a test")
    first, second, both = product(64, 64, 64), product(64, 64, 128), product(100, 100, 100)
    made: list[int] = []

    def kernels() -> list[Node]:
        made.append(1)
        return [first, second, both]

    one = sketch(1 << 20, reads=2)._replace(guarded=1)
    assert learned.gain([one, one], one).low < 0
    found = [learned.gain([one, one], one, kernels) for _ in range(2)]
    a, b, whole = (e.mean for e in learned.estimate([first, second, both]))
    assert found[0].seconds == found[1].seconds == pytest.approx(a + b - whole)
    assert made == [1]
    assert learned.gain([one, sketch(99)], one, lambda: None).low < 0


def test_a_model_file_gives_the_model_back(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    write_model(path, model)
    again = read_model(path)
    calls = [product(m, 64, 128) for m in (16, 50, 400)]
    first = Learned(TARGET, model.heads, model.screen, "x").estimate(calls)
    assert Learned(TARGET, again.heads, again.screen, "x").estimate(calls) == first
    assert again.about == {"source": "a test"}
    assert again.screen is not None and model.screen is not None
    assert again.screen.weights.tolist() == model.screen.weights.tolist()


def test_a_model_of_other_features_is_refused(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.npz"
    write_model(path, model)
    monkeypatch.setitem(FAMILIES, "product", ("other",))
    with pytest.raises(OptionError, match="other features"):
        read_model(path)


def test_features_are_at_most_48_and_named() -> None:
    families = FAMILIES | GPU_FAMILIES
    assert all(len(names) <= 48 for names in families.values())
    assert all(len(set(names)) == len(names) for names in families.values())


FLASH = "aten._scaled_dot_product_flash_attention"
HEADS = "[2, 4, 64, 32]"
CALLS = {
    "kernel": """
        graph f(%a: f32[8, 40], %b: f32[40]) {
          %r = rw.fused(%a, %b) body(%a: f32[8, 40], %b: f32[40]) {
            %c = aten.mul.Tensor(%a, %b) : f32[8, 40]
            %d = aten.sum.dim_IntList(%c, [1]) : f32[8]
            return %d
          } : f32[8]
          return %r
        }
    """,
    "product": """
        graph f(%v: f32[9], %a: f32[7, 8], %b: f32[8, 9]) {
          %c = aten.addmm.default(%v, %a, %b) : f32[7, 9]
          return %c
        }
    """,
    "convolution": """
        graph f(%x: f32[2, 4, 9, 9], %w: f32[6, 4, 3, 3]) {
          %c = aten.convolution.default(%x, %w, none, [1, 1], [1, 1], [1, 1], false, [0, 0], 1) :
              f32[2, 6, 9, 9]
          return %c
        }
    """,
    "attention": f"""
        graph f(%q: f32{HEADS}, %k: f32{HEADS}, %v: f32{HEADS}) {{
          %o, %l = {FLASH}_for_cpu.default(%q, %k, %v) : f32{HEADS}, f32[2, 4, 64]
          return %o
        }}
    """,
    "operator": """
        graph f(%a: f32[7, 8] strides [1, 7], %b: f32[8]) {
          %c = aten.add.Tensor(%a, %b) : f32[7, 8] strides [1, 7]
          return %c
        }
    """,
}


def test_a_gather_from_a_cold_table_reads_a_few_rows_of_it() -> None:
    (node,) = parse("""
graph f(%w: f32[50000, 64], %i: i64[8]) {
  %r = aten.embedding.default(%w, %i) : f32[8, 64]
  return %r
}
""").nodes
    table = 50000 * 64 * 4
    cold, warm = features(node, TARGET, table), features(node, TARGET)
    assert cold == features(node, TARGET, 8 * 64 * 4 + 8 * 8)
    assert warm.floor < cold.floor < 2 * warm.floor


@pytest.mark.parametrize("family", CALLS)
def test_each_number_has_a_name(family: str) -> None:
    (node,) = parse(dedent(CALLS[family])).nodes
    found = features(node, TARGET)
    shares = SHARED_PARTS.get(family, ())
    assert found.family == family
    assert len(found.numbers) + len(shares) == len(FAMILIES[family])
    assert len({place for places in shares for place in places}) <= len(found.parts)
    assert np.isfinite(found.numbers).all() and min(found.parts) >= 0 < max(found.parts)


@pytest.mark.parametrize(
    ("family", "name"), [("product", "gpu_product"), ("attention", "gpu_prefill")]
)
def test_each_number_of_a_gpu_has_a_name(family: str, name: str) -> None:
    (node,) = parse(dedent(CALLS[family])).nodes
    found = gpu_features(node, Target.parse("cuda:h200"))
    assert found is not None
    assert found.family == name and len(found.numbers) == len(GPU_FAMILIES[name])
    assert np.isfinite(found.numbers).all()


def test_each_number_of_a_sketch_and_of_a_pair_has_a_name() -> None:
    one = sketch(1000)
    assert len(sketch_numbers(one, TARGET)) == len(SKETCH) <= 48
    row = pair_features([one, one], one, [1.0, 1.0, 1.5], [1.0, 1.0, 1.4], TARGET)
    assert len(row) == len(PAIR) <= 48 and np.isfinite(row).all()


def test_a_nest_is_counted_as_it_is_printed() -> None:
    """Eight rows of 40, so two whole steps of 16 lanes and a tail each."""
    (node,) = parse(dedent(CALLS["kernel"])).nodes
    found = nest_facts(lower(node.graph("body"), "kernel"), cores=2)
    assert (found.style, found.rows, found.columns, found.inner) == ("lanes", 8, 40, 40)
    counts = {name: count for name, count in found.counts.items() if count}
    # %b is read in every row; a row's sum is stored once.
    assert counts == {
        "rows": 8,
        "steps": 24,
        "tails": 8,
        "totals": 8,
        "reductions": 24,
        "load": 48,
        "simple": 24,
        "store": 8,
        "tail_loads": 16,
        "tail_work": 8,
    }
    assert found.threads == 1 and found.bytes_read == 4 * (8 * 40 + 40)
