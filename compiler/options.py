"""The one table of options: `torch.compile(options=...)`, `rewright.optimize(...)`, the CLI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rewright.ir import OptionError, TextError, did_you_mean
from rewright.passes import Pipeline, Window
from rewright.passes.budget import ErrorBudget
from rewright.passes.specs import Bytes


@dataclass(frozen=True)
class Options:
    """What a compile may be told. Every field's metadata is its documentation."""

    fallback: str = field(
        default="aten",
        metadata={
            "choices": ("aten", "error"),
            "doc": "what to do with an operator that has no kernel of ours: run it as ATen, "
            "or refuse with an error",
        },
    )
    target: str = field(
        default="host",
        metadata={
            "doc": "the device that is compiled for: host, cpu, cpu:avx2, cuda:sm_90, cuda:h200 "
            "...; for an artefact also several GPUs, as cuda:sm_90,cuda:sm_80"
        },
    )
    numerics: str = field(
        default="eager",
        metadata={
            "choices": ("eager", "fast"),
            "doc": "eager rounds every half-precision result at its node, so that fusion changes "
            "no bit; fast rounds where a kernel ends, and multiplies and adds in one instruction",
        },
    )
    passes: str = field(
        default="default",
        metadata={
            "doc": "the pipeline, as canonicalize,cse,dce,fuse{max-ops=8},memory; default stands "
            "for the default passes, as in my-pass,default"
        },
    )
    rules: tuple[str, ...] = field(
        default=(),
        metadata={
            "doc": "rewrite rules besides those that keep every bit: fastmath, names of sets, "
            ".rules files"
        },
    )
    measure: str = field(
        default="0",
        metadata={
            "doc": "seconds that kernels may be timed for where the cost model leaves a decision "
            "open; what was timed is remembered"
        },
    )
    freeze: str = field(
        default="no",
        metadata={
            "choices": ("no", "yes"),
            "doc": "in inference, compute once what depends on parameters only, take batch norms "
            "and other scales into weights and pack these: a copy of them for speed",
        },
    )
    memory_budget: str = field(
        default="",
        metadata={
            "doc": "the most bytes that a training step, or a call in inference, may allocate, as "
            "6GiB or a plain number, or min for as few as can be reached; parameters, inputs and "
            "what existed before do not count"
        },
    )
    memory_budget_scope: str = field(
        default="step",
        metadata={
            "choices": ("step", "graph"),
            "doc": "what keeps the memory budget: a whole training step, which must be one graph, "
            "or each graph by itself",
        },
    )
    error_budget: Any = field(
        default=None,
        metadata={
            "doc": "how far outputs may be off for speed: rel_l2<=1e-2, kl<=0.03, top1>=0.99, a "
            "number (of rel_l2), or (function, limit); layers are quantized, and heads of "
            "attention look at windows, as far as that goes"
        },
    )
    calibration: Any = field(
        default=(),
        repr=False,
        compare=False,
        metadata={
            "doc": "samples that errors are measured on, with an error budget: a list of tuples of "
            "inputs, a function that gives one, or a .safetensors or .npz file, whose tensors are "
            "called as the inputs"
        },
    )
    objective: str = field(
        default="time",
        metadata={
            "choices": ("time", "bytes"),
            "doc": "what an error budget is spent on: the least time, or bytes of weights",
        },
    )
    attention: str = field(
        default="",
        metadata={
            "doc": "what attention is narrowed to, whatever that does to results: "
            "window{size=512,sinks=4}"
        },
    )
    trace: str = field(
        default="",
        metadata={"doc": "a folder that gets the graph after every pass, kernels and report"},
    )

    @staticmethod
    def of(given: Mapping[str, Any]) -> Options:
        """Check names and values. Raises OptionError with the nearest known name."""
        known = {f.name: f for f in fields(Options)}
        if type(given.get("freeze")) is bool:
            given = {**given, "freeze": "yes" if given["freeze"] else "no"}
        for name, value in given.items():
            if name not in known:
                listed = ", ".join(known)
                raise OptionError(
                    f"no option '{name}'{did_you_mean(name, known) or f'; it takes {listed}'}",
                    who="options",
                )
            if name in ("rules", "calibration", "error_budget") or (
                name == "memory_budget" and type(value) is int
            ):
                continue
            if not isinstance(value, str):
                raise OptionError(f"{name} takes a string, not {value!r}", who="options")
            choices = known[name].metadata.get("choices")
            if choices and value not in choices:
                listed = " or ".join(f"'{c}'" for c in choices)
                raise OptionError(f"{name} is {listed}, not '{value}'", who="options")
        if not _is_count(given.get("measure", "0")):
            raise OptionError(
                f"measure is a number of seconds, not '{given['measure']}'", who="options"
            )
        rules = _rules(given.get("rules", ()))
        budget = _budget(str(given.get("memory_budget", "")))
        error = given.get("error_budget")
        if error is not None:
            error = ErrorBudget.of(error)
        _window(given.get("attention", ""))
        changed = {"rules": rules, "memory_budget": budget, "error_budget": error}
        return Options(**{**given, **changed})

    @property
    def budget(self) -> int | None:
        """Bytes that a step may allocate; None where as few as can be are asked for. Only with a
        `memory_budget`."""
        return None if self.memory_budget == "min" else Bytes.parse(self.memory_budget)


def _is_count(text: str) -> bool:
    whole, _, part = text.partition(".")
    return (whole + part).isdecimal()


def _budget(text: str) -> str:
    """An amount, or `min`, in one spelling."""
    if text in ("", "min"):
        return text
    amount = Bytes.parse(text)
    if amount == 0:
        raise OptionError("memory_budget is over 0 bytes, or min", who="options")
    return str(amount)


def _window(text: str) -> None:
    """Raises OptionError for what is no pass that narrows attention."""
    if not text:
        return
    try:
        steps = list(Pipeline.parse(text))
    except (OptionError, TextError):
        steps = []
    if not (len(steps) == 1 and isinstance(steps[0], Window)):
        raise OptionError(
            f"attention is not '{text}'", who="options", help="as in window{size=512,sinks=4}"
        )


def _rules(given: object) -> tuple[str, ...]:
    """Names, files and texts of rules: of a list, which may hold `RuleSet`s, or a line."""
    if isinstance(given, str):
        given = [part.strip() for part in given.split(",")] if "{" not in given else [given]
    if not isinstance(given, (list, tuple)):
        given = [given]
    found = []
    for item in given:
        text = getattr(item, "text", item)  # of a RuleSet or a Rule
        if not isinstance(text, str):
            raise OptionError(
                f"rules takes names, files and rules, not {item!r}",
                who="options",
                help='as in ["fastmath", "my.rules", rewright.rule("...")]',
            )
        found.append(text)
    return tuple(filter(None, found))


def option_docs() -> list[tuple[str, str, str]]:
    """(name, default, sentence) of every option, for --help and the documentation."""
    return [(f.name, str(f.default or ""), f.metadata["doc"]) for f in fields(Options)]
