"""A text and its name: turns places in it into excerpts for messages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rewright.ir.errors import Excerpt, TextError

if TYPE_CHECKING:
    from lark import Token


@dataclass(frozen=True)
class Source:
    text: str
    file: str

    @cached_property
    def _lines(self) -> list[str]:
        return self.text.split("\n")

    def excerpt(self, start: int, width: int = 1) -> Excerpt:
        """The line of the character at `start`, with up to `width` characters of it marked."""
        line = self.text.count("\n", 0, start)
        column = start - (self.text.rfind("\n", 0, start) + 1)
        shown = self._lines[line].rstrip("\r")
        room = max(1, len(shown) - column)
        # A tab is as wide in the line of carets as in the line it marks only when it is a space.
        return Excerpt(self.file, line + 1, column + 1, shown.replace("\t", " "), min(width, room))

    def error(
        self, message: str, token: Token, last: Token | None = None, *, help: str | None = None
    ) -> TextError:
        """A TextError that marks `token`, or all from `token` to `last`."""
        start, end = token.start_pos or 0, (last or token).end_pos or 0
        return TextError(message, excerpt=self.excerpt(start, end - start), help=help)
