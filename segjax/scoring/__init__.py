"""Metrics beside those of the confusion matrix: of whole images, on the host."""

from segjax.scoring.metric import ImageMetric as ImageMetric
from segjax.scoring.metric import Scored as Scored
from segjax.scoring.per_image import IMAGE_IOU

IMAGE_METRICS: dict[str, ImageMetric] = {
    "image_iou": IMAGE_IOU,
}
"""What `experiments.evaluate --metrics` knows; a new metric is one line here."""
