"""Rules rules: written as text, proved before they are used, applied by one engine.

`rules.lark` is the language; `sets/` holds the rules that we ship.
"""

from __future__ import annotations

from rewright.passes.rules.engine import Outcome, Tally
from rewright.passes.rules.evidence import Counterexample, Evidence, Verdict, examine
from rewright.passes.rules.library import (
    EXACT,
    FASTMATH,
    SHIPPED,
    content_key,
    read_file,
    read_rules,
    rules_of,
    shipped,
)
from rewright.passes.rules.rewrite import Rules
from rewright.passes.rules.rule import Rule

__all__ = [
    "EXACT",
    "FASTMATH",
    "SHIPPED",
    "Counterexample",
    "Evidence",
    "Outcome",
    "Rule",
    "Rules",
    "Tally",
    "Verdict",
    "content_key",
    "examine",
    "read_file",
    "read_rules",
    "rules_of",
    "shipped",
]
