"""U-Net on your own images and masks; everything else by overrides.

    python -m experiments.train --config configs/own_data.py --workdir runs/own \\
        --config.data.root=FOLDER --config.augment.crop=256,256
    python -m experiments.train --config configs/own_data.py:small --workdir runs/own \\
        --config.data.root=FOLDER

FOLDER holds images/ and masks/, or is laid out as PASCAL VOC (docs/data.md).  It is
checked first, and the class frequencies and suggested class weights are printed; the
weights can be used with --config.loss.class_weights=1.0,2.5.  To look at it before:

    python -m experiments.prepare --check=FOLDER --output=/tmp/look \\
        --config configs/own_data.py

Images may have any number of channels: --config.data.channels=5.  For 16-bit images
that do not use all values, --check proposes a --config.data.value_range=LOW,HIGH.

full, the default, is sized for a GPU; on two CPU cores it takes days.  small takes
minutes there: a quarter of the channels, an eighth of the pixels per step and a third
of the steps.  The costs are proportional to augment.crop (both sides), batch_size and
total_steps, and grow with the square of model.widths.  Evaluation sees whole images:
with photos of several megapixels, reduce all of them by --config.data.resize=H,W.
"""

from experiments.shared import recipes
from segjax.config import make, variant

VARIANTS = {
    "full": {
        "model": {"widths": (32, 64, 128, 256, 256)},
        "crop": (256, 256),
        "batch_size": 8,
        "total_steps": 2000,
        "every": 250,
    },
    "small": {
        "model": {"widths": (8, 16, 32, 64, 64)},
        "crop": (128, 128),
        "batch_size": 4,
        "total_steps": 600,
        "every": 200,
    },
}


def get_config(arg: str = ""):
    size = variant(arg, VARIANTS)
    return make(
        model_name="unet",
        model={"padding": "same", "norm": "batch", **size["model"]},
        data={"name": "folder"},
        augment={**recipes.OWN_AUGMENT, "crop": size["crop"]},
        batch_size=size["batch_size"],
        total_steps=size["total_steps"],
        optim=recipes.adam(1e-3),
        eval_every=size["every"],
        save_every=size["every"],
    )
