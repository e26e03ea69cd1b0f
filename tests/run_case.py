"""Case files: a law, a pipeline, a graph, and what must come of it.

    # dce drops what nobody reads.
    # ---- dce
    graph f(%x: f32[4]) { ... }
    # ---- gives
    graph f(%x: f32[4]) { ... }

The last part is `# ---- gives` and the graph, `# ---- gives the same`, `# ---- refuses: sentence`
(the graph stays as it is and some refusal contains the sentence; `gives` may follow when only a
part is refused), or `# ---- error: message`. Graphs are compared as canonical text, and both are
run on random inputs where their sizes are known. What `rewright bisect` writes ends in a promise,
such as `# ---- computes the same` (`rewright.bisect.PROMISES`): whatever comes of the graph will
do. A `.pt` file beside such a case holds its inputs, a `.safetensors` file its constants.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from rewright.bisect import PROMISES, fault_in
from rewright.costmodel import Estimate, Roofline
from rewright.ir import Graph, RewrightError, TensorType
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.ir.show import show
from rewright.ir.target import Target
from rewright.ir.text_files import read_tensors
from rewright.passes import Env, Pipeline

_HEADING = re.compile(r"^# ---- (.*)$", re.MULTILINE)

# Random integers are indices as often as not; every case's tables have at least this many rows.
_LARGEST_INDEX = 2


@dataclass(frozen=True)
class Case:
    """A case file, taken apart. `gives` is empty when the graph must stay as it is."""

    path: Path
    law: str
    pipeline: str
    before: str
    refusals: tuple[str, ...] = ()
    error: str = ""
    gives: str = ""
    promise: str = ""


@dataclass(frozen=True)
class Outcome:
    """What running a case's pipeline came to: a graph and refusals, or an error's text."""

    before: Graph | None
    after: Graph | None
    refusals: tuple[str, ...] = ()
    error: str | None = None


# Passes that promise the same in real arithmetic, and not the same bits.
INEXACT: Final = re.compile(
    r"fastmath|attention|libraries|epilogues|channels-last|convolutions|freeze|merge-products"
)


def read_case(path: Path) -> Case:
    law, *parts = _HEADING.split(path.read_text())
    (pipeline, before), *endings = zip(parts[::2], map(str.strip, parts[1::2]), strict=True)
    said: dict[str, list[str]] = {"refuses": [], "error": [], "gives": []}
    promise = next((heading for heading, _ in endings if heading in PROMISES), "")
    for heading, body in endings:
        if heading == promise:
            continue
        kind, _, sentence = heading.partition(": ")
        said[kind.removesuffix(" the same")].append(sentence or body)
    assert endings, f"{path.name} says nothing of what must come"
    return Case(
        path,
        law.strip().removeprefix("#").strip(),
        pipeline,
        before,
        tuple(said["refuses"]),
        said["error"][0] if said["error"] else "",
        said["gives"][0] if said["gives"] else "",
        promise,
    )


def case_env() -> Env:
    """What passes get in tests: the estimates of a known machine, races whose winner is known."""
    target = Target.parse("cpu:avx2")
    return Env(Roofline(target), target, LastWins())


class NoTools:
    """`Tools` that can tell nothing."""

    seconds = 0.0

    def measure(self, calls: Sequence[Graph]) -> list[Estimate] | None:
        return None

    def race(self, calls: Sequence[Graph]) -> list[float] | None:
        return None

    def races(self, groups: Sequence[Sequence[Graph]]) -> list[list[float] | None]:
        return [self.race(calls) for calls in groups]


class LastWins(NoTools):
    """Of library calls the one that is named last is quicker."""

    def race(self, calls: Sequence[Graph]) -> list[float]:
        return [float(len(calls) - place) for place in range(len(calls))]


def run_case(case: Case) -> Outcome:
    env = case_env()
    before: Graph | None = None
    try:
        constants = read_tensors(case.path.with_suffix(".safetensors"))
        before = parse(case.before, file=case.path.name, constants=constants)
        after = Pipeline.parse(case.pipeline).run(before, env, check=True).graph
    except RewrightError as error:
        return Outcome(before, None, error=str(error))
    return Outcome(before, after, tuple(str(d) for d in env.log.refusals))


def check_case(case: Case, outcome: Outcome) -> None:
    """Raises AssertionError when the outcome is not the one that the file says."""
    if case.error:
        assert outcome.error is not None, f"no error; the result is\n{outcome.after}"
        assert case.error in outcome.error
        return
    assert outcome.error is None, outcome.error
    before, after = outcome.before, outcome.after
    assert before is not None and after is not None
    if case.promise:
        given = case.path.with_suffix(".pt")
        inputs = torch.load(given) if given.exists() else None
        how = PROMISES[case.promise]
        env = None if how == "built" else case_env()
        assert fault_in(before, case.pipeline, how, inputs, env=env) is None
        return
    for sentence in case.refusals:
        assert any(sentence in said for said in outcome.refusals), outcome.refusals
    assert text(after) == (case.gives or case.before)
    for graph in (before, after):
        assert parse(show(graph)) == graph
        assert text(parse(text(graph))) == text(graph)
    check_numbers(before, after, exact=not INEXACT.search(case.pipeline))


def updated(case: Case, outcome: Outcome) -> str:
    """The file as the outcome wants it; which refusals to name is chosen by hand and stays."""
    if case.promise:
        return case.path.read_text()
    before = case.before if outcome.before is None else text(outcome.before)
    lines = [f"# {case.law}", f"# ---- {case.pipeline}", before]
    if outcome.error is not None or outcome.after is None:
        return "\n".join([*lines, f"# ---- error: {str(outcome.error).partition(chr(10))[0]}", ""])
    lines += [f"# ---- refuses: {sentence}" for sentence in case.refusals]
    if outcome.after != outcome.before:
        lines += ["# ---- gives", text(outcome.after)]
    elif not case.refusals:
        lines.append("# ---- gives the same")
    return "\n".join([*lines, ""])


def text(graph: Graph) -> str:
    return show(graph, header=False)


def check_numbers(before: Graph, after: Graph, *, exact: bool = True) -> None:
    """Both graphs compute the same bits on random inputs, when they are to be `exact`; in float64,
    where a constant that was rounded at compile time stays rounded, the same up to that rounding.
    """
    if before.symbols or after.symbols or not (is_on_cpu(before) and is_on_cpu(after)):
        return
    if exact:
        assert_equal(run(after, None), run(before, None), rtol=0)
    assert_equal(run(after, torch.float64), run(before, torch.float64), rtol=4 * coarsest(before))


def is_on_cpu(graph: Graph) -> bool:
    types = (v.type for v in graph.values)
    return all(t.device.type == "cpu" for t in types if isinstance(t, TensorType))


def run(graph: Graph, dtype: torch.dtype | None) -> list[object]:
    """Outputs on random inputs, and the inputs as the graph's updates leave them."""
    inputs = random_inputs(graph)
    torch.manual_seed(0)
    return [*interpret(graph, inputs, dtype=dtype), *inputs]


