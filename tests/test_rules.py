"""Rules: every one of ours proves itself, wrong ones are found out, the engine does its work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import rewright
from rewright.costmodel import Roofline
from rewright.ir import (
    CheckError,
    Graph,
    ImportFailure,
    OptionError,
    RewrightError,
    Target,
    TextError,
)
from rewright.ir.check import check
from rewright.ir.decompositions import decomposition_table
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.ir.show import show
from rewright.passes import Cse, DecisionLog, Env, Rules
from rewright.passes.rules import (
    EXACT,
    FASTMATH,
    SHIPPED,
    Rule,
    examine,
    read_rules,
    rules_of,
    shipped,
)
from rewright.passes.rules.engine import Engine, Outcome
from spellings import SPELLINGS, inputs_of, traced

WRONG = Path(__file__).parent / "data" / "wrong.rules"


@pytest.fixture(scope="module")
def env() -> Env:
    target = Target.parse("cpu:avx2")
    return Env(cost=Roofline(target), target=target)


def apply(text: str, graph: str, env: Env) -> Outcome:
    """The outcome of the rules of a text, unproved, on the graph of another."""
    engine = Engine(read_rules(text, "<test>"))
    outcome = engine.run(parse(graph), env.log, lambda found, _: found[0])
    check(outcome.graph, "aten")
    return outcome


# --- evidence -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [rule for name in SHIPPED for rule in shipped(name)], ids=lambda rule: rule.name
)
def test_every_rule_of_ours_holds(rule: Rule) -> None:
    verdict = examine(rule)
    assert verdict.holds, f"{verdict}\n{verdict.counterexample}"
    assert [e.obligation for e in verdict.evidence] == [
        *("fires", "float64"),
        *(["bits"] if rule.is_exact else []),
        *("types", "meaning"),
    ]


@pytest.mark.parametrize(
    "rule", read_rules(WRONG.read_text(), "wrong.rules"), ids=lambda rule: rule.name
)
def test_wrong_rules_are_refused_with_a_counterexample(rule: Rule) -> None:
    verdict = examine(rule)
    assert not verdict.holds
    counterexample = verdict.counterexample
    assert counterexample is not None, str(verdict)
    # The text is a graph that can be looked at, and the two sides differ on it.
    graph = parse(str(counterexample))
    assert graph == counterexample.before
    inputs = [x.clone() for x in counterexample.inputs]
    wanted = interpret(graph, inputs, dtype=None if rule.is_exact else torch.float64)
    found = interpret(counterexample.after, inputs, dtype=None if rule.is_exact else torch.float64)
    pairs = zip(wanted, found, strict=True)
    assert any(not _same_bits(a, b) for a, b in pairs)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    same = (a == b) & (a.signbit() == b.signbit())
    return bool((same | (a.isnan() & b.isnan())).all())


def test_a_rule_that_nothing_can_be_run_for_does_not_hold() -> None:
    text = """rule vacuous exact {
      %x: i64
      match aten.remainder.Scalar(%x, 0)
      give  aten.neg.default(%x)
    }"""
    verdict = examine(read_rules(text, "<test>")[0])
    assert not verdict.holds
    assert "ATen runs none of" in str(verdict)


def test_there_are_twenty_wrong_rules_and_eighty_right_ones() -> None:
    assert len(read_rules(WRONG.read_text(), "wrong.rules")) >= 20
    written = {rule.name.split("/")[0] for name in SHIPPED for rule in shipped(name)}
    assert len(written) >= 80
    assert all(rule.is_exact for rule in rules_of([EXACT]))
    assert len(rules_of([FASTMATH])) > len(rules_of([EXACT]))


def test_a_user_cannot_use_a_wrong_rule(env: Env) -> None:
    text = "rule wrong exact { %x: float match aten.relu.default(%x) give aten.neg.default(%x) }"
    graph = parse("graph f(%x: f32[2]) { %a = aten.relu.default(%x) : f32[2] return %a }")
    with pytest.raises(CheckError, match="rule wrong does not hold"):
        Rules((text,)).run(graph, env)


# --- the language ---------------------------------------------------------------------------------

HEAD = "rule r exact {\n  %x: float\n"


@pytest.mark.parametrize(
    ("text", "message", "line", "column"),
    [
        ("rule r {", "expected 'exact', 'reassociating' or 'approximate'", 1, 8),
        ("rule r exact {\n  when 1 == 1\n}", "found '1'", 2, 8),
        (f"{HEAD}  match aten.neg.default(%x)\n}}", "expected 'give'", 3, 29),
        (f"{HEAD}  match aten.neg(%x)\n  give %x\n}}", "unknown operator 'aten.neg'", 3, 9),
        (f"{HEAD}  match aten.ned.default(%x)\n  give %x\n}}", "did you mean", 3, 9),
        (f"{HEAD}  match aten.neg.default(%x, 1)\n  give %x\n}}", "takes 1 argument", 3, 9),
        (f"{HEAD}  match aten.pow.Tensor_Scalar(%x, c)\n  give %x\n}}", "'c' is not decl", 3, 36),
        (f"{HEAD}  match aten.neg.default(%x)\n  give %y\n}}", "nothing says what %y is", 1, 6),
        ("rule r exact {\n  %x: float\n", "expected", 2, 12),
        (
            "rule r exact {\n  %x: floot\n  match aten.neg.default(%x)\n  give %x\n}",
            "no class of dtypes is called 'floot'; did you mean 'float'?",
            2,
            7,
        ),
        (
            f"{HEAD}  d: axes\n  match aten.neg.default(%x)\n  give %x\n}}",
            "'axes' takes 1 argument, not 0",
            3,
            6,
        ),
        (
            f"{HEAD}  match aten.neg.default(%x)\n  when sam_type(%x, %x)\n  give %x\n}}",
            "no function is called 'sam_type'; did you mean 'same_type'?",
            4,
            8,
        ),
        (
            f"{HEAD}  match aten.neg.default(%x)\n  give %x\n}}\n{HEAD}"
            "  match aten.neg.default(%x)\n  give %x\n}",
            "there are two rules named 'r'",
            6,
            6,
        ),
    ],
)
def test_mistakes_are_pointed_at(text: str, message: str, line: int, column: int) -> None:
    with pytest.raises(TextError) as raised:
        read_rules(text, "my.rules")
    assert message in str(raised.value)
    excerpt = raised.value.excerpt
    assert excerpt is not None
    assert (excerpt.file, excerpt.line, excerpt.column) == ("my.rules", line, column)


def test_rules_print_as_they_were_written() -> None:
    for name in SHIPPED:
        for rule in shipped(name):
            assert read_rules(str(rule), "again")
            assert rule.name.split("/")[0] in str(rule)


def test_an_unknown_set_is_named() -> None:
    with pytest.raises(OptionError, match="did you mean 'fastmath'"):
        rules_of(["fastmaht"])
    with pytest.raises(OptionError, match=r"none\.rules cannot be read: No such file"):
        rules_of(["none.rules"])


# --- the engine -----------------------------------------------------------------------------------


def test_operands_of_commutative_operators_match_in_either_order(env: Env) -> None:
    text = """rule r exact { %x: float %y: float
      match aten.add.Tensor(%x, aten.neg.default(%y)) give aten.sub.Tensor(%x, %y) }"""
    for a, b in (("%x", "%n"), ("%n", "%x")):
        outcome = apply(
            text,
            f"""graph f(%x: f32[2], %y: f32[2]) {{
              %n = aten.neg.default(%y) : f32[2]
              %a = aten.add.Tensor({a}, {b}) : f32[2]
              return %a
            }}""",
            env,
        )
        assert [str(n.op) for n in outcome.graph.nodes] == ["aten.sub.Tensor"]
        assert outcome.renamed == {"n": ()}


def test_what_others_read_is_not_computed_twice(env: Env) -> None:
    text = """rule r exact { %x: float %y: float
      match aten.add.Tensor(%x, aten.neg.default(%y)) give aten.sub.Tensor(%x, %y) }"""
    outcome = apply(
        text,
        """graph f(%x: f32[2], %y: f32[2]) {
          %n = aten.neg.default(%y) : f32[2]
          %a = aten.add.Tensor(%x, %n) : f32[2]
          return %a, %n
        }""",
        env,
    )
    assert outcome.rewrites == 0


def test_several_roots_at_once(env: Env) -> None:
    text = """rule both exact {
      %x: float
      match {
        %s = aten.sin.default(%x)
        %c = aten.cos.default(%x)
      }
      give {
        %t = aten.cat.default([aten.sin.default(%x), aten.cos.default(%x)], 0)
        %s = aten.sin.default(%x)
        %c = aten.cos.default(%x)
      }
    }"""
    with pytest.raises(CheckError, match=r"do not come to an end.*both"):
        apply(
            text,
            """graph f(%x: f32[2]) {
              %a = aten.cos.default(%x) : f32[2]
              %b = aten.sin.default(%x) : f32[2]
              return %b, %a
            }""",
            env,
        )


def test_joined_products_run_before_all_that_reads_them(env: Env) -> None:
    text = """rule merge reassociating {
      %x: float[m, k]
      %a: float[k, n]
      %b: float[k, p]
      match {
        %y = aten.mm.default(%x, %a)
        %z = aten.mm.default(%x, %b)
      }
      give {
        %w = aten.mm.default(%x, aten.cat.default([%a, %b], 1))
        %l = aten.slice.Tensor(%w, 1, 0, n)
        %r = aten.slice.Tensor(%w, 1, n, n + p)
        %y = aten.clone.default(%l, memory_format=memory_format(contiguous))
        %z = aten.clone.default(%r, memory_format=memory_format(contiguous))
      }
    }"""
    graph = """graph f(%x: f32[2, 3], %a: f32[3, 4], %b: f32[3, 5]) {
      %q = aten.mm.default(%x, %a) : f32[2, 4]
      %r = aten.relu.default(%q) : f32[2, 4]
      %k = aten.mm.default(%x, %b) : f32[2, 5]
      return %r, %k
    }"""
    outcome = apply(text, graph, env)
    assert outcome.rewrites == 1
    inputs = [torch.randn(2, 3), torch.randn(3, 4), torch.randn(3, 5)]
    torch.testing.assert_close(interpret(outcome.graph, inputs), interpret(parse(graph), inputs))
    depends = """graph f(%x: f32[3, 3], %a: f32[3, 3]) {
      %q = aten.mm.default(%x, %a) : f32[3, 3]
      %k = aten.mm.default(%x, %q) : f32[3, 3]
      return %k
    }"""
    log = DecisionLog()
    engine = Engine(read_rules(text, "<test>"))
    assert engine.run(parse(depends), log, lambda found, _: found[0]).rewrites == 0
    assert any("depends on another" in d.sentence for d in log)


def test_what_is_joined_is_what_no_other_rule_takes(env: Env) -> None:
    """Products of one input are joined, but for those that are added: they become one first."""
    x, a, b, c = (torch.randn(4, 4) for _ in range(4))
    graph = traced(lambda x: (x @ a + x @ b, x @ c), [x])
    outcome = Rules((FASTMATH,)).apply(graph, env)
    products = [n for n in outcome.graph.nodes if n.op.name == "aten.mm.default"]
    assert [n.result.tensor.shape for n in products] == [(4, 8)]
    assert outcome.tallies["common-left-factor"].applied == 1
    assert outcome.tallies["shared-input-mm"].applied == 1


def test_rules_that_undo_each_other_are_named(env: Env) -> None:
    text = """
    rule there reassociating { %x: float %y: float
      match aten.sub.Tensor(%x, %y) give aten.add.Tensor(%x, aten.neg.default(%y)) }
    rule back reassociating { %x: float %y: float
      match aten.add.Tensor(%x, aten.neg.default(%y)) give aten.sub.Tensor(%x, %y) }
    """
    with pytest.raises(CheckError, match=r"do not come to an end.*(there|back).*(there|back)"):
        apply(
            text,
            "graph f(%x: f32[2], %y: f32[2]) { %a = aten.sub.Tensor(%x, %y) : f32[2] return %a }",
            env,
        )


def test_the_same_graph_comes_out_each_time(env: Env) -> None:
    graph = _long_graph(300)
    texts = {show(Rules((FASTMATH,)).run(graph, env)) for _ in range(3)}
    assert len(texts) == 1


def _long_graph(count: int) -> Graph:
    """A chain with something to rewrite in every few nodes."""
    lines = []
    last = "x"
    for i in range(count):
        match i % 4:
            case 0:
                line = f"aten.mul.Tensor(%{last}, 1)"
            case 1:
                line = f"aten.neg.default(%{last})"
            case 2:
                line = f"aten.neg.default(%{last})"
            case _:
                line = f"aten.sin.default(%{last})"
        last = f"v{i}"
        lines.append(f"  %{last} = {line} : f32[B0, 8]")
    body = "\n".join(lines)
    return parse(
        f"graph long(%x: f32[B0, 8]) where B0 in [1, 64] hint 4 {{\n{body}\n  return %{last}\n}}"
    )


def test_rules_by_every_door(tmp_path: Path) -> None:
    """A file, a text, a name; through torch.compile, optimize and the options' line."""
    text = """
    rule double-is-a-sum reassociating {
      %x: float
      match aten.mul.Tensor(%x, 2)
      give aten.add.Tensor(%x, %x)
    }
    """
    path = tmp_path / "mine.rules"
    path.write_text(text)
    module = torch.nn.Sequential(torch.nn.Linear(4, 4))

    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(module(x) * 2)

    x = torch.randn(3, 4)
    given: Sequence[object] = (rewright.rules.load(path), rewright.rule(text), text, str(path))
    for rules in given:
        compiled = rewright.optimize(Twice().eval(), (x,), rules=[rules])
        fired = [d for d in compiled.program.plan.log if "double-is-a-sum" in d.sentence]
        assert fired
        torch.testing.assert_close(compiled(x), Twice()(x))
    step = torch.compile(Twice().eval(), backend="rewright", options={"rules": "fastmath"})
    with torch.no_grad():
        torch.testing.assert_close(step(x), Twice()(x))
    with pytest.raises(RewrightError, match="rules takes names, files and rules, not 3"):
        rewright.optimize(Twice().eval(), (x,), rules=3)


