"""Text on a terminal: in colours there, as it is in a pipe or where NO_COLOR is set."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.text import Text

# Of the IR's text form and of loop nests; a later pattern paints over an earlier one.
_RW: Final = (
    (r"\b-?\d+(?:\.\d+)?(?:e[-+]?\d+)?\b", "cyan"),
    (r"\b(?:bool|(?:bf|f|i|u|c)\d+\w*)(?=\[|\b)", "green"),
    (r"\b(?:rewright|graph|kernel|body|where|return|update|hint|divisor)\b", "bold"),
    (r"\b(?:param|buffer|saved|tangent|mutable|strides)\b", "magenta"),
    (r"\b(?:rows|columns|kept|each|heads|softmax of)\b", "bold"),
    (r"\b[A-Za-z_]\w*(?:\.\w+)+(?=\()", "blue"),
    (r"%(?:[A-Za-z0-9_.]+|\"(?:[^\"\\\n]|\\.)*\")", "yellow"),
    (r"(?<!%)\"(?:[^\"\\\n]|\\.)*\"", "green"),
    (r"@ \S+(?: seq \d+)?(?: forward| backward)?$", "bright_black"),
    (r"(?:^|\s)#.*$", "bright_black"),
)


def print_text(text: str, language: str) -> None:
    """Print a text in `language`: rw, python, cpp or plain. Nothing is wrapped or padded."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    if language == "plain" or not console.is_terminal or console.no_color:
        print(text)
    else:
        console.print(_coloured(text, language), soft_wrap=True)


def _coloured(text: str, language: str) -> Text:
    from rich.syntax import Syntax
    from rich.text import Text

    if language != "rw":
        found = Syntax("", language, theme="ansi_dark").highlight(text)
        found.rstrip()
        return found
    painted = Text(text)
    for pattern, style in _RW:
        painted.highlight_regex(f"(?m){pattern}", style)
    return painted