def coarsest(graph: Graph) -> float:
    """The largest rounding step of a graph's dtypes, relative to the number rounded."""
    dtypes = {v.type.dtype for v in graph.values if isinstance(v.type, TensorType)}
    return max((torch.finfo(d).eps for d in dtypes if d.is_floating_point), default=0.0)


def assert_equal(found: Sequence[object], expected: Sequence[object], rtol: float) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=rtol, atol=0, equal_nan=True)
        else:
            assert one == other


def random_inputs(graph: Graph, seed: int = 0) -> list[object]:
    """Inputs of a graph without symbols, with its strides."""
    generator = torch.Generator().manual_seed(seed)
    return [
        random_tensor(i.value.type, generator) if isinstance(i.value.type, TensorType) else 1
        for i in graph.inputs
    ]


def random_tensor(type: TensorType, generator: torch.Generator) -> torch.Tensor:
    shape = [size for size in type.shape if isinstance(size, int)]
    strides = [size for size in type.layout if isinstance(size, int)]
    if type.dtype.is_floating_point or type.dtype.is_complex:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
    else:
        values = torch.randint(0, _LARGEST_INDEX, shape, generator=generator)
    made = torch.empty_strided(shape, strides, dtype=type.dtype)
    # Elements of an expanded tensor share memory; the first of each set stands for all.
    alone = tuple(0 if stride == 0 else slice(None) for stride in strides)
    made[alone] = values[alone].to(type.dtype)
    return made
