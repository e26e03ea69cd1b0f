"""MLIR out and in: our passes for tools that speak the torch dialect, and their graphs for us.

python -m examples.mlir
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import rewright
from examples.mlp import mlp


def main() -> None:
    """A model as MLIR after our passes, read back and compared; then a text of another tool."""
    model, (x,) = mlp(8, widths=(16, 32, 4))
    with tempfile.TemporaryDirectory() as folder:
        rewritten = rewright.rewrite(model, (x,))
        for file in rewritten.save(Path(folder) / "mlp.mlir"):
            print(f"{file.name}: {file.stat().st_size} bytes")
        program = rewright.optimize(Path(folder) / "mlp.mlir")
        with torch.no_grad():
            (found,) = program(x)
            print(f"read back, it differs by {float((found - model(x)).abs().max()):.0e}")

        elsewhere = Path(folder) / "elsewhere.mlir"
        elsewhere.write_text(ELSEWHERE)
        program = rewright.optimize(elsewhere)
        print(program.graph)
        print(program(torch.tensor([[1.0, -2.0], [3.0, -4.0]])))


# As `torch_mlir.fx.export_and_import` writes it, with sizes that are known when it runs.
ELSEWHERE = """
module {
  func.func @main(%x: !torch.vtensor<[?,2],f32>) -> !torch.vtensor<[?,2],f32> {
    %0 = torch.aten.abs %x : !torch.vtensor<[?,2],f32> -> !torch.vtensor<[?,2],f32>
    %1 = torch.aten.sqrt %0 : !torch.vtensor<[?,2],f32> -> !torch.vtensor<[?,2],f32>
    return %1 : !torch.vtensor<[?,2],f32>
  }
}
"""

if __name__ == "__main__":
    main()
