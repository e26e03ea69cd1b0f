"""Quantization within an error budget, through `rewright.optimize`."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn

import rewright
from error_budgets import (
    WIDTH,
    held_out,
    mlp,
    optimized,
    outliers,
    quantized,
    relative,
    samples,
)
from rewright.api import export
from rewright.artefact import load as artefact_in
from rewright.calibration_samples import graph_samples
from rewright.ir import InputError, OptionError
from rewright.ir.interpret import interpret
from rewright.ir.onednn import multiplies
from rewright.ir.pt2 import load
from rewright.options import Options
from rewright.passes import Quantize
from rewright.passes.quantize.formats import FORMAT_OF


@pytest.mark.parametrize("budget", [0.003, 0.01, 0.05])
def test_the_error_is_within_the_budget(budget: float) -> None:
    model = mlp()
    compiled = optimized(model, budget)
    assert held_out(model, compiled) <= budget
    if budget >= 0.01:
        assert quantized(compiled)


@pytest.mark.learned
def test_layers_are_timed() -> None:
    """Where races are run, each layer becomes what was quickest, or stays as it is."""
    model = mlp()
    compiled = optimized(model, 0.05, objective="time")
    assert held_out(model, compiled) <= 0.05


def test_a_budget_of_zero_changes_nothing() -> None:
    model = mlp()
    compiled = optimized(model, 0)
    plain = rewright.optimize(model, samples(1)[0])
    assert not quantized(compiled)
    assert torch.equal(compiled(*samples(1)[0]), plain(*samples(1)[0]))


def test_what_is_predicted_is_about_what_is_measured() -> None:
    """Within 1.5 times, over models of several depths."""
    for seed, depth in enumerate((1, 3, 6)):
        model = mlp(seed, depth)
        compiled = optimized(model, "rel_l2<=0.05")
        (told,) = [str(d) for d in compiled.program.plan.log if "held-out" in str(d)]
        measured, predicted = (
            float(told.split(word)[1].split()[0].strip(",;")) for word in ("rel_l2 is", "expected")
        )
        assert 1 / 1.5 <= measured / predicted <= 1.5


@pytest.mark.parametrize("metric", ["kl<=0.001", "top1>=0.9"])
def test_other_metrics(metric: str) -> None:
    model = mlp()
    (x,) = samples(1, rows=512, seed=5)[0]
    compiled = optimized(model, metric, calibration=samples(3, rows=512), example=[(x,)])
    assert quantized(compiled)
    with torch.no_grad():
        p, q = model(x).log_softmax(-1), compiled(x).log_softmax(-1)
    if metric.startswith("kl"):
        assert float((p.exp() * (p - q)).sum(-1).mean()) <= 0.001
    else:
        assert float((p.argmax(-1) == q.argmax(-1)).double().mean()) >= 0.89


def test_a_function_of_the_user() -> None:
    def worst(exact: Sequence[Tensor], got: Sequence[Tensor]) -> float:
        return max(float((a - b).abs().max()) for a, b in zip(exact, got, strict=True))

    model = mlp()
    compiled = optimized(model, (worst, 0.05))
    assert quantized(compiled)
    with torch.no_grad():
        for x in samples(3, seed=8):
            assert worst([model(*x)], [compiled(*x)]) <= 0.06


# --- harms ----------------------------------------------------------------------------------------


def ties(model: nn.Module) -> nn.Module:
    """Weights that lie halfway between two integers."""
    with torch.no_grad():
        weight = model[1][0].weight  # type: ignore[index]
        weight.copy_((torch.randint(-126, 126, weight.shape) + 0.5) / 1270)
        weight[:, 0] = 0.1
    return model


def zeros(model: nn.Module) -> nn.Module:
    """A layer of zeros, and a row of them."""
    with torch.no_grad():
        model[1][0].weight.zero_()  # type: ignore[index]
        model[2][0].weight[5].zero_()  # type: ignore[index]
    return model


@pytest.mark.parametrize("harm", [outliers, ties, zeros])
def test_harms_are_refused_or_repaired(harm: Callable[[nn.Module], nn.Module]) -> None:
    model = harm(mlp())
    compiled = optimized(model, 0.01)
    assert held_out(model, compiled) <= 0.011


def test_an_infinite_weight_stays_float() -> None:
    model = mlp()
    with torch.no_grad():
        model[1][0].weight[2, 2] = torch.inf  # type: ignore[index]
        model[2][0].weight[:, 2] = 0  # type: ignore[index]
    compiled = optimized(model, 0.01)
    (x,) = samples(1)[0]
    with torch.no_grad():
        assert torch.equal(compiled(x).isfinite(), model(x).isfinite())


# --- samples --------------------------------------------------------------------------------------


BAD: Final = {
    "NaN": [(torch.full((24, WIDTH), torch.nan),)],
    "does not fit": [(torch.randn(24, WIDTH + 1),)],
    "is empty": [(torch.randn(0, WIDTH),)],
    "needs samples": [],
    "list of tuples": torch.randn(24, WIDTH),
}


@pytest.mark.parametrize("message", list(BAD))
def test_bad_samples_are_named(message: str) -> None:
    with pytest.raises((InputError, OptionError), match=message):
        optimized(mlp(), 0.01, calibration=BAD[message])


def test_samples_from_files(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.torch import save_file

    stacked = torch.stack([x for (x,) in samples(6)])
    save_file({"x": stacked}, tmp_path / "samples.safetensors")
    np.savez(tmp_path / "samples.npz", x=stacked.numpy())
    model = nn.Sequential(nn.Flatten(0, 1), mlp())
    for name in ("samples.safetensors", "samples.npz"):
        compiled = optimized(
            model,
            0.05,
            calibration=str(tmp_path / name),
            example=[(stacked[:1],)],
        )
        assert quantized(compiled)


class Pair(nn.Module):
    """Two inputs, of which only the second is multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, shift: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        shifted: torch.Tensor = shift + self.layer(data)
        return shifted


