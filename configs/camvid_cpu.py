"""U-Net on CamVid at 180x240: half an hour on two CPU cores, from scratch.

    python -m experiments.train --config configs/camvid_cpu.py --workdir /tmp/camvid \\
        --config.data.root=/path/to/CamVid

CamVid (SegNet split, 11 classes) with every image reduced to half its size.  No paper
reports this setting; the README has the measured numbers.
"""

from experiments.shared import recipes
from segjax.config import make


def get_config(arg: str = ""):
    del arg
    return make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", "widths": (16, 32, 64, 128, 256)},
        **recipes.camvid_cpu(crop=(144, 192), steps=1000),
    )
