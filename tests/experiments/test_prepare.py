"""experiments.prepare: what it says, what it writes and its exit codes."""

import forked
import kill
import numpy as np
import pytest
from image_folders import rgb, write

from segjax.data import datasets
from segjax.data.records import RecordSource

CONFIG = """
from segjax.config import make
def get_config():
    return make(data={"scenes_size": (32, 32), "scenes_train": 3,
                      "scenes_validation": 2, "data_dir": "OUT"})
"""
PREPARED = "--config=CONFIG --processes=1"
COMMANDS = {
    # name: exit code, arguments; in this order
    "nothing": (0, "--list --config.data.data_dir=OUT"),
    "by file": (0, PREPARED),
    "again": (0, PREPARED),
    "by fields": (0, "--config.data.name=camvid --config.data.root=RAW"),
    "list": (0, "--list --config=CONFIG"),
    "help": (0, "--help"),
    "no data set": (2, ""),
    "no such data set": (2, "--config.data.name=camvdi"),
    "unknown flag": (2, f"{PREPARED} --proceses=2"),
    "no processes": (2, "--config=CONFIG --processes=0"),
    "root": (2, "--config.data.name=camvid --config.data.root=RAW/none"),
    "data_dir": (2, f"{PREPARED} --config.data.data_dir=RAW/train.txt"),
    "bucket": (2, f"{PREPARED} --config.data.data_dir=s3://bucket/x"),
    "bad field": (2, f"{PREPARED} --config.data.scenes_size=1,1"),
    "damaged": (2, "--config.data.name=camvid --config.data.root=BAD"),
}


def make_camvid(root) -> None:
    for name in ("train", "val"):
        write(root / name / f"{name}0.png", rgb(1))
        write(root / f"{name}annot" / f"{name}0.png", np.full((6, 8), 3, np.uint8))
        (root / f"{name}.txt").write_text(f"x/{name}0.png\n")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepare")
    found = {"OUT": root / "out", "RAW": root / "raw", "BAD": root / "bad"}
    for name in ("RAW", "BAD"):
        make_camvid(found[name])
    (found["BAD"] / "valannot/val0.png").write_bytes(b"x")
    found["CONFIG"] = root / "config.py"
    found["CONFIG"].write_text(CONFIG.replace("OUT", str(found["OUT"])))
    return found


@pytest.fixture(scope="module")
def results(places):
    """Code, stdout and stderr of every one of COMMANDS."""

    def run(arguments):
        for name, path in places.items():
            arguments = arguments.replace(name, str(path))
        if "camvid" in arguments:
            arguments += f" --processes=1 --config.data.data_dir={places['OUT']}"
        argv = ["-m", "experiments.prepare", *arguments.split()]
        return forked.run(argv, kill.environment(1))

    return {name: run(arguments) for name, (_, arguments) in COMMANDS.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_exit_code(results, name):
    code, out, err = results[name]
    assert code == COMMANDS[name][0], err
    assert "Traceback" not in err
    assert (out == "") == (code == 2)
    if code == 2:
        assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    "name, message",
    [
        ("no data set", "give the data set: --config FILE or --config.data.name=NAME"),
        ("no such data set", "did you mean 'camvid'"),
        ("unknown flag", "unknown flag --proceses; did you mean --processes?"),
        ("no processes", "--processes is 0; expected 1 or more"),
        ("root", "--config.data.root: "),
        ("data_dir", "cannot write scenes there (Not a directory)"),
        ("bucket", "found a URL"),
        ("bad field", "--config.data.scenes_size is (1, 1)"),
        ("damaged", "valannot/val0.png: "),
    ],
)
def test_bad_input_is_one_line(results, name, message):
    assert message in results[name][2].splitlines()[-1]


def test_bad_images_are_named_while_the_others_are_read(results):
    err = results["damaged"][2]
    assert "\nbad: " in err and "100%" in err


def test_the_summary_says_what_was_written_and_who_reads_it(results, places):
    out = results["by file"][1]
    folder = places["OUT"] / "scenes/32x32-3-2-s0/1.0.0"
    assert f": {folder}\n" in out
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    assert f"3 train, 2 validation records, {size:.1f} MiB, written in " in out
    assert f"--config.data.data_dir={places['OUT']}" in out
    assert "were there already" in results["again"][1]
    assert f"--config.data.root={places['RAW']}" in results["by fields"][1]


def test_the_list_holds_all_and_what_is_left_of_others(results, places):
    assert results["nothing"][1] == f"{places['OUT']} holds no records\n"
    rows = results["list"][1].splitlines()
    assert any(
        row.startswith("scenes/32x32-3-2-s0/1.0.0 ") and "3 train, 2 valid" in row
        for row in rows
    )
    assert any(row.startswith("camvid/") and "1 train, 1 valid" in row for row in rows)


def test_training_finds_the_records(results, places):
    """With the folder of the files, and without it."""
    data = {"name": "camvid", "data_dir": str(places["OUT"])}
    for root in (str(places["RAW"]), ""):
        source, _ = datasets.load(data | {"root": root}, "train")
        assert isinstance(source, RecordSource)
        np.testing.assert_array_equal(source[0]["image"], rgb(1))
        assert (source[0]["label"] == 3).all() and source[0]["id"] == "train0"
