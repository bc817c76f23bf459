"""The files that describe a training run, and whether a command continues it."""

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from experiments.shared import provenance
from segjax import checkpoint_scores
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data import datasets
from segjax.errors import UserError

# Fields that may differ when a run is continued: they do not change what is learned.
FREE_FIELDS = {
    "workers",
    "threads",
    "eval_every",
    "eval_batch_size",
    "eval_images",
    "save_every",
    "log_every",
    "keep",
    "state_sharding",
    "tile",
    "total_steps",
    "total_epochs",
    "data.root",
    "data.data_dir",
    "data.pseudo_labels",
    *(f"crf.{field}" for field in config_lib.DEFAULTS["crf"]),
}


def check_same_run(
    config: ConfigDict,
    info: datasets.Dataset,
    splits: Mapping[str, workdir_lib.Split],
    *,
    workdir: Path,
) -> None:
    """Refuses to continue another run than the one in ``workdir``.

    Raises:
      UserError: a field of the config, the classes or the images differ, or the run is
        longer already.
    """
    path = workdir / workdir_lib.CONFIG
    if not path.exists():
        return
    trained = workdir_lib.read_dataset(workdir)
    workdir_lib.check_same_classes(trained, info, where=str(workdir))
    check_same_config(config, workdir)
    folder = workdir / workdir_lib.CHECKPOINTS
    steps = checkpoint_scores.steps(folder)
    if steps and max(steps) > config.total_steps:
        raise UserError(
            f"{workdir} has been trained for {max(steps)} steps, this command has "
            f"--config.total_steps={config.total_steps}: give at least as many to "
            "continue, or use another --workdir"
        )
    for name, split in workdir_lib.read_splits(workdir).items():
        if name in splits and split != splits[name]:
            raise UserError(
                f"{workdir}: the images of the split {name!r} are not those that the "
                f"run began with ({split.images} then, {splits[name].images} now; "
                "their names or sizes differ): restore them, or start from this run "
                f"in another --workdir with --config.init_from={workdir}"
            )


def check_same_config(config: ConfigDict, workdir: Path) -> None:
    """Refuses to continue a run that was trained with another config.

    Raises:
      UserError: a field differs that changes what is learned.
    """
    path = workdir / workdir_lib.CONFIG
    if not path.exists():
        return
    before = config_lib.flatten(config_lib.load(path))
    now = config_lib.flatten(config)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and key not in FREE_FIELDS:
            raise UserError(
                f"{workdir} was trained with --config.{key}={before.get(key)!r}, this "
                f"command has {now.get(key)!r}: use another --workdir, or the old "
                "value to continue"
            )


def write_description(
    config: ConfigDict,
    info: datasets.Dataset,
    splits: Mapping[str, workdir_lib.Split],
    *,
    workdir: Path,
) -> None:
    """Writes what is new or has changed; config.json last, as it marks a run."""
    workdir_lib.write_dataset(workdir, info)
    workdir_lib.write_splits(workdir, splits)
    workdir_lib.write_versions(workdir, provenance.versions())
    workdir_lib.write_config(workdir, config_lib.json_like(config))
