"""GPUs that are not there: drivers that artefacts for GPUs can be loaded with on a CPU.

`on_cpu` turns such an artefact into one whose tensors lie on the CPU; its kernels are still
launched through a driver. `Recorded` is a driver in Python: it takes a launch apart as the real one
would, and computes what the region says. `build_driver` makes a library that runs CUDA C++ kernels
thread by thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import runpy
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rewright.building import Recipe
from rewright.codegen.gpu import GpuKernel
from rewright.ir import Dim, Graph, Input, ScalarType, TensorType, Value, evaluate
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse

TESTS = Path(__file__).parent
STREAM = 0x5EED


def on_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch, library: Any) -> Callable[..., Any]:
    """What the artefact's `load` gives where `library` is the CUDA driver's."""
    program = folder / "program.py"
    program.write_text(program.read_text().replace("cuda:0", "cpu"))
    real = ctypes.CDLL
    monkeypatch.setattr(
        ctypes, "CDLL", lambda name, *rest: library if "libcuda" in str(name) else real(name, *rest)
    )
    pretend(monkeypatch, (9, 0))
    return runpy.run_path(str(program))["load"](verify=False)  # type: ignore[no-any-return]


def pretend(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """Have torch see a GPU."""
    stream = type("Stream", (), {"cuda_stream": STREAM})()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())


# --- a driver in Python -------------------------------------------------------------------------


class Recorded:
    """Knows the kernels of a program by their entries. `launches` counts by kernel; `sizes` are
    those of the next call."""

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.gpu is not None
        built = recipe.gpu.built
        self.kernels = {k.entry: k for kernel in built for k in (*kernel.before, kernel)}
        self.bodies = {
            name: on_host(node.graph("body"))
            for node in recipe.graph.nodes
            if (name := recipe.kernels.get(node.name, ""))
        }
        self.sizes: dict[str, int] = {}
        self.launches: dict[str, int] = {}
        self.scratch: dict[str, int] = {}
        self.functions: list[GpuKernel] = []
        self.images: list[bytes] = []

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        context._obj.value = 0xC0
        return 0

    def cuCtxSetCurrent(self, context: ctypes.c_void_p) -> int:
        return 0 if context.value == 0xC0 else 201

    def cuGetErrorString(self, code: int, said: Any) -> int:
        said._obj.value = {201: b"invalid device context", 500: b"named symbol not found"}[code]
        return 0

    def cuModuleLoadData(self, module: Any, image: bytes) -> int:
        self.images.append(image)
        module._obj.value = len(self.images)
        return 0

    def cuModuleGetFunction(self, function: Any, module: ctypes.c_void_p, name: bytes) -> int:
        if not module.value or name not in self.images[module.value - 1]:
            return 500
        self.functions.append(self.kernels[name.decode()])
        function._obj.value = len(self.functions)
        return 0

    def cuFuncSetAttribute(self, function: ctypes.c_void_p, attribute: int, value: int) -> int:
        return 0

    def cuLaunchKernel(self, function: ctypes.c_void_p, *rest: Any) -> int:
        *grid, shared, stream, parameters, extra = rest
        assert function.value and extra is None and stream.value == STREAM
        kernel = self.functions[function.value - 1]
        blocks = evaluate(kernel.blocks, self.sizes)
        assert grid == [blocks, 1, 1, *kernel.threads, 1] and blocks > 0
        assert shared == kernel.images[0].shared and len(parameters) == len(kernel.arguments)
        addresses = self.pointers(kernel, parameters)
        if kernel.name in self.bodies:  # the last of those that compute it
            self.compute(kernel, addresses)
        self.launches[kernel.name] = self.launches.get(kernel.name, 0) + 1
        return 0

    def pointers(self, kernel: GpuKernel, parameters: ctypes.Array[ctypes.c_void_p]) -> list[int]:
        """The addresses that a launch passes; its other arguments are as they must be."""
        found = []
        for argument, place in zip(kernel.arguments, parameters, strict=True):
            assert place is not None
            kinds: dict[str, Any] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64}
            value = kinds.get(argument.type, ctypes.c_void_p).from_address(place).value
            if argument.kind == "pointer":
                assert not argument.aligned or (value or 0) % 16 == 0
                found.append(value or 0)
            elif argument.kind == "scratch":
                assert value and value % 16 == 0
                if kernel.name in self.bodies:
                    assert self.scratch.pop(argument.name) == value
                else:
                    self.scratch[argument.name] = value
            elif argument.kind == "null":
                assert value is None
            else:
                assert value == eval(argument.value, dict(self.sizes))
        return found

    def compute(self, kernel: GpuKernel, addresses: list[int]) -> None:
        body = self.bodies[kernel.name]
        types = [i.value.tensor for i in body.inputs]
        given = [self.at(a, t) for a, t in zip(addresses, types, strict=False)]
        # A region may read sizes that none of its inputs has.
        sized = [Input(Value(f"size of {s}", ScalarType("int", Dim.of(s)))) for s in body.symbols]
        whole = dataclasses.replace(body, inputs=(*body.inputs, *sized))
        results = interpret(whole, [*given, *(self.sizes[s.name] for s in body.symbols)])
        outputs = [v.tensor for v in body.outputs if isinstance(v, Value)]
        for address, type, result in zip(addresses[len(types) :], outputs, results, strict=True):
            self.at(address, type).copy_(result)

    def at(self, address: int, type: TensorType) -> Tensor:
        """The tensor of a type that lies at an address."""
        shape, strides = ([evaluate(s, self.sizes) for s in of] for of in (type.shape, type.layout))
        count = evaluate(type.storage_elements, self.sizes)
        if count == 0:
            return torch.empty(shape, dtype=type.dtype)
        memory = (ctypes.c_char * (count * type.dtype.itemsize)).from_address(address)
        return torch.frombuffer(memory, dtype=type.dtype).as_strided(shape, strides)


def on_host(graph: Graph) -> Graph:
    return parse(str(graph).replace(" on cuda:0", "").replace("cuda:0", "cpu"))


# --- a driver in C++ ----------------------------------------------------------------------------

_DRIVER = """
#include "cuda_shim.h"
#include "kernels.cu"

