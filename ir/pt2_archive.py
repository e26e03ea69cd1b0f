"""Opening a `.pt2` file without running what may be in it.

`torch.export.load` unpickles objects, evaluates size expressions as Python, resolves targets by
attribute access from `torch` on, and loads compiled code. So before it sees a file, everything it
would run is checked: a file that holds more than tensors and a graph of operators is refused.
"""

from __future__ import annotations

import ast
import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from rewright.ir.errors import ImportFailure
from rewright.ir.ops import op

_HELP: Final = "write it with torch.export.save(program, path), by a torch of about this version"
_FORMAT: Final = "archive_format"
_MODEL: Final = "models/model.json"
# Where torch.export keeps what it unpickles as a whole.
_PICKLES: Final = re.compile(r"data/(weights|constants|sample_inputs)/[^/]*\.pt$")
_CONFIG: Final = re.compile(r"data/(weights|constants)/model_\w+_config\.json$")
_COMPILED: Final = ("data/aotinductor/", "data/executorch/")

_OPERATOR: Final = re.compile(r"torch\.ops\.(\w+\.\w+\.\w+)")
_HIGHER_ORDER: Final = re.compile(r"torch\.ops\.higher_order\.(\w+)")
# Functions of numbers: of `operator` those without side effects, of torch and `math` all.
_NUMBERS: Final = re.compile(
    r"math\.\w+|torch\._?sym_\w+|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs"
    r"|eq|ne|lt|le|gt|ge|and_|or_|xor|inv|invert|not_|lshift|rshift|getitem)"
)
# An operator that maps a file, which it may create.
OPENS_FILES: Final = frozenset({"aten.from_file.default", "aten.from_file.out"})
# What could end a quoted name in the code that fx generates.
_QUOTES: Final = re.compile(r"[\"'\\\n]")
# Parts of a size expression as sympy prints it.
_SIZE_NODES: Final = (
    *(ast.Expression, ast.Constant, ast.Load, ast.BinOp, ast.UnaryOp, ast.Compare),
    *(ast.operator, ast.unaryop, ast.cmpop),
)
# What makes a tree spec import a module.
_IMPORTING_SPECS: Final = ("default_factory_module", "__enum__")


