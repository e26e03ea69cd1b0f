"""Pictures, drawn by matplotlib where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rewright.ir import OptionError
from rewright.ir.text_files import replace_file

MIB: Final = 1 << 20


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


def draw_memory(steps: Mapping[str, Sequence[int]], path: Path) -> None:
    """Bytes at each node of some schedules, over the share of their nodes that has run."""
    picture = Picture(path, 7, 4.5)
    axes = picture.figure.add_subplot(xlabel="share of the step's calls", ylabel="MiB allocated")
    for name, found in steps.items():
        places = [i / max(1, len(found) - 1) for i in range(len(found))]
        axes.step(places, [n / MIB for n in found], where="post", linewidth=0.9, label=name)
    axes.set_ylim(bottom=0)
    axes.legend()
    picture.write()


def draw_fronts(
    fronts: Mapping[str, Sequence[tuple[int, float]]], path: Path, bound: int | None = None
) -> None:
    """Curves of (peak in bytes, seconds), and bytes that no schedule gets below."""
    picture = Picture(path, 7, 4.5)
    axes = picture.figure.add_subplot(
        xlabel="peak of the step, MiB", ylabel="predicted seconds of the step"
    )
    for name, found in fronts.items():
        axes.plot(
            [p / MIB for p, _ in found], [s for _, s in found], "o-", markersize=3, label=name
        )
    if bound is not None:
        axes.axvline(bound / MIB, color="black", linewidth=0.8, label="no schedule is below")
    axes.legend()
    picture.write()