def test_files_are_cut_for_a_call_and_read_by_name(tmp_path: Path) -> None:
    """Four samples of eight rows, where a call takes two; the file has its tensors in another
    order than the call."""
    from safetensors.torch import save_file

    path = tmp_path / "pairs.safetensors"
    save_file({"data": torch.randn(9, 5, WIDTH), "shift": torch.ones(9, 1, 1)}, path)
    graph, bindings = load(export(Pair(), (torch.zeros(2, 1, 1), torch.zeros(2, 5, WIDTH))))
    options = Options.of({"error_budget": 0.1, "calibration": str(path)})
    found = graph_samples(options, graph, bindings)
    shapes = [[tuple(x.shape) for x in sample[-2:]] for sample in found]
    assert shapes == [[(2, 1, 1), (2, 5, WIDTH)]] * 4
    assert bool((found[0][-2] == 1).all())


def test_files_are_read_by_name_inside_torch_compile(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "pairs.safetensors"
    save_file({"data": torch.randn(24, WIDTH), "shift": torch.ones(24, WIDTH)}, path)
    options: Any = {"error_budget": 0.05, "objective": "bytes", "calibration": str(path)}
    model = Pair().eval()
    compiled = torch.compile(model, backend="rewright", options=options, dynamic=False)
    with torch.no_grad():
        compiled(torch.zeros(4, WIDTH), torch.randn(4, WIDTH))
    nodes = rewright.programs()[-1].graph.nodes
    assert any(n.op.name == "rw.quantized_linear" for n in nodes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.safetensors", "there is no file"),
        ("none.npz", "there is no file"),
        ("text.safetensors", "text.safetensors cannot be read"),
        ("few.npz", "few.npz holds no sample of 24 for a call"),
        ("wide.npz", "does not fit: .* on a sample is what one call takes"),
    ],
)
def test_bad_files_of_samples_are_named(tmp_path: Path, name: str, message: str) -> None:
    import numpy as np

    (tmp_path / "text.safetensors").write_text("no tensors")
    np.savez(tmp_path / "few.npz", x=np.zeros((3, WIDTH), np.float32))
    np.savez(tmp_path / "wide.npz", x=np.zeros((24, WIDTH + 1), np.float32))
    with pytest.raises((InputError, OptionError)) as caught:
        optimized(mlp(), 0.01, calibration=str(tmp_path / name))
    said = str(caught.value).replace("\n  = help:", " on")
    assert re.search(message, said), said


