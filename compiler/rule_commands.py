"""`rewright rules`: what rules can show for themselves, what there are, where they fire."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rewright.ir import ArtefactError, OptionError
from rewright.passes.rules import FASTMATH, SHIPPED, Rule, Tally, Verdict


def rules(arguments: argparse.Namespace) -> int:
    """check, list or fire."""
    action = {"check": _check, "list": _list, "fire": _fire}[arguments.action]
    return action(arguments)


def _check(arguments: argparse.Namespace) -> int:
    """Examine every rule of files and sets; exit 1 when one does not hold."""
    from rewright.passes.rules import examine

    verdicts = []
    for name in arguments.names or [FASTMATH]:
        for rule in _read(name):
            verdict = examine(rule, seed=arguments.seed)
            verdicts.append(verdict)
            if not arguments.json:
                print(verdict, flush=True)
                _show_counterexample(verdict, arguments.output)
    wrong = [v.rule.name for v in verdicts if not v.holds]
    if arguments.json:
        print(json.dumps([_as_json(v) for v in verdicts], indent=1))
    else:
        print(f"{len(verdicts) - len(wrong)} hold, {len(wrong)} do not")
    return 1 if wrong else 0


def _read(name: str) -> Sequence[Rule]:
    """The rules of a file or a set, not examined yet."""
    from rewright.passes.rules import read_file, read_rules, rules_of

    return read_rules(read_file(name), name) if name.endswith(".rules") else rules_of([name])


def _show_counterexample(verdict: Verdict, output: str | None) -> None:
    if verdict.counterexample is None:
        return
    text = str(verdict.counterexample)
    if output is None:
        print("\n".join(f"    {line}" for line in text.rstrip("\n").splitlines()))
        return
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{verdict.rule.name.replace('/', '-')}.rw"
        path.write_text(text)
    except OSError as error:
        raise ArtefactError(f"{output} cannot be written: {error.strerror}", who="rules") from None
    print(f"    counterexample: {path}")


def _as_json(verdict: Verdict) -> dict[str, object]:
    counterexample = verdict.counterexample
    return {
        "rule": verdict.rule.name,
        "kind": verdict.rule.kind,
        "holds": verdict.holds,
        "evidence": [dataclasses.asdict(e) for e in verdict.evidence],
        "counterexample": None if counterexample is None else str(counterexample),
    }


def _list(arguments: argparse.Namespace) -> int:
    """Print rules as they are written; names only with several sets."""
    names = arguments.names or list(SHIPPED)
    found = {name: _read(name) for name in names}
    if arguments.json:
        shown = [
            {"set": name, "rule": rule.name, "kind": rule.kind, "text": str(rule)}
            for name, listed in found.items()
            for rule in listed
        ]
        print(json.dumps(shown, indent=1))
    elif arguments.names:
        texts = dict.fromkeys(str(rule) for listed in found.values() for rule in listed)
        print("\n\n".join(texts))
    else:
        for name, listed in found.items():
            print(f"{name}: {', '.join(rule.name for rule in listed)}")
    return 0


def _fire(arguments: argparse.Namespace) -> int:
    """Apply rules to models: how often each fired, and which never did."""
    from rewright.costmodel import Roofline
    from rewright.driver import target_of
    from rewright.options import Options
    from rewright.passes import Canonicalize, Decompose, Env, Rules
    from rewright.sources import load_source

    if not arguments.names:
        raise OptionError("rules fire wants models", help="as in rewright rules fire model.pt2")
    target = target_of(Options())
    env = Env(cost=Roofline(target), target=target)
    total: dict[str, Tally] = {}
    for model in arguments.names:
        graph = load_source(model).graph
        for step in (Decompose(), Canonicalize()):
            graph = step.run(graph, env)
        outcome = Rules(tuple(arguments.rules.split(","))).apply(graph, env)
        for name, tally in outcome.tallies.items():
            total[name] = total[name] + tally if name in total else tally
    if arguments.json:
        print(json.dumps({n: dataclasses.asdict(t) for n, t in total.items()}, indent=1))
        return 0
    print(f"{'rule':<44} {'fired':>7} {'tried':>7} {'time':>10}")
    for name, tally in sorted(total.items(), key=lambda item: -item[1].applied):
        if tally.applied:
            seconds = f"{1e3 * tally.seconds:.1f} ms"
            print(f"{name:<44} {tally.applied:>7} {tally.tried:>7} {seconds:>10}")
    silent = [name for name, tally in total.items() if not tally.applied]
    print(f"never fired: {', '.join(silent) or 'none'}")
    return 0
