"""The program that times the dense CRF beside pydensecrf: what does not need it."""

import builtins
import sys
import types

import numpy as np
import pytest

from experiments.benchmarks import against_pydensecrf
from segjax.errors import UserError
from segjax.ops import mean_field

SETTINGS = mean_field.SETTINGS["pydensecrf"]


def test_without_pydensecrf(monkeypatch):
    plain = builtins.__import__

    def missing(name, *args, **options):
        if name.startswith("pydensecrf"):
            raise ImportError("No module named 'pydensecrf'")
        return plain(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match="pip install pydensecrf2"):
        against_pydensecrf.peer(SETTINGS)


@pytest.fixture
def fake(monkeypatch):
    """A stand-in that records its calls and returns the unaries' probabilities."""
    calls = []

    class DenseCRF2D:
        def __init__(self, width, height, classes):
            calls.append(("size", width, height, classes))

        def setUnaryEnergy(self, unary):
            self.unary = unary

        def addPairwiseGaussian(self, **how):
            calls.append(("smoothness", how))

        def addPairwiseBilateral(self, rgbim, **how):
            calls.append(("appearance", rgbim.shape, how))

        def inference(self, iterations):
            calls.append(("iterations", iterations))
            return np.exp(-self.unary)

    inner = types.ModuleType("pydensecrf.densecrf")
    inner.DenseCRF2D = DenseCRF2D
    outer = types.ModuleType("pydensecrf")
    outer.densecrf = inner
    monkeypatch.setitem(sys.modules, "pydensecrf", outer)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", inner)
    return calls


def test_the_peer_gets_the_same_crf(fake):
    odds = against_pydensecrf.probabilities_of((6, 9), 3, seed=0)
    np.testing.assert_allclose(odds.sum(-1), 1, rtol=1e-6)
    settings = SETTINGS._replace(iterations=4, appearance_sigma_rgb=7.0)
    run = against_pydensecrf.peer(settings)
    found = run(odds, np.zeros((6, 9, 3), np.uint8))
    np.testing.assert_allclose(found, odds.clip(1e-5), rtol=1e-5)
    assert fake == [
        ("size", 9, 6, 3),
        ("smoothness", {"sxy": 3.0, "compat": 3.0}),
        ("appearance", (6, 9, 3), {"sxy": 80.0, "srgb": 7.0, "compat": 10.0}),
        ("iterations", 4),
    ]


def test_settings_that_the_peer_lacks(fake):
    with pytest.raises(UserError, match="normalization is 'after'; pydensecrf has"):
        against_pydensecrf.peer(SETTINGS._replace(normalization="after"))


def test_rounds_and_labels_are_counted(fake):
    images = [np.full((8, 8, 3), 90, np.uint8)] * 3
    found = against_pydensecrf.measure(
        images,
        classes=2,
        settings=SETTINGS._replace(smoothness_weight=0.0, appearance_weight=0.0),
        rounds=2,
        batch=2,
    )
    assert len(found["ours"]) == len(found["pydensecrf"]) == 3
    assert found["later"] == 0 and found["different"] == 0
    assert sum(call[0] == "size" for call in fake) == 9  # every image in every round
