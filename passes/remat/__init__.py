"""Rematerialization: schedules that hold fewer bytes and run some steps again."""

from rewright.passes.remat.budget import Fitted, fitted, refusal
from rewright.passes.remat.graphs import Boundary, Scheduled
from rewright.passes.remat.problem import Order, lower_bound
from rewright.passes.remat.remat import LEAST, MOST_READ, SMALL, Remat
from rewright.passes.remat.solve import Front, Progress, Schedule, solve
from rewright.passes.remat.step import Halves, TrainingStep

__all__ = [
    "LEAST",
    "MOST_READ",
    "SMALL",
    "Boundary",
    "Fitted",
    "Front",
    "Halves",
    "Order",
    "Progress",
    "Remat",
    "Schedule",
    "Scheduled",
    "TrainingStep",
    "fitted",
    "lower_bound",
    "refusal",
    "solve",
]
