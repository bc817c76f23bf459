"""Workdirs as training leaves them, made without training."""

import jax
import numpy as np

from segjax import checkpoint, models, training
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data import datasets
from segjax.ops import geometry


def make_run(folder, name, fields, classes=3, channels=3, seed=0, **options):
    """Writes a workdir with random weights; returns its config, model and variables."""
    folder.mkdir()
    config = config_lib.make(
        **{"model_name": name, "model": fields, "eval_batch_size": 4, "threads": 2}
        | options
    )
    config_lib.save(config, folder / "config.json")
    palette = datasets.voc_palette(256)[np.arange(classes) % 256]
    names = tuple(f"class{i}" for i in range(classes))
    mean = (100.0,) * channels
    info = datasets.Dataset("pictures", names, palette, mean, channels)
    workdir_lib.write_dataset(folder, info)
    model = models.build(config, classes)
    side = geometry.nearest_sides(model.tiling, 64)[-1]
    image = jax.ShapeDtypeStruct((1, side, side, channels), np.uint8)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    shapes = jax.eval_shape(lambda x: model.init(keys, x, train=True), image)
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        if "var" in jax.tree_util.keystr(path):
            return jax.numpy.ones(shape.shape)
        spread = 2 * (2 / np.prod(shape.shape[:-1])) ** 0.5
        values = rng.normal(0, spread if len(shape.shape) > 1 else 0.3, shape.shape)
        return jax.numpy.asarray(values, np.float32)

    tree = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
    variables = jax.tree_util.tree_map_with_path(leaf, tree)
    state = training.TrainState(
        jax.numpy.array(7), **variables, opt_state={"m": jax.numpy.ones(1)}
    )
    manager = checkpoint.open_folder(folder / "checkpoints", 1)
    checkpoint.save(manager, state, {})
    checkpoint.finish(manager)
    manager.close()
    return config, model, variables
