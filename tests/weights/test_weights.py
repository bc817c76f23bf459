"""Importing weights: formats, problems, folding, our files, starting from them."""

import functools
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import (
    bilinear_blob,
    caffe_input,
    make_config,
    picture,
    run_import,
    save_pth,
    torch_input,
)
from test_weights_keras_safetensors import NEW, write_keras
from test_weights_vgg import FCN, VGG, fcn_caffe, vgg_files

from experiments import import_weights
from experiments.shared import initialization
from segjax import checkpoint, models, published, training, weights
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data import datasets
from segjax.errors import UserError
from segjax.ops import conv, image
from segjax.weights import checks, convert, sources
from segjax.weights.readers import caffe, safetensors_file

CAFFE_IMAGES = weights.Images(*image.IMAGE_STATS["caffe"])

# --- formats ---


def test_one_network_in_every_format(tmp_path):
    """VGG16 from files as published, through the program; the parameters are equal."""
    pytest.importorskip("h5py")
    pytest.importorskip("safetensors")
    in_caffe, in_torch, in_keras = vgg_files()
    caffe.write(tmp_path / "vgg.caffemodel", in_caffe)
    save_pth(tmp_path / "vgg.pth", in_torch)
    save_pth(tmp_path / "vgg.pt", in_torch, legacy=True)
    write_keras(tmp_path / "vgg.h5", in_keras, NEW, nested=True)
    safetensors_file.write(tmp_path / "vgg.safetensors", in_torch, {})
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    found = {}
    for file in files:
        arrays = weights.read(file)
        program = {"caffemodel": in_caffe, "h5": in_keras}.get(
            file.suffix[1:], in_torch
        )
        assert arrays.keys() == program.keys()
        for name, array in program.items():
            assert arrays[name].tobytes() == array.tobytes()
        config = make_config("fcn", skips=32, image_stats="caffe", **VGG)
        output = tmp_path / "ours" / f"{file.name}.safetensors"
        imported = import_weights.import_weights(file, config, output=output)
        ours = weights.read(output)
        assert ours.keys() == imported.result.arrays.keys()
        found[file.suffix] = ours
    reference = found[".caffemodel"]
    assert len(reference) == 30
    for suffix, arrays in found.items():
        for name, array in arrays.items():
            if "conv1_1" not in name:  # which sees other images in torchvision
                assert array.tobytes() == reference[name].tobytes(), (suffix, name)
    # The same in Caffe and Keras: BGR, and one mean.
    first = "params/backbone/conv1_1/bias"
    np.testing.assert_array_equal(found[".h5"][first], reference[first])


# --- what does not fit ---


def test_all_problems_in_one_line():
    arrays = fcn_caffe(32)
    del arrays["conv3_2[0]"], arrays["fc7[1]"]
    arrays["conv2_1[0]"] = arrays["conv2_1[0]"][:, :1]
    arrays["score_fr[1]"] = arrays["score_fr[1]"].reshape(1, 3, 1, 1) * np.nan
    arrays["conv9[0]"] = np.zeros(3, np.float32)
    with pytest.raises(UserError) as error:
        run_import(arrays, "fcn", skips=32, **FCN)
    text = str(error.value)
    assert "\n" not in text
    for part in (
        "missing: conv3_2[0] (our backbone/conv3_2/kernel), "
        "fc7[1] (our backbone/fc7/bias)",
        "unexpected: conv9[0]",
        "conv2_1[0] has shape (2, 1, 3, 3), our backbone/conv2_1/kernel needs "
        "(2, 2, 3, 3)",
        "score_fr[1] holds NaN",
    ):
        assert part in text


def test_file_of_another_model():
    arrays = vgg_files()[0]
    expected = "are of VGG16 .Caffe., for model .* with backbone vgg16, not for model "
    with pytest.raises(UserError, match=f"{expected}'unet'$"):
        run_import(arrays, "unet", widths=(2, 2))
    with pytest.raises(UserError, match=f"{expected}'pspnet' with backbone 'resnet50'"):
        run_import(arrays, "pspnet", stage_sizes=(1, 1, 1, 1), width=2)
    with pytest.raises(UserError, match="arrays like a, b are of no known source"):
        run_import({"b": np.zeros(1), "a": np.zeros(1)}, "unet", widths=(2, 2))


