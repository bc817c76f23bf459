"""Every file in configs/: its fields, its model, its training step; no data needed."""

import copy
import gc
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from experiments.shared import evaluation, recipes
from segjax import config as config_lib
from segjax import models, optim, training
from segjax.data import datasets, transforms
from segjax.errors import UserError
from segjax.weak import supervision

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").glob("*.py"))

# Of a folder of one's own, neither is known before it is scanned.
FOLDER_CLASSES, FOLDER_SIZE = 5, (300, 400)
SIZES = {"camvid": (360, 480), "isbi2012": (512, 512), "folder": FOLDER_SIZE}


@pytest.fixture(scope="module", autouse=True)
def no_garbage_collection():
    """Tracing makes millions of objects that live; looking for dead ones is a third."""
    gc.disable()
    yield
    gc.enable()


def commands(file: Path) -> list[str]:
    """The commands of a config's docstring, each on one line."""
    doc = runpy.run_path(str(file))["__doc__"].replace("\\\n", " ")
    found = re.findall(r"python -m experiments\.(?:train|chain) .*", doc)
    return [" ".join(command.split()) for command in found]


def arguments(file: Path) -> list[str]:
    """Each ``FILE:ARG``: of its table VARIANTS and of its docstring."""
    module = runpy.run_path(str(file))
    shown = re.findall(rf"{file.name}:([\w-]+)", " ".join(commands(file)))
    return list(dict.fromkeys([*module.get("VARIANTS", ("",)), *shown]))


def variants(marks: tuple = ()) -> list:
    """Files and arguments; `marks` are those of all but the first of a file."""
    return [
        pytest.param(
            file, arg, id=file.stem + (f":{arg}" if arg else ""), marks=marks * (i > 0)
        )
        for file in FILES
        for i, arg in enumerate(arguments(file))
    ]


def load(file: Path, arg: str) -> ConfigDict:
    return runpy.run_path(str(file))["get_config"](*[arg] if arg else [])


def dataset(config: ConfigDict) -> tuple[int, int, tuple[int, int]]:
    """Number of classes and channels, and the image size, without reading data."""
    if config.data.name == "folder":
        size = config.data.resize if any(config.data.resize) else SIZES["folder"]
        return FOLDER_CLASSES, 3, size
    info = datasets.describe(config.data)
    size = info.size if any(info.size) else FOLDER_SIZE  # images of several sizes
    return len(info.classes), info.channels, size


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_docstring_has_a_command_whose_flags_exist(file):
    assert commands(file), "no command of experiments.train or experiments.chain"
    for command in commands(file):
        assert f"--config configs/{file.name}" in command
        for key in re.findall(r"--config\.(\S+?)=", command):
            value = load(file, "")
            for part in key.split("."):
                assert part in value, key
                value = value[part]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_docstring_names_every_variant_and_the_first_is_the_default(file):
    args = arguments(file)
    if "VARIANTS" not in runpy.run_path(str(file)):
        return
    doc = runpy.run_path(str(file))["__doc__"]
    assert not [arg for arg in args if not re.search(rf"\b{arg}\b", doc)]
    assert load(file, "") == load(file, args[0])
    with pytest.raises(UserError, match="unknown value 'nothing'; "):
        load(file, "nothing")


@pytest.mark.parametrize("file, arg", variants())
def test_fields_are_known_and_checked(file, arg):
    config = load(file, arg)
    config_lib.check(config)
    # As after saving and reading in another process.
    again = config_lib.make(**config_lib.json_like(config))
    assert again == config
    assert config.data.name in datasets.NAMES


@pytest.mark.parametrize("file, arg", variants((pytest.mark.slow,)))
def test_model_builds_and_its_training_step_lowers(file, arg):
    config = load(file, arg)
    classes, channels, size = dataset(config)
    model = models.build(config, classes)
    crop = tuple(config.augment.crop)
    options = transforms.options(config.augment, (0.0,) * channels)
    assert options.crop == crop
    crop = crop if any(crop) else size

    def optimizer_of(params):
        return optim.create(config.optim, params, config.total_steps)

    state = jax.eval_shape(
        lambda: training.create_state(
            model, optimizer_of, image_shape=(*crop, channels), seed=0
        )
    )
    step = training.make_step(
        model,
        optimizer_of(state.params),
        options=config.loss,
        seed=0,
        grad_accum_steps=config.grad_accum_steps,
    )
    batch = {
        "image": jax.ShapeDtypeStruct((config.batch_size, *crop, channels), jnp.uint8),
        "label": jax.ShapeDtypeStruct((config.batch_size, *crop), jnp.uint8),
    }
    if config.data.supervision in supervision.WEAK:
        present = (config.batch_size, classes)
        batch["present"] = jax.ShapeDtypeStruct(present, jnp.uint8)
    lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
    after, metrics = lowered.out_info
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))

    if arg != arguments(file)[0]:
        return
    # Evaluation sees whole images.
    images = jax.ShapeDtypeStruct((1, *size, channels), jnp.uint8)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    predict = evaluation.make_predictor(config, model)
    assert jax.eval_shape(predict, variables, images).shape == (1, *size, classes)


def test_a_copy_of_a_config_works_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in (*FILES, *sorted((ROOT / "configs" / "sweeps").glob("*.py"))):
        copied = tmp_path / f"my_{file.name}"
        copied.write_bytes(file.read_bytes())
        found = runpy.run_path(str(copied))["get_config"]()
        assert found == runpy.run_path(str(file))["get_config"]()


def test_recipes_are_shared_and_not_changed_by_the_configs():
    before = {
        key: copy.deepcopy(x) for key, x in vars(recipes).items() if key.isupper()
    }
    scratch, sweep, fcn = (
        runpy.run_path(str(ROOT / "configs" / name))["get_config"]()
        for name in ("pspnet50_camvid.py", "sweeps/pyramid_bins.py", "fcn8s_camvid.py")
    )
    assert scratch.eval_every != sweep.eval_every
    sweep.eval_every = scratch.eval_every
    assert scratch == sweep
    assert (fcn.model.skips, fcn.model.norm, fcn.augment.contrast) == (8, "batch", 0.2)
    assert before and before == {key: getattr(recipes, key) for key in before}
