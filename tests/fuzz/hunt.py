"""What a worker does: graph after graph, and a case file for each new failure."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Final

import torch

from drawn_graphs import wide_graphs
from fuzz.case_text import case_text
from fuzz.check import check
from fuzz.isolated import Trouble, isolated
from fuzz.known import is_off
from fuzz.search import Failure, Search
from fuzz.through_torch import check_through_torch
from fuzz.workers import SHRINK_SECONDS, THROUGH_TORCH, News, Task, current_file
from rewright.ir import Graph
from rewright.ir.cache import cache_root
from rewright.ir.parse import parse
from rewright.ir.show import show

# Libraries are not needed again once their graph is done.
_KEPT_LIBRARIES: Final = 200


def hunt(task: Task) -> Iterator[News]:
    torch.set_num_threads(1)
    warm_up()
    found: list[Failure] = []
    number = task.first

    def is_new(failure: Failure) -> bool:
        """Whether no failure that was made small before explains it."""
        return not any(
            old.trouble.kind == failure.trouble.kind and old.operators <= failure.operators
            for old in found
        )

    def examine(graph: Graph) -> Trouble | None:
        current_file(task.worker).write_text(show(graph))
        return examined(graph, number)

    search = Search(wide_graphs(off=is_off), examine, is_new, SHRINK_SECONDS)
    while number == task.first or time.monotonic() < task.end:
        failure = search.run(number)
        if failure is None:
            yield News(number, search.examined)
        elif not is_new(failure):
            yield News(number, search.examined, again=True)
        else:
            found.append(failure)
            yield News(number, search.examined, case_text(failure))
        number += task.step
        if search.examined % _KEPT_LIBRARIES == 0:
            shutil.rmtree(cache_root(), ignore_errors=True)


def examined(graph: Graph, number: int) -> Trouble | None:
    """What is wrong with a graph; the seed decides whether torch.compile takes part."""
    trouble = isolated(check, graph)
    if trouble is None and number % THROUGH_TORCH == 0:
        trouble = isolated(check_through_torch, graph)
    return trouble


# A bit of everything that takes time when it is used first.
_EXAMPLE: Final = """
graph example(%x0: f32[B0, 4], %x1: f32[4], %k2: i64[2]) where B0 in [2, 64] hint 5 {
  %a = aten.add.Tensor(%x0, %x1) : f32[B0, 4]
  %b = aten._softmax.default(%a, -1, false) : f32[B0, 4]
  %c = aten.index_select.default(%b, 1, %k2) : f32[B0, 2]
  %d = aten.roll.default(%x1, [1], [0]) : f32[4]
  return %b, %c, %d
}
"""


def warm_up() -> None:
    """What is loaded on first use is loaded here, once, and not by every child."""
    graph = parse(_EXAMPLE)
    check(graph)
    check_through_torch(graph)
