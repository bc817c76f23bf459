"""WSSL on the animals of PASCAL VOC 2012 at 128x128: masks are replaced by less.

    python -m experiments.train --config configs/wssl_animals.py:adapt \\
        --workdir runs/adapt --config.data.root=/path/to/VOCdevkit \\
        --config.init_from=weights/squeezenet.safetensors

full has the masks, strong those of 44 images and nothing else. fixed and adapt know
which classes each image shows; box has boxes as masks, box_em infers labels in them;
crf and grabcut read the masks that experiments.pseudo_labels made of the boxes in
pseudo/crf and pseudo/grabcut. semi, semi_crf and semi_image add the 44 masks to boxes,
to the masks of crf and to classes of images, half of each batch. A narrow
DeepLab-LargeFOV on SqueezeNet, for two CPU cores; docs/systems/wssl.md has the results.
No paper reports this setting.
"""

from experiments.shared import recipes
from segjax.config import make, variant

STRONG = {"strong_images": 44, "strong_share": 0.5}
ADAPT = {"em": "adapt", "em_background_share": 0.4, "em_foreground_share": 0.2}
VARIANTS = {
    "full": {},
    "strong": {"data": {"supervision": "none", "strong_images": 44}},
    "fixed": {
        "data": {"supervision": "image"},
        "loss": {"em": "fixed", "em_background_bias": 3.0, "em_foreground_bias": 5.0},
    },
    "adapt": {"data": {"supervision": "image"}, "loss": ADAPT},
    "box": {"data": {"supervision": "box"}},
    "box_em": {
        "data": {"supervision": "box"},
        "loss": {
            "em": "box_fixed",
            "em_background_bias": 0.0,
            "em_foreground_bias": 4.0,
        },
    },
    "crf": {"data": {"supervision": "pseudo", "pseudo_labels": "pseudo/crf"}},
    "grabcut": {"data": {"supervision": "pseudo", "pseudo_labels": "pseudo/grabcut"}},
    "semi": {"data": {"supervision": "box", **STRONG}},
    "semi_crf": {
        "data": {"supervision": "pseudo", "pseudo_labels": "pseudo/crf", **STRONG}
    },
    "semi_image": {"data": {"supervision": "image", **STRONG}, "loss": ADAPT},
}


def get_config(arg: str = ""):
    chosen = variant(arg, VARIANTS)
    return make(**recipes.weak_animals(**chosen))
