"""Artefacts for GPUs, made without one: what lies in them, and how they launch their kernels."""

from __future__ import annotations

import ctypes
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rewright
from examples.case import Case
from fake_gpu import Recorded, build_driver, on_cpu, pretend
from rewright.artefact import load
from rewright.cli import main
from rewright.codegen import gpu
from rewright.codegen.cuda.driver_runtime import Driver, DriverError, Launch, image_for
from rewright.driver import Program, compile_graph
from rewright.gpu_artefact import compile_for_gpu
from rewright.ir import ArtefactError, OptionError, UnsupportedError
from rewright.ir.parse import parse
from rewright.options import Options
from test_flash_programs import Heads
from zoo import tiny_convnext, tiny_gpt2, tiny_mlp

pytest.importorskip("triton", reason="needs triton")
pytestmark = pytest.mark.cpu
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")

TARGET = "cuda:sm_90"


def gpt2() -> tuple[Case, Any, list[tuple[Any, ...]]]:
    """A case, its dynamic shapes, and inputs of some calls."""
    model, (tokens,) = tiny_gpt2()
    shapes = {"x": {0: torch.export.Dim("n", max=8), 1: torch.export.Dim("t", max=64)}}
    lengths = [(torch.randint(0, 128, s),) for s in ((2, 16), (1, 1), (3, 33))]
    return (model, (tokens,)), shapes, lengths


def convnext() -> tuple[Case, Any, list[tuple[Any, ...]]]:
    model, (image,) = tiny_convnext()
    return (model, (image,)), None, [(image,), (image.to(memory_format=torch.channels_last),)]


