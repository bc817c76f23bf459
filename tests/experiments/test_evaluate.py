"""Evaluate against NumPy over what predict writes: protocols, stages, files."""

import csv
import functools
import json

import forked
import kill
import numpy as np
import pytest
from PIL import Image
from workdirs import make_run

from experiments import evaluate, predict
from experiments.shared import (
    evaluation_files,
    evaluation_images,
    evaluation_results,
)
from experiments.shared.evaluation_stages import ScoredImage
from segjax import config as config_lib
from segjax import scoring
from segjax.errors import UserError
from segjax.inference import PredictOptions

NAMES = ("a", "b", "c")
SIZES = {"a": (24, 30), "b": (24, 30), "c": (40, 36)}
CLASSES = ("sky", "road", "car")
COLORS = np.array([(70, 130, 180), (128, 64, 128), (0, 0, 142)], np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of three images of two sizes, all for validation; the masks by stem."""
    root, masks = tmp_path_factory.mktemp("data"), {}
    for name in ("images", "masks"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    for name in (*NAMES, "t"):
        size = SIZES.get(name, (24, 30))
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        image = coarse.resize(size[::-1], Image.Resampling.BICUBIC)
        image.save(root / "images" / f"{name}.png")
        mask = rng.integers(0, 3, size, np.uint8)
        mask[:4] = 255
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
        masks[name] = mask
    (root / "val.txt").write_text("\n".join(NAMES))
    (root / "train.txt").write_text("t")
    lines = [f"{n} {' '.join(map(str, c))}" for n, c in zip(CLASSES, COLORS.tolist())]
    (root / "classes.txt").write_text("\n".join(lines))
    # With colors, gray masks hold the gray levels, so masks are of colors here.
    for name, mask in masks.items():
        picture = np.zeros((*mask.shape, 3), np.uint8)
        picture[mask < 255] = COLORS[mask[mask < 255]]
        Image.fromarray(picture).save(root / "masks" / f"{name}.png")
    (root / "classes.txt").write_text("\n".join([*lines, "void 0 0 0"]))
    return root, masks


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Workdirs of two networks without a margin, and of one with; their configs."""
    folder, made = tmp_path_factory.mktemp("runs"), {}
    options = {"data": {"name": "folder", "root": str(data[0])}, "eval_images": 0}
    for name, padding, seed in (("a", "same", 2), ("b", "same", 7), ("v", "valid", 3)):
        fields = {"padding": padding, "widths": (2, 3)}
        config, *_ = make_run(folder / name, "unet", fields, seed=seed, **options)
        info = json.loads((folder / name / "dataset.json").read_text())
        info |= {"classes": list(CLASSES), "palette": COLORS.tolist()}
        (folder / name / "dataset.json").write_text(json.dumps(info))
        made[name] = folder / name, config
    return made


def changed(config, **fields):
    values = config_lib.json_like(config)
    for name, value in fields.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    return config_lib.make(**values)


def confusion(truths, labels):
    h = np.zeros((3, 3), int)
    for truth, label in zip(truths, labels, strict=True):
        known = truth != 255
        np.add.at(h, (truth[known], label[known]), 1)
    return h


def predicted(config, workdir, data, output, **options):
    """The labels and probabilities that predict writes."""
    summary = predict.predict(
        config,
        workdir,
        paths=[str(data[0] / "images" / f"{name}.png") for name in NAMES],
        output=output,
        outputs=("labels", "probabilities"),
        **options,
    )
    assert summary["failures"] == {}
    labels = [np.asarray(Image.open(output / f"labels/{n}.png")) for n in NAMES]
    files = [np.load(output / f"probabilities/{n}.npz") for n in NAMES]
    return labels, [file["probabilities"].astype(np.float32) for file in files]


CRF = {"iterations": 2, "appearance_sigma_xy": 9.0, "smoothness_filter": "separable"}
PROTOCOLS = {
    "fcn": ("a", {}, ["model"]),
    "pspnet": (
        "a",
        {
            "options": PredictOptions(
                window=(20,), flip=True, scales=(0.5, 0.75, 1, 1.25, 1.5, 1.75)
            )
        },
        ["model", "with window, scales, flip"],
    ),
    "deeplab": (
        "a",
        {
            "options": PredictOptions(scales=(0.5, 0.75, 1), scale_rule="max"),
            "crf": "config",
        },
        ["model", "with scales", "with CRF"],
    ),
    "unet": (
        "v",
        {"options": PredictOptions(tile=36, rotations=7)},
        ["model", "with rotations"],
    ),
    "product": (
        "a",
        {"ensemble": True, "options": PredictOptions(ensemble_rule="product")},
        ["model", "with ensemble"],
    ),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_score_what_predict_writes(runs, data, tmp_path, name):
    run, fields, titles = PROTOCOLS[name]
    workdir, config = runs[run]
    config, fields = changed(config, crf=CRF), dict(fields)
    if "ensemble" in fields:
        fields["ensemble"] = [str(runs["b"][0])]
    found = evaluate.evaluate(config, workdir, output=tmp_path / "eval", **fields)
    assert list(found["stages"]) == titles
    columns = evaluation_results.columns(found)
    truths = [data[1][name] for name in NAMES]
    # The last stage, in full and with the probabilities of half precision.
    labels, scores = predicted(config, workdir, data, tmp_path / "out", **fields)
    np.testing.assert_array_equal(
        columns[titles[-1]]["confusion"], confusion(truths, labels)
    )
    pixels = sum(truth.size for truth in truths)
    by_hand = confusion(truths, [p.argmax(-1) for p in scores])
    differing = np.abs(by_hand - columns[titles[-1]]["confusion"]).sum() / 2
    assert differing <= 0.005 * pixels  # near ties
    # The first stage is the model without any options but tiles.
    tile = PredictOptions(tile=found["options"]["tile"])
    labels, _ = predicted(config, workdir, data, tmp_path / "plain", options=tile)
    np.testing.assert_array_equal(
        columns["model"]["confusion"], confusion(truths, labels)
    )
    confusions = [np.array(column["confusion"]) for column in columns.values()]
    for one, other in zip(confusions, confusions[1:]):
        assert (one != other).any()
    # The top holds the stage before the CRF.
    top = titles[-2] if "crf" in fields else titles[-1]
    assert found["confusion"] == columns[top]["confusion"]
    lines = evaluate.table(found).splitlines()
    for title in titles:
        miou = f"{100 * columns[title]['scores']['miou']:.2f}"
        assert any(line.startswith(f"{title} ") and miou in line for line in lines)


def test_the_last_stage_alone(runs, tmp_path):
    workdir, config = runs["a"]
    config = changed(config, crf=CRF)
    options = PredictOptions(flip=True)
    run = functools.partial(
        evaluate.evaluate, config, workdir, output=tmp_path, options=options, worst=0
    )
    every, last = run(crf="config"), run(crf="config", stages="last")
    assert list(last["stages"].items()) == [("with CRF", "crf")]
    assert "plain" not in last
    assert last["crf"] == every["crf"] and last["scores"] == every["crf"]["scores"]
    flip = run(stages="last")
    assert list(flip["stages"].items()) == [("with flip", "")]
    assert flip["confusion"] == every["confusion"] and "crf" not in flip
    evaluate.table(last), evaluate.table(flip)


@pytest.mark.parametrize(
    "run, options",
    [("a", PredictOptions(window=(24,), flip=True)), ("v", PredictOptions(tile=36))],
)
def test_large_images_are_scored_in_parts_as_predict_does(
    runs, data, tmp_path, run, options
):
    workdir, config = runs[run]
    how = {"options": options, "max_pixels": 1000}
    found = evaluate.evaluate(
        config, workdir, output=tmp_path / "eval", trimap=True, **how
    )
    labels, _ = predicted(config, workdir, data, tmp_path / "out", **how)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert found["in_parts"] == summary["in_parts"] == 1
    truths = [data[1][name] for name in NAMES]
    np.testing.assert_array_equal(found["confusion"], confusion(truths, labels))
    whole = evaluate.evaluate(
        config, workdir, output=tmp_path / "eval", options=options, trimap=True
    )
    assert whole["in_parts"] == 0
    if run == "v":  # tiles change nothing, so neither do parts
        assert whole["trimap"] == found["trimap"]
        assert whole["confusion"] == found["confusion"]
    for name in ("scores", "classes"):
        assert np.sum(whole["confusion"]) == np.sum(found["confusion"]), name
    with pytest.raises(UserError, match="1 images have more pixels .* first is c, and"):
        evaluate.evaluate(config, workdir, output=tmp_path, crf="deeplab_v1", **how)
    with pytest.raises(UserError, match="--max_pixels=0: expected 1 or more"):
        evaluate.evaluate(config, workdir, output=tmp_path, max_pixels=0)


def test_parts_that_cannot_be_are_named_before_any_work(runs, tmp_path):
    workdir, config = runs["v"]
    options = PredictOptions(scales=(1.0, 0.5))
    with pytest.raises(UserError, match="c: an image in overlap-tiles can only be"):
        evaluate.evaluate(
            config, workdir, output=tmp_path, options=options, max_pixels=1000
        )


# Metrics of whole images, and the rows of images


def measure(scored):
    """Pixels, the mean confidence, and whether the arrays are without padding."""
    assert scored.label.shape == scored.prediction.shape
    assert scored.probabilities.shape == (*scored.label.shape, 3)
    assert scored.probabilities.dtype == np.float32
    assert (scored.probabilities.argmax(-1) == scored.prediction).all()
    assert scored.classes == CLASSES
    return np.array([scored.label.size, scored.probabilities.max(-1).sum()])


METRIC = scoring.ImageMetric(
    title="mean confidence",
    needs=frozenset({"probabilities"}),
    measure=measure,
    combine=lambda parts: {
        "confidence": float(np.sum(parts, axis=0)[1] / np.sum(parts, axis=0)[0]),
        "undefined": float("nan"),
    },
)


def read_csv(path):
    with open(path, newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_metrics_of_every_stage_and_image(runs, data, tmp_path, monkeypatch):
    monkeypatch.setitem(scoring.IMAGE_METRICS, "confidence", METRIC)
    workdir, config = runs["a"]
    how = {"options": PredictOptions(flip=True)}
    found = evaluate.evaluate(
        config,
        workdir,
        output=tmp_path / "eval",
        metrics=["confidence", "image_iou"],
        max_pixels=1000,  # one image comes in parts
        **how,
    )
    labels, scores = predicted(
        config, workdir, data, tmp_path / "out", max_pixels=1000, **how
    )
    truths = [data[1][name] for name in NAMES]
    expected = np.concatenate([p.max(-1).ravel() for p in scores]).mean()
    metrics = found["metrics"]
    assert metrics["confidence"]["confidence"] == pytest.approx(expected, abs=1e-3)
    assert metrics["confidence"]["undefined"] is None
    plain = found["plain"]["metrics"]["confidence"]["confidence"]
    assert abs(plain - expected) > 1e-3
    table = evaluate.table(found)
    assert f"{plain:.4f}" in table and "undefined" in table
    count = len(set(SIZES.values()))
    assert found["image_sizes"] == count and "other sizes" not in table
    assert " and 2 other sizes)" in evaluate.table(found | {"image_sizes": count + 2})

    rows = read_csv(tmp_path / "eval/validation_images.csv")
    assert list(rows) == list(NAMES)
    mious = []
    for name, truth, label, p in zip(NAMES, truths, labels, scores):
        row, h = rows[name], confusion([truth], [label])
        assert (int(row["height"]), int(row["width"])) == SIZES[name]
        iou = np.diag(h) / (h.sum(0) + h.sum(1) - np.diag(h))
        mious.append(iou.mean())
        assert float(row["miou"]) == pytest.approx(iou.mean())
        assert float(row["pixel_accuracy"]) == pytest.approx(h.trace() / h.sum())
        assert float(row["confidence"]) == pytest.approx(p.max(-1).mean(), abs=1e-3)
        assert row["undefined"] == "" and float(row["plain_miou"]) > 0
    expected = metrics["image_iou"]["image_miou"]
    assert expected == pytest.approx(np.mean(mious))


def columns_of(path, width):
    """The pictures of a panel, without enlargement and captions."""
    picture = np.asarray(Image.open(path))
    zoom = -(-160 // width)
    parts = [
        picture[22:, i * (zoom * width + 4) :][:, : zoom * width]
        for i in range((picture.shape[1] + 4) // (zoom * width + 4))
    ]
    return [part[::zoom, ::zoom] for part in parts]


def test_pictures_of_the_worst_images(runs, data, tmp_path):
    workdir, config = runs["a"]
    evaluate.evaluate(
        config,
        workdir,
        output=tmp_path,
        options=PredictOptions(flip=True),
        worst=2,
    )
    rows = read_csv(tmp_path / "validation_images.csv")
    order = sorted(NAMES, key=lambda name: float(rows[name]["miou"]))
    pictures = sorted(path.name for path in tmp_path.glob("*worst*"))
    assert pictures == ["validation_worst_0.png", "validation_worst_1.png"]
    for rank, name in enumerate(order[:2]):
        path = tmp_path / f"validation_worst_{rank}.png"
        image, truth, *stages = columns_of(path, SIZES[name][1])
        assert len(stages) == 2
        with Image.open(data[0] / "images" / f"{name}.png") as file:
            np.testing.assert_array_equal(image, np.asarray(file))
        mask = data[1][name]
        np.testing.assert_array_equal(truth[mask < 255], COLORS[mask[mask < 255]])
    with pytest.raises(UserError, match="--worst=-1"):
        evaluate.evaluate(config, workdir, output=tmp_path, worst=-1)


@pytest.mark.parametrize(
    "metrics, message",
    [
        (["image_io"], "--metrics.*image_io.*image_iou"),
        (["objects"], "instances is True, but folder has no instance maps|instances"),
    ],
)
def test_metrics_that_cannot_be(runs, tmp_path, metrics, message, monkeypatch):
    wants = METRIC._replace(needs=frozenset({"instances"}))
    monkeypatch.setitem(scoring.IMAGE_METRICS, "objects", wants)
    with pytest.raises(UserError, match=message):
        evaluate.evaluate(
            runs["a"][1], tmp_path / "nowhere", output=tmp_path, metrics=metrics
        )


def test_an_image_that_is_scored_twice_is_noticed():
    image = ScoredImage(
        *(0, "x", np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8)),
        predictions=np.zeros((1, 1, 1), np.uint8),
        confusion=np.ones((1, 1, 3, 3), int),
    )
    how = {"chosen": {}, "classes": CLASSES, "shown": 0, "worst": 0, "threads": 1}
    with pytest.raises(RuntimeError, match="scored twice or not at all"):
        evaluation_images.collect([image, image], [0], **how)
    with pytest.raises(RuntimeError, match="scored twice or not at all"):
        evaluation_images.collect([image], [0, 1], **how)
    assert len(evaluation_images.collect([image], [0], **how).rows) == 1


# Predictions in files


@pytest.fixture(scope="module")
def reference(runs, data, tmp_path_factory):
    """What predict writes, and its results by evaluate."""
    folder = tmp_path_factory.mktemp("reference")
    workdir, config = runs["a"]
    labels, scores = predicted(config, workdir, data, folder / "out")
    found = evaluate.evaluate(config, workdir, output=folder / "eval", trimap=True)
    return folder / "out", labels, scores, found


def save(folder, labels, kind):
    folder.mkdir(exist_ok=True)
    for name, label in zip(NAMES, labels):
        if kind == "color":
            image = Image.fromarray(COLORS[label])
        elif kind == "reordered":  # as image editors do, with the same colors
            image = Image.fromarray((label + 1) % 3)
            image.putpalette(COLORS[[2, 0, 1]].tobytes())
        elif kind == "other palette":  # whose colors are not those of the classes
            image = Image.fromarray(label)
            image.putpalette(bytes([9, 9, 9, 200, 0, 0, 0, 200, 0]))
        else:
            image = Image.fromarray(label)
        image.save(folder / f"{name}.png")


KINDS = ("gray", "color", "reordered", "other palette")


@pytest.mark.parametrize("layout", ["predict", *KINDS, "npz", "npy"])
def test_files_have_the_scores_of_the_model(runs, data, reference, tmp_path, layout):
    output, labels, scores, found = reference
    folder, config = tmp_path / "files", runs["a"][1]
    if layout == "predict":
        folder = output
    elif layout in KINDS:
        save(folder, labels, layout)
    else:
        folder.mkdir()
        for name, p in zip(NAMES, scores):
            if layout == "npz":
                np.savez(folder / f"{name}.npz", p.astype(np.float16))
            else:
                np.save(folder / f"{name}.npy", p.astype(float))
    again = evaluate.evaluate_predictions(
        config, folder, output=tmp_path / "eval", trimap=True
    )
    assert list(again["stages"]) == ["predictions"]
    if layout in ("npz", "npy"):
        labels = [p.argmax(-1) for p in scores]
        truths = [data[1][name] for name in NAMES]
        np.testing.assert_array_equal(again["confusion"], confusion(truths, labels))
        return
    for key in ("confusion", "scores", "trimap", "majority_baseline", "fingerprint"):
        assert again[key] == found[key]
    assert {path.name for path in (tmp_path / "eval").iterdir()} >= {
        *("validation.json", "validation_images.csv", "validation_worst_0.png")
    }
    assert "step" not in again and "predictions" in evaluate.table(again)


def test_probabilities_in_files_are_measured(runs, reference, tmp_path, monkeypatch):
    monkeypatch.setitem(scoring.IMAGE_METRICS, "confidence", METRIC)
    output, labels, scores, _ = reference
    folder = tmp_path / "files"
    save(folder, [p.argmax(-1).astype(np.uint8) for p in scores], "gray")
    run = functools.partial(
        evaluate.evaluate_predictions,
        *(runs["a"][1], folder),
        output=tmp_path / "eval",
        metrics=["confidence"],
    )
    with pytest.raises(UserError, match="needs probabilities, .* of 'a'; expected"):
        run()
    (folder / "probabilities").mkdir()
    for name, p in zip(NAMES, scores):
        np.save(folder / "probabilities" / f"{name}.npy", p)
    expected = np.concatenate([p.max(-1).ravel() for p in scores]).mean()
    found = run()["metrics"]["confidence"]["confidence"]
    assert found == pytest.approx(expected, rel=1e-5)
    for bad, message in (
        (scores[1][:-1], r"holds float32 \[23, 30, 3\], expected probabilities"),
        (scores[1] * 2, "sum to 2 to 2, expected 1"),
        (scores[1] - 1, "no probabilities"),
        (labels[1], "expected probabilities"),
    ):
        np.save(folder / "probabilities/b.npy", bad)
        with pytest.raises(UserError, match=f"b.npy: .*{message}"):
            run()
    (folder / "probabilities/b.npy").write_bytes(b"x")
    with pytest.raises(UserError, match="b.npy: cannot be read as an array"):
        run()


def test_files_that_are_missing_or_wrong(runs, data, reference, tmp_path):
    _, labels, _, _ = reference
    folder, config = tmp_path / "files", runs["a"][1]
    run = functools.partial(
        evaluate.evaluate_predictions, config, folder, output=tmp_path / "eval"
    )
    with pytest.raises(UserError, match="--predictions=.*files: no such folder"):
        run()
    save(folder, labels, "gray")
    (folder / "b.png").unlink()
    with pytest.raises(
        UserError, match="1 of 3 images have none, such as 'b'; .*allow"
    ):
        run()
    found = run(allow_missing=True)
    assert (found["images"], found["missing"]) == (2, 1)
    truths = [data[1][name] for name in "ac"]
    expected = confusion(truths, [labels[0], labels[2]])
    np.testing.assert_array_equal(found["confusion"], expected)
    (folder / "a.png").unlink(), (folder / "c.png").unlink()
    with pytest.raises(UserError, match="3 of 3 images have none"):
        run(allow_missing=True)
    save(folder, labels, "gray")

    def refused(picture, message):
        Image.fromarray(picture).save(folder / "b.png")
        with pytest.raises(UserError, match=message) as caught:
            run()
        assert "\n" not in str(caught.value)

    refused(labels[1][:, 1:], "b.png: is of size 24x29, expected the 24x30 of its im")
    wrong = labels[1].copy()
    wrong[:4] = 255  # where the truth is void, anything may be
    Image.fromarray(wrong).save(folder / "b.png")
    run()
    wrong[5, 7] = 3
    refused(
        wrong, "b.png: value 3 in row 5, column 7 is no class; expected ids of the 3"
    )
    picture = COLORS[labels[1]]
    picture[6, 1] = 9
    refused(
        picture, r"b.png: color \[9, 9, 9\] in row 6, column 1 is no class; expected"
    )
    (folder / "b.png").write_bytes(b"")
    with pytest.raises(UserError, match="b.png"):
        run()


def test_files_are_scored_at_the_size_of_the_images(runs, reference, tmp_path):
    output, _, _, found = reference
    config = changed(runs["a"][1], data={"resize": (12, 15)})
    again = evaluate.evaluate_predictions(config, output, output=tmp_path)
    assert again["confusion"] == found["confusion"]


def test_files_need_no_model_and_no_workdir(data, reference, tmp_path):
    """As a program: a config file says what the data are."""
    _, labels, _, _ = reference
    folder = tmp_path / "files"
    save(folder, labels[:2], "gray")
    command = [
        *("-m", "experiments.evaluate", f"--predictions={folder}", "--allow_missing"),
        *("--config=configs/own_data.py", f"--config.data.root={data[0]}"),
        *("--metrics=image_iou", "--worst=1", "--config.eval_images=0"),
        "--compilation_cache=",
    ]
    code, out, err = forked.run(command, kill.environment(1))
    assert code == 0, err
    assert "note: 1 of 3 images have no prediction" in err
    written = json.loads((folder / "evaluation/validation.json").read_text())
    truths = [data[1][name] for name in NAMES[:2]]
    np.testing.assert_array_equal(written["confusion"], confusion(truths, labels[:2]))
    assert f"{100 * written['scores']['miou']:.2f}" in out and "image_miou" in out
    names = {path.name for path in (folder / "evaluation").iterdir()}
    assert names == {
        *("validation.json", "validation_images.csv", "validation_confusion.png"),
        "validation_worst_0.png",
    }


def test_predict_takes_a_split_of_the_data_set(runs, data, reference, tmp_path):
    """The images as training reads them, whatever their size and files."""
    output, labels, scores, found = reference
    workdir, config = runs["a"]
    summary = predict.predict(
        config,
        workdir,
        split="validation",
        output=tmp_path / "out",
        outputs=("labels", "probabilities", "overlays"),
    )
    assert (summary["images"], summary["written"], summary["failures"]) == (3, 3, {})
    for name, label in zip(NAMES, labels):
        again = np.asarray(Image.open(tmp_path / f"out/labels/{name}.png"))
        np.testing.assert_array_equal(again, label)
        assert (tmp_path / f"out/overlays/{name}.jpg").is_file()
    run = functools.partial(predict.predict, config, workdir, output=tmp_path / "out")
    again = run(split="validation", outputs=("labels",))
    assert (again["already_done"], again["written"]) == (3, 0)
    with pytest.raises(UserError, match="holds predictions with split = .*validation"):
        run(split="train", outputs=("labels",))
    # In parts, and scored as files.
    predict.predict(
        config,
        workdir,
        split="validation",
        output=tmp_path / "parts",
        outputs=("labels",),
        max_pixels=1000,
    )
    scored = evaluate.evaluate_predictions(config, tmp_path / "parts")
    how = {"max_pixels": 1000, "output": tmp_path / "eval"}
    assert scored["scores"] == evaluate.evaluate(config, workdir, **how)["scores"]
    assert (tmp_path / "parts/evaluation/validation.json").is_file()
    # A network of resized images resizes these, too, and its results back.
    config = changed(config, data={"resize": (20, 26)})
    for name, how in (
        ("x", {"split": "validation"}),
        ("y", {"paths": [str(data[0] / "images" / f"{n}.png") for n in NAMES]}),
    ):
        folder = tmp_path / name
        predict.predict(config, workdir, output=folder, outputs=("labels",), **how)
    for name in NAMES:
        pair = [(tmp_path / x / f"labels/{name}.png").read_bytes() for x in "xy"]
        assert pair[0] == pair[1]
        with Image.open(tmp_path / f"x/labels/{name}.png") as file:
            assert file.size == SIZES[name][::-1]


def test_a_prediction_is_of_one_image(tmp_path):
    ids = ["a/1", "b/1"]
    (tmp_path / "1.png").touch()
    with pytest.raises(UserError, match=r"1.png: .* of 'a/1' and of 'b/1', .*b_1.png"):
        evaluation_files.find(tmp_path, ids, allow_missing=True)
    (tmp_path / "b_1.png").touch()
    assert evaluation_files.find(tmp_path, ids, allow_missing=False) == [0, 1]


def test_results_that_a_kill_interrupts_are_none(tmp_path, monkeypatch):
    """Earlier results must not describe newer rows of the images."""

    def killed(*_, **__):
        raise KeyboardInterrupt

    (tmp_path / "val.json").write_text("{}")
    monkeypatch.setattr(evaluation_results, "image_table", killed)
    collected = evaluation_images.Collected(np.zeros((1, 1, 2, 2)), [], [], [])
    with pytest.raises(KeyboardInterrupt):
        evaluation_results.write(
            *(tmp_path, "val"),
            found={"stages": {"model": ""}},
            collected=collected,
            info=None,
            chosen={},
        )
    assert not list(tmp_path.iterdir())
