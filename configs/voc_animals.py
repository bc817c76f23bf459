"""DeepLab on the animals of PASCAL VOC 2012: seven of its classes, the rest void.

    python -m experiments.train --config configs/voc_animals.py \\
        --workdir runs/animals --config.data.root=/path/to/VOCdevkit
    python -m experiments.train --config configs/voc_animals.py:small \\
        --workdir runs/animals --config.data.root=/path/to/VOCdevkit

Background, cat, cow, dog, horse, person and sheep become the classes 0 to 6; pixels of
all other classes are void.  full, the default, is sized for a GPU, small for two CPU
cores.  Both train from scratch.  With all images of VOC most hold none of the animals:
lists of those that do (ImageSets/Segmentation) save time.  Scores do not compare with
published ones, which are of 21 classes.
"""

from experiments.shared import recipes
from segjax.config import make, variant

VARIANTS = {
    "full": {
        "model": {"backbone": "resnet50", "image_stats": "unit", "dtype": "bfloat16"},
        "crop": (321, 321),
        "scale": (0.5, 1.5),
        "batch_size": 16,
        "total_steps": 10000,
        "workers": 8,
        "every": 1000,
    },
    "small": {
        "model": {
            "backbone": "resnet50",
            "stage_sizes": (2, 2, 2, 2),
            "width": 16,
            "rates": (2, 4, 6, 8),
            "image_stats": "unit",
        },
        "crop": (193, 193),
        "scale": (0.5, 1.0),
        "batch_size": 8,
        "total_steps": 1500,
        "workers": 0,
        "every": 500,
    },
}


def get_config(arg: str = ""):
    size = variant(arg, VARIANTS)
    return make(
        model_name="deeplab",
        model=size["model"],
        data={
            "name": "voc2012",
            "keep_classes": recipes.ANIMALS,
        },
        augment={
            "crop": size["crop"],
            "scale": size["scale"],
            "flip": 0.5,
            **recipes.COLORS,
        },
        batch_size=size["batch_size"],
        total_steps=size["total_steps"],
        workers=size["workers"],
        optim=recipes.adam(1e-3),
        eval_every=size["every"],
        eval_batch_size=4,
        save_every=size["every"],
    )
