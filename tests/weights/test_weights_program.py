"""experiments.import_weights: its messages, and the fields that a file sets."""

import functools
import shlex
import types

import pytest
from published import make_config, run_import, save_pth
from test_weights_ports import crfasrnn
from test_weights_resnet_networks import (
    DEEPLAB,
    PSP,
    deeplab_caffe,
    deeplab_kazuto,
    psp_caffe,
    psp_semseg,
)
from test_weights_unet_frrn import MILESIAL, RELEASED, milesial, phseg_v5
from test_weights_vgg import CRF, FCN, VGG, crf_case, fcn_caffe, vgg_files

from experiments import import_weights
from experiments.shared import initialization
from segjax import models, published, weights
from segjax.errors import UserError
from segjax.models import classifier
from segjax.weights import sources
from segjax.weights.readers import caffe, safetensors_file

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


class Captured(Exception):
    """Instead of importing."""


def test_every_flag_of_the_program_reaches_the_import(tmp_path, monkeypatch):
    calls = []

    def capture(file, config, **options):
        calls.append((file, config.model_name, options))
        raise Captured

    given = {"rename": "^module.=", "ignore": "^aux", "leave": "^score"}
    output = tmp_path / "fcn.safetensors"
    values = {"model": "fcn", "config": None, "output": str(output)} | given
    flags = types.SimpleNamespace(FLAGS=types.SimpleNamespace(**values))
    monkeypatch.setattr(import_weights, "flags", flags)
    monkeypatch.setattr(import_weights, "import_weights", capture)
    source = tmp_path / "fcn.caffemodel"
    with pytest.raises(Captured):
        import_weights.main(["import_weights", str(source)])
    expected = {"output": output, "chosen": {}} | given
    assert calls == [(source, "fcn", expected)]


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


# Kind of file, published network with small fields, and what the program sets.
KINDS = {
    "crfasrnn_pytorch": (
        crfasrnn,
        "crfrnn",
        CRF,
        {"color_order": "caffe"},
    ),
    "CRF-RNN (Caffe)": (
        lambda: crf_case()[0],
        "crfrnn",
        CRF,
        {"color_order": "caffe"},
    ),
    "deeplab-pytorch": (
        functools.partial(deeplab_kazuto, False),
        "deeplab-v2-resnet101",
        DEEPLAB,
        {"half_pixel": True, "bn_unbiased": True, "image_stats": "caffe"},
    ),
    "DeepLab v2 (Caffe)": (
        deeplab_caffe,
        "deeplab-v2-resnet101",
        DEEPLAB,
        {"half_pixel": False, "bn_unbiased": True, "image_stats": "caffe"},
    ),
    "PSPNet (Caffe)": (
        psp_caffe,
        "pspnet101-voc",
        PSP,
        {"bn_unbiased": True, "image_stats": "vgg"},
    ),
    "PSPNet (semseg)": (
        psp_semseg,
        "pspnet50-semseg",
        PSP,
        {"bn_unbiased": True, "image_stats": "imagenet"},
    ),
    "U-Net (milesial)": (
        milesial,
        "unet-carvana",
        MILESIAL,
        {"bn_unbiased": True, "layout": "paper"},
    ),
    "U-Net (phseg_v5)": (phseg_v5, "unet-released", RELEASED, {"layout": "released"}),
    "VGG16 (Caffe)": (
        lambda: vgg_files()[0],
        "fcn",
        VGG | {"skips": 32},
        {"image_stats": "vgg"},
    ),
    **{
        f"VGG16 (Caffe) in {name}": (
            lambda: vgg_files()[0],
            name,
            VGG,
            {"image_stats": "vgg"},
        )
        for name in ("hypercolumn", "zoomout", "cfm-a")
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_program_sets_what_the_kind_of_file_tells(kind, tmp_path):
    """The fields written with the weights, and the flags printed for training."""
    pytest.importorskip("safetensors")
    make, name, small, expected = KINDS[kind]
    network = published.find(name, "--model", tuple(models.MODELS))
    path, output = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    safetensors_file.write(path, make(), {})
    chosen = network.fields | small
    config = make_config(network.model, **chosen)
    imported = import_weights.import_weights(path, config, output=output, chosen=chosen)
    assert not imported.result.notes
    fields = weights.read_saved(output).info.fields
    assert {field: fields[field] for field in expected} == expected
    defaults = models.model_fields(network.model)
    lines = "".join(import_weights.training_flags(imported.info))
    for field, value in expected.items():
        if field in defaults and value != defaults[field]:
            assert f"--config.model.{field}={value}" in lines


@pytest.mark.parametrize("source", sources.SOURCES, ids=lambda source: source.title)
def test_fields_of_sources_are_fields_of_models(source):
    """A field that no model has would be left out without a word."""
    networks = [models.MODELS[name] for name in source.models if name != "classifier"]
    networks += [classifier.Classifier] * ("classifier" in source.models)
    for field, value in source.fields.items():
        having = [n for n in networks if field in n.__dataclass_fields__]
        assert having, field
        for network in having:
            more = {"backbone": source.backbones[0]} if source.backbones[0] else {}
            if "backbone" not in network.__dataclass_fields__:
                more = {}
            network(num_classes=2, **more, **{field: value})
