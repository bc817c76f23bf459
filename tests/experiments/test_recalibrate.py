"""Batch statistics averaged over training batches; the table of proposals."""

import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image
from workdirs import make_run

from experiments import propose, recalibrate
from experiments.shared import training_run
from segjax import config as config_lib
from segjax import inference
from segjax.data.object_crops import Object
from segjax.errors import UserError

MODEL = {"widths": (2, 3, 3, 3, 3), "fc_channels": 4, "fc6_kernel": 1}
SIDE = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three images with a bright square each, and their masks."""
    root = tmp_path_factory.mktemp("data")
    for name in ("images", "masks"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        image = rng.integers(0, 60, (48, 56, 3)).astype(np.uint8)
        mask = np.zeros((48, 56), np.uint8)
        place = slice(8 + i, 32 + i), slice(10, 36)
        image[place], mask[place] = 200, 1 + i % 2
        Image.fromarray(image).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    (root / "val.txt").write_text("0\n")
    (root / "classes.txt").write_text("class0\nclass1\nclass2\n")
    return root


def config_fields(data, tmp_path):
    return {
        "data": {
            "name": "folder",
            "root": str(data),
            "data_dir": str(tmp_path),
            "objects": "stage2",
            "object_side": 36,
        },
        "augment": {"crop": (SIDE, SIDE), "flip": 0.5},
        "batch_size": 4,
    }


def test_statistics_are_those_of_the_training_stream(data, tmp_path):
    folder, output = tmp_path / "run", tmp_path / "new"
    fields = config_fields(data, tmp_path)
    config, model, variables = make_run(folder, "deconvnet", MODEL, **fields)
    before, after = recalibrate.recalibrate(config, folder, output=output, batches=3)
    assert before is None and 0 <= after <= 1
    # By hand, for the first layer: mean and unbiased variance of each batch, averaged.
    run = training_run.build_run(config)
    kernel = np.asarray(variables["params"]["conv1_1"]["kernel"])
    mean, var = [], []
    for batch in itertools.islice(run.batches(0), 3):
        images = batch["image"].astype(np.float32)
        pixels = images - np.array([122.675, 116.669, 104.008])
        pixels = np.pad(pixels, [(0, 0), (1, 1), (1, 1), (0, 0)])
        out = sum(
            pixels[:, i : i + SIDE, j : j + SIDE] @ kernel[i, j]
            for i in range(3)
            for j in range(3)
        ) + np.asarray(variables["params"]["conv1_1"]["bias"])
        mean.append(out.mean((0, 1, 2)))
        var.append(out.reshape(-1, out.shape[-1]).var(0, ddof=1))
    loaded = inference.load(output)
    stats = loaded.variables[0]["batch_stats"]["conv1_1_bn"]
    np.testing.assert_allclose(stats["mean"], np.mean(mean, 0), rtol=1e-3)
    np.testing.assert_allclose(stats["var"], np.mean(var, 0), rtol=1e-3)
    # The weights are the same, and the new folder is a run of its own.
    jax.tree.map(
        np.testing.assert_array_equal,
        loaded.variables[0]["params"],
        variables["params"],
    )
    assert loaded.steps == (7,) and type(loaded.models[0]) is type(model)
    saved = config_lib.load(output / "config.json")
    assert saved.data.objects == "stage2" and saved.total_steps == 7
    score = output / "checkpoints" / "7" / "metrics" / "metrics"
    assert json.loads(score.read_text()) == {"miou": pytest.approx(after)}
    with pytest.raises(UserError, match="holds a run already"):
        recalibrate.recalibrate(config, folder, output=output, batches=3)
    with pytest.raises(UserError, match="--batches is 0"):
        recalibrate.recalibrate(config, folder, output=tmp_path / "x", batches=0)


def test_models_without_batch_normalization_are_refused(data, tmp_path):
    fields = config_fields(data, tmp_path)
    model = {"padding": "same", "widths": (2, 3)}
    config, *_ = make_run(tmp_path / "run", "unet", model, **fields)
    with pytest.raises(UserError, match="UNet has no batch normalization"):
        recalibrate.recalibrate(
            config, tmp_path / "run", output=tmp_path / "new", batches=1
        )


def test_the_table_counts_objects_that_the_first_boxes_find(data, tmp_path):
    config = config_lib.make(**config_fields(data, tmp_path))
    rows = dict(propose.propose(config, output=tmp_path / "out", pictures=1)[1:])
    shares = [float(value) for value in rows.values()]
    assert shares == sorted(shares) and shares[-1] == 1
    assert sorted((tmp_path / "out").iterdir()) == [
        tmp_path / "out" / "proposals_0.png"
    ]
    picture = np.asarray(Image.open(tmp_path / "out" / "proposals_0.png"))
    assert picture.shape == (48, 112, 3)
    for color, half in ((propose.YELLOW, picture[:, :56]), (propose.RED, picture)):
        assert (half == color).all(-1).any()
    with pytest.raises(UserError, match="--processes is 0"):
        propose.propose(config, processes=0)


def test_ranks_begin_at_the_first_box_that_fits():
    found = np.array([(0, 0, 3, 3), (10, 10, 19, 19), (10, 10, 19, 18)])
    objects = [Object(1, (10, 10, 19, 19), 1), Object(2, (30, 0, 39, 9), 1)]
    assert propose.first_fits(found, objects).tolist() == [1, np.inf]
    assert propose.first_fits(found[:0], objects).tolist() == [np.inf] * 2
    assert propose.first_fits(found, []).tolist() == []
