"""Graphs beside the lines of the user's source that their nodes come from."""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from rewright.ir import Graph, OptionError

# How far to the right a line of source begins at the most.
WIDEST: Final = 100
_ALLOCATES: Final = re.compile(r"\s*(?:%\S+ = rw\.alloc|rw\.free)\(")
_LOC: Final = re.compile(r" @ (?P<loc>[^\s:\"]+:\d+)(?: seq \d+)?(?: forward| backward)?$")


def beside_source(graph: Graph, known: Mapping[str, str], folders: Iterable[Path]) -> str:
    """The text of a graph, where each line of the source stands, as a comment, beside the first of
    the nodes that come from it. What is not `known` is looked for in files that lie in `folders` or
    were imported. Raises OptionError when no line is found."""
    lines, folders = str(graph).split("\n"), list(folders)
    places = [_place(line) for line in lines]
    codes = {loc: known.get(loc) or _read(loc, folders) for loc in dict.fromkeys(places) if loc}
    if not any(codes.values()):
        named = ", ".join(sorted({loc.rpartition(":")[0] for loc in codes})) or "no file"
        raise OptionError(
            f"none of the source is known: the graph names {named}",
            who="show",
            help="run it in the folder of that file",
        )
    width = max((len(line) for line, loc in zip(lines, places, strict=True) if loc), default=0)
    return "\n".join(_joined(lines, places, codes, min(width, WIDEST)))


def _place(line: str) -> str:
    """Where a node comes from; allocations go with who needs them."""
    found = _LOC.search(line)
    return "" if found is None or _ALLOCATES.match(line) else found["loc"]


def _joined(
    lines: Iterable[str], places: Iterable[str], codes: Mapping[str, str], width: int
) -> Iterable[str]:
    before = ""
    for line, loc in zip(lines, places, strict=True):
        code = codes.get(loc, "") if loc != before else ""
        yield f"{line.ljust(width)}  # {code}" if code else line
        before = loc or before


def _read(loc: str, folders: Iterable[Path]) -> str:
    """The line at `file:number`, which says nothing of the folder that the file lies in."""
    file, _, number = loc.rpartition(":")
    beside = {(folder / file).resolve() for folder in folders}
    imported = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    loaded = {path for path in imported if path and Path(path).name == file}
    paths = [str(path) for path in beside if path.is_file()] or sorted(loaded)
    if len(paths) != 1:
        return ""  # two files of one name tell nothing
    return linecache.getline(paths[0], int(number)).strip()
