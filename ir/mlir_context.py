"""torch-mlir, loaded when it is first asked for, and what it complains about in our words.

Whatever touches its passes, its parser or its diagnostics goes through here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

from rewright.ir.errors import (
    ImportFailure,
    RewrightError,
    TextError,
    ToolchainError,
    UnsupportedError,
)
from rewright.ir.graph import Loc
from rewright.ir.source import Source

# Of the attributes called `rewright.*`; the function says which it has.
VERSION: Final = 1
# What a file of MLIR bytecode begins with.
BYTECODE: Final = b"ML\xefR"

# torch-mlir calls the text it parses so.
_TEXT: Final = "-"

# As `torch_mlir.fx` lowers: to what its backends take, and from there to linalg.
_LOWERING: Final = (
    "builtin.module(torchdynamo-export-to-torch-backend-pipeline{extra-library=},"
    "torch-backend-to-linalg-on-tensors-backend-pipeline)"
)

_operator_in = re.compile(r""".*(?:<\{name = "([\w.]+)"|operation '([\w.]+)')""").match


def bindings() -> Any:
    """torch-mlir's module `ir`. Raises ToolchainError when it is missing or does not load."""
    try:
        from torch_mlir import ir
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        state = "is not installed" if missing else f"does not load: {error}"
        raise ToolchainError(
            f"MLIR is read and written by torch-mlir, which {state}",
            who="mlir",
            help="pip install torch-mlir",
        ) from error
    return ir


def state_path(path: Path) -> Path:
    """Where the parameters and buffers of the function in a file lie."""
    return path.with_name(f"{path.name}.safetensors")


def make_context() -> Any:
    """A context that knows the `torch` dialect and uses one thread."""
    ir = bindings()
    from torch_mlir.dialects import torch

    context = ir.Context()
    context.enable_multithreading(False)
    torch.register_dialect(context)
    return context


def parse_module(data: str | bytes, file: str) -> Any:
    """The module in a text or in bytecode; `file` is what messages call it.

    Raises TextError with the place in the text, ImportFailure for damaged bytecode.
    """
    ir = bindings()
    try:
        return ir.Module.parse(data, make_context())
    except ir.MLIRError as error:
        raise _refusal(error, data, file) from None


def lower_to_linalg(module: Any) -> None:
    """Turn the `torch` dialect into linalg on tensors, in place.

    Raises UnsupportedError with the operator that torch-mlir cannot lower and its place.
    """
    bindings()
    from torch_mlir import ir, passmanager

    with module.context:
        try:
            passmanager.PassManager.parse(_LOWERING).run(module.operation)
        except ir.MLIRError as error:
            raise UnsupportedError(_not_lowered(error), who="mlir") from None


# --- complaints ---------------------------------------------------------------------------------


def _refusal(error: Any, data: str | bytes, file: str) -> RewrightError:
    found = _first(error)
    reason = _line(str(error) if found is None else found.message)
    if isinstance(data, bytes):
        return ImportFailure(f"{file} is truncated or no MLIR bytecode: {reason}")
    place = _place(found)
    if getattr(place, "filename", None) == _TEXT and place.start_line > 0:
        before = data.split("\n")[: place.start_line - 1]
        start = sum(len(line) + 1 for line in before) + max(place.start_col, 1) - 1
        return TextError(reason, excerpt=Source(data, file).excerpt(min(start, len(data))))
    where = "" if place is None or loc_of(place) is None else f" at {loc_of(place)}"
    return ImportFailure(f"{file}{where}: {reason}")


def _not_lowered(error: Any) -> str:
    found = _first(error)
    reason = _line(str(error) if found is None else found.message)
    called = _operator_in(reason)
    what = "the graph" if called is None else called[1] or called[2]
    place = loc_of(_place(found))
    where = "" if place is None else f" at {place}"
    return f"torch-mlir cannot lower {what}{where} to linalg: {reason}"


def _first(error: Any) -> Any:
    return next(iter(error.error_diagnostics), None)


def _place(diagnostic: Any) -> Any:
    """Its location as what it is: diagnostics hold locations of no particular kind."""
    if diagnostic is None:
        return None
    location = diagnostic.location
    with location.context:
        return bindings().Location.from_attr(location.attr)


def _line(message: str) -> str:
    """The first line, with types and operators spelled as they were."""
    lines = [line.strip() for line in message.strip().splitlines()]
    return re.sub(r"`(\w+)'", r"'\1'", lines[0]) if lines else "no reason given"


# --- attributes ---------------------------------------------------------------------------------


def text_at(attributes: Any, key: str) -> str | None:
    """The text that an attribute holds; None without it. Raises ImportFailure for other kinds."""
    if key not in attributes:
        return None
    return _text(attributes[key], key)


def texts_at(attributes: Any, key: str) -> tuple[str, ...]:
    """The texts that an attribute lists; none without it. Raises ImportFailure for other kinds."""
    if key not in attributes:
        return ()
    if not isinstance(attributes[key], bindings().ArrayAttr):
        raise ImportFailure(f"attribute {key} is {attributes[key]}, which is no list of texts")
    return tuple(_text(item, key) for item in attributes[key])


def integer_at(attributes: Any, key: str) -> int | None:
    """The integer that an attribute holds; None without it. Raises ImportFailure for others."""
    if key not in attributes:
        return None
    if not isinstance(attributes[key], bindings().IntegerAttr):
        raise ImportFailure(f"attribute {key} is {attributes[key]}, which is no integer")
    return int(attributes[key].value)


def _text(attribute: Any, key: str) -> str:
    if not isinstance(attribute, bindings().StringAttr):
        raise ImportFailure(f"attribute {key} is {attribute}, which is no text")
    text: str = attribute.value
    return text


# --- locations ----------------------------------------------------------------------------------


def frames(location: Any) -> Iterator[Any]:
    """A location and what it holds, from the outside in; of calls the innermost, of several
    places the first."""
    while location is not None:
        yield location
        inner = getattr(location, "child_loc", None) or getattr(location, "callee", None)
        if inner is None:
            inner = next(iter(getattr(location, "locations", ())), None)
        location = inner


def loc_of(location: Any, text: str = "") -> Loc | None:
    """The line that a location names; `text` is the file that was parsed."""
    for frame in frames(location):
        file = getattr(frame, "filename", None)
        if file is not None:
            name = text if file == _TEXT else file.replace("\\", "/")
            return Loc(PurePosixPath(name).name, frame.start_line) if name else None
    return None


def name_of(location: Any) -> str | None:
    """The name that a location gives a value."""
    names = (getattr(frame, "name_str", None) for frame in frames(location))
    return next((name for name in names if name), None)


@contextmanager
def inside(context: Any) -> Iterator[Any]:
    """`context`, with a location for what names none."""
    with context, bindings().Location.unknown():
        yield context
