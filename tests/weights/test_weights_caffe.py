"""Caffe's file format: what Google's protobuf writes, and damaged files."""

import struct

import numpy as np
import pytest
from published import Maker

from segjax import weights
from segjax.errors import UserError
from segjax.weights.readers import caffe


def schema(packed):
    """Caffe's messages as Google's protobuf knows them; None without it."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name=f"caffe_{packed}.proto", package=f"caffe_{packed}", syntax="proto2"
    )
    kinds = descriptor_pb2.FieldDescriptorProto

    def message(name, *fields):
        proto = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            item = proto.field.add(name=field, number=number)
            item.label = 3 if repeated else 1
            if isinstance(kind, str):
                item.type, item.type_name = (
                    kinds.TYPE_MESSAGE,
                    f".{file.package}.{kind}",
                )
            else:
                item.type = kind
                if repeated:
                    item.options.packed = packed

    message("BlobShape", ("dim", 1, kinds.TYPE_INT64, True))
    message(
        "BlobProto",
        *((n, i, kinds.TYPE_INT32, False) for i, n in enumerate(LEGACY, start=1)),
        ("data", 5, kinds.TYPE_FLOAT, True),
        ("diff", 6, kinds.TYPE_FLOAT, True),
        ("shape", 7, "BlobShape", False),
        ("double_data", 8, kinds.TYPE_DOUBLE, True),
    )
    message(
        "LayerParameter",
        ("name", 1, kinds.TYPE_STRING, False),
        ("type", 2, kinds.TYPE_STRING, False),
        ("loss_weight", 5, kinds.TYPE_FLOAT, True),
        ("blobs", 7, "BlobProto", True),
    )
    message(
        "V1LayerParameter",
        ("type", 5, kinds.TYPE_INT32, False),
        ("name", 4, kinds.TYPE_STRING, False),
        ("blobs", 6, "BlobProto", True),
    )
    message(
        "NetParameter",
        ("name", 1, kinds.TYPE_STRING, False),
        ("layers", 2, "V1LayerParameter", True),
        ("layer", 100, "LayerParameter", True),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(
        file.SerializeToString()
    )
    found = pool.FindMessageTypeByName(f"{file.package}.NetParameter")
    return message_factory.GetMessageClass(found)


LEGACY = ("num", "channels", "height", "width")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("field", ["layer", "layers"])
@pytest.mark.parametrize("double", [True, False])
def test_reads_what_protobuf_writes(tmp_path, packed, field, double):
    rng = np.random.default_rng(0)
    blobs = {
        "conv[0]": rng.normal(size=(3, 2, 1, 2)),
        "conv[1]": rng.normal(size=(1, 1, 1, 3)),
    }
    net = schema(packed)(name="a net")
    getattr(net, field).add(name="data")  # no arrays
    layer = getattr(net, field).add(name="conv")
    for array in blobs.values():
        blob = layer.blobs.add()
        if field == "layer":
            blob.shape.dim.extend(array.shape)
        else:
            for name, side in zip(LEGACY, array.shape):
                setattr(blob, name, side)
        (blob.double_data if double else blob.data).extend(array.ravel())
        blob.diff.extend([1.0] * 5)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(net.SerializeToString())
    found = caffe.read(path)
    assert list(found) == list(blobs)
    for name, array in blobs.items():
        kind = np.float64 if double else np.float32
        assert found[name].dtype == kind
        np.testing.assert_array_equal(found[name], array.astype(kind))


def test_caffemodel_round_trip(tmp_path):
    maker = Maker()
    maker.caffe("inception_3a/1x1", 300, 2, 1, 1)
    maker.caffe_norm("bn", "scale", 4)
    maker.arrays["wide[0]"] = np.float64([[1 / 3]])
    maker.arrays["scalar[0]"] = np.float32(3.0)
    path = tmp_path / "a.caffemodel"
    caffe.write(path, maker.arrays)
    found = caffe.read(path)
    assert list(found) == list(maker.arrays)
    for name, array in maker.arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
    net = schema(True)()
    net.ParseFromString(path.read_bytes())
    assert [layer.name for layer in net.layer] == [
        *("inception_3a/1x1", "bn", "scale", "wide", "scalar")
    ]
    with pytest.raises(ValueError, match="comes after"):
        caffe.write(path, {"conv[1]": np.zeros(1, np.float32)})


def test_damaged_caffemodel(tmp_path):
    maker = Maker()
    maker.caffe("first", 2, 3, 1, 1)
    maker.caffe("second", 2, 2, 1, 1)
    path = tmp_path / "a.caffemodel"
    caffe.write(path, maker.arrays)
    data = path.read_bytes()
    complete = 0
    for size in range(len(data)):
        path.write_bytes(data[:size])
        try:
            found = caffe.read(path)
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
        else:  # cut between two layers
            complete += 1
            assert list(found) == ["first[0]", "first[1]"]
    assert complete == 1
    rng = np.random.default_rng(0)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:  # anything but another exception
            caffe.read(path)
        except UserError as error:
            assert str(path) in str(error)
    path.write_bytes(data + data)
    with pytest.raises(UserError, match="two layers with arrays are called 'first'"):
        caffe.read(path)
    with pytest.raises(UserError, match="not found"):
        caffe.read(tmp_path / "none.caffemodel")
    with pytest.raises(UserError, match=r"'.npy'; known: .caffemodel, .pth"):
        weights.read(tmp_path / "a.npy")


def message(number, body):
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(body)) + body


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


ONE = struct.pack("<f", 1.0)
BLOB = message(7, message(1, b"\x01")) + message(5, ONE)
HOSTILE = {
    # what is wrong with a layer -> (its bytes, what is said)
    "a length beyond the file": (varint(100 << 3 | 2) + varint(2**62), "announced"),
    "a number that does not end": (b"\xff" * 30, "ends within a number"),
    "groups": (b"\x0b" * 9, "unknown wire type 3"),
    "a huge shape": (
        message(100, message(7, message(7, message(1, varint(2**60))) + BLOB[5:])),
        "has 4 bytes of values",
    ),
    "a shape of very many sides": (
        message(100, message(7, message(7, message(1, b"\x01" * 10**5)) + BLOB[5:])),
        "has 4 bytes of values",
    ),
    "half a number": (
        message(100, message(7, message(7, b"\x08\x01") + message(5, b"abc"))),
        "has 3 bytes of values",
    ),
    "no values": (message(100, message(7, message(7, b"\x08\x00"))), "0 bytes"),
    "a name that is no text": (message(100, message(1, b"\xff\xfe")), "no text"),
    "a name with lines in it": (
        message(100, message(1, b"a\nb") + message(7, BLOB)),
        "no plain text",
    ),
    "integers for layers": (b"\xa0\x06\x05" * 9, "holds no arrays"),
    "nothing": (b"", "holds no arrays"),
    "text": (b"name: 'VGG' layer {", "not a whole caffemodel"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_caffemodel(tmp_path, case):
    content, expected = HOSTILE[case]
    path = tmp_path / "a.caffemodel"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected) as error:
        weights.read(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert len(str(error.value)) < 400


def test_hand_written_message(tmp_path):
    path = tmp_path / "a.caffemodel"
    path.write_bytes(message(100, message(1, b"fc") + message(7, BLOB)))
    assert weights.read(path)["fc[0]"].tolist() == [1.0]
