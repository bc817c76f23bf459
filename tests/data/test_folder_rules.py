"""Own folders: which files count, and what the values of masks mean."""

import json
import os
import struct

import numpy as np
import pytest
from image_folders import H, W, error_of, lists, make_folder, rgb, two_masks, write
from PIL import Image
from png_files import chunk, png, whole

from segjax.data import datasets, folder, folder_cache, images, masks


def labels(root, **options) -> dict[str, np.ndarray]:
    """The labels of every split, by stem."""
    found = folder.scan(str(root), **options)
    sources = [folder.FolderSource(found, split) for split in found.splits]
    return {example["id"]: example["label"] for s in sources for example in s}


def ids(seed: int, classes: int = 3) -> np.ndarray:
    """A mask of all classes."""
    mask = np.random.default_rng(seed).integers(0, classes, (H, W)).astype(np.uint8)
    mask[0, :classes] = np.arange(classes)
    return mask


# Splits


def test_images_of_test_txt_never_train_or_validate(tmp_path):
    make_folder(tmp_path, {name: ids(i) for i, name in enumerate("abcdefgh")})
    (tmp_path / "test.txt").write_text("a\nb\nc\n")
    found = folder.scan(str(tmp_path))
    stems = {s: [found.stems[i] for i in at] for s, at in found.splits.items()}
    assert stems["test"] == ["a", "b", "c"]
    assert sorted(stems["train"] + stems["validation"]) == list("defgh")
    assert "4 training and 1 validation images, 3 for testing" in folder.report(found)
    (tmp_path / "val.txt").write_text("d\n")
    found = folder.scan(str(tmp_path))
    assert [found.stems[i] for i in found.splits["train"]] == list("efgh")
    data = {"name": "folder", "root": str(tmp_path)}
    source, _ = datasets.load(data, "test")
    assert [source[i]["id"] for i in range(3)] == ["a", "b", "c"]
    np.testing.assert_array_equal(source[1]["label"], ids(1))
    for split in ("train", "val"):
        (tmp_path / "val.txt").write_text("d\n")
        (tmp_path / f"{split}.txt").write_text("c\nd\n" if split == "val" else "c\n")
        message = error_of(folder.scan, str(tmp_path))
        assert f"1 images are in both {split}.txt and test.txt, first c" in message
        (tmp_path / f"{split}.txt").unlink()


def test_images_to_test_may_have_no_mask(tmp_path):
    make_folder(tmp_path, {name: ids(i) for i, name in enumerate("abcdef")})
    (tmp_path / "test.txt").write_text("a\nb\n")
    (tmp_path / "masks" / "a.png").unlink()
    found = folder.scan(str(tmp_path))
    assert [found.stems[i] for i in found.splits["test"]] == ["b"]
    assert "1 images of the test split have no mask, first a: left out" in found.notes
    assert "note: 1 images of the test split" in folder.report(found)
    (tmp_path / "masks" / "b.png").unlink()
    assert folder.scan(str(tmp_path)).splits.keys() == {"train", "validation"}


def test_lists_of_a_subset_need_no_other_masks(tmp_path):
    make_folder(tmp_path, {name: ids(i) for i, name in enumerate("abcd")})
    write(tmp_path / "images" / "e.png", rgb(0, 3, 3))
    write(tmp_path / "masks" / "f.png", ids(0))
    message = error_of(folder.scan, str(tmp_path))
    assert "1 of 5 images have no mask" in message
    assert "list the images that have one in train.txt and val.txt" in message
    lists(tmp_path, "# made by hand\na\nb\n", "c\n")
    found = folder.scan(str(tmp_path))
    assert found.stems == ("a", "b", "c")
    assert "2 images are in no list, first d: left out" in found.notes
    (tmp_path / "val.txt").unlink()  # the rest that has masks validates
    message = error_of(folder.scan, str(tmp_path))  # a mask may be misspelled
    assert "1 of 5 masks have no image, first masks/f.png" in message
    (tmp_path / "masks" / "f.png").unlink()
    found = folder.scan(str(tmp_path))
    assert [found.stems[i] for i in found.splits["validation"]] == ["c", "d"]
    assert "1 images are in no list, first e: left out" in found.notes


