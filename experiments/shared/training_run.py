"""The parts of a training run, built from a config and checked before any long work."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from experiments.shared import cli, initialization
from segjax import compilation, models, optim, sharding, training
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data import datasets, folder, object_crops, pipeline, transforms
from segjax.errors import UserError
from segjax.models import layers
from segjax.ops import conv
from segjax.weak import pseudo_labels, supervision

MakeOptimizer = Callable[[dict], optax.GradientTransformation]
TrainStep = Callable[[training.TrainState, dict], tuple[training.TrainState, dict]]


class TrainingRun(NamedTuple):
    """Everything that a training step and its input need."""

    model: nn.Module
    source: datasets.Source  # of the training split
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
    check(config)
    source, info = load_data(config)
    # Resolved here, so that schedules and the saved config have the number of steps.
    config.total_steps = config_lib.count_steps(config, len(source))
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


def check(config: ConfigDict) -> None:
    """Checks what can be checked without data.

    Raises:
      UserError: a field of the config is wrong.
    """
    config_lib.check(config)
    sharding.check_batch_size(
        config.batch_size, "batch_size", grad_accum_steps=config.grad_accum_steps
    )
    sharding.check_batch_size(config.eval_batch_size, "eval_batch_size")


def load_data(config: ConfigDict) -> tuple[datasets.Source, datasets.Dataset]:
    """The training split of a config, and the description of its data set.

    The labels are those of ``data.supervision``.

    Raises:
      UserError: the data are not there, or something is wrong with them.
    """
    needed = bool(config.loss.border_weight or config.augment.separate)
    data = dict(config.data) | {"instances": config.data.instances or needed}
    source, info = datasets.load(data, config.data.train_split)
    if config.augment.separate and info.classes[0] != "background":
        raise UserError(
            f"--config.augment.separate is {config.augment.separate}, but class 0 of "
            f"{info.name} is {info.classes[0]!r}; expected 0, or a data set whose "
            "class 0 is called 'background'"
        )
    if config.data.name == "folder":
        cli.log(folder.report(datasets.scan_folder(config.data)))
        if config.data.keep_classes:
            kept = ", ".join(info.classes)
            cli.log(f"note: only {kept} are kept, the other classes are void")
    source = object_crops.wrap(
        source,
        info,
        config.data,
        process=(jax.process_index(), jax.process_count()),
        workers=config.workers,
        threads=config.threads,
    )
    return supervision.apply(source, config.data, info), info


def splits(
    config: ConfigDict, source: datasets.Source, eval_source: datasets.Source
) -> dict[str, workdir_lib.Split]:
    """Which images a run trains and evaluates on, by the names of the splits."""
    sources = {config.data.train_split: source, config.data.eval_split: eval_source}
    if isinstance(source, object_crops.ObjectCrops):
        # The split has whole images; what it is cut into must not change, either.
        sources[config.data.train_split] = source.images
        sources[f"{config.data.train_split}, crops"] = source
    found = {
        name: workdir_lib.Split(len(split), datasets.fingerprint(split))
        for name, split in sources.items()
    }
    if folder := config.data.pseudo_labels:
        masks = pseudo_labels.fingerprint(folder)
        found["pseudo_labels"] = workdir_lib.Split(len(source), masks)
    return found


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
    config: ConfigDict,
    source: datasets.Source,
    *,
    model: nn.Module,
    info: datasets.Dataset,
) -> transforms.Options:
    """The augmentation of a config, with the size of the images as the default crop."""
    options = transforms.options(config.augment, info.mean)
    crop = options.crop if any(options.crop) else common_size(source)
    return options._replace(
        crop=crop,
        margin=model.tiling.margin,
        border_weight=config.loss.border_weight,
        border_sigma=config.loss.border_sigma,
    )


def common_size(source: datasets.Source) -> tuple[int, int]:
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
    config: ConfigDict,
    source: datasets.Source,
    *,
    augment: transforms.Options,
    start: int,
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
        mixture=supervision.mixture(source, config.data),
    )


def make_optimizer(config: ConfigDict, model: nn.Module) -> MakeOptimizer:
    """From parameters to the optimizer of a config."""
    frozen = getattr(model, "frozen", ())

    def optimizer_for(params: dict) -> optax.GradientTransformation:
        return optim.create(config.optim, params, config.total_steps, frozen=frozen)

    return optimizer_for


def make_init(
    config: ConfigDict,
    model: nn.Module,
    *,
    image_shape: tuple[int, int, int],
    mesh: jax.sharding.Mesh,
) -> Callable[[], training.TrainState]:
    """The jitted function that makes the first state, where the config wants it.

    Args:
      config: checked.
      model: of the config.
      image_shape: (H, W, C) of a training example.
      mesh: of the devices that train; compiling needs no more of them than their kind.

    Raises:
      UserError: the network does not fit images of this shape.
    """

    def init() -> training.TrainState:
        return training.create_state(
            model,
            make_optimizer(config, model),
            image_shape=image_shape,
            seed=config.seed,
        )

    where: Any = sharding.replicated(mesh)
    if config.state_sharding != "replicated":
        shapes = _traced(init, image_shape)
        where = sharding.state_shardings(shapes, mesh, config.state_sharding)
    return jax.jit(init, out_shardings=where)


def _traced(
    init: Callable[[], training.TrainState], image_shape: tuple[int, int, int]
) -> training.TrainState:
    try:
        return jax.eval_shape(init)
    except UserError:
        raise
    except ValueError as error:
        h, w, _ = image_shape
        raise UserError(f"config on {h}x{w} crops: {error}") from error


def abstract_state(
    config: ConfigDict,
    init: Callable[[], training.TrainState],
    *,
    image_shape: tuple[int, int, int],
    mesh: jax.sharding.Mesh,
) -> training.TrainState:
    """The structure of the state, and where it lies; bad fields fail early.

    Args:
      config: of the run.
      init: of ``make_init``; nothing is computed.
      image_shape: (H, W, C) of a training example.
      mesh: of the devices that train.

    Raises:
      UserError: the network does not fit images of this shape.
    """
    shapes = _traced(init, image_shape)
    where = sharding.state_shardings(shapes, mesh, config.state_sharding)
    return jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, where
    )


def start_from_weights(
    state: training.TrainState,
    config: ConfigDict,
    *,
    classes: tuple[str, ...],
    mesh: jax.sharding.Mesh,
) -> training.TrainState:
    """The first state with the weights of ``config.init_from``; says what is not there.

    Raises:
      UserError: no such run or file, or one of another network.
    """
    variables, report = initialization.start(
        config.init_from,
        config,
        classes=classes,
        variables=jax.device_get(whole_variables(state, mesh)),
        mesh=mesh,
    )
    for line in report.lines():
        cli.log(line)
    where = {
        name: jax.tree.map(lambda x: x.sharding, getattr(state, name))
        for name in variables
    }
    return state.replace(**jax.device_put(variables, where))


def whole_variables(state: training.TrainState, mesh: jax.sharding.Mesh) -> dict:
    """{"params", "batch_stats"} with a copy on every device."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    if all(x.sharding.is_fully_replicated for x in jax.tree.leaves(variables)):
        return variables
    return jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(variables)


