"""Facts about ATen operators that torch's schemas do not say: how they relate to memory."""

from __future__ import annotations

from typing import Final

import torch

from rewright.ir.ops import Kind

REDUCTIONS: Final = frozenset(
    {
        "aten.sum.default",
        "aten.sum.dim_IntList",
        "aten.mean.default",
        "aten.mean.dim",
        "aten.amax.default",
        "aten.amin.default",
        "aten.max.default",
        "aten.min.default",
        "aten.prod.default",
        "aten.prod.dim_int",
        "aten.any.default",
        "aten.any.dim",
        "aten.any.dims",
        "aten.all.default",
        "aten.all.dim",
        "aten.all.dims",
        "aten.var.correction",
        "aten.var_mean.correction",
        "aten.std.correction",
        "aten.logsumexp.default",
        "aten._softmax.default",
        "aten._log_softmax.default",
        "aten._softmax_backward_data.default",
        "aten._log_softmax_backward_data.default",
        "aten.native_layer_norm.default",
        "aten.native_group_norm.default",
        "aten._fused_rms_norm.default",
        "aten.linalg_vector_norm.default",
    }
)

INDEXING: Final = frozenset(
    {
        "aten.embedding.default",
        "aten.index_select.default",
        "aten.gather.default",
        "aten.cat.default",
        "aten.constant_pad_nd.default",
        "aten.flip.default",
        "aten.roll.default",
        "aten.tril.default",
        "aten.triu.default",
        "aten.slice_scatter.default",
        "aten.select_scatter.default",
        "aten.slice_backward.default",
        "aten.select_backward.default",
        "aten.repeat.default",
        "aten.stack.default",
    }
)

CONTRACTIONS: Final = frozenset(
    {
        "aten.mm.default",
        "aten.addmm.default",
        "aten.bmm.default",
        "aten.baddbmm.default",
        "aten.mv.default",
        "aten.dot.default",
        "aten.addmv.default",
        "aten.matmul.default",
        "aten.linear.default",
        "aten.convolution.default",
        "aten.convolution_backward.default",
        "aten.conv2d.default",
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        "aten._scaled_dot_product_flash_attention_for_cpu_backward.default",
        "aten._scaled_dot_product_flash_attention.default",
        "aten._scaled_dot_product_flash_attention_backward.default",
        "aten._scaled_dot_product_efficient_attention.default",
        "aten._scaled_dot_product_efficient_attention_backward.default",
        "aten._scaled_dot_product_cudnn_attention.default",
        "aten.scaled_dot_product_attention.default",
        "aten._scaled_dot_product_attention_math_for_mha.default",
        "aten._int_mm.default",
        "aten._scaled_mm.default",
        "mkldnn._linear_pointwise.default",
        "mkldnn._linear_pointwise.binary",
        "mkldnn._convolution_pointwise.default",
        "mkldnn._convolution_pointwise.binary",
    }
)

# Operators whose first two operands may change places; not with other arguments than these.
COMMUTATIVE: Final = frozenset(
    {
        *("aten.add.Tensor", "aten.mul.Tensor", "aten.maximum.default", "aten.minimum.default"),
        *("aten.eq.Tensor", "aten.ne.Tensor", "aten.fmax.default", "aten.fmin.default"),
        *("aten.logical_and.default", "aten.logical_or.default", "aten.logical_xor.default"),
        *("aten.bitwise_and.Tensor", "aten.bitwise_or.Tensor", "aten.bitwise_xor.Tensor"),
    }
)

# Schema says "fresh", but on the values that reach us it only relabels the storage.
RELABELLINGS: Final = frozenset({"aten._unsafe_view.default", "aten._reshape_alias.default"})

# Views whose result is not a fixed strided window of a dense input.
_NOT_PLAIN_VIEWS: Final = frozenset({"aten.lift_fresh.default", "aten._to_sparse.default"})


def kind_of(name: str, target: torch._ops.OpOverload) -> Kind:
    """How the operator relates to memory."""
    from rewright.ir.pointwise import is_pointwise

    if is_pointwise(name):
        return Kind.POINTWISE
    if name in REDUCTIONS:
        return Kind.REDUCTION
    if name in INDEXING:
        return Kind.INDEX
    if name in CONTRACTIONS:
        return Kind.CONTRACTION
    if name in RELABELLINGS or _is_view(name, target._schema):
        return Kind.VIEW
    if not any("Tensor" in str(a.type) for a in target._schema.arguments):
        return Kind.CREATION
    return Kind.OTHER


def _is_view(name: str, schema: torch.FunctionSchema) -> bool:
    """Every result aliases an argument that is only read."""
    if schema.is_mutable or name in _NOT_PLAIN_VIEWS or not schema.returns:
        return False
    return all(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
