"""NVIDIA's measurements of library calls on its GPUs, as rows for training (`costmodel/data/gpu`).

What a head must not have seen when it is judged: of products a pair of n and k, of attention a
combination of heads, key heads and width.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pyarrow import parquet

from rewright.costmodel.features import Features
from rewright.costmodel.gpu_features import (
    Attention,
    Product,
    attention_features,
    product_features,
)
from rewright.costmodel.training import Rows
from rewright.ir.target import Target

FOLDER: Final = Path(__file__).parents[2] / "costmodel" / "data" / "gpu"

# GPU, and the files of its products and of its attention.
FILES: Final[Mapping[str, Mapping[str, Sequence[str]]]] = {
    "h200": {
        "gpu_product": ("h200_gemm_b", "h200_gemm_a"),
        "gpu_prefill": ("h200_attention_ctx",),
        "gpu_decode": ("h200_attention_gen",),
    },
    "h100": {"gpu_product": ("h100_gemm",)},
    "a100": {"gpu_product": ("a100_gemm",)},
}
TYPES: Final = {
    "bfloat16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "fp8_block": torch.float8_e4m3fn,
}
# One group in so many is for judging.
JUDGED: Final = 4


def rows_for(gpu: str, family: str) -> tuple[Rows, Rows]:
    """What trains and what judges; the first file that has a type is the one for it."""
    target = Target.parse(f"cuda:{gpu}")
    seen: set[str] = set()
    found: list[tuple[Features, float, str]] = []
    for name in FILES[gpu][family]:
        records = parquet.read_table(FOLDER / f"{name}.parquet").to_pylist()
        found += _rows([r for r in records if _kind(r) not in seen], target)
        seen |= set(map(_kind, records))
    judged = np.array([zlib.crc32(group.encode()) % JUDGED == 0 for _, _, group in found])
    rows = Rows(
        np.array([f.numbers for f, _, _ in found]),
        np.array([f.parts for f, _, _ in found]),
        np.array([seconds for _, seconds, _ in found]),
        [group for _, _, group in found],
        [""] * len(found),
    )
    return rows.of(~judged), rows.of(judged)


def _kind(record: Mapping[str, Any]) -> str:
    return str(record.get("gemm_dtype", "attention"))


def _rows(
    records: Iterable[Mapping[str, Any]], target: Target
) -> Iterator[tuple[Features, float, str]]:
    """Features, seconds and group."""
    for r in records:
        seconds = r["latency"] / 1e3
        if "gemm_dtype" in r:
            dtype = TYPES[r["gemm_dtype"]]
            blocks = r["gemm_dtype"] == "fp8_block"
            product = Product(1, r["m"], r["n"], r["k"], dtype, blocks)
            yield product_features(product, target), seconds, f"{r['n']} {r['k']}"
        else:
            group = f"{r['num_heads']} {r['num_key_value_heads']} {r['head_dim']}"
            yield attention_features(_attention(r), target), seconds, group


def _attention(r: Mapping[str, Any]) -> Attention:
    prefill = r["op_name"] == "context_attention"
    return Attention(
        batch=r["batch_size"],
        heads=r["num_heads"],
        key_heads=r["num_key_value_heads"],
        queries=r["isl"],
        keys=r["isl"] if prefill else r["step"] + 1,
        width=r["head_dim"],
        window=r["window_size"],
        causal=prefill,
        dtype=torch.bfloat16,
        key_dtype=TYPES[r["kv_cache_dtype"]],
    )
