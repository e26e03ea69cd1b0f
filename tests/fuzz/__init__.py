"""Random graphs, compiled and run, against the interpreter in float64 (`python -m fuzz`)."""