def test_evidence_of_a_rule_of_ones_own() -> None:
    (verdict,) = rewright.rule(
        "rule mine exact { %x: float match aten.abs.default(aten.neg.default(%x)) "
        "give aten.abs.default(%x) }"
    ).check()
    assert verdict.holds
    assert "mine (exact) holds" in str(verdict)


# --- where rules fire -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPELLINGS)
def test_rules_find_what_people_write(name: str, env: Env) -> None:
    inputs, fired = inputs_of(name), set[str]()
    # As the backend gets it, and as it stands in an exported program.
    for table in (decomposition_table(), None):
        try:
            graph = Cse().run(traced(SPELLINGS[name], inputs, table), env)
        except ImportFailure:
            continue  # it writes in place until it is functionalized
        outcome = Rules((FASTMATH,)).apply(graph, env)
        check(outcome.graph, "aten")
        fired |= {r.split("/")[0] for r, tally in outcome.tallies.items() if tally.applied}
        wanted = interpret(graph, inputs, dtype=torch.float64)
        torch.testing.assert_close(interpret(outcome.graph, inputs, dtype=torch.float64), wanted)
    assert name in fired, f"{sorted(fired)} on\n{graph}"


def test_every_rule_has_a_spelling() -> None:
    written = {rule.name.split("/")[0] for name in SHIPPED for rule in shipped(name)}
    assert written == set(SPELLINGS)
