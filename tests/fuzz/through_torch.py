"""A graph by torch.compile, forward and backward, beside eager: all that a caller can see."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from drawn_inputs import inputs_for, sizes_of_runs
from fuzz.compare import Mismatch, Run, compare
from fuzz.shaken import floors
from rewright.ir import Arg, Graph, Input, Kind, Node, TensorType, Value, op
from rewright.ir.constant import Constant
from rewright.ir.decompositions import autograd_table
from rewright.ir.fx_export import to_fx
from rewright.torch_compat import aot_backend, min_cut_partition

RUNS = 8
COPIES = 64  # more than a vector holds
Function = Callable[..., Any]


def check_through_torch(graph: Graph) -> None:
    """Raises when the compiled module does something else than the module does in eager mode, and
    AOTAutograd, with our tables and no compiler behind it, does not."""
    try:
        _check_with(graph, "rewright")
    except Exception:
        try:
            _check_with(graph, _uncompiled())
        except Exception:
            return  # torch's own: there is nothing to be mended here
        raise


def _check_with(graph: Graph, backend: Any) -> None:
    torch._dynamo.reset()
    module, wide = to_fx(graph), to_fx(widened(graph))
    dynamic = bool(graph.symbols)
    step = torch.compile(module, backend=backend, fullgraph=True, dynamic=dynamic)
    for sizes in sizes_of_runs(graph):
        _check_forward(graph, module, wide, step, sizes)
    if graph.updates:
        _check_sharing(graph, module, step)
    else:
        _check_backward(graph, module, wide, step)
    torch._dynamo.reset()


def _uncompiled() -> Any:
    """Our backend up to the point where a graph becomes ours."""
    from torch._functorch._aot_autograd.utils import make_boxed_func

    def run(module: Any, inputs: Sequence[Any]) -> Any:
        return make_boxed_func(_Honest(module).run)

    return aot_backend(
        fw_compiler=run,
        bw_compiler=run,
        inference_compiler=run,
        partition_fn=min_cut_partition(),
        decompositions=autograd_table(),
        keep_inference_input_mutations=True,
    )


class _Honest(fx.Interpreter):
    """Raises where an operator gives something else than torch said when it traced the graph.

    New tensors start where their storage starts. ATen's functional `copy` keeps the offset of what
    it copies over, and AOTAutograd, with dynamic sizes, makes views of an input that was written
    with the offset of what the graph returns: it goes wrong with any compiler, Inductor included.

    Some of ATen's pointwise kernels give NaN for NaN in their vector loop, and a number in the
    scalar loop for the rest (`elu_backward`), so what eager says depends on the number of elements.
    """

    def run_node(self, node: fx.Node) -> Any:
        result, traced = super().run_node(node), node.meta.get("val")
        if not self._says_the_same_of_more(node, result):
            raise ArithmeticError(f"{node} gives NaN or not by the number of its elements")
        if node.target is torch.ops.aten.copy.default:
            result = torch.empty_strided(result.shape, result.stride(), dtype=result.dtype).copy_(
                result
            )
        if isinstance(result, Tensor) and isinstance(traced, Tensor):
            at_hints = [_plain(size, True) for size in traced.shape] == list(result.shape)
            looks = [(x.dtype, x.ndim, *_known(x, at_hints)) for x in (result, traced)]
            pairs = zip(*looks, strict=True)
            if any(a != b and a is not None and b is not None for a, b in pairs):
                raise TypeError(f"{node} was traced as {looks[1]}, and is {looks[0]}")
        return result

    def _says_the_same_of_more(self, node: fx.Node, result: Any) -> bool:
        """Whether a pointwise operator gives NaN at the same places for many copies at once."""
        if not isinstance(node.target, OpOverload) or not isinstance(result, Tensor):
            return True
        if op(str(node.target)).kind is not Kind.POINTWISE:
            return True

        def copies(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            aligned = x.reshape((1,) * (result.ndim - x.ndim) + tuple(x.shape))
            return aligned.expand(COPIES, *aligned.shape).contiguous()

        args, kwargs = pytree.tree_map(copies, self.fetch_args_kwargs_from_env(node))
        return bool((node.target(*args, **kwargs).isnan() == result.isnan()).all())


def _known(x: Tensor, at_hints: bool) -> list[int | None]:
    """Sizes, and the strides that matter; None for symbols, unless they have the values that torch
    traced them with."""
    found = [_plain(size, at_hints) for size in x.shape]
    for size, stride in zip(found.copy(), x.stride(), strict=True):
        matters = size is not None and size > 1
        found.append(_plain(stride, at_hints) if matters else None)
    return found


def _plain(number: Any, at_hints: bool) -> int | None:
    if isinstance(number, int):
        return number
    return int(number.node.hint) if at_hints and number.node.has_hint() else None


def _check_forward(
    graph: Graph, module: Function, wide: Function, step: Function, sizes: Mapping[str, int]
) -> None:
    def observed(function: Function, inputs: Sequence[Tensor]) -> Run:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Run([*function(*inputs), *inputs])

    given = inputs_for(graph, sizes)
    own, exact = observed(module, inputs_for(graph, sizes)), observed(wide, _wide(given))
    try:
        ours = observed(step, inputs_for(graph, sizes))
        moved = (observed(module, x) for x in _moved(given))
        compare(ours, own, exact, floors(graph), lambda: moved)
    except Mismatch as mismatch:
        raise Mismatch(f"by torch.compile, {mismatch}") from None


def _check_sharing(graph: Graph, module: Function, step: Function) -> None:
    """With inputs that lie in each other's memory, where an update of one changes others."""
    kinds = [_kind(i) for i in graph.inputs]
    if len(set(kinds)) == len(kinds):
        return
    try:
        own = _run_shared(module, graph)
    except RuntimeError:  # eager mode does not write over what it reads
        return
    ours = _run_shared(step, graph)
    if own.aliases != ours.aliases:
        raise Mismatch(f"of shared inputs, results share memory as {ours.aliases}")
    for place, (a, b) in enumerate(zip(ours.results, own.results, strict=True)):
        # Guards of the graph need not hold on these numbers, so only what is far off counts.
        if not torch.allclose(a.double(), b.double(), rtol=0.05, atol=0.05, equal_nan=True):
            raise Mismatch(f"of shared inputs, result {place} is {a}, not {b}")


