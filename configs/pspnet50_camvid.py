"""PSPNet-50 (CVPR 2017) on CamVid at 360x480, from scratch.

    python -m experiments.train --config configs/pspnet50_camvid.py \\
        --workdir /tmp/run --config.data.root=/path/to/CamVid

The recipe of section 5.1 (poly 0.9, SGD, batch 16, auxiliary weight 0.4) with a higher
rate and more epochs, since nothing is pre-trained.  Published with Cityscapes or
ImageNet weights, for scale only: PSPNet50 69.1 mIoU on the test set at 720x960 (from
memory).

:gpu, the default, is for one GPU; :v5e_16 for 16 chips of TPU v5e (docs/pods.md): batch
128, as many epochs, the rate scaled with the batch (experiments/shared/pods.py). The
latter has not been trained.
"""

from experiments.shared import pods, recipes
from segjax.config import make, variant

VARIANTS = {"gpu": {}, "v5e_16": {"chips": 16}}


def get_config(arg: str = ""):
    config = make(model_name="pspnet", eval_every=500, **recipes.PSPNET50_FROM_SCRATCH)
    return pods.scaled(config, **variant(arg, VARIANTS))
