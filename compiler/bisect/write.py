"""What is left of a bisection on disk: `case.rw`, which has the form of our tests, and `repro.py`,
which says by itself what is right, and with Rewright whether it still goes wrong."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from rewright.bisect.again import PROMISES, fault_in
from rewright.bisect.broken import HeldData
from rewright.bisect.finding import Case, Finding
from rewright.ir import (
    ArtefactError,
    Constant,
    Graph,
    TensorType,
    UnsupportedError,
    Value,
    evaluate,
)
from rewright.ir.constant_text import values_text
from rewright.ir.parse import parse
from rewright.ir.python_dump import as_function
from rewright.ir.show import show
from rewright.ir.text_files import replace_file, write_tensors
from rewright.options import Options
from rewright.sources import small_sizes

LINE: Final = 98
CASE: Final = "case.rw"
SCRIPT: Final = "repro.py"
TENSORS: Final = "case.safetensors"
INPUTS: Final = "case.pt"
# So many numbers stand in the script itself.
FEW: Final = 32


def write(finding: Finding, case: Case, folder: Path) -> list[Path]:
    """Write what shows the fault into `folder`, over what an earlier bisection left there: the
    files. Raises ArtefactError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (TENSORS, INPUTS):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise ArtefactError(f"cannot write {folder}: {error.strerror or error}") from None
    texts = {CASE: case_text(finding, case), SCRIPT: script(finding, case)}
    made = []
    for name, text in texts.items():
        replace_file(folder / name, partial(Path.write_text, data=text))
        made.append(folder / name)
    constants = _large_constants(case.graph)
    if constants:
        replace_file(folder / TENSORS, partial(write_tensors, constants))
        made.append(folder / TENSORS)
    inputs = _held(case)
    if inputs is not None:
        replace_file(folder / INPUTS, partial(torch.save, inputs))
        made.append(folder / INPUTS)
    return made


def shows_again(case: Case) -> bool:
    """Whether the case, read back from its text, has its fault."""
    graph = parse(show(case.graph), constants=_large_constants(case.graph))
    how, options = PROMISES[promise_of(case)], _options(case)
    fault = fault_in(graph, str(case.subject), how, _held(case), options=options)
    return fault is not None and fault.kind == case.fault.kind


def _held(case: Case) -> list[Any] | None:
    """The inputs, where random ones will not do."""
    if not isinstance(case.data, HeldData):
        return None
    return list(case.data(case.graph))


def promise_of(case: Case) -> str:
    """What the case file says must hold."""
    if case.fault.kind != "slow":
        return "computes the same, built" if case.subject.built else "computes the same"
    measured = case.fault.what.endswith("measured)")
    return "is no slower, built" if measured else "is no slower"


def case_text(finding: Finding, case: Case) -> str:
    """The case as a file for `tests/cases`."""
    promise = promise_of(case)
    lines = [f"# After {case.steps}, a graph {promise.removesuffix(', built')}."]
    lines.append(f"# ---- {case.subject}")
    lines += _comment(str(finding))
    lines += [show(case.graph), f"# ---- {promise}", ""]
    return "\n".join(lines)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, LINE, initial_indent="# ", subsequent_indent="# ")


def _large_constants(graph: Graph) -> dict[str, Tensor]:
    """Constants of which the text says no more than a digest, by that."""
    found: dict[str, Tensor] = {}
    for node in graph.nodes:
        held = node.kwarg("value")
        if isinstance(held, Constant) and values_text(held, node.result.type) is None:
            found[held.sha256] = held.tensor
        for _, nested in node.graphs:
            found |= _large_constants(nested)
    return found


# --- the script ---------------------------------------------------------------------------------

_SCRIPT: Final = """{comment}
#
# python repro.py torch     what is right, by torch alone
# python repro.py           whether {steps} still does it: exit status 1 when it does
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent


{function}


{inputs}


GRAPH = {graph}
PASSES = {passes!r}


if __name__ == "__main__":
    torch.manual_seed(0)
    if sys.argv[1:] == ["torch"]:
        print(*reference(*inputs()), sep="\\n")
    else:
        from rewright.bisect import try_again

        sys.exit(try_again(GRAPH, PASSES, {how!r}, inputs(){options}))
"""


def script(finding: Finding, case: Case) -> str:
    """The case as a script."""
    large = bool(_large_constants(case.graph))
    text = show(case.graph).replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    return _SCRIPT.format(
        comment="\n".join(_comment(f"{finding}. Found by rewright bisect.")),
        passes=str(case.subject),
        steps=case.steps,
        function=_function(case.graph),
        inputs=_inputs(case),
        graph=f'HERE / "{CASE}"' if large else f'"""\\\n{text}\n"""',
        how=PROMISES[promise_of(case)],
        options="".join(f", {name}={given!r}" for name, given in _options(case).items()),
    )


def _options(case: Case) -> Mapping[str, str]:
    """What was asked for that passes look at besides their own options."""
    given, plain = case.subject.setting.options, Options()
    names = ("target", "measure", "error_budget")
    return {n: str(getattr(given, n)) for n in names if getattr(given, n) != getattr(plain, n)}


def _function(graph: Graph) -> str:
    try:
        return as_function("reference", graph)
    except UnsupportedError as error:
        said = f"torch alone cannot say: {error.message}"
        return f"def reference(*inputs):\n    raise NotImplementedError({said!r})"


def _inputs(case: Case) -> str:
    """A function that gives the inputs on which the case fails."""
    held = _held(case)
    values = [i.value for i in case.graph.inputs]
    if held is None:
        drawn = [_input(value, case.graph) for value in values]
        head = ["def inputs():", "    drawn = torch.Generator().manual_seed(0)", "    return ["]
    elif _are_few(held):
        drawn = [_literal(x) for x in held]
        head = ["def inputs():", "    return ["]
    else:
        return f'def inputs():\n    return torch.load(HERE / "{INPUTS}")'
    made = [f"        {text},  # {v.name}" for text, v in zip(drawn, values, strict=True)]
    return "\n".join([*head, *made, "    ]"])


def _are_few(inputs: Sequence[Any]) -> bool:
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    return sum(x.numel() for x in tensors) <= FEW and all(x.is_contiguous() for x in tensors)


def _literal(x: Any) -> str:
    return f"torch.tensor({x.tolist()}, dtype={x.dtype})" if isinstance(x, Tensor) else repr(x)


def _input(value: Value, graph: Graph) -> str:
    """What draws the numbers that `random_inputs` draws."""
    sizes, type = small_sizes(graph), value.type
    if not isinstance(type, TensorType):
        return "1"
    shape, strides = (_ints(of, sizes) for of in (type.shape, type.layout))
    count = evaluate(type.storage_elements, sizes)
    if type.dtype.is_floating_point or type.dtype.is_complex:
        drawn = f"torch.randn(({count},), generator=drawn).to({type.dtype})"
    elif type.dtype == torch.bool:
        drawn = f"(torch.rand(({count},), generator=drawn) < 0.5)"
    else:
        drawn = f"torch.randint(0, 2, ({count},), generator=drawn).to({type.dtype})"
    return f"{drawn}.as_strided({shape}, {strides})"


def _ints(sizes: Sequence[Any], known: dict[str, int]) -> list[int]:
    return [evaluate(size, known) for size in sizes]
