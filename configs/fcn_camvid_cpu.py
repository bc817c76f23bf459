"""FCN-8s on SqueezeNet from ImageNet weights on CamVid at 180x240, for two CPU cores.

    python -m experiments.import_weights squeezenet11_imagenet_notop.h5 \\
        --config=configs/fcn_camvid_cpu.py --output=weights/squeezenet.safetensors
    python -m experiments.train --config configs/fcn_camvid_cpu.py \\
        --workdir runs/fcn --config.data.root=/path/to/CamVid

The best of the five networks of configs/sweeps/networks.py:camvid_cpu, with the same
recipe: colors, scales and class weights are meant for images of other days.  No paper
reports this setting.  docs/weights.md says where the weights are.
"""

from experiments.shared import recipes
from segjax.config import make


def get_config(arg: str = ""):
    del arg
    recipe = recipes.camvid_strong(1000)
    return make(
        model_name="fcn",
        model={"backbone": "squeezenet", "dropout": 0.2, "at_once": True},
        init_from="weights/squeezenet.safetensors",
        **recipe | {"optim": recipe["optim"] | {"lr_mult": ("^backbone=0.25",)}},
    )
