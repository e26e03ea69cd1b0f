"""The pictures of benchmark results, which are renewed with the results."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection

from benchmarks.plots import IMAGES, PICTURES, Series, draw, draw_speedups, every_other
from rewright.pictures import Picture

ROOT = Path(__file__).resolve().parents[1]
# Another matplotlib lays pictures out another way.
MATPLOTLIB = re.findall(
    r"^matplotlib==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
)[0]


@pytest.mark.skipif(
    matplotlib.__version__ != MATPLOTLIB, reason=f"pictures are what matplotlib {MATPLOTLIB} draws"
)
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_show_the_results(name: str, tmp_path: Path) -> None:
    same = draw(name, tmp_path).read_bytes() == (IMAGES / name).read_bytes()
    assert same, "the results are newer than the picture: run python -m benchmarks.plots"


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_small_and_the_readme_shows_them(name: str) -> None:
    assert (IMAGES / name).stat().st_size < 60_000
    assert re.search(rf"!\[.+\]\(docs/images/{name}\)", (ROOT / "README.md").read_text())


def test_a_ratio_is_drawn_in_its_row_between_its_ends(tmp_path: Path) -> None:
    axes = Picture(tmp_path / "a.svg", 3, 2).figure.add_subplot()
    found = Series("over b", "o", "black", [(1, 2.0, 1.5, 2.5)])
    draw_speedups(axes, ["first", "second"], [found, Series("over c", "s", "black", [])])
    bars = [lines for lines in axes.collections if isinstance(lines, LineCollection)]
    ends = [bar.tolist() for lines in bars for bar in lines.get_segments()]
    assert ends == [[[1.5, 1], [2.5, 1]]]
    dots = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in axes.lines}
    assert dots["over b"] == [[2, 1]] and dots["over c"] == []
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    bottom, top = axes.get_ylim()
    assert top < 0 < 1 < bottom  # the first row is the upper one


def test_every_other_kernel_is_shaded() -> None:
    rows = ["a 1", "a 2", "b 1", "c 1", "c 2", "c 3"]
    assert list(every_other(rows, lambda row: row[0])) == [(0, 1), (3, 5)]
