"""bn_unbiased: PyTorch's and Caffe's running variance, in every network."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from segjax import models
from segjax.models import classifier, layers
from segjax.ops import geometry


@pytest.mark.parametrize("unbiased", [False, True])
def test_unbiased_running_variance(unbiased):
    """PyTorch's n / (n - 1), in the running variance alone."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            options = dict(momentum=0.7, dtype="float32", unbiased=unbiased)
            return layers.batch_norm(x, "bn", train=train, **options)

    x = np.random.default_rng(0).normal(2, 3, (2, 3, 1, 4)).astype(np.float32)
    scale = {"bn": {"scale": np.ones(4), "bias": np.zeros(4)}}
    old = {"bn": {"mean": np.full(4, 0.5), "var": np.full(4, 2.0)}}
    variables = jax.tree.map(np.float32, {"params": scale, "batch_stats": old})
    y, new = Layer().apply(variables, x, True, mutable=["batch_stats"])
    flat = x.reshape(-1, 4)
    running = new["batch_stats"]["bn"]
    expected = 0.7 * 2 + 0.3 * flat.var(0, ddof=int(unbiased))
    np.testing.assert_allclose(running["var"], expected, rtol=1e-5)
    np.testing.assert_allclose(running["mean"], 0.35 + 0.3 * flat.mean(0), rtol=1e-5)
    normalized = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(y.reshape(-1, 4), normalized, rtol=1e-4, atol=1e-5)
    # Prediction reads the running values and leaves them.
    y, new = Layer().apply(variables, x, False, mutable=["batch_stats"])
    assert not new.get("batch_stats") or np.all(new["batch_stats"]["bn"]["var"] == 2)
    np.testing.assert_allclose(y, (x - 0.5) / np.sqrt(2 + 1e-5), rtol=1e-5)
    start = jax.eval_shape(lambda: Layer().init(jax.random.key(0), x, True))
    assert start["batch_stats"]["bn"]["var"].shape == (4,)


def test_every_normalization_of_a_network_gets_bn_unbiased():
    """The class of each layer, as recorded while the network is traced."""
    few = {"stage_sizes": (1, 1, 1, 1)}  # blocks of ResNets; all blocks are alike
    fewer = {
        "deeplab": few,
        "pspnet": few,
        "frrn": {
            "stage_units": (1, 1, 1),
            "stage_channels": (16, 16, 16),
            "stage_scales": (2, 4, 2),
        },
    }
    networks = [
        classifier.Classifier(2, "squeezenet", norm="batch"),
        classifier.Classifier(2, "resnet18", **few),
        classifier.Classifier(2, "vgg16", norm="batch"),
        classifier.Classifier(2, "alexnet", norm="batch"),
        classifier.Classifier(2, "googlenet", norm="batch"),
        *(
            model(
                2,
                **({"norm": "batch"} if hasattr(model, "norm") else {}),
                **fewer.get(name, {}),
            )
            for name, model in models.MODELS.items()
            if name != "crfrnn"
        ),
        models.MODELS["deeplab"](
            2, backbone="vgg16", norm="batch", fc6_channels=8, side_branches=True
        ),
    ]
    for network in networks:
        kinds = norm_classes(network.clone(bn_unbiased=True))
        assert kinds == {layers.UnbiasedBatchNorm}, type(network).__name__
    assert norm_classes(networks[0]) == {nn.BatchNorm}


def norm_classes(model):
    found = set()

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm):
            found.add(type(context.module))
        return call(*args, **kwargs)

    side = geometry.nearest_sides(model.tiling, 64)[-1]
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    images = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
    with nn.intercept_methods(record):
        jax.eval_shape(lambda x: model.init(keys, x, train=True), images)
    return found
