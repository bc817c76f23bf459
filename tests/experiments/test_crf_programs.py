"""The CRF after a network: evaluate, predict, the search; scores near boundaries."""

import functools
import json
import shutil

import cv2
import jax
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from experiments import evaluate, predict, train, tune_crf
from experiments.benchmarks import crf as benchmark_crf
from experiments.shared import evaluation_results, predict_flags, run_description
from segjax import config as config_lib
from segjax import inference, metrics, sharding, viz
from segjax import workdir as workdir_lib
from segjax.data import datasets
from segjax.data import images as image_files
from segjax.errors import UserError
from segjax.ops import mean_field

# Small kernels: small lattices.
CRF = {
    "iterations": 2,
    "appearance_weight": 5.0,
    "appearance_sigma_xy": 20.0,
    "appearance_sigma_rgb": 30.0,
    "normalization": "after",
    "smoothness_filter": "separable",
}


# Bands around boundaries


def brute_force_distance(label, radius):
    """The chessboard distance to the nearest pixel with another label."""
    places = np.argwhere(np.ones_like(label, bool))
    values = label.ravel()
    steps = np.abs(places[:, None] - places[None]).max(axis=2)
    steps = np.where(values[:, None] == values[None], radius + 1, steps)
    return np.minimum(steps.min(axis=1), radius + 1).reshape(label.shape)


def random_labels(rng, height, width, classes):
    coarse = rng.integers(0, classes, (4, 5)).astype(np.uint8)
    label = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
    holes = ndimage.binary_dilation(rng.random(label.shape) < 0.01)
    label[holes] = 255
    return label


def test_boundary_distance_and_band_confusion_by_brute_force():
    rng, classes, radius = np.random.default_rng(0), 3, 4
    labels = np.stack([random_labels(rng, 17, 23, classes) for _ in range(3)])
    labels[2] = 255  # an empty row of a batch
    predicted = rng.integers(0, classes, labels.shape).astype(np.uint8)
    distance = jax.jit(metrics.boundary_distance, static_argnums=1)(labels, radius)
    expected = np.zeros((radius + 1, classes, classes), int)
    for label, prediction, found in zip(labels[:2], predicted, np.asarray(distance)):
        truth = brute_force_distance(label, radius)
        assert len(np.unique(truth)) > 1 and (truth == radius + 1).any()
        known = label != 255
        np.testing.assert_array_equal(found[known], truth[known])
        for r in range(radius + 1):
            near = known & ((truth <= r + 1) | (r == radius))
            for pair in zip(label[near], prediction[near]):
                expected[(r, *pair)] += 1
    h = jax.jit(metrics.band_confusion, static_argnames=("classes", "radius"))
    found = h(labels, predicted, classes=classes, radius=radius)
    np.testing.assert_array_equal(found, expected)


def test_band_of_void_is_the_dilation_of_deeplab():
    """Where void lies on all boundaries; a frame of void is not a boundary."""
    label = np.zeros((20, 30), np.uint8)
    label[:, 14:] = 1
    label[8:, :9] = 2
    edges = cv2.dilate(label, np.ones((3, 3))) != cv2.erode(label, np.ones((3, 3)))
    label[edges] = 255
    framed = np.full((26, 33), 255, np.uint8)
    framed[:20, :30] = label
    for array in (label, framed):
        distance = np.asarray(metrics.boundary_distance(array[None], 5))[0, :20, :30]
        for width in range(1, 6):
            band = ndimage.binary_dilation(edges, np.ones([2 * width + 1] * 2))
            inside = label != 255
            np.testing.assert_array_equal((distance <= width)[inside], band[inside])


def test_trimap_oracle():
    """Three rows, void between the classes, the prediction two pixels off."""
    labels = np.uint8([[[0, 0, 0, 0, 255, 1, 1, 1, 1]] * 3])
    predicted = np.uint8([[[0] * 6 + [1] * 3] * 3])
    h = np.asarray(metrics.band_confusion(labels, predicted, classes=2, radius=4))
    assert h[0].tolist() == [[3, 0], [3, 0]] and h[2].tolist() == [[9, 0], [3, 6]]
    found = [metrics.scores(band)["miou"] for band in h]
    assert found == pytest.approx([0.25, 0.5833333, 0.7083333, 0.775, 0.775], abs=1e-7)


