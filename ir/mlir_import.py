"""From MLIR to the IR: a function of torch-mlir's `torch` dialect, in a text or in bytecode.

Files of our own say everything. Of others, what is missing is found out: operators are asked for
strides and sizes, `?`s that must be equal become one symbol. Constants, lists and arithmetic on
sizes, operations there, are arguments here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from rewright.ir.dims import Dim, Size, Symbol, hint, substitute
from rewright.ir.errors import ImportFailure, RewrightError
from rewright.ir.fx_sizes import LOWEST
from rewright.ir.graph import ROLES, Graph, Input, Value
from rewright.ir.mlir_context import (
    BYTECODE,
    VERSION,
    inside,
    integer_at,
    loc_of,
    parse_module,
    state_path,
    text_at,
)
from rewright.ir.mlir_infer import Inference
from rewright.ir.mlir_literals import Literals
from rewright.ir.mlir_nodes import Nodes
from rewright.ir.mlir_sizes import sizes_of_map
from rewright.ir.mlir_types import agrees, declared, plain_type, read_type
from rewright.ir.show import show_type
from rewright.ir.text_files import read_tensors
from rewright.ir.types import ScalarType, TensorType, Type, is_dense

_LARGEST: Final = 2**63 - 1
# Sizes of which nothing is known are planned for as this.
_SOME_SIZE: Final = 8
# How often sizes may be found equal that were not known to be.
_ROUNDS: Final = 8
# What says something about the function but computes nothing.
_SILENT: Final = frozenset({"torch.symbolic_int", "torch.bind_symbolic_shape"})


def load_mlir(path: str | Path) -> Graph:
    """The graph of the function in a `.mlir` or `.mlirbc` file, called as the function.

    Raises ToolchainError without torch-mlir; ImportFailure for files that are missing or damaged
    and for what has no form in the IR, naming operator and place; TextError for mistakes in a text.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ImportFailure(f"there is no file {path}") from None
    except OSError as error:
        raise ImportFailure(f"cannot read {path}: {error.strerror or error}") from None
    return from_mlir(data, file=str(path))


def load_state(path: str | Path, graph: Graph) -> dict[str, torch.Tensor]:
    """The tensors that lie beside a file for the inputs of its graph, by name; none when there are
    none. Raises ImportFailure when they do not fit."""
    beside = state_path(Path(path))
    held = read_tensors(beside)
    types = {i.value.name: i.value.type for i in graph.inputs}
    state = {}
    for name, tensor in held.items():
        type = types.get(name)
        found = TensorType(tensor.dtype, tuple(tensor.shape))
        if not isinstance(type, TensorType) or found != TensorType(type.dtype, type.shape):
            raise ImportFailure(
                f"{beside} holds {show_type(found)} for '{name}', and the function in {path} takes "
                f"{'no such argument' if type is None else show_type(type)}"
            )
        state[name] = _laid_out(tensor, type)
    return state


def _laid_out(tensor: torch.Tensor, type: TensorType) -> torch.Tensor:
    """The tensor with the strides that the function counts on; files hold contiguous ones."""
    if type.strides is None or not is_dense(type):
        return tensor
    strides = [hint(stride) for stride in type.strides]
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def from_mlir(data: str | bytes, *, file: str = "<mlir>") -> Graph:
    """`load_mlir` of a text or of bytecode; `file` is what messages call it."""
    if isinstance(data, bytes) and not data.startswith(BYTECODE):
        try:
            data = data.decode()
        except UnicodeDecodeError:
            raise ImportFailure(f"{file} is neither text in UTF-8 nor MLIR bytecode") from None
    module = parse_module(data, file)
    function, literals = _function(module, file), Literals(module)
    same: dict[str, Size] = {}
    with inside(module.context):
        for _ in range(_ROUNDS):
            importer = _Importer(function, literals, file, same)
            graph = importer.graph()
            found = importer.equal_sizes()
            if not found:
                return graph
            same |= found
    raise ImportFailure(f"{file}: its sizes depend on each other in too many steps")


