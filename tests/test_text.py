"""The text form: what prints parses to an equal graph, and what is canonical prints as itself."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corpus import CORPUS
from rewright.ir.constant import Constant
from rewright.ir.dims import Dim, Size, Symbol
from rewright.ir.errors import Excerpt, TextError, UnsupportedError
from rewright.ir.graph import Arg, Graph, Input, Loc, Node, Value
from rewright.ir.ops import op
from rewright.ir.parse import parse
from rewright.ir.show import show, show_arg, show_node, show_type
from rewright.ir.types import OtherType, ScalarType, TensorType, Type
from strategies import graphs, literals, sizes

F32 = TensorType(torch.float32, (2,))


def check_round_trip(graph: Graph) -> None:
    text = show(graph)
    assert parse(text) == graph
    assert show(parse(text)) == text


def returning(*outputs: Arg) -> Graph:
    return Graph("g", (), (), outputs)


def holding(constant: Constant, type: TensorType) -> Graph:
    value = Value("c", type)
    return Graph(
        "g", (), (Node(op("rw.constant"), (), (("value", constant),), (value,)),), (value,)
    )


# --- round trips


@pytest.mark.parametrize("text", CORPUS.values(), ids=CORPUS)
def test_canonical_text_prints_as_itself(text: str) -> None:
    assert show(parse(text)) == text
    check_round_trip(parse(text))


@pytest.mark.parametrize("text", CORPUS.values(), ids=CORPUS)
def test_the_line_of_the_version_may_be_missing(text: str) -> None:
    bare = text.removeprefix("rewright 1\n")
    assert parse(bare) == parse(text)
    assert show(parse(text), header=False) == bare


@given(graphs())
def test_drawn_graphs_come_back(graph: Graph) -> None:
    check_round_trip(graph)


@given(st.lists(literals(), max_size=4))
def test_literals_come_back_as_the_same_kind(args: list[Arg]) -> None:
    graph = returning(*args)
    found = parse(show(graph)).outputs
    assert found == graph.outputs
    # 1, 1.0 and True are equal, 0.0 and -0.0 too: their spelling tells.
    assert repr(found) == repr(graph.outputs)


@given(st.lists(sizes(), min_size=1, max_size=3))
def test_sizes_come_back(shape: list[Size]) -> None:
    value = Value("x", TensorType(torch.float32, tuple(s for s in shape if isinstance(s, Dim))))
    check_round_trip(Graph("g", (Input(value),), (), (*shape, value)))


NAMES = st.text(min_size=1, max_size=6) | st.sampled_from(
    ["none", "true", "f32", "inf", "return", "update", "seq", "forward", "graph", "0", "a.b", "%"]
)


@given(NAMES, NAMES, NAMES, st.integers(0, 9**9), st.sampled_from([None, "forward", "backward"]))
def test_any_name_comes_back(
    name: str, other: str, file: str, number: int, phase: str | None
) -> None:
    body = Graph(other, (Input(Value(name, F32)),), (), ())
    node = Node(
        op("rw.fused"), (), (), (), ((name, body),), Loc(file, number), number or None, phase
    )
    value = Value(name, F32)
    check_round_trip(Graph(other, (Input(value),), (node, node), (value, name)))


SPACE = re.compile(r'("(?:[^"\\]|\\.)*")|(\s+)')


@given(st.sampled_from(list(CORPUS.values())), st.integers(0, 7))
def test_comments_and_line_breaks_mean_nothing(text: str, salt: int) -> None:
    def stretch(match: re.Match[str]) -> str:
        breaks = ["\n", ' # a "comment %x {\n', "\t", "\r\n\r\n", "  ", "#\n", " \n", " "]
        return match[1] or breaks[(match.start() + salt) % len(breaks)]

    assert parse(SPACE.sub(stretch, text) + "\n# the end") == parse(text)


# --- what is canonical


def test_a_long_header_gives_each_input_a_line_and_a_longer_one_each_symbol() -> None:
    dims = [Dim.of(Symbol(f"B{i}", None, 2, 1024, 16)) for i in range(4)]
    value = Value("x", TensorType(torch.float32, tuple(dims)))
    assert show(Graph("g", (Input(value),), (), ()), header=False) == (
        "graph g(\n"
        "    %x: f32[B0, B1, B2, B3]\n"
        ") where\n"
        "    B0 in [2, 1024] divisor 16,\n"
        "    B1 in [2, 1024] divisor 16,\n"
        "    B2 in [2, 1024] divisor 16,\n"
        "    B3 in [2, 1024] divisor 16\n"
        "{\n"
        "  return\n"
        "}"
    )


def test_symbols_stand_in_order_of_appearance_also_those_of_nested_graphs() -> None:
    a, b, c, d = (Dim.of(Symbol(name, 4)) for name in ("B3", "B2", "B1", "B0"))
    inner = Graph("body", (Input(Value("i", ScalarType("int", b))),), (), ())
    result = Value("y", ScalarType("int", c))
    node = Node(op("rw.fused"), (a,), (), (result,), (("body", inner),))
    graph = Graph("g", (), (node,), (d,))
    assert [s.name for s in graph.symbols] == ["B3", "B2", "B1", "B0"]
    check_round_trip(graph)


def test_history_does_not_print() -> None:
    graph = parse(CORPUS["mlp"])
    assert show(dataclasses.replace(graph, history=())) == show(graph) == str(graph)


def test_parts_print_as_in_the_graph() -> None:
    graph = parse(CORPUS["regions"])
    text = show(graph)
    for node in graph.nodes:
        first, *_ = show_node(node).split("\n")
        assert f"\n  {first}" in text
    for value in graph.values:
        assert show_type(value.type) in text


def test_dumps_are_the_same_in_another_process() -> None:
    script = (
        "from corpus import CORPUS\n"
        "from rewright.ir.parse import parse\n"
        "from rewright.ir.show import show\n"
        "print(*(show(parse(text)) for text in CORPUS.values()), sep='\\n', end='')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "17"}
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        text=True,
        cwd=Path(__file__).parent,
        env=environment,
    )
    assert run.stdout == "\n".join(CORPUS.values())


# --- constants


def test_small_constants_come_back_bit_for_bit() -> None:
    for node in parse(CORPUS["constants"]).nodes[:-1]:
        held = node.kwarg("value")
        assert isinstance(held, Constant)
        assert Constant.of(held.tensor) == held
        assert (held.tensor.dtype, tuple(held.tensor.shape)) == (
            node.result.tensor.dtype,
            node.result.tensor.shape,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_floats_print_shortly_and_exactly(dtype: torch.dtype) -> None:
    values = [0.1, 1 / 3, 1e-8, -0.0, math.inf, 65504.0]
    constant = Constant.of(torch.tensor(values, dtype=dtype))
    check_round_trip(holding(constant, TensorType(dtype, (6,))))
    if dtype in (torch.float32, torch.float16):
        assert "0.1, 0.333" in show(holding(constant, TensorType(dtype, (6,))))


def test_a_nan_with_a_payload_goes_by_its_digest() -> None:
    plain = torch.tensor([math.nan])
    odd = (plain.view(torch.int32) + 1).view(torch.float32)
    type = TensorType(torch.float32, (1,))
    assert "data=[nan]" in show(holding(Constant.of(plain), type))
    text = show(holding(Constant.of(odd), type))
    assert f'sha256="{Constant.of(odd).sha256}"' in text
    check_round_trip(holding(Constant.of(odd), type))


def test_large_constants_are_found_by_digest() -> None:
    constant = Constant.of(torch.arange(64.0))
    graph = holding(constant, TensorType(torch.float32, (64,)))
    without = parse(show(graph)).nodes[0].kwarg("value")
    loaded = (
        parse(show(graph), constants={constant.sha256: constant.tensor}).nodes[0].kwarg("value")
    )
    assert without == loaded == constant
    assert isinstance(without, Constant)
    assert without.data is None
    assert isinstance(loaded, Constant)
    assert torch.equal(loaded.tensor, constant.tensor)


def test_data_of_another_type_is_refused() -> None:
    constant = Constant.of(torch.arange(64.0))
    text = show(holding(constant, TensorType(torch.float32, (64,))))
    other = {constant.sha256: torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(TextError, match=r"the data of this constant is i64\[3\], not f32\[64\]"):
        parse(text, constants=other)


# --- numbers that compare strangely


def test_graphs_with_a_nan_are_equal() -> None:
    text = "graph g() {\n  return nan, [nan, -inf]\n}"
    assert parse(text) == parse(text) == returning(math.nan, (math.nan, -math.inf))


def test_integers_floats_and_truths_stay_apart() -> None:
    found = parse("graph g() { return 1, 1.0, true, 1e0, -0.0, -1, 12345678901234567890123 }")
    assert repr(found.outputs) == "(1, 1.0, True, 1.0, -0.0, -1, 12345678901234567890123)"


@pytest.mark.parametrize("word", ["none", "true", "false", "inf", "nan", "f32", "seq", "max"])
def test_words_may_start_names(word: str) -> None:
    text = (
        f"graph {word}(%{word}: f32[{word}_1]) where {word}_1 in [1, 4] {{\n"
        f"  %{word}x = rw.fused(%{word}, {word}_1, {word}=1) {word}_g() {{\n"
        "    return\n"
        f"  }} : f32[{word}_1]\n"
        f"  return %{word}x\n"
        "}"
    )
    assert show(parse(text), header=False) == text


# --- what has no text


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (returning(Dim.of(Symbol("f32", 4))), "a symbol cannot be called 'f32'"),
        (returning(Dim.of(Symbol("max", 4))), "a symbol cannot be called 'max'"),
        (returning(torch.quint8), "torch.quint8 has no name"),
        (returning({1: 2}), "an argument of type dict has no text form"),  # type: ignore[arg-type]
        (
            Graph("g", (Input(Value("x", OtherType("list"))),), (), ()),
            "no type is called 'list'",
        ),
        (Graph("g", (Input(Value("x", F32), "guest"),), (), ()), "not 'guest'"),
        (
            Graph("g", (), (Node(op("rw.free"), (Constant("00"),), (), ()),), ()),
            "an argument of type Constant",
        ),
        (
            Graph("g", (), (Node(op("rw.free"), (), (("value", Constant("00")),), ()),), ()),
            "rw.free holds a constant; only rw.constant may",
        ),
        (
            Graph("g", (), (Node(op("rw.free"), (), (("a b", 1),), ()),), ()),
            "an argument called 'a b', which is no name",
        ),
        (
            Graph("g", (), (Node(op("rw.free"), (), (), (), phase="sideways"),), ()),
            "not 'sideways'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_words_is_refused(graph: Graph, message: str) -> None:
    with pytest.raises(UnsupportedError, match=re.escape(message)):
        show(graph)


# --- mistakes


def mistakes() -> dict[str, tuple[str, str]]:
    """From the file of mistakes: their names, the texts that make them, and what is said."""
    text = (Path(__file__).parent / "data" / "text_mistakes.txt").read_text()
    found = {}
    for part in text.split("# ==== ")[1:]:
        name, rest = part.split("\n", 1)
        wrong, said = rest.split("\n# ---- says\n")
        found[name] = (wrong, said.rstrip("\n"))
    return found


MISTAKES = mistakes()


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_explained(name: str) -> None:
    wrong, said = MISTAKES[name]
    with pytest.raises(TextError) as caught:
        parse(wrong, file="mistake.rw")
    assert [line.rstrip() for line in str(caught.value).split("\n")] == said.split("\n")


def complaint(text: str) -> Excerpt | None:
    """What an error points at; None when the text can be read. Fails for any other exception."""
    try:
        parse(text)
    except TextError as error:
        return error.excerpt or Excerpt("nowhere", 0, 0, "")
    return None


def check_is_read_or_explained(text: str) -> None:
    """Whatever the text: a graph, or a complaint that shows a line of it."""
    place = complaint(text)
    if place is None:
        return
    lines = [line.rstrip("\r").replace("\t", " ") for line in text.split("\n")]
    assert place.text == lines[place.line - 1]
    assert 1 <= place.column <= len(place.text) + 1


@given(st.sampled_from(list(CORPUS.values())), st.data())
def test_truncated_texts_are_explained(text: str, data: st.DataObject) -> None:
    cut = text[: data.draw(st.integers(0, len(text) - 1))]
    with pytest.raises(TextError):
        parse(cut)
    check_is_read_or_explained(cut)


TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|%?[\w.]+|\s+|.')


@given(st.sampled_from(list(CORPUS.values())), st.data())
def test_spoilt_texts_are_read_or_explained(text: str, data: st.DataObject) -> None:
    tokens = TOKENS.findall(text)
    place = data.draw(st.integers(0, len(tokens) - 1))
    other = data.draw(st.sampled_from([*tokens, "'", "\t", "é", "\x00", "**", "9" * 5000, '"']))
    spoilt = data.draw(st.sampled_from(["leave out", "replace", "insert"]))
    tokens[place : place + (spoilt != "insert")] = [] if spoilt == "leave out" else [other]
    check_is_read_or_explained("".join(tokens))


def test_endless_nesting_is_explained() -> None:
    with pytest.raises(TextError, match="nested too deeply"):
        parse("graph g() { return " + "[" * 100_000 + "]" * 100_000 + "}")


def test_a_message_names_the_file() -> None:
    with pytest.raises(TextError, match=r"--> model\.rw:1:1"):
        parse("grph", file="model.rw")


@pytest.mark.parametrize(
    ("type", "text"),
    [
        (TensorType(torch.float16, ()), "f16[]"),
        (TensorType(torch.bool, (2, 3), (1, 2)), "bool[2, 3] strides [1, 2]"),
        (TensorType(torch.int8, (2,), None, torch.device("cuda", 1)), "i8[2] on cuda:1"),
        (ScalarType("bool"), "bool"),
        (ScalarType("int", 5), "int(5)"),
        (OtherType("token"), "token"),
    ],
    ids=str,
)
def test_types_print(type: Type, text: str) -> None:
    assert show_type(type) == text


def test_arguments_print() -> None:
    assert show_arg((None, 1.0, "é", torch.strided)) == '[none, 1.0, "\\u00e9", layout(strided)]'