def test_a_function_may_give_the_samples() -> None:
    assert quantized(optimized(mlp(), 0.05, calibration=lambda: samples(4)))


# --- life after compilation -----------------------------------------------------------------------


def test_changed_weights_are_noticed() -> None:
    model = mlp()
    compiled = optimized(model, 0.05)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert held_out(model, compiled) <= 0.05


def test_an_artefact_holds_it(tmp_path: Path) -> None:
    model = mlp()
    compiled = optimized(model, 0.05)
    folder = compiled.save(tmp_path / "artefact")
    artefact = artefact_in(folder)
    (x,) = samples(1, seed=3)[0]
    names = [i.value.name for i in artefact.graph.inputs]
    args = [artefact.state.get(name, x) for name in names]
    (got,) = artefact.call(list(args))
    assert torch.equal(got, compiled(x))
    floats = sum(t.nbytes for t in artefact.state.values() if t.dtype == torch.float32)
    assert floats * 8 < sum(p.nbytes for p in model.parameters())


class Tied(nn.Module):
    """Tokens [B, T] -> scores of the next one, by the same weight that embeds them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(400, 64)
        self.inner = nn.Linear(64, 64)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(self.embed(tokens)))
        return hidden @ self.embed.weight.t()


def test_a_tied_weight_is_kept_once(tmp_path: Path) -> None:
    model = Tied().eval()
    generator = torch.Generator().manual_seed(0)
    given = [(torch.randint(0, 400, (2, 16), generator=generator),) for _ in range(4)]
    compiled = optimized(model, 0.02, calibration=given, example=given[:1])
    assert len(quantized(compiled)) == 2
    chosen = [str(d) for d in compiled.program.plan.log if "%embedding" in str(d)]
    assert any("int8-weight" in told for told in chosen), chosen
    (tokens,) = given[-1]
    with torch.no_grad():
        assert relative(compiled(tokens), model(tokens)) <= 0.02
    stored = (compiled.save(tmp_path / "artefact") / "tensors.safetensors").stat().st_size
    assert stored * 3 < sum(p.nbytes for p in model.parameters())


def test_lengths_that_change_of_tied_weights() -> None:
    model = Tied().eval()
    generator = torch.Generator().manual_seed(0)
    given = [(torch.randint(0, 400, (2, 16), generator=generator),) for _ in range(4)]
    length = torch.export.Dim("length", min=2, max=512)
    compiled = optimized(
        model, 0.05, calibration=given, example=given[:1], dynamic_shapes={"tokens": {1: length}}
    )
    assert any("%embedding: int8-weight" in str(d) for d in compiled.program.plan.log)
    tokens = torch.randint(0, 400, (2, 40), generator=generator)
    with torch.no_grad():
        assert relative(compiled(tokens), model(tokens)) <= 0.06


def test_dynamic_rows() -> None:
    model = mlp()
    rows = torch.export.Dim("rows", min=2, max=512)
    compiled = optimized(model, 0.05, dynamic_shapes={"input": {0: rows}})
    assert quantized(compiled)
    with torch.no_grad():
        for count in (2, 7, 100):
            (x,) = samples(1, rows=count, seed=count)[0]
            assert relative(compiled(x), model(x)) <= 0.06


def test_dynamic_batches_of_dynamic_length() -> None:
    model = mlp()
    sizes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", max=64)}
    given = [(x.reshape(2, 12, WIDTH),) for (x,) in samples(6)]
    compiled = optimized(
        model, 0.05, calibration=given, example=given[:1], dynamic_shapes={"input": sizes}
    )
    assert len(quantized(compiled)) == 4
    with torch.no_grad():
        for batch, length in ((1, 2), (3, 7)):
            (x,) = samples(1, rows=batch * length)[0]
            x = x.reshape(batch, length, WIDTH)
            assert relative(compiled(x), model(x)) <= 0.06


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    model = copy.deepcopy(mlp()).to(dtype)
    given = [(x.to(dtype),) for (x,) in samples(6)]
    compiled = optimized(model, 0.05, calibration=given, example=given[:1])
    assert quantized(compiled)
    (x,) = samples(1, seed=7)[0]
    with torch.no_grad():
        assert relative(compiled(x.to(dtype)), mlp()(x)) <= 0.06


@pytest.mark.parametrize("format", ["int8", "int8-weight", "int4-g64", "int4-g128"])
@pytest.mark.parametrize("rows", [1, 24])
def test_kernels_compute_what_their_bodies_say(format: str, rows: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 50), nn.ReLU(), nn.Linear(50, 40, bias=False)).eval()
    x = torch.randn(rows, 256)
    passes = f"canonicalize,quantize{{formats={format},objective=bytes}},dce,fuse,memory"
    compiled = optimized(model, 10.0, passes=passes, calibration=[(x,)], example=[(x,)])
    assert set(quantized(compiled)) == {format}
    source = compiled.program.plan.stages.stages[1].snapshot
    assert source is not None
    (expected,) = interpret(source, compiled.bindings.flatten((x,), {}))
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["bf16", "fp16"])
def test_half_types_are_formats(format: str) -> None:
    """Where the CPU multiplies them."""
    dtype = FORMAT_OF[format].dtype
    assert dtype is not None
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 50), nn.ReLU(), nn.Linear(50, 1040, bias=False)).eval()
    x = torch.randn(24, 256)
    passes = f"canonicalize,quantize{{formats={format},objective=bytes}},dce,libraries,fuse,memory"
    compiled = optimized(model, 0.01, passes=passes, calibration=[(x,)], example=[(x,)])
    with torch.no_grad():
        error = relative(compiled(x), model(x))
    held = [
        v.tensor.dtype for n in compiled.graph.nodes for v in n.results if "frozen" in str(n.op)
    ]
    if not multiplies(dtype):
        assert error < 1e-6 and dtype not in held
        return
    assert held.count(dtype) == 2
    assert 1e-5 < error < {"bf16": 8e-3, "fp16": 1e-3}[format]


def test_half_models_do_not_become_halves() -> None:
    """Nothing is gained."""
    model = copy.deepcopy(mlp()).to(torch.bfloat16)
    given = [(x.to(torch.bfloat16),) for (x,) in samples(3)]
    passes = "canonicalize,quantize{formats=fp16,objective=bytes},dce,fuse,memory"
    compiled = optimized(model, 0.5, passes=passes, calibration=given, example=given[:1])
    assert not [n for n in compiled.graph.nodes if n.op.name == "rw.frozen"]


def test_inside_torch_compile() -> None:
    torch._dynamo.reset()
    model = mlp()
    options: Any = {"error_budget": 0.05, "objective": "bytes", "calibration": samples(6)}
    compiled = torch.compile(model, backend="rewright", dynamic=False, options=options)
    (x,) = samples(1)[0]
    with torch.no_grad():
        assert relative(compiled(x), model(x)) <= 0.05
    nodes = [n for p in rewright.programs() for n in p.graph.nodes]
    assert any(n.op.name == "rw.quantized_linear" for n in nodes)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        inner: Tensor = self.inner(y)
        return inner + x.sum()


def test_inputs_inside_torch_compile_have_names() -> None:
    torch._dynamo.reset()
    pairs = [(x, x + 1) for (x,) in samples(4)]
    options: Any = {"error_budget": 0.05, "objective": "bytes", "calibration": pairs}
    with torch.no_grad(), pytest.raises(Exception, match="names and no order: y, x"):
        torch.compile(Two(), backend="rewright", dynamic=False, options=options)(*pairs[0])
    torch._dynamo.reset()
    options["calibration"] = [{"x": x, "y": y} for x, y in pairs]
    compiled = torch.compile(Two(), backend="rewright", dynamic=False, options=options)
    with torch.no_grad():
        assert relative(compiled(*pairs[0]), Two()(*pairs[0])) <= 0.05


def test_training_steps_are_refused() -> None:
    torch._dynamo.reset()
    options: Any = {"error_budget": 0.05, "calibration": samples(4)}
    with pytest.raises(Exception, match="this is a training step"):
        torch.compile(mlp(), backend="rewright", options=options)(*samples(1)[0])


def test_formats_are_asked_for_by_name() -> None:
    assert Quantize.parse("quantize{formats=int8-weight}") == Quantize(formats="int8-weight")
    with pytest.raises(OptionError, match="no format 'int9'"):
        optimized(mlp(), 0.05, passes="quantize{formats=int9},fuse,memory")
