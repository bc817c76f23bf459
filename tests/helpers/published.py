"""Published files made here, their import, and what is compared.

Arrays are random, under the names and with the layouts, orders and kinds of shapes of
the published files. What our network computes with the imported arrays is compared
with the published network, written by its authors' layer names in the operators of
ops_numpy.py and, where PyTorch is installed, ops_torch.py.
"""

import functools
import importlib
import pickle
import struct
import zipfile

import jax
import numpy as np
import pytest

from experiments.shared import initialization
from segjax import config as config_lib
from segjax import models, weights
from segjax.models import classifier
from segjax.weights import sources

# Runs a test with each implementation of the published operators.
each_library = pytest.mark.parametrize("library", ["numpy", "torch"])


def operators(library):
    if library == "torch":
        pytest.importorskip("torch")
    return importlib.import_module(f"ops_{library}")


class Maker:
    """Random arrays under the names a program gives them, in order."""

    def __init__(self, seed=0, full=False):
        """`full`: arrays of zeros that take no memory, for the published sizes."""
        self.rng = np.random.default_rng(seed)
        self.arrays = {}
        self.full = full

    def add(self, name, *shape, low=None, fan_in=2):
        """Normal of variance 2 / `fan_in`, or uniform from `low` up."""
        if self.full:
            array = np.broadcast_to(np.float32(low or 0), shape)
        elif low is not None:
            array = self.rng.uniform(low, low + 1, size=shape)
        else:
            array = self.rng.normal(size=shape) * np.sqrt(2 / fan_in)
        self.arrays[name] = array.astype(np.float32, copy=False)

    def caffe(self, name, *shape, bias=True):
        self.add(f"{name}[0]", *shape, fan_in=np.prod(shape[1:]))
        if bias:
            self.add(f"{name}[1]", shape[0])

    def caffe_norm(self, norm, scale, n):
        self.add(f"{norm}[0]", n)
        self.add(f"{norm}[1]", n, low=1.0)
        self.arrays[f"{norm}[2]"] = np.float32([2.5])
        self.add(f"{scale}[0]", n)
        self.add(f"{scale}[1]", n)

    def psp_norm(self, name, n):
        for index, low in enumerate((None, None, None, 1.0)):
            self.add(f"{name}[{index}]", 1, n, 1, 1, low=low)

    def torch(self, name, *shape, bias=False):
        self.add(f"{name}.weight", *shape, fan_in=np.prod(shape[1:]))
        if bias:
            self.add(f"{name}.bias", shape[0])

    def torch_norm(self, name, n):
        for kind in ("weight", "bias", "running_mean"):
            self.add(f"{name}.{kind}", n)
        self.add(f"{name}.running_var", n, low=1.0)
        self.arrays[f"{name}.num_batches_tracked"] = np.array(7)

    def keras(self, name, *shape):
        self.add(f"{name}/kernel", *shape, fan_in=np.prod(shape[:-1]))
        self.add(f"{name}/bias", shape[-1])

    def keras_norm(self, name, n):
        for kind in ("gamma", "beta", "moving_mean"):
            self.add(f"{name}/{kind}", n)
        self.add(f"{name}/moving_variance", n, low=0.01)


def vgg_layers(widths):
    """(name, out, in) of VGG16's 13 convolutions."""
    inputs = 3
    for stage, (count, width) in enumerate(zip((2, 2, 3, 3, 3), widths), start=1):
        for index in range(1, count + 1):
            yield f"conv{stage}_{index}", width, inputs
            inputs = width


def vgg_caffe(maker, widths, fc=0, fc_kernel=7):
    for name, out, inputs in vgg_layers(widths):
        maker.caffe(name, out, inputs, 3, 3)
    if fc:
        maker.caffe("fc6", fc, widths[-1], fc_kernel, fc_kernel)
        maker.caffe("fc7", fc, fc, 1, 1)


def bilinear_blob(channels, size):
    """As FCN's surgery fills it: dense, the interpolation on the diagonal."""
    factor = (size + 1) // 2
    center = factor - 1 if size % 2 else factor - 0.5
    taps = 1 - abs(np.arange(size) - center) / factor
    blob = np.zeros((channels, channels, size, size), np.float32)
    blob[range(channels), range(channels)] = np.outer(taps, taps)
    return blob


