"""Runs of different networks side by side: the parts of experiments.compare."""
