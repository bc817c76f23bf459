"""Convolutions with explicit symmetric padding, and Caffe's transposed convolution.

Arrays are [N, H, W, C], kernels [kh, kw, in, out] (HWIO). Whatever is a matrix product
is written as one: 1x1 convolutions, kernels as large as the map, transposed
convolutions; fixed bilinear upsampling as two. Other convolutions have on CPUs one of
the forms of conv_forms.py. The same sums everywhere, in another order.
experiments/benchmarks/operators.py measures them.

A kernel may be float32 where `x` is bfloat16: it is rounded to the type of `x`, and
:func:`float32_gradient_sums` decides in which type its gradient is summed.
"""

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import conv_forms, geometry, platforms, resize
from segjax.ops.conv_forms import Window

# (x, kernel) -> y
Product = Callable[[jax.Array, jax.Array], jax.Array]

_float32_sums = contextvars.ContextVar("float32_gradient_sums", default=False)


@contextlib.contextmanager
def float32_gradient_sums(enabled: bool = True) -> Iterator[None]:
    """Gradients of float32 kernels that are traced inside are summed in float32.

    Otherwise they are sums in the type of the map: with bfloat16, what each device has
    summed is rounded to 8 bits before it is added over the devices, at half the bytes.
    Also a decorator, for functions that are jitted.
    """
    token = _float32_sums.set(enabled)
    try:
        yield
    finally:
        _float32_sums.reset(token)


