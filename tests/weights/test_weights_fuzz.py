"""Damaged weight files: read, or refused by one line that names the file.

The files are read in a process of its own, which may take 2 GiB of addresses, opens no
file but the one it is given, and must never end by itself. A few here, 400 and more in
``make test-all``.
"""

import datetime
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutations import mutants, mutate
from published import make_config, run_import, save_pth
from test_weights_keras_safetensors import NEW, keras_arrays, write_keras
from test_weights_unet_frrn import MILESIAL, UNIT, frrn_arrays, milesial
from test_weights_vgg import FCN, fcn_caffe, vgg_files

from experiments.shared import initialization
from segjax import weights
from segjax.errors import UserError
from segjax.weights.readers import caffe

FEW, MANY = 60, 600

READER = """
import json, os, resource, sys
import h5py, jsonschema, numpy, safetensors.numpy
from segjax import errors, weights
from segjax.weights import saved

resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
opened, watched = [], ""

def watch(event, args):
    if event == "open" and watched and not str(args[0]).endswith((".py", ".pyc")):
        opened.append(str(args[0]))
    elif event in ("os.system", "subprocess.Popen", "os.exec", "exec") and watched:
        code = getattr(args[0], "co_filename", "")
        if event != "exec" or not code.endswith(".py"):
            opened.append(f"{event} {args} {code}")

sys.addaudithook(watch)
for line in sys.stdin:
    path = json.loads(line)
    opened.clear()
    watched = path
    try:
        arrays = weights.read(path)
        text = ""
        for array in arrays.values():
            array.astype(float).sum()
        if path.endswith(".safetensors"):
            weights.read_saved(path)
    except errors.UserError as error:
        text = str(error)
    watched = ""
    print(json.dumps([text, [name for name in opened if name != path]]), flush=True)
"""


def fuzz(count):
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=datetime.timedelta(seconds=10),
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def reader():
    """A process that reads a weight file after the other."""
    pytest.importorskip("h5py")
    pytest.importorskip("safetensors")
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", READER]

    def read(path):
        process.stdin.write(json.dumps(str(path)) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, f"{path} ended the process:\n{process.stderr.read()}"
        return json.loads(answer)

    with subprocess.Popen(command, **pipes, text=True) as process:
        yield read


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{name: bytes} of small valid files of all kinds."""
    folder = tmp_path_factory.mktemp("valid")
    _, in_torch, _ = vgg_files()
    small = dict(list(in_torch.items())[:4])
    save_pth(folder / "zip.pth", small)
    save_pth(folder / "legacy.pt", small, legacy=True)
    caffe.write(folder / "a.caffemodel", dict(list(fcn_caffe(32).items())[:4]))
    write_keras(folder / "a.h5", keras_arrays(), NEW, nested=True)
    np.savez(folder / "a.npz", *list(frrn_arrays().values())[:4])
    config = make_config("fcn", skips=32, **FCN)
    arrays = {"params/score_fr/bias": np.zeros(5, np.float32)}
    info = initialization.model_info(config)
    heads = ("params/score_fr/bias",)
    saved = weights.Weights(arrays, info, "a test", 5, heads)
    weights.save(folder / "a.safetensors", saved)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def with_pickle(data, seed):
    """A zip file of PyTorch whose pickle is mutated, with the right checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            changed = name.endswith("data.pkl")
            archive.writestr(name, mutate(content, seed) if changed else content)
    return buffer.getvalue()


def check_mutants(reader, files, tmp_path, count):
    outcomes = {"read": 0, "refused": 0}

    @fuzz(count)
    @given(st.data())
    def check(data):
        name, content = data.draw(mutants(files))
        if name == "zip.pth":
            content = with_pickle(files[name], data.draw(st.integers(0, 2**32)))
        path = tmp_path / name
        path.write_bytes(content)
        text, opened = reader(path)
        assert not opened
        if text:
            assert str(path) in text and "\n" not in text and len(text) < 2000
        outcomes["refused" if text else "read"] += 1

    check()
    return outcomes


def test_damaged_files_are_read_or_refused(reader, files, tmp_path):
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert reader(path) == ["", []], name
    outcomes = check_mutants(reader, files, tmp_path, FEW)
    assert min(outcomes.values()) > 0


@pytest.mark.slow
def test_many_damaged_files_are_read_or_refused(reader, files, tmp_path):
    outcomes = check_mutants(reader, files, tmp_path, MANY)
    assert min(outcomes.values()) > MANY / 20


def edited(arrays, draw):
    """Some arrays of a file are gone, renamed, or of another shape, type or value."""
    arrays = dict(arrays)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(arrays)))
        array = arrays.pop(name)
        kind = draw(
            st.sampled_from(["gone", "name", "shape", "type", "value", "empty"])
        )
        if kind == "name":
            arrays[draw(st.text(max_size=5)) + name] = array
        elif kind == "shape":
            size = draw(st.integers(0, 3))
            arrays[name] = array.reshape(-1)[:size].reshape((1,) * size + (-1,))
        elif kind == "type":
            arrays[name] = array.astype(draw(st.sampled_from(["f2", "f8", "i4", "?"])))
        elif kind == "value":
            arrays[name] = array * np.float32(draw(st.sampled_from([0, 1e38, np.nan])))
        elif kind == "empty":
            arrays[name] = np.zeros((0, *array.shape[1:]), array.dtype)
        if not arrays:
            arrays["a"] = np.zeros(1)
    return arrays


CASES = {
    "FCN": (lambda: fcn_caffe(16), "fcn", dict(skips=16, **FCN)),
    "U-Net": (milesial, "unet", MILESIAL),
}


@pytest.mark.parametrize("case", CASES)
@fuzz(25)
@given(data=st.data())
def test_files_that_lack_or_have_too_much_are_refused(case, data):
    make, model, fields = CASES[case]
    with np.errstate(all="ignore"):
        arrays = edited(make(), data.draw)
        try:
            imported = run_import(arrays, model, UNIT, **fields)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert imported.result.arrays
