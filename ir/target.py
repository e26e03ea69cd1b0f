"""Targets: what a device can do, as frozen data.

Passes and cost models read these numbers; nobody measures here (`rewright.calibrate.host` measures
the host, once). Rates are peaks: dense FLOP/s by element type of a contraction, bytes/s of memory.
GPU figures are the vendor's, without structured sparsity; each entry names its document.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from rewright.ir.errors import OptionError, did_you_mean
from rewright.ir.ops import Kind


@dataclass(frozen=True)
class Cache:
    """A cache level: its size over all cores that work together, and its bytes/s."""

    name: str
    nbytes: int
    bandwidth: float


@dataclass(frozen=True)
class Emitter:
    """What a code generator can put into one kernel: kinds of operators, element types of tensors.

    Regions have no anchor (matmul, convolution, attention) yet; those run as library calls.
    """

    name: str
    kinds: tuple[Kind, ...]
    dtypes: tuple[torch.dtype, ...]


@dataclass(frozen=True)
class Target:
    """One device. `isa` is what kernels are built for: avx512, avx2, neon, generic, sm_90 ...

    `flops` are the peaks of contractions by element type; elementwise work runs at the peak of the
    type it is computed in. `launch_seconds` is what one kernel of ours costs besides its work,
    `dispatch_seconds` the same for a call of an ATen operator. `source` says where the numbers
    come from.
    """

    name: str
    device: str
    isa: str
    cores: int
    flops: tuple[tuple[torch.dtype, float], ...]
    bandwidth: float
    caches: tuple[Cache, ...]
    launch_seconds: float
    dispatch_seconds: float
    emitters: tuple[Emitter, ...]
    source: str

    def peak(self, dtype: torch.dtype) -> float:
        """FLOP/s of contractions over `dtype`; those of f32 for a type without a figure."""
        rates = dict(self.flops)
        return rates.get(dtype, rates[torch.float32])

    def memory(self, nbytes: int) -> tuple[str, float]:
        """The innermost memory that holds `nbytes`: its name and its bytes/s."""
        for cache in self.caches:
            if nbytes <= cache.nbytes:
                return cache.name, cache.bandwidth
        return "main memory", self.bandwidth

    @staticmethod
    def parse(text: str) -> Target:
        """The target called `text`: `cpu:avx2`, `cuda:h200`, `cuda:sm_90`; `cpu` is the portable
        one of this machine's architecture, and an `sm_` stands for a GPU that has it.

        Raises OptionError with the nearest known name.
        """
        wanted = text.strip().lower()
        if wanted == "cpu":
            wanted = f"cpu:{PORTABLE_ISAS.get(platform.machine().lower(), 'generic')}"
        found = known_targets().get(wanted)
        if found is None:
            names = ["cpu", *known_targets()]
            raise OptionError(
                f"no target '{text}'{did_you_mean(wanted, names)}",
                who="target",
                help=f"targets are {', '.join(names)}",
            )
        return found


# What every machine of an architecture that we are likely to meet can run.
PORTABLE_ISAS: Final = {"x86_64": "avx2", "amd64": "avx2", "aarch64": "neon", "arm64": "neon"}


def known_targets() -> Mapping[str, Target]:
    """Every target with a name, in the order in which they are listed to people."""
    return _TARGETS


# --- emitters -----------------------------------------------------------------------------------

_FUSIBLE: Final = (Kind.POINTWISE, Kind.VIEW, Kind.REDUCTION, Kind.INDEX, Kind.CREATION)
_PLAIN: Final = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint32, torch.uint16, torch.uint8, torch.bool),
)
_FLOAT8: Final = (torch.float8_e4m3fn, torch.float8_e5m2)

CPP: Final = Emitter("cpp", _FUSIBLE, (*_PLAIN, *_FLOAT8))
TRITON: Final = Emitter("triton", _FUSIBLE, _PLAIN)
# Triton converts to and from e4m3fn from compute capability 8.9 on.
TRITON_FLOAT8: Final = Emitter("triton", _FUSIBLE, (*_PLAIN, *_FLOAT8))

# --- CPUs without measurements -------------------------------------------------------------------

_GENERIC: Final = (
    "no measurement: eight cores of a server from about 2020, at two vector FMA units a core and "
    "2.5 GHz"
)


def _generic_cpu(isa: str, lanes: int) -> Target:
    """A CPU nobody has measured; `lanes` are the f32 elements of one of its vectors."""
    cores = 8
    f32 = cores * lanes * 2 * 2 * 2.5e9
    return Target(
        name=f"cpu:{isa}",
        device="cpu",
        isa=isa,
        cores=cores,
        flops=((torch.float32, f32), (torch.float64, f32 / 2)),
        bandwidth=80e9,
        caches=(Cache("L2", 8 << 20, 800e9), Cache("L3", 32 << 20, 250e9)),
        launch_seconds=1.5e-6,
        dispatch_seconds=1.5e-6,
        emitters=(CPP,),
        source=_GENERIC,
    )


# --- GPUs ----------------------------------------------------------------------------------------

# The shortest of some 200,000 GEMMs measured on A100, H100 and H200 (aiconfigurator 0.12, NVIDIA,
# Apache-2.0) take 2.2 to 2.5 us: what a kernel costs that has nothing to do.
_KERNEL_SECONDS: Final = 2.5e-6
# An eager call also keeps the host busy; a common figure, not a measurement.
_EAGER_SECONDS: Final = 5e-6
_TERA: Final = 1e12


def _gpu(
    name: str,
    isa: str,
    cores: int,
    bandwidth: float,
    teraflops: Mapping[torch.dtype, float],
    source: str,
    l2: tuple[Cache, ...] = (),
) -> Target:
    modern = int(isa.removeprefix("sm_")) >= 89
    return Target(
        name=f"cuda:{name}",
        device="cuda",
        isa=isa,
        cores=cores,
        flops=tuple((dtype, rate * _TERA) for dtype, rate in teraflops.items()),
        bandwidth=bandwidth,
        caches=l2,
        launch_seconds=_KERNEL_SECONDS,
        dispatch_seconds=_EAGER_SECONDS,
        emitters=(TRITON_FLOAT8 if modern else TRITON,),
        source=source,
    )


def _rates(
    f64: float, f32: float, f16: float, i8: float, f8: float | None = None
) -> Mapping[torch.dtype, float]:
    """TFLOP/s by dtype. f32 is without TF32, as torch multiplies unless told otherwise."""
    rates = {
        torch.float64: f64,
        torch.float32: f32,
        torch.float16: f16,
        torch.bfloat16: f16,
        torch.int8: i8,
    }
    if f8 is not None:
        rates |= dict.fromkeys(_FLOAT8, f8)
    return rates


# L2 bandwidth: NVIDIA states it for A100 only (5,120 B/clk, at 1.41 GHz); Hopper is taken to be as
# wide (at 1.755 GHz). For the others there is no figure, and they count without a cache.
_A100_L2: Final = Cache("L2", 40 << 20, 7.2e12)
_HOPPER_L2: Final = Cache("L2", 50 << 20, 9.0e12)
_HOPPER: Final = _rates(f64=66.9, f32=66.9, f16=989.4, i8=1978.9, f8=1978.9)

_GPUS: Final = (
    _gpu(
        "a100",
        "sm_80",
        cores=108,
        bandwidth=2.039e12,
        teraflops=_rates(f64=19.5, f32=19.5, f16=312, i8=624),
        source="NVIDIA A100 80GB SXM datasheet (1758950) and NVIDIA A100 architecture whitepaper",
        l2=(_A100_L2,),
    ),
    _gpu(
        "a10",
        "sm_86",
        cores=72,
        bandwidth=600e9,
        teraflops=_rates(f64=0.49, f32=31.2, f16=125, i8=250),
        source="NVIDIA A10 datasheet; f64 is 1/64 of f32 (GA102 architecture whitepaper)",
    ),
    _gpu(
        "l4",
        "sm_89",
        cores=58,
        bandwidth=300e9,
        teraflops=_rates(f64=0.47, f32=30.3, f16=121, i8=242.5, f8=242.5),
        source="NVIDIA L4 datasheet, tensor-core rates halved (it states them with sparsity); f64 "
        "is 1/64 of f32 (Ada architecture whitepaper)",
    ),
    _gpu(
        "h100",
        "sm_90",
        cores=132,
        bandwidth=3.35e12,
        teraflops=_HOPPER,
        source="NVIDIA H100 SXM5 datasheet and NVIDIA H100 architecture whitepaper v1.03",
        l2=(_HOPPER_L2,),
    ),
    _gpu(
        "h200",
        "sm_90",
        cores=132,
        bandwidth=4.8e12,
        teraflops=_HOPPER,
        source="NVIDIA H200 SXM datasheet; compute as the H100's, the same GH100 chip",
        l2=(_HOPPER_L2,),
    ),
    _gpu(
        "b200",
        "sm_100",
        cores=148,
        bandwidth=8e12,
        teraflops=_rates(f64=40, f32=80, f16=2250, i8=4500, f8=4500),
        source="NVIDIA Blackwell architecture technical brief, HGX B200 column",
    ),
)

# Which GPU stands for a compute capability.
_REPRESENTATIVES: Final = {
    "sm_80": "a100",
    "sm_86": "a10",
    "sm_89": "l4",
    "sm_90": "h100",
    "sm_100": "b200",
}


def _table() -> dict[str, Target]:
    cpus = {"avx512": 16, "avx2": 8, "neon": 4, "generic": 4}
    listed = [*(_generic_cpu(isa, lanes) for isa, lanes in cpus.items()), *_GPUS]
    named = {target.name: target for target in listed}
    for isa, gpu in _REPRESENTATIVES.items():
        named[f"cuda:{isa}"] = dataclasses.replace(named[f"cuda:{gpu}"], name=f"cuda:{isa}")
    return named


_TARGETS: Final = _table()