@pytest.mark.parametrize(
    "count, expected",
    [(2, 1), (3, 1), (4, 1), (5, 1), (7, 1), (8, 2), (10, 2), (20, 4), (99, 20)],
)
def test_small_sets_are_divided_by_number(tmp_path, count, expected):
    make_folder(tmp_path, {f"i{i}": ids(i) for i in range(count)})
    splits = folder.scan(str(tmp_path)).splits
    assert len(splits["validation"]) == expected
    assert len(splits["train"]) == count - expected


# Layouts


def test_layouts_of_other_programs_are_refused_with_advice(tmp_path):
    message = error_of(folder.scan, str(tmp_path))
    assert "images is missing; expected ROOT/images/STEM.png" in message
    (tmp_path / "JPEGImages").mkdir()
    message = error_of(folder.scan, str(tmp_path))
    assert "JPEGImages is there: rename or link it as images" in message
    (tmp_path / "JPEGImages").rmdir()
    (tmp_path / "day1" / "images").mkdir(parents=True)
    message = error_of(folder.scan, str(tmp_path))
    assert "day1/images is there: set --config.data.root" in message

    root = tmp_path / "b"
    write(root / "images" / "day1" / "a.png", rgb(0))
    write(root / "masks" / "day1" / "a.png", ids(0))
    message = error_of(folder.scan, str(root))
    assert "images holds no images but folders, first day1" in message
    assert "list the stems of each split in train.txt and val.txt" in message
    write(root / "images" / "a.png", rgb(0))
    write(root / "images" / "b.png", rgb(0))
    message = error_of(folder.scan, str(root))
    assert "masks/day1 is a folder: put its files into masks/" in message
    Image.fromarray(ids(0)).save(root / "masks" / "a.tif")
    assert "masks/a.tif is there: masks are PNGs" in error_of(folder.scan, str(root))

    root = tmp_path / "c"
    make_folder(root, two_masks())
    (root / "images" / "c.heic").write_bytes(b"")
    (root / "images" / "Thumbs.db").write_bytes(b"")
    note = "1 files are of a format that is not read, first images/c.heic: left out"
    assert note in folder.scan(str(root)).notes


def test_two_masks_of_one_stem_are_refused(tmp_path):
    make_folder(tmp_path, two_masks())
    write(tmp_path / "masks" / "a.PNG", ids(5))
    message = error_of(folder.scan, str(tmp_path))
    assert "masks holds both a.PNG and a.png" in message and "remove one" in message


@pytest.mark.parametrize("name", ["train.txt", "test.txt", "classes.txt"])
def test_text_that_is_not_utf_8(tmp_path, name):
    make_folder(tmp_path, two_masks())
    (tmp_path / name).write_bytes("Straße\n".encode("latin-1"))
    message = error_of(folder.scan, str(tmp_path))
    assert (
        f"{name}: byte 4 is not UTF-8" in message and "save the file again" in message
    )


# Classes


def test_comments_in_a_classes_file_are_no_classes(tmp_path):
    make_folder(tmp_path, two_masks())
    (tmp_path / "classes.txt").write_text("# mine\nsky\n  # green\ntree\n#\nroad\n")
    assert folder.scan(str(tmp_path)).classes == ("sky", "tree", "road")
    (tmp_path / "classes.txt").write_text("# mine\nsky\n\nroad\n")
    assert "line 3: is empty" in error_of(folder.scan, str(tmp_path))


