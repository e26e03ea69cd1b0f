"""Pictures, drawn by matplotlib where it is installed."""

from __future__ import annotations

from pathlib import Path

from rewright.ir import OptionError
from rewright.ir.text_files import replace_file


class Picture:
    """A figure to be drawn on, in inches, and where it is going to be written.

    Raises OptionError without matplotlib, or for a suffix that it does not know.
    """

    def __init__(self, path: Path, width: float, height: float) -> None:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise OptionError(
                "pictures are drawn by matplotlib, which is not installed",
                help="pip install rewright[plot]",
            ) from error
        self.path = path
        self.figure = Figure(figsize=(width, height), layout="constrained")
        self._kind = path.suffix.removeprefix(".")
        if self._kind not in self.figure.canvas.get_supported_filetypes():
            raise OptionError(
                f"pictures do not end with '{path.suffix}'",
                help="name a file that ends with .svg or .png",
            )

    def write(self) -> None:
        """The same bytes each time, as the path's suffix says. Raises ArtefactError."""
        from matplotlib import rc_context

        metadata = {"Date": None} if self._kind == "svg" else None
        with rc_context({"svg.hashsalt": "rewright"}):
            replace_file(
                self.path,
                lambda p: self.figure.savefig(p, format=self._kind, metadata=metadata),
            )