class Recurrent(nn.Module):
    """Writes a buffer and an argument; holds a constant."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        self.total.add_(x.exp().sum(0))
        return (x * torch.arange(64.0).reshape(8, 8)).tanh() + self.total


def recurrent() -> tuple[Case, Any, list[tuple[Any, ...]]]:
    torch.manual_seed(0)
    return (Recurrent(), (torch.randn(8, 8),)), None, [(torch.randn(8, 8),) for _ in range(2)]


def windows() -> tuple[Case, Any, list[tuple[Any, ...]]]:
    """Attention in a kernel of ours, for any length."""
    torch.manual_seed(0)
    shapes = {"x": {1: torch.export.Dim("t", max=512)}}
    lengths = [(torch.randn(2, t, 32),) for t in (300, 1, 77)]
    return (Heads(in_window), (torch.randn(2, 300, 32),)), shapes, lengths


def in_window(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    at = torch.arange(query.shape[2])
    seen = (at <= at[:, None]) & (at[:, None] - at < 64)
    return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)


CASES = {f.__name__: f for f in (gpt2, convnext, recurrent, windows)}


def written(name: str, folder: Path) -> tuple[Program, nn.Module, list[tuple[Any, ...]]]:
    (module, example), shapes, calls = CASES[name]()
    given = tuple(x.clone() for x in example)
    compiled = rewright.optimize(module, given, dynamic_shapes=shapes, target=TARGET)
    compiled.save(folder)
    program = compiled.program
    assert program.plan.gpu is not None and program.plan.gpu.built
    return program, module, calls


def kernels_of(program: Program) -> gpu.GpuKernels:
    assert program.plan.gpu is not None
    return program.plan.gpu


def json_of(path: Path) -> Any:
    return json.loads(path.read_text())


# --- what lies in it ----------------------------------------------------------------------------


def test_kernels_lie_in_it_as_source_ptx_and_cubin(tmp_path: Path) -> None:
    program, _, _ = written("gpt2", tmp_path / "build")
    folder = tmp_path / "build"
    about, manifest = json_of(folder / "kernels.json"), json_of(folder / "rewright.json")
    assert manifest["target"] | {"needs": []} == {
        "name": TARGET,
        "device": "cuda",
        "isa": "sm_90",
        "machine": "",
        "needs": [],
    }
    assert (about["format"], about["version"], about["aten"]) == ("rewright-kernels", 2, {})
    assert about["symbols"] == [s.name for s in program.graph.symbols]
    assert {node for k in about["kernels"] for node in k["nodes"]} == set(program.recipe.kernels)
    for kernel in about["kernels"]:
        (image,) = kernel["images"]
        assert image["arch"] == 90 and image["ptx_target"].startswith("sm_90")
        assert (folder / image["cubin"]).read_bytes().startswith(b"\x7fELF")
        ptx = (folder / image["ptx"]).read_text()
        assert f".target {image['ptx_target']}" in ptx and f".entry {kernel['entry']}(" in ptx
        assert "@triton.jit" in (folder / kernel["source"]).read_text()
        assert {kernel["source"], image["ptx"], image["cubin"]} <= set(manifest["files"])
    assert all("on cuda:0" in i["type"] for i in manifest["inputs"])
    assert "driver.py" in manifest["files"] and not (folder / "kernels.so").exists()


def test_nothing_in_it_names_this_machine(tmp_path: Path) -> None:
    written("gpt2", tmp_path / "build")
    here = str(Path(__file__).resolve().parents[1]).encode()
    there = str(Path(torch.__file__).resolve().parents[1]).encode()
    for path in (tmp_path / "build").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert here not in content and there not in content, path.name


def test_it_is_refused_where_there_is_no_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    compiled = rewright.optimize(*tiny_mlp(), target=TARGET)
    with pytest.raises(UnsupportedError, match="compiled for a GPU"):
        compiled(torch.ones(8, 16))
    with pytest.raises(ArtefactError, match=r"for a GPU \(sm_90\), and torch finds none here"):
        load(compiled.save(tmp_path / "build"))


def test_the_command_line_writes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f.rw").write_text(
        "rewright 1\ngraph f(%x: f32[64]) {\n  %a = aten.exp.default(%x) : f32[64]\n"
        "  %b = aten.sin.default(%a) : f32[64]\n  return %b\n}\n"
    )
    assert main(["optimize", "f.rw", "--target", "cuda:h200", "-o", "build"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-2:] == ["nodes: 2 ours", "wrote build"]
    assert [line.split()[0] for line in shown][-5:-2] == ["move", "fuse", "memory"]
    assert Path("build/kernels/k0_exp_sin.sm_90.cubin").exists()


def test_what_no_emitter_can_do_runs_as_aten_and_is_named() -> None:
    graph = parse("""graph f(%x: f8e4m3fn[64], %y: f32[64]) {
  %a = aten._to_copy.default(%x, dtype=f32) : f32[64]
  %b = aten.exp.default(%a) : f32[64]
  %c = aten.mul.Tensor(%y, %y) : f32[64]
  %d = aten.sin.default(%c) : f32[64]
  return %b, %d
}""")
    program = compile_for_gpu(graph, Options.of({"target": TARGET}))
    called = [n.op.name for n in program.graph.nodes if not n.op.name.startswith("rw.")]
    assert called == ["aten._to_copy.default", "aten.exp.default"]
    assert [kernel.name for kernel in kernels_of(program).built] == ["k1_mul_sin"]
    ((name, why),) = kernels_of(program).refused.items()
    assert name == "k0_to_copy_exp" and "have no Triton form" in why and "no elements of" in why
    assert f"{name} runs as ATen: {why}" in program.report.notes
    with pytest.raises(UnsupportedError, match="k0_to_copy_exp has no kernel"):
        compile_for_gpu(graph, Options.of({"target": TARGET, "fallback": "error"}))


def test_what_is_for_cpus_is_refused() -> None:
    module, inputs = tiny_mlp()
    options: dict[str, Any] = {"error_budget": 0.1, "calibration": [inputs]}
    with pytest.raises(UnsupportedError, match="quantized kernels are for CPUs"):
        rewright.optimize(module, inputs, target=TARGET, **options)
    with pytest.raises(UnsupportedError, match="weights are packed for CPUs"):
        rewright.optimize(module, inputs, target=TARGET, freeze="yes")


def test_attention_that_leaves_out_tiles_is_a_kernel_of_triton() -> None:
    (module, inputs), shapes, _ = windows()
    program = rewright.optimize(module, inputs, dynamic_shapes=shapes, target=TARGET).program
    (node,) = (n for n in program.graph.nodes if n.op.name == "rw.attention")
    assert node.kwarg("via") == "triton"
    kernels = {kernel.name: kernel for kernel in kernels_of(program).built}
    assert "# le" in kernels[program.recipe.kernels[node.name]].source  # the mask is part of it
    causal = gpt2()[0]
    plain = rewright.optimize(*causal, target=TARGET).program
    assert not any(n.op.name == "rw.attention" for n in plain.graph.nodes)
    assert "ATen's kernel computes as much" in "".join(str(d) for d in plain.plan.log)


def test_attention_that_triton_does_not_multiply_runs_as_aten() -> None:
    (module, (x,)), _, _ = windows()
    program = rewright.optimize(module.double(), (x.double(),), target=TARGET).program
    assert not any(n.op.name == "rw.attention" for n in program.graph.nodes)
    assert "multiply f32, f16 or bf16" in "".join(str(d) for d in program.plan.log)


def test_what_is_to_run_here_is_not_moved() -> None:
    graph = parse("graph f(%x: f32[8]) {\n  %y = aten.exp.default(%x) : f32[8]\n  return %y\n}")
    with pytest.raises(UnsupportedError, match="is a cuda device, and graph f is on cpu"):
        compile_graph(graph, Options.of({"target": TARGET}))


# --- running it on a GPU that is not there ------------------------------------------------------


def agree(call: Any, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    ours, theirs = ([x.clone() for x in inputs] for _ in range(2))
    with torch.no_grad():
        wanted = module(*theirs)
    (found,) = call(*ours)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", CASES)
def test_launches_pass_what_kernels_take(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Triton, through a driver that computes what each region says from what it is passed."""
    program, module, calls = written(name, tmp_path / "build")
    fake = Recorded(program.recipe)
    call = on_cpu(tmp_path / "build", monkeypatch, fake)
    symbols = [s.name for s in program.graph.symbols]
    moving = list((CASES[name]()[1] or {"x": {}})["x"])  # dimensions of the input
    for inputs in calls:
        fake.sizes = {s: inputs[0].shape[d] for s, d in zip(symbols, moving, strict=True)}
        fake.launches = {}
        agree(call, module, inputs)
        launched = list(program.recipe.kernels.values())
        assert fake.launches == {kernel: launched.count(kernel) for kernel in set(launched)}
    assert {kernel.language for kernel in kernels_of(program).built} == {"triton"}