def test_labelmap_of_cvat(tmp_path):
    colors = np.array([(0, 0, 0), (128, 64, 128), (250, 50, 83)], np.uint8)
    make_folder(tmp_path, {name: colors[ids(i)] for i, name in enumerate("abc")})
    text = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\n"
    (tmp_path / "labelmap.txt").write_text(text + "traffic light:250,50,83:a,b:go\n")
    found = folder.scan(str(tmp_path))
    assert found.classes == ("background", "road", "traffic light")
    np.testing.assert_array_equal(found.palette, colors)
    np.testing.assert_array_equal(labels(tmp_path)["b"], ids(1))
    (tmp_path / "classes.txt").write_text("x 0 0 0\ny 128 64 128\nz 250 50 83\n")
    assert folder.scan(str(tmp_path)).classes == ("x", "y", "z")  # goes first


def test_numbers_of_any_length_in_a_classes_file(tmp_path):
    make_folder(tmp_path, two_masks())
    (tmp_path / "classes.txt").write_text(f"a 0 0 {'1' * 9000}\nb 1 1 1\nc 2 2 2\n")
    assert "line 1: color (0, 0, 256) is out of" in error_of(folder.scan, str(tmp_path))


# Masks of few bits


def low_bits(path, values: np.ndarray, bits: int) -> None:
    """A gray PNG of 1, 2 or 4 bits; Pillow writes 1 only."""
    path.write_bytes(whole(png(values[:, :, None], bits, 0)))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gray_masks_below_8_bits(tmp_path, bits):
    """Without gray levels they hold ids; with gray levels, what viewers show."""
    k = min(2**bits, 4)
    values = {name: ids(i, k) for i, name in enumerate("abc")}
    make_folder(tmp_path, values)
    for name, value in values.items():
        low_bits(tmp_path / "masks" / f"{name}.png", value, bits)
        assert masks.read_mask(tmp_path / "masks" / f"{name}.png").bits == bits
    for name, label in labels(tmp_path).items():
        np.testing.assert_array_equal(label, values[name])
    # One of them is stored with 8 bits, as it is shown.
    step = 255 // (2**bits - 1)
    write(tmp_path / "masks" / "b.png", values["b"] * step)
    lines = [f"c{i} {i * step} {i * step} {i * step}\n" for i in range(k)]
    (tmp_path / "classes.txt").write_text("".join(lines))
    for name, label in labels(tmp_path).items():
        np.testing.assert_array_equal(label, values[name])
    if k > 2:
        (tmp_path / "classes.txt").write_text("".join(lines[:-1]))
        message = error_of(folder.scan, str(tmp_path), void_values=())
        assert f"holds the value {(k - 1) * step}, expected one of 0, {step}" in message


def test_a_value_between_gray_levels_is_named_with_the_levels(tmp_path):
    make_folder(tmp_path, {"a": ids(0, 2), "b": ids(1, 2) * 255})
    (tmp_path / "classes.txt").write_text("background 0 0 0\nforeground 255 255 255\n")
    message = error_of(folder.scan, str(tmp_path))
    assert "masks/a.png: holds the value 1, expected one of 0, 255, the gray" in message
    assert "0..1" not in message


def test_classes_without_training_pixels_are_said(tmp_path):
    make_folder(tmp_path, {"a": ids(0, 2), "b": ids(1, 2), "v": ids(2, 3)})
    (tmp_path / "val.txt").write_text("v\n")
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    found = folder.scan(str(tmp_path))
    assert found.notes == ("no training pixel is of car",)
    assert "note: no training pixel is of car" in folder.report(found)
    # Masks of 0 and 255, where 255 is void unless the classes say otherwise.
    for name in "abv":
        write(tmp_path / "masks" / f"{name}.png", ids(0, 2) * 255)
    (tmp_path / "classes.txt").write_text("background\nforeground\n")
    message = error_of(folder.scan, str(tmp_path))
    assert "hold no class but background; expected at least 2 of the 2" in message
    assert "'background 0 0 0', 'foreground 255 255 255'" in message
    (tmp_path / "classes.txt").write_text("background 0 0 0\nforeground 255 255 255\n")
    assert (labels(tmp_path)["a"] == ids(0, 2)).all()


