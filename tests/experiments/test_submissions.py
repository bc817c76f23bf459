"""What evaluation servers take, decoded with other readers and by hand."""

import tarfile
import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image
from workdirs import make_run

from experiments import predict
from experiments.shared import prediction_folder, submissions
from segjax.data import datasets
from segjax.errors import UserError

# Names of images; those of no image of the data set.
NAMES = {
    "voc2012": (("2008_000001.png", "2008_000003.png"), None),
    "cityscapes": (
        ("berlin_000000_000019_leftImg8bit.png", "bonn_000001_000019_leftImg8bit.png"),
        "berlin_19.png",
    ),
    "ade20k": (("ADE_test_00000001.png", "ADE_test_00000002.png"), None),
    "isbi2012": (("2.png", "10.png"), "slice.png"),
    "cell_tracking": (("01/t000.png", "01/t001.png"), "01/frame000.png"),
}
SIZE = (32, 40)
# Cityscapes' train ids in the order of its label ids, by hand.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def test_every_submission_is_one_of_a_known_data_set():
    assert submissions.SUBMISSIONS.keys() == NAMES.keys()


@pytest.fixture(scope="module")
def submitted(tmp_path_factory):
    """Predictions of a random network, by name of the submission."""
    made = {}

    def make(name, monkeypatch, overwrite=False):
        if name in made:
            return made[name]
        info = datasets.describe({"name": name})
        folder = tmp_path_factory.mktemp(name)
        fields = {"padding": "same", "widths": (2,)}
        config, *_ = make_run(
            folder / "run",
            "unet",
            fields,
            classes=len(info.classes),
            channels=info.channels,
        )
        from segjax import workdir

        workdir.write_dataset(folder / "run", info)
        paths, rng = [], np.random.default_rng(0)
        for image in NAMES[name][0]:
            path = folder / "images" / image
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (6, 7, 3), np.uint8)
            Image.fromarray(pixels).resize(SIZE[::-1]).save(path)
            paths.append(str(path))
        if name == "cityscapes":  # whose images are of one size
            changed = submissions.SUBMISSIONS[name]._replace(size=SIZE)
            monkeypatch.setitem(submissions.SUBMISSIONS, name, changed)

        def run(**options):
            return predict.predict(
                config,
                folder / "run",
                paths=options.pop("paths", paths),
                output=folder / "out",
                outputs=("ids", "probabilities"),
                submission=name,
                **options,
            )

        made[name] = folder, paths, run, run()
        return made[name]

    return make


def results(folder, paths, kind="ids"):
    for path in paths:
        stem = path.rsplit("/", 1)[-1].removesuffix(".png")
        if kind == "ids":
            yield np.asarray(Image.open(folder / "out/ids" / f"{stem}.png"))
        else:
            yield np.load(folder / f"out/probabilities/{stem}.npz")["probabilities"]


def test_voc2012(submitted, monkeypatch):
    folder, paths, _, summary = submitted("voc2012", monkeypatch)
    assert summary["submission"] == str(folder / "out/submission/voc2012.tgz")
    inside = "results/VOC2012/Segmentation/comp6_test_cls"
    with tarfile.open(summary["submission"]) as archive:
        names = archive.getnames()
        assert names == [f"{inside}/2008_000001.png", f"{inside}/2008_000003.png"]
        for name, ids in zip(names, results(folder, paths)):
            file = Image.open(archive.extractfile(name))
            assert file.mode == "P"
            np.testing.assert_array_equal(np.asarray(file), ids)
            palette = np.array(file.getpalette()).reshape(-1, 3)
            assert palette[[1, 15]].tolist() == [[128, 0, 0], [192, 128, 128]]


def test_cityscapes(submitted, monkeypatch):
    folder, paths, _, summary = submitted("cityscapes", monkeypatch)
    assert summary["submission"].endswith("/out/submission/cityscapes.zip")
    with zipfile.ZipFile(summary["submission"]) as archive:
        names = archive.namelist()
        assert names == [
            *("berlin_000000_000019_pred.png", "bonn_000001_000019_pred.png")
        ]
        for name, ids in zip(names, results(folder, paths)):
            file = Image.open(archive.open(name))
            assert file.mode == "L"
            np.testing.assert_array_equal(file, np.array(LABEL_IDS)[ids])
    monkeypatch.undo()
    submission = submissions.SUBMISSIONS["cityscapes"]
    with pytest.raises(UserError, match="x.png: is of size 32x40, expected 1024x2048"):
        submissions.check_sizes("cityscapes", submission, {"x.png": SIZE})
    submissions.check_sizes("cityscapes", submission, {"x.png": (1024, 2048)})


