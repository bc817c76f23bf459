"""What networks were trained on: scale, mean and deviation of the images, once."""

from segjax import errors
from segjax.errors import UserError

Stats = tuple[float, tuple[float, ...], tuple[float, ...]]

# name -> (scale, RGB mean, RGB deviation): (x * scale - mean) / deviation, x 0..255.
IMAGE_STATS: dict[str, Stats] = {
    # Caffe's ILSVRC12 mean, as FCN subtracts it (there in BGR order).
    "caffe": (1.0, (122.67892, 116.66877, 104.00699), (1.0, 1.0, 1.0)),
    # VGG's own mean, which PSPNet's, CRF-RNN's and Keras' networks subtract.
    "vgg": (1.0, (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
    # Mean and deviation of ImageNet, as torchvision's networks take them.
    "imagenet": (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # [-1, 1], for any number of channels.
    "unit": (1 / 127.5, (1.0,), (1.0,)),
}


def find(image_stats: str) -> Stats:
    """(scale, mean, deviation) of a name, or of a mean that is given in numbers.

    Args:
      image_stats: a key of IMAGE_STATS, or the mean of each channel that is subtracted,
        0..255 and RGB, with commas: "105.4,108.8,110.7" (Dilation, of each data set).

    Raises:
      UserError: neither.
    """
    if image_stats in IMAGE_STATS:
        return IMAGE_STATS[image_stats]
    try:
        mean = tuple(float(value) for value in image_stats.split(","))
    except ValueError:
        error = errors.unknown("--config.model.image_stats", image_stats, IMAGE_STATS)
        raise UserError(
            f"{error}; or the mean of each channel, such as 105.4,108.8,110.7"
        ) from None
    if not all(0 <= value <= 255 for value in mean):
        raise UserError(
            f"--config.model.image_stats is {image_stats!r}; expected means of "
            "channels from 0 to 255, red first"
        )
    return 1.0, mean, (1.0,) * len(mean)
