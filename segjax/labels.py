"""Label values and their colors, shared by data, losses, metrics and pictures."""

VOID = 255
"""The label of pixels without a class; they never count."""

STEP_INPUTS = ("image", "label", "added_weight", "present", "regions")
"""The arrays of a batch that steps take, of training and of evaluation; those behind
the label are optional."""
