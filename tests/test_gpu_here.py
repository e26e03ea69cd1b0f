"""Programs on a GPU in this process: with a driver that stands in for CUDA's, and, where there is a
GPU, on that. Tensors lie on the CPU, and torch is told that it is a GPU."""

from __future__ import annotations

import dataclasses
import math
import shutil
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rewright
from attention_kernels import MASKS, Shape, nest_of, numbers
from fake_gpu import Recorded, pretend
from rewright import backend, building, driver, gpu_plan
from rewright.building import Recipe
from rewright.codegen import Executable, cuda, gpu
from rewright.codegen.cuda import build as cuda_build
from rewright.codegen.cuda.driver_runtime import Driver
from rewright.codegen.cuda.nvrtc import Nvrtc, nvrtc
from rewright.codegen.gpu_executable import GpuExecutable
from rewright.codegen.triton import compile as triton_build
from rewright.codegen.triton import compile_for
from rewright.costmodel import Roofline
from rewright.driver import plan_graph
from rewright.ir import Arg, TensorType, ToolchainError, Value
from rewright.ir.loops import lower
from rewright.ir.parse import parse
from rewright.ir.target import Target
from rewright.options import Options
from rewright.passes import Env, FlashAttention, Pipeline
from rewright.passes.move import _Mover
from test_flash_programs import Heads, sdpa, window
from test_triton import kernel_of
from through_backend import the_program
from zoo import tiny_gpt2, tiny_mlp

pytest.importorskip("triton", reason="needs triton")
pytestmark = pytest.mark.cpu
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")

GPU = torch.device("cuda:0")
SMALL = """graph f(%x: f32[64] on cuda:0) {
  %a = aten.exp.default(%x) : f32[64] on cuda:0
  %b = aten.sin.default(%a) : f32[64] on cuda:0
  return %b
}"""


class Moved(_Mover):
    """To another device, wherever a graph is, and with the operators of that."""

    def arg(self, arg: Arg) -> Arg:
        return self.device if isinstance(arg, torch.device) else super().arg(arg)

    def value(self, value: Value) -> Value:
        if not isinstance(value.type, TensorType):
            return value
        return Value(value.name, dataclasses.replace(value.type, device=self.device))


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Recorded]]:
    """The drivers of the programs that are built, of a machine whose CPU is an H200."""
    has_one = torch.cuda.is_available
    pretend(monkeypatch, (9, 0))
    monkeypatch.setattr(torch.cuda, "is_available", has_one)  # Dynamo would ask it for more
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H200")
    for module in (driver, gpu_plan):
        monkeypatch.setattr(module, "gpu_of", lambda graph: GPU)
    found: list[Recorded] = []
    on_gpu, graph_of = building._on_gpu, backend.graph_of

    def on_cpu(recipe: Recipe, *rest: Any) -> Any:
        found.append(Recorded(recipe))
        here = Driver(GPU, found[-1])
        on_host = Driver(torch.device("cpu"), found[-1])
        monkeypatch.setattr(here, "scratch", on_host.scratch)
        monkeypatch.setattr(building, "driver_of", lambda device: here)
        return on_gpu(dataclasses.replace(recipe, graph=back.graph(recipe.graph)), *rest)

    monkeypatch.setattr(building, "_on_gpu", on_cpu)
    moved = Moved(GPU)
    monkeypatch.setattr(backend, "graph_of", lambda *given: moved.graph(graph_of(*given)))
    back = Moved(torch.device("cpu"))
    monkeypatch.setattr(
        building,
        "Executable",
        lambda graph, *rest, **named: Executable(back.graph(graph), *rest, **named),
    )
    torch.compiler.reset()
    yield found
    torch.compiler.reset()


def compiled(module: nn.Module, **options: Any) -> Any:
    return torch.compile(module, backend="rewright", options=options or None, dynamic=False)


def launched(drivers: list[Recorded]) -> int:
    return sum(sum(fake.launches.values()) for fake in drivers)


@torch.no_grad()
def test_kernels_are_launched_where_a_model_is_compiled(drivers: list[Recorded]) -> None:
    model, (tokens,) = tiny_gpt2()
    run = compiled(model.eval())
    torch.testing.assert_close(run(tokens), model(tokens), rtol=1e-4, atol=1e-5)
    program = the_program()
    assert isinstance(program.executable, GpuExecutable)
    assert program.graph.name == "inference" and program.plan.env.target.name == "cuda:h200"
    assert launched(drivers) == len(program.recipe.kernels) > 3
    run(tokens)
    assert launched(drivers) == 2 * len(program.recipe.kernels)


