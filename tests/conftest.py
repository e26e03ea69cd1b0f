"""What every test runs under: private caches, checked passes, one thread, a fixed seed."""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

# xdist's workers are started with the environment of the process that owns the session.
OWNS_SESSION = "PYTEST_XDIST_WORKER" not in os.environ
if OWNS_SESSION:
    CACHES = tempfile.mkdtemp(prefix="rewright-tests-")
    for variable in ("REWRIGHT_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        os.environ[variable] = os.path.join(CACHES, variable.lower())

# OpenMP reads its variables when torch loads it: this stands before the first import of torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["REWRIGHT_CHECK"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402

# The same examples every time, on machines of any speed.
settings.register_profile("rewright", derandomize=True, deadline=None, database=None)
settings.load_profile("rewright")


def pytest_unconfigure() -> None:
    if OWNS_SESSION:
        shutil.rmtree(CACHES, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, reason in missing().items():
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def missing() -> dict[str, str]:
    """Markers whose tests can't run on this machine, and why."""
    reasons = {}
    if not torch.cuda.is_available():
        reasons["gpu"] = "needs a CUDA device, and torch sees none"
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        reasons["cpu"] = "builds C++, and there is no c++, g++ or clang++ on PATH"
    return reasons


@pytest.fixture(autouse=True)
def same_plans_everywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fused, and which library is called, does not depend on the machine that runs the
    tests, nor on what else ran when it measured itself: the roofline decides, and no library wins a
    race, but in tests that are marked `learned`."""
    if request.node.get_closest_marker("learned") is None:
        from rewright.costmodel import Roofline

        monkeypatch.setattr("rewright.driver.cost_model", Roofline)
        monkeypatch.setattr("rewright.calibrate.tools.race", lambda calls, target: None)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def every_graph_round_trips() -> Iterator[None]:
    """Whatever graph a test puts through a checked pipeline prints, parses and is itself again."""
    from rewright.ir import Graph
    from rewright.ir import check as module
    from rewright.ir.parse import parse
    from rewright.ir.show import show

    check, seen = module.check, set[str]()

    def check_and_round_trip(graph: Graph, level: str) -> None:
        check(graph, level)
        text = show(graph)
        if text in seen:
            return
        seen.add(text)
        parsed = parse(text)
        assert parsed == graph, f"another graph after a round trip:\n{text}"
        assert show(parsed) == text

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "check", check_and_round_trip)
        yield


@pytest.fixture(autouse=True, scope="session")
def programs_are_compiled_not_loaded() -> Iterator[None]:
    """No graph is large enough for AOTAutograd's cache, whatever the session has imported by then.
    A test that wants the cache sets `torch._functorch.config.force_autograd_cache`."""
    from rewright import aot_cache

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aot_cache, "_key_seconds", lambda: math.inf)
        yield


@pytest.fixture(autouse=True)
def without_dynamo_state() -> Iterator[None]:
    """Nothing torch.compile remembers reaches the next test."""
    yield
    dynamo, backend = (sys.modules.get(name) for name in ("torch._dynamo", "rewright.backend"))
    if dynamo is not None:
        dynamo.reset()
    if backend is not None:  # a backward may be compiled when Dynamo has forgotten who did it
        backend.reset()


@pytest.fixture(autouse=True)
def two_threads_for_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kernels run in parallel in their tests, so that a race can show."""
    if not request.node.get_closest_marker("cpu"):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data_dependent() -> Iterator[None]:
    """Let Dynamo trace operators whose results' sizes depend on data."""
    with torch._dynamo.config.patch(
        capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True
    ):
        yield
