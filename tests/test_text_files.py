"""Graphs on disk: constants beside the text, and files that are missing, cut or foreign."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from corpus import CORPUS
from rewright.ir.constant import Constant
from rewright.ir.errors import ArtefactError, CheckError, ImportFailure, RewrightError, TextError
from rewright.ir.graph import Graph, Node, Value
from rewright.ir.ops import op
from rewright.ir.parse import parse
from rewright.ir.show import show
from rewright.ir.text_files import load_text, save_text
from rewright.ir.types import DTYPES, TensorType


def holding(*tensors: torch.Tensor) -> Graph:
    nodes = []
    for index, tensor in enumerate(tensors):
        value = Value(f"c{index}", TensorType(tensor.dtype, tuple(tensor.shape)))
        keywords = (("value", Constant.of(tensor)),)
        nodes.append(Node(op("rw.constant"), (), keywords, (value,)))
    return Graph("g", (), tuple(nodes), tuple(node.result for node in nodes))


def tensors_of(graph: Graph) -> list[torch.Tensor]:
    constants = [node.kwarg("value") for node in graph.nodes]
    return [c.tensor for c in constants if isinstance(c, Constant)]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A file with one constant inside and one beside it."""
    path = tmp_path / "model.rw"
    save_text(holding(torch.arange(3.0), torch.arange(64.0)), path)
    return path


@pytest.mark.parametrize("name", [name for name in CORPUS if name != "constants"])
def test_graphs_come_back(name: str, tmp_path: Path) -> None:
    graph = parse(CORPUS[name])
    save_text(graph, tmp_path / "g.rw")
    assert load_text(tmp_path / "g.rw") == graph
    assert (tmp_path / "g.rw").read_text() == CORPUS[name] + "\n"
    assert [path.name for path in tmp_path.iterdir()] == ["g.rw"]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_constants_come_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    noise = torch.arange(320, dtype=torch.int32).mul(7919).view(torch.uint8)
    tensors = [torch.zeros(3, 0).to(dtype), torch.arange(2).to(dtype)]
    if dtype == torch.bool:
        tensors.append(noise > 99)
    else:
        tensors.append(noise.view(dtype).reshape(5, -1))
    save_text(holding(*tensors), tmp_path / "g.rw")
    found = tensors_of(load_text(tmp_path / "g.rw"))
    for before, after in zip(tensors, found, strict=True):
        assert before.dtype == after.dtype
        assert before.shape == after.shape
        assert Constant.of(before) == Constant.of(after)


def test_constants_of_nested_graphs_come_back(tmp_path: Path) -> None:
    body = holding(torch.arange(64.0))
    node = Node(op("rw.fused"), (), (), (Value("y", body.nodes[0].result.type),), (("body", body),))
    save_text(Graph("g", (), (node,), ()), tmp_path / "g.rw")
    inner = load_text(tmp_path / "g.rw").nodes[0].graph("body")
    assert torch.equal(tensors_of(inner)[0], torch.arange(64.0))


def test_constants_that_share_memory_are_kept(tmp_path: Path) -> None:
    whole = torch.arange(64.0)
    views = (whole, whole.view(torch.int32), whole[:32], whole[32:])
    nodes = []
    for index, view in enumerate(views):
        held = Constant(Constant.of(view).sha256, view)
        value = Value(f"c{index}", TensorType(view.dtype, tuple(view.shape)))
        nodes.append(Node(op("rw.constant"), (), (("value", held),), (value,)))
    save_text(Graph("g", (), tuple(nodes), ()), tmp_path / "g.rw")
    found = tensors_of(load_text(tmp_path / "g.rw"))
    assert all(torch.equal(a, b) for a, b in zip(views, found, strict=True))


def test_files_are_as_readable_as_any(saved: Path) -> None:
    plain = saved.with_name("plain")
    plain.touch()
    for path in (saved, saved.with_suffix(".safetensors")):
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_saving_again_replaces_and_leaves_nothing_else(saved: Path) -> None:
    other = holding(torch.arange(100.0))
    save_text(other, saved)
    assert load_text(saved) == other
    names = sorted(path.name for path in saved.parent.iterdir())
    assert names == ["model.rw", "model.safetensors"]


def test_saving_twice_gives_the_same_bytes(saved: Path) -> None:
    first = [path.read_bytes() for path in sorted(saved.parent.iterdir())]
    save_text(load_text(saved), saved)
    assert [path.read_bytes() for path in sorted(saved.parent.iterdir())] == first


def test_nothing_is_overwritten_when_saving_fails(saved: Path) -> None:
    before = saved.read_bytes()
    unloaded = parse(CORPUS["constants"])
    with pytest.raises(CheckError, match="the data of constant 2c26b46b68ff is not loaded"):
        save_text(unloaded, saved)
    assert saved.read_bytes() == before
    assert len(list(saved.parent.iterdir())) == 2


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"cannot write .*No such file or directory"):
        save_text(parse(CORPUS["mlp"]), tmp_path / "missing" / "g.rw")


def test_a_graph_is_not_saved_where_constants_go(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is a file of constants"):
        save_text(parse(CORPUS["mlp"]), tmp_path / "g.safetensors")


def complaint(path: Path) -> RewrightError:
    with pytest.raises(RewrightError) as caught:
        load_text(path)
    assert "\n  File" not in str(caught.value)
    return caught.value


def test_a_missing_file(tmp_path: Path) -> None:
    error = complaint(tmp_path / "none.rw")
    assert isinstance(error, ImportFailure)
    assert error.message == f"there is no file {tmp_path / 'none.rw'}"


def test_a_folder(tmp_path: Path) -> None:
    assert complaint(tmp_path).message == f"cannot read {tmp_path}: Is a directory"


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "g.rw").write_bytes(b"\x80\x02\xff")
    assert complaint(tmp_path / "g.rw").message == f"{tmp_path / 'g.rw'} is not text in UTF-8"


def test_a_file_without_a_version(tmp_path: Path) -> None:
    (tmp_path / "g.rw").write_text("# a comment\ngraph g() { return }\n")
    error = complaint(tmp_path / "g.rw")
    assert error.message == "a file begins with the line 'rewright 1', and this one does not"


def test_a_file_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "g.rw").write_text("# a comment\nrewright 7\nwhatever\n")
    error = complaint(tmp_path / "g.rw")
    assert error.message == "this text is of version 7; this Rewright reads version 1"
    assert error.excerpt is not None
    assert error.excerpt.line == 2


def test_every_truncation_of_the_text(saved: Path) -> None:
    text = saved.read_text()
    for length in range(len(text) - 1):
        saved.write_text(text[:length])
        assert isinstance(complaint(saved), TextError)


def test_missing_constants(saved: Path) -> None:
    saved.with_suffix(".safetensors").unlink()
    error = complaint(saved)
    assert error.message.startswith("the data of %c1 is missing: there is no constant ")
    assert error.help is not None


def test_constants_of_another_file(saved: Path) -> None:
    save_text(holding(torch.arange(65.0)), saved.with_name("other.rw"))
    saved.with_name("other.safetensors").replace(saved.with_suffix(".safetensors"))
    assert "the data of %c1 is missing" in complaint(saved).message


@pytest.mark.parametrize("length", [0, 5, 40, 100, 300])
def test_truncated_constants(saved: Path, length: int) -> None:
    beside = saved.with_suffix(".safetensors")
    beside.write_bytes(beside.read_bytes()[:length])
    assert "is truncated or no .safetensors file" in complaint(saved).message


def test_the_text_alone_can_be_read(saved: Path) -> None:
    text = saved.read_text()
    assert show(parse(text)) + "\n" == text
