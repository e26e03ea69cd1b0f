"""Quantized linear layers beside what ATen, oneDNN and fbgemm have.

    python -m benchmarks.quantized

Each contestant computes y = x W^T for x [M, K] and W [N, K]; those that quantize activations do so
in the call. `int8`, `int8-weight` and `int4-g128` are ours; `linear` is PyTorch's in f32; fbgemm
and oneDNN quantize activations with one scale for all rows; torchao's are compiled by Inductor;
ATen's int4 has no f32 kernel worth the name and gets bfloat16, as do those that say so.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

import rewright
from benchmarks.contestants import TORCHAO, by_torchao
from benchmarks.load import warning
from benchmarks.options import RESULTS, add_turns
from benchmarks.report import track, warn, write_json
from benchmarks.steady import relative_l2, show
from benchmarks.timing import Comparison, compare

FORMATS: Final = ("int8", "int8-weight", "int4-g128")
SIZES: Final = ((1, 2048, 2048), (16, 2048, 2048), (512, 2048, 2048), (64, 512, 512))
ENGINES: Final = {"fbgemm": "fbgemm", "oneDNN": "onednn"}


def contestants(rows: int, columns: int, depth: int) -> Mapping[str, Callable[[], Any]]:
    torch.manual_seed(0)
    x, layer = torch.randn(rows, depth), nn.Linear(depth, columns, bias=False).eval()
    calls: dict[str, Callable[[], Any]] = {f: _ours(f, layer, x) for f in FORMATS}
    half, x_half = copy.deepcopy(layer).bfloat16(), x.bfloat16()
    calls["int4-g128 bf16"] = _ours("int4-g128", half, x_half)
    calls |= {"linear": partial(layer, x), "linear bf16": partial(half, x_half)}
    calls |= {name: _dynamic(layer, x, engine) for name, engine in ENGINES.items()}
    for format in TORCHAO:
        calls[f"torchao {format}"] = partial(by_torchao(layer, format), x)
    calls["int4 mm"] = _int4_mm(layer.weight.detach(), x)
    return calls


def _ours(format: str, layer: nn.Module, x: Tensor) -> Callable[[], Any]:
    passes = f"canonicalize,quantize{{formats={format},objective=bytes}},dce,fuse,memory"
    compiled = rewright.optimize(layer, (x,), error_budget=10.0, calibration=[(x,)], passes=passes)
    found = [n.kwarg("format") for n in compiled.graph.nodes if n.op.name.startswith("rw.quant")]
    assert found == [format], f"{found} instead of {format}"
    inputs = compiled.bindings.flatten((x,), {})
    executable = compiled.program.executable
    return lambda: executable(list(inputs))[0]


def _dynamic(layer: nn.Linear, x: Tensor, engine: str) -> Callable[[], Any]:
    """int8 in and out of an engine of PyTorch's, with a scale for each row of weights."""
    weight = layer.weight.detach()
    columns, depth = weight.shape
    scales = weight.abs().amax(1) / 127
    torch.backends.quantized.engine = engine
    made = torch.ao.nn.quantized.dynamic.Linear(depth, columns, bias_=False)
    zeros = torch.zeros(columns, dtype=torch.long)
    packed = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    made.set_weight_bias(packed, None)
    return lambda: made(x)


def _int4_mm(weight: Tensor, x: Tensor) -> Callable[[], Any]:
    """ATen's weights in 4 bits, groups of 128."""
    columns, depth = weight.shape
    nibbles = torch.randint(0, 16, (columns, depth), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, 1)
    scales = torch.rand(depth // 128, columns, 2, dtype=torch.bfloat16)
    given = x.bfloat16()
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(given, packed, 128, scales)


def main() -> int:
    asked = argparse.ArgumentParser("python -m benchmarks.quantized", description=__doc__)
    add_turns(asked)
    asked.add_argument("--json", type=Path, default=RESULTS / "quantized.json", metavar="FILE")
    given = asked.parse_args()
    torch.set_num_threads(given.threads)
    results: dict[str, Comparison] = {}
    errors: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        for rows, columns, depth in track(list(SIZES), str):
            case = f"{rows}x{columns}x{depth}"
            calls = contestants(rows, columns, depth)
            exact = calls["linear"]()
            errors[case] = {f: relative_l2(calls[f](), exact) for f in FORMATS}
            results[case] = compare(calls, given.rounds, given.milliseconds / 1000)
    show("linear", results, list(calls))
    warn(warning([found.other_load for found in results.values()]))
    settings = {key: getattr(given, key) for key in ("rounds", "milliseconds", "threads")}
    rows_ = [
        {"case": case, "errors": errors[case], **found.as_json(FORMATS)}
        for case, found in results.items()
    ]
    write_json(given.json, "quantized", settings, rows_)
    return 0


if __name__ == "__main__":
    sys.exit(main())