@torch.no_grad()
def test_attention_is_launched_too(drivers: list[Recorded]) -> None:
    module = Heads(lambda q, k, v: sdpa(q, k, v, attn_mask=window(q.shape[2])))
    x = torch.randn(2, 200, 32)
    torch.testing.assert_close(compiled(module)(x), module(x), rtol=1e-4, atol=1e-5)
    (fake,) = drivers
    assert "attention" in "".join(fake.launches)


def windowed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over windows, written out, with heads of keys that are shared."""
    key, value = (x.repeat_interleave(2, 1) for x in (key[:, :2], value[:, :2]))
    scores = query @ key.mT * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~window(query.shape[2]), -math.inf).softmax(-1)
    return torch.matmul(weights, value)


def test_attention_is_launched_in_training(drivers: list[Recorded]) -> None:
    """What is kept between forward and backward are no scores, but logarithms of their sums; the
    backward is two launches, which share scratch memory."""
    module = Heads(windowed)
    x = torch.randn(2, 200, 32, requires_grad=True)
    compiled(module)(x).square().sum().backward()
    found, x.grad = x.grad, None
    module(x).square().sum().backward()
    torch.testing.assert_close(found, x.grad, rtol=1e-4, atol=1e-5)
    forward, backward = ([k for k in fake.launches if "attention" in k] for fake in drivers)
    assert len(forward) == 1 and len(backward) == 2


def test_training_steps_are_launched(drivers: list[Recorded]) -> None:
    model, (x,) = tiny_mlp()
    model.train()
    torch.manual_seed(0)  # of its dropout
    compiled(model)(x).square().sum().backward()
    found = [p.grad for p in model.parameters()]
    assert len(drivers) == 2 and all(fake.launches for fake in drivers)
    model.zero_grad()
    torch.manual_seed(0)
    model(x).square().sum().backward()
    torch.testing.assert_close(found, [p.grad for p in model.parameters()])


def test_attention_is_recognized_in_calls_that_are_for_gpus() -> None:
    graph = parse("""graph f(
    %q: f16[1, 2, 300, 16] on cuda:0,
    %k: f16[1, 2, 300, 16] on cuda:0,
    %v: f16[1, 2, 300, 16] on cuda:0
) {
  %i = aten.arange.default(300, dtype=i64, device=device("cuda:0")) : i64[300] on cuda:0
  %j = aten.unsqueeze.default(%i, 1) : i64[300, 1] on cuda:0
  %d = aten.sub.Tensor(%j, %i) : i64[300, 300] on cuda:0
  %a = aten.abs.default(%d) : i64[300, 300] on cuda:0
  %near = aten.lt.Scalar(%a, 40) : bool[300, 300] on cuda:0
  %no = aten.full.default([], -inf, dtype=f16, device=device("cuda:0")) : f16[] on cuda:0
  %yes = aten.full.default([], 0.0, dtype=f16, device=device("cuda:0")) : f16[] on cuda:0
  %m = aten.where.self(%near, %yes, %no) : f16[300, 300] on cuda:0
  %b = aten.expand.default(%m, [1, 2, 300, 300])
    : f16[1, 2, 300, 300] strides [90000, 0, 300, 1] on cuda:0
  %o, %s, %seed, %offset = aten._scaled_dot_product_efficient_attention.default(
    %q, %k, %v, %b, false
  ) : f16[1, 2, 300, 16] strides [9600, 16, 32, 1] on cuda:0,
    f32[1, 2, 320] on cuda:0, i64[] on cuda:0, i64[] on cuda:0
  return %o
}""")
    target = Target.parse("cuda:h200")
    env = Env(Roofline(target), target)
    made = Pipeline((FlashAttention(),)).run(graph, env).graph
    (node,) = (n for n in made.nodes if n.op.name == "rw.attention")
    assert node.kwarg("via") == "triton", [str(d) for d in env.log]
    assert not any("scaled_dot" in n.op.name for n in made.nodes)


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.exp().sin()
        x.copy_(y * 2 + 1)
        return y


@torch.no_grad()
def test_tensors_may_begin_anywhere(drivers: list[Recorded]) -> None:
    """The driver refuses addresses that kernels cannot read from; what is written is written."""
    memory = torch.randn(65)
    given, plain = memory[1:], memory[1:].clone()
    assert given.data_ptr() % 16
    wanted = Writes()(plain)
    torch.testing.assert_close(compiled(Writes())(given), wanted)
    torch.testing.assert_close(given, plain)
    torch.testing.assert_close(memory[1:], plain)


@needs_nvcc
@torch.no_grad()
def test_cuda_cpp_takes_the_place_of_triton(
    drivers: list[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "has_triton", lambda: False)
    model, (x,) = tiny_mlp()
    torch.testing.assert_close(compiled(model.eval())(x), model(x), rtol=1e-4, atol=1e-5)
    assert launched(drivers) > 0
    kernels = the_program().plan.gpu
    assert kernels is not None and {k.language for k in kernels.built} == {"cuda"}


@torch.no_grad()
@pytest.mark.parametrize("missing", ["compilers", "driver"])
def test_without_a_compiler_or_a_driver_everything_runs_as_aten(
    missing: str, drivers: list[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver(*_: object) -> None:
        raise ToolchainError("the CUDA driver cannot be used: it is gone")

    if missing == "driver":
        monkeypatch.setattr(building, "_on_gpu", no_driver)
    else:
        monkeypatch.setattr(gpu, "has_triton", lambda: False)
        monkeypatch.setattr(cuda, "has_compiler", lambda: False)
    driver._warn_once.cache_clear()
    model, (x,) = tiny_mlp()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            torch.compiler.reset()
            torch.testing.assert_close(compiled(model.eval())(x), model(x))
    ours = [str(w.message) for w in said if "rewright" in str(w.message)]
    reason = {"driver": "the CUDA driver cannot be used", "compilers": "neither Triton, NVRTC nor"}
    assert len(ours) == 1 and reason[missing] in ours[0]
    assert ours[0].endswith("everything runs as ATen")
    assert the_program().report.notes == (ours[0].removeprefix("rewright: "),)
    assert drivers == []


def test_what_is_for_cpus_runs_as_aten(drivers: list[Recorded]) -> None:
    """A budget of memory, say: its step is scheduled for calls of ATen."""
    for asked, value in (
        ("memory_budget", "min"),
        ("freeze", "yes"),
        ("attention", "window{size=4}"),
    ):
        options = Options.of({asked: value})
        note = gpu_plan.why_aten(parse(SMALL), options)
        assert note == f"{asked} is for programs on the CPU; on cuda everything is ATen"


def test_old_gpus_and_several_devices_have_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (7, 5))
    (note,) = plan_graph(parse(SMALL), Options()).notes
    assert note == "kernels are for GPUs from sm_80 on; on cuda everything is ATen"
    pretend(monkeypatch, (9, 0))
    mixed = SMALL.replace(") {", ", %y: f32[4] on cuda:1) {", 1)
    (note,) = plan_graph(parse(mixed), Options()).notes
    assert note.startswith("kernels run on the CPU, or on the one GPU of a graph")


def test_numbers_on_the_cpu_leave_a_graph_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    mixed = SMALL.replace(") {", ", %y: f32[64]) {", 1).replace(
        "return %b", "%c = aten.exp.default(%y) : f32[64]\n  return %b, %c"
    )
    plan = plan_graph(parse(mixed), Options())
    regions = [n.result.tensor.device for n in plan.fused.nodes if n.op.name == "rw.fused"]
    assert plan.notes == () and regions == [GPU]


def test_attention_on_the_cpu_beside_a_gpu_is_taken_apart() -> None:
    """A plan for a GPU takes what is on the CPU to be moved; in a process nothing is."""
    given = numbers(Shape(1, 1, 64, 64, 16, 16))
    nest = nest_of(MASKS["causal"].score, given)
    assert gpu.build_kernels([nest], (), [90], {}).refused == {"attention": "it is on the CPU"}


@pytest.mark.parametrize(
    ("name", "capability", "target"),
    [
        ("NVIDIA H200", (9, 0), ("cuda:h200", "sm_90")),
        ("NVIDIA A100-SXM4-80GB", (8, 0), ("cuda:a100", "sm_80")),
        ("NVIDIA GH200 480GB", (9, 0), ("cuda:sm_90", "sm_90")),
        ("NVIDIA GeForce RTX 4090", (8, 9), ("cuda:sm_89", "sm_89")),
        ("NVIDIA B300", (10, 3), ("cuda:sm_103", "sm_103")),
    ],
)
def test_the_gpu_of_this_process_is_known_by_name_or_family(
    name: str, capability: tuple[int, int], target: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found = gpu_plan.target_here(GPU)
    assert (found.name, found.isa) == target


# --- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["gpt2", "heads", "writes"])
@torch.no_grad()
def test_a_model_on_a_gpu_gives_what_eager_gives(name: str) -> None:
    gpt2, (tokens,) = tiny_gpt2()
    heads = Heads(lambda q, k, v: sdpa(q, k, v, attn_mask=window(q.shape[2]).to(q.device)))
    models: dict[str, tuple[nn.Module, Tensor]] = {
        "gpt2": (gpt2, tokens),
        "heads": (heads, torch.randn(2, 300, 32)),
        "writes": (Writes(), torch.randn(65)[1:]),
    }
    module, x = models[name]
    module, x = module.eval().cuda(), x.cuda()
    ours, theirs = x.clone(), x.clone()
    torch.compiler.reset()
    torch.testing.assert_close(compiled(module)(ours), module(theirs), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert isinstance(the_program().executable, GpuExecutable)


@pytest.mark.gpu
def test_a_step_on_a_gpu_gives_what_eager_gives() -> None:
    model, (x,) = tiny_mlp()
    model, x = model.cuda().train(), x.cuda()
    torch.compiler.reset()
    torch.manual_seed(0)  # of its dropout
    compiled(model)(x).square().sum().backward()
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    torch.manual_seed(0)
    model(x).square().sum().backward()
    grads = [p.grad for p in model.parameters()]
    torch.testing.assert_close(found, grads, rtol=1e-3, atol=1e-4)
    assert all(isinstance(p.executable, GpuExecutable) for p in rewright.programs())


# --- building -------------------------------------------------------------------------------------


def test_a_kernel_of_triton_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_of("""graph f(%x: f32[640]) {
  %a = aten.cosh.default(%x) : f32[640]
  return %a
}""")
    first = compile_for(kernel, 90)

    def refuse(*_: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(triton_build, "_compiled", refuse)
    assert compile_for(kernel, 90) == first
    with pytest.raises(AssertionError, match="built again"):
        compile_for(kernel, 80)


class Stub:
    """NVRTC's functions, of a compiler that takes everything but what says nonsense."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            match name:
                case "nvrtcVersion":
                    arguments[0]._obj.value, arguments[1]._obj.value = 12, 8
                case "nvrtcCreateProgram":
                    _, self.source, self.name, count, self.headers, self.names = arguments
                    assert count == len(self.headers) == len(self.names)
                case "nvrtcCompileProgram":
                    self.flags = list(arguments[2])
                    return 6 if b"nonsense" in self.source else 0
                case _ if name.endswith("Size"):
                    arguments[1]._obj.value = 6
                case "nvrtcGetProgramLog":
                    arguments[1].value = b"wrong"
                case "nvrtcGetCUBIN":
                    arguments[1].value = b"\x7fELF"
            return 0

        return call


