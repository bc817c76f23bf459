"""Maps of networks: which there are, where they lie, which channel is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax import models
from segjax.analysis import activations, effective_field, receptive_field
from segjax.errors import UserError
from segjax.models import vgg
from segjax.models.network import abstract_variables
from segjax.ops import geometry

WIDTHS = {"widths": (2, 2, 2, 2, 2)}


@pytest.mark.parametrize("name", models.MODELS)
def test_maps_of_all_networks(name):
    """Of an image that is not square, all of them have its shape and no other."""
    model = models.MODELS[name](num_classes=5)
    known = activations.maps(model)
    assert list(known)[-1] == "logits" and known["logits"] == 5
    assert len(known) > 1
    tiling = model.tiling
    size = [geometry.nearest_sides(tiling, side)[-1] for side in (300, 620)]
    images = jax.ShapeDtypeStruct((1, *size, 3), np.uint8)
    found = jax.eval_shape(
        activations.run(model, list(known)), abstract_variables(model), images
    )
    for map_name, channels in known.items():
        assert found[map_name].shape[3] == channels
        assert found[map_name].shape[1] < found[map_name].shape[2], map_name


def test_maps_are_in_the_order_of_execution():
    model = models.MODELS["deconvnet"](num_classes=3, **WIDTHS, fc_channels=4)
    names = list(activations.maps(model))
    deconv = [name for name in names if name.startswith(("unpool", "deconv"))]
    assert names[:2] == ["conv1_2", "pool1"]
    assert deconv == [
        *("unpool5", "deconv5_3", "unpool4", "deconv4_3", "unpool3", "deconv3_3"),
        *("unpool2", "deconv2_2", "unpool1", "deconv1_2"),
    ]
    zoomout = activations.maps(models.MODELS["zoomout"](num_classes=3))
    assert list(zoomout) == ["superpixels", "logits"]


def test_grids_of_fcn():
    """The oracle: the algebra of padded layers, as FCN itself crops by."""
    model = models.MODELS["fcn"](num_classes=3, **WIDTHS, fc_channels=4)
    found = receptive_field.grids(model)
    expected = vgg.grids(100)
    for name in ("pool1", "pool2", "pool3", "pool4", "pool5", "fc6", "fc7"):
        assert found[name] == expected[name], name
    assert found["score_fr"] == expected["fc7"]
    twice = geometry.deconv(expected["fc7"], 4, stride=2)
    assert found["upscore2"] == found["fuse_pool4"] == twice
    logits = found["logits"]  # of the image
    assert logits.step == 1 and abs(logits.start) < 0.5


def test_grids_of_unet_with_a_margin():
    model = models.MODELS["unet"](num_classes=3, widths=(2, 3))
    found = receptive_field.grids(model)
    grid = geometry.conv(geometry.conv(geometry.Grid(), 3), 3)
    assert found["enc0"] == grid
    grid = geometry.conv(grid, 2, stride=2)
    assert found["enc1"] == geometry.conv(geometry.conv(grid, 3), 3)
    assert found["logits"].step == 1
    assert abs(found["logits"].start - model.tiling.margin) <= 0.5


@pytest.mark.parametrize(
    "name, fields",
    [
        ("fusionnet", {"widths": (2, 2, 2, 2), "residual_depth": 1}),
        ("frrn", {}),
        ("deconvnet", {**WIDTHS, "fc_channels": 4}),
    ],
)
def test_maps_that_cover_the_image_are_not_shifted(name, fields):
    """Deep paths of the first two are not symmetric; skips show where the maps lie."""
    found = receptive_field.grids(models.MODELS[name](num_classes=3, **fields))
    assert len(found) > 5
    for key, grid in found.items():
        if name == "deconvnet" and key in ("fc6", "fc7"):
            continue  # without padding
        assert abs(grid.start - (grid.step - 1) / 2) <= grid.step / 2, key


def test_maps_that_see_everything_have_no_grid():
    fields = {"backbone": "resnet18", "widths": (4,), "bins": (1, 2)}
    fields |= {"pyramid_channels": 4, "head_channels": 4}
    known = models.model_fields("pspnet")
    fields = {name: value for name, value in fields.items() if name in known}
    found = receptive_field.grids(models.MODELS["pspnet"](num_classes=3, **fields))
    assert "block4" in found and "pyramid" not in found and "logits" not in found


def test_a_blob_is_drawn_where_it_is():
    """What a bright spot changes lies around it, in every map at its own scale."""
    model = models.MODELS["fcn"](num_classes=3, **WIDTHS, fc_channels=4, norm="batch")
    images = np.full((2, 70, 90, 3), 100, np.uint8)
    images[1, 20:26, 60:66] = 255
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, train=False))()
    names = ("pool1", "pool2", "pool3")
    found = jax.jit(activations.run(model, names))(variables, images)
    grids = receptive_field.grids(model)
    for name in names:
        values = np.asarray(found[name], np.float64)
        change = np.abs(values[1] - values[0]).sum(-1)
        where = activations.locations(
            grids[name],
            change.shape,
            size=(70, 90),
            scaled=(70, 90),
            extended=(70, 90),
            margin=0,
        )
        picture = activations.enlarge(change, where)
        assert picture.shape == (70, 90) and np.isfinite(picture).all()
        rows, columns = np.indices(picture.shape)
        center = [(x * picture).sum() / picture.sum() for x in (rows, columns)]
        near = 1.5 * float(grids[name].step)
        assert abs(center[0] - 22.5) < near and abs(center[1] - 62.5) < near


def test_locations_by_brute_force():
    """An image of 10x7, resized to 20x21, in an input of 24x25 with a margin of 2."""
    for grid in (geometry.Grid(step=4, start=1), None):
        where = activations.locations(
            grid, (6, 5), size=(10, 7), scaled=(20, 21), extended=(24, 25), margin=2
        )
        for found, count, side, scaled, whole in zip(
            where, (6, 5), (10, 7), (20, 21), (24, 25)
        ):
            step, start = (4, 1) if grid else (whole / count, (whole / count - 1) / 2)
            centers = start + step * np.arange(count)
            for pixel, index in enumerate(found):
                x = (pixel + 0.5) * scaled / side - 0.5 + 2
                distances = np.abs(centers - x)
                if distances.min() > step:
                    assert index == -1
                else:
                    assert distances[index] == distances.min()
        assert (where.rows >= 0).all()
    small = activations.locations(
        geometry.Grid(step=4, start=9),
        (2, 2),
        size=(20, 20),
        scaled=(20, 20),
        extended=(20, 20),
        margin=0,
    )
    assert small.rows.tolist() == [-1] * 5 + [0] * 6 + [1] * 7 + [-1] * 2


def case():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 5, 6)) + np.arange(6)
    values[..., 4] = 3.0  # a dead channel
    where = activations.Locations(
        np.array([-1, 0, 0, 0, 1, 2, 2, 3]), np.array([0, 1, 1, 2, 3, 3, 3, 4, -1])
    )
    return values, where, rng.random((8, 9))


def test_scores_are_those_of_the_picture():
    values, where, target = case()
    pictures = [activations.enlarge(values[..., i], where) for i in range(6)]
    inside = np.isfinite(pictures[0])
    assert inside.sum() == 7 * 8
    by_rule = {
        rule: activations.channel_scores(values, where, rule=rule, target=target)
        for rule in activations.RULES
    }
    for i, picture in enumerate(pictures):
        shown = picture[inside].astype(np.float64)
        np.testing.assert_allclose(by_rule["mean"][i], shown.mean(), rtol=1e-5)
        if i == 4:
            assert by_rule["variance"][i] == by_rule["class"][i] == -np.inf
            continue
        np.testing.assert_allclose(by_rule["variance"][i], shown.var(), rtol=1e-5)
        expected = np.corrcoef(shown, target[inside])[0, 1]
        np.testing.assert_allclose(by_rule["class"][i], expected, atol=1e-6)
    for rule, scores in by_rule.items():
        best = activations.representative(values, where, rule=rule, target=target)
        assert best == (scores.argmax(), scores.max())


def test_dead_maps_and_bad_names():
    _, where, target = case()
    for rule in ("class", "variance"):
        zeros = np.zeros((4, 5, 2))
        found = activations.representative(zeros, where, rule=rule, target=target)
        assert found == (0, -np.inf)
    with pytest.raises(UserError, match="did you mean 'mean'"):
        activations.channel_scores(zeros, where, rule="means", target=target)
    with pytest.raises(UserError, match="--channel=3: b has the channels 0 to 2"):
        activations.check_channel(["a", "b"], {"a": 4, "b": 3}, 3)


def test_influence_of_a_pixel():
    """A known linear filter: the score of class k at (i, j) is k times a cross."""

    def scores(images):
        x = images.sum(-1)
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
        cross = padded[:, :-2, 1:-1] - 2 * padded[:, 1:-1, 2:] + 3 * x
        return jnp.stack([cross, 5 * cross], axis=-1)

    image = np.random.default_rng(0).random((5, 6, 3))
    found = jax.jit(
        lambda x, r, c, k: effective_field.influence(
            scores, x, row=r, column=c, channel=k
        )
    )(image, 2, 3, 1)
    expected = np.zeros((5, 6))
    expected[2, 3], expected[1, 3], expected[2, 4] = 3, 1, 2
    np.testing.assert_allclose(found, expected * 5 * 3, rtol=1e-6)
