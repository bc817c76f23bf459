"""ops_numpy.py's functions by PyTorch: arrays in, arrays out, float64."""

import functools

import numpy as np
import torch
from torch.nn import functional


def _torch(function):
    """`function` of tensors as one of arrays."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        values = function(*map(_tensor, args), **kwargs)
        several = isinstance(values, tuple)
        return tuple(v.numpy() for v in values) if several else values.numpy()

    return wrapped


def _tensor(value):
    if not isinstance(value, np.ndarray):
        return value
    kind = np.int64 if value.dtype.kind == "i" else np.float64
    return torch.from_numpy(np.array(value, kind))


@_torch
def pad(x, width, value=0.0):
    return functional.pad(x, (width,) * 4, value=value)


@_torch
def conv(x, kernel, bias=None, stride=1, padding=0, dilation=1, groups=1):
    bias = bias if bias is None else bias.reshape(-1)
    return functional.conv2d(x, kernel, bias, stride, padding, dilation, groups)


@_torch
def deconv(x, kernel, bias=None, stride=1, padding=0):
    bias = bias if bias is None else bias.reshape(-1)
    return functional.conv_transpose2d(x, kernel, bias, stride, padding)


@_torch
def norm(x, scale, bias, mean, var, epsilon=1e-5):
    scale, bias, mean, var = (a.reshape(-1) for a in (scale, bias, mean, var))
    return functional.batch_norm(x, mean, var, scale, bias, eps=epsilon)


@_torch
def max_pool(x, size, stride, padding=0, ceil=True):
    return functional.max_pool2d(x, size, stride, padding, ceil_mode=ceil)


@_torch
def avg_pool(x, size, stride, padding=0, ceil=True):
    return functional.avg_pool2d(x, size, stride, padding, ceil_mode=ceil)


@_torch
def adaptive_pool(x, bins, kind="avg"):
    if kind == "avg":
        return functional.adaptive_avg_pool2d(x, bins)
    return functional.adaptive_max_pool2d(x, bins)


@_torch
def pool_switches(x, size):
    return functional.max_pool2d(x, size, size, ceil_mode=True, return_indices=True)


@_torch
def unpool(x, switches, size):
    window = -(-size[0] // x.shape[2])
    return functional.max_unpool2d(x, switches, window, output_size=size)


@_torch
def lrn(x, size=5, alpha=1e-4, beta=0.75, k=1.0):
    return functional.local_response_norm(x, size, alpha, beta, k)


@_torch
def resize(x, size, align_corners=True):
    return functional.interpolate(
        x, tuple(size), mode="bilinear", align_corners=align_corners
    )


@_torch
def rescale(x, scale):
    return functional.interpolate(
        x, scale_factor=scale, mode="bilinear", align_corners=False
    )


@_torch
def relu(x):
    return functional.relu(x)


@_torch
def softmax(x):
    return functional.softmax(x, 1)
