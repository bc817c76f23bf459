"""Label values and their colors, shared by data, losses, metrics and pictures."""

VOID = 255
"""The label of pixels without a class; they never count."""
