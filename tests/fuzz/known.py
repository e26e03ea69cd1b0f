"""What is known to fail: graphs of `cases/`, by name, and the nodes not to draw until then.

`test_fuzz.py` says when one of them works again: then its entry here goes, and the file stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from rewright.ir import Node, hint


def _is_of_nothing(node: Node) -> bool:
    return any(hint(v.tensor.numel) == 0 for v in node.operands)


KNOWN: Final[Mapping[str, Callable[[Node], bool]]] = {
    # ATen leaves the mean of a row without elements at zero.
    "layer_norm_of_nothing": lambda n: "layer_norm" in n.op.name and _is_of_nothing(n),
    # Fusion does not count what only looks at a type among the readers of a value.
    "creation_like": lambda n: n.op.name in ("aten.new_zeros.default",),
}


def is_off(node: Node) -> bool:
    """Whether a node would only find a known failure again."""
    return any(matches(node) for matches in KNOWN.values())
