"""Operations of the `torch` dialect as nodes, and as the arguments that nodes read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from rewright.ir.constant import Constant
from rewright.ir.dims import Dim, Size, make
from rewright.ir.errors import ImportFailure
from rewright.ir.fx_import import refuse_mutation
from rewright.ir.graph import Arg, Node, Value, freeze, fresh_names
from rewright.ir.mlir_context import integer_at, loc_of, name_of, text_at, texts_at
from rewright.ir.mlir_infer import Inference
from rewright.ir.mlir_literals import Literals
from rewright.ir.mlir_operands import CONVERSIONS
from rewright.ir.mlir_scalars import python_operator
from rewright.ir.mlir_sizes import SIZE_KINDS
from rewright.ir.mlir_types import DTYPE_NUMBERS, FORMAT_NUMBERS, LAYOUT_NUMBERS, agrees, declared
from rewright.ir.ops import Op, op
from rewright.ir.pt2_archive import OPENS_FILES
from rewright.ir.show import PHASES, show_type
from rewright.ir.signature import normalize, signature
from rewright.ir.types import OtherType, ScalarType, TensorType, Type

_NUMBERED: Final[dict[str, dict[int, Arg]]] = {
    "ScalarType": {number: dtype for dtype, number in DTYPE_NUMBERS.items()},
    "Layout": {number: layout for layout, number in LAYOUT_NUMBERS.items()},
    "MemoryFormat": {number: format for format, number in FORMAT_NUMBERS.items()},
}
_VIEWS: Final = ("aten.view.default", "aten._unsafe_view.default")
# The same value under another type.
_ALIASES: Final = frozenset(
    {
        "torch.tensor_static_info_cast",
        "torch.derefine",
        "torch.prim.unchecked_cast",
        "torch.copy.to_tensor",
    }
)
# The type that a file gives a result, from the value and from what our attribute says.
ResultType = Callable[[Any, str | None], Type | None]


class Nodes:
    """Takes a function's operations in order; `made` are the nodes that came of them."""

    def __init__(
        self, inference: Inference, literals: Literals, file: str, result_type: ResultType
    ) -> None:
        self.made: list[Node] = []
        self.updates: dict[Value, Value] = {}
        self._inference = inference
        self._literals = literals
        self._file = file
        self._result_type = result_type
        self._fresh = fresh_names(())
        self._read: dict[Any, Any] = {}
        self._operation: Any = None

    def value(self, name: str, type: Type) -> Value:
        return Value(self._fresh(name), type)

    def bind(self, made: Any, value: Value | Size) -> None:
        """Say what an argument of the function, or one of its symbols, is to those that read it."""
        self._read[made] = _as_read(value) if isinstance(value, Value) else value

    def read(self, made: Any) -> Arg:
        """What a value is here, for a reader that takes no number for a tensor."""
        found: Arg = self._read[made]
        type = declared(str(made.type))
        if type is None or isinstance(found, Value):
            return found
        kind = TensorType(type.dtype, ())
        call = (op("aten.scalar_tensor.default"), (found,), (("dtype", type.dtype),))
        self._read[made] = self._add("scalar_tensor", *call, (kind,))[0]
        return self._read[made]  # type: ignore[no-any-return]

    def take(self, operation: Any) -> None:
        """Raises ImportFailure for an operation that has no form in the IR."""
        self._operation = operation
        name = operation.name
        if name.startswith("torch.constant."):
            self._constant(operation)
        elif name in _HANDLERS:
            _HANDLERS[name](self, operation)
        elif name in _ALIASES:
            self._read[operation.results[0]] = self._read[operation.operands[0]]
        elif not self._is_size(operation):
            self._operator(operation)

    # --- what nodes read ----------------------------------------------------------------------

    def _constant(self, operation: Any) -> None:
        kind = operation.name.rpartition(".")[2]
        value: Any = None if kind == "none" else operation.attributes["value"].value
        if kind == "bool":
            value = bool(value)
        elif kind == "device":
            value = _device(value)
        elif kind not in ("none", "int", "float", "str", "number"):
            raise ImportFailure("it has no form in the IR")
        self._read[operation.results[0]] = freeze(value)

    def _list(self, operation: Any) -> None:
        items = tuple(self.read(operand) for operand in operation.operands)
        alone = len(items) == 1 and "rewright.number" in operation.attributes
        self._read[operation.results[0]] = items[0] if alone else items

    def _unpack(self, operation: Any) -> None:
        items = self._read[operation.operands[0]]
        if not isinstance(items, tuple) or len(items) != len(operation.results):
            raise ImportFailure("it takes apart a list of another length")
        for result, item in zip(operation.results, items, strict=True):
            self._read[result] = item

    def _literal(self, operation: Any) -> None:
        tensor = self._literals.tensor(operation)
        type = self._result_type(operation.results[0], _written(operation, 0))
        found = TensorType(tensor.dtype, tuple(tensor.shape))
        if type is None:
            type = found
        if not isinstance(type, TensorType) or (type.dtype, type.shape) != (
            tensor.dtype,
            found.shape,
        ):
            raise ImportFailure(f"it is declared {show_type(type)}, and holds {show_type(found)}")
        kwargs: tuple[tuple[str, Arg], ...] = (("value", Constant.of(tensor)),)
        name = name_of(operation.location) or "constant"
        (value,) = self._add(name, op("rw.constant"), (), kwargs, (type,))
        self._read[operation.results[0]] = value

    def _snapshot(self, operation: Any) -> None:
        """A mutable tensor as it is by now."""
        held = self._read[operation.operands[0]]
        self._read[operation.results[0]] = self.updates.get(held, held)

    def _overwrite(self, operation: Any) -> None:
        value, target = (self._read[operand] for operand in operation.operands)
        if not isinstance(value, Value) or not isinstance(target, Value):
            raise ImportFailure("what it writes is no tensor")
        self.updates[target] = value

    def _size_read(self, operation: Any) -> None:
        """`size`, `numel` and `dim` of a tensor, which its type says."""
        value, *axes = (self._read[operand] for operand in operation.operands)
        if not isinstance(value, Value):
            raise ImportFailure("it reads the size of what is no tensor")
        shape = value.tensor.shape
        found: Arg = shape
        if operation.name == "torch.aten.size.int":
            if not isinstance(axes[0], int) or not -len(shape) <= axes[0] < len(shape):
                raise ImportFailure(f"there is no dimension {axes[0]} of %{value.name}")
            found = shape[axes[0]]
        elif operation.name != "torch.aten.size":
            found = len(shape) if operation.name == "torch.aten.dim" else value.tensor.numel
        self._read[operation.results[0]] = found

    def _is_size(self, operation: Any) -> bool:
        """True for numbers made of numbers known by now, which are then no nodes."""
        if "rewright.op" in operation.attributes or not operation.results:
            return False
        operands = [self._read[operand] for operand in operation.operands]
        name = operation.name
        if name in CONVERSIONS:
            number = operands[0]
            through = "NumToTensor" in name or isinstance(number, bool | int | float)
            if through or _is_ours(operation):
                self._read[operation.results[0]] = number
            return through or _is_ours(operation)
        kind = SIZE_KINDS.get(name)
        if not all(isinstance(o, int | Dim) and not isinstance(o, bool) for o in operands):
            return False
        if kind is None and name != "torch.aten.neg.int":
            return False
        self._read[operation.results[0]] = _computed(kind, operands)
        return True

    # --- nodes --------------------------------------------------------------------------------

    def _operator(self, operation: Any) -> None:
        called = _called(operation)
        given = tuple(self._read[operand] for operand in operation.operands)
        args, kwargs = _arguments(called, given)
        refuse_mutation(called, args, dict(kwargs))
        values = _result_values(operation)
        try:
            types = self._types(operation, called, args, kwargs, values)
        except ImportFailure:
            # The dialect's tensors have no strides, and its `view` is torch's `reshape`.
            if called.name not in _VIEWS:
                raise
            called = op("aten.reshape.default")
            types = self._types(operation, called, args, kwargs, values)
        name = name_of(operation.location) or called.name.split(".")[1]
        names = texts_at(operation.attributes, "rewright.names")
        results = self._add(name, called, args, kwargs, types, names)
        read = tuple(_as_read(value) for value in results)
        if _returns_list(operation):
            self._read[operation.results[0]] = read
        else:
            self._read |= dict(zip(operation.results, read, strict=True))

    def _types(
        self,
        operation: Any,
        called: Op,
        args: tuple[Arg, ...],
        kwargs: tuple[tuple[str, Arg], ...],
        values: Any,
    ) -> tuple[Type, ...]:
        found = [self._result_type(v, _written(operation, n)) for n, v in enumerate(values)]
        types = [type for type in found if type is not None]
        if len(types) == len(found):
            return tuple(types)
        if called.schema is None:
            raise ImportFailure("it does not say what it returns")
        inferred = self._inference.types(called, args, dict(kwargs))
        if len(inferred) != len(found):
            raise ImportFailure(f"it has {len(found)} results, and {called} gives {len(inferred)}")
        for value, type in zip(values, inferred, strict=True):
            _agree(value, type, called)
        return inferred

    def _add(
        self,
        name: str,
        called: Op,
        args: tuple[Arg, ...],
        kwargs: tuple[tuple[str, Arg], ...],
        types: tuple[Type, ...],
        names: tuple[str, ...] = (),
    ) -> tuple[Value, ...]:
        """A new node's results."""
        operation = self._operation
        if len(names) != len(types):
            names = (name, *(f"{name}.{n}" for n in range(1, len(types))))
        given = zip(names, types, strict=False)  # there may be no results to name
        results = tuple(self.value(n, type) for n, type in given)
        seq = integer_at(operation.attributes, "rewright.seq")
        phase = text_at(operation.attributes, "rewright.phase")
        if phase is not None and phase not in PHASES:
            raise ImportFailure(f"a phase is one of {PHASES}, not '{phase}'")
        loc = loc_of(operation.location, self._file)
        self.made.append(Node(called, args, kwargs, results, (), loc, seq, phase))
        return results


