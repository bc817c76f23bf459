"""Deep Contextual Network (AAAI 2016) on ISBI 2012, with its fading auxiliary losses.

    python -m experiments.train --config configs/contextual_isbi2012.py \\
        --workdir runs/contextual --config.data.root=/path/to/membrane

From the paper, as far as it is known: crops of 480, quarter turns, mirrors and elastic
deformation; one crop per step, momentum 0.9, decay 5e-4, rate 0.01 divided by 10 every
2,000 steps down to 1e-7; the auxiliary losses weigh 1 at first and are divided by 10 in
steps down to 0.01.

Adapted: the trunk starts from scratch and so has batch normalization, where the paper
starts from DeepLab's; the auxiliary weights fall together with the rate, their interval
is not known; the amplitude of the deformation neither.

Published on the test set: V_rand 0.97682, V_info 0.98865 (averaged over rotations, with
a watershed behind). Estimated memory: 2 GB.
"""

from segjax.config import make


def get_config(arg: str = ""):
    del arg
    return make(
        model_name="contextual",
        model={"norm": "batch"},
        data={"name": "isbi2012"},
        augment={
            "crop": (480, 480),
            "flip": 0.5,
            "rot90": True,
            "elastic_sigma": 10.0,
            "border": "reflect",
        },
        batch_size=1,
        total_steps=12_000,
        workers=4,
        loss={
            "aux_weight": 1.0,
            "aux_factor": 0.1,
            "aux_every": 2000,
            "aux_floor": 0.01,
        },
        optim={
            "name": "caffe_sgd",
            "lr": 0.01,
            "momentum": 0.9,
            "schedule": "step",
            "step_every": 2000,
            "weight_decay": 5e-4,
        },
        eval_every=1000,
        eval_batch_size=1,
        eval_images=2,
        save_every=1000,
    )
