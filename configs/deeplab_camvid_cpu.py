"""DeepLab v2 with a small ResNet on CamVid at 180x240: for two CPU cores, from scratch.

    python -m experiments.train --config configs/deeplab_camvid_cpu.py \\
        --workdir /tmp/deeplab --config.data.root=/path/to/CamVid

Scores at an eighth of the resolution, enlarged bilinearly: the network whose boundaries
the dense CRF of docs/crf.md sharpens.  No paper reports this setting.
"""

from experiments.shared import recipes
from segjax.config import make


def get_config(arg: str = ""):
    del arg
    return make(
        model_name="deeplab",
        model={
            "backbone": "resnet50",
            "stage_sizes": (2, 2, 2, 2),
            "width": 16,
            "rates": (2, 4, 6, 8),
            "image_stats": "unit",
        },
        **recipes.camvid_cpu(crop=(145, 193), steps=1500),
    )