_HANDLERS: Final[dict[str, Callable[[Nodes, Any], None]]] = {
    "torch.prim.ListConstruct": Nodes._list,
    "torch.prim.ListUnpack": Nodes._unpack,
    "torch.vtensor.literal": Nodes._literal,
    "torch.copy.to_vtensor": Nodes._snapshot,
    "torch.overwrite.tensor.contents": Nodes._overwrite,
    "torch.aten.size": Nodes._size_read,
    "torch.aten.size.int": Nodes._size_read,
    "torch.aten.numel": Nodes._size_read,
    "torch.aten.dim": Nodes._size_read,
}


def _called(operation: Any) -> Op:
    """The operator of an operation. Raises ImportFailure for an unknown one."""
    ours = text_at(operation.attributes, "rewright.op")
    if ours is not None:
        return _allowed(ours)
    name = operation.name
    if name == "torch.operator":
        name = text_at(operation.attributes, "name") or name
    arithmetic = python_operator(name)
    if arithmetic is not None and not str(operation.results[0].type).startswith("!torch.vtensor"):
        return op(arithmetic)
    parts = name.split(".")
    if parts[0] != "torch" or len(parts) not in (3, 4):
        raise ImportFailure("it has no form in the IR")
    return _allowed(".".join((*parts[1:], "default") if len(parts) == 3 else parts[1:]))


