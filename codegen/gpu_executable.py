"""Programs on a GPU in this process: kernels loaded by the driver, and launched as on the CPU.

The launches are those of an artefact (`cuda/driver_runtime.py`), on torch's current stream, in
torch's own context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

from rewright.codegen.cuda.driver_runtime import Driver, DriverError, Launch
from rewright.codegen.executable import Executable
from rewright.codegen.gpu import ALIGNMENT, GpuKernel, GpuKernels, described
from rewright.ir import Graph, TensorType, ToolchainError


@cache
def driver_of(device: torch.device) -> Driver:
    """One for each device. Raises ToolchainError where the driver does not answer."""
    try:
        return Driver(device)
    except (DriverError, OSError) as error:
        raise ToolchainError(f"the CUDA driver cannot be used: {error}", who="cuda") from error


def launches(kernels: GpuKernels, symbols: Sequence[str], driver: Driver) -> dict[str, Launch]:
    """The kernels by name, loaded on the driver's device, whose architecture their first image is
    for. Raises ToolchainError with the driver's words."""
    units: dict[bytes, list[str]] = {}
    for kernel in (k for built in kernels.built for k in (*built.before, built)):
        units.setdefault(kernel.images[0].cubin, []).append(kernel.entry)

    def launch(kernel: GpuKernel) -> Launch:
        (image, *_), before = kernel.images, [launch(k) for k in kernel.before]
        function = functions[image.cubin, kernel.entry]
        return Launch(driver, function, described(kernel), image.shared, symbols, before)

    try:
        with driver.entered():
            functions = {
                (cubin, entry): function
                for cubin, entries in units.items()
                for entry, function in zip(entries, driver.functions(cubin, entries), strict=True)
            }
            return {kernel.name: launch(kernel) for kernel in kernels.built}
    except DriverError as error:
        raise ToolchainError(f"kernels cannot be loaded: {error}", who="cuda") from error


class GpuExecutable(Executable):
    """Launches on the stream that is current when it is called. What a caller passes may begin
    anywhere; kernels read 16 bytes at once, so that such a tensor is copied, and copied back where
    the program writes to it."""

    def __init__(
        self,
        graph: Graph,
        kernels: Mapping[str, Launch],
        of_node: Mapping[str, str],
        driver: Driver,
        device: torch.device,
        *,
        trace: list[tuple[str, str]] | None = None,
    ) -> None:
        # Calls on other streams may still be at work in an arena that is kept.
        super().__init__(graph, kernels, of_node, retain=False, trace=trace)
        self._driver = driver
        self._places = [
            place
            for place, given in enumerate(graph.inputs)
            if isinstance(given.value.type, TensorType) and given.value.type.device == device
        ]
        written = {target for target, _ in graph.updates}
        self._written = {p for p, i in enumerate(graph.inputs) if i.value in written}

    def __call__(self, args: list[Any]) -> list[Any]:
        copied = []
        for place in self._places:
            given = args[place]
            if given.data_ptr() % ALIGNMENT:
                args[place] = _copy(given)
                if place in self._written:
                    copied.append((given, args[place]))
        with self._driver.entered():
            results = super().__call__(args)
        with torch.no_grad():
            for given, used in copied:
                given.copy_(used)
        return results


def _copy(x: torch.Tensor) -> torch.Tensor:
    """The same elements, lying alike from an address that an allocation begins at."""
    reach = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    with torch.no_grad():
        memory = x.as_strided((reach if x.numel() else 0,), (1,)).clone()
        return memory.as_strided(x.shape, x.stride())
