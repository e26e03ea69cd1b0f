"""Compile for an H200 on a machine without a GPU: a folder that runs where the GPU is.

    python -m examples.cross_compile [FOLDER]

Kernels are built by Triton where that is installed (`pip install triton`), else by CUDA's nvcc.
Without either the folder is written too, and every operator in it runs as PyTorch's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import rewright
from examples.transformer import two_block_transformer


def main(folder: Path) -> None:
    """Two transformer blocks for sm_90; what was built, by what, and what to do with it."""
    model, inputs = two_block_transformer(width=128)
    program = rewright.optimize(model, inputs, target="cuda:h200")
    program.save(folder)
    told = json.loads((folder / "kernels.json").read_text())
    for kernel in told["kernels"]:
        (image,) = kernel["images"]
        size = (folder / image["cubin"]).stat().st_size
        print(f"{kernel['name']}: {kernel['language']}, {size} bytes for sm_{image['arch']}")
    for name, why in told["aten"].items():
        print(f"{name} runs as PyTorch's operators: {why}")
    if not told["kernels"]:
        print("no kernel was built: install triton or the CUDA toolkit; rewright doctor tells more")
    print(f"copy {folder} to the GPU: rewright run {folder}, or load() of {folder}/program.py")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "h200"))
