"""Zoom-out features on procedural scenes at 64x64, for two CPU cores, from scratch.

    python -m experiments.train --config configs/zoomout_scenes.py:backbone \\
        --workdir runs/hypercolumn_scenes
    python -m experiments.chain --config configs/zoomout_scenes.py:zoomout \\
        --workdir runs/zoomout_scenes

The paper takes VGG16 from ImageNet. Here a narrow one is trained first, as the backbone
of a hypercolumn network, with the batch normalization that training from scratch needs;
then the zoom-out classifier is trained on what it computes, with 144 superpixels of
about 28 pixels each. Without init_from the backbone would be one that nothing has
trained. The second command trains both stages. No paper reports this setting.

fcn8s and hypercolumn are what docs/systems/zoomout.md compares with it: networks on the
same VGG16 that train as many steps as both stages together. fcn8s pads its images by as
little as its layers permit.
"""

from experiments.shared import recipes
from segjax.config import make, variant

_VGG16 = {
    "widths": (8, 16, 32, 32, 32),
    "fc_channels": 64,
    "norm": "batch",
    "image_stats": "unit",
}
_HYPERCOLUMN = {
    "model_name": "hypercolumn",
    "model": {**_VGG16, "dropout": 0.1},
    "optim": recipes.adam(3e-3),
}
VARIANTS = {
    "backbone": {**_HYPERCOLUMN, "total_steps": 400},
    "zoomout": {
        "model_name": "zoomout",
        "model": {
            **_VGG16,
            "superpixels": 144,
            "scene_side": 32,
            "subscene_batch": 36,
            "hidden": (128, 128),
            "dropout": 0.1,
        },
        "optim": recipes.adam(1e-3),
        "total_steps": 150,
    },
    "hypercolumn": {**_HYPERCOLUMN, "total_steps": 550},
    "fcn8s": {
        "model_name": "fcn",
        "model": {**_VGG16, "dropout": 0.1, "pad": 69},
        "optim": recipes.adam(3e-3),
        "total_steps": 550,
    },
}
STARTS_FROM = {"zoomout": "backbone"}


def get_config(arg: str = ""):
    return make(
        data={
            "name": "scenes",
            "scenes_size": (64, 64),
            "scenes_train": 1200,
            "scenes_validation": 200,
        },
        augment={"flip": 0.5, "brightness": 0.1},
        batch_size=8,
        eval_every=200,
        eval_batch_size=10,
        save_every=100,
        **variant(arg, VARIANTS),
    )
