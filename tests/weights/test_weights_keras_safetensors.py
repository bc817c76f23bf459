"""Keras' HDF5 and safetensors files."""

import json
import struct
import sys

import numpy as np
import pytest
from published import Maker

from segjax import weights
from segjax.errors import UserError
from segjax.weights.readers import keras, safetensors_file

# --- Keras ---

NEW = {
    kind: kind
    for kind in ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
}
OLD = NEW | {"kernel": "W_1", "bias": "b_1"}
OLD |= {"moving_mean": "running_mean", "moving_variance": "running_std"}


def write_keras(path, arrays, kinds, nested, group=""):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file = file.create_group(group) if group else file
        layers = list(dict.fromkeys(name.rpartition("/")[0] for name in arrays))
        file.attrs["layer_names"] = [name.encode() for name in ["input_1", *layers]]
        file.create_group("input_1").attrs["weight_names"] = np.array([], "S1")
        for layer in layers:
            group, stored = file.create_group(layer), []
            for name, array in arrays.items():
                if name.rpartition("/")[0] == layer:
                    kind = kinds[name.rpartition("/")[2]]
                    separator = "/" if nested else "_"
                    stored.append(f"{layer}{separator}{kind}:0")
                    group.create_dataset(stored[-1], data=array)
            group.attrs["weight_names"] = [name.encode() for name in stored]


def keras_arrays():
    maker = Maker()
    maker.keras("res2a_branch2a", 1, 1, 2, 3)
    maker.keras_norm("bn2a_branch2a", 3)
    return maker.arrays


@pytest.mark.parametrize(
    "kinds, nested, group",
    [(NEW, True, ""), (OLD, False, ""), (NEW, True, "model_weights")],
)
def test_keras_file(tmp_path, kinds, nested, group):
    arrays, path = keras_arrays(), tmp_path / "a.h5"
    write_keras(path, arrays, kinds, nested, group)
    found = weights.read(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].tobytes() == array.tobytes()


def test_unexpected_keras_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    arrays, path = keras_arrays(), tmp_path / "a.h5"

    def refused(match):
        with pytest.raises(UserError, match=match) as error:
            weights.read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    def change(function):
        write_keras(path, arrays, NEW, nested=True)
        with h5py.File(path, "r+") as file:
            function(file)

    write_keras(path, arrays, NEW | {"kernel": "depthwise"}, nested=True)
    refused("unknown array 'res2a_branch2a/depthwise:0'")
    change(lambda file: file.attrs.pop("layer_names"))
    refused("has no layer_names")
    change(lambda file: file.attrs.update(layer_names=7))
    refused("not a readable HDF5 file")
    change(lambda file: file.attrs.update(layer_names=[b"\xff\xfe"]))
    refused("not a readable HDF5 file")
    change(lambda file: file["res2a_branch2a"].attrs.pop("weight_names"))
    refused("not a readable HDF5 file")
    twice = [b"res2a_branch2a/kernel:0"] * 2
    change(lambda file: file["res2a_branch2a"].attrs.update(weight_names=twice))
    refused("two arrays like 'res2a_branch2a/kernel:0'")
    kernel = "res2a_branch2a/res2a_branch2a/kernel:0"

    def replace(create):
        def function(file):
            del file[kernel]
            create(file)

        change(function)

    replace(lambda file: file.create_group(kernel))
    refused("not a readable HDF5 file")
    replace(lambda file: file.create_dataset(kernel, data=["a", "b"]))
    refused("expected numbers")
    # Four terabytes in a few bytes.
    huge = dict(shape=(2**20, 2**20), dtype="f4", chunks=(64, 64))
    replace(lambda file: file.create_dataset(kernel, **huge))
    refused("announces 4,398,046,511,104 bytes")
    write_keras(path, arrays, NEW, nested=True)
    data = path.read_bytes()
    for size in range(0, len(data), 997):
        path.write_bytes(data[:size])
        refused("not a readable HDF5 file")
    path.unlink()
    with pytest.raises(UserError, match="not found"):
        keras.read(path)
    path = tmp_path / "vgg16_weights_tf_dim_ordering_th_kernels.h5"
    write_keras(path, arrays, NEW, nested=True)
    refused("kernels of Theano are turned around")


# --- safetensors ---


