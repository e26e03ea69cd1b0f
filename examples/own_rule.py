"""A rewrite rule of your own: refused while it is wrong, then proved, then applied.

python -m examples.own_rule
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import rewright

WRONG = """
rule root-of-square reassociating {
  %x: float
  match aten.sqrt.default(aten.mul.Tensor(%x, %x))
  give  %x
}
"""
RIGHT = """
rule root-of-square reassociating {
  %x: float
  match aten.sqrt.default(aten.mul.Tensor(%x, %x))
  give  aten.abs.default(%x)
}
"""


class Magnitude(nn.Module):
    """Linear, then the size of every number: `[N, 64] -> [N, 64]`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return torch.sqrt(y * y)


def main() -> None:
    """What proving says of both rules, and the graph before and after the right one."""
    for text in (WRONG, RIGHT):
        for verdict in rewright.rule(text).check():
            print(verdict)
    model, x = Magnitude().eval(), torch.randn(8, 64)
    program = rewright.optimize(model, (x,), rules=[rewright.rule(RIGHT)])
    print(program.why("rules"))
    print(program.graph)
    with torch.no_grad():
        print("largest difference:", float((program(x) - model(x)).abs().max()))


if __name__ == "__main__":
    main()
