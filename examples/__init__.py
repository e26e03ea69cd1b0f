"""Models to try Rewright on, in plain PyTorch.

Each module offers a factory, full size by default, that returns `(module, example inputs)`; its
keyword arguments make smaller ones. Factories are seeded and leave the caller's random state alone.
"""
