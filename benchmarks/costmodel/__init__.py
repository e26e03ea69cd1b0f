"""Making and judging the learned cost models."""
