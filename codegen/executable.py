"""A program ready to run: the call sequence, its kernels, and its frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from rewright.codegen.call_sequence import CallSequence, write_calls
from rewright.codegen.input_sizes import input_sizes
from rewright.codegen.runtime import Frame, Frames, Frozen, laid_out, new, own, place_again
from rewright.ir import Graph, Node, TensorType, op

Kernel = Callable[[Any, Any], None]


class Executable:
    """Runs a kernel-level graph. Boxed: takes its arguments in a list and empties the list.

    Safe to call from several threads; each call has buffers of its own.
    """

    def __init__(
        self,
        graph: Graph,
        kernels: Mapping[str, Kernel],
        of_node: Mapping[str, str],
        *,
        retain: bool = True,
        trace: list[tuple[str, str]] | None = None,
    ) -> None:
        # On the instance: torch._dynamo.disable copies an object's own attributes, not its class's.
        self._boxed_call = True
        self.graph = graph
        self.calls = write_calls(graph, of_node, traced=trace is not None)
        self._namespace = _namespace(self.calls, kernels)
        self._namespace["trace"] = trace
        code = compile(self.calls.source, f"<rewright {graph.name}>", "exec")
        exec(code, self._namespace)  # the text is ours: written from the graph just above
        self._run: Callable[[list[Any], Frame], list[Any]] = self._namespace["run"]
        self._sizes_of: Callable[[Sequence[Any]], tuple[int, ...]] = self._namespace["sizes_of"]
        self._frames = Frames(self._make_frame, retain=retain)
        self._device = main_device(graph)

    @property
    def source(self) -> str:
        """The call sequence as Python text."""
        return self.calls.source

    def sizes(self, args: Sequence[Any]) -> Mapping[str, int]:
        """What each symbol that the inputs decide is in a call with these arguments."""
        return dict(zip(input_sizes(self.graph), self._sizes_of(args), strict=True))

    def __call__(self, args: list[Any]) -> list[Any]:
        sizes = self._sizes_of(args)
        frame = self._frames.take(sizes)
        try:
            if torch.is_autocast_enabled(self._device.type):
                # The types in the graph are final; ATen must not change them on the way.
                with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
                    return self._run(args, frame)
            if torch.is_grad_enabled():
                with torch.no_grad():
                    return self._run(args, frame)
            return self._run(args, frame)
        finally:
            self._frames.put(sizes, frame)

    def _make_frame(self, sizes: tuple[int, ...]) -> Frame:
        # Tensors made under inference mode could not be written outside it.
        with torch.inference_mode(False), torch.no_grad():
            return self._namespace["prepare"](sizes, self._device)  # type: ignore[no-any-return]


def main_device(graph: Graph) -> torch.device:
    """The device of the arena: that of the first buffer, else of the first tensor."""
    values = [n.result for n in graph.nodes if n.op.name == "rw.alloc"] or graph.values
    for value in values:
        if isinstance(value.type, TensorType):
            return value.type.device
    return torch.device("cpu")


def _namespace(calls: CallSequence, kernels: Mapping[str, Kernel]) -> dict[str, Any]:
    return {
        "torch": torch,
        "Frame": Frame,
        "new": new,
        "laid_out": laid_out,
        "own": own,
        "place_again": place_again,
        "constants": {name: c.tensor for name, c in calls.constants.items()},
        **{text: op(name).target for text, name in calls.operators.items()},
        **{text: _nested(node, name) for text, (node, name) in calls.functions.items()},
        **kernels,
    }


def _nested(node: Node, name: str) -> Callable[..., Any]:
    """A nested graph as a function: what a higher-order operator calls, or what is kept."""
    from rewright.ir.fx_export import to_fx
    from rewright.ir.hop_args import bare_graphs

    module = to_fx(node.graph(name))
    if node.op.name == "rw.frozen":
        return Frozen(module)
    if name not in bare_graphs(node):
        return module
    return lambda *args: module(*args)[0]
