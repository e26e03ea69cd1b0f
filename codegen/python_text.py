"""Python expressions for arguments, types and names of a graph."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterable
from typing import Final

import torch

from rewright.ir import Arg, Dim, Size, Value

# What the generated functions read besides operators, kernels and sizes.
RESERVED: Final = frozenset(
    {"args", "copies", "frame", "p", "returned", "torch", "trace", "new", "own", "owned"}
    | {"complex", "float", "int", "max", "min"}
    | set(keyword.kwlist)
)


def python_names(names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """A distinct Python identifier for each name, none of `taken`; most stay as they are."""
    found: dict[str, str] = {}
    used = {*RESERVED, *taken}
    for name in names:
        stem = re.sub(r"\W", "_", name, flags=re.ASCII)
        if not stem or stem[0].isdigit():
            stem = f"v{stem}"
        candidate, n = stem, 0
        while candidate in used:
            n += 1
            candidate = f"{stem}_{n}"
        used.add(candidate)
        found[name] = candidate
    return found


def python_tuple(parts: Iterable[Size | str]) -> str:
    listed = [str(part) for part in parts]
    return f"({', '.join(listed)}{',' if len(listed) == 1 else ''})"


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
    if isinstance(arg, complex):
        return f"complex({str(arg)!r})"  # repr may name inf and nan
    return repr(arg) if not isinstance(arg, (torch.layout, torch.dtype)) else str(arg)
