"""Targets are data: names, datasheet figures, and the host measured once and remembered."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rewright.calibrate import host as calibrate_host
from rewright.ir import OptionError, compute_dtype
from rewright.ir.cache import private_folder
from rewright.ir.target import Cache, Target, known_targets

GENERIC = Target.parse("cpu:avx2")


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", known_targets())
def test_a_target_is_found_by_its_name_in_any_case(name: str) -> None:
    target = Target.parse(f" {name.upper()}")
    assert target.name == name
    assert target == Target.parse(name)
    assert hash(target) == hash(Target.parse(name))


def test_the_portable_cpu_is_one_of_the_known() -> None:
    assert Target.parse("cpu") in known_targets().values()


@pytest.mark.parametrize(
    ("isa", "gpu"), [("sm_80", "a100"), ("sm_90", "h100"), ("sm_100", "b200"), ("sm_89", "l4")]
)
def test_a_compute_capability_stands_for_a_gpu_that_has_it(isa: str, gpu: str) -> None:
    known = Target.parse(f"cuda:{gpu}")
    assert Target.parse(f"cuda:{isa}") == dataclasses.replace(known, name=f"cuda:{isa}")
    assert known.isa == isa


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("cuda:h20", "cuda:h200"), ("cpu:avx52", "cpu:avx512"), ("cuda:sm90", "cuda:sm_90")],
)
def test_an_unknown_name_is_refused_with_the_nearest(wrong: str, meant: str) -> None:
    with pytest.raises(OptionError, match=f"no target '{wrong}'; did you mean '{meant}'") as error:
        Target.parse(wrong)
    assert "targets are cpu, cpu:avx512" in str(error.value)


# --- figures ------------------------------------------------------------------------------------

# Dense TFLOP/s in bf16, in f32 without TF32, GB/s; read off the vendor's datasheets.
DATASHEETS = {
    "cuda:a100": (312, 19.5, 2039),
    "cuda:a10": (125, 31.2, 600),
    "cuda:l4": (121, 30.3, 300),
    "cuda:h100": (989.4, 66.9, 3350),
    "cuda:h200": (989.4, 66.9, 4800),
    "cuda:b200": (2250, 80, 8000),
}


@pytest.mark.parametrize("name", DATASHEETS)
def test_gpu_figures_are_those_of_the_datasheet(name: str) -> None:
    bf16, f32, bandwidth = DATASHEETS[name]
    target = Target.parse(name)
    assert target.peak(torch.bfloat16) == target.peak(torch.float16) == bf16 * 1e12
    assert target.peak(torch.float32) == f32 * 1e12
    assert target.bandwidth == bandwidth * 1e9
    assert "NVIDIA" in target.source


@pytest.mark.parametrize("target", known_targets().values(), ids=list(known_targets()))
def test_figures_are_plausible(target: Target) -> None:
    """Nearer memory is smaller and faster; every rate and cost is there."""
    sizes = [c.nbytes for c in target.caches]
    speeds = [*(c.bandwidth for c in target.caches), target.bandwidth]
    assert sizes == sorted(sizes)
    assert speeds == sorted(speeds, reverse=True)
    assert all(rate > 0 for _, rate in target.flops)
    assert 0 < target.launch_seconds < 1e-4 and 0 < target.dispatch_seconds < 1e-4
    assert target.source


def test_traffic_runs_at_the_speed_of_the_innermost_memory_that_holds_it() -> None:
    caches = (Cache("L2", 1000, 8e9), Cache("L3", 4000, 4e9))
    target = dataclasses.replace(GENERIC, bandwidth=1e9, caches=caches)
    assert target.memory(1000) == ("L2", 8e9)
    assert target.memory(1001) == ("L3", 4e9)
    assert target.memory(4001) == ("main memory", 1e9)


def test_a_dtype_without_a_figure_counts_as_f32() -> None:
    target = dataclasses.replace(GENERIC, flops=((torch.float32, 5.0), (torch.float64, 2.0)))
    assert target.peak(torch.float64) == 2.0
    assert target.peak(torch.complex64) == 5.0


@pytest.mark.parametrize("target", known_targets().values(), ids=list(known_targets()))
def test_emitters_take_only_what_can_be_computed(target: Target) -> None:
    assert target.emitters
    for emitter in target.emitters:
        assert all(compute_dtype(dtype) in emitter.dtypes for dtype in emitter.dtypes)


# --- the host -----------------------------------------------------------------------------------


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and no memory of what this process has measured."""
    monkeypatch.setenv("REWRIGHT_CACHE_DIR", str(tmp_path))
    calibrate_host._host.cache_clear()
    yield tmp_path
    calibrate_host._host.cache_clear()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Thread counts that were measured for; each measuring gives other figures."""
    calls: list[int] = []

    def measure(cores: int) -> Target:
        calls.append(cores)
        rate = 1e9 * len(calls)
        return dataclasses.replace(GENERIC, cores=cores, bandwidth=rate, source="invented")

    monkeypatch.setattr(calibrate_host, "measure", measure)
    return calls


def test_the_host_has_figures_of_two_digits(cache_folder: Path) -> None:
    target = calibrate_host.host()
    assert target.name.startswith("cpu:")
    assert target.device == "cpu" and target.cores == torch.get_num_threads()
    assert "measured on" in target.source
    assert dict(target.flops)[torch.float32] > 1e9
    assert target.bandwidth > 1e8
    assert 1e-8 < target.launch_seconds < 1e-3 and 1e-8 < target.dispatch_seconds < 1e-3
    for rate in (target.bandwidth, *dict(target.flops).values()):
        assert rate == float(f"{rate:.1e}")


def test_measuring_needs_no_real_tensors_around_it(cache_folder: Path) -> None:
    """torch calls backends in a mode where nothing it makes has data."""
    before = torch.get_num_threads()
    with FakeTensorMode(), torch.device("meta"):
        target = calibrate_host.host()
    assert dict(target.flops)[torch.float32] < 1e15
    assert torch.get_num_threads() == before


def test_the_host_is_measured_once(cache_folder: Path, measured: list[int]) -> None:
    first = calibrate_host.host()
    calibrate_host._host.cache_clear()
    assert calibrate_host.host() == first
    assert measured == [torch.get_num_threads()]


def test_each_number_of_threads_has_its_own_figures(
    cache_folder: Path, measured: list[int]
) -> None:
    assert calibrate_host._host(1).cores == 1
    assert calibrate_host._host(2).cores == 2
    assert measured == [1, 2]


def test_a_broken_record_is_measured_again(cache_folder: Path, measured: list[int]) -> None:
    calibrate_host.host()
    (record,) = (p for p in cache_folder.rglob("*.host") if p.is_file())
    record.write_bytes(record.read_bytes()[:40])
    calibrate_host._host.cache_clear()
    assert calibrate_host.host().bandwidth == 2e9


def test_without_permission_the_host_is_measured_all_the_same(
    cache_folder: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = cache_folder / "file"
    blocked.write_text("")
    monkeypatch.setenv("REWRIGHT_CACHE_DIR", str(blocked))
    with pytest.warns(UserWarning, match="cache"):
        assert calibrate_host.host().source == "invented"
    for record in private_folder().rglob("*.host"):
        record.unlink()


def test_the_record_gives_back_every_figure() -> None:
    target = dataclasses.replace(
        GENERIC,
        cores=3,
        flops=((torch.float32, 1.2e11), (torch.int8, 4.5e11)),
        caches=(Cache("L2", 1 << 20, 9.9e10),),
    )
    record = json.loads(json.dumps(calibrate_host.to_record(target)))
    assert calibrate_host.from_record(record, 3) == target


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        ("fma avx2 avx512f avx512bw avx512dq avx512vl", "avx512"),
        ("fma avx2 avx512f", "avx2"),
        ("sse2", "generic"),
    ],
)
def test_the_vector_instructions_are_those_the_system_lists(
    flags: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate_host, "_cpuinfo", lambda key: flags)
    assert calibrate_host.isa() == isa


def test_a_system_that_lists_nothing_counts_by_its_architecture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibrate_host, "_cpuinfo", lambda key: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert calibrate_host.isa() == "neon"


@pytest.mark.parametrize(("listed", "count"), [("0", 1), ("0-3", 4), ("0-1,64-65,7", 5)])
def test_lists_of_cpus(listed: str, count: int) -> None:
    assert calibrate_host._cpus(listed) == count
