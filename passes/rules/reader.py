"""From the syntax tree to rules: variants written out, names given their meaning."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from rewright.ir import DTYPES, Arg, ImportFailure, Op, did_you_mean, op
from rewright.ir.show import LAYOUTS, MEMORY_FORMATS
from rewright.ir.signature import signature
from rewright.ir.source import Source
from rewright.passes.rules.domains import DOMAINS, KINDS_OF_DTYPES
from rewright.passes.rules.functions import FUNCTIONS
from rewright.passes.rules.rule import ROOT, Parameter, Rule, Size, Tensor
from rewright.passes.rules.syntax import (
    AttributeTree,
    BindTree,
    CallTree,
    EitherTree,
    FunctionTree,
    KeywordTree,
    ListTree,
    ManyTree,
    RuleTree,
    TensorTree,
    Tree,
    read,
)
from rewright.passes.rules.terms import (
    Apply,
    Attribute,
    Bind,
    Either,
    Function,
    Items,
    Literal,
    Many,
    Term,
    Variable,
    variables,
    within,
)

if TYPE_CHECKING:
    from lark import Token

Choices = Mapping[str, "Token | Tree"]

_WORDS_IN_CALLS: Final[Mapping[str, Mapping[str, Arg]]] = {
    "memory_format": MEMORY_FORMATS,
    "layout": LAYOUTS,
}
_WORDS: Final = {"none": None, "true": True, "false": False}


def parse_rules(text: str, *, file: str = "<rules>") -> tuple[Rule, ...]:
    """The rules that `text` holds, variants as rules of their own. Raises TextError, which points
    at the mistake."""
    source = Source(text, file)
    found: dict[str, Rule] = {}
    trees = read(source)
    ends = [*(_start(tree, source) for tree in trees[1:]), len(text)]
    for tree, end in zip(trees, ends, strict=True):
        written = _without_comments_behind(source.text[_start(tree, source) : end])
        for rule in _written_out(tree, source, written):
            if rule.name in found:
                raise source.error(f"there are two rules named '{rule.name}'", tree.name)
            found[rule.name] = rule
    return tuple(found.values())


def _written_out(tree: RuleTree, source: Source, text: str) -> Iterator[Rule]:
    names = [variant.name.value for variant in tree.variants]
    for chosen in itertools.product(*(variant.choices for variant in tree.variants)):
        labels = [
            _label(choice.label, choice.term, variant.choices.index(choice))
            for choice, variant in zip(chosen, tree.variants, strict=True)
        ]
        metas = {name: choice.term for name, choice in zip(names, chosen, strict=True)}
        yield _Reader(tree, source, metas).rule("/".join([tree.name, *labels]), text)


def _label(given: Token | None, term: Tree, place: int) -> str:
    """What a choice adds to a rule's name: its label, or the operator that it is."""
    if given is not None:
        return given.rstrip(": \t")
    named = getattr(term, "type", None) == "OP"
    return str(term).partition(".")[2].removesuffix(".default") if named else str(place + 1)


def _start(tree: RuleTree, source: Source) -> int:
    return source.text.rindex("rule", 0, tree.name.start_pos)


def _without_comments_behind(text: str) -> str:
    """The rule without the comments of the next one."""
    lines = text.rstrip().split("\n")
    while lines[-1].lstrip().startswith("#") or not lines[-1].strip():
        lines.pop()
    return "\n".join(lines)


