"""The full-size models that benchmarks run, by name: those of `models.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch

from examples.case import Case, seeded

_LISTED: Final[Mapping[str, Mapping[str, Any]]] = tomllib.loads(
    (Path(__file__).parent / "models.toml").read_text(encoding="utf-8")
)
# Keys that are no arguments of a factory.
_OURS: Final = ("title", "set", "make")


def _factory(listed: Mapping[str, Any]) -> Callable[[], Case]:
    return partial(_made, listed["make"], {k: v for k, v in listed.items() if k not in _OURS})


def _made(name: str, arguments: Mapping[str, Any]) -> Case:
    module, _, function = name.partition(":")
    case: Case = getattr(import_module(module), function)(**arguments)
    return case


MODELS: Final[Mapping[str, Callable[[], Case]]] = {
    name: _factory(listed) for name, listed in _LISTED.items()
}
# What pictures call them.
TITLES: Final[Mapping[str, str]] = {name: listed["title"] for name, listed in _LISTED.items()}
# What is tuned on, and what is only reported.
SETS: Final[Mapping[str, tuple[str, ...]]] = {
    wanted: tuple(name for name, listed in _LISTED.items() if listed["set"] == wanted)
    for wanted in ("tune", "report")
}


def net(name: str, batch: int, size: int = 224) -> Case:
    """A convolutional network of `benchmarks.remat.nets`: images `[N, 3, size, size]`."""
    return _images("benchmarks.remat.nets", name, batch, size)


def hybrid(name: str, batch: int, size: int = 224) -> Case:
    """A network of convolutions and attention of `benchmarks.remat.hybrids`."""
    return _images("benchmarks.remat.hybrids", name, batch, size)


def _images(module: str, name: str, batch: int, size: int) -> Case:
    with seeded(0):
        made = getattr(import_module(module), name)()
        return made.eval(), (torch.randn(batch, 3, size, size),)
