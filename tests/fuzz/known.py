"""What is known to fail: graphs of `cases/`, by name, and the nodes not to draw until then.

`test_fuzz.py` says when one of them works again: then its entry here goes, and the file stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from rewright.ir import Node

KNOWN: Final[Mapping[str, Callable[[Node], bool]]] = {}


def is_off(node: Node) -> bool:
    """Whether a node would only find a known failure again."""
    return any(matches(node) for matches in KNOWN.values())
