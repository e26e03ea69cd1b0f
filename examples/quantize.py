"""Quantize an image classifier as far as an error budget goes; measure it on images not seen.

    python -m examples.quantize

What is chosen for each layer, and the error measured on the samples that the search held out, is
the certificate. The images at the end took part in neither.
"""

from __future__ import annotations

from typing import Any

import torch

import rewright
from examples.huggingface import vit

BUDGET = 0.05


def main() -> None:
    """A small ViT in as few bytes of weights as an error of 5% allows."""
    small: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 512}
    model, _ = vit(2, 64, **small, num_hidden_layers=2, num_attention_heads=4)
    torch.manual_seed(0)
    samples = [(torch.randn(2, 3, 64, 64),) for _ in range(3)]
    program = rewright.optimize(
        model,
        samples[0],
        error_budget=f"rel_l2<={BUDGET}",
        calibration=samples,
        objective="bytes",
    )
    print(program.why("quantize"))
    with torch.no_grad():
        unseen = torch.randn(32, 3, 64, 64).split(2)
        exact = torch.cat([model(x) for x in unseen])
        found = torch.cat([program(x) for x in unseen])
    error = float((found - exact).norm() / exact.norm())
    print(f"on 32 images not seen: rel_l2 {error:.3f}, at most {BUDGET}: {error <= BUDGET}")


if __name__ == "__main__":
    main()