def test_trimap_figure():
    curve = {"radius": [1, 2, 3], "miou": [0.2, None, 0.4]}
    curve["pixel_accuracy"] = [0.5, 0.6, 0.7]
    blank = viz.trimap_figure({"model": curve | {"miou": [None] * 3}})
    for png in (blank, viz.trimap_figure({"model": curve, "with CRF": curve})):
        picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape[1] > 500 and len(np.unique(picture)) > 20
    assert png != blank


# Which CRF


def test_config_section_is_the_default_settings():
    defaults = config_lib.make().crf.to_dict()
    assert mean_field.Settings(**defaults) == mean_field.Settings()
    assert list(tune_crf.GRID) == list(mean_field.Settings._fields)
    for settings in mean_field.SETTINGS.values():
        assert inference.crf_settings(settings._asdict(), "here") == settings


def test_choices_of_crf(tmp_path):
    config = config_lib.make(crf={"appearance_weight": 7.0})
    assert predict_flags.crf_settings(config, "") is predict_flags.crf_settings(
        config, "none"
    )
    assert predict_flags.crf_settings(config, "config").appearance_weight == 7
    deeplab = mean_field.SETTINGS["deeplab_v1"]
    assert predict_flags.crf_settings(config, "deeplab_v1") == deeplab
    file = tmp_path / "crf.json"
    file.write_text('{"iterations": 3, "smoothness_sigma": 2}')
    found = predict_flags.crf_settings(config, str(file))
    assert found == mean_field.Settings(iterations=3, smoothness_sigma=2.0)
    for text, message in {
        "{": ": is not valid JSON",
        "[1]": ".*expected an object",
        '{"sigma": 3}': ": unknown value 'sigma'; .*known: appear",
        '{"smoothnes_sigma": 3}': ".*did you mean 'smoothness_sigma'",
        '{"iterations": 2.5}': ".iterations is 2.5; expected int",
        '{"iterations": -1}': ".iterations is -1; expected an integer from 0",
        '{"appearance_sigma_xy": 0}': ".appearance_sigma_xy is 0.0; expected",
        '{"normalization": "both"}': ".normalization: unknown value 'both'",
        '{"smoothness_filter": "fft"}': ".*known: lattice, separable",
        '{"appearance_sigma_rgb": Infinity}': ".*_sigma_rgb is inf; expected",
        '{"appearance_weight": Infinity}': ".appearance_weight is inf; expected",
        '{"smoothness_weight": NaN}': ".smoothness_weight is nan; expected",
        '{"iterations": 9223372036854775807}': ".iterations is 92",
        '{"color_order": "rbg"}': ".color_order: unknown value 'rbg'; did you mean",
        '{"relaxation": 1.5}': ".relaxation is 1.5; expected above 0, at most 1",
    }.items():
        file.write_text(text)
        fails(f"{file}{message}", predict_flags.crf_settings, config, str(file))
    fails(
        "--crf=deeplab: expected 'config'.*deeplab_v1",
        predict_flags.crf_settings,
        config,
        "deeplab",
    )


def fails(pattern, call, *args, **kwargs):
    """The call raises a UserError of one line that matches."""
    with pytest.raises(UserError, match=pattern) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


# The stage


def test_refine_is_the_crf_of_each_image_alone():
    """Gray images that need lattices of different sizes, on four devices."""
    rng = np.random.default_rng(0)
    settings = mean_field.Settings(**CRF | {"smoothness_filter": "lattice"})
    images = rng.integers(0, 255, (4, 10, 12, 1), np.uint8)
    images[1:] = 30 + images[1:] // 16
    probabilities = rng.dirichlet(np.ones(3), images.shape[:3]).astype(np.float32)
    mesh = sharding.make_mesh()
    assert mesh.size == 4
    on_devices = jax.device_put((probabilities, images), sharding.split(mesh))
    found = inference.refine(*on_devices, settings=settings, mesh=mesh)
    assert found.sharding == sharding.split(mesh)
    alone = jax.jit(inference.dense_crf(lambda p, _: p, settings))
    expected = [
        alone(p[None], image[None])[0] for p, image in zip(probabilities, images)
    ]
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)
    assert np.abs(np.asarray(found) - probabilities).max() > 0.1


