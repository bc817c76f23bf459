"""The program that times networks beside PyTorch's: what needs no PyTorch."""

import builtins
import types

import pytest
from ml_collections import ConfigDict

from experiments.benchmarks import against_torch, torch_predict
from segjax import models
from segjax.errors import UserError


def test_the_ratio_is_the_median_over_rounds():
    assert (
        against_torch.ratio({"ours": [1.0, 2.0, 4.0], "torch": [3.0, 3.0, 4.0]}) == 1.5
    )


def test_table():
    times = {"ours": [0.5, 0.5], "torch": [0.25, 0.25]}
    found = against_torch.rows({"unet": {"forward": times, "step": times}})
    assert found[1:] == [("unet", "0.50", "0.50", "500", "250", "500", "250")]


def test_without_pytorch(monkeypatch):
    plain = builtins.__import__

    def missing(name, *args, **options):
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return plain(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match="pip install torch"):
        against_torch.load_torch()


def test_unknown_networks_are_found_first(monkeypatch):
    values = types.SimpleNamespace(networks=["u-net"])
    monkeypatch.setattr(against_torch.flags, "FLAGS", values)
    with pytest.raises(UserError, match="did you mean 'unet'"):
        against_torch.main([])


@pytest.mark.parametrize(
    "config, found",
    [
        ({"model_name": "unet"}, "found UNet $"),
        ({"model_name": "deeplab", "model": {"backbone": "vgg16"}}, "DeepLab vgg16$"),
    ],
)
def test_networks_without_a_loop_in_pytorch(config, found):
    model = models.build(ConfigDict({"model": {}} | config), 3)
    with pytest.raises(UserError, match=f"only DeepLab v2 with a ResNet .*{found}"):
        torch_predict.loop(types.SimpleNamespace(models=(model,)))