def test_bilinear_kernels_are_recognized():
    assert checks.bilinear(bilinear_blob(3, 4)) == ""
    grouped = bilinear_blob(3, 4)[range(3), range(3)][:, None]
    assert checks.bilinear(grouped) == ""
    assert "square" in checks.bilinear(grouped[..., :2])
    # Caffe's own filler fills all pairs of channels, which sums them.
    dense = np.broadcast_to(bilinear_blob(1, 4), (3, 3, 4, 4))
    assert "learned" in checks.bilinear(dense)
    assert "learned" in checks.bilinear(bilinear_blob(3, 4) * 1.001)


# --- images ---


def test_other_image_statistics_are_folded():
    """Scale and mean of torchvision into the first layer of a "caffe" model."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 3, 4))
    images = picture(9, 8)
    shapes = {"params/conv1/kernel": (3, 3, 3, 4)}
    arrays = {"w": kernel.astype(np.float32)}
    layers = {"conv1": convert.Conv("w", "b", "HWIO")}
    with_bias = dict(arrays, b=rng.normal(size=4).astype(np.float32))
    with_norm = dict(arrays, **{k: np.float32([1, 2, 3, 4]) for k in "gomv"})

    def convolved(x, kernel):
        return np.asarray(conv.conv2d(jnp.asarray(x), jnp.asarray(kernel)))

    y = convolved(torch_input(images).transpose(0, 2, 3, 1), kernel)
    seen = caffe_input(images)[:, ::-1].transpose(0, 2, 3, 1)

    table = convert.Table("a", layers, sources.TORCHVISION, "conv1")
    shapes = dict(shapes, **{"params/conv1/bias": (4,)})
    result = convert.convert(with_bias, shapes, table=table, images=CAFFE_IMAGES)
    ours = result.arrays
    got = convolved(seen, ours["params/conv1/kernel"]) + ours["params/conv1/bias"]
    np.testing.assert_allclose(got, y + with_bias["b"], atol=1e-4)
    assert [row.how for row in result.rows] == [
        "scale of the images folded in",
        "mean of the images folded in",
    ]

    # Without a bias the mean of the normalization takes it.
    del shapes["params/conv1/bias"]
    names = ("params/bn1/scale", "params/bn1/bias")
    names += ("batch_stats/bn1/mean", "batch_stats/bn1/var")
    shapes |= dict.fromkeys(names, (4,))
    layers = layers | {"bn1": convert.Norm("g", "o", "m", "v")}
    table = table._replace(layers=layers)
    ours = convert.convert(with_norm, shapes, table=table, images=CAFFE_IMAGES).arrays
    got = convolved(seen, ours["params/conv1/kernel"]) - ours["batch_stats/bn1/mean"]
    np.testing.assert_allclose(got, y - with_norm["m"], atol=1e-4)


# --- our files ---


def test_published_networks_exist():
    for network in published.NETWORKS.values():
        models.build(make_config(network.model, **network.fields), 2)
    with pytest.raises(UserError, match="did you mean 'fcn16s'"):
        published.find("fcn16", "--model", ("fcn",))


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


# --- the program ---


def test_program_names_the_file(tmp_path):
    source = tmp_path / "fcn.caffemodel"
    arrays = fcn_caffe(16)
    del arrays["conv1_1[0]"]
    caffe.write(source, {k: v for k, v in arrays.items() if k != "conv1_1[1]"})
    config, output = make_config("fcn", skips=16, **FCN), tmp_path / "a.safetensors"
    with pytest.raises(UserError, match=r"fcn.caffemodel: .* missing: conv1_1\[0\]"):
        import_weights.import_weights(source, config, output=output)
    with pytest.raises(UserError, match="ending in .safetensors"):
        import_weights.import_weights(source, config, output=tmp_path / "a.npz")
    with pytest.raises(UserError, match="--ignore=.: not a regular expression"):
        import_weights.import_weights(source, config, output=output, ignore="(")
    with pytest.raises(UserError, match=r"'.npy'; known: .caffemodel, .pth"):
        weights.read(tmp_path / "a.npy")
    assert not output.exists()


def test_what_the_program_prints():
    arrays = fcn_caffe(8, at_once=True)
    imported = run_import(arrays, "fcn", skips=8, at_once=True, **FCN)
    lines = list(weights.describe(imported))
    first = lines[0].split()
    assert first[:3] == ["backbone/conv1_1/kernel", "3x3x3x2", "conv1_1[0]"]
    assert lines[0].endswith("OIHW to HWIO, BGR to RGB")
    assert lines[-2].startswith("FCN (Caffe, PAMI names): ")
    assert lines[-1].startswith("checked, part of the model's code (5): scale_pool3[0]")


# --- values that cannot be meant ---


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda a: a.astype(np.int8), r"w holds int8, expected real numbers"),
        (
            lambda a: a + 1e300,
            r"w \(conv1/kernel of .* too large for float32",
        ),
    ],
)
def test_values_that_no_layer_has(change, expected):
    layers = {"conv1": convert.Conv("w", "b", "HWIO")}
    table = convert.Table("a", layers, CAFFE_IMAGES)
    shapes = {"params/conv1/kernel": (1, 1, 2, 3)}
    with pytest.raises(UserError, match=expected):
        arrays = {"w": change(np.zeros((1, 1, 2, 3)))}
        convert.convert(arrays, shapes, table=table, images=CAFFE_IMAGES)


def test_a_negative_variance_is_refused():
    names = ("params/bn/scale", "params/bn/bias", "batch_stats/bn/mean")
    shapes = dict.fromkeys((*names, "batch_stats/bn/var"), (2,))
    arrays = {name: np.float32([1, 2]) for name in "somv"}
    table = convert.Table("a", {"bn": convert.Norm("s", "o", "m", "v")}, CAFFE_IMAGES)
    convert.convert(arrays, shapes, table=table, images=CAFFE_IMAGES)
    arrays["v"] = np.float32([1, -0.5])
    with pytest.raises(UserError, match=r"v \(bn/var of .* variance of -0.5"):
        convert.convert(arrays, shapes, table=table, images=CAFFE_IMAGES)


# --- fields that a file sets ---


def test_a_file_sets_the_fields_of_its_network(tmp_path, capsys):
    """--model takes what is known of a kind of file, where nothing else was chosen."""
    pytest.importorskip("safetensors")
    _, in_torch, _ = vgg_files()
    path, output = tmp_path / "vgg.pth", tmp_path / "vgg.safetensors"
    save_pth(path, in_torch)
    config = make_config("fcn", skips=32, **VGG)
    chosen = dict(skips=32, **VGG)
    imported = import_weights.import_weights(path, config, output=output, chosen=chosen)
    assert imported.info.fields["image_stats"] == "imagenet"
    (line,) = import_weights.training_flags(imported.info)
    assert "--config.model.image_stats=imagenet" in line
    assert "--config.model.widths=2,2,3,3,2" in line
    # Texts with commas stay whole, also in a shell.
    options = "skips=16", "widths=2,2,3,3,2"
    crfrnn = make_config("crfrnn", base="fcn", base_options=options)
    (line,) = import_weights.training_flags(initialization.model_info(crfrnn))
    assert f"--config.model.base_options={options!r}" in shlex.split(line)
    chosen |= {"image_stats": "caffe"}
    imported = import_weights.import_weights(path, config, output=output, chosen=chosen)
    assert imported.info.fields["image_stats"] == "caffe"
    imported = import_weights.import_weights(path, config, output=output)
    assert imported.info.fields["image_stats"] == "caffe"
    names = {"layer1.0.conv1.weight", "conv1.weight"}
    fields = make_config("deeplab").model
    found, images = weights.published(names, model="deeplab", fields=fields)
    assert found["stride_in_1x1"] is False and images == sources.TORCHVISION
    assert weights.published({"a"}, model="deeplab", fields=fields) == ({}, None)
    assert initialization.image_stats_of(sources.DEEPLAB) == "caffe"
    assert initialization.image_stats_of(sources.GOOGLENET) == ""
