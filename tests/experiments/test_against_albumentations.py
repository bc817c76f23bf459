"""Timing the input pipeline beside albumentations: what does not need it."""

import builtins

import pytest

from experiments.benchmarks import against_albumentations
from segjax import config as config_lib
from segjax.data.augment_options import Options
from segjax.errors import UserError


def test_options_that_the_peer_lacks_are_found_first():
    options = Options(scale=(0.5, 2.0), hue=10.0, crop=(4, 4))
    with pytest.raises(UserError, match="augment.hue=10.0: .* the default, 0.0"):
        against_albumentations.peers(options)


def test_without_albumentations(monkeypatch):
    plain = builtins.__import__

    def missing(name, *args, **options):
        if name == "albumentations":
            raise ImportError("No module named 'albumentations'")
        return plain(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match="pip install albumentations"):
        against_albumentations.peers(Options(crop=(4, 4)))


def test_drawn_data_have_no_files():
    config = config_lib.make(data={"name": "scenes"})
    with pytest.raises(UserError, match="data.name=scenes: .* published data set"):
        against_albumentations.measure(config, images=1, repeats=1)
