"""Sources and prepared records: fingerprints, damage, what a process leaves behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segjax import workdir
from segjax.data import datasets
from segjax.errors import UserError

ROOT = Path(__file__).parents[2]


def scenes(data_dir, train=3, seed=0, size=(32, 40)) -> dict:
    return {
        "name": "scenes",
        "data_dir": str(data_dir),
        "scenes_size": size,
        "scenes_train": train,
        "scenes_validation": 2,
        "scenes_seed": seed,
    }


def make_folder(root: Path, names="abcd", val="d") -> dict:
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i, name in enumerate(names):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
        mask = rng.integers(0, 2, (6, 8), np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    (root / "val.txt").write_text("\n".join(val))
    return {"name": "folder", "root": str(root)}


def fingerprint(data, split="train") -> str:
    return datasets.fingerprint(datasets.load(data, split)[0])


def test_descriptions_need_no_files():
    sizes = {"camvid": (360, 480), "isbi2012": (512, 512)}
    for name, size in sizes.items():
        assert datasets.describe({"name": name}).size == size
        resized = datasets.describe({"name": name, "resize": (10, 12)})
        assert resized.size == (10, 12)
    assert datasets.describe({"name": "scenes", "scenes_size": (64, 96)}).size == (
        64,
        96,
    )


def test_descriptions_of_folders_follow_from_their_files(tmp_path):
    data = make_folder(tmp_path / "a")
    info = datasets.describe(data)
    assert (info.size, info.channels, len(info.classes)) == ((6, 8), 3, 2)
    assert datasets.describe(data | {"resize": (3, 4)}).size == (3, 4)
    big = cv2.imread(str(tmp_path / "a" / "images" / "a.png"))
    for part, pixels in (("images", big), ("masks", big[..., 0] % 2)):
        path = tmp_path / "a" / part / "a.png"
        Image.fromarray(np.repeat(pixels, 2, axis=0)).save(path)
    assert datasets.describe(data).size == (0, 0)


def test_a_description_is_stored_without_its_functions(tmp_path):
    info = datasets.describe({"name": "camvid"})
    workdir.write_dataset(tmp_path, info)
    again = workdir.read_dataset(tmp_path)
    assert again.classes == info.classes and again.mean == info.mean
    np.testing.assert_array_equal(again.palette, info.palette)


def test_fingerprints_of_folders(tmp_path):
    data = make_folder(tmp_path / "a")
    first = fingerprint(data)
    assert len(first) == 24 and first != fingerprint(data, "validation")
    assert first != fingerprint(data | {"resize": (3, 4)})
    # A copy elsewhere, with other times, is the same data.
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    other = {"name": "folder", "root": str(tmp_path / "b")}
    assert fingerprint(other) == first

    def changed(change) -> str:
        shutil.rmtree(tmp_path / "b")
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        change(tmp_path / "b")
        return fingerprint(other)

    def both(root, old, new):
        for part in ("images", "masks"):
            source = root / part / f"{old}.png"
            if new:
                source.rename(root / part / f"{new}.png")
            else:
                source.unlink()

    def swap(root):
        both(root, "a", "x"), both(root, "b", "a"), both(root, "x", "b")

    def mask(root):
        Image.fromarray(np.eye(6, 8, dtype=np.uint8)).save(root / "masks" / "a.png")

    source, _ = datasets.load(data | {"resize": (3, 4)}, "train")
    assert [text.split()[0] for text in source.identities] == ["a", "b", "c"]
    removed = changed(lambda root: both(root, "b", ""))
    renamed = changed(lambda root: both(root, "b", "bb"))
    listed = changed(lambda root: (root / "val.txt").write_text("c\n"))
    every = {first, removed, renamed, listed, changed(swap), changed(mask)}
    assert len(every) == 6


def test_fingerprints_of_records(tmp_path):
    first = fingerprint(scenes(tmp_path / "a"))
    assert first == fingerprint(scenes(tmp_path / "b"))
    others = [
        fingerprint(scenes(tmp_path / "a", **change))
        for change in ({"seed": 1}, {"train": 4}, {"size": (32, 44)})
    ]
    assert len({first, *others}) == 4
    source, _ = datasets.load(scenes(tmp_path / "a"), "train")
    assert [text.split('"')[1] for text in source.identities] == [
        f"train_{i:05d}" for i in range(3)
    ]


# What is left behind


def run(code: str, **env) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=120,
    )


def test_preparing_and_opening_leave_nothing_in_the_temporary_folder(tmp_path):
    (tmp_path / "tmp").mkdir()
    code = f"""