# Palettes against the colors of the classes


def palette_mask(path, indices: np.ndarray, palette) -> None:
    image = Image.fromarray(indices.astype(np.uint8))
    image.putpalette(np.asarray(palette, np.uint8).tobytes())
    image.save(path)


COLORS = np.array([(0, 0, 0), (200, 0, 0), (0, 200, 0)], np.uint8)
LINES = "background 0 0 0\ncar 200 0 0\ntree 0 200 0\n"


def test_the_colors_of_a_palette_decide_where_classes_have_colors(tmp_path):
    """As ImageMagick and GIMP save them: every mask with its own order of colors."""
    truth = {name: ids(i) for i, name in enumerate("abcdef")}
    make_folder(tmp_path, truth)
    (tmp_path / "classes.txt").write_text(LINES)
    for i, (name, label) in enumerate(truth.items()):
        order = np.roll(np.arange(3), i)
        path = tmp_path / "masks" / f"{name}.png"
        palette_mask(path, np.argsort(order)[label], COLORS[order])
        shown = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(shown, COLORS[label])
    for name, label in labels(tmp_path).items():
        np.testing.assert_array_equal(label, truth[name])


def test_palettes_of_other_colors_are_refused(tmp_path):
    make_folder(tmp_path, {"a": ids(0), "b": ids(1)})
    path = tmp_path / "masks" / "a.png"
    (tmp_path / "classes.txt").write_text(LINES)
    palette_mask(path, ids(0), images.voc_palette(3))
    message = error_of(folder.scan, str(tmp_path))
    assert "a.png: its palette gives index 1 the color 128 0 0, expected" in message
    assert "leave the colors out" in message
    # Void, whatever its color; a palette that shows the numbers themselves is gray.
    label = ids(0)
    label[2] = 255
    table = np.vstack([COLORS, np.zeros((253, 3))])  # 255 looks like class 0
    palette_mask(path, label, table)
    np.testing.assert_array_equal(labels(tmp_path)["a"], label)
    palette_mask(path, label, np.repeat(np.arange(256)[:, None], 3, 1))
    np.testing.assert_array_equal(labels(tmp_path)["a"], label)
    # Without colors, indices are ids.
    (tmp_path / "classes.txt").write_text("background\ncar\ntree\n")
    palette_mask(path, ids(0), COLORS[[2, 0, 1]])
    np.testing.assert_array_equal(labels(tmp_path)["a"], ids(0))
    # An index that the palette does not have.
    (tmp_path / "classes.txt").write_text(LINES)
    palette = chunk(b"PLTE", COLORS[:2].tobytes())
    path.write_bytes(whole(png(ids(0)[:, :, None], 8, 3, palette)))
    message = error_of(folder.scan, str(tmp_path))
    assert "its palette gives index 2 no color" in message


def test_a_mask_stored_as_jpeg_is_refused(tmp_path):
    make_folder(tmp_path, two_masks())
    path = tmp_path / "masks" / "a.png"
    Image.fromarray(two_masks()["a"]).save(path, "JPEG")
    message = error_of(folder.scan, str(tmp_path))
    assert "a.png: mask is stored as JPEG, expected PNG" in message


def test_images_that_training_cannot_read_are_found_by_the_scan(tmp_path):
    make_folder(tmp_path, two_masks())
    (tmp_path / "images" / "a.png").unlink()
    for dtype in (np.float32, np.int16, np.uint32, np.int32):
        Image.fromarray(np.ones((H, W), dtype)).save(tmp_path / "images" / "a.tif")
        message = error_of(folder.scan, str(tmp_path))
        assert "images/a.tif: holds" in message and "expected unsigned" in message


