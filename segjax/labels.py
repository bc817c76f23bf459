"""Label values and their colors, shared by data, losses, metrics and pictures."""

VOID = 255
"""The label of pixels without a class; they never count."""

STEP_INPUTS = ("image", "label", "added_weight")
"""The arrays of a batch that steps take; the last one is optional."""
