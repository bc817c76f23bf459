"""Wrong values of config fields: one line, never more, before anything is compiled.

Some dozens of mutants here, a thousand in ``make test-all``.
"""

import datetime
import random

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from experiments.shared import training_run
from segjax import config as config_lib
from segjax.errors import UserError

FEW, MANY = 30, 1000
VALUES = (
    *(None, True, False, "", "x", "\ud800", "a\0b", "é" * 300, "1", b"x", object()),
    *(0, 1, -1, 2, 3, 7, 0.5, -0.5, 1e308, 1e-308, float("nan"), float("inf")),
    *(2**31 - 1, 2**31, 2**63, -(2**63), 10**400, 1j),
    *((), (0,), (1,), (-1,), (0, 0), (1, 2), (8, 8), (0.5, 1.5), (2**31, 2**31)),
    *(("x",), ("a=b",), ("[=1",), (float("nan"),) * 9, (1.0,) * 9, ((1,),), [], {}),
)
MODELS = {
    "unet": {"padding": "same", "widths": (2, 2)},
    "pspnet": {
        "stage_sizes": (1, 1, 1, 1),
        "width": 2,
        "pyramid_channels": 2,
        "head_channels": 2,
    },
    "deeplab": {"backbone": "vgg16", "widths": (2,) * 5, "fc6_channels": 2},
    "fcn": {"widths": (2,) * 5, "fc_channels": 2},
}


def fuzz(count: int):
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=datetime.timedelta(seconds=20),
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def fields(folder, model: str) -> dict:
    """Nested fields of a run of a tiny network."""
    return {
        "model_name": model,
        "model": MODELS[model],
        "data": {
            "scenes_size": (32, 32),
            "scenes_train": 4,
            "scenes_validation": 4,
            "data_dir": str(folder),
        },
        "batch_size": 4,
    }


def mutant(folder, seed: int) -> tuple[dict, str]:
    """The fields of a run, one to three of them wrong; and what was changed."""
    draw = random.Random(seed)
    values = fields(folder, draw.choice(sorted(MODELS)))
    flat = flatten_dict(config_lib.json_like(config_lib.make(**values)))
    changes = {}
    # Another folder of data would be written to.
    places = sorted(path for path in flat if path[-1] != "data_dir")
    for path in draw.sample(places, draw.choice((1, 1, 2, 3))):
        alike = [value for value in VALUES if type(value) is type(flat[path])]
        value = draw.choice(alike if alike and draw.random() < 0.7 else VALUES)
        if draw.random() < 0.15:
            changes["renamed"] = path = (*path[:-1], path[-1] + "x")
        changes[".".join(path)] = value
        flat[path] = value
    return unflatten_dict(flat), repr(changes)


def prepare(values: dict) -> None:
    """All that experiments.train does before it compiles."""
    config = config_lib.make(**values)
    config_lib.check_start(config)
    run = training_run.build_run(config)
    state = jax.eval_shape(run.init)
    size = (config.batch_size, *run.augment.crop, run.info.channels)
    batch = {
        "image": jax.ShapeDtypeStruct(size, jnp.uint8),
        "label": jax.ShapeDtypeStruct(size[:-1], jnp.uint8),
    }
    jax.eval_shape(run.make_train_step(state.params), state, batch)


def check(folder, seed: int) -> bool:
    """Whether the run could start; otherwise one line has said why not."""
    values, changes = mutant(folder, seed)
    try:
        prepare(values)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 3000, changes
        return False
    return True


def test_the_runs_are_right_before_they_are_changed(folder):
    for model in MODELS:
        prepare(fields(folder, model))


@pytest.mark.parametrize(
    "field, value",
    [
        ("init_from", "é" * 300),
        ("optim.lr", 1e39),
        ("augment.crop", (2**31, 2**31)),
        ("model.width", 2**63),
        ("model.stage_sizes", (1, 1, 1, 2**40)),
    ],
)
def test_wrong_fields_that_were_found(folder, field, value):
    values = config_lib.json_like(config_lib.make(**fields(folder, "pspnet")))
    flat = flatten_dict(values)
    flat[tuple(field.split("."))] = value
    with pytest.raises(UserError, match=f"^--config.{field} is ") as caught:
        prepare(unflatten_dict(flat))
    assert "\n" not in str(caught.value)


@fuzz(FEW)
@given(st.integers(0, 2**32))
def test_wrong_fields(folder, seed):
    check(folder, seed)


@pytest.mark.slow
@fuzz(MANY)
@given(st.integers(2**33, 2**34))
def test_many_wrong_fields(folder, seed):
    check(folder, seed)
