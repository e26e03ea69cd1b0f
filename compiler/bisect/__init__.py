"""Bisection: which pass, which application of a rule, which node breaks a compiled graph; and the
least graph that shows it.

`bisect(graph, options, inputs)` gives a `Finding`, or says what it looked at.
"""

from rewright.bisect.again import PROMISES, fault_in, try_again
from rewright.bisect.finding import Case, Finding, Healthy
from rewright.bisect.search import bisect
from rewright.bisect.write import case_text, script, write

__all__ = [
    "PROMISES",
    "Case",
    "Finding",
    "Healthy",
    "bisect",
    "case_text",
    "fault_in",
    "script",
    "try_again",
    "write",
]
