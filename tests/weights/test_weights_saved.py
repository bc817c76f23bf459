"""Files of our own weights: saved, loaded, started from, and written from a run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import make_config, picture
from test_weights_vgg import FCN, fcn_caffe

from experiments import import_weights
from experiments.shared import initialization
from segjax import checkpoint, models, training, weights
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data import datasets
from segjax.errors import UserError
from segjax.image_stats import IMAGE_STATS
from segjax.weights.readers import caffe, safetensors_file

CAFFE_IMAGES = weights.Images(*IMAGE_STATS["caffe"])


@pytest.fixture
def fcn_file(tmp_path):
    """A tiny FCN-16s of 5 classes, through the program."""
    pytest.importorskip("safetensors")
    source, output = tmp_path / "fcn.caffemodel", tmp_path / "new" / "fcn.safetensors"
    caffe.write(source, fcn_caffe(16, classes=5))
    config = make_config("fcn", skips=16, **FCN)
    imported = import_weights.import_weights(source, config, output=output)
    return output, imported


@functools.cache
def _fcn_shapes(fields):
    model = models.MODELS["fcn"](**(FCN | dict(fields)))
    return initialization.abstract_variables(model)


def fcn_variables(**fields):
    abstract = _fcn_shapes(tuple(fields.items()))
    filled = {
        name: np.full(leaf.shape, 7, np.float32)
        for name, leaf in weights.flatten(abstract).items()
    }
    return weights.replace(abstract, filled)


def test_saved_and_loaded(fcn_file):
    path, imported = fcn_file
    model = models.MODELS["fcn"](num_classes=5, skips=16, **FCN)
    tree = weights.load(path, initialization.abstract_variables(model))
    flat = weights.flatten(tree)
    assert flat.keys() == imported.result.arrays.keys()
    for name, array in imported.result.arrays.items():
        assert flat[name].tobytes() == array.tobytes()
    saved = weights.read_saved(path)
    assert (saved.info.model, saved.num_classes, saved.info.classes) == ("fcn", 5, ())
    assert saved.info.fields["skips"] == 16 and saved.info.fields["at_once"] is False
    assert saved.info.images == CAFFE_IMAGES
    assert saved.source == "FCN (Caffe, PAMI names)" and saved.missing == ()

    abstract = fcn_variables(num_classes=4, skips=8)
    with pytest.raises(UserError) as error:
        weights.load(path, abstract)
    assert "missing: params/score_pool3/bias, params/score_pool3/kernel" in str(
        error.value
    )
    assert "params/score_fr/bias has shape (5,), the model needs (4,)" in str(
        error.value
    )


def fcn_info(num_classes, **fields):
    config = make_config("fcn", **FCN, **fields)
    return initialization.model_info(config, tuple("abcdefg"[:num_classes]))


def test_model_starts_from_file(fcn_file):
    path, imported = fcn_file
    arrays = imported.result.arrays

    def start(**fields):
        tree = fcn_variables(**fields)
        new, report = weights.start(
            path, weights.read_saved(path), info=fcn_info(**fields), variables=tree
        )
        new = weights.flatten(new)
        assert new.keys() == weights.flatten(tree).keys()
        for name, leaf in new.items():
            layer = name.partition("/")[2].rpartition("/")[0]
            if layer in report.new:
                assert np.all(leaf == 7)
            else:
                assert layer in report.loaded
                np.testing.assert_array_equal(leaf, arrays[name])
        return report

    report = start(num_classes=5, skips=16)
    assert report.new == {} and report.unused == ()
    # Published files do not name their classes.
    assert len(report.notes) == 1 and "order: a, b, c, d, e" in report.notes[0]
    # Other classes: scores are new, the rest is loaded.
    report = start(num_classes=4, skips=16)
    why = "the weights are for 5 classes"
    assert report.new == {"score_fr": why, "score_pool4": why} and not report.notes
    assert len(report.loaded) == 15
    # The next stage adds a layer, the one before lacks one; both are said.
    report = start(num_classes=5, skips=8)
    assert report.new == {"score_pool3": "the weights do not have it"}
    assert any("with skips=16, --config.model.skips is 8" in n for n in report.notes)
    report = start(num_classes=5, skips=32)
    assert report.unused == ("score_pool4",)
    assert "  not used: score_pool4" in report.lines()


def test_wrong_network_does_not_start(fcn_file):
    path, _ = fcn_file

    def start(tree, **fields):
        info = fcn_info(5, **fields)
        return weights.start(path, weights.read_saved(path), info=info, variables=tree)

    tree = fcn_variables(num_classes=5, skips=16, fc_channels=6)
    with pytest.raises(UserError, match=r"params/backbone/fc7/kernel has shape"):
        start(tree)
    tree = fcn_variables(num_classes=5, skips=16, norm="batch")
    with pytest.raises(UserError) as error:
        start(tree)
    assert "missing: params/backbone/conv1_1_bn/bias" in str(error.value)
    assert "unexpected: params/backbone/conv1_1/bias" in str(error.value)
    other = {"params": {"enc0": {"kernel": np.zeros((3, 3, 3, 2), np.float32)}}}
    with pytest.raises(UserError, match="unexpected: params/backbone/conv1_1/bias"):
        start(other)
    # Between models, backbones may be longer or shorter, but one layer must agree.
    info = weights.ModelInfo("unet", {}, CAFFE_IMAGES, tuple("abcde"))
    with pytest.raises(UserError, match="has no layer of this model: it is of model"):
        weights.start(path, weights.read_saved(path), info=info, variables=other)
    safetensors_file.write(path, {"a": np.zeros(2)}, {})
    with pytest.raises(UserError, match="was not written by experiments"):
        start(other)
    safetensors_file.write(path, {"a": np.zeros(2)}, {"format": "segjax"})
    with pytest.raises(UserError, match="by an earlier version.*convert it again"):
        start(other)
    for text, expected in (
        ("{", "is not JSON"),
        ("[" * 10**5, "is not JSON"),
        ("{}", "'model' is a required property"),
        ("[]", "not of type 'object'"),
    ):
        safetensors_file.write(path, {"a": np.zeros(2)}, {"segjax": text})
        with pytest.raises(UserError, match=expected) as error:
            start(other)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_the_same_file_is_written_again(fcn_file, tmp_path):
    """Byte for byte, though the library writes metadata in a random order."""
    path, imported = fcn_file
    for index in range(3):
        weights.save(tmp_path / f"{index}.safetensors", imported.weights)
        assert (tmp_path / f"{index}.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_start_converts_the_images_of_the_first_layer(norm):
    """A U-Net of valid convolutions, trained on other image_stats: the same logits."""
    fields = dict(widths=(2, 3), norm=norm)
    images = picture(24, 20)
    model = models.MODELS["unet"](num_classes=3, image_stats="caffe", **fields)
    rng = np.random.default_rng(0)
    flat = {
        name: rng.uniform(0.1, 1, leaf.shape).astype(np.float32)
        for name, leaf in weights.flatten(
            initialization.abstract_variables(model)
        ).items()
    }
    tree = weights.replace(initialization.abstract_variables(model), flat)
    expected = np.asarray(model.apply(tree, images, train=False)[0])

    def info(**more):
        config = make_config("unet", **fields, **more)
        return initialization.model_info(config, tuple("abc"))

    source = weights.Weights(flat, info(image_stats="caffe"), "a run", 3, ())
    target = info(image_stats="imagenet")
    new, report = weights.start("here", source, info=target, variables=tree)
    assert any("enc0_conv1 took images of scale 1 and" in note for note in report.notes)
    model = models.MODELS["unet"](num_classes=3, image_stats="imagenet", **fields)
    got = np.asarray(model.apply(new, images, train=False)[0])
    np.testing.assert_allclose(
        got, expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )
    same, report = weights.start("here", source, info=source.info, variables=tree)
    assert weights.flatten(same).keys() == flat.keys() and not report.notes
    for name, leaf in weights.flatten(same).items():
        assert leaf.tobytes() == flat[name].tobytes()


def test_fields_that_no_array_shows_must_agree():
    """A PSPNet with its strides elsewhere has the same arrays, and computes others."""
    config = make_config("pspnet", stage_sizes=(1, 1, 1, 1), width=2)
    info = initialization.model_info(config, ("a", "b"))
    source = info._replace(fields=info.fields | {"stride_in_1x1": True})
    arrays = {"params/conv6/bias": np.zeros(2, np.float32)}
    tree = {"params": {"conv6": {"bias": np.ones(2, np.float32)}}, "batch_stats": {}}
    source = weights.Weights(arrays, source, "PSPNet", 2, ("params/conv6/bias",))
    expected = (
        r"here \(PSPNet\) is of a network with stride_in_1x1=True, "
        "--config.model.stride_in_1x1 is False: set it to True"
    )
    with pytest.raises(UserError, match=expected):
        weights.start("here", source, info=info, variables=tree)
    # Of a backbone without bottlenecks the field says nothing.
    other = source.info.fields | {"backbone": "squeezenet"}
    source = source._replace(info=source.info._replace(fields=other))
    new, _ = weights.start("here", source, info=info, variables=tree)
    assert not new["params"]["conv6"]["bias"].any()


def test_crfrnn_is_compared_by_the_fields_of_its_base():
    config = make_config("crfrnn", base_options=("skips=16", "image_stats=imagenet"))
    info = initialization.model_info(config)
    assert info.fields["skips"] == 16 and info.fields["norm"] == "none"
    assert info.images.scale == 1 / 255


def test_run_is_written_as_safetensors(tmp_path):
    """Of gray images; the file fills the same model again, to the same bits."""
    pytest.importorskip("safetensors")
    run, output = tmp_path / "run", tmp_path / "unet.safetensors"
    run.mkdir()
    config = make_config("unet", widths=(2, 3), image_stats="unit")
    config_lib.save(config, run / "config.json")
    info = datasets.Dataset("cells", ("a", "b", "c"), np.zeros((3, 3)), (9.0,), 1)
    workdir_lib.write_dataset(run, info)
    with pytest.raises(UserError, match="no checkpoint"):
        import_weights.export_run(run, output)
    model = models.build(config, 3)
    abstract, rng = (
        initialization.abstract_variables(model, channels=1),
        iter(range(99)),
    )
    variables = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, next(rng) + 0.1, leaf.dtype), abstract
    )
    state = training.TrainState(jnp.array(7), **variables, opt_state={"m": jnp.ones(1)})
    folder = checkpoint.open_folder(run / "checkpoints", 1)
    checkpoint.save(folder, state, {})
    checkpoint.finish(folder)
    exported = import_weights.export_run(run, output)
    assert exported.source == "unet trained on cells, step 7"
    heads = ("params/head/bias", "params/head/kernel")
    assert (exported.num_classes, exported.heads) == (3, heads)
    assert exported.info.classes == ("a", "b", "c")
    saved = weights.read_saved(output)
    assert saved.info.classes == ("a", "b", "c") and saved.heads == heads
    again = weights.flatten(weights.load(output, abstract))
    for name, leaf in weights.flatten(jax.device_get(variables)).items():
        assert again[name].tobytes() == leaf.tobytes()
    (line,) = weights.summary(exported)
    assert line.startswith("unet trained on cells, step 7: ")