def test_ade20k(submitted, monkeypatch):
    folder, paths, _, summary = submitted("ade20k", monkeypatch)
    with zipfile.ZipFile(summary["submission"]) as archive:
        assert archive.namelist() == ["ADE_test_00000001.png", "ADE_test_00000002.png"]
        for name, ids in zip(archive.namelist(), results(folder, paths)):
            file = Image.open(archive.open(name))
            assert file.mode == "L"
            np.testing.assert_array_equal(file, ids + 1)


def test_isbi2012(submitted, monkeypatch):
    folder, paths, run, summary = submitted("isbi2012", monkeypatch)
    path = folder / "out/submission/isbi2012/isbi2012.tif"
    assert summary["submission"] == str(path.parent)
    with Image.open(path) as stack:
        assert (stack.n_frames, stack.mode) == (2, "F")
        pages = [np.array(stack) for i in range(2) if not stack.seek(i)]
    good, other = cv2.imreadmulti(str(path), flags=cv2.IMREAD_UNCHANGED)
    assert good and other[1].dtype == np.float32
    # Slice 2 comes before slice 10; the interior is class 1.
    for i, probabilities in enumerate(results(folder, paths, "probabilities")):
        np.testing.assert_array_equal(pages[i], probabilities[..., 1])
        np.testing.assert_array_equal(other[i], pages[i])
    assert (pages[0] != pages[1]).any()
    other = folder / "images/11.png"
    Image.new("L", (8, 8)).save(other)
    with pytest.raises(UserError, match="11.png: is of size 8x8, expected 32x40"):
        run(paths=[*paths, str(other)])


def test_cell_tracking(submitted, monkeypatch):
    folder, paths, _, summary = submitted("cell_tracking", monkeypatch)
    where, lines, before = folder / "out/submission/cell_tracking/01_RES", [], 0
    assert summary["submission"] == str(where.parent)
    assert sorted(path.name for path in where.iterdir()) == [
        *("mask000.tif", "mask001.tif", "res_track.txt")
    ]
    for frame, ids in enumerate(results(folder, paths)):
        found = cv2.imread(str(where / f"mask00{frame}.tif"), cv2.IMREAD_UNCHANGED)
        assert found.dtype == np.uint16
        count, objects = cv2.connectedComponents((ids == 1).astype(np.uint8), None, 4)
        assert count > 1
        expected = np.where(objects > 0, objects + before, 0)
        np.testing.assert_array_equal(found, expected)
        numbers = range(before + 1, before + count)
        lines += [f"{number} {frame} {frame} 0" for number in numbers]
        before += count - 1
    assert (where / "res_track.txt").read_text().splitlines() == lines


def test_again_it_is_written_of_the_images_named(submitted, monkeypatch):
    """Nothing is predicted again; results of other images do not stay."""
    folder, paths, run, _ = submitted("ade20k", monkeypatch)
    summary = run(paths=paths[1:])
    assert (summary["written"], summary["already_done"]) == (0, 1)
    with zipfile.ZipFile(summary["submission"]) as archive:
        assert archive.namelist() == ["ADE_test_00000002.png"]
    assert len(zipfile.ZipFile(run()["submission"]).namelist()) == 2
    # Files of a submission are results, which a glob leaves out.
    written = [str(path) for path in (folder / "out").rglob("*.png")]
    assert any("submission" in path for path in written)
    assert prediction_folder.without_own_outputs(written, folder / "x") == []


def test_no_submission_if_an_image_fails(submitted, monkeypatch):
    folder, paths, run, _ = submitted("ade20k", monkeypatch)
    bad = folder / "images/ADE_test_00000003.png"
    bad.write_bytes(b"x")
    summary = run(paths=[*paths, str(bad)])
    assert len(summary["failures"]) == 1 and "submission" not in summary


@pytest.mark.parametrize("name", [n for n in NAMES if NAMES[n][1]])
def test_names_of_other_images_are_refused(name):
    classes = datasets.describe({"name": name}).classes
    bad = f"photos/{NAMES[name][1]}"
    with pytest.raises(UserError, match=f"--submission={name}: {bad}: ") as caught:
        submissions.check(name, classes, [bad])
    assert "\n" not in str(caught.value)


def test_what_cannot_be_submitted_is_refused():
    classes = datasets.describe({"name": "isbi2012"}).classes
    with pytest.raises(UserError, match="--submission.*isbi.*isbi2012"):
        submissions.check("isbi", classes, [])
    with pytest.raises(UserError, match="'interior' as class 0 instead of 'membrane'"):
        submissions.check("isbi2012", classes[::-1], [])
    with pytest.raises(
        UserError, match="has 3 classes, a, b, c, ..; expected the 2 cl"
    ):
        submissions.check("isbi2012", ("a", "b", "c"), [])
    classes = datasets.describe({"name": "ade20k"}).classes
    with pytest.raises(UserError, match="a/1.png and b/1.png would both become 1.png"):
        submissions.check("ade20k", classes, ["a/1.png", "b/1.png"])