def _allowed(name: str) -> Op:
    if name in OPENS_FILES:
        raise ImportFailure(f"{name} opens files")
    if name.startswith(("rw.", "hop.")):
        raise ImportFailure(f"{name} has no form in MLIR")
    return op(name)


def _arguments(
    called: Op, given: tuple[Arg, ...]
) -> tuple[tuple[Arg, ...], tuple[tuple[str, Arg], ...]]:
    """All arguments, in the schema's order, as a node holds them."""
    known = signature(called)
    if called.schema is None or known is None:
        return given, ()
    arguments = called.schema.arguments
    if len(given) != len(arguments):
        raise ImportFailure(f"{called} takes {len(arguments)} arguments, not {len(given)}")
    named = {a.name: _argument(arg, a) for a, arg in zip(arguments, given, strict=True)}
    positional = tuple(named[name] for name in known.positional)
    return normalize(called, positional, {name: named[name] for name in known.keyword_only})


def _argument(arg: Arg, argument: Any) -> Arg:
    """Numbers that stand for a dtype, a layout or a memory format are what they stand for."""
    kind = str(argument.real_type)
    table = next((t for name, t in _NUMBERED.items() if name in kind), None)
    if table is None or not isinstance(arg, int):
        return arg
    if argument.has_default_value() and argument.default_value == arg:
        return arg  # schemas have numbers for defaults, too, and a default is left out
    if arg not in table:
        raise ImportFailure(f"its argument '{argument.name}' is {arg}, which stands for nothing")
    return table[arg]


def _result_values(operation: Any) -> Any:
    """The results; of one that returns a list, what the list is taken apart into."""
    results = operation.results
    if not _returns_list(operation):
        return results
    users = {use.owner.operation.name: use.owner.operation for use in results[0].uses}
    if not users:
        return ()
    if set(users) != {"torch.prim.ListUnpack"}:
        raise ImportFailure(f"{next(iter(users))} reads the list that it returns")
    return users["torch.prim.ListUnpack"].results


def _returns_list(operation: Any) -> bool:
    results = operation.results
    return len(results) == 1 and str(results[0].type).startswith("!torch.list<")


def _written(operation: Any, number: int) -> str | None:
    """What our attribute says about the type of a result."""
    texts = texts_at(operation.attributes, "rewright.types")
    return texts[number] if number < len(texts) else None


def _is_ours(operation: Any) -> bool:
    return "rewright.version" in operation.parent.attributes


def _as_read(value: Value) -> Arg:
    """What stands for a value where it is read: a size when that is all it is."""
    if isinstance(value.type, ScalarType) and value.type.dim is not None:
        return value.type.dim
    return None if value.type == OtherType("none") else value


def _agree(value: Any, type: Type, called: Op) -> None:
    """Raises ImportFailure when the file gives a result another type than its operator does."""
    said = declared(str(value.type))
    if said is not None and not agrees(type, said):
        raise ImportFailure(f"it is declared {value.type}, and {called} gives {show_type(type)}")


def _computed(kind: str | None, operands: list[Size]) -> Size:
    if kind is None:
        return -operands[0]
    if kind in ("floordiv", "mod") and operands[1] == 0:
        raise ImportFailure("it divides by zero")
    return make(kind, *operands)


def _device(name: str) -> Any:
    import torch

    try:
        return torch.device(name)
    except RuntimeError:
        raise ImportFailure(f"there is no device '{name}'") from None