@needs_nvcc
@pytest.mark.parametrize("name", CASES)
def test_kernels_in_cuda_cpp_give_what_eager_gives(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no Triton; through a driver that runs them thread by thread."""
    monkeypatch.setattr(gpu, "has_triton", lambda: False)
    program, module, calls = written(name, tmp_path / "build")
    assert {kernel.language for kernel in kernels_of(program).built} == {"cuda"}
    call = on_cpu(tmp_path / "build", monkeypatch, build_driver(tmp_path / "build", tmp_path))
    for inputs in calls:
        agree(call, module, inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_an_artefact_gives_on_a_gpu_what_eager_gives(name: str, tmp_path: Path) -> None:
    (module, example), shapes, calls = CASES[name]()
    target = "cuda:sm_{}{}".format(*torch.cuda.get_device_capability())
    given = tuple(x.clone() for x in example)
    rewright.optimize(module, given, dynamic_shapes=shapes, target=target).save(tmp_path / "build")
    call = runpy.run_path(str(tmp_path / "build" / "program.py"))["load"]()
    for inputs in calls:
        agree(call, module.cuda(), tuple(x.cuda() for x in inputs))


# --- launches that would go wrong ---------------------------------------------------------------

KERNEL = {
    "name": "k",
    "threads": [128, 1],
    "blocks": "(B0 + 127)//128",
    "narrow": ["4*B0"],
    "arguments": [
        {"kind": "pointer", "name": "x", "aligned": True},
        {"kind": "size", "name": "n", "type": "i32", "value": "B0"},
    ],
}


class Silent:
    """A driver that does what it is told, or answers with one code."""

    def __init__(self, code: int = 0) -> None:
        self.code, self.calls = code, [""]

    def __getattr__(self, name: str) -> Any:
        if name == "cuGetErrorString":
            return lambda code, said: setattr(said._obj, "value", b"out of luck")
        self.calls.append(name)
        return lambda *args: self.code


def launch(library: Silent, address: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (9, 0))
    driver = Driver(torch.device("cuda:0"), library)
    with driver.entered():
        kernel = Launch(driver, ctypes.c_void_p(1), KERNEL, 0, ["B0"])
        kernel((ctypes.c_void_p * 1)(address), (ctypes.c_int64 * 1)(size))


def test_a_launch_of_nothing_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Silent()
    launch(library, 64, 0, monkeypatch)
    assert "cuLaunchKernel" not in library.calls
    launch(library, 64, 1, monkeypatch)
    assert "cuLaunchKernel" in library.calls


def test_launches_that_would_go_wrong_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DriverError, match="pointer 0 of k is no multiple of 16 bytes"):
        launch(Silent(), 72, 5, monkeypatch)
    with pytest.raises(DriverError, match="k was built for fewer elements"):
        launch(Silent(), 64, 2**29, monkeypatch)
    with pytest.raises(DriverError, match="cuInit failed with 3: out of luck"):
        launch(Silent(3), 64, 5, monkeypatch)


def test_inputs_that_kernels_cannot_read_in_one_go_are_copied() -> None:
    from rewright.codegen.loading import fitted

    data = torch.randn(9)
    wanted = (torch.float32, (8,), (1,))
    assert fitted("x", data[1:], wanted, torch.device("cpu")).data_ptr() == data[1:].data_ptr()
    meta = torch.empty(9, device="meta")
    assert fitted("x", meta[:8], wanted, torch.device("meta")).data_ptr() % 16 == 0


def built_for(*targets: str) -> list[dict[str, Any]]:
    """A kernel with images for PTX targets such as sm_80 and sm_90a."""
    images = [{"arch": int(t.strip("sm_a")), "ptx_target": t} for t in targets]
    return [{"images": images}]


@pytest.mark.parametrize(
    ("targets", "here", "image"),
    [
        (("sm_90a",), (9, 0), (90, "cubin")),
        (("sm_80",), (8, 9), (80, "cubin")),
        (("sm_80",), (9, 0), (80, "ptx")),
        (("sm_80", "sm_86"), (8, 9), (86, "cubin")),
        (("sm_90a", "sm_80"), (9, 0), (90, "cubin")),
        (("sm_90a", "sm_80"), (10, 0), (80, "ptx")),
    ],
)
def test_a_gpu_gets_what_it_can_run(
    targets: tuple[str, ...], here: tuple[int, int], image: tuple[int, str]
) -> None:
    assert image_for(built_for(*targets), here) == image


@pytest.mark.parametrize(
    ("targets", "here"),
    [
        (("sm_90a",), (8, 0)),
        (("sm_90a",), (10, 0)),
        (("sm_100a",), (10, 3)),
        (("sm_89", "sm_90a"), (8, 0)),
    ],
)
def test_another_gpu_is_refused(targets: tuple[str, ...], here: tuple[int, int]) -> None:
    built, found = ", ".join(t.rstrip("a") for t in targets), 10 * here[0] + here[1]
    words = f"built for {built}, and this GPU is sm_{found}: .* --target cuda:sm_{found}"
    with pytest.raises(DriverError, match=words):
        image_for(built_for(*targets), here)


def test_several_architectures_lie_in_one_folder(tmp_path: Path) -> None:
    module, inputs = tiny_mlp()
    compiled = rewright.optimize(module, inputs, target="cuda:h200,cuda:sm_80")
    folder = compiled.save(tmp_path / "build")
    (kernel,) = json_of(folder / "kernels.json")["kernels"]
    assert [image["arch"] for image in kernel["images"]] == [90, 80]
    assert all((folder / image["cubin"]).is_file() for image in kernel["images"])
    target = json_of(folder / "rewright.json")["target"]
    assert (target["name"], target["isa"]) == ("cuda:h200", "sm_90, sm_80")
    with pytest.raises(OptionError, match="several targets are GPUs, and cpu:avx2 is none"):
        rewright.optimize(module, inputs, target="cuda:h200,cpu:avx2")


def test_pointers_into_the_middle_are_told_apart() -> None:
    """Parts of a tensor, which begin at a multiple of 16 bytes or do not."""
    graph = parse("""graph f(%x: f32[B0, 40] on cuda:0) where B0 in [1, inf] {
  %a, %b, %c = aten.split_with_sizes.default(%x, [4, 5, 31], 1)
    : f32[B0, 4] strides [40, 1] on cuda:0,
      f32[B0, 5] strides [40, 1] on cuda:0,
      f32[B0, 31] strides [40, 1] on cuda:0
  %d = aten.slice.Tensor(%x, 0, 3) : f32[B0 - 3, 40] on cuda:0
  %e = aten.select.int(%d, 1, 1) : f32[B0 - 3] strides [40] on cuda:0
  %k = aten.exp.default(%a) : f32[B0, 4] on cuda:0
  %l = aten.exp.default(%b) : f32[B0, 5] on cuda:0
  %m = aten.exp.default(%c) : f32[B0, 31] on cuda:0
  %n = aten.exp.default(%d) : f32[B0 - 3, 40] on cuda:0
  %o = aten.exp.default(%e) : f32[B0 - 3] on cuda:0
  return %k, %l, %m, %n, %o
}""")
    found = gpu.unaligned_pointers(graph, {name: f"of_{name}" for name in "klmno"})
    assert found == {"of_k": set(), "of_l": set(), "of_m": {0}, "of_n": set(), "of_o": {0}}
