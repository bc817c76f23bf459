"""Which field, checkpoint and image reaches which part of train, evaluate and predict.

Every file that the three programs write is decoded and compared with numpy.
"""

import functools
import json
import signal
import struct

import cv2
import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from workdirs import make_run

from experiments import evaluate, export, import_weights, predict, train
from experiments.shared import (
    evaluation_results,
    run_description,
    run_stats,
    training_run,
)
from segjax import checkpoint, inference, sharding, training
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data import datasets
from segjax.errors import UserError
from segjax.inference.trained import load_model
from segjax.workdir import read_metrics


@pytest.fixture(scope="module", autouse=True)
def signals():
    """Training takes SIGINT and SIGTERM over; give them back to pytest."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers):
        signal.signal(number, handler)


def changed(config, **fields):
    """A copy with other values; ``optim__lr`` is the field ``optim.lr``."""
    config = config_lib.make(**config_lib.json_like(config))
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in fields.items()}
    )
    return config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A U-Net without dropout, so that its first loss can be computed again."""
    return config_lib.make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (2, 4), "dropout": 0.0},
        data={
            "scenes_size": (48, 48),
            "scenes_train": 10,
            "scenes_validation": 6,
            "data_dir": str(tmp_path_factory.mktemp("data")),
        },
        augment={"crop": (32, 32), "scale": (0.7, 1.4)},
        optim={"name": "adam", "lr": 0.01},
        batch_size=4,
        eval_batch_size=4,
        total_steps=4,
        eval_every=0,
        eval_images=3,
        save_every=2,
        log_every=2,
        threads=1,
        seed=5,
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """Its workdir, for reading only."""
    workdir = tmp_path_factory.mktemp("scenes") / "run"
    assert train.train(config, workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def validation(config):
    """Images and labels of the validation split."""
    source, info = datasets.load(config.data, "validation")
    examples = [source[i] for i in range(len(source))]
    images = np.stack([example["image"] for example in examples])
    return images, np.stack([example["label"] for example in examples]), info


def variables_of(config, workdir, which):
    info = workdir_lib.read_dataset(workdir)
    return load_model(
        config, workdir, info=info, which=which, mesh=sharding.make_mesh()
    )


@pytest.fixture(scope="module")
def predicted(config, trained, validation):
    """Labels of the validation split by the model itself, without our predictors."""
    model, variables, step = variables_of(config, trained, "latest")
    assert step == 4
    apply = jax.jit(functools.partial(model.apply, train=False))
    logits, _ = apply(variables, validation[0])
    return np.asarray(logits).argmax(-1).astype(np.uint8)


def confusion_of(truth, prediction, classes):
    h = np.zeros((classes, classes), np.int64)
    valid = truth != 255
    np.add.at(h, (truth[valid], prediction[valid]), 1)
    return h


def scores_of(h):
    """The definitions of FCN (section 4), in numpy."""
    right, truth = np.diag(h), h.sum(1)
    union = truth + h.sum(0) - right
    iou = right[union > 0] / union[union > 0]
    weight = truth[union > 0] / truth.sum()
    return {
        "pixel_accuracy": right.sum() / truth.sum(),
        "mean_accuracy": (right[truth > 0] / truth[truth > 0]).mean(),
        "miou": iou.mean(),
        "fwiou": (weight * iou).sum(),
    }


# What training writes


def test_first_losses_are_those_of_the_seed_and_rows_are_means(
    config, trained, tmp_path
):
    """Cross entropy of the seed's first batch in float64; rows average two steps."""
    setup = training_run.build_run(config)
    state, batch = setup.init(), next(setup.batches(0))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    apply = functools.partial(setup.model.apply, train=True, mutable=["batch_stats"])
    (logits, _), _ = jax.jit(apply)(variables, batch["image"])
    logits = np.asarray(logits, np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    valid = batch["label"] != 255
    assert 0 < valid.sum() < valid.size
    expected = -logs[valid, batch["label"][valid]].mean()

    every = tmp_path / "every"
    assert train.train(changed(config, log_every=1, eval_images=0), every) == 0
    steps = [row for row in read_metrics(every) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert steps[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert steps[0]["loss"] == steps[0]["main_loss"]
    pairs = [row for row in read_metrics(trained) if "loss" in row]
    assert [row["step"] for row in pairs] == [2, 4]
    for name in ("loss", "grad_norm"):
        values = [row[name] for row in steps]
        means = [np.mean(values[:2]), np.mean(values[2:])]
        assert [row[name] for row in pairs] == pytest.approx(means, rel=1e-6)
    # The rate of the last of them, by which 1 and 3 steps had gone.
    rates = [0.01 * (1 - gone / 4) ** 0.9 for gone in (1, 3)]
    assert [row["lr"] for row in pairs] == pytest.approx(rates, rel=1e-6)


def test_the_seed_reaches_the_parameters_and_the_batches(config):
    one, same, other = (
        training_run.build_run(changed(config, seed=seed)) for seed in (5, 5, 6)
    )
    kernels = [s.init().params["head"]["kernel"] for s in (one, same, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert (np.asarray(kernels[0]) != np.asarray(kernels[2])).mean() > 0.9
    batches = [next(s.batches(0)) for s in (one, same, other)]
    np.testing.assert_array_equal(batches[0]["image"], batches[1]["image"])
    assert (batches[0]["image"] != batches[2]["image"]).mean() > 0.5


def test_validation_json_and_logged_scores_are_of_the_last_step(
    config, trained, validation, predicted
):
    _, truth, info = validation
    h = confusion_of(truth, predicted, len(info.classes))
    found = json.loads((trained / "validation.json").read_text())
    assert found["confusion"] == h.tolist() and found["step"] == 4
    assert found["peak_of"] == "process" and 1e7 < found["peak_bytes"] < 1e11
    assert found["images_per_second"] > 0 and found["compile_seconds"] > 0
    (row,) = [row for row in read_metrics(trained) if "val_miou" in row]
    expected = {f"val_{name}": value for name, value in scores_of(h).items()}
    assert row == pytest.approx({"step": 4} | expected, abs=1e-9)


def test_measured_peaks_are_those_of_all_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(run_stats, "peak_memory", lambda: (100, "device"))
    for seconds, rate in ((7.0, 1.0), (3.0, 2.0)):
        monkeypatch.setattr(run_stats.compilation, "seconds", lambda s=seconds: s)
        run_stats.save(tmp_path, 3, confusion=np.eye(2, dtype=np.int64), rate=rate)
        monkeypatch.setattr(run_stats, "peak_memory", lambda: (40, "device"))
    found = workdir_lib.read_validation(tmp_path)
    assert (found["compile_seconds"], found["peak_bytes"]) == (7.0, 100)
    assert (found["images_per_second"], found["confusion"]) == (2.0, [[1, 0], [0, 1]])
    assert [path.name for path in tmp_path.iterdir()] == ["validation.json"]


def columns(path, count, size):
    """The pictures of a panel, without captions and enlargement."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    zoom = -(-160 // size[1])
    width = zoom * size[1]
    assert picture.shape[1] >= count * width
    gap = (picture.shape[1] - count * width) // (count - 1)
    top = picture.shape[0] - zoom * size[0]
    starts = [i * (width + gap) for i in range(count)]
    return [picture[top::zoom, x : x + width : zoom] for x in starts]


def check_pictures(paths, validation, predicted):
    images, truth, info = validation
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(info.palette)] = info.palette
    assert (colors != colors[:, ::-1]).any() and len(paths) == 3
    for i, path in enumerate(paths):
        image, label, prediction = columns(path, 3, images.shape[1:3])
        np.testing.assert_array_equal(image, images[i])
        np.testing.assert_array_equal(label, colors[truth[i]])
        np.testing.assert_array_equal(prediction, colors[predicted[i]])


def test_pictures_of_training_are_rgb_and_of_the_first_images(
    trained, validation, predicted
):
    paths = [trained / "pictures" / f"00000004_{i}.png" for i in range(3)]
    assert sorted((trained / "pictures").iterdir()) == paths
    check_pictures(paths, validation, predicted)


def events(folder):
    """All events of TensorBoard files: length, checksum, data, checksum."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_tensorboard_holds_the_metrics_and_the_pictures(trained):
    scalars, pictures = {}, {}
    for event in events(trained / "tensorboard"):
        for value in event.summary.value:
            if value.HasField("image"):
                data = np.frombuffer(value.image.encoded_image_string, np.uint8)
                picture = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
                pictures[event.step, value.tag] = picture
            else:
                scalars[event.step, value.tag] = value.simple_value
    rows = {
        (row["step"], key): value
        for row in read_metrics(trained)
        for key, value in row.items()
        if key != "step"
    }
    assert scalars == pytest.approx(rows, rel=1e-6) and len(rows) > 10
    assert sorted(pictures) == [(4, f"validation/{i}") for i in range(3)]
    for (step, tag), picture in pictures.items():
        path = trained / "pictures" / f"{step:08d}_{tag[-1]}.png"
        np.testing.assert_array_equal(picture, np.asarray(Image.open(path)))


# Resuming


FREE = {
    *("workers", "threads", "eval_every", "eval_batch_size", "eval_images"),
    *("save_every", "log_every", "keep", "tile", "total_steps", "total_epochs"),
    "state_sharding",
    # What these folders hold is compared with what the run began with.
    *("data.root", "data.data_dir", "data.pseudo_labels"),
    *(f"crf.{field}" for field in config_lib.DEFAULTS["crf"]),
}


def leaves(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def other_value(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, tuple):
        return (*value[:-1], other_value(value[-1])) if value else ("a=1",)
    return value + 1


def test_every_field_is_either_free_or_refused_on_resume(config, validation, tmp_path):
    """All fields of all sections: a run never goes on with another one silently."""
    info, run = validation[-1], tmp_path / "run"
    run.mkdir()

    def prepare(config):
        run_description.check_same_run(config, info, {}, workdir=run)
        run_description.write_description(config, info, {}, workdir=run)

    prepare(config)
    fields = dict(leaves(config_lib.json_like(config)))
    sections = {name.partition(".")[0] for name in fields if "." in name}
    assert sections == {"model", "data", "augment", "loss", "optim", "crf"}
    assert fields.keys() >= FREE and len(fields) > 70
    for name, value in fields.items():
        new = other_value(value)
        other = changed(config, **{name: new})
        if name in FREE:
            prepare(other)
            saved = config_lib.load(run / "config.json")
            assert dict(leaves(config_lib.json_like(saved)))[name] == new
            prepare(config)
            continue
        text = f"config.{name}={value!r}, this command has {new!r}: use another"
        with pytest.raises(UserError) as caught:
            prepare(other)
        assert text in str(caught.value)
        assert config_lib.load(run / "config.json") == config


@pytest.mark.parametrize(
    "field, value",
    [
        ("augment.flip", 0.0),
        ("loss.normalize", "images"),
        ("data.scenes_seed", 1),
        ("model.bn_momentum", 0.5),
        ("seed", 6),
    ],
)
def test_train_refuses_other_fields_of_a_run(config, trained, field, value):
    before = (trained / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=rf"was trained with --config\.{field}="):
        train.train(changed(config, **{field: value, "total_steps": 5}), trained)
    assert (trained / "metrics.jsonl").read_bytes() == before


# Evaluate


def test_files_of_evaluate(config, trained, validation, predicted, monkeypatch):
    _, truth, info = validation
    drawn = []

    def figure(confusion, classes):
        drawn.append((np.asarray(confusion).tolist(), tuple(classes)))
        return b"figure"

    monkeypatch.setattr(evaluation_results.viz, "confusion_figure", figure)
    returned = evaluate.evaluate(config, trained, checkpoint="latest")
    folder = trained / "evaluation"  # the default
    found = json.loads((folder / "validation.json").read_text())
    assert found == json.loads(json.dumps(returned))
    h = confusion_of(truth, predicted, len(info.classes))
    assert found["confusion"] == h.tolist()
    assert found["scores"] == pytest.approx(scores_of(h), abs=1e-12)
    for i, name in enumerate(info.classes):
        row, right = found["classes"][name], h[i, i]
        union = h[i].sum() + h[:, i].sum() - right
        assert row["frequency"] == pytest.approx(h[i].sum() / h.sum())
        assert row["accuracy"] == (
            pytest.approx(right / h[i].sum()) if h[i].any() else None
        )
        assert row["iou"] == (pytest.approx(right / union) if union else None)
    assert (found["dataset"], found["split"]) == ("scenes", "validation")
    assert (found["images"], found["step"]) == (6, 4)
    assert found["image_size"] == [[48, 48]]
    assert drawn == [(h.tolist(), info.classes)]
    assert (folder / "validation_confusion.png").read_bytes() == b"figure"
    paths = [folder / f"validation_{i}.png" for i in range(3)]
    check_pictures(paths, validation, predicted)


def test_evaluate_reads_the_split_that_is_asked_for(config, trained, tmp_path):
    results = evaluate.evaluate(
        changed(config, eval_images=0), trained, split="train", output=tmp_path, worst=0
    )
    assert (results["split"], results["images"]) == ("train", 10)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"train.json", "train_images.csv", "train_confusion.png"}


# The checkpoint that is read


SAME = {"padding": "same", "widths": (2, 3)}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run whose latest checkpoint is of step 7 and whose best one is of step 3."""
    folder = tmp_path_factory.mktemp("two") / "run"
    config, model, latest = make_run(folder, "unet", SAME, classes=5)
    _, _, best = make_run(folder.parent / "other", "unet", SAME, classes=5, seed=9)
    state = training.TrainState(
        jax.numpy.array(3), **best, opt_state={"m": jax.numpy.ones(1)}
    )
    manager = checkpoint.open_folder(folder / "best", 1)
    checkpoint.save(manager, state, {})
    checkpoint.finish(manager)
    manager.close()
    return folder, config, model, {3: best, 7: latest}


@pytest.mark.parametrize(
    "which, step", [("best", 3), ("latest", 7), ("3", 3), ("7", 7)]
)
def test_the_checkpoint_that_is_asked_for(two, which, step):
    folder, config, _, variables = two
    _, found, loaded = variables_of(config, folder, which)
    assert loaded == step
    jax.tree.map(np.testing.assert_array_equal, found, variables[step])
    model = inference.load(folder, checkpoint=which)
    assert model.steps == (step,)
    jax.tree.map(np.testing.assert_array_equal, model.variables[0], variables[step])


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """An image that JPEG keeps: steps of color in large squares."""
    folder = tmp_path_factory.mktemp("flat")
    colors = np.array([[(200, 60, 20), (30, 160, 90)], [(90, 20, 180), (240, 240, 0)]])
    image = colors.astype(np.uint8).repeat(16, 0).repeat(24, 1)
    Image.fromarray(image).save(folder / "flat.png")
    return folder / "flat.png", image


def test_predict_reads_the_best_checkpoint_unless_told(two, flat, tmp_path):
    folder, config, model, variables = two
    path, image = flat
    all_outputs = ("labels", "ids", "overlays", "probabilities")
    labels = {}
    for name, options, step in (
        ("default", {}, 3),
        ("latest", {"checkpoint": "latest"}, 7),
    ):
        output = tmp_path / name
        summary = predict.predict(
            config,
            folder,
            paths=[str(path)],
            output=output,
            outputs=all_outputs,
            padding=0,
            **options,
        )
        logits = np.asarray(
            model.apply(variables[step], image[None], train=False)[0][0], np.float64
        )
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        expected = powers / powers.sum(-1, keepdims=True)
        with np.load(output / "probabilities" / "flat.npz") as file:
            assert file.files == ["probabilities"]
            probabilities = file["probabilities"].astype(np.float64)
        np.testing.assert_allclose(probabilities, expected, atol=2e-3)
        ids = Image.open(output / "ids" / "flat.png")
        label = labels[name] = np.asarray(ids)
        assert ids.mode == "L" and label.dtype == np.uint8
        assert (label == expected.argmax(-1)).mean() > 0.98
        file = Image.open(output / "labels" / "flat.png")
        np.testing.assert_array_equal(np.asarray(file), label)
        palette = datasets.voc_palette(5)
        np.testing.assert_array_equal(np.asarray(file.convert("RGB")), palette[label])
        # Half of the image, half of the color; JPEG halves the resolution of colors.
        overlay = np.asarray(Image.open(output / "overlays" / "flat.jpg"), np.float64)
        mixed = (image.astype(np.float64) + palette[label]) / 2
        error = np.abs(overlay - mixed).mean()
        assert error < 8
        for swapped in (
            mixed[..., ::-1],
            (image.astype(np.float64) + palette[label][..., ::-1]) / 2,
        ):
            assert error < np.abs(overlay - swapped).mean()
        settings = json.loads((output / "settings.json").read_text())
        (used,) = settings["checkpoints"]
        assert used["step"] == step
        shares = np.bincount(label.reshape(-1), minlength=5) / label.size
        written = json.loads((output / "summary.json").read_text())
        assert written["classes"] == pytest.approx(
            dict(zip((f"class{i}" for i in range(5)), shares))
        )
        assert written == summary and written["padding"] == 3  # empty rows
        assert written["programs"] == [{"shape": [4, 32, 48], "batches": 1}]
        rate = written["images_per_second"]
        assert written["megapixels_per_second"] == pytest.approx(rate * 32 * 48 / 1e6)
    assert (labels["default"] != labels["latest"]).any()


def test_probabilities_of_an_ensemble_sum_to_one(two, flat, tmp_path):
    folder, config, model, variables = two
    path, image = flat
    predict.predict(
        config,
        folder,
        paths=[str(path)],
        output=tmp_path,
        outputs=("probabilities",),
        ensemble=[str(folder / "checkpoints" / "7")],
        padding=0,
    )
    with np.load(tmp_path / "probabilities" / "flat.npz") as file:
        found = file["probabilities"].astype(np.float64)
    np.testing.assert_allclose(found.sum(-1), 1, atol=3e-3)
    parts = []
    for step in (3, 7):
        logits = model.apply(variables[step], image[None], train=False)[0][0]
        powers = np.exp(np.asarray(logits, np.float64))
        parts.append(powers / powers.sum(-1, keepdims=True))
    np.testing.assert_allclose(found, (parts[0] + parts[1]) / 2, atol=2e-3)
    assert np.abs(parts[0] - parts[1]).max() > 0.05
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert [used["step"] for used in settings["checkpoints"]] == [3, 7]


@pytest.mark.parametrize("options, step", [({}, 3), ({"checkpoint": "latest"}, 7)])
def test_export_writes_the_best_checkpoint_unless_told(two, tmp_path, options, step):
    folder, config, _, variables = two
    facts = export.export(
        config,
        folder,
        output=tmp_path,
        sizes=[(8, 8)],
        platforms=("cpu",),
        **options,
    )
    assert tuple(facts["checkpoint_steps"]) == (step,)
    expected = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path((variables[step],))
    }
    with np.load(tmp_path / "weights.npz") as file:
        assert set(file.files) == expected.keys()
        for name, leaf in expected.items():
            np.testing.assert_array_equal(file[name], leaf)


def test_import_weights_of_a_run_takes_its_best_checkpoint(two, tmp_path):
    folder, _, _, variables = two
    output = tmp_path / "run.safetensors"
    import_weights.export_run(folder, output)
    data = output.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    facts = json.loads(header.pop("__metadata__")["segjax"])
    assert "step 3" in facts["source"] and facts["num_classes"] == 5
    kernel = variables[3]["params"]["head"]["kernel"]
    row = header["params/head/kernel"]
    start, end = (8 + length + offset for offset in row["data_offsets"])
    found = np.frombuffer(data[start:end], np.float32).reshape(row["shape"])
    np.testing.assert_array_equal(found, kernel)
    assert len(header) == len(jax.tree.leaves(variables[3]))