def _function(module: Any, file: str) -> Any:
    """The function with a body; of several the one called main, or the only public one."""
    found = [o.operation for o in module.body.operations if o.operation.name == "func.func"]
    bodies = [f for f in found if len(f.regions[0].blocks) > 0]
    if len(bodies) > 1:
        named = [f for f in bodies if _name(f) == "main"]
        public = [f for f in bodies if "sym_visibility" not in f.attributes]
        bodies = named or (public if len(public) == 1 else bodies)
    if not bodies:
        raise ImportFailure(f"{file} holds no function with a body")
    if len(bodies) > 1:
        names = ", ".join(_name(f) for f in bodies)
        raise ImportFailure(
            f"{file} holds several functions: {names}", help="call one of them main"
        )
    if len(bodies[0].regions[0].blocks) > 1:
        raise ImportFailure(f"{file}: function {_name(bodies[0])} has branches between its blocks")
    return bodies[0]


def _is_ours(function: Any, file: str) -> bool:
    """True for a function that says everything. Raises ImportFailure for one of another version."""
    version = integer_at(function.attributes, "rewright.version")
    if version not in (None, VERSION):
        raise ImportFailure(
            f"{file} was written by a later Rewright: its rewright.version is {version}",
            help=f"this one reads version {VERSION}",
        )
    return version is not None


def _source(value: Any) -> Any:
    """Of a copy of a mutable tensor that tensor, else the value itself: sizes are the same."""
    maker = getattr(value.owner, "operation", None)  # None: an argument, which a block owns
    if maker is not None and maker.name == "torch.copy.to_vtensor":
        return maker.operands[0]
    return value


def _name(function: Any) -> str:
    name: str = function.attributes["sym_name"].value
    return name


