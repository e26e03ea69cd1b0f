"""What MLIR is refused, and which graphs have no MLIR: each message names operator and place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlir_cases import NUMBERS, RELU, function
from rewright.ir.errors import ImportFailure, TextError, ToolchainError, UnsupportedError
from rewright.ir.mlir_export import to_bytecode, to_linalg, to_mlir
from rewright.ir.mlir_import import from_mlir, load_mlir
from rewright.ir.parse import parse

pytest.importorskip("torch_mlir", reason="torch-mlir is not installed")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            "%y = aten.mul.Tensor(%x, complex(0.0, 1.0)) : c64[2] @ model.py:9",
            "[mlir] node 'y' (aten.mul.Tensor) at model.py:9: "
            "a complex number as an argument has no form in MLIR",
        ),
        (
            "%y = rw.alloc() : f32[2] @ model.py:9",
            "[mlir] node 'y' (rw.alloc) at model.py:9: it has no form in MLIR",
        ),
        (
            "%y = hop.invoke_subgraph(%x) g(%t: f32[2]) { return %t } : f32[2] @ model.py:9",
            "[mlir] node 'y' (hop.invoke_subgraph) at model.py:9: it has no form in MLIR",
        ),
        (
            "%y = aten.sin.default(%x) : token @ model.py:9",
            "[mlir] node 'y' (aten.sin.default) at model.py:9: "
            "a value of type 'token' has no form in MLIR",
        ),
        (
            "%y = aten.add.Tensor(%x, 9223372036854775808) : f32[2]",
            "[mlir] node 'y' (aten.add.Tensor): 9223372036854775808 does not fit into 64 bits",
        ),
    ],
)
def test_what_mlir_cannot_say_is_refused(node: str, message: str) -> None:
    graph = parse(f"graph f(%x: f32[2]) {{\n  {node}\n  return %y\n}}")
    with pytest.raises(UnsupportedError) as error:
        to_mlir(graph)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ['%0 = torch.operator "torch.aten.relux"(%x) : (!m) -> !m loc("model.py":9:1)'],
            "torch.aten.relux at model.py:9: unknown operator 'aten.relux.default'"
            "; did you mean 'aten.relu.default'?",
        ),
        (
            ['%0 = torch.operator "torch.aten.relu_"(%x) : (!m) -> !m'],
            "torch.aten.relu_ at bad.mlir:4: aten.relu_.default writes one of its arguments",
        ),
        (
            [
                '%s = torch.constant.str "secret"',
                '%0 = torch.operator "torch.aten.from_file"(%s) : (!torch.str) -> !m',
            ],
            "torch.aten.from_file at bad.mlir:5: aten.from_file.default opens files",
        ),
        (
            ['%0 = torch.operator "torch.rw.fused"(%x) : (!m) -> !m'],
            "torch.rw.fused at bad.mlir:4: rw.fused.default has no form in MLIR",
        ),
        (
            ["%0 = torch.aten.relu %x {rewright.op = 7} : !m -> !m"],
            "torch.aten.relu at bad.mlir:4: attribute rewright.op is 7 : i64, which is no text",
        ),
        (
            ['%0 = torch.aten.relu %x {rewright.types = ["f32[2"]} : !m -> !m'],
            "torch.aten.relu at bad.mlir:4: 'f32[2' is no type: "
            "it does not read as f32[2, 3] strides [1, 2], or as int(B0)",
        ),
        (
            ["%0 = torch.aten.mm %x, %y : !m, !m -> !m"],
            "torch.aten.mm at bad.mlir:4: the arguments do not fit: ",
        ),
        (
            [
                "%t = torch.aten.t %x : !m -> !torch.vtensor<[2,3],f32>",
                "%0 = torch.aten.relu %x : !m -> !m",
            ],
            "torch.aten.t at bad.mlir:4: it is declared !torch.vtensor<[2,3],f32>, "
            "and aten.t.default gives f32[3, 2] strides [1, 3]",
        ),
        (
            ["%c = arith.constant 1 : i32", "%0 = torch.aten.relu %x : !m -> !m"],
            "arith.constant at bad.mlir:4: it has no form in the IR",
        ),
    ],
)
def test_what_a_file_says_wrongly_is_refused(lines: list[str], message: str) -> None:
    with pytest.raises(ImportFailure) as error:
        from_mlir(function(*lines, RELU[1]), file="folder/bad.mlir")
    assert message in str(error.value).splitlines()[0]


def test_mistakes_in_a_text_are_pointed_at() -> None:
    with pytest.raises(TextError) as error:
        from_mlir(function("%0 = torch.aten.relux %x : !m -> !m", RELU[1]), file="bad.mlir")
    assert str(error.value) == (
        "custom op 'torch.aten.relux' is unknown\n"
        " --> bad.mlir:4:10\n"
        "  |\n"
        "4 |     %0 = torch.aten.relux %x : !m -> !m\n"
        "  |          ^"
    )
    cut = function(*RELU)
    with pytest.raises(TextError, match=r" --> bad\.mlir:4:\d+\n"):
        from_mlir(cut[: cut.index("return")], file="bad.mlir")
    with pytest.raises(TextError, match="operand #0 must be Any Torch tensor type"):
        from_mlir(
            function(
                "%i = torch.constant.int 1", "%0 = torch.aten.relu %i : !torch.int -> !m", RELU[1]
            )
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "<mlir> holds no function with a body"),
        ("func.func private @f()", "<mlir> holds no function with a body"),
        (
            "func.func @f() { return }\nfunc.func @g() { return }",
            "<mlir> holds several functions: f, g",
        ),
        (
            "func.func @f(%x: tensor<2xf32>) { return }",
            "<mlir>: argument %arg0: a value of type tensor<2xf32> has no form in the IR",
        ),
        (
            "func.func @f(%x: !torch.vtensor) { return }",
            "<mlir>: argument %arg0: type !torch.vtensor does not say its sizes and dtype",
        ),
        (
            'func.func @f(%x: !torch.vtensor<[2],f32> {rewright.type = "f32[3]"}) { return }',
            "<mlir>: argument %arg0: it is declared !torch.vtensor<[2],f32>, and f32[3]",
        ),
        (
            "func.func @f() attributes {rewright.version = 9 : i64} { return }",
            "<mlir> was written by a later Rewright: its rewright.version is 9",
        ),
        (
            'func.func @f(%x: !torch.vtensor<[2],f32> {rewright.role = "king"}) { return }',
            "<mlir>: a role is one of input, param, buffer, saved, tangent, not 'king'",
        ),
    ],
)
def test_files_without_one_readable_function_are_refused(text: str, message: str) -> None:
    with pytest.raises(ImportFailure) as error:
        from_mlir(text)
    assert error.value.message == message


def test_of_several_functions_main_is_taken() -> None:
    graph = from_mlir(f"{function(*RELU)[:-3]}func.func @other() {{ return }}\n}}\n")
    assert (graph.name, len(graph.nodes)) == ("main", 1)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = to_bytecode(parse(NUMBERS))
    for data, message in (
        (whole[: len(whole) // 2], "is truncated or no MLIR bytecode"),
        (b"\xff\xfe\x00", "is neither text in UTF-8 nor MLIR bytecode"),
    ):
        path = tmp_path / "bad.mlirbc"
        path.write_bytes(data)
        with pytest.raises(ImportFailure, match=message):
            load_mlir(path)
    with pytest.raises(ImportFailure, match="there is no file"):
        load_mlir(tmp_path / "none.mlir")


def test_a_missing_torch_mlir_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_mlir", None)
    for use in (lambda: to_mlir(parse(NUMBERS)), lambda: from_mlir(function(*RELU))):
        with pytest.raises(ToolchainError) as error:
            use()
        assert str(error.value) == (
            "[mlir] MLIR is read and written by torch-mlir, which is not installed\n"
            "  = help: pip install torch-mlir"
        )


def test_an_operator_that_torch_mlir_does_not_lower_is_named() -> None:
    graph = parse(
        """graph f(%x: f32[4, 4]) {
          %y, %i = aten.linalg_cholesky_ex.default(%x)
              : f32[4, 4] strides [1, 4], i32[] @ model.py:3
          return %y
        }"""
    )
    with pytest.raises(UnsupportedError) as error:
        to_linalg(graph)
    assert str(error.value).startswith(
        "[mlir] torch-mlir cannot lower torch.aten.linalg_cholesky_ex at model.py:3 to linalg: "
    )
