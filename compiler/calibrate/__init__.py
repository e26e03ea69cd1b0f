"""Measuring: the host's figures, kernels in isolation, and the data that cost models learn from."""
