"""From RGB bytes to what a network was trained on, on the device."""

import jax
import jax.numpy as jnp
import numpy as np

from segjax import image_stats as image_stats_lib
from segjax.errors import UserError


def normalize(images: jax.Array, image_stats: str, dtype: str = "float32") -> jax.Array:
    """Normalizes `images` [N, H, W, C], RGB in 0..255, uint8 or float.

    Args:
      image_stats: a key of ``image_stats.IMAGE_STATS``, or means with commas. "caffe"
        and "vgg" subtract an RGB mean, "imagenet" also divides by 255 and the
        deviation, "unit" maps 0..255 to -1..1; "105.4,108.8,110.7" is subtracted.
      dtype: type of the result; the arithmetic is float32.

    Raises:
      UserError: unknown `image_stats`, or a number of channels it has no mean for.
    """
    scale, mean, deviation = image_stats_lib.find(image_stats)
    channels = images.shape[-1]
    if len(mean) not in (1, channels):
        raise UserError(
            f"--config.model.image_stats {image_stats!r} is for {len(mean)} channels, "
            f"the images have {channels}; set it to 'unit'"
        )
    x = images.astype(jnp.float32) * scale
    # Explicit axes: implicit rank promotion is an easy way to hide a wrong shape.
    x = x - np.asarray(mean, np.float32).reshape(1, 1, 1, -1)
    x = x / np.asarray(deviation, np.float32).reshape(1, 1, 1, -1)
    return x.astype(dtype)
