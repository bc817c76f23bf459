"""Collections of images: every size, kind and fault, in any order and interrupted."""

import functools
import json
import os
import re
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import tifffile
from PIL import Image
from workdirs import make_run

from experiments import predict
from experiments.shared import prediction_files
from segjax import config as config_lib
from segjax import inference, viz
from segjax.data import images as image_files
from segjax.data import windows
from segjax.errors import UserError
from segjax.inference import collection, large, predictors
from segjax.inference import windows as placement

SAME = {"padding": "same", "widths": (2, 3)}
VALID = {"padding": "valid", "widths": (2, 3)}  # margin 8, step 2


@pytest.fixture(scope="module")
def same(tmp_path_factory):
    """Workdir, config, model and variables of a U-Net without a margin; read only."""
    folder = tmp_path_factory.mktemp("same") / "run"
    return folder, *make_run(folder, "unet", SAME)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """The same with a margin, of gray images."""
    folder = tmp_path_factory.mktemp("valid") / "run"
    return folder, *make_run(folder, "unet", VALID, channels=1, seed=1)


def pixels(*shape, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Odd sizes and kinds, two files that are no images; the pixels, by stem."""
    folder = tmp_path_factory.mktemp("collection")
    found = {}
    sizes = [(32, 40), (33, 41), (31, 40), (17, 61), (2, 3)]
    for i, size in enumerate(sizes):
        image = pixels(*size, 3, seed=i)
        Image.fromarray(image).save(folder / f"rgb{i}.png")
        found[f"rgb{i}"] = image
    gray = pixels(32, 40, seed=7)
    Image.fromarray(gray).save(folder / "gray.png")
    found["gray"] = np.stack([gray] * 3, -1)
    deep = pixels(33, 41, 3, dtype=np.uint16, seed=8)
    tifffile.imwrite(folder / "deep.tif", deep, photometric="rgb")
    found["deep"] = np.round(deep / 257).astype(np.uint8)
    data = (folder / "rgb0.png").read_bytes()
    (folder / "corrupt.png").write_bytes(data[: len(data) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    return folder, found


@pytest.fixture(scope="module")
def segmented(same, photos, tmp_path_factory):
    """All outputs of the collection, every image at its own size, and the summary."""
    output = tmp_path_factory.mktemp("segmented")
    summary = predict.predict(
        same[1],
        same[0],
        paths=[str(photos[0])],
        output=output,
        outputs=("labels", "ids", "overlays", "probabilities"),
        padding=0,
    )
    return output, summary


def labels_of(output, name):
    return np.asarray(Image.open(output / "labels" / f"{name}.png"))


def test_every_image_is_segmented_and_every_fault_named(same, photos, segmented):
    """The oracle: the model called on the pixels written, extended to even sides."""
    folder, found = photos
    output, summary = segmented
    assert summary["failures"].keys() == {
        str(folder / "corrupt.png"),
        str(folder / "empty.jpg"),
    }
    empty = summary["failures"][str(folder / "empty.jpg")]
    corrupt = summary["failures"][str(folder / "corrupt.png")]
    assert re.match(
        rf"{folder}/empty.jpg: cannot be decoded \(0 bytes\): it is empty", empty
    )
    assert re.match(rf"{folder}/corrupt.png: cannot be decoded \(\d+ bytes\)", corrupt)
    assert (summary["images"], summary["written"]) == (len(found) + 2, len(found))
    *_, model, variables = same
    apply = jax.jit(lambda x: model.apply(variables, x, train=False)[0])
    counts = np.zeros(3)
    for name, image in found.items():
        even = [(0, side % 2) for side in image.shape[:2]] + [(0, 0)]
        padded = np.pad(image, even, mode="reflect")[None]
        logits = np.asarray(apply(padded))[0]
        logits = logits[: image.shape[0], : image.shape[1]]
        best = np.sort(logits, -1)
        sure = best[..., -1] - best[..., -2] > 1e-3
        assert sure.mean() > 0.95
        label = labels_of(output, name)
        np.testing.assert_array_equal(label[sure], logits.argmax(-1)[sure], name)
        np.testing.assert_array_equal(
            label, np.asarray(Image.open(output / "ids" / f"{name}.png"))
        )
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        with np.load(output / "probabilities" / f"{name}.npz") as file:
            probabilities = file["probabilities"]
        assert probabilities.dtype == np.float16
        expected = powers / powers.sum(-1, keepdims=True)
        np.testing.assert_allclose(probabilities, expected, atol=2e-3)
        overlay = cv2.imread(str(output / "overlays" / f"{name}.jpg"))
        palette = Image.open(output / "labels" / f"{name}.png").getpalette()
        palette = np.reshape(palette, (-1, 3))[:3].astype(np.uint8)
        exact = viz.overlay(image, label, palette=palette)
        if exact.size > 1000:  # JPEG of noise
            assert np.abs(overlay[..., ::-1] - exact.astype(float)).mean() < 25
        counts += np.bincount(label.reshape(-1), minlength=3)
    assert summary["classes"] == pytest.approx(
        dict(zip(("class0", "class1", "class2"), counts / counts.sum()))
    )
    assert not list(output.rglob("*.partial"))


def test_nothing_is_compiled_after_warm_up(same, photos, segmented, tmp_path):
    assert segmented[1]["compiled"] == {
        "programs": 5,  # sizes
        "after_warm_up": 0,
    }
    summary = predict.predict(same[1], same[0], paths=[str(photos[0])], output=tmp_path)
    compiled = summary["compiled"]
    assert compiled["after_warm_up"] == 0 and compiled["programs"] == 4
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    # A frame changes only what is close enough to see the mirrored part.
    for name, image in photos[1].items():
        padded, alone = labels_of(tmp_path, name), labels_of(segmented[0], name)
        assert padded.shape == image.shape[:2]
        np.testing.assert_array_equal(padded[:-10, :-10], alone[:-10, :-10])


def test_the_same_command_again_does_only_what_is_missing(same, photos, tmp_path):
    folder, found = photos
    files = [str(folder / f"rgb{i}.png") for i in range(3)]
    images = tmp_path / "images"
    images.mkdir()
    for file in files:
        (images / Path(file).name).write_bytes(Path(file).read_bytes())
    output = tmp_path / "out"

    def run(outputs=("labels",), **options):
        summary = predict.predict(
            same[1],
            same[0],
            paths=[str(images)],
            output=output,
            outputs=outputs,
            **options,
        )
        return summary["written"], summary["already_done"]

    assert run() == (3, 0)
    assert run() == (0, 3)
    (output / "labels" / "rgb1.png").unlink()
    assert run() == (1, 2)
    assert run(outputs=("labels", "ids")) == (3, 0)
    Image.fromarray(pixels(20, 20, 3, seed=9)).save(images / "rgb2.png")
    assert run() == (1, 2)
    assert labels_of(output, "rgb2").shape == (20, 20)
    with pytest.raises(UserError, match=r"--output=.* with padding = 0.25, .* has 0"):
        run(padding=0)
    config = config_lib.json_like(same[1])
    other = config_lib.make(**config | {"model": {**SAME, "padding": "valid"}})
    with pytest.raises(UserError, match=r"--output=.* with model = \["):
        predict.predict(
            other, same[0], paths=[str(images)], output=output, outputs=("labels",)
        )
    assert run(padding=0, overwrite=True) == (3, 0)
    assert run(padding=0) == (0, 3)
    # Another image of a name that is taken.
    other = tmp_path / "other"
    other.mkdir()
    (other / "rgb0.png").write_bytes((images / "rgb0.png").read_bytes())
    with pytest.raises(UserError, match=r"labels/rgb0.png is of .*images/rgb0.png, no"):
        predict.predict(same[1], same[0], paths=[str(other)], output=output, padding=0)


def test_other_weights_of_the_same_step_are_refused(same, photos, tmp_path):
    other = tmp_path / "other"
    config, *_ = make_run(other, "unet", SAME, seed=5)
    options = {"paths": [str(photos[0] / "rgb4.png")], "outputs": ("labels",)}
    predict.predict(same[1], same[0], output=tmp_path / "out", **options)
    with pytest.raises(UserError, match='--output=.* with checkpoints = .*"step": 7'):
        predict.predict(config, other, output=tmp_path / "out", **options)


def test_interrupted_it_loses_only_what_is_in_flight(
    same, photos, segmented, tmp_path, monkeypatch
):
    stack, calls = collection.stack, []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return stack(*arguments)

    monkeypatch.setattr(collection, "stack", interrupt)
    run = functools.partial(
        predict.predict, same[1], same[0], paths=[str(photos[0])], output=tmp_path
    )
    with pytest.raises(KeyboardInterrupt):
        run(padding=0)
    monkeypatch.undo()
    done = {path.stem for path in (tmp_path / "labels").glob("[!.]*")}
    assert len(done) == 2  # of three batches on the devices, one had not come back
    with open(tmp_path / "done_0.jsonl", "a") as log:
        log.write('{"name": "rgb')  # a line that a kill cut short
    summary = run(padding=0)
    assert summary["already_done"] == 2 and summary["written"] == 5
    for name in photos[1]:
        np.testing.assert_array_equal(
            labels_of(tmp_path, name), labels_of(segmented[0], name)
        )
    assert summary["classes"] == pytest.approx(segmented[1]["classes"])
    assert run(padding=0)["already_done"] == 7


def test_images_that_change_meanwhile(same, tmp_path, monkeypatch):
    """One grows after its header was read, one is replaced after its pixels were."""
    for i in range(2):
        Image.fromarray(pixels(8, 8, 3, seed=i)).save(tmp_path / f"{i}.png")
    header, decode = image_files.image_header, image_files.decode_image

    def small_header(path, *options):
        size, gray = header(path, *options)
        return (4, 8) if path.endswith("0.png") else size, gray

    def replaced(path, *options, **fields):
        image = decode(path, *options, **fields)
        os.utime(path, (1, 1))
        return image

    monkeypatch.setattr(image_files, "image_header", small_header)
    monkeypatch.setattr(image_files, "decode_image", replaced)
    run = functools.partial(
        predict.predict,
        same[1],
        same[0],
        paths=[str(tmp_path)],
        output=tmp_path / "out",
    )
    summary = run()
    assert summary["written"] == 1
    (text,) = summary["failures"].values()
    assert "0.png: holds 8x8 pixels, its header said less" in text
    monkeypatch.undo()
    summary = run()
    assert (summary["written"], summary["already_done"]) == (2, 0)
    # The shares are of images that are segmented now.
    (tmp_path / "0.png").write_bytes(b"")
    label = labels_of(tmp_path / "out", "1")
    shares = run()["classes"]
    expected = np.bincount(label.reshape(-1), minlength=3) / label.size
    np.testing.assert_allclose(list(shares.values()), expected)


def test_library_predicts_arrays_and_files(same, photos, segmented):
    folder, found = photos
    names = ["rgb0", "rgb3", "rgb4"]
    images = [found["rgb0"], str(folder / "rgb3.png"), found["rgb4"]]
    model = inference.load(same[0] / "checkpoints" / "7")
    assert model.steps == (7,)
    for _ in range(2):  # the second time with the same programs
        for name, label in zip(names, model.predict(images, padding=0)):
            assert label.dtype == np.uint8
            np.testing.assert_array_equal(label, labels_of(segmented[0], name))
        assert len(model.executables) == 3
    assert model.predict([]) == []
    with pytest.raises(UserError, match=r"images\[1\]: holds float32 samples"):
        model.predict([images[0], np.zeros((4, 4, 3), np.float32)])
    with pytest.raises(UserError, match=r"images\[0\]: has shape \[1, 4, 4\]"):
        model.predict([np.zeros((4, 4, 4), np.uint8)])
    with pytest.raises(UserError, match="empty.jpg: cannot be decoded .*empty"):
        model.predict([folder / "empty.jpg"])


def test_ensemble_is_the_mean_of_probabilities(same, photos, tmp_path):
    _, model, variables = same[1:]
    folder = tmp_path / "second"
    _, _, others = make_run(folder, "unet", SAME, seed=5)
    image = photos[1]["rgb0"]
    both = inference.load(same[0], folder, options=inference.PredictOptions(flip=True))
    predict_one = inference.flip(inference.whole(model))
    means = [predict_one(v, image[None]) for v in (variables, others)]
    mean = np.asarray(sum(means) / 2)[0]
    best = np.sort(mean, -1)
    sure = best[..., -1] - best[..., -2] > 1e-4
    (label,) = both.predict([image])
    np.testing.assert_array_equal(label[sure], mean.argmax(-1)[sure])
    assert (label != np.asarray(means[0])[0].argmax(-1)).any()
    third = tmp_path / "third"
    make_run(third, "unet", SAME, classes=4)
    with pytest.raises(UserError, match="third was trained for other classes"):
        inference.load(same[0], third)


# Images in parts


def local(images):
    """Probabilities that also depend on the place in the window, to tell them apart."""
    rows, columns = np.mgrid[: images.shape[1], : images.shape[2]]
    logits = images.astype(np.float32) / 100
    logits += np.stack([rows, 2 * columns, rows * columns], -1)[None] / 30
    return jax.nn.softmax(logits, axis=-1)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "size, window, stride",
    [((17, 22), (9,), 2 / 3), ((12, 30), (12, 7), 0.5), ((5, 40), (9,), 1.0)],
)
def test_streamed_windows_equal_sliding(size, window, stride, batch, monkeypatch):
    monkeypatch.setattr(large, "_ROWS", 4)  # less than a window
    image = pixels(*size, 3)
    layout = placement.sliding(size, window, stride)
    read = windows.array_windows(image, 3)
    rows = list(large.stream(local, read, layout=layout, batch=batch))
    assert max(len(part) for part in rows) <= 4
    height_width = (*window, window[-1])[:2]
    sliding = predictors.sliding(lambda _, x: local(x), height_width, stride=stride)
    whole = sliding({}, image[None])
    np.testing.assert_allclose(np.concatenate(rows), whole[0], atol=1e-5)


@pytest.mark.parametrize("start, count, length", [(-9, 30, 4), (3, 5, 20), (-2, 7, 1)])
def test_mirrored_indices_are_those_of_numpy(start, count, length):
    before, after = max(-start, 0), max(start + count - length, 0)
    padded = np.pad(np.arange(length), (before, after), mode="reflect")
    expected = padded[start + before :][:count]
    np.testing.assert_array_equal(
        placement.mirrored_indices(start, count, length), expected
    )


def test_tiles_of_a_large_image_equal_the_whole(valid, tmp_path):
    """Read from a mapped 16-bit TIFF, written row by row; probabilities, too."""
    folder, config, model, variables = valid
    deep = pixels(57, 75, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "large.tif", deep)
    image = np.round(deep / 257).astype(np.uint8)
    whole = inference.whole(model)(variables, image[None, :, :, None])
    whole = np.asarray(whole)[0]
    best = np.sort(whole, -1)
    sure = best[..., -1] - best[..., -2] > 1e-4
    outputs = ("labels", "overlays", "probabilities")
    summary = predict.predict(
        config,
        folder,
        paths=[str(tmp_path / "large.tif")],
        output=tmp_path / "out",
        outputs=outputs,
        options=inference.PredictOptions(tile=36),
        max_pixels=1000,
    )
    assert (summary["written"], summary["in_parts"]) == (1, 1)
    assert summary["compiled"] == {"programs": 1, "after_warm_up": 0}
    with np.load(tmp_path / "out/probabilities/large.npz") as file:
        np.testing.assert_allclose(file["probabilities"], whole, atol=1e-3)
    label = labels_of(tmp_path / "out", "large")
    assert label.shape == (57, 75)
    np.testing.assert_array_equal(label[sure], whole.argmax(-1)[sure])
    assert cv2.imread(str(tmp_path / "out/overlays/large.jpg")).shape == (57, 75, 3)
    model = inference.load(folder, options=inference.PredictOptions(tile=36, flip=True))
    (flipped,) = model.predict([image], max_pixels=1000)
    assert flipped.shape == (57, 75) and (flipped != label).any()


def test_images_that_cannot_be_predicted_in_parts_fail_alone(valid, tmp_path):
    folder, config, *_ = valid
    Image.fromarray(pixels(40, 60)).save(tmp_path / "large.png")
    Image.fromarray(pixels(20, 20)).save(tmp_path / "small.png")
    for options, message in (
        (
            {"options": inference.PredictOptions(scales=(1.0, 0.5))},
            "large.png: .* at scale 1",
        ),
        ({"crf": "pydensecrf"}, "large.png: a CRF needs the whole .* its 2400 pixels"),
    ):
        output = tmp_path / message[-9:]
        images = [str(tmp_path / "large.png")]
        summary = predict.predict(
            config,
            folder,
            paths=images,
            output=output,
            max_pixels=1000,
            **options,
        )
        (text,) = summary["failures"].values()
        assert re.search(message, text), text


# Names, outputs, lists


def test_names_differ_in_more_than_case():
    def names(*files):
        return list(prediction_files.output_names(files).values())

    assert names("/x/a.png", "/y/b.jpg") == ["a", "b"]
    assert names("/x/1.png", "/y/1.png") == ["x_1", "y_1"]
    assert names("/x/A.png", "/y/a.png") == ["x_A", "y_a"]
    assert names("/x/1.png", "/x/1.jpg") == ["1_png", "1_jpg"]
    assert names("/x/A.png", "/x/a.png") == ["A", "a"]


def test_overlays_of_long_images_fit_into_jpeg(tmp_path):
    image = pixels(3, 70_000, 1)
    (tmp_path / "overlays").mkdir()
    prediction_files.write_outputs(
        tmp_path,
        "long",
        outputs=["overlays"],
        palette=np.zeros((1, 3), np.uint8),
        image=image,
        label=0 * image[..., 0],
    )
    assert cv2.imread(str(tmp_path / "overlays/long.jpg")).shape == (2, 35_000, 3)


def test_ids_of_many_classes_are_16_bit(tmp_path):
    config, model, variables = make_run(
        tmp_path / "run", "unet", {**SAME, "widths": (4, 6)}, classes=300
    )
    image = pixels(16, 16, 3)
    Image.fromarray(image).save(tmp_path / "a.png")
    run = functools.partial(
        predict.predict,
        config,
        tmp_path / "run",
        paths=[str(tmp_path / "a.png")],
        output=tmp_path / "out",
    )
    with pytest.raises(UserError, match="no colors for 300 classes; give"):
        run()
    run(outputs=("ids",))
    ids = cv2.imread(str(tmp_path / "out/ids/a.png"), cv2.IMREAD_UNCHANGED)
    assert ids.dtype == np.uint16 and ids.max() > 255
    logits = np.asarray(model.apply(variables, image[None], train=False)[0])[0]
    assert (ids == logits.argmax(-1)).mean() > 0.99


def test_lists_of_files(tmp_path, same):
    Image.fromarray(pixels(8, 8, 3)).save(tmp_path / "a.png")
    text = f"# images\n{tmp_path}/a.png\n\n{tmp_path}/missing.png\n"
    (tmp_path / "list.txt").write_text(text)
    listed = image_files.list_images([f"@{tmp_path}/list.txt"])
    assert listed.images == [f"{tmp_path}/a.png", f"{tmp_path}/missing.png"]
    summary = predict.predict(
        same[1],
        same[0],
        paths=[f"@{tmp_path}/list.txt"],
        output=tmp_path / "out",
    )
    assert summary["written"] == 1
    assert list(summary["failures"]) == [f"{tmp_path}/missing.png"]
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        image_files.list_images(["@nowhere"])


def test_methods_that_cannot_be(same, valid):
    def fails(run, message, **fields):
        with pytest.raises(UserError, match=message):
            inference.load(run[0], options=inference.PredictOptions(**fields))

    fails(valid, "--tile=36 and --window=9 are both given", tile=36, window=(9,))
    fails(same, "sliding window", tile=36)
    fails(valid, "--window=9: UNet predicts less .* give --tile", window=(9,))
    fails(valid, "image height is 35, expected", tile=35)
    fails(same, "--window: found .9, 9, 9.", window=(9, 9, 9))
    fails(same, "--stride: found 0", stride=0.0)
    fails(same, "--scales: found .1.0, -1.0.", scales=(1.0, -1.0))
    fails(same, "--scales: found .nan.", scales=(float("nan"),))
    with pytest.raises(UserError, match="--outputs: unknown 'label'; known: labels"):
        prediction_files.check_outputs(["label"], 3)
    with pytest.raises(UserError, match="config.json not found"):
        inference.load("nowhere")


def test_config_tile_is_the_default(valid, tmp_path):
    values = config_lib.json_like(valid[1]) | {"tile": 36}
    model = inference.load(valid[0], config=config_lib.make(**values))
    assert model.options == inference.PredictOptions(tile=36)
