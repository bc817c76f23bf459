"""PSPNet with SqueezeNet from ImageNet weights on CamVid at 180x240, for two CPU cores.

    python -m experiments.import_weights squeezenet11_imagenet_notop.h5 \\
        --config=configs/pspnet_camvid_cpu.py --output=weights/squeezenet.safetensors
    python -m experiments.train --config configs/pspnet_camvid_cpu.py \\
        --workdir runs/pspnet --config.data.root=/path/to/CamVid

The best of the five networks of configs/sweeps/networks.py:camvid_cpu, with its recipe
and more steps: colors, scales and class weights are meant for images of other days.  No
paper reports this setting.  docs/weights.md says where the weights are.
"""

from experiments.shared import recipes
from segjax.config import make


def get_config(arg: str = ""):
    del arg
    recipe = recipes.camvid_strong(2500)
    return make(
        model_name="pspnet",
        model={
            "backbone": "squeezenet",
            "pyramid_channels": 128,
            "head_channels": 128,
            "dropout": 0.2,
        },
        init_from="weights/squeezenet.safetensors",
        **recipe | {"optim": recipe["optim"] | {"lr_mult": ("^backbone=0.25",)}},
    )
