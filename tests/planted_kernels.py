"""Faults to be found in what emits kernels, calls them and places their buffers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

import rewright.codegen.cpp
from planted_models import Patch, Planted, bert_model, gpt2_model, windows_model
from rewright.ir import Node


def wrong_erf(patch: Patch) -> None:
    """The error function is printed as another one."""
    _emitting(patch, lambda text: re.sub(r"\berf\(", "tanh(", text))


def short_tail(patch: Patch) -> None:
    """The last vector of a row lacks its last number."""
    short = """using namespace rw;
template <class T> inline void store_short(T* to, compute<T> x, Whole n) { store(to, x, n); }
template <class T> inline void store_short(T* to, compute<T> x, int n) { store(to, x, n - 1); }
"""
    _emitting(
        patch,
        lambda text: re.sub(r"\bstore\((.*), n\);", r"store_short(\1, n);", text).replace(
            "using namespace rw;\n", short
        ),
    )


def sums_from_one(patch: Patch) -> None:
    """A sum begins at one, in every lane."""
    how = """using namespace rw;
struct FromOne : Add { template <class T> static V<T> none() { return splat(T(1)); } };
"""
    _emitting(
        patch,
        lambda text: text.replace("AlongLanes<f32, Add>", "AlongLanes<f32, FromOne>").replace(
            "using namespace rw;\n", how
        ),
    )


def no_compiler_takes_it(patch: Patch) -> None:
    """What is printed for an operator is no C++."""
    _emitting(patch, lambda text: re.sub(r"\btanh\(", "tanh(()", text))


def wild_pointer(patch: Patch) -> None:
    """A kernel reads memory that is not there."""
    _emitting(patch, lambda text: re.sub(r"\berf\((\w+)\)", r"erf(load((const f32*)8, n))", text))


def later_mask(patch: Patch) -> None:
    """Attention takes a token itself for one that it must not see."""
    _emitting(patch, lambda text: re.sub(r"(const mask t\d+ = )le\(", r"\1lt(", text))


def raising_emitter(patch: Patch) -> None:
    """No C++ is made of a kernel with a hyperbolic tangent."""

    def changed(text: str) -> str:
        if re.search(r"\btanh\(", text):
            raise AssertionError("a scalar was spilled twice")
        return text

    _emitting(patch, changed)


def slow_tanh(patch: Patch) -> None:
    """Before the hyperbolic tangent of a vector a hundred thousand steps are counted."""
    slow = """using namespace rw;
template <class T> inline T slow_tanh(T x) {
  for (volatile int i = 0; i < 100000; i = i + 1) {}
  return tanh(x);
}
"""
    _emitting(
        patch,
        lambda text: re.sub(r"\btanh\(", "slow_tanh(", text).replace("using namespace rw;\n", slow),
    )


def one_address(patch: Patch) -> None:
    """The runtime places all buffers at the beginning of the arena."""
    from rewright.codegen.runtime import Frame

    honest = Frame.place

    def wrong(self: Frame, offset: int, *of: Any) -> torch.Tensor:
        return honest(self, 0, *of)

    patch.setattr(Frame, "place", wrong)


def _emitting(patch: Patch, change: Callable[[str], str]) -> None:
    honest = rewright.codegen.cpp.emit

    def emit(*given: Any, **named: Any) -> str:
        return change(honest(*given, **named))

    patch.setattr(rewright.codegen.cpp, "emit", emit)


def doubled_products(patch: Patch) -> None:
    """The call sequence has ATen make products twice as large."""
    from rewright.codegen import call_sequence

    honest = call_sequence._Writer.args

    def wrong(self: Any, node: Node) -> str:
        text = honest(self, node)
        return f"{text}, alpha=2.0" if node.op.name == "aten.addmm.default" else text

    patch.setattr(call_sequence._Writer, "args", wrong)


KERNELS = (
    Planted("wrong erf", wrong_erf, bert_model, "gelu", "aten.gelu.default", "gelu"),
    Planted("short tail", short_tail, gpt2_model, "k0", "", "native_layer_norm"),
    Planted(
        "sums from one",
        sums_from_one,
        bert_model,
        "layer_norm",
        "aten.native_layer_norm.default",
        "native_layer_norm",
    ),
    Planted(
        "no compiler takes it",
        no_compiler_takes_it,
        gpt2_model,
        "tanh",
        "aten.tanh.default",
        "tanh",
    ),
    Planted("wild pointer", wild_pointer, bert_model, "gelu", "aten.gelu.default", "gelu"),
    Planted(
        "doubled products",
        doubled_products,
        bert_model,
        "the call sequence",
        "aten.addmm.default",
        "addmm",
    ),
    Planted(
        "later mask",
        later_mask,
        windows_model,
        "kernel k0_attention",
        "",
        "_scaled_dot_product_flash_attention_for_cpu",
    ),
    Planted("raising emitter", raising_emitter, gpt2_model, "tanh", "aten.tanh.default", "tanh"),
    Planted("one address", one_address, gpt2_model, "the call sequence", ""),
)
SLOW_KERNEL = Planted("slow tanh", slow_tanh, gpt2_model, "tanh", "aten.tanh.default", "tanh")
