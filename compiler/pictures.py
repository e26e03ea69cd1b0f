"""Pictures, drawn by matplotlib where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rewright.ir import OptionError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIB: Final = 1 << 20


def figure(width: float = 7, height: float = 4.5) -> Figure:
    """Raises OptionError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError(
            "pictures are drawn by matplotlib, which is not installed",
            help="pip install rewright[plot]",
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Figure, path: Path) -> None:
    """As the kind of picture that the path's suffix says. Raises OptionError for an unknown one."""
    try:
        drawn.savefig(path)
    except ValueError as error:
        raise OptionError(str(error), help="name a file that ends with .svg or .png") from error


def draw_memory(steps: Mapping[str, Sequence[int]], path: Path) -> None:
    """Bytes at each node of some schedules, over the share of their nodes that has run."""
    drawn = figure()
    axes = drawn.add_subplot(xlabel="share of the step's calls", ylabel="MiB allocated")
    for name, found in steps.items():
        places = [i / max(1, len(found) - 1) for i in range(len(found))]
        axes.step(places, [n / MIB for n in found], where="post", linewidth=0.9, label=name)
    axes.set_ylim(bottom=0)
    axes.legend()
    save(drawn, path)


def draw_fronts(
    fronts: Mapping[str, Sequence[tuple[int, float]]], path: Path, bound: int | None = None
) -> None:
    """Curves of (peak in bytes, seconds), and bytes that no schedule gets below."""
    drawn = figure()
    axes = drawn.add_subplot(xlabel="peak of the step, MiB", ylabel="predicted seconds of the step")
    for name, found in fronts.items():
        axes.plot(
            [p / MIB for p, _ in found], [s for _, s in found], "o-", markersize=3, label=name
        )
    if bound is not None:
        axes.axvline(bound / MIB, color="black", linewidth=0.8, label="no schedule is below")
    axes.legend()
    save(drawn, path)
