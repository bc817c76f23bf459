"""experiments.import_weights: its messages, and the fields that a file sets."""

import shlex

import pytest
from published import make_config, run_import, save_pth
from test_weights_vgg import FCN, VGG, fcn_caffe, vgg_files

from experiments import import_weights
from experiments.shared import initialization
from segjax import models, published, weights
from segjax.errors import UserError
from segjax.weights import sources
from segjax.weights.readers import caffe

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


def test_published_networks_exist():
    for network in published.NETWORKS.values():
        models.build(make_config(network.model, **network.fields), 2)
    with pytest.raises(UserError, match="did you mean 'fcn16s'"):
        published.find("fcn16", "--model", ("fcn",))
