"""A rewrite rule of your own: proved, then applied.

    python -m examples.own_rule

Whoever writes `x * sigmoid(1.702 x)` for GELU says so in three operators; this rule goes the other
way, and says what it costs: it is approximate, so it asks for an error budget.
"""
