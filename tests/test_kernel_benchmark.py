"""What `benchmarks.kernels` times: its list, its steps, its roofs. No timing is asserted."""

from __future__ import annotations

import pytest
import torch

from benchmarks.kernel_functions import MAKERS
from benchmarks.kernels import KERNELS, Kernel, copy_of, moved_bytes, of_roof, step_of, summary
from benchmarks.timing import Comparison

SMALL = {2: (4, 8), 4: (1, 2, 4, 8)}


def test_what_is_listed_can_be_made() -> None:
    listed = [kernel for kernels in KERNELS.values() for kernel in kernels]
    assert {kernel.make for kernel in listed} == set(MAKERS)
    assert len({kernel.case for kernel in listed}) == len(listed) > 50


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_runs_and_its_roof_moves_its_bytes(name: str) -> None:
    first = KERNELS[name][0]
    small = Kernel(
        name, first.make, SMALL[len(first.shape)], first.training, first.dtype, first.roof
    )
    function, inputs, products = small.prepared()
    assert all(x.dtype == getattr(torch, first.dtype) for x in inputs if x.is_floating_point())
    result = function(*inputs)
    assert bool(result.isfinite().all())
    assert result.requires_grad == first.training
    assert (products is None) == (first.roof == "copy")
    bytes_moved = moved_bytes(inputs, result, False)
    assert bytes_moved == sum(x.nbytes for x in inputs) + result.nbytes
    assert abs(2 * copy_of(bytes_moved)().nbytes - bytes_moved) < 8


def test_a_step_gives_a_result_and_its_gradients() -> None:
    x, y = torch.randn(3, requires_grad=True), torch.randn(3)
    handed = torch.randn(3)
    result, gradient = step_of(lambda x, y: x * x * y, handed)(x, y)
    torch.testing.assert_close(result, (x * x * y).detach())
    torch.testing.assert_close(gradient, 2 * x.detach() * y * handed)
    assert moved_bytes((x, y), (result, gradient), True) == 7 * 12


def test_kernels_are_judged_by_how_far_the_peer_is_from_the_roof() -> None:
    def found(ours: float, peer: float) -> Comparison:
        times = {"ours": [ours] * 3, "peer": [peer] * 3, "roof": [1.0] * 3}
        return Comparison(times, other_load=0.0)

    results = {"a": found(1.0, 2.0), "b": found(4.0, 2.0), "c": found(1.2, 1.25)}
    assert of_roof(results["b"], "ours") == 0.25
    assert list(summary(results, "ours", "peer")) == [
        ["peer under 75% of the roof", "2", "1.00x", "0.50x", "b"],
        ["peer at 75% of the roof", "1", "1.04x", "1.04x", "c"],
    ]
