"""Predict, evaluate, export, the search and the library honor the same fields."""

import functools
import json
import os
import types

import jax
import numpy as np
import pytest
import tqdm
from PIL import Image
from workdirs import make_run

from experiments import evaluate, export, predict, tune_crf
from experiments.benchmarks import predict as benchmark_predict
from experiments.shared import (
    exported_loader,
    predict_flags,
    prediction_files,
    prediction_folder,
)
from segjax import compilation, inference
from segjax import config as config_lib
from segjax.errors import UserError
from segjax.inference import PredictOptions, collection

SAME = {"padding": "same", "widths": (2, 3)}
NATIVE, RESIZED = (48, 60), (16, 20)  # the centers of 3 x 3 pixels are kept exactly


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of three images and masks, all for validation; the masks by stem."""
    root = tmp_path_factory.mktemp("data")
    masks = {}
    for name in ("images", "masks"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
        image = Image.fromarray(coarse).resize(NATIVE[::-1], Image.Resampling.BICUBIC)
        image.save(root / "images" / f"{i}.png")
        mask = rng.integers(0, 3, NATIVE, np.uint8)
        mask[:5] = 255
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
        masks[str(i)] = mask
    (root / "val.txt").write_text("0\n1\n2\n")
    (root / "train.txt").write_text("3\n")
    (root / "classes.txt").write_text("class0\nclass1\nclass2\n")
    return root, masks


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Two workdirs of random networks, and the config of the first one."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"data": {"name": "folder", "root": str(data[0])}, "eval_images": 0}
    for seed, name in ((2, "run"), (7, "other")):  # whose classes are about equal
        config, *_ = make_run(folder / name, "unet", SAME, seed=seed, **options)
    return folder / "run", folder / "other", config


def changed(config, **fields):
    values = config_lib.json_like(config)
    for name, value in fields.items():
        if isinstance(value, dict):
            value = values[name] | value
        values[name] = value
    return config_lib.make(**values)


def images_of(root):
    return [str(root / "images" / f"{i}.png") for i in range(3)]


def labels_of(output):
    paths = [output / "labels" / f"{i}.png" for i in range(3)]
    return [np.asarray(Image.open(path)) for path in paths]


def confusion_of(masks, labels):
    h = np.zeros((3, 3), int)
    for mask, label in zip(masks, labels, strict=True):
        known = mask != 255
        np.add.at(h, (mask[known], label[known]), 1)
    return h


CRF = {
    "iterations": 2,
    "appearance_sigma_xy": 20.0,
    "appearance_sigma_rgb": 60.0,
    "smoothness_filter": "separable",
}


@pytest.mark.parametrize(
    "fields",
    [
        {"options": PredictOptions(window=(20, 24), stride=0.5)},
        {"options": PredictOptions(scales=(0.5, 1.25), flip=True)},
        {"ensemble": True},
        {"crf": "config"},
    ],
    ids=lambda fields: ",".join(fields),
)
def test_scores_are_those_of_the_labels_that_predict_writes(
    run, data, tmp_path, fields
):
    workdir, other, config = run
    root, masks = data
    config = changed(config, crf=CRF)
    fields = dict(fields)
    if "ensemble" in fields:
        fields["ensemble"] = [str(other)]
    results = evaluate.evaluate(config, workdir, output=tmp_path / "eval", **fields)
    predict.predict(
        config,
        workdir,
        paths=images_of(root),
        output=tmp_path / "out",
        outputs=("labels",),
        **fields,
    )
    h = confusion_of([masks[i] for i in "012"], labels_of(tmp_path / "out"))
    scored = results["crf"] if "crf" in fields else results
    np.testing.assert_array_equal(h, scored["confusion"])
    assert scored["scores"]["pixel_accuracy"] == pytest.approx(h.trace() / h.sum())
    plain = inference.load(workdir, config=config).predict(images_of(root))
    assert (confusion_of([masks[i] for i in "012"], plain) != h).any()
    if "options" in fields:
        assert results["options"] == json.loads(json.dumps(results["options"])) | {
            key: getattr(fields["options"], key) for key in ("window", "scales")
        }


def test_images_are_resized_as_in_training(run, data, tmp_path):
    """At the centers of 3 x 3 pixels, results are those of the resized image."""
    workdir, _, config = run
    root, masks = data
    config = changed(config, data={"resize": RESIZED})
    results = evaluate.evaluate(config, workdir, output=tmp_path / "eval")
    summary = predict.predict(
        config,
        workdir,
        paths=images_of(root),
        output=tmp_path / "out",
        outputs=("labels", "probabilities", "overlays"),
    )
    assert [row["shape"][1:] for row in summary["programs"]] == [list(RESIZED)]
    assert summary["compiled"] == {"programs": 1, "after_warm_up": 0}
    labels = labels_of(tmp_path / "out")
    assert {label.shape for label in labels} == {NATIVE}
    with Image.open(tmp_path / "out/overlays/0.jpg") as overlay:
        assert overlay.size == NATIVE[::-1]
    centers = np.s_[1::3, 1::3]
    small = [label[centers] for label in labels]
    h = confusion_of([masks[i][centers] for i in "012"], small)
    np.testing.assert_array_equal(h, results["confusion"])
    for i, label in enumerate(labels):
        with np.load(tmp_path / f"out/probabilities/{i}.npz") as file:
            probabilities = file["probabilities"]
        assert probabilities.shape == (*NATIVE, 3)
        np.testing.assert_allclose(probabilities.sum(-1), 1, atol=2e-3)
        assert (probabilities.argmax(-1) == label).mean() > 0.99

    # The library, and an image whose result comes in parts.
    segmenter = inference.load(workdir, config=config)
    for max_pixels in (2**22, 1000):
        again = segmenter.predict(images_of(root), max_pixels=max_pixels)
        for one, other in zip(again, labels):
            np.testing.assert_array_equal(one, other)
    parts = tmp_path / "parts"
    predict.predict(
        *(config, workdir),
        paths=images_of(root),
        output=parts,
        outputs=("labels", "probabilities"),
        max_pixels=1000,
    )
    for one, other in zip(labels_of(parts), labels):
        np.testing.assert_array_equal(one, other)
    native = inference.load(workdir, config=run[2]).predict(images_of(root))
    assert np.mean([(a == b).mean() for a, b in zip(native, labels)]) < 0.95

    # An exported model; it resizes by itself.
    with pytest.raises(UserError, match="--sizes: .* --config.data.resize=.16, 20."):
        export.export(config, workdir, output=tmp_path / "x", sizes=[(8, 8)])
    facts = export.export(
        config, workdir, output=tmp_path / "exported", platforms=["cpu"]
    )
    assert [row["file"] for row in facts["programs"]] == ["program_16x20.jax"]
    load = exported_loader.load(tmp_path / "exported")
    pixels = [np.asarray(Image.open(path)) for path in images_of(root)]
    for one, other in zip(load(pixels), labels):
        assert one.dtype == np.uint8 and one.shape == NATIVE
        assert (one == other).mean() > 0.98  # gray levels may be rounded otherwise
    scores = load(pixels[:1], probabilities=True)[0]
    assert scores.shape == (*NATIVE, 3)
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-4)


def test_an_ensemble_has_one_resize(run, tmp_path):
    workdir, other, config = run
    config = changed(config, data={"resize": RESIZED})
    with pytest.raises(UserError, match="--config.data.resize=.0, 0., .* at .16, 20."):
        inference.load(workdir, other, config=config)


# Which program honors what: the segmenter that its flags and config make


class Captured(Exception):
    """Instead of predicting."""


FLAGS = {
    "window": (["9", "8"], lambda s: s.options.window == (9, 8)),
    "stride": (0.25, lambda s: s.options.stride == 0.25),
    "scales": (["0.5", "2"], lambda s: s.options.scales == (0.5, 2.0)),
    "scale_rule": ("max", lambda s: s.options.scale_rule == "max"),
    "flip": (True, lambda s: s.options.flip is True),
    "rotations": (7, lambda s: s.options.rotations == 7),
    "ensemble_rule": ("product", lambda s: s.options.ensemble_rule == "product"),
    "tile": (36, lambda s: s.options.tile == 36),
    "ensemble": (["OTHER"], lambda s: len(s.models) == 2 and s.steps == (7, 7)),
    "checkpoint": ("7", lambda s: s.steps == (7,)),
    "crf": ("deeplab_v1", lambda s: s.crf.appearance_sigma_xy == 49),
}
CONFIG = {
    "data": ({"resize": RESIZED}, lambda s: s.resize == RESIZED),
    "precision": ("float32", lambda s: s.precision == "float32"),
    "eval_batch_size": (8, lambda s: s.batch_size == 8),
    "tile": (36, lambda s: s.options.tile == 36),
}
PROGRAMS = {
    "predict": predict,
    "evaluate": evaluate,
    "export": export,
    "tune_crf": tune_crf,
    "benchmarks.predict": benchmark_predict,
}
# evaluate scores without and with the CRF, tune_crf has its own flags, and an exported
# model and the benchmark have none.
NOT_THERE = {(name, "crf") for name in PROGRAMS.keys() - {"predict"}}
VALID = {"padding": "valid", "widths": (2, 3)}


@pytest.fixture(scope="module")
def tiled(data, tmp_path_factory):
    """A network with a margin."""
    folder = tmp_path_factory.mktemp("tiled") / "run"
    options = {"data": {"name": "folder", "root": str(data[0])}, "eval_images": 0}
    return folder, make_run(folder, "unet", VALID, **options)[0]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("field", [*FLAGS, *(f"config.{name}" for name in CONFIG)])
def test_programs_honor_every_field(
    run, tiled, data, tmp_path, monkeypatch, program, field
):
    if (program, field) in NOT_THERE:
        return
    module = PROGRAMS[program]
    workdir, other, config = run
    if field.endswith("tile"):
        workdir, config = tiled
    values = {
        **PredictOptions()._asdict(),
        **{"tile": -1, "window": [], "scales": ["1"]},
        **{"checkpoint": "best", "ensemble": [], "crf": "", "trimap": False},
        **{"workdir": str(workdir), "output": str(tmp_path / "out"), "split": ""},
        **{"outputs": ["labels"], "padding": 0.25, "max_pixels": 2**22},
        **{"predictions": "", "allow_missing": False, "stages": "all"},
        **{"metrics": [], "worst": 0, "submission": ""},
        **{"overwrite": False, "sizes": [], "platforms": ["cpu"], "images": 2},
        **{"rounds": 1, "formats": []},
        **{key: [str(v) for v in tried] for key, tried in tune_crf.GRID.items()},
    }
    name = field.removeprefix("config.")
    if field.startswith("config."):
        value, honored = CONFIG[name]
        config = changed(config, **{name: value})
    else:
        value, honored = FLAGS[name]
        values[name] = [str(other)] if name == "ensemble" else value
    if program == "export" and field != "config.data":
        values["sizes"] = ["16x20"]
    values["config"] = config
    flags = types.SimpleNamespace(FLAGS=types.SimpleNamespace(**values))
    monkeypatch.setattr(module, "flags", flags)
    monkeypatch.setattr(predict_flags, "flags", flags)
    monkeypatch.setattr(module.cli, "start", lambda: None)
    load, captured = inference.load, []

    def capture(*args, **kwargs):
        captured.append(load(*args, **kwargs))
        raise Captured

    monkeypatch.setattr(inference, "load", capture)
    takes_images = program in ("predict", "benchmarks.predict")
    with pytest.raises(Captured):
        module.main([program, *(images_of(data[0]) if takes_images else [])])
    (segmenter,) = captured
    assert honored(segmenter)


@pytest.mark.parametrize("program", ["evaluate", "tune_crf"])
def test_flags_reach_the_function_behind_the_program(
    run, tmp_path, monkeypatch, program
):
    workdir, other, config = run
    given = {"checkpoint": "7", "split": "other", "ensemble": [str(other)]}
    own = {
        "evaluate": {"crf": "deeplab_v1", "trimap": True, "stages": "last"}
        | {"padding": 0.5, "max_pixels": 999, "metrics": ["image_iou"], "worst": 2},
        "tune_crf": {"images": 5},
    }[program]
    values = {"config": config, "workdir": str(workdir), "output": str(tmp_path)}
    values |= PredictOptions()._asdict() | {"tile": -1, "window": [], "scales": ["1"]}
    values["flip"] = True
    searched = {key: [str(v) for v in tried] for key, tried in tune_crf.GRID.items()}
    flags = types.SimpleNamespace(
        FLAGS=types.SimpleNamespace(
            **values, **given, **own, **searched, predictions="", allow_missing=False
        )
    )
    calls = []

    def capture(*args, **kwargs):
        calls.append((args, kwargs))
        raise Captured

    module = PROGRAMS[program]
    monkeypatch.setattr(module, "flags", flags)
    monkeypatch.setattr(predict_flags, "flags", flags)
    monkeypatch.setattr(module.cli, "start", lambda: None)
    monkeypatch.setattr(module, program, capture)
    with pytest.raises(Captured):
        module.main([program])
    expected = {"output": tmp_path, "options": PredictOptions(flip=True)}
    expected |= given | own
    if program == "tune_crf":
        expected["grid"] = tune_crf.GRID
    assert calls == [((config, workdir), expected)]


def test_precision_reaches_every_compiled_function(run, data, tmp_path, monkeypatch):
    """Products of the lowered programs ask for it; evaluation and search enter it."""
    workdir, _, config = run
    config = changed(config, precision="float32")
    segmenter = inference.load(workdir, config=config)
    names = []
    real = compilation.precision

    def recorded(name):
        names.append(name)
        return real(name)

    monkeypatch.setattr(compilation, "precision", recorded)
    segmenter.executable((4, 8, 8))
    assert names == ["float32"]
    export.export(
        config, workdir, output=tmp_path, sizes=[(8, 8)], platforms=["cpu", "tpu"]
    )
    data_of = (tmp_path / "program_8x8.jax").read_bytes()
    text = jax.export.deserialize(bytearray(data_of)).mlir_module()
    assert "precision HIGHEST" in text or "HIGHEST" in text
    names.clear()
    evaluate.evaluate(config, workdir, output=tmp_path / "eval")
    assert names == ["float32"]
    names.clear()
    grid = {key: values[:1] for key, values in tune_crf.GRID.items()}
    grid |= {"iterations": (0,), "appearance_weight": (0.0,)}
    tune_crf.tune_crf(config, workdir, output=tmp_path / "crf", grid=grid, images=1)
    assert names == ["float32"]


def test_benchmark_measures_no_images_in_parts(monkeypatch):
    """Its loops without a network, and one by one, would do something else."""
    plan = collection.Plan(["a.png"], {0: (9, 9)}, {}, [], [0], 80)
    monkeypatch.setattr(collection, "plan", lambda *_, **__: plan)
    options = {"outputs": ["labels"], "padding": 0.0, "threads": 1, "rounds": 1}
    with pytest.raises(UserError, match="a.png: has more than 80 pixels, which exp"):
        benchmark_predict.benchmark(None, ["a.png"], **options)


# Folders and names


def segment(run, paths, output, **options):
    return predict.predict(
        *(run[2], run[0]), paths=paths, output=output, outputs=("labels",), **options
    )


def test_results_are_no_input_of_the_next_run(run, tmp_path):
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    everything = [str(tmp_path / "**/*.png")]
    for output in (tmp_path / "out", tmp_path / "second"):
        assert segment(run, everything, output)["written"] == 2
    again = segment(run, everything, tmp_path / "out")
    assert (again["images"], again["already_done"], again["written"]) == (2, 2, 0)
    with pytest.raises(UserError, match="only results of experiments.predict there"):
        segment(run, [str(tmp_path / "out/labels")], tmp_path / "out")
    # A folder that only has such a name is one of images.
    (tmp_path / "own/labels").mkdir(parents=True)
    (tmp_path / "0.png").rename(tmp_path / "own/labels/0.png")
    own = segment(run, [str(tmp_path / "own/**/*.png")], tmp_path / "third")
    assert own["written"] == 1


def test_images_that_are_skipped_are_said(run, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (20, 16)).save(folder / "a.png")
    Image.new("RGB", (20, 16)).save(folder / "b.webp", lossless=True)
    (folder / "notes.txt").write_text("hello")
    summary = segment(run, [str(folder)], tmp_path / "out")
    assert (summary["written"], summary["skipped"]) == (2, [])
    assert "notes.txt" in capsys.readouterr().err
    (folder / "c.heic").write_bytes(b"x")
    summary = segment(run, [str(folder)], tmp_path / "out")
    assert summary["skipped"] == [str(folder / "c.heic")]
    assert "c.heic" in capsys.readouterr().err


def test_a_name_that_is_too_long_for_the_results(run, tmp_path):
    """245 bytes that file systems take, but not with what is added to them."""
    names = ["長" * 80 + "1", "長" * 80 + "2", "short"]
    for i, name in enumerate(names):
        Image.new("RGB", (20, 16), (i, 0, 0)).save(tmp_path / f"{name}.png")
    summary = segment(run, [str(tmp_path)], tmp_path / "out")
    assert (summary["written"], summary["failures"]) == (3, {})
    written = sorted(path.stem for path in (tmp_path / "out/labels").iterdir())
    assert len(written) == 3 and "short" in written
    assert all(len(os.fsencode(name)) <= 200 for name in written)
    assert segment(run, [str(tmp_path)], tmp_path / "out")["already_done"] == 3


def test_a_name_that_the_disk_refuses_fails_alone(run, data, tmp_path, monkeypatch):
    write = prediction_files.write_outputs

    def refuse(folder, name, **arguments):
        if name == "1":
            name = "x" * 300
        write(folder, name, **arguments)

    monkeypatch.setattr(prediction_folder, "write_outputs", refuse)
    summary = segment(run, images_of(data[0]), tmp_path / "out")
    (text,) = summary["failures"].values()
    assert summary["written"] == 2 and "give the image another name" in text


def test_rows_do_not_depend_on_the_progress_bar(run, tmp_path, monkeypatch):
    """As with TQDM_DISABLE=1, of an image in parts."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    paths = [str(tmp_path / "large.png")]
    options = {"options": PredictOptions(window=(24,)), "max_pixels": 1000}
    labels = []
    for name, disable in (("with", False), ("without", True)):
        bar = functools.partial(tqdm.tqdm, disable=disable)
        monkeypatch.setattr(prediction_folder.tqdm, "tqdm", bar)
        assert segment(run, paths, tmp_path / name, **options)["in_parts"] == 1
        labels.append(np.asarray(Image.open(tmp_path / name / "labels/large.png")))
    np.testing.assert_array_equal(*labels)
    assert (labels[0][40:] != 0).any()


