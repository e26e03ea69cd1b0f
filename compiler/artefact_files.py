"""The files of an artefact that are for reading, and its manifest."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

import rewright
from rewright.building import march_of
from rewright.codegen import input_sizes, is_fast
from rewright.codegen.call_sequence import ALIGNMENT
from rewright.codegen.loading import FORMAT, MANIFEST, VERSION, cpu_flags, file_facts, found_in
from rewright.codegen.storages import result_of_buffer
from rewright.driver import targets_of
from rewright.ir import Graph, TensorType, Value, evaluate
from rewright.ir.show import show_arg, show_type
from rewright.ir.target import Target
from rewright.passes.memory.problem import Buffer, MemoryPlan, MemoryProblem
from rewright.traces import write_plan

if TYPE_CHECKING:
    from rewright.driver import Program

# Families of instructions that a compiler may use when it builds for the host.
_FAMILIES: Final = ("avx", "amx", "fma", "f16c", "bmi", "sse4", "gfni", "vaes", "vpclmul", "movbe")
_NEEDS: Final = {
    "avx512": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
    "avx2": ("avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"),
}

ABOUT: Final = {
    "program.py": "the call sequence; `load()` gives a function of the model's inputs",
    "runtime.py": "buffers of a call in flight",
    "loading.py": "checks these files and opens them; `python loading.py` does only that",
    "driver.py": "launches kernels on a GPU",
    "kernels.cpp": "our kernels, as source",
    "kernels.so": "our kernels, built",
    "build.sh": "builds `kernels.so` from `kernels.cpp` and `include/`, as it was built",
    "kernels.json": "how each kernel is launched, and which nodes run as ATen and why",
    "tensors.safetensors": "parameters, buffers and constants, by name",
    "memory.csv": "the memory plan: a line a buffer",
    "graph.rw": "the schedule, as text: a line a step",
    "report.json": "what the compile did",
}


# --- the manifest -------------------------------------------------------------------------------


def manifest(program: Program, held: Container[str], folder: Path) -> dict[str, Any]:
    """What a reader must know before it runs anything in the folder, whose other files are there.

    `held` names the inputs whose tensors lie in it.
    """
    graph = program.graph
    return {
        "format": FORMAT,
        "version": VERSION,
        "rewright": rewright.__version__,
        "torch": torch.__version__,
        "graph": graph.name,
        "target": _target(program),
        "entry": {"file": "program.py", "function": "load"},
        "inputs": [
            {
                "name": i.value.name,
                "type": show_type(i.value.type),
                "role": i.role,
                "held": i.value.name in held,
                "mutable": i.mutable,
            }
            for i in graph.inputs
        ],
        "outputs": [_output(arg) for arg in graph.outputs],
        "sizes": [
            {"name": s.name, "low": s.low, "high": s.high, "divisor": s.divisor}
            for s in graph.symbols
            if s.name in input_sizes(graph)
        ],
        "files": {n: file_facts(folder / n) for n in sorted(found_in(folder)) if n != MANIFEST},
    }


def _output(arg: object) -> dict[str, str]:
    if isinstance(arg, Value):
        return {"name": arg.name, "type": show_type(arg.type)}
    return {"value": show_arg(arg)}  # type: ignore[arg-type]


def _target(program: Program) -> dict[str, Any]:
    target = program.plan.env.target
    built = program.library is not None
    return {
        "name": target.name,
        "device": target.device,
        "isa": _isas(program),
        "machine": platform.machine() if built else "",
        "needs": _needs(target) if built else [],
    }


def _isas(program: Program) -> str:
    """What kernels are built for: several, when several GPUs were asked for."""
    if program.plan.options.target == "host":
        return program.plan.env.target.isa
    return ", ".join(dict.fromkeys(t.isa for t in targets_of(program.plan.options)))


def _needs(target: Target) -> list[str]:
    """What the CPU must be able to do, in the words of /proc/cpuinfo."""
    from rewright.calibrate.host import host

    if target == host():
        return sorted(flag for flag in cpu_flags() if flag.startswith(_FAMILIES))
    return sorted(_NEEDS.get(target.isa, ()))


# --- kernels ------------------------------------------------------------------------------------

_BUILD: Final = """\
#!/bin/sh
# Builds kernels.so as it was built; CXX names another compiler, PYTHON a Python that has torch.
set -e
cd "$(dirname "$0")"
# torch's own OpenMP runtime, so that one pool of threads serves both.
gomp=$("${{PYTHON:-python3}}" -c 'import pathlib, torch
found = sorted((pathlib.Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
print(found[0] if found else "-lgomp")')
${{CXX:-c++}} {flags} \\
  -Iinclude -shared kernels.cpp "$gomp" -lm -o kernels.so
"${{PYTHON:-python3}}" loading.py seal kernels.so
"""


def write_kernels(program: Program, folder: Path) -> None:
    """Source, the headers that it includes, and the command that builds it."""
    from rewright.codegen.cpp import headers_of, toolchain

    source = program.recipe.source
    (folder / "kernels.cpp").write_text(source)
    (folder / "include").mkdir()
    for name, text in headers_of(source).items():
        (folder / "include" / name).write_text(text)
    fast = any(is_fast(node) for node in program.graph.nodes)
    tools = toolchain(march_of(program.recipe.target), contract=fast)
    script = folder / "build.sh"
    script.write_text(_BUILD.format(flags=shlex.join(tools.flags)))
    script.chmod(0o755)


# --- memory -------------------------------------------------------------------------------------


def write_memory(graph: Graph, path: Path) -> None:
    """The buffers of the arena and where they lie, as `rewright plan-memory` reads them; sizes are
    those at the hints. Nothing for a graph without an arena."""
    freed = {n.operands[0]: step for step, n in enumerate(graph.nodes) if n.op.name == "rw.free"}
    of_buffer = result_of_buffer(graph)
    buffers, offsets = [], []
    for step, node in enumerate(graph.nodes):
        if node.op.name == "rw.alloc":
            value, offset = of_buffer.get(node.result, node.result), node.kwarg("offset")
            assert isinstance(offset, int)
            last = freed.get(value, len(graph.nodes))
            buffers.append(Buffer(value.name, step, last, node.result.tensor.nbytes_hint))
            offsets.append(offset)
    if buffers:
        ends = (at + buffer.nbytes for at, buffer in zip(offsets, buffers, strict=True))
        plan = MemoryPlan(tuple(offsets), max(ends))
        write_plan(MemoryProblem(tuple(buffers), ALIGNMENT), plan, path)


# --- what it is ---------------------------------------------------------------------------------


def readme(made: Mapping[str, Any], graph: Graph) -> str:
    """What lies in the folder of a manifest, and how to run it."""
    given = [i.value for i in graph.inputs if i.value.name in _names(made, held=False)]
    names = [*made["files"], MANIFEST, "README.md"]
    about = [f"| `{name}` | {text} |" for name, text in ABOUT.items() if name in names]
    about += ["| `include/` | headers of the kernels |"] * ("include/simd.h" in names)
    about += ["| `kernels/` | each kernel: source, PTX, cubin |"] * ("kernels.json" in names)
    about += [
        f"| `{MANIFEST}` | who made this, for what; inputs, outputs, a digest of every file |"
    ]
    outputs = [f"{o['name']}: {o['type']}" if "type" in o else o["value"] for o in made["outputs"]]
    return _README.format(
        graph=graph.name,
        target=made["target"]["name"],
        rewright=made["rewright"],
        torch=made["torch"],
        call="\n".join(f"        {line}" for line in _example(graph, given)),
        outputs="\n".join(f"- `{output}`" for output in outputs),
        about="\n".join(about),
        more=_MEMORY.format(alignment=ALIGNMENT) * ("memory.csv" in names)
        + _GPU * ("kernels.json" in names),
    )


def _names(made: Mapping[str, Any], *, held: bool) -> set[str]:
    return {i["name"] for i in made["inputs"] if i["held"] == held}


def _example(graph: Graph, given: list[Value]) -> Iterator[str]:
    """An argument a line, of the sizes seen at compile time."""
    sizes = {symbol.name: symbol.hint or symbol.low for symbol in graph.symbols}
    for value in given:
        type, about = value.type, f"  # {value.name}: {show_type(value.type)}"
        if isinstance(type, TensorType):
            shape = tuple(evaluate(size, sizes) for size in type.shape)
            device = "" if type.device.type == "cpu" else f", device={str(type.device)!r}"
            yield f"torch.zeros({shape}, dtype={type.dtype}{device}),{about}"
        else:
            dim = getattr(type, "dim", None)
            yield f"{evaluate(dim, sizes) if dim is not None else None},{about}"


_README: Final = """\
# {graph}

A program for {target}, made of the graph `{graph}` by rewright {rewright}. It needs torch (it was
made with {torch}) and nothing else. From this folder:

    import runpy

    import torch

    run = runpy.run_path("program.py")["load"]()
    outputs = run(
{call}
    )

`outputs` is a list:

{outputs}

`load()` first compares every file with its digest in `rewright.json`; `load(verify=False)` does
not. Code in this folder is run: open it only when you trust whom it came from.

| file | what it is |
| --- | --- |
{about}
{more}"""

_MEMORY: Final = """
In `memory.csv` a buffer is alive from step `lower` (nodes of `graph.rw`, counted from 0) until step
`upper`; `size` and `offset` are in bytes, for the sizes seen at compile time.
`rewright plan-memory memory.csv --alignment {alignment}` reads it.
"""

_GPU: Final = """
The kernels were built without a GPU, and rewright's own tests do not run them on one: compare
outputs with those of eager before you rely on them. They are launched through the CUDA driver
(`libcuda.so.1`) on torch's current stream.
"""