from segjax.data import datasets
import sys
data = {scenes(tmp_path / "data")!r}
for split in ("train", "validation"):
    source, _ = datasets.load(data, split)
    assert source[0]["id"] == f"{{split}}_00000"
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
"""
    result = run(code, TMPDIR=str(tmp_path / "tmp"))
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert list((tmp_path / "tmp").iterdir()) == []
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["scenes"]


def test_folders_are_read_without_jax_and_tfds(tmp_path):
    code = f"""
from segjax.data import datasets, transforms
import sys
datasets.load({make_folder(tmp_path / "own")!r}, "train")[0][0]
heavy = ["jax", "tensorflow_datasets", "tensorflow"]
assert not [name for name in heavy if name in sys.modules]
"""
    result = run(code)
    assert result.returncode == 0, result.stderr


# Damage


def error_of(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def every_example(data) -> None:
    source, _ = datasets.load(data, "train")
    for i in range(len(source)):
        source[i]
    assert source.sizes == [(32, 40)] * 3


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "train"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "zeros", "cut"])
def test_damaged_records_are_named(tmp_path, name, damage):
    data = scenes(tmp_path)
    every_example(data)
    (folder,) = (tmp_path / "scenes").glob("*/1.0.0")
    (path,) = [p for p in folder.iterdir() if name in p.name]
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        size = len(content)
        contents = {"empty": b"", "half": content[: size // 2], "zeros": bytes(size)}
        contents["cut"] = content[: size - 100]
        path.write_bytes(contents[damage])
    message = error_of(every_example, data)
    assert message.startswith(f"{folder}: the prepared records are ")
    assert "remove this folder" in message
    shutil.rmtree(folder)
    every_example(data)


def test_a_killed_preparation_is_repeated(tmp_path):
    """What SIGKILL leaves: the temporary folder and the parents of the final one."""
    data = scenes(tmp_path)
    key = tmp_path / "scenes" / "32x40-3-2-s0"
    half = tmp_path / "incomplete.abc" / "scenes" / key.name / "1.0.0"
    half.mkdir(parents=True)
    (half / "scenes-train.array_record-00000-of-00001").write_bytes(b"\0" * 100)
    (key / "1.0.0").mkdir(parents=True)
    every_example(data)


def test_without_a_home_directory_the_message_names_the_field(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    message = error_of(datasets.load, scenes("~/.cache/segjax"), "train")
    assert message.startswith("--config.data.data_dir: '~/.cache/segjax'")
    assert "HOME" in message


@pytest.mark.parametrize("path", ["s3://bucket/d", "a\0b", "~nobody_/d", "x" * 300])
@pytest.mark.parametrize(
    "name, field",
    [("scenes", "data_dir"), *((n, "root") for n in ("camvid", "isbi2012", "folder"))],
)
def test_paths_that_cannot_be_are_one_line(tmp_path, monkeypatch, name, field, path):
    """Not a folder called "s3:" in the current one, and no traceback."""
    monkeypatch.chdir(tmp_path)
    data = scenes(tmp_path / "d") | {"name": name, field: path}
    message = error_of(datasets.load, data, "train")
    assert message.startswith(f"--config.data.{field}: ") and len(message) < 800
    assert list(tmp_path.iterdir()) == []


def test_sizes_to_resize_to(tmp_path):
    for size in ((0, 4), (4,), 4, (4.0, 4.0), (-4, 4), (2**31, 4), (True, True)):
        message = error_of(datasets.load, scenes(tmp_path) | {"resize": size}, "train")
        assert message.startswith("--config.data.resize: found")