@pytest.mark.parametrize("padding", [float("nan"), -0.1, float("inf")])
def test_limits_that_cannot_be(run, data, tmp_path, padding):
    with pytest.raises(UserError, match="--padding="):
        segment(run, images_of(data[0]), tmp_path / "out", padding=padding)
    for max_pixels in (0, -5):
        with pytest.raises(UserError, match=f"--max_pixels={max_pixels}"):
            segment(run, images_of(data[0]), tmp_path / "out", max_pixels=max_pixels)
    assert not (tmp_path / "out").exists()


def test_damaged_records_of_a_folder(run, data, tmp_path):
    output = tmp_path / "out"
    assert segment(run, images_of(data[0]), output)["written"] == 3
    log = output / "done_0.jsonl"
    first, second, third = log.read_text().splitlines()
    record = json.loads(second)
    damaged = [
        "[" * 100_000,
        "null",
        "3",
        json.dumps(record | {"pixels": [1]}),
        json.dumps(record | {"size": [0, 5]}),
        json.dumps(record | {"name": 3}),
        json.dumps(record | {"version": "x"}),
        json.dumps({"name": record["name"]}),
    ]
    log.write_text("\n".join([first, *damaged, third]) + "\n")
    again = segment(run, images_of(data[0]), output)
    assert (again["already_done"], again["written"]) == (2, 1)
    for text in ("", "{", "[]", '"x"'):
        (output / "settings.json").write_text(text)
        with pytest.raises(UserError, match="settings.json: ") as caught:
            segment(run, images_of(data[0]), output)
        assert "\n" not in str(caught.value)
    # Folders of before the options had that name.
    segment(run, images_of(data[0]), output, overwrite=True)
    settings = json.loads((output / "settings.json").read_text())
    settings["method"] = settings.pop("options")
    del settings["method"]["rotations"]  # nor had they all of them
    del settings["resize"], settings["precision"]
    (output / "settings.json").write_text(json.dumps(settings))
    assert segment(run, images_of(data[0]), output)["already_done"] == 3
