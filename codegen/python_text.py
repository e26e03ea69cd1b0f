"""Python expressions for arguments, types and names of a graph."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable
from typing import Final

import torch

from rewright.ir import Arg, Dim, Size, Value

RESERVED: Final = frozenset(
    {"args", "frame", "torch", "operator", "math", "new", "p", "run", "prepare", "trace"}
    | set(keyword.kwlist)
)


def python_names(names: Iterable[str]) -> dict[str, str]:
    """A distinct Python identifier for each name; most stay as they are."""
    found: dict[str, str] = {}
    used = set(RESERVED)
    for name in names:
        stem = re.sub(r"\W", "_", name)
        if not stem or stem[0].isdigit():
            stem = f"v{stem}"
        candidate, n = stem, 0
        while candidate in used:
            n += 1
            candidate = f"{stem}_{n}"
        used.add(candidate)
        found[name] = candidate
    return found


def python_size(size: Size) -> str:
    return str(size)


def python_tuple(sizes: Iterable[Size]) -> str:
    parts = [python_size(s) for s in sizes]
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


def python_arg(arg: Arg, name_of: Callable[[Value], str]) -> str:
    """The argument as Python source. Sizes are expressions over the symbols' names."""
    if isinstance(arg, Value):
        return name_of(arg)
    if isinstance(arg, Dim):
        return arg.text
    if isinstance(arg, tuple):
        return "[" + ", ".join(python_arg(a, name_of) for a in arg) + "]"
    if isinstance(arg, torch.device):
        return f"torch.device({str(arg)!r})"
    if isinstance(arg, float) and (arg != arg or arg in (float("inf"), float("-inf"))):
        return f"float({str(arg)!r})"
    return repr(arg) if not isinstance(arg, (torch.layout, torch.dtype)) else str(arg)
