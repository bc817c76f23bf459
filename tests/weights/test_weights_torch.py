"""PyTorch's files: their tensors, and nothing else that they hold."""

import pickle
import re
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from published import save_pth

from segjax import weights
from segjax.errors import UserError


def state_dict():
    rng = np.random.default_rng(0)
    return {
        "conv.weight": rng.normal(size=(3, 2, 5, 4)).astype(np.float32),
        "conv.bias": rng.normal(size=3).astype(np.float32),
        "bn.num_batches_tracked": np.array(7),
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_state_dict(tmp_path, legacy):
    path, state = tmp_path / "a.pth", state_dict()
    save_pth(path, state, legacy)
    found = weights.read(path)
    assert list(found) == list(state)
    for name, array in state.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
    save_pth(path, {f"module.{name}": array for name, array in state.items()}, legacy)
    assert list(weights.read(path)) == list(state)


@pytest.mark.parametrize("options", [{}, {"pickle_protocol": 4}, {"legacy": True}])
def test_what_pytorch_writes(tmp_path, options):
    torch = pytest.importorskip("torch")
    if options.pop("legacy", False):
        options["_use_new_zipfile_serialization"] = False
    path = tmp_path / "a.pt"
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    shared = torch.randn(4, 6)
    odd = {
        "transposed": torch.randn(4, 5).T,
        "slice": shared[1:3, ::2],
        "row": shared[3],
        "bfloat16": torch.randn(3).bfloat16(),
        "half": torch.randn(6).half(),
        "double": torch.randn(2, dtype=torch.float64),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.zeros(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    training = {
        "epoch": 3,
        "arch": "tiny",
        "state_dict": network.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    for content in (network.state_dict(), odd, training):
        torch.save(content, path, **options)
        found, expected = weights.read(path), content.get("state_dict", content)
        assert list(found) == list(expected)
        for name, tensor in expected.items():
            tensor = tensor.detach()
            tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            np.testing.assert_array_equal(found[name], tensor.numpy())
            assert found[name].dtype == tensor.numpy().dtype
    torch.save(network, path, **options)
    with pytest.raises(UserError, match=r"Python code \('torch.nn.modules.container"):
        weights.read(path)


# --- hostile files ---


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def in_zip(path, program):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)


def in_legacy(path, program):
    first = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    path.write_bytes(b"".join(pickle.dumps(v, 2) for v in first) + program)


def bare(path, program):
    path.write_bytes(program)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("place", [in_zip, in_legacy, bare])
def test_pickled_code_is_refused(tmp_path, place, protocol):
    path, hit = tmp_path / "evil.pth", tmp_path / "hit"
    program = pickle.dumps({"conv1.weight": Evil(str(hit))}, protocol)
    pickle.loads(program)["conv1.weight"].close()
    assert hit.exists()
    hit.unlink()
    place(path, program)
    with pytest.raises(UserError, match="is refused: it holds ") as error:
        weights.read(path)
    assert "\n" not in str(error.value) and not hit.exists()


PROGRAMS = {
    # A call of a name that is known, but no function.
    "a call of a type": (b"\x80\x02ctorch\nFloatStorage\n)R.", "a call"),
    "an instance": (b"(ctorch\nFloatStorage\no.", "the pickle opcode OBJ"),
    "NEWOBJ": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "opcode NEWOBJ"),
    "INST": (b"(ios\nsystem\n.", "opcode INST"),
    "an extension": (b"\x80\x02\x82\x01.", "opcode EXT1"),
    "attributes of a name": (
        b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.",
        "attributes",
    ),
    "a similar name": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2x\n.", "v2x"),
    "a module": (b"\x80\x02(X\x06\x00\x00\x00modulet0.", "opcode POP"),
    "another storage": (
        b"\x80\x02(X\x06\x00\x00\x00modulecos\nsystem\ntQ.",
        "Python code",
    ),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_other_programs_are_refused(tmp_path, case):
    program, expected = PROGRAMS[case]
    path = tmp_path / "a.pth"
    in_zip(path, program)
    with pytest.raises(UserError, match=f"refused: .*{expected}") as error:
        weights.read(path)
    assert "\n" not in str(error.value)


def tensor(shape, strides, offset=0, count=4, key=b"0"):
    """A state dict of one tensor on the storage `key`."""

    def sizes(values):
        return (
            b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", v) for v in values) + b"t"
        )

    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00" + key
    storage += b"X\x03\x00\x00\x00cpu\x8a\x08" + struct.pack("<q", count) + b"tQ"
    program = b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
    program += storage + b"\x8a\x08" + struct.pack("<q", offset)
    return program + sizes(shape) + sizes(strides) + b"\x89}tRs."


@pytest.mark.parametrize(
    "options",
    [
        dict(shape=(5,), strides=(1,)),
        dict(shape=(2,), strides=(4,)),
        dict(shape=(4,), strides=(1,), offset=1),
        dict(shape=(2,), strides=(-1,), offset=3),
        dict(shape=(-1,), strides=(1,)),
        dict(shape=(2, 2), strides=(1,)),
        dict(shape=(2**40,), strides=(0,)),  # four terabytes
        dict(shape=(1,) * 9, strides=(1,) * 9),
        dict(shape=(4,), strides=(1,), count=2**40),
        dict(shape=(4,), strides=(1,), count=-1),
        dict(shape=(4,), strides=(1,), key=b"1"),
    ],
)
def test_tensors_outside_of_their_storage(tmp_path, options):
    path = tmp_path / "a.pth"

    def save(program):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", program)
            archive.writestr("x/data/0", np.arange(4, dtype=np.float32).tobytes())

    save(tensor(shape=(2, 2), strides=(1, 2)))
    assert weights.read(path)["w"].tolist() == [[0, 2], [1, 3]]
    save(tensor(**options))
    with pytest.raises(UserError, match="cannot be read as a file of torch.save"):
        weights.read(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_file(tmp_path, legacy):
    path, state = tmp_path / "a.pth", state_dict()
    save_pth(path, state, legacy)
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises(UserError) as error:
            weights.read(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)
    rng = np.random.default_rng(0)
    for position in range(0, len(data), 3):
        changed = bytearray(data)
        changed[position] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:  # anything but another exception
            weights.read(path)
        except UserError as error:
            assert str(path) in str(error)


def test_files_without_a_state_dict(tmp_path):
    path = tmp_path / "a.pth"
    for value, expected in (
        ([1, 2], "no state dict"),
        ({}, "no state dict"),
        ({"lr": 0.1}, "'lr' is a float"),
        ({"model": {"a": "text"}}, "'a' is a str"),
    ):
        in_zip(path, pickle.dumps(value, 2))
        with pytest.raises(UserError, match=expected):
            weights.read(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", tensor(shape=(4,), strides=(1,)))
        archive.writestr("x/data/0", bytes(10**6))  # a thousandth of it in the file
    with pytest.raises(UserError, match="larger than the file"):
        weights.read(path)
    path.unlink()
    with pytest.raises(UserError, match="not found"):
        weights.read(path)


def test_pytorch_is_not_imported(tmp_path):
    path = tmp_path / "a.pth"
    save_pth(path, state_dict())
    program = f"""
import sys
from segjax import weights
assert len(weights.read({str(path)!r})) == 3
assert not {{"torch", "jax"}} & sys.modules.keys(), "imported"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def nested(depth, key):
    """A dict whose key or value is a tuple in a tuple in a tuple, .."""
    inner = b")" + b"\x85" * depth
    if key:
        return b"\x80\x02}" + inner + b"K\x01s."
    return b"\x80\x02}X\x01\x00\x00\x00a" + inner + b"s."


HOSTILE = {
    "a deep key": (nested(300_000, key=True), "a key of type tuple"),
    "a deep value": (nested(300_000, key=False), "'a' is a tuple|exhausted"),
    "a deep storage type": (
        b"\x80\x02(X\x07\x00\x00\x00storage)"
        + b"\x85" * 300_000
        + b"X\x01\x00\x00\x00aX\x03\x00\x00\x00cpuK\x01tQ.",
        "a persistent object that is no storage",
    ),
    "a deep function": (b"\x80\x02)" + b"\x85" * 300_000 + b")R.", "a call"),
    "a copy": (
        b"\x80\x02ccollections\nOrderedDict\n}\x85R.",
        "a copy of a dictionary",
    ),
    # A list of 1000 pairs, made into a dictionary again and again.
    "copies": (
        b"\x80\x02("
        + b"".join(b"M" + struct.pack("<H", i) + b"K\x01\x86" for i in range(1000))
        + b"tq\x00"
        + b"ccollections\nOrderedDict\nq\x01"
        + b"h\x01h\x00\x85R" * 100_000
        + b".",
        "copies",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("place", [in_zip, in_legacy])
def test_programs_that_grow_are_refused(tmp_path, place, case):
    """In another process: the first one would end this one by a segmentation fault."""
    program, expected = HOSTILE[case]
    path = tmp_path / "a.pth"
    place(path, program)
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
from segjax import errors, weights
try:
    weights.read({str(path)!r})
except errors.UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(expected, done.stdout) and done.stdout.count("\n") == 1


def test_lists_of_pairs_and_mask_values(tmp_path):
    """Python 2 wrote ordered dictionaries as lists; a U-Net keeps values of masks."""
    path = tmp_path / "a.pth"
    in_zip(
        path,
        b"\x80\x02ccollections\nOrderedDict\n](]q\x00(X\x01\x00\x00\x00aK\x01ee\x85R.",
    )
    with pytest.raises(UserError, match="'a' is a int"):
        weights.read(path)
    program = tensor(shape=(4,), strides=(1,))
    assert program.endswith(b"s.")
    values = b"X\x0b\x00\x00\x00mask_values](K\x00K\xffes."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program[:-1] + values)
        archive.writestr("x/data/0", np.arange(4, dtype=np.float32).tobytes())
    assert list(weights.read(path)) == ["w"]
