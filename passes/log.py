"""What passes did and would not do, as sentences: the material of `rewright why`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """One sentence about a value. `kind` is "decided" or "refused"; `subject` is a value's name."""

    pass_: str
    subject: str
    kind: str
    sentence: str

    def __str__(self) -> str:
        return f"[{self.pass_}] %{self.subject}: {self.sentence}"


class DecisionLog:
    """Decisions in the order they were first made; saying the same again changes nothing."""

    def __init__(self) -> None:
        self._records: dict[Decision, None] = {}

    def decide(self, pass_name: str, subject: str, sentence: str) -> None:
        self._records.setdefault(Decision(pass_name, subject, "decided", sentence))

    def refuse(self, pass_name: str, subject: str, sentence: str) -> None:
        self._records.setdefault(Decision(pass_name, subject, "refused", sentence))

    def take(self, other: DecisionLog) -> None:
        """All that another log holds."""
        self._records |= other._records

    def __iter__(self) -> Iterator[Decision]:
        return iter(tuple(self._records))

    def __len__(self) -> int:
        return len(self._records)

    def about(self, subject: str) -> tuple[Decision, ...]:
        """What was said about one value, `%` or not."""
        wanted = subject.removeprefix("%")
        return tuple(d for d in self if d.subject == wanted)

    @property
    def refusals(self) -> tuple[Decision, ...]:
        return tuple(d for d in self if d.kind == "refused")
