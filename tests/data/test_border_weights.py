"""Weights between instances against the paper's formula, computed plainly."""

import numpy as np
import pytest
from scipy import ndimage

from experiments.shared import training_run
from segjax import config
from segjax.data import transforms
from segjax.data.border_weights import border_weights, separate
from segjax.errors import UserError

THREE = np.array(
    [
        [1, 1, 0, 0, 0, 2, 2],
        [1, 1, 0, 0, 0, 2, 2],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [3, 3, 3, 0, 0, 0, 0],
    ]
)


def plain_weights(instance, weight=10.0, sigma=5.0):
    ids = [k for k in np.unique(instance) if k]
    if len(ids) < 2:
        return np.zeros(instance.shape)
    distances = [ndimage.distance_transform_edt(instance != k) for k in ids]
    first, second = np.sort(distances, axis=0)[:2]
    values = weight * np.exp(-((first + second) ** 2) / (2 * sigma**2))
    return np.where(instance == 0, values, 0)


def test_three_cells_worked_out_by_hand():
    expected = [
        [0, 0, 7.2615, 7.2615, 7.2615, 0, 0],
        [0, 0, 7.2615, 7.2615, 7.2615, 0, 0],
        [8.3527, 8.3527, 7.9204, 6.7032, 6.9768, 6.5428, 5.4942],
        [8.3527, 8.3527, 8.1104, 6.9768, 6.7032, 5.8685, 4.7244],
        [0, 0, 0, 6.5428, 5.8685, 4.8675, 3.7531],
    ]
    for ids in (THREE.astype(np.uint16), 1000 * THREE.astype(np.int32)):
        weights = border_weights(ids, weight=10.0, sigma=5.0)
        assert weights.dtype == np.float32
        np.testing.assert_allclose(weights, expected, atol=5e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weight, sigma", [(10.0, 5.0), (3.0, 1.5), (100.0, 12.0)])
def test_random_cells(seed, weight, sigma):
    rng = np.random.default_rng(seed)
    instance = np.zeros((60, 83), np.uint16)
    for k in range(1, 13):  # some overlap, so that some have several parts
        y, x = rng.integers(0, 75, 2)
        instance[y : y + rng.integers(2, 9), x : x + rng.integers(2, 14)] = 7 * k
    weights = border_weights(instance, weight=weight, sigma=sigma)
    # What is below the smallest weight is 0.
    np.testing.assert_allclose(
        weights, plain_weights(instance, weight, sigma), rtol=1e-4, atol=1.1e-4
    )
    assert (weights > 1).any()


def test_one_cell_and_none_have_no_borders():
    one = (THREE == 2).astype(np.uint16)
    for instance in (one, np.zeros_like(one)):
        assert not border_weights(instance, weight=10.0, sigma=5.0).any()


@pytest.mark.parametrize("gap", [1, 2])
def test_touching_instances_are_cut_apart(gap):
    rng = np.random.default_rng(gap)
    instance = ndimage.zoom(rng.integers(0, 4, (5, 6)), 6, order=0).astype(np.uint16)
    label = np.where(instance > 0, 1, 0).astype(np.uint8)
    label[3] = 255
    cut_label, cut = separate(label, instance, gap=gap)
    for y, x in np.ndindex(instance.shape):
        around = instance[max(y - gap, 0) : y + gap + 1, max(x - gap, 0) : x + gap + 1]
        others = set(np.unique(around)) - {0, instance[y, x]}
        gone = instance[y, x] > 0 and bool(others)
        assert cut[y, x] == (0 if gone else instance[y, x])
        expected = label[y, x] if not gone or label[y, x] == 255 else 0
        assert cut_label[y, x] == expected
    assert 0 < (cut != instance).sum() < instance.astype(bool).sum()
    assert cut.dtype == np.uint16 and cut_label.dtype == np.uint8


def test_weights_are_those_of_the_warped_instances():
    image = np.zeros((40, 50, 3), np.uint8)
    instance = np.zeros((40, 50), np.uint16)
    instance[5:30, 4:20], instance[10:38, 20:44] = 300, 2
    label = (instance > 0).astype(np.uint8)
    example = {"image": image, "label": label, "instance": instance}
    config = {"crop": (32, 32), "rotate": 40.0, "scale": (0.7, 1.3)}
    options = transforms.options(config, (0, 0, 0))._replace(
        border_weight=8.0, border_sigma=3.0
    )
    outputs = {}
    for gap in (0, 1):
        out = transforms.augment(
            example, np.random.default_rng(3), options._replace(separate=gap)
        )
        assert out["added_weight"].shape == (32, 32)
        np.testing.assert_allclose(
            out["added_weight"], plain_weights(out["instance"], 8.0, 3.0), atol=1.1e-4
        )
        outputs[gap] = out
    heavy = [(outputs[gap]["added_weight"] > 2).sum() for gap in (0, 1)]
    assert heavy[1] > heavy[0]
    assert outputs[1]["label"].sum() < outputs[0]["label"].sum()
    np.testing.assert_array_equal(outputs[0]["image"], outputs[1]["image"])
    off = transforms.augment(
        example, np.random.default_rng(3), options._replace(border_weight=0.0)
    )
    assert "added_weight" not in off


def test_fields_of_the_config_reach_the_batches(tmp_path):
    data = {
        "name": "scenes",
        "data_dir": str(tmp_path),
        "scenes_size": (32, 40),
        "scenes_train": 4,
        "scenes_validation": 1,
    }

    def batch(**fields):
        made = config.make(
            model_name="unet",
            model={"widths": (2, 4), "padding": "same"},
            data=data,
            batch_size=4,
            eval_batch_size=4,
            **fields,
        )
        return next(training_run.build_run(made).batches(0))

    plain = batch()
    assert plain.keys() == {"image", "label", "id"}
    for weight, sigma in ((10.0, 5.0), (4.0, 2.0)):
        out = batch(loss={"border_weight": weight, "border_sigma": sigma})
        np.testing.assert_array_equal(out["image"], plain["image"])
        np.testing.assert_array_equal(out["label"], plain["label"])
        assert out["added_weight"].any()
        for instance, weights in zip(out["instance"], out["added_weight"]):
            np.testing.assert_allclose(
                weights, plain_weights(instance, weight, sigma), atol=1.1e-4
            )
    with pytest.raises(UserError, match="separate is 2, but class 0 of scenes is 'sky"):
        batch(augment={"separate": 2})


def test_instance_maps_that_are_needed_and_not_there():
    for fields in ({"loss": {"border_weight": 1.0}}, {"augment": {"separate": 1}}):
        made = config.make(data={"name": "camvid", "root": "/none"}, **fields)
        with pytest.raises(UserError, match="border_weight or .*camvid has none"):
            training_run.load_data(made)
