"""Tensor files: what is written is what is mapped, once a piece of memory, and others read it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from rewright.codegen.loading import Refused, on_device, read_tensors
from rewright.ir import UnsupportedError
from rewright.tensor_file import ALIGNMENT, write_tensors

# Every type that a tensor of the CPU can hold and be filled in.
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    *(torch.float8_e8m0fnu, torch.float4_e2m1fn_x2),
    *(torch.complex128, torch.complex64, torch.complex32),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
)


def filled(count: int, dtype: torch.dtype) -> Tensor:
    """Bytes of a type; all are truths where it is bool."""
    data = torch.arange(count * dtype.itemsize, dtype=torch.int32).mul(7).to(torch.uint8)
    return (data % 2 if dtype is torch.bool else data).view(dtype)


def bits(tensor: Tensor) -> Tensor:
    """The bytes of its elements, in the order of its dimensions."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same(found: Tensor, wanted: Tensor) -> bool:
    kinds = (found.dtype, found.shape, found.stride()) == (
        wanted.dtype,
        wanted.shape,
        wanted.stride(),
    )
    return kinds and torch.equal(bits(found), bits(wanted))


def header(path: Path) -> dict[str, object]:
    data = path.read_bytes()
    found: dict[str, object] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.safetensors"


def back(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    write_tensors(tensors, path)
    found = read_tensors(path)
    assert found.keys() == tensors.keys()
    assert all(same(found[name], tensor) for name, tensor in tensors.items())
    return found


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_comes_back(dtype: torch.dtype, path: Path) -> None:
    data = filled(24, dtype)
    tensors = {
        "plain": data.reshape(4, 6),
        "scalar": filled(1, dtype).reshape(()),
        "empty": data[:0].reshape(0, 3),
        "transposed": filled(24, dtype).reshape(4, 6).t(),
        "strided": filled(24, dtype)[1::3],
        "expanded": filled(5, dtype).expand(3, 5),
    }
    back(tensors, path)


def test_memory_is_stored_once(path: Path) -> None:
    """However many look at it: tied, transposed, in part, as another type."""
    weight = torch.randn(64, 32)
    halves = torch.randn(10, 16)
    tensors = {
        "embedding": weight,
        "head": weight,
        "head.t": weight.t(),
        "rows": weight[10:20],
        "front": halves[:6],
        "back": halves[4:],
        "bits": halves.view(torch.int32)[5:6],
        "apart": torch.randn(3),
    }
    found = back(tensors, path)
    assert path.stat().st_size < 1024 + weight.nbytes + halves.nbytes + 12
    assert found["head"].data_ptr() == found["embedding"].data_ptr()
    found["head"][0, 0] = 5.0
    assert found["head.t"][0, 0] == 5.0 and read_tensors(path)["head"][0, 0] != 5.0


def test_parts_that_nobody_looks_at_are_left_out(path: Path) -> None:
    whole = torch.randn(1000, 100)
    back({"first": whole[:10], "last": whole[990:], "column": whole[500:502, 7]}, path)
    assert path.stat().st_size < 1024 + 20 * 400 + 2 * 400


def test_nothing_is_copied(path: Path) -> None:
    """Tensors are windows of the mapped file; what is written to them stays in this process."""
    write_tensors({"big": torch.arange(1 << 20)}, path)
    path.chmod(0o444)
    before, found = path.read_bytes(), read_tensors(path)
    maps = Path("/proc/self/maps")
    if maps.exists():
        ranges = [line.split()[0] for line in maps.read_text().splitlines() if str(path) in line]
        spans = [tuple(int(end, 16) for end in text.split("-")) for text in ranges]
        assert any(low <= found["big"].data_ptr() < high for low, high in spans)
    found["big"].zero_()
    assert path.read_bytes() == before


def test_memory_begins_at_cache_lines(path: Path) -> None:
    tensors = {f"t{n}": torch.randn(n) for n in (3, 16, 1, 64, 7, 48)}
    found = back(tensors | {"odd": torch.zeros(5, dtype=torch.uint8)}, path)
    assert {t.data_ptr() % ALIGNMENT for t in found.values() if t.nbytes % ALIGNMENT == 0} == {0}


def test_other_readers_understand_it(path: Path) -> None:
    """A transposed one lies there as it lies in memory."""
    weight, bias = torch.randn(8, 4), torch.randn(5).to(torch.bfloat16)
    kept = {"weight": weight, "tied": weight, "bias": bias, "none": torch.zeros(0, 2)}
    write_tensors(kept | {"turned": torch.randn(3, 6).t()}, path)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"weight", "bias", "none", "turned"}
        assert torch.equal(file.get_tensor("weight"), weight)
        assert torch.equal(file.get_tensor("bias"), bias)
        assert file.get_tensor("turned").shape == (3, 6)
        assert list(json.loads(file.metadata()["views"])) == ["tied", "turned"]


def test_lazily_negated_and_conjugated_ones_are_stored_as_they_read(path: Path) -> None:
    z = torch.randn(4, dtype=torch.complex64)
    write_tensors({"conj": z.conj(), "imag": z.conj().imag}, path)
    found = read_tensors(path)
    assert torch.equal(found["conj"], z.conj().resolve_conj())
    assert torch.equal(found["imag"], -z.imag)


def test_what_has_no_memory_of_its_own_is_refused(path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cannot hold %s, a sparse_coo tensor"):
        write_tensors({"s": torch.eye(3).to_sparse()}, path)


def test_the_same_tensors_give_the_same_file(path: Path, tmp_path: Path) -> None:
    layer = nn.Linear(7, 5)
    for name in (path, tmp_path / "again.safetensors"):
        write_tensors(layer.state_dict(), name)
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_tied_memory_is_moved_once(path: Path) -> None:
    """To another device; here to one that has no memory at all."""
    weight = torch.randn(4, 4)
    tensors = {"a": weight, "b": weight.t(), "c": torch.zeros(0), "d": weight}
    moved = on_device(tensors, torch.device("meta"), {"d": "cpu"})
    assert [tuple(t.stride()) for t in moved.values()] == [(4, 1), (1, 4), (1,), (4, 1)]
    assert [t.device.type for t in moved.values()] == ["meta"] * 3 + ["cpu"]
    assert moved["a"].untyped_storage()._cdata == moved["b"].untyped_storage()._cdata


# --- damage -------------------------------------------------------------------------------------


def test_a_missing_file_is_refused(path: Path) -> None:
    with pytest.raises(Refused, match=r"t\.safetensors cannot be read: .*No such file"):
        read_tensors(path)


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_a_truncated_file_is_refused(path: Path, keep: int) -> None:
    write_tensors({"a": torch.arange(10), "b": torch.arange(3).expand(2, 3)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(Refused, match=r"t\.safetensors cannot be read"):
        read_tensors(path)


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 1 << 12), value=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    """No tensor ever reaches beyond the file."""
    path = tmp_path_factory.mktemp("t") / "t.safetensors"
    write_tensors({"a": torch.arange(10), "b": torch.arange(3).expand(2, 3)}, path)
    data = bytearray(path.read_bytes())
    data[place % len(data)] = value
    path.write_bytes(data)
    try:
        for tensor in read_tensors(path).values():
            bits(tensor).sum()
    except Refused:
        pass
    os.unlink(path)