def _run_shared(function: Function, graph: Graph) -> Run:
    inputs = _shared(graph)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Run([*function(*inputs), *inputs])


def _kind(input: Input) -> object:
    return input.value.name[0], input.value.tensor.dtype


def _shared(graph: Graph) -> list[Tensor]:
    """Inputs of one kind and dtype in one storage, each at its own offset there."""
    longest: dict[object, Tensor] = {}
    given = inputs_for(graph)
    keys = [_kind(i) for i in graph.inputs]
    for key, x in zip(keys, given, strict=True):
        nbytes = x.untyped_storage().nbytes()
        if key not in longest or longest[key].untyped_storage().nbytes() < nbytes:
            longest[key] = x
    return [
        torch.empty(0, dtype=x.dtype).set_(
            longest[key].untyped_storage(), x.storage_offset(), x.shape, x.stride()
        )
        for key, x in zip(keys, given, strict=True)
    ]


def _check_backward(graph: Graph, module: Function, wide: Function, step: Function) -> None:
    """Gradients of the inputs, for gradients of ones and twos of the outputs."""
    given = inputs_for(graph)
    try:
        own, exact = _gradients(module, given), _gradients(wide, _wide(given))
    except RuntimeError:  # an operator without derivative: there is nothing to compare with
        return
    if own is None or exact is None:
        return
    ours = _gradients(step, given)
    if ours is None:
        raise Mismatch("backward, no output depends on an input")
    floor = max(floors(graph), default=0.0)
    moved = (g for x in _moved(given) if (g := _gradients(module, x)) is not None)
    try:
        compare(ours, own, exact, [floor] * len(own.results), lambda: moved)
    except Mismatch as mismatch:
        raise Mismatch(f"backward, {mismatch}") from None


def _gradients(function: Function, given: Sequence[Tensor]) -> Run | None:
    """Of the inputs, None where there is none; None when no output has any."""
    inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in given]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = [y for y in function(*inputs) if isinstance(y, Tensor) and y.requires_grad]
        if not outputs:
            return None
        weights = [
            torch.ones_like(y).cumsum(0) % 2 + 1 if y.ndim else y.new_ones(()) for y in outputs
        ]
        leaves = [x for x in inputs if x.requires_grad]
        found = torch.autograd.grad(outputs, leaves, weights, allow_unused=True)
    # Whether gradients share memory, or are expanded, is nobody's concern.
    return Run(
        [None if g is None else g.clone(memory_format=torch.contiguous_format) for g in found]
    )


def _wide(inputs: Sequence[Tensor]) -> list[Tensor]:
    return [x.double() if x.is_floating_point() else x for x in inputs]


def _moved(given: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The inputs, each number a unit in the last place up or down."""
    for seed in range(RUNS):
        generator = torch.Generator().manual_seed(seed)
        moved = []
        for x in given:
            if x.is_floating_point():
                sign = torch.randint(-1, 2, x.shape, generator=generator)
                x = (x.double() * (1 + torch.finfo(x.dtype).eps * sign)).to(x.dtype)
            moved.append(x)
        yield moved


# --- the same graph in float64 ------------------------------------------------------------------


def widened(graph: Graph) -> Graph:
    """The graph with float64 in place of every floating type."""
    values = {v: Value(v.name, _widened_type(v.type)) for v in graph.values}
    return replace(
        graph,
        inputs=tuple(replace(i, value=values[i.value]) for i in graph.inputs),
        nodes=tuple(_widened_node(node, values) for node in graph.nodes),
        outputs=tuple(_widened_arg(a, values) for a in graph.outputs),
        updates=tuple((values[a], values[b]) for a, b in graph.updates),
    )


def _widened_node(node: Node, values: Mapping[Value, Value]) -> Node:
    args = tuple(_widened_arg(a, values) for a in node.args)
    kwargs = tuple((k, _widened_arg(a, values)) for k, a in node.kwargs)
    return replace(node, args=args, kwargs=kwargs, results=tuple(values[v] for v in node.results))


def _widened_arg(arg: Arg, values: Mapping[Value, Value]) -> Arg:
    match arg:
        case Value():
            return values[arg]
        case tuple():
            return tuple(_widened_arg(a, values) for a in arg)
        case torch.dtype():
            return torch.float64 if arg.is_floating_point else arg
        case Constant():
            tensor = arg.tensor
            return Constant.of(tensor.double() if tensor.is_floating_point() else tensor)
    return arg


def _widened_type(type: Any) -> Any:
    if isinstance(type, TensorType) and type.dtype.is_floating_point:
        return type.with_dtype(torch.float64)
    return type