class _Reader:
    """One rule with the choices of its variants made."""

    def __init__(self, tree: RuleTree, source: Source, metas: Choices) -> None:
        self.tree, self.source, self.metas = tree, source, metas
        self.tensors: dict[str, Tensor] = {}
        self.parameters: dict[str, Parameter] = {}
        self.sizes: set[str] = set()

    def rule(self, name: str, text: str) -> Rule:
        self.declare_names()
        for given in self.tree.given:
            if isinstance(given, TensorTree):
                self.tensor(given)
            else:
                self.parameter(given)
        match = tuple(self.bind(b, "match") for b in self.tree.match)
        give = tuple(self.bind(b, "give") for b in self.tree.give)
        when = tuple(self.term(t, "when") for t in self.tree.when)
        if self.tree.variants:
            self.leave_out_unused(match)
        rule = Rule(
            name,
            str(self.tree.kind),
            self.tensors,
            self.parameters,
            match,
            when,
            give,
            text,
            self.source,
            self.tree.name.start_pos or 0,
        )
        self.check(rule)
        return rule

    def fail(self, message: str, token: Token, help: str | None = None) -> NoReturn:
        raise self.source.error(message, token, help=help)

    # --- declarations -------------------------------------------------------------------------

    def declare_names(self) -> None:
        """Names first: dimensions may be written as expressions of parameters declared later."""
        for given in self.tree.given:
            if isinstance(given, AttributeTree):
                self.sizes.add(str(given.name))
            for dim in (given.dims or ()) if isinstance(given, TensorTree) else ():
                if getattr(dim.size, "type", None) == "NAME":
                    self.sizes.add(str(dim.size))

    def tensor(self, tree: TensorTree) -> None:
        name, kind = tree.name[1:], str(tree.kind)
        if name in self.tensors:
            self.fail(f"{tree.name} is declared twice", tree.name)
        if kind not in KINDS_OF_DTYPES and kind not in DTYPES:
            known = (*KINDS_OF_DTYPES, *DTYPES)
            self.fail(
                f"no class of dtypes is called '{kind}'{did_you_mean(kind, known)}",
                tree.kind,
                help=f"classes are {', '.join(KINDS_OF_DTYPES)}; a dtype is one too",
            )
        dims = None
        if tree.dims is not None:
            dims = tuple(
                Size(None if d.size is None else self.term(d.size, "when"), d.rest)
                for d in tree.dims
            )
        self.tensors[name] = Tensor(name, kind, dims)

    def parameter(self, tree: AttributeTree) -> None:
        kind = str(tree.kind)
        if tree.name in self.parameters:
            self.fail(f"{tree.name} is declared twice", tree.name)
        if kind not in DOMAINS:
            self.fail(
                f"nothing is called '{kind}' that an attribute may be{did_you_mean(kind, DOMAINS)}",
                tree.kind,
                help=f"attributes are {', '.join(DOMAINS)}",
            )
        arguments = tuple(self.term(t, "when") for t in tree.arguments)
        wanted = DOMAINS[kind].arguments
        if not wanted[0] <= len(arguments) <= wanted[1]:
            self.fail(f"'{kind}' takes {_counted(wanted)}, not {len(arguments)}", tree.kind)
        self.parameters[str(tree.name)] = Parameter(str(tree.name), kind, arguments)

    # --- terms --------------------------------------------------------------------------------

    def bind(self, tree: BindTree, where: str) -> Bind:
        term = self.term(tree.term, where)
        results = tuple(token[1:] for token in tree.results)
        if len(results) > 1 and not isinstance(term, Apply):
            self.fail("only a call has several results", tree.results[1])
        return Bind(results or (ROOT,), term, tree.like and tree.like[1:])

    def term(self, tree: Tree, where: str) -> Term:
        match tree:
            case CallTree():
                return self.call(tree, where)
            case FunctionTree():
                return self.function(tree, where)
            case ListTree():
                return Items(tuple(self.term(item, where) for item in tree.items))
            case EitherTree():
                if where != "match":
                    self.fail("only what is matched may be one thing or another", _first(tree))
                return Either(tuple(self.term(option, where) for option in tree.options))
            case ManyTree():
                return Many(tree.name[1:])
            case KeywordTree():
                self.fail("only a call of an operator takes arguments by name", tree.key)
        return self.token(tree, where)

    def token(self, token: Token, where: str) -> Term:
        match token.type:
            case "VALUE":
                return Variable(token[1:])
            case "META":
                return self.term(self.choice(token), where)
            case "INT":
                return Literal(int(token))
            case "FLOAT":
                return Literal(math.nan if token == "nan" else float(token))
            case "STRING":
                return Literal(json.loads(token))
            case "WORD":
                return Literal(_WORDS[token])
            case "OP":
                self.fail("an operator stands here without its arguments", token)
        return self.name(token)

    def name(self, token: Token) -> Term:
        if token in self.sizes:
            return Attribute(str(token))
        if token in DTYPES:
            return Literal(DTYPES[str(token)])
        raise self.source.error(
            f"'{token}' is not declared{did_you_mean(token, self.sizes)}",
            token,
            help=f"say where it comes from, as in {token}: number",
        )

    def choice(self, token: Token) -> Token | Tree:
        if token not in self.metas:
            self.fail(
                f"{token} has no choices{did_you_mean(token, self.metas)}",
                token,
                help=f"give them before the rule: for {token} in (...)",
            )
        return self.metas[str(token)]

    def function(self, tree: FunctionTree, where: str) -> Term:
        name = tree.name
        if name in _WORDS_IN_CALLS:
            return self.special(tree)
        arguments = tuple(self.term(t, where) for t in tree.arguments)
        if name.type != "NAME":
            if len(arguments) == 1 and name == "-" and isinstance(arguments[0], Literal):
                return Literal(-arguments[0].value)  # type: ignore[operator]
            return Function(str(name), arguments)
        known = FUNCTIONS.get(str(name))
        if known is None:
            self.fail(
                f"no function is called '{name}'{did_you_mean(name, FUNCTIONS)}",
                name,
                help=f"functions are {', '.join(sorted(FUNCTIONS))}",
            )
        if not known.least <= len(arguments) <= known.most:
            wanted = _counted((known.least, known.most))
            self.fail(f"{name} takes {wanted}, not {len(arguments)}", name)
        return Function(str(name), arguments)

    def special(self, tree: FunctionTree) -> Term:
        """`memory_format(contiguous)`, `layout(strided)`: as in the IR's text."""
        known = _WORDS_IN_CALLS[str(tree.name)]
        word = str(tree.arguments[0]) if len(tree.arguments) == 1 else ""
        if word not in known:
            self.fail(f"{tree.name} is one of {', '.join(known)}", tree.name)
        return Literal(known[word])

    # --- calls of operators -------------------------------------------------------------------

    def call(self, tree: CallTree, where: str) -> Term:
        if where == "when":
            self.fail("operators are not computed in tests and declarations", tree.op)
        token = tree.op
        if token.type == "META":
            chosen = self.choice(token)
            if getattr(chosen, "type", None) != "OP":
                self.fail(f"{token} stands for no operator here", token)
            token = chosen  # type: ignore[assignment]
        ops = tuple(self.operator(name, token) for name in _names(token))
        if len(ops) > 1 and where == "give":
            self.fail("a rule gives one operator", token, help="use a variant: for $op in (...)")
        arguments = [tuple(self.arguments(op, tree, where)) for op in ops]
        return Apply(ops, arguments[0])

    def operator(self, name: str, token: Token) -> Op:
        try:
            return op(name)
        except ImportFailure as error:
            self.fail(error.message, token)

    def arguments(self, op: Op, tree: CallTree, where: str) -> Iterator[tuple[int | str, Term]]:
        known = signature(op)
        if known is None:
            self.fail(f"{op} has no schema, so no rule can call it", tree.op)
        names = [*known.positional, *known.keyword_only]
        taken: set[str] = set()
        for place, argument in enumerate(tree.arguments):
            key: int | str = place
            if isinstance(argument, KeywordTree):
                at, argument = argument.key, argument.value
                key = name = at.rstrip("= \t")
                if name not in names:
                    near = did_you_mean(name, names)
                    self.fail(f"{op} has no argument '{name}'{near}", at)
            else:
                at = tree.op
                if place >= len(known.positional):
                    self.fail(f"{op} takes {len(known.positional)} arguments", tree.op)
                name = known.positional[place]
            if name in taken:
                self.fail(f"argument '{name}' of {op} is given twice", at)
            taken.add(name)
            yield key, self.term(argument, where)

    # --- the rule as a whole --------------------------------------------------------------------

    def check(self, rule: Rule) -> None:
        defined = [n for bind in rule.match for n in bind.results]
        known = rule.bound
        for bind in rule.give:
            for name in itertools.chain(variables(bind.term), [bind.like] if bind.like else []):
                if name not in known:
                    self.fail_rule(f"nothing says what %{name} is in what the rule gives")
            known |= frozenset(bind.results)
        if rule.roots == (ROOT,) and (ROOT not in defined or ROOT not in rule.give[-1].results):
            self.fail_rule("it gives none of the values that it matches under their names")
        for name in rule.tensors:
            if name not in rule.bound:
                self.fail_rule(f"%{name} is declared and never matched")
        if not rule.root_ops:
            self.fail_rule("what it matches is not a call of an operator")
        matched = {n for bind in rule.match for n in _attributes(bind.term)}
        matched |= {n for t in rule.tensors.values() for n in _dimensions(t)}
        for name in rule.parameters:
            if name not in matched:
                self.fail_rule(f"'{name}' is declared and never matched")

    def leave_out_unused(self, match: Sequence[Bind]) -> None:
        """A variant need not use all that the rule declares."""
        values = {n for bind in match for n in (*bind.results, *variables(bind.term))}
        self.tensors = {n: t for n, t in self.tensors.items() if n in values}
        used = {n for bind in match for n in _attributes(bind.term)}
        used |= {n for t in self.tensors.values() for n in _dimensions(t)}
        self.parameters = {n: p for n, p in self.parameters.items() if n in used}

    def fail_rule(self, message: str) -> NoReturn:
        self.fail(f"rule {self.tree.name}: {message}", self.tree.name)


def _attributes(term: Term) -> set[str]:
    return {part.name for part in within(term) if isinstance(part, Attribute)}


def _dimensions(tensor: Tensor) -> Iterable[str]:
    return (n for size in tensor.dims or () if size.term for n in _attributes(size.term))


def _names(token: Token) -> list[str]:
    """`aten.{add,sub}.Tensor` is two names."""
    parts = re.split(r"\{([^}]*)\}", token)
    choices = [p.split(",") if i % 2 else [p] for i, p in enumerate(parts)]
    return ["".join(word.strip() for word in words) for words in itertools.product(*choices)]


def _counted(bounds: tuple[int, int]) -> str:
    least, most = bounds
    count = str(least) if least == most else f"{least} to {most}"
    return f"{count} argument" + ("" if bounds == (1, 1) else "s")


def _first(tree: Tree) -> Token:
    while not hasattr(tree, "type"):
        tree = next(part for part in _flat(tree))
    return tree  # type: ignore[return-value]


def _flat(tree: object) -> Iterator[Tree]:
    for part in tree:  # type: ignore[attr-defined]
        if isinstance(part, list):
            yield from part
        elif part is not None:
            yield part