class _Importer:
    """One walk over one function; `same` says which sizes an earlier walk found to be others."""

    def __init__(
        self, function: Any, literals: Literals, file: str, same: Mapping[str, Size]
    ) -> None:
        self._function = function
        self._block = function.regions[0].blocks[0]
        self._file = file
        self._same = same
        self._is_ours = _is_ours(function, file)
        self._symbols: dict[str, Symbol] = {}
        self._sizes: dict[str, Size] = {}
        self._named: dict[Any, Size] = {}
        self._bound: dict[Any, tuple[Size, ...]] = {}
        self._read_symbols()
        self._inference = Inference()
        self._nodes = Nodes(self._inference, literals, Path(file).name, self._result_type)

    def graph(self) -> Graph:
        values = [self._argument(n, a) for n, a in enumerate(self._block.arguments)]
        for symbol, size in self._named.items():
            self._nodes.bind(symbol, size)
        outputs: tuple[Any, ...] = ()
        for operation in self._operations():
            try:
                if operation.name == "func.return":
                    outputs = tuple(self._nodes.read(o) for o in operation.operands)
                elif operation.name not in _SILENT:
                    self._nodes.take(operation)
            except RewrightError as error:
                raise self._located(error, operation) from None
        updates = tuple(self._nodes.updates.items())
        nodes = tuple(self._nodes.made)
        inputs = tuple(self._input(n, value) for n, value in enumerate(values))
        return Graph(_name(self._function), inputs, nodes, outputs, updates)

    def equal_sizes(self) -> dict[str, Size]:
        """Symbols that this walk found to be other sizes. None are in files of ours."""
        if self._is_ours:
            return {}
        return self._inference.equal_sizes(self._symbols.values())

    def _operations(self) -> Iterator[Any]:
        return (operation.operation for operation in self._block.operations)

    def _located(self, error: RewrightError, operation: Any) -> ImportFailure:
        place = loc_of(operation.location, Path(self._file).name)
        where = f" at {place}" if place is not None else ""
        name = operation.name
        if name == "torch.operator":
            name = operation.attributes["name"].value
        return ImportFailure(f"{name}{where}: {error.message}", who="import", help=error.help)

    # --- sizes --------------------------------------------------------------------------------

    def _read_symbols(self) -> None:
        """Symbols, and which sizes each value's `?`s are."""
        for operation in self._operations():
            if operation.name == "torch.symbolic_int":
                self._named[operation.results[0]] = self._symbol(operation.attributes)
            elif operation.name == "torch.bind_symbolic_shape":
                value, *symbols = operation.operands
                known = [self._named[symbol] for symbol in symbols]
                map = operation.attributes["shape_expressions"].value
                self._bound[value] = sizes_of_map(map, known)
                self._bound[_source(value)] = self._bound[value]

    def _symbol(self, facts: Any) -> Size:
        low, high = int(facts["min_val"].value), int(facts["max_val"].value)
        top = None if high == _LARGEST else high
        if self._is_ours:
            name, hint = facts["symbol_name"].value, integer_at(facts, "rewright.hint")
            divisor = integer_at(facts, "rewright.divisor") or 1
            return self._declare(Symbol(name, hint, low, top, divisor))
        return self._unseen(max(low, 0), top)

    def _unseen(self, low: int = 0, high: int | None = None) -> Size:
        """A new symbol about which only bounds are known."""
        some = max(_SOME_SIZE, low) if high is None else min(max(_SOME_SIZE, low), high)
        return self._declare(Symbol(f"B{len(self._symbols)}", some, low, high))

    def _declare(self, symbol: Symbol) -> Size:
        self._symbols[symbol.name] = symbol
        size: Size = Dim.of(symbol)
        for _ in self._same:  # what it is may itself have been found to be another, later
            size = substitute(size, self._same)
        self._sizes[symbol.name] = size
        return size

    # --- types --------------------------------------------------------------------------------

    def _argument(self, number: int, argument: Any) -> Value:
        facts = self._facts(number)
        name = text_at(facts, "rewright.name") or argument.get_name().removeprefix("%")
        try:
            type = self._argument_type(argument, text_at(facts, "rewright.type"))
        except ImportFailure as failure:
            message = f"{self._file}: argument %{name}: {failure.message}"
            raise ImportFailure(message, help=failure.help) from None
        value = self._nodes.value(name, type)
        self._nodes.bind(argument, value)
        return value

    def _input(self, number: int, value: Value) -> Input:
        role = text_at(self._facts(number), "rewright.role") or "input"
        if role not in ROLES:
            listed = ", ".join(ROLES)
            raise ImportFailure(f"{self._file}: a role is one of {listed}, not '{role}'")
        type = str(self._block.arguments[number].type)
        mutable = self._is_ours and type.startswith("!torch.tensor")
        return Input(value, role, mutable or value in self._nodes.updates)

    def _facts(self, number: int) -> Any:
        attributes = self._function.attributes
        return attributes["arg_attrs"][number] if "arg_attrs" in attributes else {}

    def _argument_type(self, argument: Any, written: str | None) -> Type:
        text = str(argument.type)
        said = declared(text)
        if written is not None:
            type = read_type(written, self._sizes)
            if said is not None and not agrees(type, said):
                raise ImportFailure(f"it is declared {text}, and {written}")
            return type
        if said is not None:
            bound = self._bound.get(argument, (None,) * len(said.shape))
            given = zip(said.shape, bound, strict=True)
            sizes = [known if known is not None else bind for known, bind in given]
            shape = tuple(self._unseen() if size is None else size for size in sizes)
            return TensorType(said.dtype, shape)
        if text.startswith(("!torch.tensor", "!torch.vtensor")):
            raise ImportFailure(
                f"type {text} does not say its sizes and dtype",
                help="export it with an example of each input; sizes may be dynamic",
            )
        if text == "!torch.int":
            return ScalarType("int", self._unseen(LOWEST))
        return plain_type(text)

    def _result_type(self, value: Any, written: str | None) -> Type | None:
        """The type of a result as far as the file gives it; None: to be found out."""
        if written is not None:
            return read_type(written, self._sizes)
        found = declared(str(value.type))
        if found is None:
            return (
                None
                if str(value.type).startswith("!torch.vtensor")
                else plain_type(str(value.type))
            )
        shape = self._bound.get(value, found.shape)
        if not self._is_ours or None in shape:
            return None
        return TensorType(found.dtype, tuple(s for s in shape if s is not None))