def save_pth(path, state, legacy=False):
    """What torch.save writes for a state dict of float32 and int64 tensors."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def sizes(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    ordered = b"ccollections\nOrderedDict\n)R"
    program = b"\x80\x02" + ordered + b"("
    for key, (name, array) in enumerate(state.items()):
        kind = b"LongStorage" if array.dtype == np.int64 else b"FloatStorage"
        strides = np.cumprod([1, *array.shape[:0:-1]])[::-1] if array.ndim else ()
        program += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        program += text("storage") + b"ctorch\n" + kind + b"\n" + text(str(key))
        program += text("cpu") + b"J" + struct.pack("<i", array.size) + b"tQK\x00"
        program += sizes(array.shape) + sizes(strides) + b"\x89" + ordered + b"tR"
    program += b"u."
    data = [np.ascontiguousarray(array).tobytes() for array in state.values()]
    if legacy:
        first = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        parts = [pickle.dumps(value, 2) for value in first]
        parts += [program, pickle.dumps([str(key) for key in range(len(data))], 2)]
        for array, values in zip(state.values(), data):
            parts.append(struct.pack("<q", array.size) + values)
        path.write_bytes(b"".join(parts))
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for key, values in enumerate(data):
            archive.writestr(f"archive/data/{key}", values)
        archive.writestr("archive/version", "3\n")


# --- images ---


def picture(height, width):
    return np.random.default_rng(5).integers(0, 256, (1, height, width, 3), np.uint8)


def caffe_input(images):
    """BGR planes minus the mean that our "caffe" images subtract."""
    x = images[..., ::-1].astype(float) - [104.00699, 116.66877, 122.67892]
    return x.transpose(0, 3, 1, 2)


def torch_input(images):
    x = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return x.transpose(0, 3, 1, 2)


# --- our side ---


def make_config(model, **fields):
    return config_lib.make(model_name=model, model=fields)


@functools.cache
def _known(model, fields):
    """All fields of a model, and its shapes: tracing takes most of the time here."""
    if model == "classifier":  # no segmentation network
        network = functools.partial(classifier.Classifier, **dict(fields))
        names = classifier.Classifier.__annotations__
        known = {name: getattr(network(2), name) for name in names}
        images = np.zeros((1, 224, 224, 3), np.uint8)

        def shapes_of(classes, channels=3):
            keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
            init = functools.partial(network(classes).init, train=True)
            flat = weights.flatten(jax.eval_shape(init, keys, images))
            return {name: tuple(leaf.shape) for name, leaf in flat.items()}

    else:
        config = make_config(model, **dict(fields))
        known = initialization.model_info(config).fields
        shapes_of = initialization.shapes_of(config)
    return known, functools.cache(shapes_of)


def known_shapes(model, fields, classes):
    """The shapes of all parameters and statistics of a model."""
    return _known(model, tuple(fields.items()))[1](classes)


def run_import(arrays, model, images=sources.ILSVRC, **fields):
    """Import for `model` with these fields; the whole way but for the files.

    `images`: what our model sees; if they are the source's nothing is folded in, so
    that padded borders agree too.
    """
    known, shapes_of = _known(model, tuple(fields.items()))
    info = weights.ModelInfo(model, known, images)
    return weights.import_arrays(arrays, info, shapes_of=shapes_of)


@functools.cache
def _runner(model, classes, fields):
    network = models.MODELS.get(model, classifier.Classifier)
    network = network(num_classes=classes, **dict(fields))
    return jax.jit(lambda tree, images: network.apply(tree, images, train=False)[0])


def logits(imported, images, model, **fields):
    """What our model computes, filled with random values where the file had none."""
    classes, fields = imported.num_classes or 2, tuple(fields.items())
    _, shapes_of = _known(model, fields)
    rng, tree = np.random.default_rng(1), {}
    for name, shape in shapes_of(classes).items():
        *path, last = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        array = imported.result.arrays.get(name)
        node[last] = rng.uniform(1, 2, shape) if array is None else array
    return np.asarray(_runner(model, classes, fields)(tree, images)).transpose(
        0, 3, 1, 2
    )


def assert_close(found, expected):
    """To 1e-4 of the largest score, which must not be nearly all that there is."""
    scale = np.abs(expected).max()
    assert expected.std() > 1e-3 * scale > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale)


def check_complete(arrays, imported, ignored=(), missing=()):
    """Every array of the file is used exactly once, every one of ours filled once.

    What was only moved is moved back, to the same bits.
    """
    result = imported.result
    used = [source for row in result.rows for source in row.sources]
    used += [*result.checked, *result.ignored]
    assert sorted(used) == sorted(arrays)
    assert sorted(result.ignored) == sorted(ignored)
    assert sorted(result.missing) == sorted(missing)
    assert len({row.target for row in result.rows}) == len(result.rows)
    assert all(a.dtype == np.float32 for a in result.arrays.values())
    assert list(weights.describe(imported))
    axes = {"OIHW to HWIO": (3, 2, 0, 1), "IOHW to HWIO": (2, 3, 0, 1)}
    for row in result.rows:
        steps = [step for step in row.how.split(", ") if step]
        if len(row.sources) == 1 and set(steps) <= {*axes, "BGR to RGB"}:
            ours = result.arrays[row.target]
            for step in reversed(steps):
                ours = ours.transpose(axes[step]) if step in axes else ours[:, :, ::-1]
            theirs = arrays[row.sources[0]]
            assert ours.reshape(theirs.shape).tobytes() == theirs.tobytes(), row.target
