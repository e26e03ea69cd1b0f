"""Rematerialization against what others reach: the models, their joint graphs, and the bars."""