def load_program(path: Path) -> torch.export.ExportedProgram:
    """The program in a `.pt2` file. Raises ImportFailure for a file that is missing, damaged, of
    another kind, or not plain data."""
    _check_archive(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.load(path if path.suffix == ".pt2" else _opened(path))
        except Exception as error:
            reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
            raise ImportFailure(f"{path}: torch cannot load it: {reason[0]}", help=_HELP) from error
    # Python source that `.module()` would compile; our signature states what it checks.
    program._guards_code = []
    return program


def _opened(path: Path) -> io.BytesIO:
    return io.BytesIO(path.read_bytes())


def _check_archive(path: Path) -> None:
    if not path.is_file():
        raise ImportFailure(f"{path}: there is no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise ImportFailure(f"{path} is damaged: '{damaged}' does not match its checksum")
            _check_entries(path, archive)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        raise ImportFailure(f"{path} is truncated or no .pt2 file: {error}", help=_HELP) from error


def _check_entries(path: Path, archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    root = names[0].split("/", 1)[0] + "/" if names else ""
    inside = [name.removeprefix(root) for name in names]
    if _FORMAT not in inside or archive.read(root + _FORMAT) != b"pt2":
        reason = f"it has no '{_FORMAT}'"
        raise ImportFailure(f"{path} is truncated or no .pt2 file: {reason}", help=_HELP)
    if len(set(names)) != len(names) or not all(name.startswith(root) for name in names):
        raise ImportFailure(f"{path}: its entries are not those of a .pt2 file")
    if any(name.startswith(_COMPILED) for name in inside):
        raise ImportFailure(f"{path} holds compiled code, not a program", help=_HELP)
    if _MODEL not in inside:
        held = ", ".join(n for n in inside if n.startswith("models/")) or "none"
        raise ImportFailure(f"{path} has no model called 'model' (it has {held})", help=_HELP)
    for name in inside:
        if _PICKLES.match(name):
            _check_pickle(path, name, archive.read(root + name))
        elif _CONFIG.match(name):
            _check_config(path, archive, root, name)
        elif name.startswith("models/"):
            _check_program(path, _json(path, name, archive.read(root + name)))


def _check_config(path: Path, archive: zipfile.ZipFile, root: str, name: str) -> None:
    """Tensors lie there as plain bytes, or each as a pickle of its own."""
    folder = name.rpartition("/")[0]
    config = _json(path, name, archive.read(root + name)).get("config", {})
    for fqn, entry in config.items():
        file = str(entry.get("path_name"))
        if file.startswith(("custom_obj_", "opaque_obj_")):
            raise ImportFailure(f"{path}: constant '{fqn}' is an object of a custom class")
        if entry.get("use_pickle"):
            _check_pickle(path, fqn, archive.read(f"{root}{folder}/{file}"))


def _check_pickle(path: Path, name: str, data: bytes) -> None:
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="meta")
    except Exception as error:
        raise ImportFailure(
            f"{path}: '{name}' holds pickled objects that are no tensors, and could run code",
            help="export with inputs that are tensors, numbers, lists, tuples and dicts",
        ) from error


def _json(path: Path, name: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise ImportFailure(f"{path} is damaged: '{name}' is no JSON: {error}") from error


def _check_program(path: Path, program: Any) -> None:
    for key, value in _strings(program):
        problem = _problem(key, value)
        if problem is not None:
            raise ImportFailure(f"{path}: {problem}")


def _strings(tree: Any) -> Iterator[tuple[str, str]]:
    """Every string of the program that loading it may act on, with the key it stands under."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if isinstance(value, str):
                yield key, value
            elif key != "metadata":
                yield from _strings(value)
    elif isinstance(tree, list):
        for item in tree:
            yield from _strings(item)


def _problem(key: str, value: str) -> str | None:
    if key in ("target", "as_operator") and value:
        return _target_problem(value)
    if key == "expr_str" and not _is_size(value):
        return f"'{value}' is not a size expression"
    if key in ("name", "as_name") and value and not value.isidentifier():
        return f"'{value}' is not a name"
    if key.endswith("_name") and _QUOTES.search(value):
        return f"{value!r} is not the name of a parameter or buffer"
    if key in ("in_spec", "out_spec") and any(mark in value for mark in _IMPORTING_SPECS):
        return "its inputs or outputs are defaultdicts or enums"
    return None


def _target_problem(target: str) -> str | None:
    found = _OPERATOR.fullmatch(target)
    if found is not None and not target.startswith("torch.ops.higher_order."):
        name = found[1]
        if name in OPENS_FILES:
            return f"it calls {name}, which opens files"
        return _unknown(name)
    known = _HIGHER_ORDER.fullmatch(target) or _NUMBERS.fullmatch(target)
    return None if known else f"it calls '{target}', which is no operator"


def _unknown(name: str) -> str | None:
    try:
        op(name)
    except ImportFailure as failure:
        return f"{failure.message} (import the package that defines it first)"
    return None


def _is_size(text: str) -> bool:
    """What sympy prints of a size, `Mul(Integer(2), Symbol('s0', integer=True))` or `2*s0`."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        return False
    return all(_is_size_node(node) for node in ast.walk(tree))


def _is_size_node(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name):
            return not name.startswith("_")
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str() as name)]):
            return name.isidentifier()
        case ast.Call(func=ast.Name(id=name), args=args):
            return name[0].isupper() and not any(_is_text(arg) for arg in args)
        case ast.keyword(value=value):
            return isinstance(value, ast.Constant) and not _is_text(value)
    return isinstance(node, _SIZE_NODES)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
