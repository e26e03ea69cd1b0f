"""What the nodes and attributes of an fx graph say about themselves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any, Final

import torch
from torch import fx

from rewright.ir.constant import Constant
from rewright.ir.errors import ImportFailure
from rewright.ir.graph import Loc

# Names that fx and torch.export give to tensors that were literals in the user's code.
_LITERAL_TENSORS: Final = ("_tensor_constant", "_lifted_tensor_constant", "lifted_tensor_")
_PHASES: Final = {
    "is_forward": "forward",
    "must_be_in_forward": "forward",
    "is_backward": "backward",
    "must_be_in_backward": "backward",
}
_FRAME: Final = 'File "'
_LINE: Final = '", line '
# Of this machine, and of others that exported a program.
_TORCH: Final = (f"{Path(torch.__file__).parent.as_posix()}/", "site-packages/torch/")


def attribute(gm: fx.GraphModule, target: str) -> Any:
    try:
        return reduce(getattr, target.split("."), gm)
    except AttributeError as error:
        raise ImportFailure(f"the module has no attribute '{target}'") from error


def attribute_role(node: fx.Node, held: torch.Tensor) -> str | None:
    """The role of a tensor that the module holds; None for a literal of the user's code."""
    if isinstance(held, torch.nn.Parameter):
        return "param"
    literal = str(node.target).rpartition(".")[2].startswith(_LITERAL_TENSORS)
    written = any(user.target is torch.ops.aten.copy_.default for user in node.users)
    return None if literal and not written else "buffer"


def constant_of(held: torch.Tensor) -> Constant:
    """The data of a literal, read although a backend is called under a fake tensor mode."""
    from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

    if isinstance(held, FakeTensor) or held.is_meta:
        raise ImportFailure("a constant has no data (it is a fake or meta tensor)")
    with unset_fake_temporarily():
        return Constant.of(held)


def returns_bare(gm: fx.GraphModule) -> bool:
    output = gm.graph.output_node()
    return not isinstance(output.args[0], list | tuple)


def is_guard(module: object) -> bool:
    """torch.export's check of its inputs, which our signature states."""
    return type(module).__name__ == "GuardsFn"


def is_joint(gm: fx.GraphModule) -> bool:
    """True for AOTAutograd's graphs of a training step, before or after they are parted."""
    return any("partitioner_tag" in n.meta or "autograd_backward" in n.meta for n in gm.graph.nodes)


def phase_of(meta: Mapping[str, Any]) -> str:
    found = _PHASES.get(meta.get("partitioner_tag", ""))
    return found or ("backward" if meta.get("autograd_backward") else "forward")


def loc_of(stack: str | None) -> Loc | None:
    """The innermost frame of a stack trace as torch formats it that is not torch's own, else the
    innermost; None for generated code."""
    end, innermost = len(stack or ""), None
    while stack and (start := stack.rfind(_FRAME, 0, end)) >= 0:
        path, loc = _frame(stack[start + len(_FRAME) : end])
        if loc is not None and not any(of in path for of in _TORCH):
            return loc
        innermost, end = innermost or loc, start
    return innermost


def _frame(text: str) -> tuple[str, Loc | None]:
    """The path of a frame's file, and the place; none in generated code."""
    path, _, rest = text.partition(_LINE)
    head, _, code = rest.partition("\n")
    number = head.split(",", 1)[0]
    if path.startswith("<") or not number.isdigit():
        return path, None
    name = path.replace("\\", "/").rpartition("/")[2]
    return path, Loc(name, int(number), code.split("\n", 1)[0].strip())


def trace(node: fx.Node) -> Any:
    """What a node without `val` returns: AOTAutograd's partitioner leaves it out at some."""
    from torch._guards import detect_fake_mode

    known = [n.meta.get("val") for n in node.all_input_nodes if n.op != "get_attr"]
    mode = detect_fake_mode(known)
    if mode is None or not isinstance(node.target, torch._ops.HigherOrderOperator):
        raise untraced()
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
    with mode:
        return node.target(*args, **kwargs)


def untraced() -> ImportFailure:
    return ImportFailure(
        "it does not say what it returns (no 'val' in its meta)",
        help="trace the module with torch.export.export or make_fx",
    )
