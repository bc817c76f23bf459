"""The loop over a folder of images that a user of Flax would write."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from PIL import Image

from experiments.benchmarks import torch_predict
from segjax import inference


class _ConvBn(nn.Module):
    features: int
    size: int
    stride: int = 1
    rate: int = 1
    relu: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(
            self.features,
            (self.size, self.size),
            strides=self.stride,
            padding=self.rate * (self.size // 2),
            kernel_dilation=self.rate,
            use_bias=False,
        )(x)
        x = nn.BatchNorm(use_running_average=True)(x)
        return nn.relu(x) if self.relu else x


class _Bottleneck(nn.Module):
    width: int
    stride: int
    rate: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = _ConvBn(self.width, 1, stride=self.stride)(x)
        y = _ConvBn(self.width, 3, rate=self.rate)(y)
        y = _ConvBn(4 * self.width, 1, relu=False)(y)
        if x.shape != y.shape:
            x = _ConvBn(4 * self.width, 1, stride=self.stride, relu=False)(x)
        return nn.relu(x + y)


class DeepLab(nn.Module):
    """DeepLab v2: a ResNet of stride 8 and ASPP, one scale; [N, H, W, 3] in 0 .. 1."""

    blocks: Sequence[int]
    width: int
    rates: Sequence[int]
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = _ConvBn(self.width, 7, stride=2)(images)
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        plan = zip(self.blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)
        for stage, (count, stride, rate) in enumerate(plan):
            for index in range(count):
                stride = 1 if index else stride
                x = _Bottleneck(self.width * 2**stage, stride, rate)(x)
        branches = [
            nn.Conv(self.classes, (3, 3), padding=rate, kernel_dilation=rate)(x)
            for rate in self.rates
        ]
        scores = sum(branches[1:], branches[0])
        size = (*images.shape[:3], self.classes)
        return jax.image.resize(scores, size, "bilinear")


def loop(segmenter: inference.Segmenter) -> Callable[[Sequence[str], Path], None]:
    """A function of images and a folder, into which it writes labels and overlays.

    The network has random parameters, and as many as the segmenter's. Images are read,
    predicted and written one after the other by a jitted function and Pillow: labels
    as PNG with a palette, overlays as JPEG.

    Raises:
      UserError: the segmenter is none of one DeepLab v2 with a ResNet.
    """
    fields = torch_predict.counterpart(segmenter, "--flax")
    network = DeepLab(**fields)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 65, 65, 3)))
    torch_predict.check_parameters(
        segmenter, "--flax", sum(x.size for x in jax.tree.leaves(variables["params"]))
    )
    palette = segmenter.info.palette

    @jax.jit
    def predict(variables, image):
        logits = network.apply(variables, image[None].astype(jnp.float32) / 255)
        return logits[0].argmax(-1).astype(jnp.uint8)

    def run(paths: Sequence[str], folder: Path) -> None:
        for index, path in enumerate(paths):
            image = Image.open(path).convert("RGB")
            label = np.asarray(predict(variables, np.array(image)))
            torch_predict.save(folder, str(index), image, label, palette)

    return run
