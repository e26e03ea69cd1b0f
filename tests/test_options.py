"""The one table of options: what it takes, what it refuses, and that all doors know it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

import rewright
from rewright.driver import pipeline_of, plan_graph, target_of
from rewright.ir import OptionError, UnsupportedError
from rewright.ir.parse import parse
from rewright.options import Options, option_docs
from rewright.passes import DEFAULT, Pipeline


def test_defaults() -> None:
    assert Options.of({}) == Options()
    assert str(pipeline_of(Options())) == str(Pipeline(DEFAULT))


def test_every_option_is_documented() -> None:
    docs = {name: (default, doc) for name, default, doc in option_docs()}
    assert list(docs) == [f.name for f in fields(Options)]
    for f in fields(Options):
        assert docs[f.name][0] == (f.default or "")
        assert docs[f.name][1][0].islower() and len(docs[f.name][1]) > 20


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fallbak": "error"}, "no option 'fallbak'; did you mean 'fallback'?"),
        (
            {"quux": "1"},
            "no option 'quux'; it takes fallback, target, numerics, passes, rules, measure, "
            "freeze, memory_budget, memory_budget_scope, error_budget, calibration, objective, "
            "attention, trace",
        ),
        ({"fallback": "eager"}, "fallback is 'aten' or 'error', not 'eager'"),
        ({"fallback": True}, "fallback takes a string, not True"),
        ({"passes": None}, "passes takes a string, not None"),
    ],
)
def test_mistakes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Options.of(given)
    assert caught.value.message == message
    assert caught.value.who == "options"


def test_all_doors_check_options() -> None:
    with pytest.raises(OptionError, match="did you mean 'passes'"):
        rewright.optimize(torch.nn.ReLU(), (torch.ones(2),), pases="dce")


@pytest.mark.parametrize(
    "passes",
    ["fuse,memory", "cse,fuse{max-ops=3},memory", "canonicalize,fold,dce,fuse{max-ops=0},memory"],
)
def test_pipelines_that_lead_to_a_schedule(passes: str) -> None:
    assert str(pipeline_of(Options(passes=passes))) == passes


@pytest.mark.parametrize("passes", ["canonicalize", "fuse", "canonicalize,dce"])
def test_pipelines_that_do_not(passes: str) -> None:
    with pytest.raises(OptionError, match="does not lead from the aten level to the kernel level"):
        pipeline_of(Options(passes=passes))


def test_without_kernels_no_region_is_made() -> None:
    chosen = pipeline_of(Options(passes="cse,fuse{max-ops=3},memory"), kernels=False)
    assert str(chosen) == "cse,fuse{max-ops=0},memory"


def test_targets() -> None:
    assert target_of(Options(target="cpu:avx2")).isa == "avx2"
    assert target_of(Options(target="cuda:h100")).device == "cuda"
    assert target_of(Options()).device == "cpu"
    with pytest.raises(OptionError, match="no target 'cpu:axv2'; did you mean 'cpu:avx2'"):
        target_of(Options(target="cpu:axv2"))


def test_a_target_of_another_kind_of_device_is_refused() -> None:
    graph = parse("graph f(%x: f32[3]) {\n  %y = aten.exp.default(%x) : f32[3]\n  return %y\n}")
    with pytest.raises(UnsupportedError, match="cuda:h200 is a cuda device, and graph f is on cpu"):
        plan_graph(graph, Options(target="cuda:h200"))


def test_graphs_on_other_devices_run_as_aten() -> None:
    """Where torch has no such device; the report says so."""
    graph = parse(
        "graph f(%x: f32[3] on cuda:0) {\n"
        "  %y = aten.exp.default(%x) : f32[3] on cuda:0\n"
        "  return %y\n"
        "}"
    )
    plan = plan_graph(graph, Options())
    assert plan.kernels.nests == ()
    assert plan.report.notes == (
        "kernels run on the CPU, or on the one GPU of a graph; on cuda everything is ATen",
    )
    assert plan.report.counts() == {"aten": 1}
