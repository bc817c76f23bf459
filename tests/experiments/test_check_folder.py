"""experiments.prepare --check: counts, values of channels, pictures, damaged images."""

import subprocess
import sys

import numpy as np
import pytest
import tifffile
from image_folders import error_of, write
from PIL import Image

from experiments.shared import check_folder, recipes
from segjax import config as config_lib
from segjax.data import folder_ranges, images

SIZE = 24, 32


def own(root, samples: int = 3, count: int = 6) -> str:
    """Images of so many channels, 12 of 16 bits used, and masks of two classes."""
    for i in range(count):
        rng = np.random.default_rng(i)
        values = rng.integers(0, 4096, (*SIZE, samples)).astype(np.uint16)
        values[0, 0] = 0
        values[0, 1] = 1000 * np.arange(1, samples + 1)
        path = root / "images" / f"{i}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        planar = "contig" if samples > 1 else None
        stored = values if samples > 1 else values[:, :, 0]
        tifffile.imwrite(path, stored, photometric="minisblack", planarconfig=planar)
        write(root / "masks" / f"{i}.png", rng.integers(0, 2, SIZE).astype(np.uint8))
    return str(root)


def config(**data):
    return config_lib.make(
        model={"padding": "same"}, augment=recipes.OWN_AUGMENT, data=data
    )


@pytest.mark.parametrize("samples", [1, 3, 5])
def test_report_and_picture(tmp_path, samples):
    root = own(tmp_path / "own", samples)
    made = config(channels=samples)
    lines, bad = check_folder.check(made, root, tmp_path / "out")
    assert not bad and made.data.name == "scenes"  # the caller's config stays
    text = "\n".join(lines)
    assert "5 training and 1 validation images, 24x32" in text
    assert "values of 6 images of 16 bits:" in text
    assert text.count("--config.data.value_range=") == 1
    rows = [line.split() for line in text.splitlines()]
    for channel in range(samples):
        values = np.concatenate(
            [tifffile.imread(tmp_path / "own/images" / f"{i}.tif") for i in range(6)]
        ).reshape(-1, samples)[:, channel]
        (row,) = [r for r in rows if r[:2] == [str(channel), "0"] and len(r) == 5]
        assert row[4] == str(values.max())
        for position, share in ((2, 0.001), (3, 0.999)):
            method = "inverted_cdf"
            near = np.quantile(values, [share, share + 1e-4], method=method)
            assert near[0] <= int(row[position]) <= near[1]
    picture = images.decode_image(tmp_path / "out" / check_folder.PICTURE)
    # A line of captions, four rows and the legend; five columns.
    assert picture.shape[1] == 5 * (240 + 4)
    assert picture.shape[0] > 4 * 240
    first = picture[26 : 26 + 240, :240]  # of 32 pixels, enlarged by 7
    assert (first[30] == 255).all() and (first[120, 10:230] != 255).any()
    # Augmented examples differ from each other.
    cells = [picture[26:266, 244 * i : 244 * i + 240] for i in (2, 3, 4)]
    assert (cells[0] != cells[1]).any() and (cells[1] != cells[2]).any()


def test_fields_of_the_config_count(tmp_path):
    root = own(tmp_path)
    lines, _ = check_folder.check(config(channels=1, value_range=(0, 100)), root)
    text = "\n".join(lines)
    assert "gray" in text and "beyond --config.data.value_range=0,100 are cut" in text
    assert not (tmp_path / check_folder.PICTURE).exists()
    message = error_of(check_folder.check, config(channels=4), root)
    assert "0.tif: is a TIFF of 3 channels, expected 4" in message
    write(tmp_path / "images" / "9.png", np.zeros((8, 9, 3), np.uint8))
    write(tmp_path / "masks" / "9.png", np.zeros((8, 9), np.uint8))
    (tmp_path / "val.txt").write_text("0\n")
    lines, _ = check_folder.check(config(), root, tmp_path / "out")
    assert "note: the training images have 2 different sizes" in "\n".join(lines)


def test_damaged_images_are_all_named_and_the_exit_code_is_1(tmp_path):
    root = own(tmp_path / "own")
    for i in (1, 4):
        path = tmp_path / "own" / "images" / f"{i}.tif"
        path.unlink()
        image = Image.fromarray(np.random.default_rng(i).integers(0, 9, SIZE, np.uint8))
        image.save(path.with_suffix(".png"))
        data = bytearray(path.with_suffix(".png").read_bytes())
        data[data.index(b"IDAT") + 20] ^= 1
        path.with_suffix(".png").write_bytes(data)
    command = [sys.executable, "-m", "experiments.prepare", f"--check={root}"]
    command += [f"--output={tmp_path}", f"--config.data.data_dir={tmp_path}"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 1, ran.stderr
    assert ran.stderr.count("bad: ") == 2
    for i in (1, 4):
        assert f"images/{i}.png: cannot be decoded" in ran.stderr
    assert "values of 4 images" in ran.stdout
    assert not (tmp_path / check_folder.PICTURE).exists()


def test_all_images_damaged(tmp_path):
    bad: list[str] = []
    (tmp_path / "a.png").write_bytes(b"x")
    assert folder_ranges.observe([str(tmp_path / "a.png")], 3, bad=bad) is None
    assert len(bad) == 1
    message = error_of(folder_ranges.observe, [str(tmp_path / "a.png")], 3)
    assert message == bad[0]