def test_nvrtc_is_asked_for_cubins() -> None:
    stub = Stub()
    library = Nvrtc(stub)
    assert library.version == "12.8"
    found = cuda_build._by_nvrtc(library, "kernels", 90, True)
    assert found.startswith(b"\x7fELF") and stub.names[0] == b"kernels.cuh"
    assert b"--gpu-architecture=sm_90" in stub.flags and b"--fmad=false" in stub.flags
    with pytest.raises(ToolchainError, match="NVRTC does not compile the kernels: wrong"):
        library.compiled("nonsense", {}, (), cubin=True)
    assert stub.calls[-1] == "nvrtcDestroyProgram"


@pytest.mark.skipif(nvrtc() is None, reason="needs NVRTC")
def test_nvrtc_builds_what_nvcc_builds() -> None:
    from test_cuda import ALL, kernel_of, primitives_of
    from triton_cases import NUMBERS

    library = nvrtc()
    assert library is not None
    kernels = [kernel_of(name)[1] for name in ALL]
    kernels += [cuda.emit(primitives_of(dtype)) for dtype in NUMBERS]
    endless = parse("""graph f(%x: f32[8], %m: bool[8]) {
  %a = aten.masked_fill.Scalar(%x, %m, -inf) : f32[8]
  %b = aten.masked_fill.Scalar(%a, %m, nan) : f32[8]
  return %a, %b
}""")
    source = cuda.unit([*kernels, cuda.emit(lower(endless, "endless"))])
    for arch in (80, 90, 100):
        assert cuda_build._by_nvrtc(library, source, arch, True).startswith(b"\x7fELF")
