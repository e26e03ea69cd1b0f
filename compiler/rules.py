"""Rules rules of your own: write, prove, use.

mine = rewright.rules.load("my.rules")          # or rewright.rule(\"\"\"rule ... { ... }\"\"\")
for verdict in mine.check():
    print(verdict)
torch.compile(model, backend="rewright", options={"rules": [mine]})
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike, fspath

from rewright.passes.rules import Rule, Verdict, examine, read_file, read_rules


@dataclass(frozen=True)
class RuleSet:
    """Rules that were read together. `text` is what they were read from."""

    text: str
    rules: tuple[Rule, ...]

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def __str__(self) -> str:
        return self.text

    def check(self, *, seed: int = 0) -> list[Verdict]:
        """What each rule can show for itself, or the counterexample against it."""
        return [examine(rule, seed=seed) for rule in self.rules]


def load(path: str | PathLike[str]) -> RuleSet:
    """The rules of a file. Raises OptionError when it cannot be read, TextError for a mistake."""
    text = read_file(fspath(path))
    return RuleSet(text, read_rules(text, fspath(path)))


def rule(text: str) -> RuleSet:
    """The rules of a text, most often one. Raises TextError for a mistake."""
    return RuleSet(text, read_rules(text, "<rule>"))
