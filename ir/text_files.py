"""Graphs on disk: the text in a `.rw` file, large constants beside it in a `.safetensors` file.

Files are written under another name and then renamed, so that a failure leaves what was there.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from rewright.ir.constant import Constant
from rewright.ir.constant_text import values_text
from rewright.ir.errors import ArtefactError, ImportFailure, TextError
from rewright.ir.graph import Graph, Value
from rewright.ir.parse import parse
from rewright.ir.show import VERSION, show
from rewright.ir.source import Source
from rewright.ir.types import DTYPE_NAMES

# safetensors has no name for these: they lie there as pairs of reals, which its metadata says.
_PAIRS = (torch.complex128, torch.complex32)


def save_text(graph: Graph, path: str | Path) -> None:
    """Write `graph` to `path`, and its large constants to the `.safetensors` file named after it.

    Raises ArtefactError when that cannot be done, CheckError when a constant has no data.
    """
    target = _path(path)
    text = show(graph) + "\n"
    beside = {c.sha256: c.tensor for value, c in _constants(graph) if not _is_in_text(value, c)}
    if beside:
        replace_file(_constants_path(target), lambda p: write_tensors(beside, p))
    replace_file(target, lambda p: p.write_text(text, encoding="utf-8"))


def load_text(path: str | Path) -> Graph:
    """The graph in `path`, with its constants.

    Raises TextError for mistakes in the text, ImportFailure for files that are missing or broken.
    """
    source = Source(read_text(_path(path)), str(path))
    _check_header(source)
    beside = _constants_path(_path(path))
    graph = parse(source.text, file=source.file, constants=read_tensors(beside))
    for value, constant in _constants(graph):
        if constant.data is None:
            wanted = f"the data of %{value.name} is missing: there is no constant"
            raise ImportFailure(
                f"{wanted} {constant.sha256[:12]} in {beside}",
                help="the .safetensors file belongs beside the .rw file, under the same name",
            )
    return graph


def _path(path: str | Path) -> Path:
    if Path(path).suffix == ".safetensors":
        raise ArtefactError(f"{path} is a file of constants; the graph lies in the .rw file")
    return Path(path)


def _constants_path(path: Path) -> Path:
    return path.with_suffix(".safetensors")


def _constants(graph: Graph) -> Iterator[tuple[Value, Constant]]:
    """Every constant with the value it is, nested graphs included."""
    for node in graph.nodes:
        for _, arg in node.kwargs:
            if isinstance(arg, Constant):
                yield node.result, arg
        for _, nested in node.graphs:
            yield from _constants(nested)


def _is_in_text(value: Value, constant: Constant) -> bool:
    return values_text(constant, value.type) is not None


# --- writing ------------------------------------------------------------------------------------


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file, and put it at `path` when done. Raises ArtefactError."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        raise ArtefactError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write tensors by name to a `.safetensors` file. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored: dict[str, torch.Tensor] = {}
    memory: set[int] = set()
    for sha256 in sorted(tensors):
        data = _storable(tensors[sha256])
        address = data.untyped_storage().data_ptr()
        # safetensors takes no two tensors that share memory.
        stored[sha256] = data.clone() if address in memory else data
        memory.add(address)
    paired = {s: DTYPE_NAMES[t.dtype] for s, t in tensors.items() if t.dtype in _PAIRS}
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(stored, path, metadata=paired or None)
        path.chmod(mode)  # safetensors makes a file that only its owner may read
    except SafetensorError as error:
        raise OSError(str(error)) from None


def _storable(tensor: torch.Tensor) -> torch.Tensor:
    data = tensor.detach().cpu().contiguous()
    return torch.view_as_real(data) if data.dtype in _PAIRS else data


# --- reading ------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """The text of a file. Raises ImportFailure."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ImportFailure(f"there is no file {path}") from None
    except UnicodeDecodeError:
        raise ImportFailure(f"{path} is not text in UTF-8") from None
    except OSError as error:
        raise ImportFailure(f"cannot read {path}: {error.strerror or error}") from None


def _check_header(source: Source) -> None:
    if not re.match(r"(?:\s|#[^\n]*(?:\n|$))*rewright\b", source.text):
        raise TextError(
            f"a file begins with the line 'rewright {VERSION}', and this one does not",
            excerpt=source.excerpt(0),
        )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` file by name; none when there is no file."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            paired = file.metadata() or {}
            digests = file.keys()
            tensors = {sha256: file.get_tensor(sha256) for sha256 in digests}
    except (SafetensorError, OSError) as error:
        raise ImportFailure(f"{path} is truncated or no .safetensors file: {error}") from None
    return {s: torch.view_as_complex(t) if s in paired else t for s, t in tensors.items()}
