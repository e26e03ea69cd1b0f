"""The dump as a script: it runs, alone, and computes what the graph says."""

from __future__ import annotations

import keyword
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given

from corpus import CORPUS
from rewright.ir.dims import evaluate
from rewright.ir.errors import UnsupportedError
from rewright.ir.graph import Graph, Input, Node, Value
from rewright.ir.ops import PYTHON_FUNCTIONS, op
from rewright.ir.parse import parse
from rewright.ir.python_dump import as_python
from rewright.ir.types import ScalarType, TensorType
from strategies import graphs, values_for

TOUR = """\
graph tour(
    %x: f32[B0, 4],
    %"w 1": f32[3, 4] strides [1, 3] param,
    %m: f32[B0, 4] mutable,
    %lambda: i64[2],
    %n: int(B1),
    %f: float,
    %g: none
) where B0 in [2, 64] hint 6, B1 in [0, inf] hint 3, u0 in [0, inf] {
  %h = aten.linear.default(%x, %"w 1") : f32[B0, 3] @ model.py:14
  %c = rw.constant(data=[1.0, inf, -0.5]) : f32[1, 3]
  %big = rw.constant(sha256="0123456789abcdef") : f32[B0, 3]
  %y, %z = rw.fused(%h, %c) body(%h: f32[B0, 3], %c: f32[1, 3]) {
    %t = aten.minimum.default(%h, %c) : f32[B0, 3]
    %u = aten.relu.default(%t) : f32[B0, 3]
    return %u, %t
  } : f32[B0, 3], f32[B0, 3]
  %one = rw.fused(%y) body(%t: f32[B0, 3]) {
    %u = aten.neg.default(%t) : f32[B0, 3]
    return %u
  } : f32[B0, 3]
  %p, %q = aten.split.Tensor(%one, 2, 1) : f32[B0, 2] strides [3, 1], f32[B0, 1] strides [3, 1]
  %all = aten.split.Tensor(%one, 3, 1) : f32[B0, 3]
  %at = aten.nonzero.default(%m) : i64[u0, 2]
  %full = aten.full.default([u0, B1 + 1], -inf, dtype=f32, device=device("cpu")) : f32[u0, B1 + 1]
  %flat = aten.view.default(%x, [B0*4]) : f32[4*B0]
  %half = py.truediv(%n, 2) : float
  %whole = py.floor(%half) : int
  %new = aten.add.Tensor(%m, %x) : f32[B0, 4]
  rw.free(%flat)
  update %m <- %new
  return %y, %z, %p, %q, %all, %full, %half, %whole, %lambda, B0*2, none, [%at]
}"""


def loaded(script: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "dumped"}
    exec(compile(script, "script", "exec"), names)
    return names


def test_a_script_needs_torch_alone(tmp_path: Path) -> None:
    path = tmp_path / "mlp.py"
    path.write_text(as_python(parse(CORPUS["mlp"])))
    run = subprocess.run(
        [sys.executable, "-I", path], capture_output=True, check=True, text=True, cwd=tmp_path
    )
    assert run.stdout.startswith("tensor(")


def test_a_script_reads_like_this() -> None:
    assert as_python(parse(CORPUS["mlp"])) == (
        "# Written by Rewright. Needs torch alone; the inputs are random.\n"
        "import torch\n"
        "\n"
        "torch.manual_seed(0)\n"
        "B0 = 8\n"
        "\n"
        "\n"
        "def mlp(x, w, b):\n"
        "    h = torch.ops.aten.linear.default(x, w, b)  # f16[B0, 2048]  model.py:14\n"
        "    a = torch.ops.aten.gelu.default(h, approximate='tanh')"
        "  # f16[B0, 2048]  model.py:15\n"
        "    return (a,)\n"
        "\n"
        "\n"
        "def inputs():\n"
        "    x = torch.randn((B0, 512), dtype=torch.float16)\n"
        "    w = torch.randn((2048, 512), dtype=torch.float16)\n"
        "    b = torch.randn((2048,), dtype=torch.float16)\n"
        "    return (x, w, b)\n"
        "\n"
        "\n"
        'if __name__ == "__main__":\n'
        "    for output in mlp(*inputs()):\n"
        "        print(output)\n"
    )


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
def test_every_construct_runs_at_any_size() -> None:
    names = loaded(as_python(parse(TOUR)))
    torch.manual_seed(1)
    x, w, m = torch.randn(5, 4), torch.randn(4, 3).t(), torch.randn(5, 4)
    before = m.clone()
    y, z, p, q, whole, full, half, floor, ints, size, none, at = names["tour"](
        x, w, m, torch.ones(2, dtype=torch.int64), 7, 0.5, None
    )
    expected = torch.minimum(x @ w.t(), torch.tensor([[1.0, torch.inf, -0.5]]))
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(y, expected.relu())
    torch.testing.assert_close(torch.cat([p, q], 1), -y)
    assert torch.equal(whole, -y)
    assert torch.equal(full, torch.full((20, 8), -torch.inf))
    assert (half, floor, size, none) == (3.5, 3, 10, None)
    assert torch.equal(m, before + x)
    assert len(at[0]) == 20
    assert ints.tolist() == [1, 1]
    assert names["tour"](*names["inputs"]())[0].shape == (6, 3)


