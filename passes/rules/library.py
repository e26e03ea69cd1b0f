"""Sets of rules: those that we ship, by name, and those of users, by file or text.

Reading rules takes lark a third of a second, so what was read is kept on disk. A user's rules are
examined once (`evidence.py`) before they are used; that they hold is kept too.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from rewright.ir import CheckError, OptionError, did_you_mean
from rewright.ir.cache import default_cache, digest
from rewright.ir.plugins import plugins
from rewright.passes.rules.rule import Rule

# Every shipped set, in the order in which their rules are tried.
SHIPPED: Final = (
    *("views", "casts", "creations", "joins", "algebra", "reductions"),
    *("normalization", "matmul", "reals"),
)
# Names for several: all that keep every bit, and all.
EXACT: Final = "exact"
FASTMATH: Final = "fastmath"
_FOLDER: Final = files("rewright.passes.rules") / "sets"


def rules_of(names: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of sets, files (`my.rules`) and texts (`rule ... { ... }`), each once.

    Raises OptionError for an unknown name, TextError for a mistake in a text, CheckError for a
    rule of a user's that does not hold.
    """
    found: dict[str, Rule] = {}
    for name in names:
        for rule in _set(name):
            if found.setdefault(rule.name, rule) != rule:
                raise OptionError(f"two sets have a rule named '{rule.name}'", who="rules")
    return tuple(found.values())


def _set(name: str) -> Sequence[Rule]:
    if name in SHIPPED:
        return shipped(name)
    if name in (EXACT, FASTMATH):
        return [r for s in SHIPPED for r in shipped(s) if name == FASTMATH or r.is_exact]
    if name.endswith(".rules"):
        return _proved(read_file(name), name)
    if "{" in name:
        return _proved(name, "<rules>")
    added = plugins("rules")
    if name in added:
        return _proved(_text(added[name]), name)
    known = (*SHIPPED, EXACT, FASTMATH, *added)
    raise OptionError(
        f"no set of rules is called '{name}'{did_you_mean(name, known)}",
        who="rules",
        help=f"sets are {', '.join(known)}; a file's name ends in .rules",
    )


def _text(added: str | Path) -> str:
    """Of a plugin's set: what stands under `rewright.rules` is a text, or the path of a file."""
    return read_file(str(added)) if isinstance(added, Path) else added


@cache
def shipped(name: str) -> tuple[Rule, ...]:
    """The rules of a set of ours; tests examine them all."""
    return read_rules((_FOLDER / f"{name}.rules").read_text(encoding="utf-8"), f"{name}.rules")


def read_file(name: str) -> str:
    """The text of a file of rules. Raises OptionError when it cannot be read."""
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise OptionError(f"{name} cannot be read: {reason}", who="rules") from None


def content_key(names: Iterable[str]) -> str:
    """Changes with the names and with what is in their files."""
    return digest(*map(_content, names))


def _content(name: str) -> str:
    if name.endswith(".rules"):
        return read_file(name)
    if name in (*SHIPPED, EXACT, FASTMATH) or "{" in name:
        return name
    return _text(plugins("rules").get(name, name))


def read_rules(text: str, file: str) -> tuple[Rule, ...]:
    """`parse_rules`, once for each text."""
    store, name = default_cache(), f"{digest(text, file, _version())}.rules"
    known = store.read(name)
    if known is not None:
        rules: tuple[Rule, ...] = pickle.loads(known)
        return rules
    from rewright.passes.rules.reader import parse_rules

    rules = parse_rules(text, file=file)
    with suppress(OSError):  # a disk that is full: they are read again next time
        store.write(name, pickle.dumps(rules))
    return rules


@cache
def _proved(text: str, file: str) -> tuple[Rule, ...]:
    """A user's rules. Raises CheckError with the evidence against the first that does not hold."""
    rules = read_rules(text, file)
    store, name = default_cache(), f"{digest(text, _version())}.proved"
    if store.read(name) is not None:
        return rules
    from rewright.passes.rules.evidence import examine

    for rule in rules:
        verdict = examine(rule)
        if not verdict.holds:
            raise CheckError(
                f"rule {rule.name} does not hold: {verdict.evidence[-1].how}",
                who="rules",
                excerpt=rule.source.excerpt(rule.place, len(rule.name.split("/")[0])),
                help="see rewright rules check for the graph on which it fails",
            )
    with suppress(OSError):
        store.write(name, b"")
    return rules


@cache
def _version() -> str:
    """Changes whenever the way from text to rules does."""
    folder = Path(__file__).parent
    sources = sorted(p for p in folder.iterdir() if p.suffix in (".py", ".lark"))
    return digest(*(path.read_bytes() for path in sources))
