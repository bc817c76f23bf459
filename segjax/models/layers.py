"""What all the networks are made of: a few parameterised layers, checks of fields.

Parameters are float32 ("kernel" HWIO, "bias"); the computation runs in `dtype`.
"""

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax import errors, image_stats
from segjax.errors import UserError
from segjax.ops import activation, conv, geometry, pool, resized_conv

# He et al. 2015: Gaussian of variance 2 / fan-in, for layers followed by a ReLU.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# Without the ReLU (variance 1 / fan-in), for class scores.
score_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
# He's for a transposed convolution whose kernel side is its stride: an output has
# one incoming location, so the fan-in is the number of channels, not k * k times that.
he_normal_transposed = nn.initializers.variance_scaling(
    2.0, "fan_in", "normal", batch_axis=(0, 1)
)


_bn_batch_size = contextvars.ContextVar("bn_batch_size", default=0)


@contextlib.contextmanager
def bn_batch_size(images: int) -> Iterator[None]:
    """Batch normalization traced inside takes statistics of groups of this size.

    Otherwise of all images of a batch, over all devices. Also a decorator, for
    functions that are jitted. See :func:`batch_norm`.

    Args:
      images: consecutive ones of a batch, a divisor of its size; 0: all of them.
    """
    token = _bn_batch_size.set(images)
    try:
        yield
    finally:
        _bn_batch_size.reset(token)


def in_groups(images: int) -> bool:
    """Whether a batch of so many is normalized in groups: see :func:`bn_batch_size`."""
    return _bn_batch_size.get() not in (0, images)


# --- layers ---------------------------------------------------------------------------