# The programs, on a tiny network


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return config_lib.make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (4, 8)},
        data={
            "scenes_size": (48, 48),
            "scenes_train": 10,
            "scenes_validation": 4,
            "data_dir": str(tmp_path_factory.mktemp("data")),
        },
        optim={"name": "adam", "lr": 0.01},
        batch_size=4,
        eval_batch_size=4,
        total_steps=20,
        eval_every=0,
        eval_images=1,
        save_every=20,
        log_every=10,
        threads=1,
        crf=CRF,
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """Its workdir, for reading only."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    assert train.train(config, workdir) == 0
    return workdir


def test_a_run_continues_with_another_crf(config, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    info = workdir_lib.read_dataset(run)
    other = config_lib.make(**config_lib.json_like(config) | {"crf": {"iterations": 7}})
    run_description.check_same_run(other, info, {}, workdir=run)
    run_description.write_description(other, info, {}, workdir=run)
    assert config_lib.load(run / "config.json").crf.iterations == 7


@pytest.fixture(scope="module")
def results(config, trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluation")
    found = evaluate.evaluate(config, trained, output=output, crf="config", trimap=True)
    return found, output


def test_evaluate_has_both_scores(config, trained, results, tmp_path):
    found, output = results
    assert json.loads((output / "validation.json").read_text()) == json.loads(
        json.dumps(found)
    )
    plain = evaluate.evaluate(config, trained, output=tmp_path)
    assert "crf" not in plain and "trimap" not in plain
    for key in ("scores", "confusion", "classes", "majority_baseline"):
        assert found[key] == plain[key]
    assert found["crf"]["settings"] == config.crf.to_dict()
    after = np.array(found["crf"]["confusion"])
    assert after.sum() == np.sum(found["confusion"])
    assert (after != found["confusion"]).any()
    scores = metrics.scores(after)
    assert found["crf"]["scores"]["miou"] == pytest.approx(scores["miou"])
    files = {path.name for path in output.iterdir()}
    assert files == {
        *("validation.json", "validation_confusion.png", "validation_trimap.png"),
        *("validation_0.png", "validation_images.csv"),
        *(f"validation_worst_{i}.png" for i in range(4)),
    }
    assert not (tmp_path / "validation_trimap.png").exists()
    shown = [cv2.imread(str(p / "validation_0.png")).shape for p in (output, tmp_path)]
    assert 1.2 < shown[0][1] / shown[1][1] < 1.5  # four pictures, three pictures


def test_evaluate_says_which_images_it_scores(config, trained):
    """Those of the training, others than during training."""
    known = workdir_lib.read_splits(trained)

    def notes(split, **fields):
        data = dict(config.data) | fields
        source = datasets.load(data, split)[0]
        return list(
            evaluation_results.notes(
                known, split=split, train_split="train", source=source
            )
        )

    assert notes("validation") == []
    (note,) = notes("train")
    assert note == "the images of the split 'train' are those that the run trained on"
    (note,) = notes("validation", resize=(24, 24))
    assert "'validation' are not those of the training run (4 then, 4 now;" in note


def test_trimap_of_evaluate(results):
    found, _ = results
    for part in (found, found["crf"]):
        curve = part["trimap"]
        assert curve["radius"] == list(range(1, 41))
        for name in metrics.SCORES:
            assert len(curve[name]) == 40 and min(curve[name]) >= 0
            # Within 40 pixels is everything in so small an image.
            assert curve[name][-1] == pytest.approx(part["scores"][name])
    assert found["trimap"]["miou"][0] != found["scores"]["miou"]


def test_table_shows_before_and_after(results):
    found, _ = results
    lines = evaluate.table(found).splitlines()
    assert lines[0].split()[-3:] == ["with", "CRF", "change"]
    row = next(line for line in lines if line.startswith("sky")).split()
    before, after = found["classes"]["sky"], found["crf"]["classes"]["sky"]
    assert (
        row[1] == f"{100 * before['iou']:.2f}" and row[4] == f"{100 * after['iou']:.2f}"
    )
    assert float(row[5]) == pytest.approx(
        100 * (after["iou"] - before["iou"]), abs=6e-3
    )
    miou = f"{100 * found['crf']['scores']['miou']:.2f}"
    assert any(line.startswith("with CRF ") and miou in line for line in lines)
    band = f"{100 * found['crf']['trimap']['miou'][0]:.2f}"
    assert any("within  1 px" in line and band in line for line in lines)


def test_predict_writes_what_evaluate_scored(config, trained, results, tmp_path):
    """Equal sizes; of a larger frame, the CRF sees the mirrored part, too."""
    found, _ = results
    source = datasets.load(config.data, "validation")[0]
    labels = {}
    for index in range(len(source)):
        example = source[index]
        labels[f"{index}.png"] = example["label"]
        data = image_files.encode_png(example["image"])
        (tmp_path / f"{index}.png").write_bytes(data)
    output = tmp_path / "out"
    summary = predict.predict(
        config,
        trained,
        paths=[str(tmp_path)],
        output=output,
        crf="config",
        outputs=("labels",),
    )
    assert (summary["written"], summary["failures"]) == (4, {})
    h = np.zeros((9, 9), int)
    for name, label in labels.items():
        predicted = np.asarray(Image.open(output / "labels" / name))
        known = label != 255
        np.add.at(h, (label[known], predicted[known]), 1)
    np.testing.assert_array_equal(h, found["crf"]["confusion"])


def test_programs_refine_images_at_their_own_size(
    config, trained, tmp_path, monkeypatch
):
    """Of padded batches, which may hold rows without an image."""
    seen = []

    def refine(probabilities, images, *, sizes, **_):
        assert len(sizes) == len(images)
        seen.extend(tuple(size) for size in sizes if size[0])
        return probabilities

    sizes = [(48, 48), (40, 44), (32, 47), (33, 20), (45, 47), (47, 45)]
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(sizes):
        data = image_files.encode_png(
            rng.integers(0, 255, (height, width, 3), np.uint8)
        )
        (tmp_path / f"{i}.png").write_bytes(data)
    monkeypatch.setattr("segjax.inference.compiled.refine", refine)
    summary = predict.predict(
        config,
        trained,
        paths=[str(tmp_path)],
        output=tmp_path / "out",
        crf="config",
        outputs=("labels",),
    )
    assert summary["written"] == len(sizes) > len(summary["programs"])
    assert sorted(seen) == sorted(sizes)

    seen.clear()
    monkeypatch.setattr(inference, "refine", refine)
    evaluate.evaluate(config, trained, output=tmp_path / "scores", crf="config")
    assert seen == 4 * [(48, 48)]
    seen.clear()
    grid = {key: (value,) for key, value in CRF.items()}
    tune_crf.tune_crf(config, trained, output=tmp_path / "crf", grid=grid, images=3)
    assert seen == 3 * [(48, 48)]


def test_bad_crf_is_named_before_any_work(config, trained, tmp_path):
    nowhere = tmp_path / "nowhere"
    fails("--crf=x: ", evaluate.evaluate, config, nowhere, crf="x")
    where = {"paths": ["a"], "output": tmp_path}
    fails("--crf=x: ", predict.predict, config, nowhere, **where, crf="x")
    bad = config_lib.make(**config_lib.json_like(config) | {"crf": {"iterations": -1}})
    fails("--config.crf.iterations", evaluate.evaluate, bad, nowhere, crf="config")


# The search


def test_search_continues_and_its_best_can_be_used(config, trained, results, tmp_path):
    grid = {key: (value,) for key, value in CRF.items()}
    grid["appearance_weight"] = (5.0, 0.0)
    search = functools.partial(
        tune_crf.tune_crf,
        config,
        trained,
        output=tmp_path,
        split="validation",
        images=4,
    )
    rows = search(grid=grid)
    assert len(rows) == 3
    assert [row["miou"] for row in rows] == sorted(r["miou"] for r in rows)[::-1]
    by_weight = {
        row["settings"] and row["settings"]["appearance_weight"]: row for row in rows
    }
    # What evaluate finds; probabilities are kept in half precision.
    found, _ = results
    for key, part in {None: found, 5.0: found["crf"]}.items():
        assert by_weight[key]["miou"] == pytest.approx(part["scores"]["miou"], abs=2e-3)

    # Again: a line that was cut off is done again, others are not; new values join.
    file = tmp_path / "results.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines)[:-20])
    shutil.rmtree(tmp_path / "probabilities")
    grid |= {"appearance_weight": (0.0,), "iterations": (2, 1)}
    again = search(grid=grid)
    kept = file.read_text().splitlines(keepends=True)
    assert kept[:2] == lines[:2] and len(kept) == len(again) == 4
    assert kept[2] != lines[2]  # its time, at least
    best = next(row["settings"] for row in again if row["settings"])
    chosen = predict_flags.crf_settings(config, str(tmp_path / "best.json"))
    assert chosen._asdict() == best
    text = tune_crf.table(again)
    assert "no CRF" in text and "iterations" in text and "appearance_weight" in text
    assert "normalization" not in text and len(text.splitlines()) == 5

    message = "has a search with images 4, this command has 3: use another --output"
    fails(message, search, grid=grid, images=3)
    # As many images with the same names, but others.
    values = config_lib.json_like(config)
    values["data"]["scenes_seed"] += 1
    arguments = search.keywords | {"grid": grid}
    message = "has a search with fingerprint '"
    other = config_lib.make(**values)
    fails(message, tune_crf.tune_crf, other, trained, **arguments)


def test_search_takes_a_random_part_of_the_training_images(config, trained, tmp_path):
    grid = {key: (value,) for key, value in CRF.items()}
    grid |= {"iterations": (0,), "appearance_weight": (0.0,)}
    rows = tune_crf.tune_crf(config, trained, output=tmp_path, grid=grid, images=3)
    assert rows[0]["miou"] == pytest.approx(rows[1]["miou"])  # no iterations, no CRF
    search = json.loads((tmp_path / "search.json").read_text())
    assert search["split"] == "train" and search["images"] == 3
    (file,) = (tmp_path / "probabilities").iterdir()
    with np.load(file) as arrays:
        assert arrays["probabilities"].shape == (4, 48, 48, 9)
        assert (arrays["label"][3] == 255).all()  # the batch is filled up
        images = arrays["image"]
    source = datasets.load(config.data, "train")[0]
    whole = [source[i]["image"] for i in range(len(source))]
    where = [
        [np.array_equal(image, x) for x in whole].index(True) for image in images[:3]
    ]
    assert where == sorted(set(where)) and where != [0, 1, 2]


def test_values_of_the_search_flags():
    config = config_lib.make(crf={"iterations": 4, "color_order": "caffe"})
    values = functools.partial(tune_crf._values, config=config)
    assert values("appearance_weight", ["3", "4.5"]) == (3.0, 4.5)
    assert values("normalization", ["after", "symmetric"]) == ("after", "symmetric")
    fails("--iterations=2.5: expected int values", values, "iterations", ["2.5"])
    fails("--appearance_weight=: expected", values, "appearance_weight", [])
    # What config.crf sets is not searched but honored.
    assert values("iterations", []) == (4,) and values("iterations", ["9"]) == (9,)
    assert values("color_order", []) == ("caffe",)
    assert values("normalization", []) == ("after",)


# The benchmark


def test_benchmark_measures_and_draws_its_growth():
    image = np.random.default_rng(0).integers(0, 255, (8, 10, 1), np.uint8)
    settings = mean_field.Settings(**CRF)
    row = benchmark_crf.measure(image, 3, settings=settings, batch=2, rounds=1)
    parts = row["seconds"]
    assert parts["total"] == pytest.approx(sum(parts.values()) - parts["total"])
    assert min(parts["sort"], parts["build"]) > 0
    assert 0 < row["refine_seconds"] < row["first_refine_seconds"]
    (vertices,), (none, capacity) = row["vertices"], row["capacity"]
    assert none == 0 and 10 < vertices <= capacity <= 80 * 4
    assert row["bytes"] > 2 * 80 * 4 * (3 + 3)  # probabilities and marginals

    larger = row | {"size": [16, 20], "vertices": [2 * vertices], "classes": 6}
    found = {
        "pixels": [larger, row],
        "classes": [row, larger],
        "vertices": [larger, row],
    }
    curves = benchmark_crf.growth_curves(found)
    assert curves["pixels"]["x"] == [80, 320] and curves["classes"]["x"] == [3, 6]
    assert curves["vertices"]["x"] == [vertices, 2 * vertices]
    assert curves["pixels"]["total"] == [parts["total"]] * 2
    png = viz.growth_figure(curves)
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (560, 1200, 3)
    assert "16x20" in benchmark_crf.table(found["pixels"])