@pytest.mark.parametrize("orientation", [3, 6])
def test_masks_are_turned_as_images_are(tmp_path, orientation):
    make_folder(tmp_path, {"a": ids(0), "b": ids(1)})
    entry = struct.pack("<HHIHH", 274, 3, 1, orientation, 0)
    exif = chunk(b"eXIf", b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4))
    image, mask = rgb(0), ids(0)[:, :, None]
    (tmp_path / "images" / "a.png").write_bytes(whole(png(image, 8, 2, exif)))
    (tmp_path / "masks" / "a.png").write_bytes(whole(png(mask, 8, 0, exif)))
    turned = np.rot90(ids(0), {3: 2, 6: -1}[orientation])
    np.testing.assert_array_equal(labels(tmp_path)["a"], turned)


def test_a_mask_of_the_same_length_is_scanned_again(tmp_path):
    data = make_folder(tmp_path, {"a": ids(0), "b": ids(1)})
    path = tmp_path / "masks" / "a.png"
    path.write_bytes(whole(png(ids(0)[:, :, None], 8, 0, chunk(b"tEXt", b"a\0b"))))
    before = datasets.scan_folder(data)
    length = path.stat().st_size
    other = np.roll(ids(0), 1, axis=1)
    other[0, :3] = 1
    for padding in range(40):  # bytes of a comment, until the lengths are equal
        comment = chunk(b"tEXt", b"a\0" + bytes(padding))
        content = whole(png(other[:, :, None], 8, 0, comment))
        if len(content) == length:
            break
    assert len(content) == length
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    after = datasets.scan_folder(data)
    counts = [sum(found.pixels.values()).tolist() for found in (before, after)]
    assert counts[0] != counts[1]


# Counts that are kept


def many(root) -> dict:
    count = folder_cache._MIN_PAIRS
    make_folder(root, {f"i{i}": ids(i) for i in range(count)})
    data = {"name": "folder", "root": str(root), "data_dir": str(root / "kept")}
    return data


def test_masks_are_counted_once_for_all_programs(tmp_path, monkeypatch):
    data = many(tmp_path)
    first = datasets.scan_folder(data)
    (kept,) = (tmp_path / "kept" / "folder").iterdir()
    folder._scan.cache_clear()  # as another program
    with monkeypatch.context() as patch:
        patch.setattr(folder_cache, "read_mask", None)  # calling it would raise
        second = datasets.scan_folder(data)
    for one, other in zip(first, second):
        np.testing.assert_equal(other, one)
    # What was kept is used: a count is changed by hand.
    rows = json.loads(kept.read_text())
    rows[0]["counts"][0] += 1000
    kept.write_text(json.dumps(rows))
    folder._scan.cache_clear()
    third = datasets.scan_folder(data)
    total = {split: pixels.sum() for split, pixels in first.pixels.items()}
    assert sum(p.sum() for p in third.pixels.values()) == sum(total.values()) + 1000
    # A damaged file counts for nothing, and is replaced.
    for text in ("", "[", "{}", "[]", json.dumps(rows[1:]), "[1]" * 3):
        kept.write_text(text)
        folder._scan.cache_clear()
        np.testing.assert_equal(datasets.scan_folder(data).pixels, first.pixels)
        assert len(json.loads(kept.read_text())) == len(rows)
    # A mask that changes is counted again, with all others.
    write(tmp_path / "masks" / "i0.png", np.zeros((H, W), np.uint8))
    assert datasets.scan_folder(data).pixels["train"][0] != first.pixels["train"][0]


def test_counts_are_not_kept_where_nothing_can_be_written(tmp_path, monkeypatch):
    data = many(tmp_path)
    (tmp_path / "kept").write_text("a file")
    datasets.scan_folder(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: os.fspath(path))
    folder._scan.cache_clear()
    datasets.scan_folder(data | {"data_dir": ""})
    assert not (tmp_path / "~").exists()
