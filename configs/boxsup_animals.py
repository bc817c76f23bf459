"""BoxSup on the animals of PASCAL VOC 2012 at 128x128, for two CPU cores.

    python -m experiments.boxsup --config configs/boxsup_animals.py \\
        --workdir runs/boxsup --config.data.root=/path/to/VOCdevkit \\
        --config.init_from=weights/squeezenet.safetensors

The steps are those of one of three rounds, 2,700 together. A single training on masks
that are there already:

    python -m experiments.train --config configs/boxsup_animals.py:once \\
        --workdir runs/once --config.data.root=/path/to/VOCdevkit \\
        --config.data.pseudo_labels=runs/boxsup/labels_3

rounds and once differ in the number of steps, and semi adds the masks of 44 images to
rounds, half of each batch. docs/systems/boxsup.md has the results; configs/
wssl_animals.py has the network and what it is compared with. No paper reports this
setting.
"""

from experiments.shared import recipes
from segjax.config import make, variant

_PSEUDO = {"supervision": "pseudo", "pseudo_labels": "pseudo"}
VARIANTS = {
    "rounds": {"data": _PSEUDO, "steps": 900},
    "once": {"data": _PSEUDO},
    "semi": {
        "data": {**_PSEUDO, "strong_images": 44, "strong_share": 0.5},
        "steps": 900,
    },
}


def get_config(arg: str = ""):
    return make(**recipes.weak_animals(**variant(arg, VARIANTS)))
