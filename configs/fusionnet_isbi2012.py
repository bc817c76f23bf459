"""FusionNet (arXiv 1612.05360, 2016), as in the paper or as released, on ISBI 2012.

    python -m experiments.train --config configs/fusionnet_isbi2012.py:paper \\
        --workdir runs/fusionnet --config.data.root=/path/to/membrane
    python -m experiments.train --config configs/fusionnet_isbi2012.py:released \\
        --workdir runs/fusionnet_released --config.data.root=/path/to/membrane

From the paper and the released code: whole images of 512, mirrored 64 pixels beyond
their borders; all eight orientations, elastic deformation and noise; one image per
step, rate 1e-4.

"released" has the code's Nadam and mean absolute error, here of a softmax of two
classes, which is its sigmoid. "paper" has Adam and cross-entropy, because the paper's
are not known.

Adapted: displacements are Gaussian with the deviation of the code's uniform ones; what
lies beyond the border is void. How long the authors trained is not known: 20,000 steps.

Published on the test set: V_rand 0.97804, V_info 0.989 (or 0.990: sources differ).
Estimated memory: 8 GB, 5 GB as released.
"""

from segjax.config import make, variant_name
from segjax.published import NETWORKS

VARIANTS = {
    "paper": NETWORKS["fusionnet"].fields,
    "released": NETWORKS["fusionnet-released"].fields,
}
_RELEASED = {"loss": {"name": "absolute_error"}, "optim": {"name": "nadam"}}


def get_config(arg: str = ""):
    name = variant_name(arg, VARIANTS)
    recipe = _RELEASED if name == "released" else {"loss": {}, "optim": {}}
    return make(
        model_name="fusionnet",
        model=VARIANTS[name],
        data={"name": "isbi2012"},
        augment={
            "crop": (640, 640),
            "border": "reflect",
            "flip": 0.5,
            "rot90": True,
            "elastic_sigma": 4.6,
            "elastic_grid": 8,
            "noise": 25.5,
        },
        batch_size=1,
        total_steps=20_000,
        workers=4,
        loss=recipe["loss"],
        optim={"name": "adam", "lr": 1e-4, "schedule": "constant", "weight_decay": 0.0}
        | recipe["optim"],
        eval_every=1000,
        eval_batch_size=1,
        eval_images=2,
        save_every=1000,
    )
