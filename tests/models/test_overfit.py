"""Every model trains: a narrow one of each learns four small scenes by heart."""

import jax
import numpy as np
import pytest

from segjax import config, models, optim, training
from segjax.data import scenes
from segjax.ops import geometry

NARROW = {
    "cfm": {
        "widths": (8, 16, 16, 24, 24),
        "norm": "batch",
        "fc_channels": 32,
        "bins": (2, 1),
        "superpixels": 144,
        "segment_batch": 64,
        "dropout": 0.0,
    },
    "contextual": {"widths": (8, 16, 24, 32), "branch_channels": 16, "norm": "batch"},
    "crfrnn": {
        "base_options": (
            "skips=8",
            "widths=8,16,16,24,24",
            "fc_channels=32",
            "norm=batch",
            "dropout=0.0",
        ),
        "spatial_filter": "separable",
        "bilateral_filter": "exact",
        "iterations_train": 1,
    },
    "deconvnet": {"widths": (8, 8, 16, 16, 16), "fc_channels": 32, "fc6_kernel": 2},
    "deeplab": {
        "backbone": "resnet50",
        "stage_sizes": (1, 1, 1, 1),
        "width": 8,
        "rates": (1, 2),
    },
    "dilation": {
        "widths": (8, 16, 16, 24, 24),
        "fc_channels": 32,
        "norm": "batch",
        "context_rates": (1, 2, 1),
        "dropout": 0.0,
    },
    # Padding 100 pixels for VGG16, which others here train, would take far longer.
    "fcn": {
        "backbone": "resnet18",
        "stage_sizes": (1, 1, 1, 1),
        "widths": (8,),
        "pad": 3,
    },
    "frrn": {
        "stage_units": (1, 1, 1),
        "stage_channels": (16, 16, 16),
        "stage_scales": (2, 4, 2),
        "width": 16,
        "residual_channels": 8,
        "first_units": 1,
        "last_units": 1,
    },
    "fusionnet": {"widths": (8, 16, 24), "residual_depth": 1},
    "hypercolumn": {
        "widths": (8, 16, 16, 24, 24),
        "fc_channels": 32,
        "norm": "batch",
        "dropout": 0.0,
        "grid": 2,
    },
    "pspnet": {
        "stage_sizes": (1, 1, 1, 1),
        "width": 8,
        "pyramid_channels": 8,
        "head_channels": 32,
        "bins": (1, 2),
    },
    "zoomout": {
        "widths": (8, 16, 16, 24, 24),
        "fc_channels": 32,
        "superpixels": 256,
        "scene_side": 32,
        "distance": 1,
        "subscene_batch": 64,
        "hidden": (64,),
        "dropout": 0.0,
    },
    "unet": {"widths": (8, 16, 24), "padding": "same", "norm": "batch", "dropout": 0.0},
}


# The others run for a second or two, and compiling without optimization saves ten.
LONG = ("cfm", "crfrnn", "deconvnet", "dilation", "frrn")
SLOW = ("cfm", "crfrnn", "deconvnet", "dilation", "zoomout")


@pytest.fixture
def compiler(name):
    jax.config.update("jax_disable_most_optimizations", name not in LONG)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=(pytest.mark.slow,) * (name in SLOW))
        for name in models.MODELS
    ],
)
@pytest.mark.usefixtures("compiler")
def test_overfits_four_images(name):
    options = config.make(
        model_name=name,
        model=NARROW[name],
        optim={"name": "adam", "lr": 0.01, "schedule": "constant", "weight_decay": 0.0},
    )
    model = models.build(options, len(scenes.CLASSES))
    # The exact bilateral filter takes (H W)^2 operations.
    side = 32 if name == "crfrnn" else geometry.nearest_sides(model.tiling, 64)[-1]
    examples = [scenes.scene(0, i, size=(side, side)) for i in range(4)]
    batch = {k: np.stack([e[k] for e in examples]) for k in ("image", "label")}

    def optimizer_of(params):
        return optim.create(options.optim, params, 100)

    shape = (side, side, 3)
    state = jax.jit(
        lambda: training.create_state(model, optimizer_of, image_shape=shape, seed=0)
    )()
    step = jax.jit(
        training.make_step(
            model, optimizer_of(state.params), options=options.loss, seed=0
        )
    )
    # The entropy of the class frequencies: what a constant guess can reach.
    counts = np.bincount(batch["label"].ravel(), minlength=256)[:9]
    p = counts[counts > 0] / counts.sum()
    constant = -(p * np.log(p)).sum()
    losses = []
    while len(losses) < 150 and (not losses or losses[-1] > 0.25 * constant):
        state, metrics = step(state, batch)
        losses.append(float(metrics["main_loss"]))
    assert np.isfinite(losses).all()
    assert losses[-1] <= 0.25 * constant, f"{losses[::10]}, constant {constant}"
