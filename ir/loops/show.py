"""Loop nests as text: what a kernel computes, before it is scheduled. For reading; nothing parses
it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rewright.ir.loops.affine import Affine, Axis
from rewright.ir.loops.attention import AttentionNest, Place
from rewright.ir.loops.attention_backward import AttentionBackwardNest
from rewright.ir.loops.convolution import ConvolutionNest
from rewright.ir.loops.nest import (
    Apply,
    Buffer,
    Convert,
    Inside,
    Let,
    Load,
    Nest,
    Number,
    Position,
    Reduce,
    Ref,
    Round,
    Stage,
    Statement,
    Store,
    Term,
    Within,
)
from rewright.ir.loops.quantized import QuantizedNest
from rewright.ir.show import show_type
from rewright.ir.types import DTYPE_NAMES


def show_nest(
    nest: Nest | AttentionNest | AttentionBackwardNest | ConvolutionNest | QuantizedNest,
) -> str:
    """One nest, without a line break at its end."""
    head = f"kernel {nest.name}({_buffers(nest.inputs)}) -> ({_buffers(nest.outputs)}) {{"
    match nest:
        case AttentionNest():
            lines = _attention(nest)
        case AttentionBackwardNest():
            lines = _attention_backward(nest)
        case ConvolutionNest():
            lines = _convolution(nest)
        case QuantizedNest():
            lines = iter((f"{nest.format}: [{nest.rows}, {nest.depth}] x [{nest.columns}, ...]",))
        case Nest():
            lines = _nest(nest)
    return "\n".join([head, *(f"  {line}" for line in lines), "}"])


def _buffers(buffers: Sequence[Buffer]) -> str:
    return ", ".join(f"%{b.name}: {show_type(b.type)}" for b in buffers)


def _convolution(nest: ConvolutionNest) -> Iterator[str]:
    way = "each channel" if nest.depthwise else "all channels"
    stride, padding = _by(nest.stride), _by(nest.padding)
    yield f"filters see {_by(nest.window)} of {way}, {stride} apart, margins {padding}"
    yield from map(_statement, nest.epilogue)
    yield f"give %{nest.result.name}"


def _by(pair: tuple[int, int]) -> str:
    return f"{pair[0]} by {pair[1]}"


def _nest(nest: Nest) -> Iterator[str]:
    yield f"rows {_axes(nest.rows)}"
    if nest.order is not None:
        blocks = f", in {nest.order.style}, blocks of {nest.order.block}"
        yield f"columns {_axes(nest.cols)}{blocks}"
    if nest.kept:
        yield f"kept {', '.join(nest.kept)}"
    for stage in nest.stages:
        yield from _stage(stage)


def _stage(stage: Stage) -> Iterator[str]:
    yield f"each {stage.per} {{"
    for statement in stage.body:
        yield f"  {_statement(statement)}"
    yield "}"


def _attention(nest: AttentionNest) -> Iterator[str]:
    places = {"results": nest.results} | ({} if nest.sums is None else {"sums": nest.sums})
    yield from _heads(nest, places)
    for run in nest.runs if len(nest.runs) > 1 else ():
        yield f"then {run.size} keys of {_place(run.keys)}, values of {_place(run.values)}"
    yield f"softmax of {nest.taken.name}"


def _attention_backward(nest: AttentionBackwardNest) -> Iterator[str]:
    yield f"keys are shared by {_axes(nest.group)}"
    places = {
        "gradients of results": nest.outer,
        "results": nest.results,
        "sums": nest.sums,
        "gradients of queries": nest.to_queries,
        "of keys": nest.to_keys,
        "of values": nest.to_values,
    }
    yield from _heads(nest, places)
    yield f"softmax of {nest.taken.name}, whose gradient is {nest.grad}"
    yield f"gradient of {nest.given} is {nest.slope.name}"


def _heads(
    nest: AttentionNest | AttentionBackwardNest, others: Mapping[str, Place]
) -> Iterator[str]:
    yield f"heads {_axes(nest.batch)}"
    named = (nest.row, nest.key, nest.inner, nest.width)
    yield f"queries, keys, features, width {_axes(named)}"
    places = {"queries": nest.queries, "keys": nest.keys, "values": nest.values, **others}
    for name, place in places.items():
        yield f"{name} = {_place(place)}"
    yield f"each product {nest.given} of a query and a key {{"
    for statement in nest.statements:
        yield f"  {_statement(statement)}"
    yield "}"


def _place(place: Place) -> str:
    return f"%{place.buffer}[{_affine(place.at)}] : {DTYPE_NAMES[place.dtype]}"


def _axes(axes: Sequence[Axis]) -> str:
    return ", ".join(f"{axis.name}: {axis.size}" for axis in axes) or "none"


def _statement(statement: Statement) -> str:
    match statement:
        case Store(buffer=buffer, at=at, value=value):
            return f"%{buffer}[{_affine(at)}] = {value.name}"
        case Reduce(name=name, how=how, term=term, origin=origin):
            return f"{name} = {how} of {_term(term)} : {DTYPE_NAMES[term.dtype]}{_origin(origin)}"
        case Let(name=name, term=term, origin=origin):
            return f"{name} = {_term(term)} : {DTYPE_NAMES[term.dtype]}{_origin(origin)}"


def _origin(origin: str) -> str:
    return f"  # %{origin}" if origin else ""


def _term(term: Term) -> str:
    match term:
        case Load(buffer=buffer, at=at, guards=guards):
            return f"%{buffer}[{_affine(at)}]{_guards(guards, ' where ')}"
        case Ref(name=name):
            return name
        case Number(value=value):
            return str(value)
        case Position(at=at):
            return f"position({_affine(at)})"
        case Inside(guards=guards):
            return f"inside({_guards(guards)})"
        case Apply(name=name, args=args):
            return f"{name}({', '.join(map(_term, args))})"
        case Convert(arg=arg, dtype=dtype):
            return f"{DTYPE_NAMES[dtype]}({_term(arg)})"
        case Round(arg=arg, storage=storage):
            return f"rounded_to_{DTYPE_NAMES[storage]}({_term(arg)})"


def _guards(guards: Sequence[Within], before: str = "") -> str:
    shown = (f"{guard.low} <= {_affine(guard.at)} < {guard.high}" for guard in guards)
    return f"{before}{' and '.join(shown)}" if guards else ""


def _affine(at: Affine) -> str:
    terms = [name if factor == 1 else f"{name}*{_factor(factor)}" for name, factor in at.terms]
    if at.offset != 0 or not terms:
        terms.append(str(at.offset))
    return " + ".join(terms)


def _factor(factor: object) -> str:
    return str(factor) if isinstance(factor, int) else f"({factor})"
