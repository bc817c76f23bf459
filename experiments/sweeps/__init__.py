"""The rows of a sweep, their runs and their report."""