using namespace rw;
// What a parameter points to, as the type that is wanted.
struct Passed {{
  void* at;
  template <class T> operator T() const {{ return *static_cast<T*>(at); }}
}};
struct Entry {{
  const char* name;
  void (*run)(void** p, unsigned blocks, unsigned x, unsigned y);
}};
static Entry entries[] = {{
{entries}
}};
extern "C" {{
int cuInit(unsigned) {{ return 0; }}
int cuDeviceGet(int* device, int ordinal) {{ *device = ordinal; return 0; }}
int cuDevicePrimaryCtxRetain(void** context, int) {{ *context = entries; return 0; }}
int cuCtxSetCurrent(void* context) {{ return context == entries ? 0 : 201; }}
int cuGetErrorString(int, const char** said) {{ *said = "no such thing"; return 0; }}
int cuModuleLoadData(void** module, const char* image) {{
  if (std::memcmp(image, "\\x7f" "ELF", 4)) return 200;
  *module = entries;
  return 0;
}}
int cuModuleGetFunction(void** function, void* module, const char* name) {{
  for (Entry& entry : entries)
    if (module == entries && !std::strcmp(entry.name, name)) return *function = &entry, 0;
  return 500;
}}
int cuLaunchKernel(Entry* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** params, void** extra) {{
  if (gx == 0 || gy * gz * bz != 1 || shared || stream != (void*){stream} || extra) return 1;
  return function->run(params, gx, bx, by), 0;
}}
}}
"""


def build_driver(folder: Path, place: Path) -> ctypes.CDLL:
    """The driver of a machine whose GPU can run the CUDA C++ kernels of an artefact."""
    about = json.loads((folder / "kernels.json").read_text())
    entries = "\n".join(f"  {_entry(kernel)}," for kernel in about["kernels"])
    source, library = place / "driver.cpp", place / "libcuda.so.1"
    source.write_text(_DRIVER.format(entries=entries, stream=hex(STREAM)))
    command = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-w"]
    command += ['-DRW_ON_CPU="cuda_on_cpu.h"', f"-I{TESTS}", f"-I{folder / 'kernels'}"]
    done = subprocess.run(
        [*command, str(source), "-o", str(library)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(library))


def _entry(kernel: Mapping[str, Any]) -> str:
    """Calls a kernel with what its parameters point to, whatever their types."""
    name, count = kernel["entry"], len(kernel["arguments"])
    args = ", ".join(f"Passed{{p[{place}]}}" for place in range(count))
    return (
        f'{{"{name}", [](void** p, unsigned b, unsigned x, unsigned y) '
        f"{{ shim::launch(b, x, y, [&] {{ {name}({args}); }}); }}}}"
    )
