"""U-Net on nuclei of the 2018 Data Science Bowl: nucleus against background.

    python -m experiments.train --config configs/unet_dsb2018.py --workdir /tmp/dsb \\
        --config.data.root=/path/to/dsb2018
    python -m experiments.train --config configs/unet_dsb2018.py:small \\
        --workdir /tmp/dsb --config.data.root=/path/to/dsb2018
        (narrow, on crops of half the side: minutes on two CPU cores)

full, the default, is sized for a GPU.

The smallest images have 256x256 pixels, which is the crop.  Fluorescent images are
bright on black, stained ones dark on white or in color, so brightness and contrast
vary; cells have no upright position, so crops are turned and mirrored.  No paper
reports this setting.
"""

from experiments.shared.recipes import NUCLEI
from segjax.config import make, variant

VARIANTS = NUCLEI


def get_config(arg: str = ""):
    return make(model_name="unet", **variant(arg, VARIANTS))
