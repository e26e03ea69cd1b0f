"""Fusion against the best plans there are."""