def with_kernel(
    product: Product,
    x: jax.Array,
    kernel: jax.Array,
) -> jax.Array:
    """``product(x, kernel)`` in the type of `x`."""
    if kernel.dtype != x.dtype and _float32_sums.get():
        return _with_float32_gradient(product, x, kernel)
    return product(x, kernel.astype(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_float32_gradient(product, x, kernel):
    return product(x, kernel.astype(x.dtype))


def _product_forward(product, x, kernel):
    return _with_float32_gradient(product, x, kernel), (x, kernel)


def _product_backward(product, saved, gradient):
    x, kernel = saved
    rounded = kernel.astype(x.dtype)
    (dx,) = jax.vjp(lambda x: product(x, rounded), x)[1](gradient)
    # The factors have bfloat16 values, so their products are exact at any precision.
    wide, rounded = x.astype(kernel.dtype), rounded.astype(kernel.dtype)
    pull = jax.vjp(lambda kernel: product(wide, kernel), rounded)[1]
    return dx, *pull(gradient.astype(kernel.dtype))


_with_float32_gradient.defvjp(_product_forward, _product_backward)


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> jax.Array:
    """Cross-correlation of `x` [N, H, W, I] with `kernel` [kh, kw, I / groups, O].

    `padding` zeros on every side; output side floor((n + 2p - d(k-1) - 1) / s) + 1,
    whatever the parity of n (unlike the string "SAME"). Each of the `groups` equal
    parts of the output channels reads the same part of the input channels (Caffe's
    and PyTorch's order).

    Raises:
      ValueError: `groups` does not divide I or O.
    """
    if groups > 1:
        how = dict(stride=stride, padding=padding, dilation=dilation)
        # For the few groups here far cheaper on CPU than a grouped convolution.
        parts = zip(
            jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True
        )
        return jnp.concatenate([conv2d(u, w, **how) for u, w in parts], axis=-1)
    window = Window(stride, padding, dilation)
    return with_kernel(functools.partial(_conv2d, window=window), x, kernel)


def _conv2d(x: jax.Array, kernel: jax.Array, *, window: Window) -> jax.Array:
    if conv_forms.is_native_only():
        return conv_forms.native(x, kernel, window)
    if kernel.shape[:2] == (1, 1) and window.padding == 0:
        return conv1x1(x, kernel, window.stride)
    if kernel.shape[:2] == x.shape[1:3] and window[1:] == (0, 1):
        # A fully connected layer: one output location, which sees the whole map.
        y = x.reshape(len(x), -1) @ kernel.reshape(-1, kernel.shape[3])
        return y[:, None, None]
    return _conv(x, kernel, window)


def conv1x1(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """`conv2d` for a kernel [1, 1, I, O], as a matrix product over the channels."""
    return channel_product(x[:, ::stride, ::stride], kernel[0, 0])


@jax.custom_vjp
def channel_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[N, H, W, I], [I, O] -> [N, H, W, O]."""
    if kernel.shape[1] < _FEW_OUTPUTS:
        return _product(x, kernel)
    return jax.lax.platform_dependent(
        x, kernel, tpu=_product_as_convolution, default=_product
    )


# A TPU stores the maps of convolutions in another order of axes than those of matrix
# products, so that next to convolutions a convolution saves copies. Those of few
# outputs would have the images of a batch in the 128 lanes.
_FEW_OUTPUTS = 64


def _product(x, kernel):
    return jnp.einsum("nhwi,io->nhwo", x, kernel)


def _product_as_convolution(x, kernel):
    return conv_forms.native(x, kernel[None, None], Window())


def _channel_product_forward(x, kernel):
    y = channel_product(x, kernel)
    if kernel.shape[1] < _FEW_OUTPUTS:
        # Or what follows, such as a loss, would get the order of the gradient.
        y = jax.lax.platform_dependent(
            y, tpu=jax.lax.optimization_barrier, default=lambda y: y
        )
    return y, (x, kernel)


def _channel_product_backward(saved, gradient):
    x, kernel = saved
    if _on_cpu():
        # Over three axes of pixels, XLA would copy a factor to turn it around.
        rows, pulled = (a.reshape(-1, a.shape[-1]) for a in (x, gradient))
        return (pulled @ kernel.T).reshape(x.shape), rows.T @ pulled
    dx, dkernel = jax.vjp(_product, x, kernel)[1](gradient)
    if platforms.traced_for() == "tpu":
        wide, dkernel = jax.vjp(_product_as_convolution, x, kernel)[1](gradient)
        dx = dx if kernel.shape[1] < _FEW_OUTPUTS else wide
    return dx, dkernel


channel_product.defvjp(_channel_product_forward, _channel_product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    form = conv_forms.cpu_form(x, kernel.shape, window)
    if form is conv_forms.native:
        return form(x, kernel, window)
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: form(x, kernel, window),
        default=lambda x, kernel: conv_forms.native(x, kernel, window),
    )


def _forward(x, kernel, window):
    return _conv(x, kernel, window), (x, kernel)


def _on_cpu() -> bool:
    return platforms.traced_for() == "cpu"


def _backward(window, saved, gradient):
    x, kernel = saved
    form: conv_forms.Form = conv_forms.native
    if _on_cpu():
        form = conv_forms.cpu_form(x, kernel.shape, window)
    if form in conv_forms.DIFFERENTIATED or not _on_cpu():
        return jax.vjp(lambda x, w: form(x, w, window), x, kernel)[1](gradient)
    dx = conv_forms.cpu_map_gradient(x, kernel, gradient, window)
    dkernel = conv_forms.cpu_kernel_gradient(
        x, gradient, shape=kernel.shape, window=window
    )
    return dx, dkernel


_conv.defvjp(_forward, _backward)


def locally_connected(x: jax.Array, kernels: jax.Array) -> jax.Array:
    """A convolution without shared parameters: every location has its own kernel.

    `x` [N, H, W, I]; `kernels` [H - kh + 1, W - kw + 1, kh, kw, I, O], the first two
    axes the location. No padding, stride 1. With equal kernels it is :func:`conv2d`.

    Raises:
      ValueError: there are not as many kernels as locations.
    """
    rows, columns, height, width = kernels.shape[:4]
    sides = rows + height - 1, columns + width - 1
    if x.shape[1:3] != sides:
        raise ValueError(
            f"{rows} x {columns} kernels of {height} x {width} read a map of "
            f"{sides[0]} x {sides[1]}, found {x.shape[1]} x {x.shape[2]}"
        )
    taps = [
        x[:, a : a + rows, b : b + columns]
        for a, b in itertools.product(range(height), range(width))
    ]
    kernels = kernels.reshape(rows, columns, height * width, *kernels.shape[4:])
    return jnp.einsum("nhwti,hwtio->nhwo", jnp.stack(taps, axis=3), kernels)


def conv_transpose(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int,
    padding: int = 0,
    output_padding: int = 0,
) -> jax.Array:
    """Transposed convolution as in Caffe and PyTorch, output side s(n-1) + k - 2p + o.

    Location i of `x` [N, H, W, I] adds ``x[i] @ kernel[a]`` to output ``s*i + a - p``:
    `kernel` [k, k, I, O] is stored in scatter order (``lax.conv_transpose`` would
    want it flipped). `output_padding` o keeps so many more rows at the bottom and
    columns at the right: a convolution of stride s maps s different sides to one, and
    this says which of them is wanted.

    Raises:
      ValueError: an output padding below 0, or not below the stride.
    """
    if not 0 <= output_padding < max(stride, 1):
        raise ValueError(
            f"output padding {output_padding}, expected 0 to {stride - 1}: below the "
            "stride"
        )
    product = functools.partial(
        _conv_transpose, stride=stride, padding=padding, more=output_padding
    )
    return with_kernel(product, x, kernel)


def _conv_transpose(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: int, more: int
) -> jax.Array:
    size = kernel.shape[0]
    if conv_forms.is_native_only():
        return conv_forms.transposed_native(x, kernel, (stride, padding, more))
    if x.shape[1:3] == (1, 1):
        # A single location gives the same output at any stride: one matrix product.
        return conv_forms.transposed_product(x, kernel, (size, padding, more))
    if stride == 1 and padding < size and not more:
        return conv2d(x, kernel[::-1, ::-1], padding=size - 1 - padding)
    return _transposed(x, kernel, (stride, padding, more))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _transposed(
    x: jax.Array, kernel: jax.Array, how: tuple[int, int, int]
) -> jax.Array:
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: conv_forms.transposed_product(x, kernel, how),
        default=lambda x, kernel: conv_forms.transposed_native(x, kernel, how),
    )


def _transposed_forward(x, kernel, how):
    return _transposed(x, kernel, how), (x, kernel)


def _transposed_backward(how, saved, gradient):
    name = "transposed_product" if _on_cpu() else "transposed_native"
    form = getattr(conv_forms, name)
    return jax.vjp(lambda x, kernel: form(x, kernel, how), *saved)[1](gradient)


_transposed.defvjp(_transposed_forward, _transposed_backward)


def bilinear_taps(size: int) -> np.ndarray:
    """Weights [size] of the 1-D bilinear interpolation kernel (FCN's filler).

    1 - |i - c| / f with f = (size + 1) // 2 and c the center the kernel has with a
    stride of f: f - 1 for odd sizes, f - 1/2 for even ones.
    """
    factor = (size + 1) // 2
    center = factor - 1 if size % 2 else factor - 0.5
    return 1 - np.abs(np.arange(size) - center) / factor


def bilinear_kernel(size: int) -> np.ndarray:
    """The 2-D bilinear kernel [size, size]: outer product of :func:`bilinear_taps`."""
    taps = bilinear_taps(size)
    return np.outer(taps, taps)


def bilinear_upsample(
    x: jax.Array,
    size: int,
    *,
    stride: int,
    offset: int = 0,
    crop: tuple[int, int] | None = None,
) -> jax.Array:
    """Transposed convolution of each channel with the fixed bilinear kernel.

    `x` [N, H, W, C]; kernel side `size`. Only the window of `crop` (h, w) pixels that
    starts at `offset` on both axes is computed (all of it where `crop` is None).
    Border pixels are not renormalized, as in Caffe.

    Raises:
      ValueError: the window does not fit in the upsampled map.
    """
    taps = bilinear_taps(size)
    matrices = []
    for axis in (0, 1):
        side = x.shape[1 + axis]
        full = np.zeros((geometry.deconv_size(side, size, stride=stride), side))
        for i in range(side):
            full[stride * i : stride * i + size, i] = taps
        stop = len(full) if crop is None else offset + crop[axis]
        if stop > len(full):
            raise ValueError(f"crop up to {stop} of an upsampled side of {len(full)}")
        matrices.append(full[offset:stop])
    return resize.separable_product(x, *matrices)