class Conv(nn.Module):
    """Convolution of [N, H, W, C] with explicit symmetric padding (zeros).

    Of several maps of one size, it is the convolution of their concatenation, as a sum
    of one convolution each (without groups): a TPU then neither copies them nor splits
    their gradient.

    Attributes:
      features: output channels.
      size: side of the kernel [size, size, C / groups, features].
      stride, padding, dilation, groups: see ops.conv.conv2d.
      use_bias: adds a bias, which starts at zero.
      kernel_init: of the kernel; the fan-in of a group is its own.
      dtype: compute type.
    """

    features: int
    size: int = 3
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = he_normal
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array | list[jax.Array]) -> jax.Array:
        maps = x if isinstance(x, list) else [x]
        channels = [part.shape[-1] for part in maps]
        shape = (self.size, self.size, sum(channels) // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        stops = list(itertools.accumulate(channels))[:-1]
        parts = jnp.split(kernel, stops, axis=2)
        convolution = functools.partial(
            conv.conv2d,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        products = [
            convolution(part.astype(self.dtype), kernel)
            for part, kernel in zip(maps, parts, strict=True)
        ]
        x = functools.reduce(jnp.add, products)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            x = x + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return x


class ConvOfResized(nn.Module):
    """:class:`Conv` of maps [N, h, w, C] behind their resizing and concatenation.

    Bilinear resizing with aligned corners to the size of the first map. It has the
    parameters of Conv and gives the same sums, with fewer operations where the others
    are smaller; see ops/resized_conv.py.

    Attributes: see Conv.
    """

    features: int
    size: int = 3
    padding: int = 0
    dilation: int = 1
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = he_normal
    dtype: str = "float32"

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> jax.Array:
        channels = sum(x.shape[-1] for x in maps)
        shape = (self.size, self.size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x = resized_conv.conv_of_resized(
            [x.astype(self.dtype) for x in maps],
            kernel,
            size=geometry.sides(maps[0]),
            padding=self.padding,
            dilation=self.dilation,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            x = x + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return x


class ConvTranspose(nn.Module):
    """Transposed convolution, Caffe/PyTorch semantics, output side s(n-1) + k - 2p.

    Attributes: see Conv; the kernel is [size, size, C, features], in scatter order.
    """

    features: int
    size: int
    stride: int
    padding: int = 0
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = he_normal_transposed
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x = conv.conv_transpose(
            x.astype(self.dtype), kernel, stride=self.stride, padding=self.padding
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            x = x + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return x


class UnbiasedBatchNorm(nn.BatchNorm):
    """Batch normalization whose running variance is n / (n - 1) times as large.

    n is the number of values per channel in the batch. Only the running variance
    differs, as in PyTorch and Caffe: normalization in training is by the biased one.
    """

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        before: Any = self.get_variable("batch_stats", "var")
        y = super().__call__(x, use_running_average, mask=mask)
        training = not self.use_running_average and not self.is_initializing()
        if training and self.is_mutable_collection("batch_stats"):
            n = x.size // x.shape[-1]
            kept = self.momentum * before
            new = self.get_variable("batch_stats", "var") - kept
            self.put_variable("batch_stats", "var", kept + new * (n / max(n - 1, 1)))
        return y


def batch_norm(
    x: jax.Array,
    name: str,
    *,
    train: bool,
    momentum: float,
    dtype: str,
    unbiased: bool = False,
    **fields: Any,
) -> jax.Array:
    """Batch normalization; float32 statistics, of the global batch under jit.

    Inside :func:`bn_batch_size`, each group of images is normalized by its own mean and
    variance (ghost batch normalization: Hoffer et al., NeurIPS 2017), and the running
    values follow the averages over the groups. Groups that lie on different devices
    then need no sums between these; the averages are not waited for.

    Args:
      momentum: Flax's: the fraction of the old running value that is kept.
      unbiased: keeps running variances of n / (n - 1) times the batch's, n values per
        channel, as PyTorch and Caffe do. Flax keeps that of the batch.
      fields: more fields of Flax's BatchNorm; epsilon is 1e-5.
    """
    layer = (UnbiasedBatchNorm if unbiased else nn.BatchNorm)(
        use_running_average=not train,
        momentum=momentum,
        dtype=jnp.dtype(dtype),
        name=name,
        **{"epsilon": 1e-5, **fields},
    )
    return by_groups(layer, x, train=train)


def by_groups(layer: nn.Module, x: jax.Array, *, train: bool) -> jax.Array:
    """A batch normalization of `x` [N, ..]: of groups inside :func:`bn_batch_size`.

    Raises:
      UserError: the groups do not divide the images.
    """
    if not train or layer.is_initializing() or not in_groups(len(x)):
        return layer(x)
    size = _bn_batch_size.get()
    if len(x) % size:
        raise UserError(
            f"--config.bn_batch_size={size} does not divide the {len(x)} images of a "
            "(micro-)batch"
        )
    variables, alone = layer.variables, layer.clone(parent=None)

    def normalize(group: jax.Array) -> tuple[jax.Array, Any]:
        return alone.apply(variables, group, mutable=["batch_stats"])

    groups = x.reshape(len(x) // size, size, *x.shape[1:])
    y, updated = jax.vmap(normalize)(groups)
    for name, values in updated["batch_stats"].items():
        layer.put_variable("batch_stats", name, values.mean(axis=0))
    return y.reshape(x.shape)


def conv_bn_relu(
    x: Any,
    name: str,
    features: int,
    size: int = 3,
    *,
    batch: bool,
    train: bool,
    bn_momentum: float,
    bn_unbiased: bool = False,
    dtype: str,
    norm_name: str = "",
    keep_bias: bool = False,
    relu: bool = True,
    layer: Callable[..., Any] = Conv,
    normalize: Callable[..., Any] = batch_norm,
    **options: Any,
) -> Any:
    """Convolution `name`, with `batch` a batch normalization, ReLU.

    Makes its layers in the compact method that calls it.

    Args:
      norm_name: of the batch normalization, otherwise "{name}_bn". It replaces the
        bias of the convolution, which `keep_bias` keeps all the same.
      relu: False leaves the ReLU out.
      layer: ConvOfResized, for `x` a sequence of maps.
      normalize: in place of :func:`batch_norm`; with `layer`, for framed maps
        (framed_layers.py) and packed ones (packed_layers.py).
      options: more fields of the layer.
    """
    use_bias = keep_bias or not batch
    x = layer(features, size, use_bias=use_bias, dtype=dtype, name=name, **options)(x)
    if batch:
        x = normalize(
            x,
            norm_name or f"{name}_bn",
            train=train,
            momentum=bn_momentum,
            unbiased=bn_unbiased,
            dtype=dtype,
        )
    if not relu:
        return x
    return jax.tree.map(nn.relu if batch else activation.relu, x)


def bind_conv_bn_relu(model: nn.Module, train: bool) -> Callable[..., Any]:
    """:func:`conv_bn_relu` with the fields norm, bn_* and dtype of `model`.

    It must have the fields bn_momentum, bn_unbiased and dtype; a network without a
    field norm always normalizes.
    """
    return functools.partial(
        conv_bn_relu,
        batch=getattr(model, "norm", "batch") == "batch",
        train=train,
        bn_momentum=model.bn_momentum,
        bn_unbiased=model.bn_unbiased,
        dtype=model.dtype,
    )


def overlapping_pool(x: jax.Array, name: str) -> jax.Array:
    """Caffe's overlapping max-pooling: 3x3 windows, stride 2, ceil-mode.

    Raises:
      UserError: the map `x` [N, H, W, C] is too small for one window.
    """
    height, width = x.shape[1:3]
    if min(height, width) < 2:
        raise UserError(
            f"{name} gets a map of {height} x {width} locations, too small for its 3x3 "
            f"windows; use larger images or more padding"
        )
    return pool.max_pool(x, 3, stride=2, ceil=True)


# --- fields ---------------------------------------------------------------------------


def check_common(model: nn.Module) -> None:
    """Checks the fields that networks share, as far as `model` has them.

    They are norm, dropout, bn_momentum, image_stats and dtype.

    Raises:
      UserError: a bad value.
    """
    if hasattr(model, "norm"):
        check_choice(model, "norm", ("none", "batch"))
    check_range(model, "dropout", lowest=0, highest=0.99)
    check_range(model, "bn_momentum", lowest=0, highest=1)
    if hasattr(model, "bn_unbiased"):
        check_choice(model, "bn_unbiased", (False, True))
    image_stats.find(model.image_stats)
    check_choice(model, "dtype", ("float32", "bfloat16"))


def check_choice(model: nn.Module, field: str, choices: Sequence[Any]) -> None:
    """Raises a UserError if the value of `field` is not one of `choices`."""
    value = getattr(model, field)
    if value not in choices:
        raise errors.unknown(flag(model, field), value, choices)


def check_range(model: nn.Module, field: str, *, lowest: float, highest: float) -> None:
    """Raises a UserError if `model` has `field`, not from `lowest` to `highest`."""
    value = getattr(model, field, lowest)
    if not lowest <= value <= highest:
        expected = f"a number from {lowest} to {highest}"
        raise UserError(f"{flag(model, field)} is {value}, expected {expected}")


def check_integers(model: nn.Module, *fields: str, minimum: int = 1) -> None:
    """Raises a UserError unless each of `fields` is an integer, `minimum` or more."""
    for field in fields:
        value = getattr(model, field)
        if not isinstance(value, int) or value < minimum:
            expected = f"an integer of at least {minimum}"
            raise UserError(f"{flag(model, field)} is {value!r}, expected {expected}")


def check_positive(
    model: nn.Module, field: str, *, length: int = 0, minimum: int = 0
) -> None:
    """Raises a UserError unless `field` is a sequence of positive integers.

    Args:
      length: how many there must be; 0 for any number from `minimum` up.
    """
    value = getattr(model, field)
    if not isinstance(value, Sequence) or any(
        not isinstance(v, int) or v < 1 for v in value
    ):
        expected = "positive integers"
    elif length and len(value) != length:
        expected = f"{length} value{'s' * (length > 1)}"
    elif len(value) < minimum:
        expected = f"at least {minimum} value{'s' * (minimum > 1)}"
    else:
        return
    raise UserError(f"{flag(model, field)} is {value!r}, expected {expected}")


def flag(model: nn.Module, field: str) -> str:
    """How messages address `field`: by the flag that sets it, and the network's class.

    For example "--config.model.skips (FCN)".
    """
    return f"--config.model.{field} ({type(model).__name__})"
