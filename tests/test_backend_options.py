"""The torch.compile backend: options, its registration, and machines without a compiler."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import rewright
from rewright.ir import OptionError, UnsupportedError
from through_backend import (
    Block,
    Function,
    X,
    compiled,
    gradients,
    the_program,
)

pytestmark = pytest.mark.cpu


# --- options ------------------------------------------------------------------------------------


def refusal(function: Function, *inputs: Any) -> str:
    """The message of the error that compiling raises, ours without Dynamo's around it."""
    with pytest.raises(Exception, match="backend='rewright' raised") as caught:
        function(*inputs)
    inner = getattr(caught.value, "inner_exception", caught.value)
    assert isinstance(inner, rewright.RewrightError)
    return str(inner)


def test_an_unknown_option_is_refused() -> None:
    function = compiled(torch.sin, options={"fallbck": "error"})
    assert refusal(function, X) == "[options] no option 'fallbck'; did you mean 'fallback'?"


def test_a_wrong_value_is_refused() -> None:
    function = compiled(torch.sin, options={"fallback": "no"})
    assert refusal(function, X) == "[options] fallback is 'aten' or 'error', not 'no'"


def test_an_unknown_pass_is_refused() -> None:
    function = compiled(torch.sin, options={"passes": "canonicalise,fuse,memory"})
    assert refusal(function, X).startswith(
        "no pass named 'canonicalise'; did you mean 'canonicalize'?\n"
    )


def test_fallback_error_names_what_has_no_kernel() -> None:
    function = compiled(lambda x: torch.sort(x.sin())[0] + 1, options={"fallback": "error"})
    assert refusal(function, X) == (
        "[fallback] 1 node has no kernel of ours: aten.sort.default\n"
        "  = help: fallback='aten' runs them as ATen"
    )


def test_fallback_error_takes_what_has_kernels() -> None:
    block = Block()
    with torch.no_grad():
        step = compiled(block, options={"fallback": "error"})
        x = torch.randn(4, 16)
        torch.testing.assert_close(step(x), block(x))
    assert set(the_program().report.counts()) <= {"ours", "aten", "view", "gone", "constant"}


def test_keywords_of_other_backends_are_refused() -> None:
    from rewright.backend import rewright as backend

    with pytest.raises(OptionError, match="takes options=, not tuning="):
        backend(torch.fx.symbolic_trace(Block()), [X], tuning=True)


def test_mode_is_accepted() -> None:
    torch.testing.assert_close(
        torch.compile(torch.sin, backend="rewright", mode="default")(X), X.sin()
    )


def test_reset_forgets_programs() -> None:
    compiled(torch.sin)(X)
    assert rewright.programs()
    torch._dynamo.reset()
    assert rewright.programs() == ()


def test_the_backend_is_registered_by_its_entry_point() -> None:
    assert "rewright" in torch._dynamo.list_backends()


# --- no compiler --------------------------------------------------------------------------------


def test_without_a_compiler_everything_runs_as_aten(monkeypatch: pytest.MonkeyPatch) -> None:
    from rewright.driver import _warn_once

    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    _warn_once.cache_clear()
    block, x = Block(), torch.randn(4, 16)
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler: .*; everything runs as ATen") as seen:
        found = gradients(block, compiled(block), x)
    torch.testing.assert_close(found, gradients(block, block, x))
    assert len([w for w in seen if "rewright" in str(w.message)]) == 1
    assert ["ours" in p.report.counts() for p in rewright.programs()] == [False, False]


def test_without_a_compiler_attention_and_layers_stay_atens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What would be kernels of ours, a mask that skips and a quantized layer, is not made."""
    from rewright.driver import _warn_once

    class Windowed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            i = torch.arange(x.shape[2])
            seen = (i[None] <= i[:, None]) & (i[:, None] - i[None] < 8)
            x = self.layer(x)
            return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=seen)

    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    _warn_once.cache_clear()
    model, x = Windowed().eval(), torch.randn(1, 2, 192, 64)
    with pytest.warns(UserWarning, match="everything runs as ATen"):
        program = rewright.optimize(
            model, (x,), error_budget=0.5, calibration=[(x,)], objective="bytes"
        )
    assert not any(node.op.name.startswith("rw.q") for node in program.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x))


def test_without_a_compiler_fallback_error_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    message = refusal(compiled(torch.sin, options={"fallback": "error"}), X)
    assert message.startswith("[cpp] no C++ compiler: looked for c++, g++, clang++\n")


def test_a_compiler_that_fails_leaves_aten(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """It answers questions about itself, and compiles nothing."""
    from rewright.driver import _warn_once

    fake = tmp_path / "fake-c++"
    fake.write_text('#!/bin/sh\ncase "$*" in *-o*) echo "out of licences"; exit 1;; esac\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.setenv("REWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    _warn_once.cache_clear()
    with pytest.warns(UserWarning, match="fake-c.. could not compile a kernel"):
        torch.testing.assert_close(compiled(lambda x: x.sin() + 1)(X), X.sin() + 1)


def test_an_operator_that_only_raises_is_reported_as_eager_reports_it() -> None:
    def out_of_range(x: Tensor, at: Tensor) -> Tensor:
        return x.index_select(0, at).sin()

    with warnings.catch_warnings(), pytest.raises(IndexError):
        compiled(out_of_range)(X, torch.tensor([99]))


def test_unsupported_is_one_of_our_errors() -> None:
    assert issubclass(UnsupportedError, rewright.RewrightError)


def test_programs_live_as_long_as_somebody_can_run_them() -> None:
    """Their arenas would stay with them."""

    def function(x: Tensor) -> Tensor:
        return x.sin() @ x.t()

    kept = compiled(function)
    kept(X)
    (program,) = rewright.programs()
    torch.testing.assert_close(program.executable([X]), [function(X)])
    del program
    torch._dynamo.eval_frame.remove_from_cache(function)
    gc.collect()
    assert rewright.programs() == ()
