"""The operators of the published networks in plain numpy: [N, C, H, W], float64.

Kernels are [out, in / groups, h, w], transposed ones [in, out, h, w]. The same
functions with PyTorch are in ops_torch.py.
"""

import math

import numpy as np


def _windows(x, size, stride, dilation=1):
    """[N, C, h, w, size, size]: what a kernel sees at each of its positions."""
    reach = dilation * (size - 1) + 1
    windows = np.lib.stride_tricks.sliding_window_view(x, (reach, reach), (2, 3))
    return windows[:, :, ::stride, ::stride, ::dilation, ::dilation]


def pad(x, width, value=0.0):
    widths = ((0, 0), (0, 0), (width, width), (width, width))
    return np.pad(x, widths, constant_values=value)


def conv(x, kernel, bias=None, stride=1, padding=0, dilation=1, groups=1):
    x, parts = pad(np.asarray(x, np.float64), padding), []
    for part, weights in zip(np.split(x, groups, 1), np.split(kernel, groups)):
        windows = _windows(part, kernel.shape[2], stride, dilation)
        parts.append(np.einsum("nihwab,oiab->nohw", windows, weights, optimize=True))
    y = np.concatenate(parts, 1)
    return y if bias is None else y + np.reshape(bias, (-1, 1, 1))


def deconv(x, kernel, bias=None, stride=1, padding=0):
    """Every input cell adds its kernel to the output; `padding` is cut off."""
    n, _, h, w = x.shape
    size = kernel.shape[2]
    y = np.zeros((n, kernel.shape[1], stride * (h - 1) + size, stride * (w - 1) + size))
    for i in range(h):
        for j in range(w):
            part = np.einsum("ni,ioab->noab", x[:, :, i, j], kernel)
            a, b = stride * i, stride * j
            y[:, :, a : a + size, b : b + size] += part
    y = y[:, :, padding : y.shape[2] - padding, padding : y.shape[3] - padding]
    return y if bias is None else y + np.reshape(bias, (-1, 1, 1))


def norm(x, scale, bias, mean, var, epsilon=1e-5):
    scale, bias, mean, var = (
        np.reshape(a, (-1, 1, 1)) for a in (scale, bias, mean, var)
    )
    return (x - mean) / np.sqrt(var + epsilon) * scale + bias


def _sides(x, size, stride, padding, ceil):
    """Caffe's and PyTorch's: the last window starts before the right padding."""
    for n in x.shape[2:]:
        count = (n + 2 * padding - size) / stride + 1
        count = math.ceil(count) if ceil else math.floor(count)
        yield count - (padding > 0 and (count - 1) * stride >= n + padding)


def _pool(x, size, stride, padding, ceil, fill):
    """The windows of x, which is extended by `fill` as far as they reach."""
    out = list(_sides(x, size, stride, padding, ceil))
    missing = [(m - 1) * stride + size - padding - n for m, n in zip(out, x.shape[2:])]
    widths = [(0, 0), (0, 0), *((padding, max(0, more)) for more in missing)]
    windows = _windows(np.pad(x, widths, constant_values=fill), size, stride)
    return windows[:, :, : out[0], : out[1]]


def max_pool(x, size, stride, padding=0, ceil=True):
    return _pool(x, size, stride, padding, ceil, -np.inf).max((4, 5))


def avg_pool(x, size, stride, padding=0, ceil=True):
    """Padding counts, what lies beyond it does not."""
    inside = pad(np.ones_like(x), padding, value=1.0)
    count = _pool(inside, size, stride, 0, True, 0.0).sum((4, 5))
    total = _pool(x, size, stride, padding, ceil, 0.0).sum((4, 5))
    return total / count[:, :, : total.shape[2], : total.shape[3]]


def adaptive_pool(x, bins, kind="avg"):
    y = np.zeros((*x.shape[:2], bins, bins))
    edges = [
        [(i * n // bins, -(-(i + 1) * n // bins)) for i in range(bins)]
        for n in x.shape[2:]
    ]
    for i, (a, b) in enumerate(edges[0]):
        for j, (c, d) in enumerate(edges[1]):
            part = x[:, :, a:b, c:d]
            y[:, :, i, j] = part.mean((2, 3)) if kind == "avg" else part.max((2, 3))
    return y


def pool_switches(x, size):
    """Maxima of windows that do not overlap, and their index h * W + w in the map."""
    n, c, height, width = x.shape
    out = list(_sides(x, size, size, 0, ceil=True))
    y, switches = np.zeros((n, c, *out)), np.zeros((n, c, *out), int)
    for i in range(out[0]):
        for j in range(out[1]):
            rows = slice(i * size, min((i + 1) * size, height))
            columns = slice(j * size, min((j + 1) * size, width))
            part = x[:, :, rows, columns]
            place = part.reshape(n, c, -1).argmax(2)  # the first of equal ones
            row, column = np.divmod(place, part.shape[3])
            y[:, :, i, j] = part.max((2, 3))
            switches[:, :, i, j] = (row + i * size) * width + column + j * size
    return y, switches


def unpool(x, switches, size):
    """`size`: (H, W) of the result."""
    n, c = x.shape[:2]
    y = np.zeros((n, c, size[0] * size[1]))
    np.put_along_axis(y, switches.reshape(n, c, -1), x.reshape(n, c, -1), 2)
    return y.reshape(n, c, *size)


def lrn(x, size=5, alpha=1e-4, beta=0.75, k=1.0):
    square = np.pad(np.square(x), ((0, 0), (size // 2, size // 2), (0, 0), (0, 0)))
    total = sum(square[:, i : i + x.shape[1]] for i in range(size))
    return x * (k + alpha / size * total) ** -beta


def resize(x, size, align_corners=True):
    """Bilinear; otherwise with half-pixel centers."""
    for axis, target in zip((2, 3), size):
        source = x.shape[axis]
        if align_corners:
            position = np.arange(target) * ((source - 1) / max(target - 1, 1))
        else:
            position = (np.arange(target) + 0.5) * (source / target) - 0.5
        position = np.clip(position, 0, source - 1)[:, None]
        matrix = np.maximum(1 - np.abs(position - np.arange(source)), 0)
        x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
    return x


def rescale(x, scale):
    """Bilinear with half-pixel centers, exactly by `scale`; sides are rounded down."""
    for axis in (2, 3):
        source = x.shape[axis]
        position = (np.arange(int(source * scale)) + 0.5) / scale - 0.5
        position = np.clip(position, 0, source - 1)[:, None]
        matrix = np.maximum(1 - np.abs(position - np.arange(source)), 0)
        x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
    return x


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    x = np.exp(x - x.max(1, keepdims=True))
    return x / x.sum(1, keepdims=True)
