"""Metrics beside those of the confusion matrix: of whole images, on the host."""

from segjax.scoring.boundaries import BOUNDARY_F1, BOUNDARY_IOU
from segjax.scoring.em import EM
from segjax.scoring.em_2012 import EM_2012
from segjax.scoring.instances import CITYSCAPES_IIOU, INSTANCE_ACCURACY
from segjax.scoring.metric import ImageMetric as ImageMetric
from segjax.scoring.metric import Scored as Scored
from segjax.scoring.objects import OBJECTS
from segjax.scoring.per_image import ADE20K, IMAGE_IOU

IMAGE_METRICS: dict[str, ImageMetric] = {
    "image_iou": IMAGE_IOU,
    "boundary_f1": BOUNDARY_F1,
    "boundary_iou": BOUNDARY_IOU,
    "objects": OBJECTS,
    "instance_accuracy": INSTANCE_ACCURACY,
    "cityscapes_iiou": CITYSCAPES_IIOU,
    "em": EM,
    "em_2012": EM_2012,
    "ade20k": ADE20K,
}
"""What `experiments.evaluate --metrics` knows; a new metric is one line here."""