@given(graphs())
def test_drawn_graphs_compute_what_their_types_say(graph: Graph) -> None:
    names = loaded(as_python(graph))
    sizes = {symbol.name: symbol.hint or 0 for symbol in graph.symbols}
    outputs = names["drawn"](*values_for(graph))
    for output, value in zip(outputs, graph.outputs, strict=True):
        assert isinstance(value, Value)
        type = value.tensor
        assert output.dtype == type.dtype
        assert tuple(output.shape) == tuple(evaluate(size, sizes) for size in type.shape)
        assert output.stride() == tuple(evaluate(size, sizes) for size in type.layout)
    names["drawn"](*names["inputs"]())


@pytest.mark.parametrize("name", PYTHON_FUNCTIONS)
def test_every_scalar_function_is_called_by_its_name(name: str) -> None:
    value = Value("x", ScalarType("int"))
    node = Node(op(f"py.{name}"), (value,), (), (Value("y", ScalarType("int")),))
    script = as_python(Graph("g", (Input(value),), (node,), ()))
    call = next(line for line in script.split("\n") if line.startswith("    y = "))
    spelt = call.removeprefix("    y = ").partition("(")[0]
    names = {"torch": torch, **loaded("import math, operator")}
    function: Callable[..., Any] = eval(spelt, names)
    assert function is PYTHON_FUNCTIONS[name]


def test_names_that_python_reserves_are_changed() -> None:
    type = TensorType(torch.float32, (2,))
    values = [Value(name, type) for name in ("class", "torch", "0", "a.b", "a_b", "print", "é")]
    graph = Graph("def", tuple(map(Input, values)), (), tuple(values))
    names = loaded(as_python(graph))
    function = next(f for name, f in names.items() if name.startswith("def"))
    taken = function.__code__.co_varnames
    assert not any(keyword.iskeyword(name) for name in taken)
    assert len(set(taken)) == len(values)
    tensors = [torch.full((2,), float(i)) for i in range(len(values))]
    assert all(a is b for a, b in zip(function(*tensors), tensors, strict=True))


def test_overloads_and_keywords_that_python_reserves_are_reached() -> None:
    text = "graph g(%x: f32[2]) {\n  %y = aten.random.from(%x, 0, 5) : f32[2]\n  return %y\n}"
    (output,) = loaded(as_python(parse(text)))["g"](torch.zeros(2))
    assert output.shape == (2,)


COND = """\
graph branch(%p: bool[], %x: f32[2]) {
  %y, %z = hop.cond(%p, "@yes", "@no", [%x]) yes(%x: f32[2]) {
    %a = aten.neg.default(%x) : f32[2]
    %b = aten.sin.default(%x) : f32[2]
    return %a, %b
  } no(%x: f32[2]) {
    %a = aten.sin.default(%x) : f32[2]
    %b = aten.neg.default(%x) : f32[2]
    return %a, %b
  } : f32[2], f32[2]
  return %y, %z
}"""


@pytest.mark.parametrize("taken", [True, False])
def test_higher_order_operators_get_their_graphs_as_functions(taken: bool) -> None:
    x = torch.randn(2)
    outputs = loaded(as_python(parse(COND)))["branch"](torch.tensor(taken), x)
    expected = [x.neg(), x.sin()] if taken else [x.sin(), x.neg()]
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_what_torch_cannot_express_is_refused() -> None:
    text = "graph g(%x: f32[2]) {\n  rw.fused(%x, out=%x) body() {\n    return\n  }\n  return\n}"
    with pytest.raises(UnsupportedError, match=r"rw\.fused .* has no form in a script"):
        as_python(parse(text))