def test_safetensors_both_ways(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "new" / "a.safetensors"
    arrays = {
        "w": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
        "view": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "scalar": np.array(3),
    }
    safetensors_file.write(path, arrays, {"source": "here"})
    found, metadata = safetensors_file.read(path)
    assert metadata == {"source": "here"} and found.keys() == arrays.keys()
    for name, array in weights.read(path).items():
        assert (array.dtype, array.shape) == (arrays[name].dtype, arrays[name].shape)
        assert array.tobytes() == arrays[name].tobytes()
    with pytest.raises(UserError, match="cannot write"):
        safetensors_file.write(path / "below", arrays, {})
    assert not list(tmp_path.rglob("*.partial"))


def safetensors_bytes(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def entry(kind, shape, size):
    return {"w": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}


def test_bfloat16(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(entry("BF16", [2], 4), b"\x80\x3f\x00\xc0"))
    found = weights.read(path)["w"]
    assert found.dtype == np.float32 and found.tolist() == [1.0, -2.0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x10" + b"\0" * 20,
        struct.pack("<Q", 2**60) + b"{}",
        safetensors_bytes(b"[]"),
        safetensors_bytes(b"\xff" * 8),
        safetensors_bytes(entry("F32", [2**40], 4), b"1234"),
        safetensors_bytes(entry("F32", [1], 4), b"12"),
        safetensors_bytes(entry("F33", [1], 4), b"1234"),
    ],
)
def test_damaged_safetensors(tmp_path, content):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable safetensors file") as error:
        weights.read(path)
    assert "\n" not in str(error.value)


def test_readers_without_their_packages(tmp_path, monkeypatch):
    for suffix, package in ((".h5", "h5py"), (".safetensors", "safetensors")):
        path = tmp_path / f"a{suffix}"
        path.touch()
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=r"pip install 'segjax\[weights\]'"):
            weights.read(path)


def test_keras_files_do_not_read_other_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    arrays, path, secret = keras_arrays(), tmp_path / "a.h5", tmp_path / "secret"
    secret.write_bytes(np.arange(6, dtype=np.float32).tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.zeros((1, 1, 2, 3), np.float32)
    kernel = "res2a_branch2a/res2a_branch2a/kernel:0"
    layout = h5py.VirtualLayout((1, 1, 2, 3), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", (1, 1, 2, 3))
    external = [(str(secret), 0, 24)]
    creations = {
        "external": lambda file: file.create_dataset(
            kernel, (1, 1, 2, 3), "f4", external=external
        ),
        "virtual": lambda file: file.create_virtual_dataset(kernel, layout),
        "link": lambda file: file.__setitem__(
            kernel, h5py.ExternalLink(str(tmp_path / "other.h5"), "secret")
        ),
        "soft": lambda file: file.__setitem__(kernel, h5py.SoftLink("/bn2a_branch2a")),
    }
    for name, create in creations.items():
        write_keras(path, arrays, NEW, nested=True)
        with h5py.File(path, "r+") as file:
            del file[kernel]
            create(file)
            if name in ("external", "virtual", "link"):  # what h5py itself would give
                assert file[kernel].shape == (1, 1, 2, 3)
        with pytest.raises(UserError, match=r"a\.h5 is refused: ") as error:
            weights.read(path)
        assert "\n" not in str(error.value)
    write_keras(path, arrays, NEW, nested=True)
    with h5py.File(path, "r+") as file:
        file["elsewhere"] = h5py.ExternalLink(str(path), "/")
        file.attrs["layer_names"] = [b"elsewhere"]
    with pytest.raises(UserError, match="'elsewhere' is missing or is a link"):
        weights.read(path)
    # One array under many names.
    write_keras(path, arrays, NEW, nested=True)
    with h5py.File(path, "r+") as file:
        big = file.create_dataset("big", data=np.zeros((1, 1, 2, 3000), np.float32))
        names = [f"l{i}" for i in range(100)]
        for name in names:
            group = file.create_group(name)
            group["kernel:0"] = big
            group.attrs["weight_names"] = [b"kernel:0"]
        file.attrs["layer_names"] = [name.encode() for name in names]
    with pytest.raises(UserError, match="announces 24,000 bytes"):
        weights.read(path)


@pytest.mark.parametrize(
    "kind, shape, size", [("F8_E4M3", [4], 4), ("F32", [1] * 70, 4), ("F32", [0], 0)]
)
def test_safetensors_that_numpy_cannot_hold(tmp_path, kind, shape, size):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes(entry(kind, shape, size), bytes(size)))
    if size == 0:
        assert weights.read(path)["w"].shape == (0,)
        return
    with pytest.raises(UserError, match=r"a\.safetensors") as error:
        weights.read(path)
    assert "\n" not in str(error.value)
