"""Records are written in shards, by processes that may die, fail or meet others."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import prepare_scenes
import pytest
from image_folders import error_of, rgb, write

from segjax.data import builder, datasets, prepare, shards
from segjax.data.images import encode_png
from segjax.data.layout import Format, Recipe
from segjax.data.records import RecordSource
from segjax.data.scenes import scene
from segjax.errors import UserError

HELPER = prepare_scenes.__file__
KEY = "32x32-23-4-s0"
SHARDS = 8 + 2


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "RECORDS", prepare_scenes.RECORDS)
    return prepare_scenes.DATA | {"data_dir": str(tmp_path)}


def contents(root) -> dict[str, bytes]:
    """All files, by their path."""
    paths = [path for path in Path(root).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of the scenes as one process writes them."""
    root = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "RECORDS", prepare_scenes.RECORDS)
        data = prepare_scenes.DATA | {"data_dir": str(root)}
        prepare.prepare(datasets.recipe(data), data)
    return root


def start(root, processes: int) -> subprocess.Popen:
    folders = [str(Path(HELPER).parents[2]), str(Path(HELPER).parent)]
    return subprocess.Popen(
        [sys.executable, HELPER, str(root), str(processes)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
        stdout=subprocess.PIPE,
        text=True,
    )


def finished(lines) -> list[str]:
    return [line.split()[0] for line in lines if line.endswith("finished")]


# --- What is written


def test_one_and_two_processes_write_the_same_bytes(alone, data, tmp_path):
    seen = {}
    for event in prepare.write(datasets.recipe(data), data, processes=2):
        seen[event.shard.file] = event.records
    assert sum(seen.values()) == 27 and len(seen) == SHARDS
    assert contents(tmp_path) == contents(alone)
    names = sorted(contents(alone))
    version = f"scenes/{KEY}/1.0.0"
    assert names[0] == "scenes/.config/metadata.json" and len(names) == SHARDS + 4
    assert f"{version}/scenes-train.array_record-00007-of-00008" in names
    source, _ = datasets.load(data, "train")
    assert [source[i]["id"] for i in range(23)] == [f"train_{i:05d}" for i in range(23)]
    for i in (0, 11, 22):
        expected = scene(0, i, size=(32, 32))
        np.testing.assert_array_equal(source[i]["image"], expected["image"])
        np.testing.assert_array_equal(source[i]["label"], expected["label"])


@pytest.mark.parametrize(
    "images, count, first", [(1, 1, 1), (64, 1, 64), (65, 2, 64), (118_287, 256, 463)]
)
def test_shards_cover_a_split(images, count, first):
    recipe = Recipe(Format("x", "1.0.0"), "key", {"train": range(images)}, record=dict)
    made = shards.shards_of(recipe)
    assert len(made) == count and made[0].stop == first
    assert [shard.start for shard in made[1:]] == [shard.stop for shard in made[:-1]]
    assert made[0].start == 0 and made[-1].stop == images
    assert made[-1].file == f"x-train.array_record-{count - 1:05d}-of-{count:05d}"


def test_ids_and_sizes_are_noted(alone, tmp_path, monkeypatch):
    """So that a start does not decode all labels; they are those of the labels."""
    copy = tmp_path / "copy"
    shutil.copytree(alone / "scenes" / KEY / "1.0.0", copy)
    (copy / "heads.json").unlink()
    for split, seed, count in (("train", 0, 23), ("validation", 1, 4)):
        source = RecordSource(str(alone / "scenes" / KEY / "1.0.0"), split, 3)
        with monkeypatch.context() as patch:
            patch.setattr(RecordSource, "_record", None)  # calling it would raise
            noted = source.identities
            assert source.sizes == [(32, 32)] * count
        for i, text in enumerate(noted):
            label = scene(seed, i, size=(32, 32))["label"]
            name = f"{split}_{i:05d}"
            assert json.loads(text) == [name, [32, 32], zlib.crc32(label.tobytes())]
        read = RecordSource(str(copy), split, 3)
        assert (read.identities, read.sizes) == (noted, source.sizes)
    (copy / "heads.json").write_text('{"train": [' + ", ".join(["[1]"] * 23) + "]}")
    source = RecordSource(str(copy), "train", 3)
    with pytest.raises(UserError, match="prepared records are damaged .*remove this"):
        source.identities  # noqa: B018


@pytest.mark.parametrize("name", ["scenes", "coco", "cityscapes"])
def test_tfds_reads_the_records_by_name(tmp_path, name):
    """In a process that knows nothing of segjax; also under the names of its own."""
    record = {
        "image": encode_png(rgb(1)),
        "label": encode_png(np.zeros((6, 8), np.uint8)),
        "id": "a",
    }
    recipe = Recipe(
        Format(name, "1.2.0"), "key", {"train": [record]}, record=lambda _, item: item
    )
    prepare.prepare(recipe, {"data_dir": str(tmp_path)})
    folder = tmp_path / name / "key" / "1.2.0"
    code = f"""
import pickle, sys
import tensorflow_datasets as tfds
root = {str(tmp_path)!r}
for builder in (
    tfds.builder("{name}/key", data_dir=root),
    tfds.builder("{name}/key:1.2.0", data_dir=root),
    tfds.builder_from_directory({str(folder)!r}),
):
    assert builder.info.splits["train"].num_examples == 1
    assert builder.info.full_name == "{name}/key/1.2.0", builder.info.full_name
source = tfds.data_source("{name}/key", split="train", data_dir=root)
source = pickle.loads(pickle.dumps(source))
assert source[0]["id"] == b"a" and source[0]["image"].shape == (6, 8, 3)
if "{name}" == "scenes":  # no data set of TFDS
    assert tfds.builder("{name}", data_dir=root).info.config_name == "key"
assert not {{"segjax", "tensorflow"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_long_work_is_announced(data, monkeypatch, caplog):
    recipe = datasets.recipe(data)
    prepare.prepare(recipe, data | {"data_dir": data["data_dir"] + "/a"})
    assert not caplog.messages
    monkeypatch.setattr(prepare, "MANY", 27)
    for _ in range(2):  # once
        prepare.prepare(recipe, data)
    (message,) = caplog.messages
    assert message.startswith("note: preparing 27 records of scenes first, in ")


# --- Who writes


def test_a_killed_preparation_is_continued(alone, data, tmp_path):
    process = start(tmp_path, 2)
    lines = []
    while len(finished(lines)) < 3:
        lines.append(process.stdout.readline().strip())
        assert lines[-1], "it ended by itself"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    partial = tmp_path / "scenes" / KEY / "incomplete.1.0.0"
    for _ in range(100):  # its workers end, too, when nobody listens
        before = {p.name: p.stat().st_mtime_ns for p in (partial / "records").iterdir()}
        time.sleep(0.1)
        if before.keys() == {p.name for p in (partial / "records").iterdir()}:
            break
    assert set(finished(lines)) <= before.keys() and len(before) < SHARDS
    assert not (tmp_path / "scenes" / KEY / "1.0.0").exists()
    (left,) = prepare.find_all(data)
    assert left.folder == partial and not left.records and left.stale
    events = list(prepare.write(datasets.recipe(data), data))
    assert len({event.shard.file for event in events}) == SHARDS
    assert before.keys().isdisjoint(e.shard.file for e in events if not e.finished)
    assert contents(tmp_path) == contents(alone)
    folder = tmp_path / "scenes" / KEY / "1.0.0"
    assert {n: (folder / n).stat().st_mtime_ns for n in before} == before
    (made,) = prepare.find_all(data)
    assert made.records == {"train": 23, "validation": 4} and not made.stale
    assert made.bytes == sum(path.stat().st_size for path in folder.iterdir())


def test_two_programs_share_the_work(alone, tmp_path):
    both = [start(tmp_path, 1), start(tmp_path, 2)]
    outputs = [process.communicate()[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    written = [
        {line.split()[0] for line in lines if line.split()[-1] in "123"}
        for lines in outputs
    ]
    assert written[0].isdisjoint(written[1])
    assert len(written[0] | written[1]) == SHARDS
    assert contents(tmp_path) == contents(alone)


def test_what_another_program_has_written_is_not_claimed(tmp_path):
    """It may be there by the time that its claim is gone."""
    first, second = (shards.Shard("train", i, i + 1, f"s{i}") for i in (0, 1))
    for name in ("records", "work"):
        (tmp_path / name).mkdir()
    left = {shard.file: shard for shard in (first, second)}
    (tmp_path / "records" / first.file).write_bytes(b"")
    assert shards._claim_next(left, tmp_path) == second
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["s1.claim"]


def test_claims_of_the_dead_do_not_count(data, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    claim, host = tmp_path / "x.claim", os.uname().nodename
    for text, age, stale in (
        (f"{host} {dead.pid}", 0, True),
        (f"{host} {os.getppid()}", 0, False),
        ("elsewhere 1", 0, False),
        ("elsewhere 1", shards.STALE_SECONDS + 1, True),
        (f"{host} {os.getpid()}", 0, True),  # of an earlier process: this one asks
        ("", 0, False),  # just being written
    ):
        claim.write_text(text)
        os.utime(claim, (time.time() - age,) * 2)
        assert shards.is_stale(claim) == stale, text
    assert shards.is_stale(tmp_path / "none.claim")
    # An abandoned claim does not block, a fresh one of another host does.
    recipe = datasets.recipe(data)
    first = shards.shards_of(recipe)[0]
    work = tmp_path / "scenes" / KEY / "incomplete.1.0.0" / "work"
    work.mkdir(parents=True)
    (work / f"{first.file}.claim").write_text("elsewhere 1")
    events = prepare.write(recipe, data)
    assert next(events).shard != first
    assert not prepare.find_all(data)[0].stale
    os.utime(work / f"{first.file}.claim", (0, 0))
    assert {event.shard for event in events} >= {first}
    assert prepare.prepared(recipe.form, KEY, data)


# --- What goes wrong


@pytest.mark.parametrize("processes", [1, 2])
def test_all_bad_images_are_named(data, tmp_path, processes):
    root = tmp_path / "raw"
    for name in ("train", "val"):
        for i in range(4):
            write(root / name / f"{name}{i}.png", rgb(i))
            label = np.full((6, 8), 12 if i in (1, 2) else 0, np.uint8)
            write(root / f"{name}annot" / f"{name}{i}.png", label)
        lines = "".join(f"x/{name}{i}.png\n" for i in range(4))
        (root / f"{name}.txt").write_text(lines)
    data = {"name": "camvid", "root": str(root), "data_dir": str(tmp_path / "d")}
    problems = []
    with pytest.raises(UserError) as caught:
        for event in prepare.write(datasets.recipe(data), data, processes=processes):
            problems += [event.problem] if event.problem else []
    assert len(problems) == 4
    for name in ("train1", "train2", "val1", "val2"):
        assert any(f"{name}.png holds the value 12" in text for text in problems)
    message = str(caught.value)
    assert "train1.png holds the value 12" in message
    assert message.endswith(" (and 3 more like it)")
    (left,) = prepare.find_all(data)
    # The two shards of three records are bad, those of the fourth images good.
    assert len(list((left.folder / "records").iterdir())) == 2
    assert not list((left.folder / "work").iterdir())


def test_a_killed_worker_is_one_line(data):
    recipe = datasets.recipe(data)._replace(record=prepare_scenes.dies)
    with pytest.raises(UserError, match=r"was killed \(signal 9\).*fewer --processes"):
        list(prepare.write(recipe, data, processes=2))
    (left,) = prepare.find_all(data)
    assert not list((left.folder / "work").glob("*.claim"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_is_one_line(data, monkeypatch, processes):
    original = builder.ArrayRecordWriter
    if processes == 1:
        monkeypatch.setattr(
            builder, "ArrayRecordWriter", lambda path, o: original("/dev/full", o)
        )
        recipe = datasets.recipe(data)
    else:
        recipe = datasets.recipe(data)._replace(record=prepare_scenes.finds_disk_full)
    with pytest.raises(UserError) as caught:
        list(prepare.write(recipe, data, processes=processes))
    message = str(caught.value)
    assert message.startswith("--config.data.data_dir: ") and "\n" not in message
    assert "cannot write scenes there (No space left on device)" in message
    with pytest.raises(OSError) as disk, builder.open_shard(Path("/dev/full")) as file:
        file.write(b"x" * 100_000)
    assert disk.value.errno == errno.ENOSPC


def test_folders_that_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("")
    data = data | {"data_dir": str(tmp_path / "file")}
    message = error_of(prepare.prepare, datasets.recipe(data), data)
    assert "data.data_dir: " in message and "Not a directory" in message
    missing = builder.open_shard(tmp_path / "none" / "x")
    with pytest.raises(OSError, match="No such file"), missing:
        pass


def test_data_sets_without_records(tmp_path):
    for i, name in enumerate("abc"):
        write(tmp_path / "images" / f"{name}.png", rgb(i))
        mask = np.zeros((6, 8), np.uint8)
        mask[0] = 1
        write(tmp_path / "masks" / f"{name}.png", mask)
    message = error_of(datasets.recipe, {"name": "folder", "root": str(tmp_path)})
    assert message.startswith("--config.data.name is 'folder', which is read where it")
