"""Images with truth and prediction, as metrics get them."""

import numpy as np

from segjax.scoring import IMAGE_METRICS, Scored


def scored(label, prediction, classes, **more):
    """An image of nested lists; ``classes`` are names or their number."""
    if isinstance(classes, int):
        classes = tuple(f"class{i}" for i in range(classes))
    empty = {"probabilities": None, "instances": None}
    return Scored(
        label=np.array(label, np.uint8),
        prediction=np.array(prediction, np.uint8),
        classes=classes,
        **{**empty, **more},
    )


def score(name, *images):
    """The scores of images by one of IMAGE_METRICS."""
    metric = IMAGE_METRICS[name]
    return metric.combine([metric.measure(image) for image in images])


def grid(*rows):
    """An array of integers from rows of digits."""
    return np.array([[int(digit) for digit in row] for row in rows])
