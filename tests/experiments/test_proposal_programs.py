"""Object proposals through evaluate, predict, the library, tune_crf and export."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from workdirs import make_run

from experiments import evaluate, export, predict, tune_crf
from segjax import config as config_lib
from segjax import inference
from segjax.errors import UserError
from segjax.inference import PredictOptions, proposals

MODEL = {"widths": (2, 3, 3, 3, 3), "fc_channels": 4, "fc6_kernel": 1}
SIDE = 32
OPTIONS = PredictOptions(proposals=6)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of three images of two sizes with rectangles, and their masks."""
    root = tmp_path_factory.mktemp("data")
    for name in ("images", "masks"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    for i, (h, w) in enumerate([(48, 60), (40, 52), (48, 60)]):
        coarse = rng.integers(0, 90, (4, 5, 3), np.uint8)
        image = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
        mask = np.zeros((h, w), np.uint8)
        for k in (1, 2):
            left, top = rng.integers(0, (w - 22, h - 22))
            place = slice(top, top + 22), slice(left, left + 22)
            image[place], mask[place] = rng.integers(120, 255, 3), k
        mask[:3] = 255
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    (root / "val.txt").write_text("0\n1\n")
    (root / "train.txt").write_text("2\n")
    (root / "classes.txt").write_text("class0\nclass1\nclass2\n")
    return root


def settings(data, folder, **fields):
    values = {"name": "folder", "root": str(data), "data_dir": str(folder)}
    return {"data": values | fields, "eval_images": 0}


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A DeconvNet trained on crops, and an FCN that was not; random weights."""
    folder = tmp_path_factory.mktemp("runs")
    crops = settings(data, folder / "cache", objects="stage2")
    crops |= {"augment": {"crop": (SIDE, SIDE)}}
    config, *_ = make_run(folder / "deconvnet", "deconvnet", MODEL, **crops)
    fields = {"padding": "same", "widths": (2, 3)}
    whole = settings(data, folder / "cache")
    make_run(folder / "unet", "unet", fields, seed=5, **whole)
    return folder / "deconvnet", folder / "unet", config


def confusion_of(output, data):
    total = np.zeros((3, 3), int)
    for i in (0, 1):
        truth = np.asarray(Image.open(data / "masks" / f"{i}.png"))
        guess = np.asarray(Image.open(output / "labels" / f"{i}.png"))
        valid = truth != 255
        np.add.at(total, (truth[valid], guess[valid]), 1)
    return total


def test_programs_agree_on_proposals(run, data, tmp_path):
    """With an ensemble; a network alone goes the same way with fewer members."""
    folder, other, config = run
    others = [str(other)]
    options = OPTIONS._replace(proposal_rule="sum", proposal_side=0.6)
    results = evaluate.evaluate(
        config, folder, output=tmp_path / "e", options=options, ensemble=others
    )
    assert results["options"]["proposals"] == 6
    assert "with proposals, ensemble" in evaluate.table(results)
    arguments = {"options": options, "ensemble": others, "outputs": ("labels",)}
    predict.predict(
        config, folder, output=tmp_path / "p", split="validation", **arguments
    )
    np.testing.assert_array_equal(
        results["confusion"], confusion_of(tmp_path / "p", data)
    )
    paths = [str(data / "images" / f"{i}.png") for i in (0, 1)]
    predict.predict(config, folder, output=tmp_path / "f", paths=paths, **arguments)
    segmenter = inference.load(folder, *others, config=config, options=options)
    for i, label in enumerate(segmenter.predict(paths)):
        for part in ("p", "f"):
            file = tmp_path / part / "labels" / f"{i}.png"
            np.testing.assert_array_equal(np.asarray(Image.open(file)), label)
    plain = np.array(results["plain"]["confusion"])
    assert (plain != np.array(results["confusion"])).any()
    kept = json.loads((tmp_path / "p" / "settings.json").read_text())
    assert kept["search"]["crops"][0] == [SIDE, SIDE]
    # Results of other options do not mix with these.
    changed = arguments | {"options": options._replace(proposals=5)}
    with pytest.raises(UserError, match="options"):
        predict.predict(
            config, folder, output=tmp_path / "p", split="validation", **changed
        )


def test_predict_and_the_library_agree_on_one_network(run, data, tmp_path):
    folder, _, config = run
    paths = [str(data / "images" / "1.png")]
    arguments = {"options": OPTIONS, "outputs": ("labels",)}
    predict.predict(config, folder, output=tmp_path, paths=paths, **arguments)
    segmenter = inference.load(folder, config=config, options=OPTIONS)
    (label,) = segmenter.predict(paths)
    found = np.asarray(Image.open(tmp_path / "labels" / "1.png"))
    np.testing.assert_array_equal(found, label)
    assert np.ptp(found) > 0


def test_every_option_of_proposals_changes_the_result(run, data):
    folder, _, config = run
    paths = [str(data / "images" / f"{i}.png") for i in (0, 1)]

    def scores(**fields):
        options = OPTIONS._replace(**fields)
        segmenter = inference.load(folder, config=config, options=options)
        image = np.asarray(Image.open(paths[0]))
        group = proposals.regions(image, segmenter.search)
        batch = {"image": image[None], "regions": group[None]}
        return np.asarray(
            segmenter.predictor()(segmenter.variables, *segmenter.inputs(batch))
        )

    first = scores()
    for field, value in (
        ("proposals", 1),
        ("proposal_rule", "sum"),
        ("proposal_rule", "released"),
        ("proposal_method", "selective_search"),
        ("proposal_side", 1.0),
    ):
        assert np.abs(scores(**{field: value}) - first).max() > 1e-6, (field, value)


def test_resized_images_are_proposed_at_the_size_of_the_input(run, data, tmp_path):
    folder, _, config = run
    values = config_lib.json_like(config)
    values["data"] |= {"resize": (40, 44)}
    small = config_lib.make(**values)
    results = evaluate.evaluate(
        small, folder, output=tmp_path / "e", options=OPTIONS, stages="last"
    )
    assert results["images"] == 2 and "with proposals" in evaluate.table(results)
    output = tmp_path / "p"
    predict.predict(small, folder, output=output, split="validation", options=OPTIONS)
    guess = np.asarray(Image.open(output / "labels" / "0.png"))
    assert guess.shape == (48, 60)


def test_the_search_of_a_crf_predicts_with_proposals(run, tmp_path):
    folder, _, config = run
    paths, classes = tune_crf._probabilities(
        config,
        folder,
        output=tmp_path,
        split="validation",
        images=2,
        checkpoint="best",
        options=OPTIONS,
        ensemble=(),
    )
    segmenter = inference.load(folder, config=config, options=OPTIONS)
    with np.load(paths[0]) as file:
        image, found = file["image"][0], file["probabilities"][0]
    assert classes == 3
    rows = proposals.regions(image, segmenter.search)[None]
    expected = segmenter.predictor()(segmenter.variables, image[None], rows)
    np.testing.assert_allclose(found, expected[0], atol=2e-3)


def test_what_proposals_cannot_do_is_said(run, data, tmp_path):
    folder, other, config = run
    with pytest.raises(UserError, match="--proposals=6: boxes are proposed by OpenCV"):
        export.export(
            config, folder, output=tmp_path, sizes=[(48, 60)], options=OPTIONS
        )
    with pytest.raises(UserError, match="no model was trained on crops of objects"):
        inference.load(other, options=OPTIONS)
    summary = predict.predict(
        config,
        folder,
        output=tmp_path / "p",
        paths=[str(data / "images" / "0.png")],
        options=OPTIONS,
        max_pixels=500,
    )
    assert "--proposals=6 needs the whole image" in str(summary["failures"])
    with pytest.raises(UserError, match="--proposals=6 needs the whole image"):
        evaluate.evaluate(
            config, folder, output=tmp_path / "e", options=OPTIONS, max_pixels=500
        )
