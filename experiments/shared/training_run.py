"""The parts of a training run, built from a config and checked before any long work."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict

from experiments.shared import cli
from segjax import compilation, models, optim, sharding, training
from segjax import config as config_lib
from segjax.data import datasets, folder, pipeline, transforms
from segjax.errors import UserError

MakeOptimizer = Callable[[dict], optax.GradientTransformation]
TrainStep = Callable[[training.TrainState, dict], tuple[training.TrainState, dict]]


class TrainingRun(NamedTuple):
    """Everything that a training step and its input need."""

    model: nn.Module
    source: Any  # of the training split
    info: datasets.Dataset
    augment: transforms.Options
    mesh: jax.sharding.Mesh
    init: Callable[[], training.TrainState]  # jitted: the state of the seed
    make_train_step: Callable[[dict], TrainStep]  # parameters -> the jitted step
    batches: Callable[[int], Iterator[dict]]  # this process's share, from a batch on


def build_run(config: ConfigDict) -> TrainingRun:
    """Checks the config and the data; compiles nothing and reads no images yet.

    Raises:
      UserError: a field of the config is wrong, or the data are not there.
    """
    config_lib.check(config)
    sharding.check_batch_size(
        config.batch_size, "batch_size", grad_accum_steps=config.grad_accum_steps
    )
    source, info = datasets.load(config.data, config.data.train_split)
    # Resolved here, so that schedules and the saved config have the number of steps.
    config.total_steps = config_lib.count_steps(config, len(source))
    if config.data.name == "folder":
        cli.log(folder.report(datasets.scan_folder(config.data)))
    model = build_model(config, info)
    augment = augmentation(config, source, model=model, info=info)
    mesh = sharding.make_mesh()
    image_shape = (*augment.crop, info.channels)

    def step_for(params: dict) -> TrainStep:
        return make_train_step(config, model, params=params, mesh=mesh)

    def batches(start: int) -> Iterator[dict]:
        return train_batches(config, source, augment=augment, start=start)

    init = make_init(config, model, image_shape=image_shape, mesh=mesh)
    return TrainingRun(
        *(model, source, info, augment, mesh, init),
        make_train_step=step_for,
        batches=batches,
    )


def build_model(config: ConfigDict, info: datasets.Dataset) -> nn.Module:
    """The network of a config for the classes of a data set.

    Raises:
      UserError: a field of the config does not fit the network or the classes.
    """
    weights = len(config.loss.class_weights)
    if weights not in (0, len(info.classes)):
        raise UserError(
            f"config.loss.class_weights has {weights} values; {info.name} has "
            f"{len(info.classes)} classes"
        )
    model = models.build(config, len(info.classes))
    training.check_loss(model, config.loss)
    return model


def augmentation(
    config: ConfigDict, source: Any, *, model: nn.Module, info: datasets.Dataset
) -> transforms.Options:
    """The augmentation of a config, with the size of the images as the default crop."""
    options = transforms.options(config.augment, info.mean)
    crop = options.crop if any(options.crop) else common_size(source)
    return options._replace(crop=crop, margin=model.tiling.margin)


def common_size(source: Any) -> tuple[int, int]:
    """(H, W) of all images of a source.

    Raises:
      UserError: they have different sizes.
    """
    sizes = set(source.sizes)
    if len(sizes) > 1:
        raise UserError(
            f"the training images have {len(sizes)} different sizes, such as "
            f"{sorted(sizes)[0]} and {sorted(sizes)[-1]}: give a common size, such as "
            "--config.augment.crop=256,256"
        )
    return sizes.pop()


def train_batches(
    config: ConfigDict, source: Any, *, augment: transforms.Options, start: int
) -> Iterator[dict]:
    """This process's share of the training batches, from batch ``start`` on."""
    return pipeline.train_batches(
        source,
        augment,
        batch_size=config.batch_size,
        seed=config.seed,
        start=start,
        process=(jax.process_index(), jax.process_count()),
        workers=config.workers,
        threads=config.threads,
    )


def make_optimizer(config: ConfigDict) -> MakeOptimizer:
    """From parameters to the optimizer of a config."""

    def optimizer_for(params: dict) -> optax.GradientTransformation:
        return optim.create(config.optim, params, config.total_steps)

    return optimizer_for


def make_init(
    config: ConfigDict,
    model: nn.Module,
    *,
    image_shape: tuple[int, int, int],
    mesh: jax.sharding.Mesh,
) -> Callable[[], training.TrainState]:
    """The jitted function that makes the first state, replicated on all devices.

    Args:
      config: checked.
      model: of the config.
      image_shape: (H, W, C) of a training example.
      mesh: of the devices that train; compiling needs no more of them than their kind.
    """

    def init() -> training.TrainState:
        return training.create_state(
            model, make_optimizer(config), image_shape=image_shape, seed=config.seed
        )

    return jax.jit(init, out_shardings=sharding.replicated(mesh))


def make_train_step(
    config: ConfigDict, model: nn.Module, *, params: dict, mesh: jax.sharding.Mesh
) -> TrainStep:
    """The jitted step ``(state, batch) -> (state, metrics)``.

    The state is replicated and donated; ``params`` give its structure only.
    """
    optimizer = make_optimizer(config)(params)
    step = training.make_step(
        model,
        optimizer,
        options=config.loss,
        seed=config.seed,
        grad_accum_steps=config.grad_accum_steps,
    )
    step = compilation.precision(config.precision)(step)
    return jax.jit(step, donate_argnums=0, out_shardings=sharding.replicated(mesh))