def make_train_step(
    config: ConfigDict, model: nn.Module, *, params: dict, mesh: jax.sharding.Mesh
) -> TrainStep:
    """The jitted step ``(state, batch) -> (state, metrics)``.

    The state is donated, and lies where ``config.state_sharding`` wants it; ``params``
    give its structure only.
    """
    whole = sharding.replicated(mesh)
    optimizer = make_optimizer(config, model)(params)
    step = training.make_step(
        model,
        optimizer,
        options=config.loss,
        seed=config.seed,
        grad_accum_steps=config.grad_accum_steps,
    )
    step = compilation.precision(config.precision)(step)
    step = conv.float32_gradient_sums(config.float32_gradient_sums)(step)
    step = layers.bn_batch_size(config.bn_batch_size)(step)
    if config.state_sharding == "replicated":
        return jax.jit(step, donate_argnums=0, out_shardings=whole)

    def gathered(state: training.TrainState, batch: dict):
        # Once, not for the forward and for the backward pass.
        params = jax.lax.with_sharding_constraint(state.params, whole)
        return step(state.replace(params=params), batch)

    state = training.TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=params,
        batch_stats={},
        opt_state=jax.eval_shape(optimizer.init, params),
    )
    where = sharding.state_shardings(state, mesh, config.state_sharding)
    where = where.replace(batch_stats=whole)
    return jax.jit(gathered, donate_argnums=0, out_shardings=(where, whole))


LARGEST_WEIGHT = 1e12
"""Larger parameters or statistics are those of a run that has diverged."""


@jax.jit
def _largest(tree: Any) -> jax.Array:
    """The largest magnitude of all arrays; NaN if any of them holds one."""
    sizes = [jnp.max(jnp.abs(x)).astype(jnp.float32) for x in jax.tree.leaves(tree)]
    return jnp.max(jnp.stack(sizes)) if sizes else jnp.float32(0)


def divergence(state: training.TrainState) -> str:
    """Why a state is not worth saving; "" if it is.

    The loss alone does not tell: it is that of the weights before the step, and may be
    finite where they are absurdly large.
    """
    for what, tree, limit in (
        ("weight", state.params, LARGEST_WEIGHT),
        ("batch statistic", state.batch_stats, LARGEST_WEIGHT),
        ("value of the optimizer's state", state.opt_state, float("inf")),
    ):
        largest = float(_largest(tree))
        if not largest < limit:
            return f"the largest {what} is {largest:.3g} at step {int(state.step)}"
    return ""
