"""Pictures of the results in `benchmarks/results/`, for the documentation.

The same results give the same bytes: a test draws them again and compares.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from matplotlib import style
from matplotlib.axes import Axes

from benchmarks.kernels import NEAR, ROOF
from benchmarks.models import TITLES
from benchmarks.options import RESULTS
from rewright.pictures import MIB, Picture

IMAGES: Final = Path(__file__).parents[1] / "docs" / "images"

# Text stays text, which is smaller than its outlines; the margin is for other widths of fonts.
STYLE: Final = {
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.08,
}
TICKS: Final = (0.25, 0.32, 0.4, 0.5, 0.64, 0.8, 1, 1.25, 1.6, 2, 2.5, 3.2, 4, 5, 6.4, 8, 10)
DIRECTION: Final = "(further right is better; bars are intervals of 90 %)"


@dataclass(frozen=True)
class Series:
    """Speed-ups under one name in the legend: (row, ratio, low, high) each."""

    label: str
    marker: str
    color: str
    points: Sequence[tuple[float, float, float, float]]


def point(row: float, speedup: Mapping[str, float]) -> tuple[float, float, float, float]:
    return row, speedup["ratio"], speedup["low"], speedup["high"]


def draw_speedups(
    axes: Axes,
    rows: Sequence[str],
    series: Sequence[Series],
    group: Callable[[str], str] = lambda row: row,
) -> None:
    """A row for each label from the top down, ratios to the right, a line where they are 1; every
    other group of rows is shaded."""
    for first, last in every_other(rows, group):
        axes.axhspan(first - 0.5, last + 0.5, color="whitesmoke", zorder=0)
    axes.axvline(1, color="black", linewidth=0.8)
    for each in series:
        places, ratios, lows, highs = zip(*each.points, strict=True) if each.points else [()] * 4
        axes.hlines(places, lows, highs, color=each.color, linewidth=1.2)
        axes.plot(ratios, places, each.marker, color=each.color, markersize=4, label=each.label)
    axes.set_xscale("log")
    least, most = axes.get_xlim()
    ticks = [tick for tick in TICKS if least < tick < most]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)


def every_other(rows: Sequence[str], group: Callable[[str], str]) -> Iterator[tuple[int, int]]:
    """The first and last row of every other group."""
    groups = [list(found) for _, found in groupby(range(len(rows)), lambda row: group(rows[row]))]
    for found in groups[::2]:
        yield found[0], found[-1]


def where(found: Mapping[str, Any]) -> str:
    """The machine and the torch that results are of."""
    machine = found["machine"]
    torch = machine["torch"].partition("+")[0]
    return f"{machine['cpu'].replace('(R)', '')}, {machine['cores']} cores, torch {torch}"


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


# --- the pictures -------------------------------------------------------------------------------


def draw_inference(path: Path) -> None:
    """Whole models beside eager, Inductor and, both frozen, OpenVINO."""
    found = read("inference")
    speedups = [result["speedup"] for result in found["results"].values()]
    pairs = (
        ("over eager", "rewright vs eager", "s", "tab:green"),
        ("over Inductor", "rewright vs inductor", "o", "tab:blue"),
        ("over OpenVINO, both frozen", "rewright-frozen vs openvino", "D", "tab:orange"),
    )
    series = [
        Series(
            label,
            marker,
            color,
            [point(row + (i - 1) / 4, s[pair]) for row, s in enumerate(speedups) if pair in s],
        )
        for i, (label, pair, marker, color) in enumerate(pairs)
    ]
    picture = Picture(path, 7, 6.5)
    axes = picture.figure.add_subplot(
        title=f"Speed-up by Rewright: whole models in inference, f32\n{DIRECTION}",
        xlabel=f"speed-up ({where(found)})",
    )
    draw_speedups(axes, [TITLES[model] for model in found["results"]], series)
    picture.figure.legend(loc="outside lower center", ncols=3, frameon=False)
    picture.write()


def draw_kernels(path: Path) -> None:
    """Single kernels beside Inductor, by how near to the roof Inductor is."""
    found = read("kernels")
    cases = found["results"]
    groups = (
        (f"Inductor is under {NEAR * 100:.0f} % of the roof", "o", "tab:blue", True),
        ("Inductor is nearer to it", "s", "tab:gray", False),
    )
    series = [
        Series(
            label,
            marker,
            color,
            [
                point(row, case["speedup"]["rewright vs inductor"])
                for row, case in enumerate(cases)
                if far_from_roof(case["median_seconds"]) == far
            ],
        )
        for label, marker, color, far in groups
    ]
    picture = Picture(path, 7, 10)
    axes = picture.figure.add_subplot(
        title=f"Speed-up by Rewright over Inductor: single kernels\n{DIRECTION}",
        xlabel=f"speed-up ({where(found)})",
    )
    names = [case["case"].replace("_", " ") for case in cases]
    # A case is a kernel and a shape.
    draw_speedups(axes, names, series, lambda case: case.rpartition(" ")[0])
    axes.tick_params(axis="y", labelsize=7)
    picture.figure.legend(loc="outside lower center", ncols=2, frameon=False)
    picture.write()


def far_from_roof(seconds: Mapping[str, float]) -> bool:
    return seconds[ROOF] / seconds["inductor"] < NEAR


def draw_budgets(path: Path) -> None:
    """What memory costs on a deep Llama: the front of one solve, and PyTorch's partitioner."""
    found = read("remat_llama_32x1024")
    picture = Picture(path, 7, 4.5)
    axes = picture.figure.add_subplot(
        title="Memory against recomputation: a training step of Llama, 32 layers\n"
        "(width 256, 2x1,024 tokens; further left and lower is better)",
        xlabel="peak of the backward, MiB",
        ylabel="FLOPs computed again, of the forward's",
    )
    axes.margins(0.08)  # room for the labels of points
    for key, kind, label in (
        ("front", "o-", "Rewright"),
        ("pytorch", "s", "PyTorch's partitioner, at its budgets"),
    ):
        peaks = [p["peak"] / MIB for p in found[key]]
        axes.plot(peaks, [p["again"] for p in found[key]], kind, markersize=4, label=label)
    for p in found["pytorch"]:
        axes.annotate(
            p["name"].removeprefix("PyTorch "),
            (p["peak"] / MIB, p["again"]),
            xytext=(5, 4),
            textcoords="offset points",
        )
    axes.axvline(
        found["bound"] / MIB, color="black", linewidth=0.8, label="no schedule of the step is below"
    )
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlim(left=0)
    axes.grid(linewidth=0.4, alpha=0.6)
    picture.figure.legend(loc="outside lower center", ncols=3, frameon=False)
    picture.write()


PICTURES: Final[Mapping[str, Callable[[Path], None]]] = {
    "speed-models.svg": draw_inference,
    "speed-kernels.svg": draw_kernels,
    "memory-budgets.svg": draw_budgets,
}


def draw(name: str, folder: Path) -> Path:
    """Draw one of PICTURES into a folder."""
    path = folder / name
    with style.context(STYLE, after_reset=True):
        PICTURES[name](path)
    return path


def main() -> None:
    asked = argparse.ArgumentParser("python -m benchmarks.plots", description=__doc__)
    asked.add_argument(
        "--folder",
        type=Path,
        default=IMAGES,
        metavar="FOLDER",
        help="where the pictures go (default: docs/images)",
    )
    folder = asked.parse_args().folder
    for name in PICTURES:
        print(draw(name, folder))


if __name__ == "__main__":
    main()
